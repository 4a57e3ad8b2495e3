"""Conditional effects over a moderator: the curve, and the regions in which it differs from zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxmed._inference import check_level, estimands_of
from jaxmed._results.fit_effects import FitEffects, check_is_fit
from jaxmed._support import SpecError

GRID = 101


def numeric_moderators(fit: FitEffects) -> list[str]:
    """Moderators of a fit with numbers as values, as against categories."""
    names = dict(fit.spec.moderators)
    return [name for name in names if name not in fit.facts.categories]


def middle(fit: FitEffects) -> dict[str, float | str]:
    """One value of every moderator to show a path at: the mean, or the first of two values or of the categories."""
    return {name: values[1] if len(values) == 3 else values[0] for name, values in _numbers_first(fit).items()}


def _numbers_first(fit: FitEffects) -> dict[str, tuple[float | str, ...]]:
    return {
        name: values[:1] if name in fit.facts.categories else values for name, values in fit.moderator_values.items()
    }


def conditional_effects(
    fit: FitEffects,
    moderator: str,
    effect: str = "indirect",
    level: float = 0.95,
    at: Mapping[str, Any] | None = None,
    values: Any = None,
) -> pd.DataFrame:
    """An effect at values of one moderator, by default 101 over its range in the data.

    Parameters
    ----------
    fit : Fit
    moderator : str
        With numbers as values.
    effect : str
        Name of an effect.
    level : float
    at : dict, optional
        One value of each other moderator; by default as :func:`middle` says.
    values : sequence of float, optional

    Returns
    -------
    DataFrame
        Index: values of the moderator; columns as those of :meth:`jaxmed.Fit.effects`.

    Raises
    ------
    SpecError
        No such moderator or effect.
    """
    check_is_fit(fit, "johnson_neyman")
    names = numeric_moderators(fit)
    if not isinstance(moderator, str) or moderator not in names:
        raise SpecError(f"moderator={moderator!r}: the moderators of this fit that are numbers are {names}")
    effects = [row.name for row in estimands_of(fit).rows]
    if not isinstance(effect, str) or effect not in effects:
        raise SpecError(f"effect={effect!r}: the effects of this fit are {effects}")
    if values is None:
        values = np.linspace(*fit.sample_summary.ranges[moderator], GRID)
    if not isinstance(at, Mapping | None):
        raise SpecError(f"at={at!r} must be a dict from the other moderators to values, such as {{'w': 0}}")
    fixed = {**middle(fit), **(at or {}), moderator: list(map(float, values))}
    found = fit.effects(level=level, at=fixed).loc[[effect]]
    found.index = pd.Index(values, name=moderator)
    return found


def johnson_neyman(
    fit: FitEffects, moderator: str, effect: str = "indirect", level: float = 0.95, at: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Regions of a moderator in which the interval of a conditional effect excludes zero.

    Johnson & Neyman (1936), as Bauer & Curran (2005) use it: the limits of a region are the values at which
    abs(estimate) = z se, found on a grid of 101 values over the range of the data and refined to the root.

    Parameters
    ----------
    fit : Fit
    moderator : str
        With numbers as values.
    effect : str
    level : float
    at : dict, optional
        One value of each other moderator; by default the mean, or the first value.

    Returns
    -------
    DataFrame
        A row a region, ``lower, upper, sign``; none where zero is never excluded. A region that ends at the range of
        the data may go on beyond it.

    Raises
    ------
    SpecError
        No such moderator or effect.

    Examples
    --------
    >>> import jaxmed as jm
    >>> roles = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
    >>> fit = jm.fit(jm.datasets.load_schools(), jm.Mediation(**roles, moderators={"climate": ["a"]}))
    >>> jm.johnson_neyman(fit, "climate").round(2).values.tolist()
    [[-1.83, 2.85, 1.0]]
    """
    from scipy.optimize import brentq  # half a second, for this alone

    check_level(level)

    def margin(table: pd.DataFrame) -> Any:
        half = table["ci_upper"] - table["estimate"]
        return (table["estimate"].abs() - half).to_numpy()

    def at_one(value: float) -> float:
        return float(margin(conditional_effects(fit, moderator, effect, level, at, [value]))[0])

    curve = conditional_effects(fit, moderator, effect, level, at)
    grid, apart = curve.index.to_numpy(dtype=float), margin(curve)
    sign = np.where(apart > 0, np.sign(curve["estimate"].to_numpy()), 0.0)
    regions = []
    for part in np.split(np.arange(len(grid)), np.flatnonzero(np.diff(sign)) + 1):
        if sign[part[0]] == 0:
            continue
        ends = [grid[part[0]], grid[part[-1]]]
        for side, (inner, outer) in enumerate(((part[0], part[0] - 1), (part[-1], part[-1] + 1))):
            if 0 <= outer < len(grid) and apart[outer] < 0:
                ends[side] = brentq(at_one, *sorted((grid[inner], grid[outer])), xtol=1e-10 * (grid[-1] - grid[0]))
        regions.append((*ends, sign[part[0]]))
    return pd.DataFrame(regions, columns=["lower", "upper", "sign"], dtype=float)
