"""Pictures of moderated effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmed._inference import moderator_by_cluster
from jaxmed._results import Fit, conditional_effects, johnson_neyman
from jaxmed.plots._style import ACCENT, DARK, GREY, LIGHT, MIDDLE, headroom, legend, make_axes, plain, thin, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def conditional(
    fit: Fit,
    moderator: str,
    effect: str = "indirect",
    level: float = 0.95,
    at: Mapping[str, Any] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """An effect over a moderator with its band; darker where the interval excludes zero (Johnson & Neyman 1936).

    Ticks at the foot are the values of clusters, of a moderator that belongs to them.

    Parameters
    ----------
    fit : Fit
    moderator : str
        With numbers as values.
    effect : str
    level : float
    at : dict, optional
        One value of each other moderator; by default the mean, or the first value.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        No such moderator or effect.

    Examples
    --------
    >>> import jaxmed as jm
    >>> roles = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
    >>> fit = jm.fit(jm.datasets.load_schools(), jm.Mediation(**roles, moderators={"climate": ["a"]}))
    >>> jm.plots.conditional(fit, "climate").get_xlabel()
    'climate'
    """
    curve = conditional_effects(fit, moderator, effect, level, at)
    regions = johnson_neyman(fit, moderator, effect, level, at)
    grid = curve.index.to_numpy(dtype=float)
    low, high = curve["ci_lower"].to_numpy(), curve["ci_upper"].to_numpy()
    ax = make_axes(ax)
    ax.fill_between(grid, low, high, color=LIGHT, alpha=0.6, linewidth=0, label=f"{100 * level:g}% interval")
    for k, (first, last, _) in enumerate(regions.itertuples(index=False)):
        inside = np.concatenate([[first], grid[(grid > first) & (grid < last)], [last]])
        band = [np.interp(inside, grid, limit) for limit in (low, high)]
        label = "excludes zero" if k == 0 else None
        ax.fill_between(inside, *band, color=MIDDLE, alpha=0.6, linewidth=0, label=label)
        for limit in (first, last):
            if grid[0] < limit < grid[-1]:
                ax.axvline(limit, color=ACCENT, linestyle="--", linewidth=1.2, label=f"limit {limit:.3g}")
    ax.plot(grid, curve["estimate"], color=DARK, linewidth=2)
    ax.axhline(0, color=GREY, linestyle=":", linewidth=1)
    if moderator in fit.moments.constants:
        values = moderator_by_cluster(fit, fit.moments, moderator)
        values = np.sort(values[np.isfinite(values)])
        shown = values[thin(len(values))]
        ax.plot(shown, np.full(len(shown), 0.02), "|", color=GREY, markersize=6, transform=ax.get_xaxis_transform())
    ax.set(xlabel=plain(moderator), ylabel=plain(words(effect) if effect.startswith(("indirect", "total")) else effect))
    headroom(ax, 1.25)
    legend(ax, loc="upper left")
    return ax
