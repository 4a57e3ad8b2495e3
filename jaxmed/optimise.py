"""Maximise the likelihood: optax L-BFGS from a rough start, then Newton on the exact Hessian to a certificate.

Everything is plain array arithmetic inside ``lax.while_loop``, so that a whole fit survives ``jit`` and ``vmap``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxmed import likelihood, linalg
from jaxmed.errors import Status
from jaxmed.likelihood import Data, Evaluation
from jaxmed.moments import Floats, Moments
from jaxmed.params import Layout, free_entries, lower, root_and_precision, root_chain
from jaxmed.spec import System

WARM_UP = 30  # L-BFGS iterations at the most
CERTIFICATE = 1e-10  # Newton decrement that counts as converged
TARGET = 1e-18  # Newton decrement at which iteration stops: nothing is left to gain
LIFT = 0.05  # residual sds: the least pivot of the root of G at a start
RIDGE = 1e-11  # relative; lets the flat directions of a singular G through the Cholesky factor


class Solution(NamedTuple):
    """What every solve returns.

    Attributes
    ----------
    theta : Array, shape (n,)
    evaluation : Evaluation
        At ``theta``, in (free entries of G, tau).
    status : Array, int
        A :class:`jaxmed.errors.Status`.
    n_iter : Array, int
        L-BFGS and Newton iterations together.
    grad_norm : Array
        Largest entry of the gradient in units of its standard deviation, max_i |g_i| / sqrt(H_ii), in theta.
    decrement : Array
        Newton decrement g'H^-1g / 2: the log likelihood still to be gained, to second order.
    trace : Array, shape (iterations, 3)
        Stage (0 L-BFGS, 1 Newton), f and decrement (NaN in L-BFGS) by iteration; NaN rows beyond ``n_iter``.
    """

    theta: Array
    evaluation: Evaluation
    status: Array
    n_iter: Array
    grad_norm: Array
    decrement: Array
    trace: Array


class _Point(NamedTuple):
    """A point of the Newton iteration, with derivatives in local coordinates around it.

    The root R of G = RR' is kept as a pivoted lower-triangular matrix: ordered by ``order`` its rows are triangular,
    the largest remaining variance first. The directions in which G is nearly singular then lie in the last columns,
    where the likelihood is a plain quadratic; with a fixed order they can hide in the middle and bend the way.
    """

    root: Array
    order: Array
    log_sd: Array
    evaluation: Evaluation
    gradient: Array
    hessian: Array


def starting_values(system: System, layout: Layout, moments: Moments) -> Floats:
    """Rough theta from the summed moments: the residual variance of pooled least squares, shared out.

    Per equation 60% stays residual and 30% goes to each random effect (as the variance it adds to the outcome); no
    covariances. The optimum does not depend on it.
    """
    theta = np.zeros(layout.n_theta)
    diagonal = {row: k for k, (row, col) in enumerate(layout.free) if row == col}
    for e, equation in enumerate(system.equations):
        total = moments.cross_products((*equation.predictors, equation.outcome)).sum(axis=-1) / moments.intake.used[e]
        x_y = total[:-1, -1]
        left = total[-1, -1] - x_y @ np.linalg.solve(total[:-1, :-1], x_y)
        theta[len(layout.free) + e] = np.log(0.6 * left) / 2
        for k in layout.random_of(e):
            at = layout.random[k] - layout.starts[e]
            theta[diagonal[k]] = np.sqrt(0.3 * left / total[at, at])
    return theta


def solve(layout: Layout, data: Data, start: Array, max_iter: int = 100, *, warm_up: bool = True) -> Solution:
    """Minimise the negative log likelihood from ``start``.

    Parameters
    ----------
    layout : Layout
    data : Data
    start : Array, shape (n,)
    max_iter : int
        Newton iterations at the most (static).
    warm_up : bool
        Begin with L-BFGS (static); leave out when the start is good already, as in a bootstrap.
    """
    start = _lifted(layout, start)
    trace = jnp.full(((WARM_UP if warm_up else 0) + max_iter, 3), jnp.nan)
    theta, n_warm = start, jnp.asarray(0)
    if warm_up:
        theta, n_warm, trace = _lbfgs(layout, data, start, trace)
    return _newton(layout, data, theta, n_warm, trace, max_iter)


def _lifted(layout: Layout, theta: Array) -> Array:
    """A start away from singular G: there a column of the root is zero, a saddle that no gradient leads away from."""
    n_free = len(layout.free)
    root, _ = root_and_precision(layout, theta)
    root, order = _triangular(layout, root, pivot=True)
    equation = np.searchsorted(np.cumsum(layout.sizes), layout.random, side="right")
    least = LIFT * jnp.exp(theta[n_free:])[equation][order]
    at = jnp.arange(layout.n_random)
    pivots = root[order, at]
    root = root.at[order, at].set(jnp.where(pivots < least, least, pivots))
    root, _ = _triangular(layout, root, pivot=False)
    return jnp.concatenate([free_entries(layout, root), theta[n_free:]])


def _lbfgs(layout: Layout, data: Data, start: Array, trace: Array) -> tuple[Array, Array, Array]:
    """L-BFGS until the log likelihood gains less than 0.1 in an iteration; returns the best point seen."""
    total = jnp.sum(data.n_rows)

    def objective(theta: Array) -> Array:
        return likelihood.value(layout, *root_and_precision(layout, theta), data) / total

    def objective_and_gradient(theta: Array) -> tuple[Array, Array]:
        root, tau = root_and_precision(layout, theta)
        value, gradient = likelihood.gradient(layout, root, tau, data)
        jacobian, _ = root_chain(layout, root, jnp.arange(layout.n_random), tau, gradient)
        return value / total, gradient @ jacobian / total

    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20)
    solver = optax.lbfgs(memory_size=10, linesearch=search)

    def going(state: tuple[Any, ...]) -> Array:
        _, _, _, gain, count, _ = state
        return (count < WARM_UP) & (gain * total > 0.1)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        theta, inner, last, _, count, trace = state
        value, gradient = objective_and_gradient(theta)
        trace = trace.at[count].set(jnp.stack([0.0, value * total, jnp.nan]))
        updates, inner = solver.update(gradient, inner, theta, value=value, grad=gradient, value_fn=objective)
        following = optax.apply_updates(theta, updates)
        gain = jnp.where(count == 0, jnp.inf, last - value)
        usable = jnp.all(jnp.isfinite(following)) & jnp.isfinite(value)
        return (
            jnp.where(usable, following, theta),
            inner,
            value,
            jnp.where(usable, gain, -jnp.inf),
            count + 1,
            trace,
        )

    state = (start, solver.init(start), jnp.inf, jnp.inf, jnp.asarray(0), trace)
    theta, _, _, _, count, trace = lax.while_loop(going, step, state)
    return theta, count, trace


def _at(layout: Layout, data: Data, root: Array, log_sd: Array) -> _Point:
    """Evaluate at a root of G, pivot it, and carry the derivatives over by the chain rule."""
    root, order = _triangular(layout, root, pivot=True)
    tau = jnp.exp(-2 * log_sd)
    evaluation = likelihood.evaluate(layout, root, tau, data)
    jacobian, curvature = root_chain(layout, root, order, tau, evaluation.gradient)
    gradient = evaluation.gradient @ jacobian
    hessian = jacobian.T @ evaluation.hessian @ jacobian + curvature
    return _Point(root, order, log_sd, evaluation, gradient, hessian)


def _moved(layout: Layout, root: Array, order: Array, log_sd: Array, local: Array) -> tuple[Array, Array]:
    """Root and log sd at local coordinates: free entries of a triangle added to the pivoted rows, and shifts."""
    n_free = len(layout.free)
    step = lower(layout, local[:n_free])
    return root + jnp.zeros_like(root).at[order].set(step), log_sd + local[n_free:]


def _triangular(layout: Layout, root: Array, *, pivot: bool) -> tuple[Array, Array]:
    """Rotate a root of G (G = RR' stays) so that its rows are triangular, block by block of G.

    Modified Gram-Schmidt on the rows. With ``pivot`` the row with the largest remainder comes first; returns the root
    and the order of its rows.
    """
    result, order = jnp.zeros_like(root), jnp.arange(layout.n_random)
    for block in layout.blocks:
        at = np.array(block)
        rest = root[np.ix_(at, at)]
        columns, chosen = [], []
        left = jnp.ones(len(block), dtype=bool)
        for k in range(len(block)):
            size = jnp.where(left, jnp.sum(rest**2, axis=1), -1.0)
            row = jnp.argmax(size) if pivot else jnp.asarray(k)
            norm = jnp.sqrt(jnp.maximum(size[row], 0.0))
            direction = rest[row] / jnp.where(norm > 0, norm, 1.0)
            column = jnp.where(left, rest @ direction, 0.0)
            rest = rest - column[:, None] * direction
            left = left & (jnp.arange(len(block)) != row)
            rest = jnp.where(left[:, None], rest, 0.0)
            columns.append(column)
            chosen.append(row)
        result = result.at[np.ix_(at, at)].set(jnp.stack(columns, axis=1))
        order = order.at[at].set(at[0] + jnp.stack(chosen))
    return result, order


def _nowhere(layout: Layout, root: Array, log_sd: Array) -> _Point:
    """A point that anything finite improves on, from which the Newton step is zero."""
    n, p = layout.n_theta, layout.n_fixed
    flat, identity = jnp.zeros(n), jnp.eye(n)
    evaluation = Evaluation(jnp.asarray(jnp.inf), flat, identity, jnp.zeros(p), jnp.zeros((p, p)), jnp.zeros((p, n)))
    return _Point(root, jnp.arange(layout.n_random), log_sd, evaluation, flat, identity)


def _scaled(point: _Point) -> tuple[Array, Array, Array]:
    """Gradient and Hessian in coordinates of unit curvature, and the scale itself."""
    diagonal = jnp.abs(jnp.diagonal(point.hessian))
    unit = 1 / jnp.sqrt(jnp.maximum(diagonal, 1e-8 * jnp.max(diagonal)) + jnp.finfo(diagonal.dtype).tiny)
    return point.gradient * unit, point.hessian * unit[:, None] * unit, unit


def _newton(layout: Layout, data: Data, start: Array, n_warm: Array, trace: Array, max_iter: int) -> Solution:
    """Damped Newton (Levenberg): the ridge rises where the Hessian is indefinite or a step fails, and falls again."""
    n = layout.n_theta
    identity = jnp.eye(n)

    def factor(hessian: Array, ridge: Array) -> tuple[Array, Array]:
        def failed(state: tuple[Array, Array]) -> Array:
            matrix, ridge = state
            return ~jnp.all(jnp.isfinite(matrix)) & (ridge < 1e8)

        def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
            _, ridge = state
            ridge = jnp.maximum(10 * ridge, 1e-4)
            return linalg.cholesky(hessian + ridge * identity), ridge

        return lax.while_loop(failed, again, (linalg.cholesky(hessian + ridge * identity), ridge))

    def going(state: tuple[Any, ...]) -> Array:
        _, _, _, status, count, _ = state
        return (status < 0) & (count < max_iter)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        point, ridge, _, status, count, trace = state
        gradient, hessian, unit = _scaled(point)
        root, used = factor(hessian, ridge)
        direction = -linalg.solve_cholesky(root, gradient)
        definite = used <= RIDGE
        decrement = jnp.where(definite, -gradient @ direction / 2, jnp.inf)
        predicted = -(gradient @ direction + direction @ hessian @ direction / 2)
        moved = _moved(layout, point.root, point.order, point.log_sd, direction * unit)
        candidate = _at(layout, data, *moved)
        f, following = point.evaluation.value, candidate.evaluation.value
        noise = 64 * jnp.finfo(f.dtype).eps * (1 + jnp.abs(f))
        gained = f - following
        finite = jnp.isfinite(following) & jnp.all(jnp.isfinite(candidate.hessian))
        accepted = finite & (gained >= 0.01 * predicted - noise)
        # Within rounding of f the gradient decides: a step that does not shrink it has nothing left to gain.
        smaller = jnp.sum(_scaled(candidate)[0] ** 2) <= jnp.sum(gradient**2)
        accepted = accepted & ((predicted > noise) | smaller)
        fresh = ~jnp.isfinite(f)
        accepted = accepted | (fresh & finite)
        certified = definite & (decrement < CERTIFICATE) & ~fresh
        done = certified & ((decrement < TARGET) | ~accepted)
        stuck = ~accepted & (used >= 1e8)
        status = jnp.where(done, Status.CONVERGED, jnp.where(stuck, Status.STALLED, status))
        status = jnp.where(fresh & ~finite, Status.NOT_FINITE, status)
        good = gained > 0.7 * predicted
        ridge = jnp.where(
            accepted,
            jnp.where(good | (predicted <= noise), used / 30, used),
            jnp.maximum(10 * used, 1e-3),
        )
        ridge = jnp.where(ridge < 1e-7, RIDGE, ridge)
        point = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), candidate, point)
        logged = jnp.where(fresh, trace.shape[0], n_warm + count)  # the first pass only evaluates; out of range, no row
        trace = trace.at[logged].set(jnp.stack([1.0, f, decrement]), mode="drop")
        return point, ridge, decrement, status, count + 1, trace

    # The start is "accepted" by a first pass through the loop with a step of zero from a point of infinite value, so
    # that the evaluation is compiled once.
    root, tau = root_and_precision(layout, start)
    nowhere = _nowhere(layout, root, -jnp.log(tau) / 2)
    state = (nowhere, jnp.asarray(RIDGE), jnp.asarray(jnp.inf), jnp.asarray(-1), jnp.asarray(-1), trace)
    point, _, decrement, status, count, trace = lax.while_loop(going, step, state)
    status = jnp.where(status < 0, Status.MAX_ITERATIONS, status)
    count = jnp.maximum(count, 0)
    grad_norm = jnp.max(jnp.abs(_scaled(point)[0]))
    root, _ = _triangular(layout, point.root, pivot=False)
    theta = jnp.concatenate([free_entries(layout, root), point.log_sd])
    return Solution(theta, point.evaluation, status, n_warm + count, grad_norm, decrement, trace)
