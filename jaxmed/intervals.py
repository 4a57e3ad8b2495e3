"""Estimates and standard errors -> the one table form: estimate, se, z, p, ci_lower, ci_upper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from jaxmed.errors import SpecError
from jaxmed.moments import Floats


def check_level(level: float) -> float:
    """A confidence level strictly between 0 and 1."""
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise SpecError(f"level={level!r} is not a confidence level; give a number between 0 and 1, such as 0.95")
    return float(level)


def critical_value(level: float) -> float:
    """Two-sided normal quantile, e.g. 1.959964 for .95."""
    return float(ndtri(0.5 + check_level(level) / 2))


def normal_table(names: Sequence[str], estimate: Floats, se: Floats, critical: float | Floats) -> pd.DataFrame:
    """Wald table; a quantity that is fixed (se 0) has an interval of no width and no test."""
    free = se != 0
    z = np.full(len(estimate), np.nan)
    z[free] = estimate[free] / se[free]
    return pd.DataFrame(
        {
            "estimate": estimate,
            "se": se,
            "z": z,
            "p": 2 * ndtr(-np.abs(z)),
            "ci_lower": estimate - critical * se,
            "ci_upper": estimate + critical * se,
        },
        index=pd.Index(names),
    )


def limits_on_scale(estimate: Floats, se: Floats, critical: float, scale: str) -> tuple[Floats, Floats]:
    """Limits that are symmetric on the log scale (of what is positive) or on the logit scale (of shares).

    On the log scale estimate * exp(-+ critical * se / estimate). Without uncertainty (se 0) the estimate itself.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if scale == "log":
            width = critical * se / estimate
            lower, upper = estimate * np.exp(-width), estimate * np.exp(width)
        else:
            centre, width = np.log(estimate / (1 - estimate)), critical * se / (estimate * (1 - estimate))
            lower, upper = 1 / (1 + np.exp(width - centre)), 1 / (1 + np.exp(-width - centre))
    return np.where(se == 0, estimate, lower), np.where(se == 0, estimate, upper)
