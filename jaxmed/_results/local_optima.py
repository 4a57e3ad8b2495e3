"""Whether the likelihood has one maximum: fits from random starts, and where they end."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxmed._inference import are_singular, mean_squares, problem_of
from jaxmed._likelihood import WARM_UP, Layout
from jaxmed._results.fit_effects import FitEffects, check_is_fit
from jaxmed._results.optimum import solve_from
from jaxmed._support import (
    STARTS,
    ConvergenceWarning,
    FitError,
    Floats,
    Status,
    check_count,
    renamed,
    stream,
    warn_caller,
)

APART = 1e-5  # log likelihood units between two optima at the least


@renamed(found="fit")
def optima(fit: FitEffects, starts: int = 50, *, seed: int) -> pd.DataFrame:
    """Fit again from random starts and list the optima that they end in.

    Starts have standard deviations of random effects and residuals between 1/20 and 20 of the columns', and any
    correlations. Several optima occur with very few clusters; estimates and standard errors are then those of one of
    them, and intervals that go over the whole likelihood or its distribution (profile, bootstrap) say more.

    Parameters
    ----------
    fit : Fit
    starts : int
        Random starts; the fit itself counts as one more.
    seed : int
        Same seed, same starts.

    Returns
    -------
    DataFrame
        A row an optimum, the best first: ``loglik``, ``starts`` that ended there, ``singular``, and every parameter by
        label. Starts that did not converge are in no row.

    Raises
    ------
    SpecError
        ``fit`` is no fit, or a count is none.
    FitError
        The fit did not converge.

    Warns
    -----
    ConvergenceWarning
        An optimum is better than that of the fit.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.optima(fit, 10, seed=1)["starts"].tolist()
    [11]
    """
    check_is_fit(fit, "optima")
    if not fit.converged:
        raise FitError(f"this fit ended in no optimum that others could be compared with: {fit.message}")
    starts, seed = check_count("starts", starts), check_count("seed", seed, 0)
    problem = problem_of(fit, fit.moments)
    layout, scale, data = problem.layout, problem.scale, problem.data()
    rng = stream(seed, STARTS)
    logliks, thetas, values = [fit.loglik], [fit.working.theta], [fit.values]
    for _ in range(starts):
        solution, estimates = solve_from(problem.engine, layout, data, random_start(layout, rng), 100, WARM_UP)
        if solution.status == Status.CONVERGED:
            logliks.append(scale.loglik - float(solution.evaluation.value))
            thetas.append(np.asarray(solution.theta))
            values.append(scale.matrix @ estimates.values + np.append(scale.offset, np.zeros(layout.n_theta)))
    order = np.argsort(logliks)[::-1]
    first = np.flatnonzero(np.diff(np.array(logliks)[order], prepend=np.inf) < -APART)
    best = order[first]
    table = pd.DataFrame(
        {
            "loglik": np.array(logliks)[best],
            "starts": np.diff(np.append(first, len(order))),
            "singular": are_singular(layout, np.array(thetas)[best], mean_squares(problem.system, problem.totals)),
        }
    ).join(pd.DataFrame(np.array(values)[best], columns=list(fit.labels)))
    gain = table["loglik"].iloc[0] - fit.loglik
    if gain > APART:
        warn_caller(
            f"an optimum is {gain:.3g} log likelihood units better than that of the fit: the likelihood has several "
            "and the model is too rich for the data; try fewer random effects or covariance='diagonal'",
            ConvergenceWarning,
        )
    return table


def random_start(layout: Layout, rng: np.random.Generator) -> Floats:
    """A start anywhere: sds from 1/20 to 20 working sds, any correlations."""
    start = rng.normal(size=layout.n_theta)
    start[: len(layout.free)] *= np.exp(rng.uniform(-3, 1.5))
    spread = start[len(layout.free) : len(layout.free) + layout.n_equations]
    spread[:] = rng.uniform(-3, 3, len(spread))
    return start
