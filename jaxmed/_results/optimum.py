"""From a design to the optimum of its likelihood and the covariances there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxmed._inference import Covariances, covariances
from jaxmed._likelihood import (
    ALONE,
    Array,
    Data,
    Layout,
    Problem,
    Shards,
    Solution,
    executed,
    map_arrays,
    optimise,
    together,
)
from jaxmed._support import Floats, Status, current_sizes, progress
from jaxmed._support.runtime import float64


def solve(problem: Problem, max_iter: int) -> tuple[Solution, Covariances]:
    """Optimise and infer. Many clusters start from the optimum of some thousand of them, evenly picked."""
    layout, hosts = problem.layout, problem.hosts
    start: Any = optimise.starting_values(layout, problem.system, problem.totals)
    if problem.engine == "numpy" or (
        problem.design.n_clusters < 4 * current_sizes().sample_clusters and hosts == ALONE
    ):
        return solve_at_once(problem, start, max_iter)
    return _solve_in_shards(problem, start, max_iter)


@float64
def _solve_in_shards(problem: Problem, start: Floats, max_iter: int) -> tuple[Solution, Covariances]:
    layout, hosts = problem.layout, problem.hosts
    shards = together(hosts, problem.shards)
    sampled: Any = hosts.first(together(hosts, lambda: _sampled(problem, shards, start, max_iter)))
    with progress(f"fitting {problem.totals.clusters} clusters") as say:

        def report(step: int, left: float) -> None:
            say(f"Newton step {step}, {left:.1e} left to gain")

        solution = optimise.solve_in_steps(layout, shards, sampled, max_iter, report)
        if hosts.first(int(solution.status)) != Status.CONVERGED:  # all processes must try again, or none
            solution = optimise.solve_in_steps(layout, shards, start, max_iter, report)
    return solution, covariances(layout, np.asarray(solution.theta), map_arrays(np.asarray, solution.evaluation))


def _sampled(problem: Problem, shards: Shards, start: Floats, max_iter: int) -> Floats:
    """The optimum of some clusters, evenly picked among those with rows; where it is not found, the start itself.

    Of several processes the first one's sample counts.
    """
    present = np.flatnonzero(problem.design.sizes > 0)
    size = current_sizes().sample_clusters
    part = problem.part(present[:: max(len(present) // size, 1)][:size])
    with ThreadPoolExecutor(1) as beside:  # compiling takes seconds, and the two sets of programs as long as each other
        prepared = beside.submit(optimise.prepare_steps, problem.layout, shards, start)
        theta = start
        if shards.hosts.index == 0 and len(present):
            sample, _ = solve_at_once(part, start, max_iter)
            theta = np.asarray(sample.theta) if sample.status == Status.CONVERGED else start
        prepared.result()
    return theta


def solve_at_once(problem: Problem, start: Floats, max_iter: int) -> tuple[Solution, Covariances]:
    """Optimise and infer in one compiled program; where that leads nowhere, again from least squares by cluster."""
    layout, data = problem.layout, problem.data()
    found = solve_from(problem.engine, layout, data, start, max_iter, optimise.WARM_UP)
    if found[0].status == Status.CONVERGED:
        return found
    start = optimise.starting_values_by_cluster(layout, problem.design, problem.totals)
    other = solve_from(problem.engine, layout, data, start, max_iter, 0)
    better = other[0].status == Status.CONVERGED or not found[0].evaluation.value <= other[0].evaluation.value
    return other if better else found


@executed
def solve_from(layout: Layout, data: Data, start: Array, max_iter: int, warm_up: int) -> tuple[Solution, Covariances]:
    """Optimise from a start and infer."""
    solution = optimise.solve(layout, data, start, max_iter, warm_up)
    return solution, covariances(layout, solution.theta, solution.evaluation)
