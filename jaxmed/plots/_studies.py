"""Pictures of simulation studies: power curves, and coverage over a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmed._simulation import Power
from jaxmed._support import SpecError
from jaxmed.plots._style import GREY, MARKERS, SEVERAL, check_shown, legend, main_effect, make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def power(study: Power, effect: str | None = None, interval: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Power against the number of clusters, a line for every combination of what else varies, with 95% error bars.

    Parameters
    ----------
    study : Power
    effect : str, optional
        By default the first indirect effect.
    interval : str, optional
        By default the first of the study.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        An effect or interval that the study has not; the effect is zero in the population.
    FitError
        matplotlib is not installed.

    Examples
    --------
    >>> import jaxmed as jm
    >>> study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1)
    >>> jm.plots.power(study).get_xlabel()
    'clusters'
    """
    check_shown("study", study, Power, "what jaxmed.power returns")
    effect = main_effect(study.table["effect"]) if effect is None else effect
    rows = _rows(study, effect, interval)
    _check_fitted(rows, study)
    if rows["power"].isna().all():
        raise SpecError(f"{effect!r} has no power: it is zero in the population")
    ax = make_axes(ax)
    for k, (name, part) in enumerate(_groups(rows, ("clusters",))):
        part = part.sort_values("clusters")
        error = 1.96 * part["power_mcse"]
        ax.errorbar(
            part["clusters"],
            part["power"],
            yerr=error,
            color=SEVERAL[k % len(SEVERAL)],
            marker=MARKERS[k % len(MARKERS)],
            capsize=2,
            label=name or None,
        )
    ax.axhline(0.8, color=GREY, linestyle=":", linewidth=1)
    ax.set(xlabel="clusters", ylabel=f"power for {effect} ({rows['interval'].iloc[0]})", ylim=(0, 1.02))
    if ax.get_legend_handles_labels()[1]:
        legend(ax)
    return ax


def coverage(study: Power, effect: str | None = None, interval: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Coverage over a grid, clusters by what else varies: share in %, paler the nearer to the level.

    Parameters
    ----------
    study, effect, interval, ax
        As for :func:`power`.

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        An effect or interval that the study has not.
    FitError
        matplotlib is not installed.

    Examples
    --------
    >>> import jaxmed as jm
    >>> study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1)
    >>> jm.plots.coverage(study).get_xlabel()
    'clusters'
    """
    check_shown("study", study, Power, "what jaxmed.power returns")
    effect = main_effect(study.table["effect"]) if effect is None else effect
    rows = _rows(study, effect, interval)
    _check_fitted(rows, study)
    groups = _groups(rows, ("clusters",))
    clusters = sorted(rows["clusters"].unique())
    grid = np.full((len(groups), len(clusters)), np.nan)
    for at, (_, part) in enumerate(groups):
        for _, row in part.iterrows():
            grid[at, clusters.index(row["clusters"])] = row["coverage"]
    level = study.level
    ax = make_axes(ax)
    from matplotlib.colors import LinearSegmentedColormap

    # Blue above the level, red below it; the figures say which, for those who cannot tell them apart.
    colours = LinearSegmentedColormap.from_list("coverage", ["#b5402a", "#f0c9bf", "#f7f7f7", "#bcd4e0", "#1b4965"])
    reach = max(0.05, float(np.nanmax(np.abs(grid - level))))
    ax.imshow(grid, cmap=colours, vmin=level - reach, vmax=level + reach, aspect="auto")
    for (row, col), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = abs(value - level) > 0.6 * reach
            ax.text(col, row, f"{100 * value:.1f}", ha="center", va="center", color="white" if dark else "black")
    ax.set_xticks(range(len(clusters)), [str(count) for count in clusters])
    ax.set_yticks(range(len(groups)), [name or effect for name, _ in groups])
    title = f"coverage of {effect} in %, {rows['interval'].iloc[0]}, nominal {100 * level:g}"
    ax.set(xlabel="clusters", title=title)
    return ax


def _check_fitted(rows: pd.DataFrame, study: Power) -> None:
    """There is nothing to draw where no fit has the interval."""
    if not (rows["used"] > 0).any():
        raise SpecError(f"no fit of this study has the interval{''.join(f'; {note}' for note in study.notes)}")


def _rows(study: Power, effect: str, interval: str | None) -> pd.DataFrame:
    table = study.table
    for name, value in {"effect": effect, "interval": interval}.items():
        if value is not None and value not in set(table[name]):
            raise SpecError(f"{name}={value!r} is not in this study; choose one of {list(dict.fromkeys(table[name]))}")
    chosen = table["interval"].iloc[0] if interval is None else interval
    return table[(table["effect"] == effect) & (table["interval"] == chosen)]


def _groups(rows: pd.DataFrame, without: tuple[str, ...]) -> list[tuple[str, pd.DataFrame]]:
    """Designs that differ in the number of clusters alone, with what distinguishes them in words."""
    design = [name for name in rows.columns[: rows.columns.get_loc("effect")] if name not in without]
    varying = [name for name in design if rows[name].nunique(dropna=False) > 1]
    if not varying:
        return [("", rows)]
    parts: list[tuple[str, pd.DataFrame]] = []
    for key, part in rows.groupby(varying, sort=False, dropna=False):
        values: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        parts.append((", ".join(f"{name} {value}" for name, value in zip(varying, values, strict=True)), part))
    return parts
