"""From the exact Hessian at the optimum to covariances, from moments to the tests' null models, and singularity."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmed import linalg
from jaxmed._runtime import float64
from jaxmed.likelihood import Evaluation
from jaxmed.moments import Floats, Moments
from jaxmed.params import Layout, free_entries, root_and_precision, root_chain, triangular
from jaxmed.spec import System

SINGULAR_EIGENVALUE = 1e-6  # of the correlation matrix of the random effects
SINGULAR_VARIANCE = 1e-9  # of a random effect's share, relative to the residual variance
FLAT = 1e-9  # relative curvature below which a direction of the root is flat


class Covariances(NamedTuple):
    """Estimates and their covariances on the working scale, for (beta, free entries of G, residual variances).

    Attributes
    ----------
    values : Array, shape (p + n,)
    joint, block : Array, shape (p + n, p + n)
    """

    values: Array
    joint: Array
    block: Array


def covariances(layout: Layout, theta: Array, evaluation: Evaluation) -> Covariances:
    """Joint and block covariance of all parameters (docs/method.md, Standard errors).

    With C = (X'V^-1X)^-1, V_theta the inverse exact Hessian of the profiled negative log likelihood in
    (vech G, sigma^2) and D = d beta / d theta: joint = [C + D V D', D V; V D', V], block = [C, 0; 0, V]. For ML the
    joint covariance is the inverse of the Hessian of the full likelihood in (beta, G, sigma^2). Where that Hessian is
    not positive definite everything that involves V is NaN; see :func:`rank_constrained`.
    """
    root, tau = root_and_precision(layout, theta)
    n_free = len(layout.free)
    # From tau to residual variances s = 1 / tau: dtau/ds = -tau^2, d2tau/ds2 = 2 tau^3.
    slope = jnp.concatenate([jnp.ones(n_free), -(tau**2)])
    bend = jnp.concatenate([jnp.zeros(n_free), 2 * tau**3 * evaluation.gradient[n_free:]])
    hessian = evaluation.hessian * slope[:, None] * slope + jnp.diag(bend)
    unit = 1 / jnp.sqrt(jnp.abs(jnp.diagonal(hessian)))
    inner = linalg.inverse(hessian * unit[:, None] * unit) * unit[:, None] * unit
    return _assembled(layout, root, tau, evaluation, inner)


@float64
def rank_constrained(layout: Layout, theta: Floats, evaluation: Evaluation) -> Covariances:
    """Covariances at a singular G with its rank taken as known.

    At the boundary the Hessian in G can be indefinite: the likelihood would rise towards matrices that are no
    covariances. The Hessian in the root L (G = LL') is positive semi-definite there, and flat only along roots of one
    and the same G. Its pseudo-inverse, carried over to (G, sigma^2), is the covariance among matrices of that rank; for
    a regular G it equals the inverse Hessian in (G, sigma^2).
    """
    n_free = len(layout.free)
    root, tau = root_and_precision(layout, jnp.asarray(theta))
    # Pivoted: with a zero variance before others, a triangle of fixed order has no direction for some matrices.
    root, order = triangular(layout, root, pivot=True)
    jacobian, curvature = root_chain(layout, root, order, tau, jnp.asarray(evaluation.gradient))
    hessian = np.asarray(jacobian.T @ evaluation.hessian @ jacobian + curvature)
    diagonal = np.abs(np.diag(hessian))
    unit = 1 / np.sqrt(np.maximum(diagonal, 1e-12 * diagonal.max()))
    inverse = np.linalg.pinv(hessian * unit[:, None] * unit, rcond=FLAT, hermitian=True) * unit[:, None] * unit
    to_variance = jnp.concatenate([jnp.ones(n_free), -1 / tau**2])
    in_variances = to_variance[:, None] * jacobian
    return _assembled(layout, root, tau, evaluation, in_variances @ inverse @ in_variances.T)


def _assembled(layout: Layout, root: Array, tau: Array, evaluation: Evaluation, inner: Array) -> Covariances:
    """Estimates, joint and block covariance from V_theta (``inner``)."""
    slope = evaluation.beta_jacobian * jnp.concatenate([jnp.ones(len(layout.free)), -(tau**2)])
    cross = slope @ inner
    zero = jnp.zeros_like(cross)
    joint = jnp.block([[evaluation.beta_cov + cross @ slope.T, cross], [cross.T, inner]])
    block = jnp.block([[evaluation.beta_cov, zero], [zero.T, inner]])
    values = jnp.concatenate([evaluation.beta, free_entries(layout, root @ root.T), 1 / tau])
    return Covariances(values, joint, block)


def is_singular(layout: Layout, theta: Floats, mean_square: Floats) -> bool:
    """Whether G is at the boundary: a variance of zero, or a correlation of one.

    ``mean_square``, shape (q,), is the mean square of each random column, so that a variance is judged by what it
    contributes to the outcome, next to the residual variance of its equation.
    """
    if layout.n_random == 0:
        return False
    row, col = np.array(layout.free, dtype=int).T
    root = np.zeros((layout.n_random, layout.n_random))
    root[row, col] = theta[: len(layout.free)]
    matrix = root @ root.T
    variance = np.diag(matrix)
    residual = np.exp(2 * theta[len(layout.free) :])
    if np.any(variance * mean_square < SINGULAR_VARIANCE * residual[list(layout.owners)]):
        return True
    unit = 1 / np.sqrt(variance)
    return bool(np.linalg.eigvalsh(matrix * unit[:, None] * unit)[0] < SINGULAR_EIGENVALUE)


def null_models(system: System, moments: Moments, reml: bool) -> tuple[tuple[float, int], tuple[float, int]]:
    """(log likelihood, number of residual variances) of the system without random effects.

    First with one residual variance per outcome, then with one for all outcomes together: the "linear regression" that
    a stacked model is tested against in Stata. Closed form, ordinary least squares from the summed cross-products.
    """
    scale = dict(zip(moments.columns, moments.scale, strict=True))
    rss, rows, fixed, logdet = [], [], [], []
    for e, equation in enumerate(system.equations):
        total = moments.totals((*equation.predictors, equation.outcome))
        x_x, x_y = total[:-1, :-1], total[:-1, -1]
        rss.append((total[-1, -1] - x_y @ np.linalg.solve(x_x, x_y)) * scale[equation.outcome] ** 2)
        rows.append(moments.intake.used[e])
        fixed.append(len(equation.predictors))
        units = sum(np.log(scale.get(name, 1.0)) for name in equation.predictors)
        logdet.append(np.linalg.slogdet(x_x)[1] + 2 * units)

    def loglik(rss: float, rows: int, fixed: int, logdet: float) -> float:
        degrees = rows - fixed if reml else rows
        return float(-(degrees * (np.log(2 * np.pi * rss / degrees) + 1) + (logdet if reml else 0.0)) / 2)

    each = sum(loglik(*one) for one in zip(rss, rows, fixed, logdet, strict=True))
    pooled = loglik(sum(rss), sum(rows), sum(fixed), sum(logdet))
    return (each, len(rss)), (pooled, 1)
