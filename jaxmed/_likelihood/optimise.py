"""Maximise the likelihood: optax L-BFGS from a rough start, then Newton steps; a whole fit survives ``vmap``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import Design, Totals, packed_products
from jaxmed._likelihood import derivatives, likelihood, newton
from jaxmed._likelihood.derivatives import Evaluation
from jaxmed._likelihood.executor import Array, module_of, put, while_loop
from jaxmed._likelihood.layout import (
    Layout,
    free_entries,
    lower,
    precisions,
    root_and_precision,
    root_chain,
    triangular,
)
from jaxmed._likelihood.likelihood import Data
from jaxmed._likelihood.shards import Shards, evaluate_shards
from jaxmed._model import INTERCEPT, System
from jaxmed._support import Floats, Status, packed_index
from jaxmed._support.runtime import float64, jit_by_key

MEMORY = 10  # changes of the gradient that L-BFGS remembers
SEARCHED = 21  # points of a line search at the most
WARM_UP = 30  # L-BFGS iterations at the most
ENOUGH = 10.0  # log likelihood units: an L-BFGS iteration that gains less is the last
LOGGED = 131  # rows of the trace: warm-up, start and 100 Newton steps
LIFT = 0.05  # residual sds: the least pivot of the root of G at a start


class Solution(NamedTuple):
    """What every solve returns.

    Attributes
    ----------
    theta : Array, shape (n,)
    evaluation : Evaluation
        At ``theta``, in (free entries of G, tau).
    status : Array, int
        A :class:`jaxmed._support.errors.Status`.
    n_iter : Array, int
        L-BFGS and Newton iterations together.
    grad_norm : Array
        Largest entry of the gradient in units of its standard deviation, max_i |g_i| / sqrt(H_ii), in theta.
    decrement : Array
        Newton decrement g'H^-1g / 2: the log likelihood still to be gained, to second order.
    trace : Array, shape (LOGGED, 3)
        Stage (0 L-BFGS, 1 Newton), f and decrement (NaN in L-BFGS) by evaluation, as far as there is room; NaN rows
        beyond ``n_iter`` + 1.
    """

    theta: Array
    evaluation: Evaluation
    status: Array
    n_iter: Array
    grad_norm: Array
    decrement: Array
    trace: Array


def starting_values(layout: Layout, system: System, totals: Totals) -> Floats:
    """Rough theta from moments within and between clusters; no covariances. The optimum does not depend on it.

    Per equation the residual variance of least squares within clusters is shared out: 60% stays residual, and 30% is
    what each random slope adds to the outcome. What least squares over all rows leaves beyond it goes to the intercept.
    """
    theta = np.zeros(layout.n_theta)
    diagonal = {row: k for k, (row, col) in enumerate(layout.free) if row == col}
    for e, (equation, sums) in enumerate(zip(system.equations, totals.equations, strict=True)):
        total, within = sums.total, sums.within
        n, degrees = sums.rows, max(sums.rows - sums.clusters, 1)
        if not layout.random_of(e):  # nothing to share with; of an equation of level 2 there is nothing within
            within, degrees = total, n
        fixed = sums.index(equation.predictors)
        left = _residual(total, fixed) / n
        inner = _residual(within, [at for at in fixed if within[at, at] > 1e-10 * total[at, at]]) / degrees
        inner = min(max(inner, 1e-8 * left), left)
        theta[len(layout.free) + e] = np.log((0.6 if layout.random_of(e) else 1.0) * inner) / 2
        for k in layout.random_of(e):
            name = equation.predictors[layout.random[k] - layout.starts[e]]
            at = sums.names.index(name)
            if name == INTERCEPT:
                theta[diagonal[k]] = np.sqrt(max(left - inner, 0.3 * inner))
            else:
                theta[diagonal[k]] = np.sqrt(0.3 * inner * degrees / max(within[at, at], 1e-6 * total[at, at]))
    return theta


def starting_values_by_cluster(layout: Layout, design: Design, totals: Totals) -> Floats:
    """Theta from least squares in every cluster (Swamy 1970), for effects of very different size; no covariances.

    Where one slope varies ten thousand times as much as another, :func:`starting_values`, which shares out one
    variance, starts the others thousands of times too large. What the coefficients that do not vary explain is taken
    off by least squares over all rows; variances of coefficients over clusters, less what is sampling, are those of the
    effects. An equation of which fewer than two clusters have enough rows for that keeps its start.
    """
    theta = starting_values(layout, design.system, totals)
    diagonal = {row: k for k, (row, col) in enumerate(layout.free) if row == col}
    for e, (equation, sums) in enumerate(zip(design.system.equations, totals.equations, strict=True)):
        q = len(equation.random)
        names = (*equation.random, *(name for name in equation.predictors if name not in equation.random))
        total = sums.among((*names, equation.outcome))
        beta = np.linalg.lstsq(total[:-1, :-1], total[:-1, -1], rcond=1e-12)[0]
        change = np.zeros((q + 1, len(total) + 1))  # rows: random columns, and the outcome less what is fixed
        change[:q, 1 : q + 1] = np.eye(q)
        change[q, q + 1 :] = *-beta[q:], 1.0
        index = packed_index(len(total) + 1)
        parts = packed_products(design, e, (INTERCEPT, *names, equation.outcome))
        products = np.concatenate([part[index] for part in parts], axis=2).transpose(2, 0, 1)
        rows, own = products[:, 0, 0], change @ products @ change.T
        unit = 1 / np.sqrt(np.maximum(np.diagonal(own, axis1=1, axis2=2)[:, :q], np.finfo(float).tiny))
        gram = own[:, :q, :q] * unit[:, :, None] * unit[:, None]
        usable = (rows > q) & (np.linalg.eigvalsh(gram)[:, :1] > 1e-4).all(axis=1)
        if q == 0 or np.count_nonzero(usable) < 2:
            continue
        own, inverse = own[usable], np.linalg.inv(own[usable, :q, :q])
        slopes = (inverse @ own[:, :q, q:])[:, :, 0]
        left = own[:, q, q] - np.sum(slopes * own[:, :q, q], axis=1)
        residual = left.sum() / (rows[usable] - q).sum()
        if not residual > 0:
            continue
        between, sampling = slopes.var(axis=0, ddof=1), residual * np.diagonal(inverse, axis1=1, axis2=2).mean(axis=0)
        variances = np.maximum(between - sampling, 0.1 * np.minimum(between, residual))
        theta[len(layout.free) + e] = np.log(residual) / 2
        theta[[diagonal[k] for k in layout.random_of(e)]] = np.sqrt(variances)
    return theta


def _residual(total: Floats, fixed: list[int]) -> float:
    """Residual sum of squares of the last column given some others, from their cross-products."""
    x_y = total[fixed, -1]
    return float(total[-1, -1] - x_y @ np.linalg.lstsq(total[np.ix_(fixed, fixed)], x_y, rcond=1e-12)[0])


def solve(
    layout: Layout, data: Data, start: Array, max_iter: int | Array = 100, warm_up: int | Array = WARM_UP
) -> Solution:
    """Minimise the negative log likelihood from ``start``.

    Parameters
    ----------
    layout : Layout
    data : Data
    start : Array, shape (n,)
    max_iter : int
        Newton iterations at the most.
    warm_up : int
        L-BFGS iterations at the most; 0 where the start is good already.
    """
    xp = module_of(start, data.table)
    theta, n_warm, trace = lifted(layout, start), xp.asarray(np.int64(0)), xp.full((LOGGED, 3), np.nan)
    warm = _lbfgs if xp is not np else _lbfgs_in_numpy
    theta, n_warm, trace = warm(layout, data, theta, trace, warm_up)
    state = while_loop(
        lambda state: newton.going(state, max_iter),
        lambda state: newton.step(layout, data, state),
        newton.start(layout, theta, n_warm, trace),
    )
    return solution(layout, state)


def solve_in_steps(
    layout: Layout, shards: Shards, start: Array, max_iter: int, report: Callable[[int, float], None]
) -> Solution:
    """:func:`solve` without a warm-up over data in shards, the loop in Python. Not for ``vmap``.

    Every step ends in Python, where Ctrl-C is heard and ``report(step, decrement)`` is called.
    """
    state = _first(layout, start)
    while True:
        # Processes on different processors may differ in a last bit; they go where the first one goes.
        status, taken = shards.hosts.first((int(state.status), int(state.taken)))
        if status != newton.GOING or taken >= max_iter:
            break
        there, tau = shards.hosts.first(_candidate(layout, state))
        state = _accept_or_reject(layout, state, there, evaluate_shards(layout, there.root, tau, shards))
        report(int(state.taken), float(state.decrement))
    return _last(layout, state)


@float64
def prepare_steps(layout: Layout, shards: Shards, start: Floats) -> None:
    """Compile what :func:`solve_in_steps` runs, with one evaluation of a shard; for another thread."""
    import jax
    import jax.numpy as jnp

    some = shards.parts[: len(jax.local_devices())]  # one on each
    solve_in_steps(layout, Shards(some, shards.n_rows), jnp.asarray(start), 0, lambda *_: None)


@jit_by_key
def _first(layout: Layout, start: Array) -> newton.State:
    xp = module_of(start)
    return newton.start(layout, lifted(layout, start), xp.asarray(np.int64(0)), xp.full((LOGGED, 3), np.nan))


@jit_by_key
def _candidate(layout: Layout, state: newton.State) -> tuple[newton.Candidate, Array]:
    there = newton.candidate(layout, state)
    return there, precisions(layout, there.log_sds)


_accept_or_reject = jit_by_key(newton.accept_or_reject)


@jit_by_key
def _last(layout: Layout, state: newton.State) -> Solution:
    return solution(layout, state)


def solution(layout: Layout, state: newton.State, unfinished: int = Status.MAX_ITERATIONS) -> Solution:
    """The record of an iteration that has ended; ``unfinished`` is the status where the steps did not do."""
    xp = module_of(state.point.root)
    status = xp.where(state.status == newton.GOING, unfinished, state.status)
    root, _ = triangular(layout, state.point.root, pivot=False)
    theta = xp.concatenate([free_entries(layout, root), state.point.log_sds])
    grad_norm = xp.max(xp.abs(newton.scaled(state.point)[0]))
    n_iter = state.row - 1  # the first row is that of the start
    return Solution(theta, state.point.evaluation, status, n_iter, grad_norm, state.decrement, state.trace)


def lifted(layout: Layout, theta: Array) -> Array:
    """A start away from singular G: there a column of the root is zero, a saddle that no gradient leads away from."""
    xp, n_free = module_of(theta), len(layout.free)
    root, order = triangular(layout, lower(layout, theta[:n_free]), pivot=True)
    least = LIFT * xp.exp(theta[n_free:])[np.array(layout.owners, dtype=int)][order]
    at = xp.arange(layout.n_random)
    pivots = root[order, at]
    root = put(root, (order, at), xp.where(pivots < least, least, pivots))
    root, _ = triangular(layout, root, pivot=False)
    return xp.concatenate([free_entries(layout, root), theta[n_free:]])


def _objective(
    layout: Layout, data: Data, total: Array
) -> tuple[Callable[[Array], Array], Callable[[Array], tuple[Array, Array]]]:
    """F per row, and f per row with its gradient, of theta."""

    def objective(theta: Array) -> Array:
        root, tau = root_and_precision(layout, theta)
        return likelihood.value(layout, root, tau, data) / total

    def objective_and_gradient(theta: Array) -> tuple[Array, Array]:
        root, tau = root_and_precision(layout, theta)
        value, gradient = derivatives.gradient(layout, root, tau, data)
        order = module_of(theta).arange(layout.n_random)
        jacobian, _ = root_chain(layout, root, order, theta[len(layout.free) :], gradient)
        return value / total, gradient @ jacobian / total

    return objective, objective_and_gradient


def _lbfgs(layout: Layout, data: Data, start: Array, trace: Array, warm_up: int | Array) -> tuple[Array, Array, Array]:
    """L-BFGS until the log likelihood gains less than ENOUGH in an iteration; the last point, iterations and trace."""
    import jax.numpy as jnp
    import optax
    from jax import lax

    total = jnp.sum(data.n_rows)
    objective, objective_and_gradient = _objective(layout, data, total)
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=SEARCHED - 1)
    solver = optax.lbfgs(memory_size=MEMORY, linesearch=search)

    def going(state: tuple[Any, ...]) -> Array:
        _, _, _, gain, count, _ = state
        return (count < warm_up) & (gain * total > ENOUGH)

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


def _lbfgs_in_numpy(
    layout: Layout, data: Data, start: Floats, trace: Floats, warm_up: int
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """:func:`_lbfgs` without JAX: the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4) and backtracking."""
    total = np.sum(data.n_rows)
    objective, objective_and_gradient = _objective(layout, data, total)
    known: deque[tuple[Floats, Floats]] = deque(maxlen=MEMORY)  # changes of theta and of the gradient
    theta, last, gain, share, count, before = start, np.inf, np.inf, 1.0, 0, None
    while count < warm_up and gain * total > ENOUGH:
        value, gradient = objective_and_gradient(theta)
        trace[count] = 0.0, value * total, np.nan
        if before is not None:
            known.append((theta - before[0], gradient - before[1]))
        before = theta, gradient
        direction = -_preconditioned(gradient, known)
        slope = gradient @ direction
        share, there = min(1.5 * share, 1.0), np.nan
        for _ in range(SEARCHED):
            there = objective(theta + share * direction)
            if there <= value + 1e-4 * share * slope:
                break
            share *= 0.8
        gain = np.inf if count == 0 else last - value
        last, count = value, count + 1
        if not (np.isfinite(there) and np.isfinite(value)):
            break
        theta = theta + share * direction
    return theta, np.int64(count), trace  # type: ignore[return-value]


def _preconditioned(gradient: Floats, known: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The gradient times the inverse Hessian that the last changes of the gradient suggest."""
    vector, pairs = gradient, [(step, change, step @ change) for step, change in known if step @ change != 0]
    weights = []
    for step, change, along in reversed(pairs):
        weights.append(step @ vector / along)
        vector = vector - weights[-1] * change
    if pairs:
        _, change, along = pairs[-1]
        vector = vector * (along / (change @ change))
    else:
        vector = vector * min(1.0, 1.0 / max(float(np.linalg.norm(vector)), 1e-300))
    for (step, change, along), weight in zip(pairs, reversed(weights), strict=True):
        vector = vector + (weight - change @ vector / along) * step
    return vector
