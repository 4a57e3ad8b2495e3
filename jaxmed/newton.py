"""Damped Newton steps on the exact Hessian, from any start to a certificate.

Everything is plain array arithmetic: a step survives ``jit`` and ``vmap`` inside ``lax.while_loop``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxmed import derivatives, linalg
from jaxmed.derivatives import Evaluation
from jaxmed.errors import Status
from jaxmed.likelihood import Data
from jaxmed.params import Layout, lower, precisions, root_chain, triangular

CERTIFICATE = 1e-10  # Newton decrement that counts as converged
TARGET = 1e-18  # Newton decrement at which iteration stops: nothing is left to gain
RIDGE = 1e-11  # relative; lets the flat directions of a singular G through the Cholesky factor
GOING = -1  # the status of an iteration under way


class Point(NamedTuple):
    """A point of the Newton iteration, with derivatives in local coordinates around it.

    The root R of G = RR' is kept as a pivoted lower-triangular matrix: ordered by ``order`` its rows are triangular,
    the largest remaining variance first. The directions in which G is nearly singular then lie in the last columns,
    where the likelihood is a plain quadratic; with a fixed order they can hide in the middle and bend the way.
    ``spread`` holds the residual coordinates.
    """

    root: Array
    order: Array
    spread: Array
    evaluation: Evaluation
    gradient: Array
    hessian: Array


class State(NamedTuple):
    """An iteration under way: the best point, the damping, and what to report.

    ``decrement`` is g'H^-1g / 2 at the point before the last step; ``row`` the row of ``trace`` to be written next.
    """

    point: Point
    ridge: Array
    decrement: Array
    status: Array
    taken: Array
    row: Array
    trace: Array


def start(layout: Layout, theta: Array, row: Array, trace: Array) -> State:
    """The state before the first step.

    It is a point of infinite value, from which the first step goes nowhere and is accepted, so that the evaluation is
    compiled once, in the step.
    """
    n_free = len(layout.free)
    nowhere = _nowhere(layout, lower(layout, theta[:n_free]), theta[n_free:])
    return State(nowhere, jnp.asarray(RIDGE), jnp.asarray(jnp.inf), jnp.asarray(GOING), jnp.asarray(-1), row, trace)


def going(state: State, max_iter: int | Array) -> Array:
    """Whether to take another step."""
    return (state.status == GOING) & (state.taken < max_iter)


def step(layout: Layout, data: Data, state: State) -> State:
    """One damped step (Levenberg): the ridge rises where the Hessian is indefinite or a step fails, and falls again."""
    point = state.point
    gradient, hessian, unit = scaled(point)
    # The certificate: what an undamped step would gain, whatever the damping of this one.
    plain = linalg.cholesky(hessian + RIDGE * jnp.eye(len(hessian)))
    definite = jnp.all(jnp.isfinite(plain))
    decrement = jnp.where(definite, gradient @ linalg.solve_cholesky(plain, gradient) / 2, jnp.inf)
    root, ridge = _factor(hessian, state.ridge)
    direction = -linalg.solve_cholesky(root, gradient)
    candidate = _evaluate(layout, data, *_moved(layout, point.root, point.order, point.spread, direction * unit))
    predicted = -(gradient @ direction + direction @ hessian @ direction / 2)
    f = point.evaluation.value
    gained = f - candidate.evaluation.value
    noise = 16 * jnp.finfo(f.dtype).eps * candidate.evaluation.magnitude

    fresh = ~jnp.isfinite(f)
    finite = jnp.isfinite(candidate.evaluation.value) & jnp.all(jnp.isfinite(candidate.hessian))
    # Within rounding of f the gradient decides: a step that does not shrink it has nothing left to gain.
    smaller = jnp.sum(scaled(candidate)[0] ** 2) <= jnp.sum(gradient**2)
    accepted = finite & (fresh | ((gained >= 0.01 * predicted - noise) & ((predicted > noise) | smaller)))

    done = definite & ~fresh & (decrement < CERTIFICATE) & ((decrement < TARGET) | ~accepted)
    status = jnp.where(done, Status.CONVERGED, state.status)
    status = jnp.where(~done & ~accepted & (ridge >= 1e8), Status.STALLED, status)
    status = jnp.where(fresh & ~finite, Status.NOT_FINITE, status)

    easier = jnp.where((gained > 0.7 * predicted) | (predicted <= noise), ridge / 30, ridge)
    ridge = jnp.where(accepted, easier, jnp.maximum(10 * ridge, 1e-3))
    ridge = jnp.where(ridge < 1e-7, RIDGE, ridge)
    point = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), candidate, point)
    row = jnp.where(fresh, len(state.trace), state.row)  # no row for the step from nowhere
    trace = state.trace.at[row].set(jnp.stack([1.0, f, decrement]), mode="drop")
    return State(point, ridge, decrement, status, state.taken + 1, state.row + ~fresh, trace)


def _factor(hessian: Array, ridge: Array) -> tuple[Array, Array]:
    """Cholesky factor of the Hessian plus the least ridge, from the one given upwards, that makes it definite."""
    identity = jnp.eye(len(hessian))

    def failed(state: tuple[Array, Array]) -> Array:
        return ~jnp.all(jnp.isfinite(state[0])) & (state[1] < 1e8)

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        higher = jnp.maximum(10 * state[1], 1e-4)
        return linalg.cholesky(hessian + higher * identity), higher

    return lax.while_loop(failed, again, (linalg.cholesky(hessian + ridge * identity), ridge))


def _evaluate(layout: Layout, data: Data, root: Array, spread: Array) -> Point:
    """Evaluate at a root of G, pivot it, and carry the derivatives over by the chain rule."""
    root, order = triangular(layout, root, pivot=True)
    evaluation = derivatives.evaluate(layout, root, precisions(layout, spread), data)
    jacobian, curvature = root_chain(layout, root, order, spread, evaluation.gradient)
    gradient = evaluation.gradient @ jacobian
    hessian = jacobian.T @ evaluation.hessian @ jacobian + curvature
    return Point(root, order, spread, evaluation, gradient, hessian)


def _moved(layout: Layout, root: Array, order: Array, spread: Array, local: Array) -> tuple[Array, Array]:
    """Root and spread at local coordinates: free entries of a triangle added to the pivoted rows, and shifts."""
    n_free = len(layout.free)
    step = lower(layout, local[:n_free])
    return root + jnp.zeros_like(root).at[order].set(step), spread + local[n_free:]


def _nowhere(layout: Layout, root: Array, spread: Array) -> Point:
    """A point that anything finite improves on, from which the Newton step is zero."""
    n, p = layout.n_theta, layout.n_fixed
    core = len(layout.free) + len(layout.pieces)
    flat, identity = jnp.zeros(n), jnp.eye(n)
    infinite = jnp.asarray(jnp.inf)
    evaluation = Evaluation(
        infinite,
        jnp.zeros(core),
        jnp.eye(core),
        jnp.zeros(p),
        jnp.zeros((p, p)),
        jnp.zeros((p, core)),
        magnitude=infinite,
    )
    return Point(root, jnp.arange(layout.n_random), spread, evaluation, flat, identity)


def scaled(point: Point) -> tuple[Array, Array, Array]:
    """Gradient and Hessian in coordinates of unit curvature, and the scale itself."""
    diagonal = jnp.abs(jnp.diagonal(point.hessian))
    unit = 1 / jnp.sqrt(jnp.maximum(diagonal, 1e-8 * jnp.max(diagonal)) + jnp.finfo(diagonal.dtype).tiny)
    return point.gradient * unit, point.hessian * unit[:, None] * unit, unit
