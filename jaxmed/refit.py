"""Many fits of one model to many data sets: Newton steps in slots that take the next data set when they are done.

All fits start from the same point, the estimates that the data sets were made from. On a CPU the passes over clusters
run slot by slot, and not at all for a slot that is idle; the algebra of the steps runs over all slots at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxmed import derivatives, newton, optimise
from jaxmed.derivatives import Evaluation
from jaxmed.errors import Status
from jaxmed.likelihood import Data
from jaxmed.params import Layout, precisions

TARGET = 1e-12  # Newton decrement at which a refit stops: estimates are within 1.5e-6 standard errors of the optimum
LIMIT = 20  # Newton steps; who needs more is finished alone


class Refit(NamedTuple):
    """Outcome of a refit; every field with a leading axis over data sets."""

    theta: Array
    evaluation: Evaluation
    status: Array
    n_iter: Array
    grad_norm: Array
    decrement: Array


def refit(layout: Layout, slots: int, together: int, start: Array, data: Data) -> Refit:
    """Fit every data set of a stack.

    Parameters
    ----------
    layout : Layout
    slots : int
        Fits under way at a time.
    together : int
        Slots whose passes over clusters run at once: 1 on a CPU, all where thousands of threads wait for work.
    start : Array, shape (n,)
        Optimiser's parameters.
    data : Data
        ``table`` with a leading axis of Q data sets, ``n_rows`` of shape (Q, n_sets); ``n_blocks`` for all.

    Returns
    -------
    Refit
        ``status`` is ``newton.GOING`` where :data:`LIMIT` steps did not do.
    """
    count = data.table.shape[0]
    slots = min(slots, count)

    def fresh() -> newton.State:
        return newton.start(layout, optimise.lifted(layout, start), jnp.asarray(0), jnp.full((1, 3), jnp.nan))

    first = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots, *leaf.shape)), fresh())
    nothing = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), _record(layout, fresh()))

    def passes(slot: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        root, tau, at, active = slot

        def run() -> tuple[tuple[Array, Array], tuple[Array, ...]]:
            return derivatives.passes(layout, root, tau, Data(data.table[at], data.n_blocks, data.n_rows[at]))

        shapes = jax.eval_shape(run)
        return lax.cond(active, run, lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))

    def step(carried: tuple[newton.State, Array, Array, Refit]) -> tuple[newton.State, Array, Array, Refit]:
        state, at, following, done = carried
        active = at < count
        there = jax.vmap(lambda one: newton.candidate(layout, one))(state)
        tau = jax.vmap(lambda spread: precisions(layout, spread))(there.spread)
        n_rows = data.n_rows[jnp.minimum(at, count - 1)]
        sums = lax.map(passes, (there.root, tau, at, active), batch_size=together)
        evaluation = jax.vmap(lambda tau, rows, found: derivatives.assemble(layout, tau, rows, *found))(
            tau, n_rows, sums
        )
        state = jax.vmap(lambda *one: newton.judge(layout, *one, TARGET))(state, there, evaluation)
        ended = active & ((state.status != newton.GOING) | (state.taken >= LIMIT))
        record = jax.vmap(lambda one: _record(layout, one))(state)
        where = jnp.where(ended, at, count)  # count is out of bounds, and dropped
        done = jax.tree.map(lambda kept, new: kept.at[where].set(new, mode="drop"), done, record)
        at = jnp.where(ended, following + jnp.cumsum(ended) - 1, at)
        state = jax.tree.map(
            lambda new, old: jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old), first, state
        )
        return state, at, following + jnp.sum(ended), done

    carried = (first, jnp.arange(slots), jnp.asarray(slots), nothing)
    return lax.while_loop(lambda carried: jnp.any(carried[1] < count), step, carried)[3]


def _record(layout: Layout, state: newton.State) -> Refit:
    solution = optimise.solution(layout, state)
    return Refit(
        solution.theta,
        solution.evaluation,
        state.status,
        solution.n_iter,
        solution.grad_norm,
        solution.decrement,
    )
