"""Likelihood-ratio tests between nested fits, with the reference distribution that a boundary asks for."""

from __future__ import annotations

import numpy as np
from scipy.special import chdtrc

from jaxmed._inference import TestResult
from jaxmed._results.fit_effects import check_is_fit
from jaxmed._results.result import Fit
from jaxmed._support import FitError

SAME = 1e-6  # log likelihood units by which rounding may put the smaller model above the larger


def compare(fit0: Fit, fit1: Fit) -> TestResult:
    """Likelihood-ratio test of two nested fits of the same data; the smaller one is the null hypothesis.

    Where the larger model has one more random effect, its variance is tested on the boundary of what is possible. The
    reference distribution is then the 50:50 mixture of chi-squared distributions with df - 1 and df degrees of
    freedom (Self & Liang 1987; Stram & Lee 1994). With several more random effects the weights are not known in
    general; the chi-squared distribution with df is used, which is conservative. ``hypothesis`` says which.

    Parameters
    ----------
    fit0, fit1 : Fit
        In either order. Under REML both must have the same fixed effects.

    Returns
    -------
    TestResult

    Raises
    ------
    SpecError
        One of them is no fit.
    FitError
        The fits are of different data, of different methods or not nested, or one of them did not converge.

    Examples
    --------
    >>> import jaxmed as jm
    >>> data = jm.datasets.load_example()
    >>> roles = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
    >>> small = jm.fit(data, jm.Mediation(**roles, random={"m": ["1", "x"], "y": ["1", "m"]}))
    >>> jm.compare(small, jm.fit(data, **roles)).df
    5
    """
    for fit in (fit0, fit1):
        check_is_fit(fit, "compare")
        if not fit.converged:
            raise FitError(f"one of the fits did not converge, so its likelihood is not a maximum: {fit.message}")
    small, large = sorted((fit0, fit1), key=lambda fit: fit.n_params)
    _check_same(small, large)
    parameters = [{_key(label) for label in fit.labels} for fit in (small, large)]
    fixed = [set(fit.system.labels) for fit in (small, large)]
    random = [set(fit.system.random_labels) for fit in (small, large)]
    if small.reml and fixed[0] != fixed[1]:
        raise FitError(
            "restricted likelihoods of models with different fixed effects do not compare, nor do their aic and bic; "
            "fit both with reml=False"
        )
    only = parameters[0] - parameters[1]
    if only:
        raise FitError(
            f"the fits are not nested: only the smaller one has {'~~'.join(min(only))!r}; compare "
            "their aic or bic instead"
        )
    added = random[1] - random[0]
    df = large.n_params - small.n_params
    if df == 0:
        raise FitError("the fits are of the same model; there is nothing to test")
    statistic = 2 * (large.loglik - small.loglik)
    if statistic < -2 * SAME * (1 + abs(large.loglik) * 1e-6):
        raise FitError(
            f"the larger model has the lower log likelihood ({large.loglik:.6f} against {small.loglik:.6f}), so it "
            "ended in a local maximum; there are too few clusters for so many random effects"
        )
    statistic = max(statistic, 0.0)
    upper = float(chdtrc(df, statistic))
    what = ", ".join(sorted("~~".join(key) for key in parameters[1] - parameters[0]))
    if len(added) == 1:
        lower = float(chdtrc(df - 1, statistic)) if df > 1 else float(statistic <= 0)
        reference = f"50:50 mixture of chi2({df - 1}) and chi2({df}): a variance is tested on its boundary"
        return TestResult(statistic, df, (lower + upper) / 2, f"{what} = 0; {reference}")
    reference = f"chi2({df})"
    if added:
        reference += f", conservative: {len(added)} variances are tested on their boundary"
    return TestResult(statistic, df, upper, f"{what} = 0; {reference}")


def _key(label: str) -> tuple[str, ...]:
    """A parameter whatever the order of the two effects of a covariance; a variance names its effect twice."""
    return tuple(sorted(label.split("~~")))


def _check_same(small: Fit, large: Fit) -> None:
    if small.reml != large.reml:
        raise FitError("one fit is by REML and the other by maximum likelihood; fit both the same way")
    outcomes = set(small.system.outcomes) ^ set(large.system.outcomes)
    if outcomes:
        raise FitError(f"the fits have different outcomes ({sorted(outcomes)}), so their likelihoods do not compare")
    if small.system.cluster != large.system.cluster or small.n_clusters != large.n_clusters:
        raise FitError(
            f"the fits have different clusters ({small.n_clusters} of {small.system.cluster!r}, {large.n_clusters} of "
            f"{large.system.cluster!r}); fit both to the same data"
        )
    rows = [dict(zip(fit.system.outcomes, fit.sample_summary.used, strict=True)) for fit in (small, large)]
    if rows[0] != rows[1]:
        raise FitError(
            f"the fits use different rows ({rows[0]} and {rows[1]}), because of missing values in columns that only "
            "one of them has; fit both to the rows that are complete"
        )
    for outcome in small.system.outcomes:
        spread = np.array([fit.moments.spread(outcome)[:2] for fit in (small, large)])
        if not np.allclose(spread[0], spread[1], rtol=1e-9, atol=1e-9 * np.sqrt(spread[0, 1])):
            means = " and ".join(f"{mean:.6g}" for mean in spread[:, 0])
            raise FitError(f"the fits are of different data: {outcome!r} has the means {means}, or other variances")
