"""Estimates and standard errors -> the one table form: estimate, se, z, p, ci_lower, ci_upper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import betainc, ndtr, ndtri

from jaxmed._support import Floats, SpecError


def check_level(level: float) -> float:
    """A confidence level strictly between 0 and 1."""
    if isinstance(level, bool) or not isinstance(level, (int, float, np.floating)) or not 0 < level < 1:
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


# Quantiles of draws --------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """An interval from draws.

    Attributes
    ----------
    lower, upper : float
    lower_mcse, upper_mcse : float
        Monte Carlo standard errors: how far the limits move from one set of draws to another.
    beyond : bool
        A limit lies beyond the outermost draw, which stands for it.
    """

    lower: float
    upper: float
    lower_mcse: float
    upper_mcse: float
    beyond: bool = False


UNKNOWN = Limits(np.nan, np.nan, np.nan, np.nan)


def quantile(ordered: Floats, share: float) -> float:
    """Quantile of n ordered draws, number (n + 1) share, on the normal scale between two of them.

    Davison & Hinkley (1997, equation 5.8), as in the R package boot; the outermost draws beyond them.
    """
    n = len(ordered)
    at = (n + 1) * share
    below = int(np.floor(at + 1e-9))
    if below < 1:
        return float(ordered[0])
    if below >= n:
        return float(ordered[-1])
    low, high = ordered[below - 1], ordered[below]
    if at - below <= 1e-9:
        return float(low)
    ends = ndtri(below / (n + 1)), ndtri((below + 1) / (n + 1))
    return float(low + (ndtri(share) - ends[0]) / (ends[1] - ends[0]) * (high - low))


def quantile_error(ordered: Floats, share: float) -> float:
    """Standard error of a quantile: sd of the order statistic under resampling (Maritz & Jarrett 1978)."""
    n = len(ordered)
    m = min(max(share * n, 0.5), n - 0.5)
    weight = np.diff(betainc(m + 0.5, n - m + 0.5, np.arange(n + 1) / n))
    mean = weight @ ordered
    return float(np.sqrt(max(weight @ (ordered - mean) ** 2, 0.0)))


def quantile_limits(draws: Floats, level: float, estimate: float = 0.0, *, reflected: bool = False) -> Limits:
    """Percentile limits; ``reflected`` the basic ones, 2 estimate - quantile."""
    ordered = np.sort(draws)
    tail = (1 - level) / 2
    lower, upper = quantile(ordered, tail), quantile(ordered, 1 - tail)
    errors = quantile_error(ordered, tail), quantile_error(ordered, 1 - tail)
    beyond = (len(ordered) + 1) * tail < 1 - 1e-9 and ordered[0] < ordered[-1]
    if reflected:
        return Limits(2 * estimate - upper, 2 * estimate - lower, errors[1], errors[0], beyond)
    return Limits(lower, upper, *errors, beyond)


def studentized(draws: Floats, errors: Floats, level: float, estimate: float, error: float) -> Limits:
    """Bootstrap-t limits, estimate - quantiles of (draw - estimate) / its standard error, times ``error``.

    Draws whose standard error is not available do not count.
    """
    if error == 0:
        return Limits(estimate, estimate, 0.0, 0.0)
    usable = errors > 0  # False for NaN
    if usable.sum() < 2 or not np.isfinite(error):
        return UNKNOWN
    found = quantile_limits((draws[usable] - estimate) / errors[usable], level)
    return Limits(
        estimate - error * found.upper,
        estimate - error * found.lower,
        error * found.upper_mcse,
        error * found.lower_mcse,
        found.beyond,
    )


def bias_corrected(draws: Floats, level: float, estimate: float, acceleration: float = 0.0) -> Limits:
    """BC limits, and BCa ones with an ``acceleration`` (Efron 1987).

    Quantiles F(z0 + (z0 + z) / (1 - a (z0 + z))) with F the normal distribution, z0 = F^-1(share of draws below the
    estimate), z the normal quantile. The Monte Carlo error is that of the quantile and of z0 together.
    """
    ordered = np.sort(draws)
    n = len(ordered)
    if ordered[0] == ordered[-1]:
        return Limits(float(ordered[0]), float(ordered[0]), 0.0, 0.0)
    share = np.count_nonzero(ordered < estimate) / n
    if not 0 < share < 1:
        return UNKNOWN
    z0 = float(ndtri(share))
    limits, errors, beyond = [], [], False
    for z in (-critical_value(level), critical_value(level)):
        bent = 1 - acceleration * (z0 + z)
        at = z0 + (z0 + z) / bent
        tail = float(ndtr(at))
        limits.append(quantile(ordered, tail))
        beyond |= not 1 - 1e-9 <= (n + 1) * tail <= n + 1e-9
        # limit = F^-1(tail(z0)): the empirical F moves at the limit and, through z0, at the estimate.
        slope = _density(at) * (1 + 1 / bent**2) / _density(z0)
        binomial = tail * (1 - tail) + slope**2 * share * (1 - share)
        binomial -= 2 * slope * (min(tail, share) - tail * share)
        errors.append(quantile_error(ordered, tail) * np.sqrt(max(binomial, 0.0) / max(tail * (1 - tail), 1e-300)))
    return Limits(limits[0], limits[1], float(errors[0]), float(errors[1]), beyond)


def _density(z: float) -> float:
    return float(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))


def draws_table(names: Sequence[str], estimate: Floats, se: Floats, limits: Sequence[Limits]) -> pd.DataFrame:
    """The table form with limits from draws and their Monte Carlo errors; z and p by ``se``."""
    table = normal_table(names, estimate, se, 0.0)
    for name in ("lower", "upper"):
        table[f"ci_{name}"] = [getattr(found, name) for found in limits]
    for name in ("lower", "upper"):
        table[f"ci_{name}_mcse"] = [getattr(found, f"{name}_mcse") for found in limits]
    return table
