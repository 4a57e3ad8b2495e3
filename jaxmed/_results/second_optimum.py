"""Effects between clusters that rest on a covariance of random intercepts, and the second optimum this may make."""

from __future__ import annotations

import numpy as np

from jaxmed._inference import Covariances, is_singular, mean_squares
from jaxmed._likelihood import Layout, Problem, Solution, theta_of
from jaxmed._model import DataFacts, Spec
from jaxmed._results.optimum import solve_from
from jaxmed._support import Floats, Status, current_sizes, symmetric

STRONG = 0.95  # correlation of random intercepts
NEAR = 2.0  # log likelihood units between two optima that both deserve attention
APART = 1e-5  # log likelihood units between two optima at the least


def check_intercepts(
    spec: Spec,
    facts: DataFacts,
    problem: Problem,
    solution: Solution,
    covariances: Covariances,
    max_iter: int,
) -> tuple[Solution, Covariances, tuple[str, ...]]:
    """Whether effects between clusters rest on a covariance of random intercepts that the data hardly identify.

    The mean of a mediator holds its random intercept, so that a path between clusters and a covariance of the two
    intercepts explain the same differences. There may be a second optimum, with the covariance the other way round; the
    better of the two is returned, with what to say of it.
    """
    pairs = spec.free_intercepts(facts)
    if not pairs:
        return solution, covariances, ()
    layout = problem.layout
    labels = list(problem.system.random_labels)
    places = [(labels.index(mediator), labels.index(outcome)) for mediator, outcome in pairs]
    reasons = []
    if problem.engine == "numpy" or problem.design.n_clusters < 4 * current_sizes().sample_clusters:
        data = problem.data()
        best, second = (solution, covariances), None
        for at in dict.fromkeys(outcome for _, outcome in places):
            start = theta_of(layout, _turned(layout, np.asarray(best[1].values), at))
            other = solve_from(problem.engine, layout, data, start, max_iter, 0)
            ahead = float(best[0].evaluation.value - other[0].evaluation.value)
            if other[0].status == Status.CONVERGED and APART < abs(ahead) < NEAR:
                best, second = (other, best) if ahead > 0 else (best, other)
        if second is not None:
            below = float(second[0].evaluation.value - best[0].evaluation.value)
            reasons.append(f"a second optimum lies {below:.2g} log likelihood units lower")
        solution, covariances = best
    if is_singular(layout, np.asarray(solution.theta), mean_squares(problem.system, problem.totals)):
        reasons.append("their covariance is singular")
    values = np.asarray(covariances.values)[layout.n_fixed :]
    g = symmetric(layout.n_random, layout.free, values[: len(layout.free)])
    for (mediator, outcome), (one, other_one) in zip(pairs, places, strict=True):
        scale = np.sqrt(g[one, one] * g[other_one, other_one])
        correlation = g[one, other_one] / scale if scale > 0 else 0.0
        if abs(correlation) > STRONG:
            reasons.append(f"{mediator!r} and {outcome!r} correlate {correlation:.3f}")
    if not reasons:
        return solution, covariances, ()
    effects = spec.resting_on_intercepts(facts)
    these = "do not read this effect" if len(effects) == 1 else "do not read these effects"
    which = " and ".join(f"{mediator!r}, {outcome!r}" for mediator, outcome in pairs)
    caution = (
        f"{', '.join(effects)} rest{'s' if len(effects) == 1 else ''} on the covariance of the random intercepts "
        f"{which}, which is weakly identified ({'; '.join(reasons)}): {these}, fit with intercepts='independent'"
    )
    return solution, covariances, (caution,)


def _turned(layout: Layout, values: Floats, k: int) -> Floats:
    """Free entries of G and residual (co)variances where one random effect has the other sign."""
    found = values[layout.n_fixed :].copy()
    for at, (row, col) in enumerate(layout.free):
        if (row == k) != (col == k):
            found[at] = -found[at]
    return found
