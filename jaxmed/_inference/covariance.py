"""From the exact Hessian at the optimum to covariances, from moments to the tests' null models, and singularity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmed._likelihood import (
    Array,
    Evaluation,
    Layout,
    block_diagonal,
    free_entries,
    in_log_sds,
    linalg,
    log_sds_to_variances,
    lower,
    module_of,
    precision_chain,
    put,
    root_chain,
    triangular,
)
from jaxmed._support import Floats

FLAT = 1e-8  # ridge on the Hessian in the root, in natural units: an error of 1e4 of them along a flat direction
BEYOND = 100.0  # natural units: a standard error of a refit that says nothing
CURVED = 1e-6  # least curvature in units of :func:`_natural`: a standard error of a thousand of them says nothing
RISING = 1e-3  # most negative curvature of a maximum, same units: -6e-7 in 500 fits that converged
STILL = 1e-3  # natural units of G: a flat direction in the root that moves less is that of a variance of zero
STEP = 1e-4  # natural units, for central differences of Cov(beta)
CHANGED = 1e-4  # of log|Cov(beta)|, in a natural unit: of nothing the differences make 1e-10


class Covariances(NamedTuple):
    """Estimates and their covariances on the working scale, for (beta, free entries of G, residual (co)variances).

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
    not positive definite everything that involves V is NaN; see :func:`without_inverse`.
    """
    xp = module_of(theta)
    n_free = len(layout.free)
    root, variances = lower(layout, theta[:n_free]), log_sds_to_variances(layout, theta[n_free:])
    hessian, slope = _curvature(layout, variances, evaluation)
    unit = 1 / xp.sqrt(xp.abs(xp.diagonal(hessian)))
    inner = linalg.inverse(hessian * unit[:, None] * unit) * unit[:, None] * unit
    known = xp.diagonal(inner) * CURVED < _natural(layout, root, variances) ** 2
    return _assembled(layout, root, variances, evaluation, xp.where(xp.all(known), inner, xp.nan), slope)


def _natural(layout: Layout, root: Array, variances: Array) -> Array:
    """Units of (G, residual (co)variances) that no rounding makes small, shape (n,).

    (G_ii + sigma_e^2)^1/2 (G_jj + sigma_f^2)^1/2 and sigma_e sigma_f, of working columns, which are of size one.
    """
    xp = module_of(root, variances)
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T
    e, f = np.array(layout.pairs, dtype=int).reshape(-1, 2).T
    residual = xp.sqrt(variances[: layout.n_equations])
    sds = _random_sds(layout, root, variances)
    return xp.concatenate([sds[row] * sds[col], residual**2, residual[e] * residual[f]])


def _random_sds(layout: Layout, root: Array, variances: Array) -> Array:
    """(G_ii + sigma^2)^1/2 of the random effects, with the residual variances of their equations, shape (q,)."""
    xp = module_of(root, variances)
    return xp.sqrt(xp.sum(root**2, axis=1) + variances[np.array(layout.owners, dtype=int)])


def _curvature(layout: Layout, variances: Array, evaluation: Evaluation) -> tuple[Array, Array]:
    """Hessian in (G, residual (co)variances), and the Jacobian of (G, tau) in them."""
    slope, bend = _in_variances(layout, variances, evaluation)
    return slope.T @ evaluation.hessian @ slope + bend, slope


def _in_variances(layout: Layout, variances: Array, evaluation: Evaluation) -> tuple[Array, Array]:
    """Jacobian of (G, tau) in (G, residual (co)variances), and what its bend adds to the Hessian."""
    n_free = len(layout.free)
    xp = module_of(variances)
    jacobian, bend = precision_chain(layout, variances, evaluation.gradient[n_free:])
    return block_diagonal(xp.eye(n_free), jacobian), block_diagonal(xp.zeros((n_free, n_free)), bend)


def rank_constrained(layout: Layout, theta: Array, evaluation: Evaluation) -> Covariances:
    """Covariances at a singular G with its rank taken as known.

    At the boundary the Hessian in G can be indefinite: the likelihood would rise towards matrices that are no
    covariances. The Hessian in the root L (G = LL') is positive semi-definite there, and flat in columns of the
    pivoted root that are zero, which do not move G to first order. Its inverse, with a ridge that keeps flat directions
    finite (and large, see :func:`errors`), is carried over to (G, sigma^2): the covariance among matrices of that rank.
    For a regular G it equals the inverse Hessian in (G, sigma^2).
    """
    xp = module_of(theta)
    root, hessian, moves, natural = _in_root(layout, theta, evaluation)
    hessian = hessian + xp.diag(FLAT / natural**2)
    unit = 1 / xp.sqrt(xp.abs(xp.diagonal(hessian)))
    inverse = linalg.inverse(hessian * unit[:, None] * unit) * unit[:, None] * unit
    variances = log_sds_to_variances(layout, theta[len(layout.free) :])
    slope, _ = _in_variances(layout, variances, evaluation)
    return _assembled(layout, root, variances, evaluation, moves @ inverse @ moves.T, slope)


def errors(layout: Layout, theta: Array, jacobian: Array, covariance: Array) -> Array:
    """Standard errors of functions from their derivatives in all estimates, on the working scale, shape (functions,).

    NaN beyond ``BEYOND`` natural units, as of what moves along a flat direction of :func:`rank_constrained`.
    """
    xp = module_of(theta, covariance)
    root, variances = lower(layout, theta[: len(layout.free)]), log_sds_to_variances(layout, theta[len(layout.free) :])
    fixed = xp.sqrt(variances[np.repeat(np.arange(layout.n_equations), layout.sizes)])
    fixed = put(fixed, np.array(layout.random, dtype=int), _random_sds(layout, root, variances))
    unit = xp.concatenate([fixed, _natural(layout, root, variances)])
    variance = xp.sum((jacobian @ covariance) * jacobian, axis=1)
    known = (variance >= 0) & (variance <= BEYOND**2 * xp.sum((jacobian * unit) ** 2, axis=1))
    return xp.sqrt(xp.where(known, variance, xp.nan))


def _in_root(layout: Layout, theta: Array, evaluation: Evaluation) -> tuple[Array, Array, Array, Array]:
    """The root, the Hessian in it and the residual coordinates, what these move in (G, sigma^2), and their units."""
    xp = module_of(theta)
    n_free = len(layout.free)
    log_sds = theta[n_free:]
    # Pivoted: with a zero variance before others, a triangle of fixed order has no direction for some matrices.
    root, order = triangular(layout, lower(layout, theta[:n_free]), pivot=True)
    jacobian, curvature = root_chain(layout, root, order, log_sds, evaluation.gradient)
    hessian = jacobian.T @ evaluation.hessian @ jacobian + curvature
    row = np.array(layout.free, dtype=int).reshape(-1, 2)[:, 0]
    sds = _random_sds(layout, root, log_sds_to_variances(layout, log_sds))[order[row]]
    return (
        root,
        hessian,
        block_diagonal(jacobian[:n_free, :n_free], in_log_sds(layout, log_sds)),
        xp.concatenate([sds, xp.ones_like(log_sds)]),
    )


def without_inverse(
    layout: Layout,
    theta: Floats,
    evaluation: Evaluation,
    found: Covariances,
    singular: bool,
    beta_cov_at: Callable[[Floats], Floats],
) -> tuple[Covariances, Floats, Floats]:
    """Covariances where the Hessian in (G, sigma^2) has no inverse; flat directions (p + n, k) and changes (r, p, p).

    At a singular G the Hessian in its root counts, as in :func:`rank_constrained`. The likelihood may be flat in some
    directions, as of balanced data with the cluster means of m among the predictors of y: what a random intercept of y
    shares with that of m is not identified beside the effect of the means. What no flat direction moves is known as
    well as ever, from the inverse of the Hessian in the others. Where the point is no maximum ``found`` stands, with
    its NaN.

    ``beta_cov_at`` gives C = (X'V^-1X)^-1 at other values of (G, sigma^2), working scale. Where fixed effects take up
    all that clusters differ in, the restricted likelihood does not depend on a variance between them, but |C| does:
    how C changes along such directions is returned beside them.
    """
    hessian, moves, unit, natural = _directions(layout, singular, theta, evaluation)
    scaled = hessian * unit[:, None] * unit
    beta_cov = np.asarray(evaluation.beta_cov)
    p, n = len(beta_cov), layout.n_theta
    nothing = np.zeros((p + n, 0)), np.zeros((0, p, p))
    if not np.all(np.isfinite(scaled)):
        return found, *nothing
    curvature, vectors = np.linalg.eigh(scaled)
    if np.any(curvature < -RISING):
        return found, *nothing
    steep = curvature > CURVED
    directions = moves @ (unit[:, None] * vectors)
    inner = directions[:, steep] / np.sqrt(curvature[steep])
    joint, known = inner @ inner.T, block_diagonal(beta_cov, np.zeros((n, n)))
    block = known + block_diagonal(np.zeros((p, p)), joint[p:, p:])
    flat = directions[:, ~steep]
    moved = np.max(np.abs(flat[p:]) / natural[:, None], axis=0, initial=0.0) > STILL
    growing = _growing(layout, theta, evaluation, (unit[:, None] * vectors)[:, ~steep][:, ~moved]) if singular else []
    flat = np.hstack([flat[:, moved], *growing])
    values, changes = np.asarray(found.values)[p:], []
    for along in flat[p:].T * STEP:
        slope = (beta_cov_at(values + along) - beta_cov_at(values - along)) / (2 * STEP)
        if abs(np.trace(np.linalg.solve(beta_cov, slope))) > CHANGED:  # d log|C|
            changes.append(slope)
    return Covariances(found.values, joint + known, block), flat, np.array(changes).reshape(-1, p, p)


def _growing(layout: Layout, theta: Array, evaluation: Evaluation, steps: Array) -> list[Floats]:
    """Flat directions of a variance of zero, which moves by dR dR' for a step dR in the root, (p + n, 1) each.

    The data hold such a variance at zero if the likelihood falls as it grows, and the Hessian in the root shows that.
    Where it shows nothing the likelihood may be flat in the variance itself, as where fixed effects take up all that
    clusters differ in.
    """
    n_free = len(layout.free)
    variances = log_sds_to_variances(layout, theta[n_free:])
    hessian, slope = _curvature(layout, variances, evaluation)
    natural = _natural(layout, lower(layout, theta[:n_free]), variances)
    _, order = triangular(layout, lower(layout, theta[:n_free]), pivot=True)
    found = []
    for step in steps.T:
        root = put(np.zeros((layout.n_random, layout.n_random)), order, lower(layout, step[:n_free]))
        along = np.append(free_entries(layout, root @ root.T), np.zeros(layout.n_residual))
        size = np.max(np.abs(along) / natural)
        if size > 0 and along @ hessian @ along / size**2 < CURVED:
            found.append(np.append(evaluation.beta_jacobian @ slope @ along, along)[:, None] / size)
    return found


def _directions(
    layout: Layout, singular: bool, theta: Array, evaluation: Evaluation
) -> tuple[Array, Array, Array, Array]:
    """Hessian in (G, residual (co)variances), or in the root of G; what these move in all estimates; units of both."""
    xp = module_of(theta)
    variances = log_sds_to_variances(layout, theta[len(layout.free) :])
    hessian, slope = _curvature(layout, variances, evaluation)
    natural = _natural(layout, lower(layout, theta[: len(layout.free)]), variances)
    inner, unit = xp.eye(layout.n_theta), natural
    if singular:
        _, hessian, inner, unit = _in_root(layout, theta, evaluation)
    return hessian, xp.vstack([evaluation.beta_jacobian @ slope @ inner, inner]), unit, natural


def _assembled(
    layout: Layout, root: Array, variances: Array, evaluation: Evaluation, inner: Array, in_core: Array
) -> Covariances:
    """Estimates, joint and block covariance from V_theta (``inner``) and the Jacobian of (G, tau) in theta."""
    xp = module_of(root, inner)
    slope = evaluation.beta_jacobian @ in_core
    cross = slope @ inner
    zero = xp.zeros_like(cross)
    joint = linalg.quarters(evaluation.beta_cov + cross @ slope.T, cross, cross.T, inner)
    block = linalg.quarters(evaluation.beta_cov, zero, zero.T, inner)
    values = xp.concatenate([evaluation.beta, free_entries(layout, root @ root.T), variances])
    return Covariances(values, joint, block)
