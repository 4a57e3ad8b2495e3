"""Damped Newton steps on the exact Hessian, from any start to the convergence criterion.

Everything is plain array arithmetic: NumPy takes a step, and it survives ``jit`` and ``vmap`` inside a loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmed._likelihood import derivatives, linalg
from jaxmed._likelihood.derivatives import Evaluation
from jaxmed._likelihood.executor import Array, map_arrays, module_of, put, while_loop
from jaxmed._likelihood.layout import Layout, lower, precisions, root_chain, triangular
from jaxmed._likelihood.likelihood import Data
from jaxmed._support import Status

CERTIFICATE = 1e-10  # Newton decrement that counts as converged
TARGET = 1e-18  # Newton decrement at which iteration stops: nothing is left to gain
RIDGE = 1e-11  # relative; lets the flat directions of a singular G through the Cholesky factor
GOING = -1  # the status of an iteration under way


class Point(NamedTuple):
    """A point of the Newton iteration, with derivatives in local coordinates around it.

    The root R of G = RR' is kept as a pivoted lower-triangular matrix: ordered by ``order`` its rows are triangular,
    the largest remaining variance first. The directions in which G is nearly singular then lie in the last columns,
    where the likelihood is a plain quadratic; with a fixed order they can hide in the middle and bend the way.
    ``log_sds`` holds the residual coordinates.
    """

    root: Array
    order: Array
    log_sds: Array
    evaluation: Evaluation
    gradient: Array
    hessian: Array


class State(NamedTuple):
    """An iteration under way: the best point, the step to try next, and what to report.

    ``direction`` is the damped Newton step in local coordinates and ``predicted`` what it should gain; ``decrement`` is
    that of the undamped step, g'H^-1g / 2, infinite where the Hessian is not positive definite. ``row`` is the row of
    ``trace`` to be written next.
    """

    point: Point
    direction: Array
    predicted: Array
    ridge: Array
    decrement: Array
    status: Array
    taken: Array
    row: Array
    trace: Array


class Candidate(NamedTuple):
    """Where to evaluate next: a pivoted root of G with the order of its rows, and residual coordinates."""

    root: Array
    order: Array
    log_sds: Array


def start(layout: Layout, theta: Array, row: Array, trace: Array) -> State:
    """The state before the first evaluation.

    It is a point of infinite value with a step to nowhere, which is accepted, so that the evaluation is compiled once,
    in the step.
    """
    xp, n_free = module_of(theta), len(layout.free)
    infinite = xp.asarray(np.float64(np.inf))  # no weak type, so that all steps are one program
    nowhere = _nowhere(layout, lower(layout, theta[:n_free]), theta[n_free:])
    still = xp.zeros(layout.n_theta)
    return State(
        nowhere,
        still,
        xp.asarray(np.float64(0)),
        xp.asarray(np.float64(RIDGE)),
        infinite,
        xp.asarray(np.int64(GOING)),
        xp.asarray(np.int64(-1)),
        row,
        trace,
    )


def going(state: State, max_iter: int | Array) -> Array:
    """Whether to take another step."""
    return (state.status == GOING) & (state.taken < max_iter)


def step(layout: Layout, data: Data, state: State) -> State:
    """One damped step (Levenberg): the ridge rises where the Hessian is indefinite or a step fails, and falls again."""
    there = candidate(layout, state)
    return accept_or_reject(
        layout, state, there, derivatives.evaluate(layout, there.root, precisions(layout, there.log_sds), data)
    )


def candidate(layout: Layout, state: State) -> Candidate:
    """Where the step leads: free entries of a triangle added to the pivoted rows of the root, pivoted again."""
    n_free, point = len(layout.free), state.point
    xp = module_of(point.root)
    moved = put(xp.zeros_like(point.root), point.order, lower(layout, state.direction[:n_free]))
    root, order = triangular(layout, point.root + moved, pivot=True)
    return Candidate(root, order, point.log_sds + state.direction[n_free:])


def accept_or_reject(
    layout: Layout, state: State, there: Candidate, evaluation: Evaluation, target: float = TARGET
) -> State:
    """Accept the candidate or not, and prepare the next step; below a decrement of ``target`` there is none."""
    xp, point = module_of(evaluation.value, evaluation.gradient), state.point
    new = _point(layout, there, evaluation)
    f = point.evaluation.value
    gained = f - evaluation.value
    noise = 16 * xp.finfo(f.dtype).eps * evaluation.magnitude
    fresh = ~xp.isfinite(f)
    finite = xp.isfinite(evaluation.value) & xp.all(xp.isfinite(new.hessian))
    # Within rounding of f, and beyond the convergence criterion, the gradient decides: a step that does not shrink it
    # has nothing left to gain.
    smaller = xp.sum(scaled(new)[0] ** 2) <= xp.sum(scaled(point)[0] ** 2)
    predicted = state.predicted
    better = (gained >= 0.01 * predicted - noise) & ((predicted > noise) | smaller)
    accepted = finite & (fresh | better | ((state.decrement < CERTIFICATE) & smaller))
    # By how well the quadratic predicted the gain; in a curved valley a ridge that jumps up and down gets nowhere.
    ratio = gained / predicted
    easier = xp.where(ratio > 0.6, state.ridge / 4, state.ridge)
    easier = xp.where((ratio > 0.95) | (predicted <= noise), state.ridge / 30, easier)
    ridge = xp.where(accepted, easier, xp.where(state.ridge > RIDGE, 5 * state.ridge, 0.3))
    ridge = xp.where(ridge < 1e-7, RIDGE, ridge)
    point = map_arrays(lambda ours, old: xp.where(accepted, ours, old), new, point)

    gradient, hessian, unit = scaled(point)
    direction, ridge, decrement = _damped(hessian, gradient, ridge)
    predicted = -(gradient @ direction + direction @ hessian @ direction / 2)

    done = (decrement < CERTIFICATE) & ((decrement < target) | ~accepted)
    status = xp.where(done, Status.CONVERGED, state.status)
    status = xp.where(~done & ~accepted & (state.ridge >= 1e8), Status.STALLED, status)
    status = xp.where(fresh & ~finite, Status.NOT_FINITE, status)
    row = xp.stack([1.0, point.evaluation.value, decrement])
    trace = put(state.trace, state.row, row)
    return State(point, direction * unit, predicted, ridge, decrement, status, state.taken + 1, state.row + 1, trace)


def _damped(hessian: Array, gradient: Array, ridge: Array) -> tuple[Array, Array, Array]:
    """The damped Newton step, the ridge it took, and the decrement g'H^-1g / 2 of the undamped step.

    The undamped factor comes first: the decrement is the convergence criterion, whatever the damping of the step. If
    the matrix is definite with the ridge given that is the step, otherwise the ridge rises until it is.
    """
    xp, identity = module_of(hessian), module_of(hessian).eye(len(hessian))

    def failed(state: tuple[Array, Array, Array, Array]) -> Array:
        return ~state[0] & (state[1] < 1e8)

    def attempt(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        _, last, _, decrement = state
        first = last == 0
        at = xp.where(first, RIDGE, xp.where((last == RIDGE) & (ridge > RIDGE), ridge, xp.maximum(10 * last, 1e-2)))
        factor = linalg.cholesky(hessian + at * identity)
        step = -linalg.solve_cholesky(factor, gradient)
        definite = xp.all(xp.isfinite(factor))
        decrement = xp.where(first & definite, -(gradient @ step) / 2, decrement)
        return definite & (at >= ridge), at, step, decrement

    nothing = (xp.asarray(False), xp.zeros(()), xp.zeros_like(gradient), xp.full((), xp.inf))
    _, ridge, step, decrement = while_loop(failed, attempt, nothing)
    return step, ridge, decrement


def _point(layout: Layout, there: Candidate, evaluation: Evaluation) -> Point:
    """A candidate with its derivatives in local coordinates, by the chain rule."""
    jacobian, curvature = root_chain(layout, there.root, there.order, there.log_sds, evaluation.gradient)
    gradient = evaluation.gradient @ jacobian
    hessian = jacobian.T @ evaluation.hessian @ jacobian + curvature
    return Point(there.root, there.order, there.log_sds, evaluation, gradient, hessian)


def _nowhere(layout: Layout, root: Array, log_sds: Array) -> Point:
    """A point that anything finite improves on, from which the Newton step is zero."""
    xp, n, p = module_of(root), layout.n_theta, layout.n_fixed
    core = len(layout.free) + len(layout.pieces)
    flat, identity = xp.zeros(n), xp.eye(n)
    infinite = xp.asarray(np.float64(np.inf))
    evaluation = Evaluation(
        infinite,
        xp.zeros(core),
        xp.eye(core),
        xp.zeros(p),
        xp.zeros((p, p)),
        xp.zeros((p, core)),
        magnitude=infinite,
    )
    return Point(root, xp.arange(layout.n_random), log_sds, evaluation, flat, identity)


def scaled(point: Point) -> tuple[Array, Array, Array]:
    """Gradient and Hessian in coordinates of unit curvature, and the scale itself."""
    xp = module_of(point.hessian)
    diagonal = xp.abs(xp.diagonal(point.hessian))
    unit = 1 / xp.sqrt(xp.maximum(diagonal, 1e-8 * xp.max(diagonal)) + xp.finfo(diagonal.dtype).tiny)
    return point.gradient * unit, point.hessian * unit[:, None] * unit, unit
