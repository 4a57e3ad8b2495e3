"""Refits by the thousand: what a program needs of a fit, and numbered data sets run through it on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import Design, Moments
from jaxmed._inference import Estimates, Targets, are_singular, covariances, mean_squares, problem_of
from jaxmed._likelihood import (
    Layout,
    Problem,
    data_for,
    log_sds_to_variances,
    map_arrays,
    newton,
    optimise,
    rows_by_cluster,
)
from jaxmed._support import Floats, Status, counted, symmetric
from jaxmed._support.runtime import float64, n_workers, pool

if TYPE_CHECKING:  # programs import JAX: by the first refitter, not by `import jaxmed`
    from jaxmed._refit import sample_moments
    from jaxmed._refit.program import Program, Refit, Setting

MOST = 256  # data sets of a batch
WORK = 1 << 18  # clusters of a batch
BY_NUMPY = 300  # refits without a cluster each, at the most: JAX compiles as long as these take
INDICES = np.uint32


@dataclass(frozen=True, eq=False)
class Refits:
    """Outcomes of numbered data sets, in their order.

    Attributes
    ----------
    numbers : ndarray of int, shape (k,)
    values, errors : ndarray, shape (k, p + n)
        Parameters and their joint standard errors.
    effects, effect_errors : ndarray, shape (k, effects)
    status, n_iter : ndarray of int, shape (k,)
    grad_norm : ndarray, shape (k,)
    singular : ndarray of bool, shape (k,)
    joint, block : ndarray, shape (k, p + n, p + n)
        Covariances of the parameters, where the program returns them.
    """

    numbers: NDArray[np.int64]
    values: Floats
    errors: Floats
    effects: Floats
    effect_errors: Floats
    status: NDArray[np.int64]
    n_iter: NDArray[np.int64]
    grad_norm: Floats
    singular: NDArray[np.bool_]
    joint: Floats
    block: Floats


@dataclass(frozen=True, eq=False)
class Refitter:
    """A model and data, ready to be fitted to numbered data sets made from them.

    Attributes
    ----------
    program : Program
    setting : Setting
        Of "given" data sets without tables, which :attr:`make` makes.
    fallback : ndarray, shape (n,)
        A rough start, for data sets that the estimates do not lead to the optimum of.
    mean_square : ndarray, shape (q,)
        Of the random columns, by which a variance is judged to be zero.
    devices : tuple
    size : int
        Data sets of a batch.
    make : callable or None
        Number -> table and rows of each set of equations.
    """

    program: Program
    setting: Setting
    fallback: Floats
    mean_square: Floats
    devices: tuple[Any, ...]
    size: int
    make: Callable[[int], tuple[Floats, Floats]] | None = None

    def batches(self, numbers: Iterable[int]) -> Iterator[list[int]]:
        """Numbers in the batches that they always belong to: number i is in batch i // size."""
        waiting: list[int] = []
        for number in numbers:
            if waiting and number // self.size != waiting[0] // self.size:
                yield waiting
                waiting = []
            waiting.append(number)
        if waiting:
            yield waiting

    def run(self, numbers: Iterable[int]) -> Iterator[Refits]:
        """Fit numbered data sets, batch by batch, in order; batches run side by side."""
        workers = n_workers()
        settings = _placed(self.setting, self.devices)
        waiting: deque[Any] = deque()
        threads = pool(workers)
        try:
            for batch in self.batches(numbers):
                device = batch[0] // self.size % len(self.devices)
                waiting.append(threads.submit(self._batch, batch, settings[device], self.devices[device]))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()

    def _batch(self, numbers: Sequence[int], setting: Setting, device: Any) -> Refits:
        """One batch. A number has the same place in it, and so the same bits, whatever else is asked for."""
        first = numbers[0] // self.size * self.size
        given = np.array([number - first for number in numbers])
        if self.make is None:
            every = np.arange(first, first + self.size, dtype=INDICES)
            count = given.max() + 1
        else:
            made = [self.make(number) for number in numbers]
            tables = np.zeros((self.size, *made[0][0].shape))
            counts = np.zeros((self.size, len(made[0][1])))
            for at, (table, rows) in zip(given, made, strict=True):
                tables[at], counts[at] = table, rows
            made_of: dict[str, Any] = {"table": tables, "counts": counts}
            setting = setting._replace(**made_of)
            every, count = np.arange(self.size, dtype=INDICES), given.max() + 1
        from jaxmed._refit.program import refit

        found = refit(self.program, setting, every, np.int64(count))
        found = map_arrays(lambda leaf: np.array(leaf)[given], found)
        for at in np.flatnonzero(found.status == newton.GOING):
            alone = self._alone(setting, every[given[at]])
            for kept, new in zip(found, alone, strict=True):
                kept[at] = new
        singular = are_singular(self.program.layout, found.theta, self.mean_square)
        return Refits(
            np.array(numbers, dtype=np.int64),
            found.values,
            found.errors,
            found.effects,
            found.effect_errors,
            found.status.astype(np.int64),
            found.n_iter.astype(np.int64),
            found.grad_norm,
            singular,
            found.joint,
            found.block,
        )

    def _alone(self, setting: Setting, number: Any) -> Refit:
        """A data set by itself, from the estimates, and if that leads nowhere from a rough start."""
        from jaxmed._refit.program import refit_alone

        return refit_alone(self.program, setting, number, (np.asarray(self.setting.start), self.fallback))


def leave_one_out(base: Fitted) -> tuple[Floats, NDArray[np.bool_]]:
    """Parameters of exact refits without each cluster in turn, on the working scale, and which of them converged.

    Shapes (J, p + n) and (J,).
    """
    problem = base.problem
    present = np.flatnonzero(problem.design.sizes > 0)
    if problem.engine == "numpy" and len(present) <= BY_NUMPY:
        return _left_out(problem, present, base.fit.working.theta)
    refitter = make_refitter(replace(base, targets=None), "left_out")
    size = len(base.fit.working.values)
    working: dict[str, Any] = {"matrix": np.eye(size), "offset": np.zeros(size)}
    refitter = replace(refitter, setting=refitter.setting._replace(**working))
    parts = []
    with counted("refits without each cluster", refitter.program.clusters) as advance:
        for part in refitter.run(range(refitter.program.clusters)):
            parts.append(part)
            advance(len(part.numbers))
    values = np.concatenate([part.values for part in parts])
    return values, np.concatenate([part.status for part in parts]) == Status.CONVERGED


def _left_out(problem: Problem, present: NDArray[np.int64], start: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """:func:`leave_one_out` by NumPy, from the estimates and, where that leads nowhere, from a rough start."""
    layout, table = problem.layout, problem.design.table[:, present]
    counts = rows_by_cluster(layout, problem.design)[:, present]
    fallback = optimise.starting_values(layout, problem.system, problem.totals)
    values, converged = [], []
    with counted("refits without each cluster", len(present)) as advance, np.errstate(all="ignore"):
        for k in range(len(present)):
            rows = np.delete(counts, k, axis=1).sum(axis=1)
            data = data_for("numpy", np.delete(table, k, axis=1), tuple(rows))
            solution = optimise.solve(layout, data, start, warm_up=0)
            if solution.status != Status.CONVERGED:
                solution = optimise.solve(layout, data, fallback)
            values.append(covariances(layout, solution.theta, solution.evaluation).values)
            converged.append(bool(solution.status == Status.CONVERGED))
            advance(1)
    return np.array(values), np.array(converged)


@float64
def _placed(setting: Setting, devices: Sequence[Any]) -> list[Setting]:
    import jax

    return [jax.device_put(setting, device) for device in devices]


def batch_size(clusters: int) -> int:
    """Data sets of a batch: it follows from the data, so that it is the same on every machine."""
    return int(min(MOST, max(1, WORK // max(clusters, 1))))


@dataclass(frozen=True, eq=False)
class Fitted:
    """What refits take from a fit.

    Attributes
    ----------
    fit : Estimates
    moments : Moments
    problem : Problem
    targets : Targets or None
        Effects to compute, of a mediation model.
    """

    fit: Estimates
    moments: Moments
    problem: Problem
    targets: Targets | None


def fitted(fit: Estimates, moments: Moments, targets: Targets | None) -> Fitted:
    """Prepare a fit for refits."""
    return Fitted(fit, moments, problem_of(fit, moments), targets)


def make_refitter(
    base: Fitted,
    source: str,
    seed: int = 0,
    make: Callable[[int], tuple[Floats, Floats]] | None = None,
    size: int | None = None,
) -> Refitter:
    """A refitter for one kind of data sets, see :class:`jaxmed._refit.program.Program`.

    Raises
    ------
    RowsNeededError
        "drawn": cross-products do not suffice.
    """
    import jax

    from jaxmed._refit import sample_moments
    from jaxmed._refit.program import Program, Setting, seed_key

    design, layout = base.problem.design, base.problem.layout
    if source != "drawn":
        design = design.part(np.flatnonzero(design.sizes > 0)) if source != "given" else design
    scale, targets = base.problem.scale, base.targets
    plan, known, population = None, None, None
    if source == "drawn":
        plan, known = sample_moments.make_draw_plan(design, base.moments)
        population = _population(base)
    devices = tuple(jax.local_devices())
    size = batch_size(design.n_clusters) if size is None else size
    together = 1 if devices[0].platform == "cpu" else size
    program = Program(layout, None if targets is None else targets.plan, source, plan, together, design.n_clusters)
    numbers: dict[str, Any] = {  # NumPy until a compiled program takes them in
        "start": base.fit.working.theta,
        "matrix": scale.matrix,
        "offset": np.concatenate([scale.offset, np.zeros(layout.n_theta)]),
        "weights": () if targets is None else targets.weights,
        "combination": np.zeros((0, 0)) if targets is None else targets.combination,
        "table": np.zeros((0, 0)) if source in ("given", "drawn") else design.table,
        "counts": rows_by_cluster(layout, design),
        "key": seed_key(seed),
        "known": known,
        "population": population,
    }
    return Refitter(
        program,
        Setting(**numbers),
        optimise.starting_values(layout, design.system, base.problem.totals),
        mean_squares(design.system, base.problem.totals),
        devices,
        size,
        make,
    )


def with_size(refitter: Refitter, size: int) -> Refitter:
    """The same refitter with other batches."""
    program = refitter.program
    return replace(refitter, size=size, program=program._replace(together=size if program.together > 1 else 1))


def _population(base: Fitted) -> sample_moments.Population:
    """The fitted model on the working scale."""
    from jaxmed._refit import sample_moments

    layout = base.problem.layout
    n_free = len(layout.free)
    working = base.fit.working
    root = np.zeros((layout.n_random, layout.n_random))
    if n_free:
        row, col = np.array(layout.free, dtype=int).T
        root[row, col] = working.theta[:n_free]
    variances = _variances(layout, working.theta[n_free:])
    n = layout.n_equations
    covariance = np.diag(variances[:n]) + symmetric(n, layout.pairs, variances[n:])
    numbers: Any = (working.values[: layout.n_fixed], root, np.linalg.cholesky(covariance))
    return sample_moments.Population(*numbers)


@float64
def _variances(layout: Layout, log_sds: Floats) -> Floats:
    return log_sds_to_variances(layout, log_sds)


def given_rows(base: Fitted, design: Design) -> tuple[Floats, Floats]:
    """What a "given" data set is: its table, and the rows of each set of equations."""
    return design.table, np.array(Problem(design, base.problem.layout).counts, dtype=float)
