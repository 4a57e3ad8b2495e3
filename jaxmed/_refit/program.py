"""Many fits of one model to many data sets, each made from a number, in one compiled program.

A data set is drawn, fitted and described within the program, so that nothing but its results leaves it. On a CPU the
data sets of a part follow one another, each until it is done; on a GPU they run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxmed._inference import covariance, covariances, effects
from jaxmed._likelihood import (
    BLOCK,
    GPU_BLOCK,
    Data,
    Layout,
    block_diagonal,
    derivatives,
    jacobian,
    module_of,
    newton,
    optimise,
    precisions,
)
from jaxmed._refit import sample_moments
from jaxmed._refit.sample_moments import Known, Population
from jaxmed._support import Floats, Status
from jaxmed._support.runtime import float64, jit_by_key

TARGET = 1e-12  # Newton decrement at which a refit stops: estimates are within 1.5e-6 standard errors of the optimum


class Program(NamedTuple):
    """What a program is compiled for; hashable.

    Attributes
    ----------
    layout : Layout
    effects : effects.EffectIndex or None
        Of a mediation model.
    source : {"drawn", "resampled", "left_out", "given"}
        Data sets are drawn from the model, clusters drawn with replacement, all clusters but one, or tables.
    plan : sample_moments.DrawPlan or None
        Of "drawn".
    together : int
        Data sets that run at once.
    clusters : int
        Clusters of a data set.
    limit : int
        Newton steps; a data set that needs more is fitted alone.
    matrices : bool
        Return whole covariances.
    """

    layout: Layout
    effects: effects.EffectIndex | None
    source: str
    plan: sample_moments.DrawPlan | None
    together: int
    clusters: int
    limit: int = 20
    matrices: bool = False


class Setting(NamedTuple):
    """The numbers that a program works with.

    Attributes
    ----------
    start : ndarray, shape (n,)
        Optimiser's parameters.
    matrix, offset : ndarray, shapes (p + n, p + n), (p + n,)
        From the working to the user's scale.
    weights, combination
        Of the effects, see :class:`jaxmed._inference.targets.Targets`.
    table : ndarray, shape (rows, J)
        Moments of the data; of "given", a table for each data set, (count, rows, J).
    counts : ndarray, shape (n_sets, J)
        Rows of each set of equations by cluster; of "given", (count, n_sets), their sums.
    key : ndarray, shape (2,)
        Of the seed.
    known, population
        Of "drawn".
    """

    start: Array
    matrix: Array
    offset: Array
    weights: tuple[Array, ...]
    combination: Array
    table: Array
    counts: Array
    key: Array
    known: Known | None = None
    population: Population | None = None


class Refit(NamedTuple):
    """Outcomes of refits, every field with a leading axis.

    Attributes
    ----------
    values, errors : Array, shape (p + n,)
        Parameters on the user's scale, and their joint standard errors; NaN of what the data do not tell.
    effects, effect_errors : Array
    theta : Array, shape (n,)
    status, n_iter, grad_norm, decrement
        As :class:`jaxmed._likelihood.optimise.Solution`; the status is ``newton.GOING`` where ``Program.limit`` steps
        did not do.
    value : Array
        The negative log likelihood on the working scale.
    joint, block : Array, shape (p + n, p + n)
        Covariances of ``values``; empty without ``Program.matrices``.
    """

    values: Array
    errors: Array
    effects: Array
    effect_errors: Array
    theta: Array
    status: Array
    n_iter: Array
    grad_norm: Array
    decrement: Array
    value: Array
    joint: Array
    block: Array


def block_size(clusters: int, most: int) -> int:
    """Clusters of a block, so that none of them is nearly empty."""
    blocks = -(-clusters // most)
    return 8 * -(-clusters // (8 * blocks))


@float64
def seed_key(seed: int) -> Floats:
    """The key of a seed, as plain numbers."""
    return np.asarray(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")))


@float64
@jit_by_key
def refit(program: Program, setting: Setting, numbers: Array, count: Array) -> Refit:
    """Fit the data sets with the first ``count`` of some numbers; what is returned for the others means nothing.

    Parameters
    ----------
    numbers : Array of uint32, shape (size,)
        Replicates; of "left_out" clusters, of "given" positions.
    """
    layout = program.layout

    def solved(number: Array) -> optimise.Solution:
        data = _data(program, setting, number)
        state = newton.start(layout, optimise.lifted(layout, setting.start), jnp.asarray(0), jnp.full((1, 3), jnp.nan))
        state = lax.while_loop(
            lambda state: newton.going(state, program.limit), lambda state: _step(layout, data, state), state
        )
        return optimise.solution(layout, state, newton.GOING)

    def one(which: tuple[Array, Array]) -> optimise.Solution:
        number, at = which
        shapes = jax.eval_shape(solved, number)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.cond(at < count, lambda: solved(number), lambda: nothing)

    with jax.threefry_partitionable(True):  # whatever the user's settings
        which = numbers, jnp.arange(len(numbers))
        several = lax.map(one, which, batch_size=program.together if program.together > 1 else None)
    return jax.vmap(lambda solution: _described(program, setting, solution))(several)


def refit_alone(program: Program, setting: Setting, number: Array, starts: Sequence[Floats]) -> Refit:
    """Fit one data set as a fit is made, by NumPy: from starts that may be far away, with as many steps as it takes."""
    data = _data_set(program, setting, number)
    with np.errstate(all="ignore"):
        solutions = []
        for start in starts:
            solutions.append(optimise.solve(program.layout, data, start))
            if solutions[-1].status == Status.CONVERGED:
                break
        # Of those that did not converge the first, unless a later one came further.
        best = solutions[-1]
        if best.status != Status.CONVERGED:
            best = min(solutions, key=lambda solution: np.nan_to_num(float(solution.evaluation.value), nan=np.inf))
        numbers: dict[str, Any] = {name: np.asarray(getattr(setting, name)) for name in ("matrix", "offset")}
        own = setting._replace(**numbers)
        return _described(program, own, best)


@float64
@jit_by_key
def _data_set(program: Program, setting: Setting, number: Array) -> Data:
    with jax.threefry_partitionable(True):
        return _data(program, setting, number)


def _step(layout: Layout, data: Data, state: newton.State) -> newton.State:
    there = newton.candidate(layout, state)
    evaluation = derivatives.evaluate(layout, there.root, precisions(layout, there.log_sds), data)
    return newton.accept_or_reject(layout, state, there, evaluation, TARGET)


def _data(program: Program, setting: Setting, number: Array) -> Data:
    """The data set of a number."""
    table, counts = setting.table, setting.counts
    if program.source == "given":
        table, rows = table[number], counts[number]
    elif program.source == "left_out":
        inside = jnp.arange(program.clusters) != number
        table, rows = table * inside, counts @ inside.astype(counts.dtype)
    else:
        key = jax.random.fold_in(jax.random.wrap_key_data(setting.key, impl="threefry2x32"), number)
        if program.plan is None or setting.known is None or setting.population is None:
            chosen = jax.random.randint(key, (program.clusters,), 0, program.clusters)
            table, rows = table[:, chosen], jnp.sum(counts[:, chosen], axis=1)
        else:
            table = sample_moments.draw(program.layout, program.plan, setting.known, setting.population, key)
            rows = jnp.sum(counts, axis=1)
    size = block_size(program.clusters, BLOCK if program.together == 1 else GPU_BLOCK)
    blocks = -(-program.clusters // size)
    table = jnp.pad(table, ((0, 0), (0, blocks * size - program.clusters)))
    return Data(table.reshape(len(table), blocks, size).swapaxes(0, 1), jnp.asarray(blocks), rows)


def _described(program: Program, setting: Setting, solution: optimise.Solution) -> Refit:
    """Parameters and effects with their standard errors, on the user's scale."""
    layout, matrix = program.layout, setting.matrix
    xp = module_of(solution.theta)
    regular = covariances(layout, solution.theta, solution.evaluation)
    singular = covariance.rank_constrained(layout, solution.theta, solution.evaluation)
    definite = xp.all(xp.isfinite(regular.joint))
    joint = xp.where(definite, regular.joint, singular.joint)
    errors = covariance.errors(layout, solution.theta, matrix, joint)
    block = _moved_block(matrix, xp.where(definite, regular.block, singular.block), layout.n_fixed)
    values = matrix @ regular.values + setting.offset
    nothing, empty = xp.zeros(0), xp.zeros((0, 0))
    found, found_errors = nothing, nothing
    plan = program.effects
    if plan is not None:

        def at(values: Array) -> Array:
            return effects.linear_combinations(plan, values, setting.weights, setting.combination)

        found = at(values)
        slope = jacobian(at, values)
        found_errors = covariance.errors(layout, solution.theta, slope @ matrix, joint)
    unknown = xp.isnan(errors)
    return Refit(
        values,
        errors,
        found,
        found_errors,
        solution.theta,
        solution.status,
        solution.n_iter,
        solution.grad_norm,
        solution.decrement,
        solution.evaluation.value,
        xp.where(unknown | unknown[:, None], xp.nan, matrix @ joint @ matrix.T) if program.matrices else empty,
        block if program.matrices else empty,
    )


def _moved_block(matrix: Array, block: Array, p: int) -> Array:
    """Block covariance on the user's scale; that of the p fixed effects stands where that of the variances is NaN."""
    fixed, rest = matrix[:p, :p], matrix[p:, p:]
    return block_diagonal(fixed @ block[:p, :p] @ fixed.T, rest @ block[p:, p:] @ rest.T)
