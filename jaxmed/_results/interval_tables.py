"""Intervals of a fit without a bootstrap, by any method, in the one table form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxmed._data import Moments
from jaxmed._inference import (
    Covariance,
    Estimates,
    IntervalCovariance,
    Quantities,
    check_level,
    critical_value,
    draws_table,
    effect_table,
    effects,
    normal_table,
    profile,
    quantile_limits,
    quantities,
)
from jaxmed._support import MONTE_CARLO, FitError, Floats, SpecError, check_choice, check_count, lower_root, stream

IntervalMethod = Literal["delta", "monte_carlo", "profile"]
COVARIANCES: dict[IntervalMethod, tuple[IntervalCovariance, ...]] = {
    "delta": ("joint", "block", "robust", "bauer"),
    "monte_carlo": ("joint", "block", "robust", "independent"),
    "profile": ("joint",),
}
MATRICES: dict[IntervalCovariance, Covariance] = {
    "joint": "joint",
    "block": "block",
    "robust": "robust",
    "bauer": "block",
    "independent": "block",
}


def interval_table(
    fit: Estimates,
    moments: Moments,
    method: IntervalMethod,
    level: float,
    seed: int | None,
    covariance: IntervalCovariance | None,
    terms: str | Sequence[str],
    at: Mapping[str, Any] | None,
    draws: int,
) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.intervals`."""
    check_choice("method", method, IntervalMethod, ", or intervals() of jaxmed.bootstrap")
    chosen: IntervalCovariance = "joint" if method == "profile" else fit.default_covariance
    if covariance is not None:
        chosen = check_choice(f"method={method!r}: covariance", covariance, COVARIANCES[method])
    level = check_level(level)
    known = quantities(fit, at)
    places = known.positions(terms)
    if method == "profile":
        table = profile.profile_intervals(fit, moments, [known.labels[k] for k in places], level, at)
    elif method == "monte_carlo":
        table = _monte_carlo(
            fit, known, places, level, _seed(seed), chosen, check_count("draws", draws, 100, 10_000_000)
        )
    else:
        table = _delta(fit, known, places, level, chosen, at)
    table.index = known.rows(places)
    return table


def _delta(
    fit: Estimates,
    known: Quantities,
    chosen: list[int],
    level: float,
    covariance: IntervalCovariance,
    at: Mapping[str, Any] | None,
) -> pd.DataFrame:
    if covariance == "bauer":
        if min(chosen) < known.n_params:
            raise SpecError("covariance='bauer' is of effects; for parameters choose 'joint', 'block' or 'robust'")
        return effect_table(fit, covariance, level, at, False).iloc[[k - known.n_params for k in chosen]]
    errors = known.errors if covariance == "joint" else fit.errors(known.jacobian(fit.values), MATRICES[covariance])
    labels = [known.labels[k] for k in chosen]
    return normal_table(labels, known.values[chosen], errors[chosen], critical_value(level))


def _monte_carlo(
    fit: Estimates,
    known: Quantities,
    chosen: list[int],
    level: float,
    seed: int,
    covariance: IntervalCovariance,
    draws: int,
) -> pd.DataFrame:
    """Quantiles at parameters from N(estimate, covariance).

    At a flat maximum NaN of all that depends on a parameter without an error: what is known of a sum in the first order
    is not so of the product of two draws in it.
    """
    matrix = fit.covariance(MATRICES[covariance])
    if covariance == "independent":
        matrix = np.diag(np.diag(matrix))
    if np.all(np.isnan(np.diag(matrix))):
        raise FitError(f"the {covariance} covariance of this fit is not available ({fit.message}); use the bootstrap")
    drawn = draw_all(known, fit.values, matrix, seed, draws)[:, chosen]
    limits = [quantile_limits(column, level) for column in drawn.T]
    labels = [known.labels[k] for k in chosen]
    return draws_table(labels, known.values[chosen], drawn.std(axis=0, ddof=1), limits)


def draw_all(known: Quantities, values: Floats, covariance: Floats, seed: int, draws: int) -> Floats:
    """Parameters from N(values, covariance) and the effects at them, shape (draws, labels).

    NaN of all that depends on a parameter whose covariance is NaN.
    """
    unknown = np.isnan(np.diag(covariance))
    drawn = normal_draws(values, np.where(np.isnan(covariance), 0.0, covariance), seed, draws)
    if known.targets is not None:
        of = known.targets
        drawn = np.hstack([drawn, effects.linear_combinations_at(of.plan, drawn, of.weights, of.combination)])
    if unknown.any():
        drawn[:, np.any(known.jacobian(values)[:, unknown] != 0, axis=1)] = np.nan
    return drawn


def normal_draws(values: Floats, covariance: Floats, seed: int, draws: int) -> Floats:
    """Parameters from N(values, covariance), shape (draws, parameters); the covariance may be singular."""
    unit = np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
    root = unit[:, None] * lower_root(covariance / unit / unit[:, None])
    normals = stream(seed, MONTE_CARLO).standard_normal((draws, len(unit)))
    return values + normals @ root.T


def _seed(seed: Any) -> int:
    if seed is None:
        raise SpecError("method='monte_carlo' draws random numbers: give a seed, e.g. seed=1")
    return check_count("seed", seed, 0)
