"""Likelihood-ratio (profile) intervals of parameters and effects: constrained refits along the likelihood.

For g(beta, G, Sigma), any parameter or effect on the user's scale, with the estimate ghat

    F(beta, theta) = f(theta) + (beta - beta_gls(theta))' S_xx(theta) (beta - beta_gls(theta)) / 2,
    F(c) = min F subject to g = c,      zeta(c) = sign(c - ghat) sqrt(2 (F(c) - Fhat)),

and the limits of an interval are where zeta = -+ z. f is the negative log likelihood profiled over beta and S_xx =
X'V^-1X (docs/method.md, Likelihood). For ML F is the negative log likelihood itself. For REML f is the restricted one,

    F = (v'S v + sum_j log|V_j| + log|S_xx| + (N - p) log 2 pi) / 2,      v = (-beta, 1):

the minimum of F is the REML estimate, its inverse Hessian there the joint covariance, and for variance parameters F(c)
is the profile of the restricted likelihood.

Since dF(c)/dc = lambda, the multiplier of the constraint, limits come from Newton's method on zeta, each refit starting
at the nearest one before (:mod:`jaxmed._inference.constrained_fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from jaxmed._data import LARGEST, Moments
from jaxmed._inference.constrained_fit import Point, Profiled, Solved, effect_derivatives, look, moved, solve
from jaxmed._inference.estimates import Estimates, problem_of
from jaxmed._inference.limits import critical_value
from jaxmed._inference.targets import Quantities, quantities
from jaxmed._likelihood import Layout, full_evaluation
from jaxmed._support import (
    ConvergenceWarning,
    FitError,
    Floats,
    SpecError,
    check_list,
    is_number,
    progress,
    warn_caller,
)

REFITS = 40  # of a limit
APPROACHES = 12  # of a value that a refit does not reach at once
CLOSE = 1e-4  # of zeta; one more step of Newton's method follows, without a refit
BETTER = 1e-5  # log likelihood by which a refit may pass the fit
NEAR_ZERO = 0.02  # sd, relative to the estimate, from which zeta is extrapolated to a variance of zero


class _Path:
    """Refits along one quantity, from the estimate outwards; followed in u: g, or the root of a variance."""

    def __init__(self, problem: Profiled) -> None:
        self.problem = problem
        self.middle = self.to_u(problem.estimate)
        self.solved = [problem.best]
        _, local = look(problem, problem.best.point, np.zeros(problem.layout.n_fixed + problem.layout.n_theta), 0.0)
        # At a variance of zero g has no slope in the root of G: refits start beside it.
        self.stuck = local.grip < 1e-3

    def to_u(self, g: float) -> float:
        return float(np.sqrt(max(g, 0.0))) if self.problem.is_variance else g

    def nearest(self, u: float) -> Solved:
        return min(self.solved, key=lambda known: abs(self.to_u(known.at) - u))

    def refit(self, u: float) -> Solved | None:
        """The refit at u, started at the nearest one; None if it fails."""
        near = self.nearest(u)
        start = near.point
        if near is self.problem.best and self.stuck:
            start = _beside(self.problem.layout, start)
        found = solve(self.problem, u**2 if self.problem.is_variance else u, start)
        if found is not None and found.value < self.problem.best.value - BETTER:
            found = None  # the fit was not the best there is: nothing to measure from
        if found is not None:
            self.solved.append(found)
        return found

    def approach(self, u: float) -> Solved | None:
        """The refit at u, in shorter steps where it fails at once."""
        aim = u
        for _ in range(APPROACHES):
            found = self.refit(aim)
            if found is not None and aim == u:
                return found
            aim = u if found is not None else (aim + self.to_u(self.nearest(aim).at)) / 2
        return None

    def zeta(self, found: Solved) -> float:
        """Signed root of twice the loss of log likelihood."""
        loss = max(found.value - self.problem.best.value, 0.0)
        return float(np.sign(found.at - self.problem.estimate) * np.sqrt(2 * loss))

    def limit(self, target: float) -> float:
        """Where zeta is ``target``; NaN if that is not found, 0 for a variance whose zeta ends before."""
        problem, middle, side = self.problem, self.middle, float(np.sign(target))
        u = problem.estimate + target * problem.unit
        if problem.is_variance and side > 0:
            u = self.to_u(u)
        elif problem.is_variance:
            if problem.estimate < 1e-6 * problem.unit:
                return 0.0
            u = max(middle + target * problem.unit / (2 * middle), middle / 2)
        # Between u where zeta falls short of the target and u where it passes it; refits go ``reach`` further at most.
        near, far, reach = middle, side * np.inf, abs(u - middle)
        shortest = 1e-4 * reach
        for _ in range(REFITS):
            found = self.refit(u)
            if found is None:
                reach = abs(u - near) / 2
                if reach < shortest:
                    return np.nan
                u = near + side * reach
                continue
            zeta = self.zeta(found)
            slope = found.slope * (2 * u if problem.is_variance else 1.0) / zeta if zeta != 0 else 0.0
            ahead = u + (target - zeta) / slope if slope > 0 else u + side * reach
            if abs(zeta - target) < CLOSE:
                return ahead**2 if problem.is_variance else ahead
            if side * (zeta - target) > 0:
                far = u
            else:
                near, reach = u, 2 * reach
            if problem.is_variance and ahead <= 0 and np.isinf(far):
                if u < NEAR_ZERO * middle:
                    return 0.0
                ahead = u / 4
            u = near + side * min(side * (ahead - near), reach)
            if not side * near < side * u < side * far:
                u = (near + far) / 2 if np.isfinite(far) else near + side * reach
        return np.nan


def _beside(layout: Layout, point: Point) -> Point:
    """A point near one where G is zero in some direction, from which that variance can grow."""
    within = np.zeros((layout.n_random, layout.n_random))
    for block in layout.blocks:
        within[np.ix_(block, block)] = layout.allowed(block)
    noise = np.random.default_rng(0).standard_normal(within.shape) * within
    return point._replace(root=point.root + 0.1 * float(np.exp(point.log_sds[: layout.n_equations].min())) * noise)


# Tables --------------------------------------------------------------------------------------------------------------


def profile_intervals(
    fit: Estimates,
    moments: Moments,
    labels: Sequence[str],
    level: float,
    at: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Likelihood-ratio intervals of parameters and effects.

    Parameters
    ----------
    fit : Estimates
    theta : ndarray
        The optimiser's parameters at the fit.
    moments : Moments
        Its data.
    labels : list of str
        Parameters, as in ``found.labels``, or effects.
    level : float
    at : mapping, optional
        Values of moderators.

    Returns
    -------
    DataFrame
        Columns ``estimate, se, z, p, ci_lower, ci_upper``. z is the signed root of the likelihood-ratio statistic of
        the value zero, NaN for variances; the lower limit of a variance is 0 where zero is not rejected.

    Raises
    ------
    SpecError
        A label that the fit does not have.
    FitError
        The moments are not all the data of the fit.

    Warns
    -----
    ConvergenceWarning
        A limit, or z, could not be found and is NaN.
    """
    critical = critical_value(level)
    known = quantities(fit, at)
    problems = _problems(fit, moments, labels, known)
    rows = []
    with progress("profile intervals") as say:
        for k, (label, problem) in enumerate(zip(labels, problems, strict=True)):
            at_label = known.labels.index(label)
            estimate, error = known.values[at_label], known.errors[at_label]
            if problem is None:
                rows.append((estimate, error, np.nan, np.nan, estimate, estimate))
                continue
            say(f"{label}, {k + 1} of {len(labels)}")
            path = _Path(problem)
            limits = path.limit(-critical), path.limit(critical)
            z = np.nan
            if not problem.is_variance:
                none = path.approach(0.0)
                z = -path.zeta(none) if none is not None else np.nan
            unknown = {"a limit": np.isnan(sum(limits)), "z": np.isnan(z) and not problem.is_variance}
            if missing := [what for what, is_missing in unknown.items() if is_missing]:
                _warn(label, " and ".join(missing))
            rows.append((estimate, error, z, 2 * ndtr(-np.abs(z)), *limits))
    columns = ["estimate", "se", "z", "p", "ci_lower", "ci_upper"]
    return pd.DataFrame(rows, index=pd.Index(labels), columns=columns, dtype=float)


def profile_curve(
    fit: Estimates,
    moments: Moments,
    label: str,
    values: Sequence[float] | Floats | None = None,
    at: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The likelihood along one parameter or effect.

    Parameters and errors as in :func:`profile_intervals`; ``values`` are by default 21 over 3.5 standard errors to both
    sides, those of a variance above zero.

    Returns
    -------
    DataFrame
        Columns ``value``, ``zeta`` and ``loglik``, with the other parameters at their best; NaN where a refit fails.
        For REML ``loglik`` is minus the criterion F of the module's head.
    """
    (problem,) = _problems(fit, moments, [label], quantities(fit, at))
    if problem is None:
        raise SpecError(f"{label!r} is fixed in this model: there is no likelihood along it")
    path = _Path(problem)
    if values is None:
        chosen = problem.estimate + np.linspace(-3.5, 3.5, 21) * problem.unit
        chosen = chosen[chosen > 0] if problem.is_variance else chosen
    else:
        flat = np.ravel(values).tolist() if isinstance(values, (float, int, np.ndarray)) else values
        listed = check_list("values", flat, "of numbers such as [0.1, 0.2]")
        least = 0.0 if problem.is_variance else -np.inf
        if not all(is_number(value) and least < value and abs(value) <= LARGEST for value in listed):
            raise SpecError(
                f"values={listed!r}: give finite numbers, of a variance positive ones, up to {LARGEST:g} in size"
            )
        chosen = np.array(listed, dtype=float)
    # From the estimate outwards, so that every refit starts beside the last.
    table = np.full((len(chosen), 3), np.nan)
    table[:, 0] = chosen
    with progress(f"profile of {label}") as say:
        for n, k in enumerate(np.argsort(np.abs(chosen - problem.estimate))):
            say(f"value {n + 1} of {len(chosen)}")
            there = path.approach(path.to_u(float(chosen[k])))
            if there is not None:
                table[k, 1:] = path.zeta(there), problem.scale.loglik - there.value
    if np.any(np.isnan(table)):
        _warn(label, "the likelihood at some values")
    return pd.DataFrame(table, columns=["value", "zeta", "loglik"])


def _problems(fit: Estimates, moments: Moments, labels: Sequence[str], known: Quantities) -> list[Profiled | None]:
    """Problems of some quantities; None for what no parameter moves."""
    unknown = [label for label in labels if not isinstance(label, str) or label not in known.labels]
    if unknown:
        raise SpecError(f"{unknown[0]!r} is no parameter or effect of this fit; choose from {list(known.labels)}")
    problem = problem_of(fit, moments)
    totals = problem.totals
    if totals.clusters != fit.n_clusters:
        raise FitError(
            f"these moments hold {totals.clusters} of the {fit.n_clusters} clusters of the fit; profile intervals of "
            "a fit over several processes are not available, use method='delta' or 'monte_carlo'"
        )
    layout, scale, shards = problem.layout, problem.scale, problem.shards()
    p, n_free = layout.n_fixed, len(layout.free)
    beta = fit.working.values[:p]
    none = np.zeros((layout.n_random, layout.n_random)), np.arange(layout.n_random), np.zeros(layout.n_residual)
    root, order, log_sds, tau, variances = moved(layout, *none, fit.working.theta)
    f = float(full_evaluation(layout, root, tau, beta, shards).value)
    diagonal = {p + k for k, (row, col) in enumerate(layout.free) if row == col}
    diagonal |= set(range(p + n_free, p + n_free + layout.n_equations))
    made: list[Profiled | None] = []
    for label in labels:
        k = known.labels.index(label)
        quantity, estimate, unit = _quantity(known, k), float(known.values[k]), float(known.errors[k])
        if k >= known.n_params and not np.any(quantity(fit.values)[1]):
            made.append(None)
            continue
        if not unit > 1e-12 * abs(estimate) or not np.isfinite(unit):
            # A hundredth of what a residual is, as a variance of working columns.
            slope = np.abs(quantity(fit.values)[1] @ scale.matrix)
            unit = 0.01 * float(np.max(slope)) * float(variances[n_free : n_free + layout.n_equations].min())
        best = Solved(estimate, f, 0.0, Point(beta, root, order, log_sds))
        made.append(Profiled(layout, shards, scale, quantity, estimate, unit, k in diagonal, best))
    return made


def _quantity(known: Quantities, k: int) -> Callable[[Floats], tuple[float, Floats, Floats]]:
    """A parameter or an effect as a function of all parameters, with its derivatives."""
    n, of = known.n_params, known.targets
    if k < n or of is None:
        along, flat = np.eye(n)[k], np.zeros((n, n))
        return lambda values: (float(values[k]), along, flat)
    row = of.combination[k - n]

    def effect(values: Floats) -> tuple[float, Floats, Floats]:
        value, slope, bend = effect_derivatives(of.plan, values, of.weights, row, known.units)
        return float(value), np.asarray(slope), np.asarray(bend)

    return effect


def _warn(label: str, missing: str) -> None:
    """Say what is NaN."""
    warn_caller(
        f"profile of {label!r}: {missing} not found by constrained refits and is NaN; use the bootstrap, or "
        "method='monte_carlo'",
        ConvergenceWarning,
    )
