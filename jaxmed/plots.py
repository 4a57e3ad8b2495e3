"""Pictures of results. Every function draws on ``ax``, or on axes of its own, and returns them; needs matplotlib."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmed.drawing import ACCENT, DARK, LIGHT, axes
from jaxmed.errors import ConvergenceWarning, SpecError, Status
from jaxmed.replicates import Replicates
from jaxmed.study_plots import coverage, power

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["convergence", "coverage", "power", "replicates"]


def replicates(
    found: Replicates,
    term: str = "indirect",
    kind: str = "percentile",
    level: float = 0.95,
    *,
    fit: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Distribution of one effect or parameter over the replicates: histogram, kernel density, estimate and interval.

    Parameters
    ----------
    found : Replicates
    term : str
        Name of an effect or parameter.
    kind, level, fit
        Of the interval, as in :meth:`jaxmed.Replicates.intervals`.
    ax : Axes, optional

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
    row = found.intervals(kind, level, [term], fit=fit).iloc[0]
    ax = axes(ax)
    draws = _draws(found, term)
    ax.hist(draws, bins=_bins(draws), density=True, color=LIGHT, edgecolor="white", linewidth=0.5)
    if draws.std() > 0:
        grid = np.linspace(draws.min(), draws.max(), 200)
        ax.plot(grid, _density(draws, grid), color=DARK, label=f"{len(draws)} replicates")
    ax.axvline(row["estimate"], color=ACCENT, label=f"estimate {row['estimate']:.4g}")
    limits = f"{kind} {100 * level:g}% interval {row['ci_lower']:.4g} to {row['ci_upper']:.4g}"
    ax.axvline(row["ci_lower"], color=ACCENT, linestyle="--", label=limits)
    ax.axvline(row["ci_upper"], color=ACCENT, linestyle="--")
    ax.set(xlabel=term, ylabel="density", ylim=(0, 1.45 * ax.get_ylim()[1]))
    ax.legend(loc="upper left", framealpha=0.9, edgecolor="none", fontsize="small")
    return ax


def convergence(
    found: Replicates,
    term: str = "indirect",
    kind: str = "percentile",
    level: float = 0.95,
    *,
    fit: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Limits of an interval from more and more of the replicates, with two Monte Carlo errors to both sides.

    Parameters
    ----------
    found : Replicates
    term, kind, level, fit, ax
        As for :func:`replicates`.

    Raises
    ------
    SpecError
        An unknown term or kind; fewer than 20 replicates.
    """
    if len(found) < 20:
        raise SpecError(f"{len(found)} replicates are too few to show how limits settle; draw at least 20")
    counts = np.unique(np.geomspace(20, len(found), 40).astype(int))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the first few are too few, which is what is shown
        parts = [replace(found, table=found.table.iloc[:count]) for count in counts]
        rows = pd.concat([part.intervals(kind, level, [term], fit=fit) for part in parts])
    ax = axes(ax)
    for limit, name in (("ci_lower", "lower limit"), ("ci_upper", "upper limit")):
        value, error = rows[limit].to_numpy(), rows[f"{limit}_mcse"].to_numpy()
        colour = DARK if limit == "ci_lower" else ACCENT
        ax.fill_between(counts, value - 2 * error, value + 2 * error, color=colour, alpha=0.2, linewidth=0)
        ax.plot(counts, value, color=colour, label=f"{name} {value[-1]:.4g} (Monte Carlo error {error[-1]:.2g})")
    ax.axhline(rows["estimate"].iloc[0], color="#555555", linestyle=":", label="estimate")
    ax.set(xscale="log", xlabel="replicates", ylabel=f"{term}, {kind} {100 * level:g}%")
    ax.legend(framealpha=0.9, edgecolor="none", fontsize="small")
    return ax


def _draws(found: Replicates, term: str) -> Any:
    return found.table.loc[found.table["status"] == Status.CONVERGED, term].to_numpy()


def _bins(draws: Any) -> int:
    """Bins of the width of Freedman & Diaconis (1981), 10 to 80 of them."""
    spread = np.subtract(*np.quantile(draws, [0.75, 0.25]))
    if spread <= 0:
        return 10
    width = 2 * spread / len(draws) ** (1 / 3)
    return int(np.clip((draws.max() - draws.min()) / width, 10, 80))


def _density(draws: Any, grid: Any) -> Any:
    """Gaussian kernel density, bandwidth of Silverman (1986)."""
    spread = min(draws.std(), np.subtract(*np.quantile(draws, [0.75, 0.25])) / 1.34) or draws.std()
    width = 0.9 * spread * len(draws) ** -0.2
    total = np.zeros(len(grid))
    for part in np.array_split(draws, -(-len(draws) // 2048)):
        total += np.exp(-(((grid[:, None] - part) / width) ** 2) / 2).sum(axis=1)
    return total / (len(draws) * width * np.sqrt(2 * np.pi))
