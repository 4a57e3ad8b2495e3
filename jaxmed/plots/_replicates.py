"""Pictures of bootstrap replicates: their distribution, and how limits settle."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmed._results import density
from jaxmed._simulation import IntervalKind, Replicates
from jaxmed._support import ConvergenceWarning, SpecError, Status, renamed
from jaxmed.plots._style import ACCENT, DARK, GREY, LIGHT, bins, check_shown, legend, main_effect, make_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@renamed(found="replicates")
def replicates(
    replicates: Replicates,
    term: str | None = None,
    kind: IntervalKind = "percentile",
    level: float = 0.95,
    *,
    fit: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Distribution of one effect or parameter over the replicates: histogram, kernel density, estimate and interval.

    Parameters
    ----------
    replicates : Replicates
    term : str
        Name of an effect or parameter; the first indirect effect unless named.
    kind, level, fit
        Of the interval, as in :meth:`jaxmed.Replicates.intervals`.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        An unknown term or kind.
    FitError
        matplotlib is not installed.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> axes = jm.plots.replicates(jm.bootstrap(fit, 200, seed=1), "indirect")
    >>> axes.get_xlabel()
    'indirect'
    """
    check_shown("replicates", replicates, Replicates, "what jaxmed.bootstrap returns")
    term = main_effect(replicates.origin.labels) if term is None else term
    row = replicates.intervals(kind, level, [term], fit=fit).iloc[0]
    ax = make_axes(ax)
    draws = _draws(replicates, term)
    ax.hist(draws, bins=bins(draws), density=True, color=LIGHT, edgecolor="white", linewidth=0.5)
    if draws.std() > 0:
        grid = np.linspace(draws.min(), draws.max(), 200)
        ax.plot(grid, density(draws, grid), color=DARK, label=f"{len(draws)} replicates")
    ax.axvline(row["estimate"], color=ACCENT, label=f"estimate {row['estimate']:.4g}")
    limits = f"{kind} {100 * level:g}% interval {row['ci_lower']:.4g} to {row['ci_upper']:.4g}"
    ax.axvline(row["ci_lower"], color=ACCENT, linestyle="--", label=limits)
    ax.axvline(row["ci_upper"], color=ACCENT, linestyle="--")
    ax.set(xlabel=plain(term), ylabel="density", ylim=(0, 1.45 * ax.get_ylim()[1]))
    legend(ax, loc="upper left")
    return ax


@renamed(found="replicates")
def convergence(
    replicates: Replicates,
    term: str | None = None,
    kind: IntervalKind = "percentile",
    level: float = 0.95,
    *,
    fit: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Limits of an interval from more and more of the replicates, with two Monte Carlo errors to both sides.

    Parameters
    ----------
    replicates : Replicates
    term, kind, level, fit, ax
        As for :func:`replicates`.

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        An unknown term or kind; fewer than 20 replicates.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.plots.convergence(jm.bootstrap(fit, 200, seed=1)).get_xlabel()
    'replicates'
    """
    check_shown("replicates", replicates, Replicates, "what jaxmed.bootstrap returns")
    term = main_effect(replicates.origin.labels) if term is None else term
    if len(replicates) < 20:
        raise SpecError(f"{len(replicates)} replicates are too few to show how limits settle; draw at least 20")
    counts = np.unique(np.geomspace(20, len(replicates), 40).astype(int))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the first few are too few, which is what is shown
        parts = [replace(replicates, table=replicates.table.iloc[:count]) for count in counts]
        rows = pd.concat([part.intervals(kind, level, [term], fit=fit) for part in parts])
    ax = make_axes(ax)

    from matplotlib.ticker import LogLocator, NullFormatter

    for limit, name in (("ci_lower", "lower limit"), ("ci_upper", "upper limit")):
        value, error = rows[limit].to_numpy(), rows[f"{limit}_mcse"].to_numpy()
        colour = DARK if limit == "ci_lower" else ACCENT
        ax.fill_between(counts, value - 2 * error, value + 2 * error, color=colour, alpha=0.2, linewidth=0)
        ax.plot(counts, value, color=colour, label=f"{name} {value[-1]:.4g} (Monte Carlo error {error[-1]:.2g})")
    ax.axhline(rows["estimate"].iloc[0], color=GREY, linestyle=":", label="estimate")
    ax.set(xscale="log", xlabel="replicates", ylabel=f"{plain(term)}, {kind} {100 * level:g}%")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    legend(ax)
    return ax


def _draws(replicates: Replicates, term: str) -> Any:
    return replicates.table.loc[replicates.table["status"] == Status.CONVERGED, term].to_numpy()
