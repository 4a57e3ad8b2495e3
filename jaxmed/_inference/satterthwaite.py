"""Satterthwaite's degrees of freedom of parameters and effects, from exact derivatives of their covariance.

An estimate with the variance V(psi) is compared with the t distribution with 2 V^2 / Var(V) degrees of freedom, those
of the scaled chi-squared distribution with the mean and variance of V (Satterthwaite 1946; Kuznetsova, Brockhoff &
Christensen 2017), where Var(V) = (dV/dpsi)' Cov(psi) (dV/dpsi) by the delta method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from jaxmed._data import Moments
from jaxmed._inference import effects
from jaxmed._inference.choices import ModelCovariance
from jaxmed._inference.covariance import covariances
from jaxmed._inference.estimates import Estimates, problem_of
from jaxmed._inference.limits import check_level, normal_table
from jaxmed._inference.targets import Quantities, quantities
from jaxmed._likelihood import (
    Array,
    Data,
    Layout,
    along,
    evaluate,
    executed,
    free_entries,
    jacobian,
    log_sds_to_variances,
    lower,
    root_and_precision,
)
from jaxmed._support import FitError, Floats, check_choice


class Slopes(NamedTuple):
    """Covariances of all parameters and their derivatives in psi = (beta, G, sigma^2), on the working scale.

    Attributes
    ----------
    covariance : ndarray, shape (p + n, p + n)
    slope : ndarray, shape (n, p + n, p + n)
        In (free entries of G, residual variances and covariances); the covariance does not depend on beta, at whose
        best value it is taken.
    matrix : ndarray, shape (p + n, p + n)
        To the user's scale (:class:`jaxmed._likelihood.layout.Scale`).
    """

    covariance: Floats
    slope: Floats
    matrix: Floats


def _coordinates(layout: Layout, theta: Floats) -> Floats:
    """Jacobian of (free entries of G, residual (co)variances) in the optimiser's coordinates."""

    def variances(theta: Array) -> Array:
        n_free = len(layout.free)
        root = lower(layout, theta[:n_free])
        return np.append(free_entries(layout, root @ root.T), log_sds_to_variances(layout, theta[n_free:]))

    return np.asarray(jacobian(variances, theta))


@partial(executed, static=2)
def _slopes(layout: Layout, which: str, theta: Array, steps: Array, data: Data) -> Array:
    """Derivatives of a covariance along some steps of theta: third derivatives of the likelihood."""

    def covariance(theta: Array) -> Array:
        root, tau = root_and_precision(layout, theta)
        found = covariances(layout, theta, evaluate(layout, root, tau, data))
        return found.joint if which == "joint" else found.block

    return along(covariance, theta, steps)


def covariance_slopes(fit: Estimates, moments: Moments, covariance: ModelCovariance) -> Slopes:
    """The joint or block covariance at the estimates and its derivatives."""
    problem = problem_of(fit, moments)
    layout, theta = problem.layout, fit.working.theta
    steps = np.linalg.inv(np.asarray(_coordinates(layout, theta)))
    slope = np.asarray(
        _slopes(problem.engine, layout, covariance, theta, np.ascontiguousarray(steps.T), problem.data())
    )
    at = fit.working.joint if covariance == "joint" else fit.working.block
    return Slopes(at, slope, problem.scale.matrix)


def degrees_of_freedom(slopes: Slopes, jacobian: Floats, bend: Floats) -> Floats:
    """2 V^2 / Var(V) of estimates with V = J Cov J', shape (estimates,).

    Parameters
    ----------
    slopes : Slopes
    jacobian : ndarray, shape (estimates, p + n)
    bend : ndarray, shape (estimates, p + n)
        The part of dV / dpsi that is due to the Jacobian, zero for linear combinations of parameters.

    Returns
    -------
    ndarray
        Infinite where V does not depend on what was estimated, NaN where V is zero or not known.
    """
    variance = np.sum((jacobian @ slopes.covariance) * jacobian, axis=1)
    gradient = np.array(bend)
    n = len(slopes.slope)
    gradient[:, gradient.shape[1] - n :] += np.einsum("ea,kab,eb->ek", jacobian, slopes.slope, jacobian, optimize=True)
    spread = np.sum((gradient @ slopes.covariance) * gradient, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, 2 * variance**2 / spread, np.nan)


def satterthwaite_table(
    fit: Estimates,
    moments: Moments,
    covariance: ModelCovariance,
    level: float,
    terms: str | Sequence[str] | None,
    at: Mapping[str, Any] | None,
) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.satterthwaite`."""
    check_choice("covariance", covariance, ModelCovariance)
    level = check_level(level)
    known = quantities(fit, at)
    chosen = _chosen(fit, known, terms)
    if fit.singular:
        raise FitError(
            "this fit is singular: the variance of an estimate has no derivative in a random-effect variance of zero "
            "(or a correlation of one); take fewer random effects, or intervals from the bootstrap"
        )
    if fit.flat:
        raise FitError(f"this fit has no degrees of freedom of its standard errors ({fit.message})")
    slopes = covariance_slopes(fit, moments, covariance)
    jacobian, bend = np.eye(known.n_params), np.zeros((known.n_params, known.n_params))
    if known.targets is not None:
        of, of_bend = _effect_slopes(known, fit, fit.covariance(covariance))
        jacobian, bend = np.vstack([jacobian, of]), np.vstack([bend, of_bend])
    jacobian, bend = jacobian[chosen], bend[chosen]
    df = degrees_of_freedom(slopes, jacobian @ slopes.matrix, bend @ slopes.matrix)
    error = fit.errors(jacobian, covariance)
    table = normal_table([known.labels[k] for k in chosen], known.values[chosen], error, 0.0)
    table = table.rename(columns={"z": "t"})
    finite = np.where(np.isfinite(df), df, 1e300)
    half = np.where(error == 0, 0.0, stdtrit(finite, 0.5 + level / 2) * error)
    table["p"] = np.where(np.isnan(df), np.nan, 2 * stdtr(finite, -np.abs(table["t"].to_numpy())))
    table["ci_lower"], table["ci_upper"] = known.values[chosen] - half, known.values[chosen] + half
    table.insert(2, "df", df)
    table.index = known.rows(chosen)
    return table


def _chosen(fit: Estimates, known: Quantities, terms: str | Sequence[str] | None) -> list[int]:
    """Positions of some terms; by default of the fixed effects, and then the effects."""
    if terms is None:
        return [*range(len(fit.system.labels)), *range(known.n_params, len(known.labels))]
    return known.positions(terms)


def _effect_slopes(known: Quantities, fit: Estimates, covariance: Floats) -> tuple[Floats, Floats]:
    """Jacobian J of the effects, shape (effects, p + n), and 2 (d J_e / d psi) Cov J_e for every effect e, alike."""
    of = known.targets
    assert of is not None
    _, at = effects.linear_combinations_and_jacobian(of.plan, fit.values, of.weights, of.combination)
    second = effects.second_derivatives(of.plan, fit.values, of.weights, of.combination, known.units)
    return at, 2 * np.einsum("eab,ea->eb", second, at @ covariance)
