"""Are the paths within and between clusters the same? One coefficient for both is a mixture of the two if not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxmed._data import Missing, equation_groups
from jaxmed._inference import Covariance, TestResult, chi_squared, critical_value, normal_table
from jaxmed._model import INTERCEPT, Equation, Spec, System
from jaxmed._results.estimation import estimate
from jaxmed._results.fit_effects import FitEffects, check_is_fit
from jaxmed._support import (
    ConvergenceWarning,
    DesignWarning,
    FitError,
    check_choice,
    escape_control,
    renamed,
    warn_caller,
)


@dataclass(frozen=True, eq=False)
class Conflation:
    """Paths within and between clusters, and the test that they are equal.

    Attributes
    ----------
    table : DataFrame
        A row a path, ``a``, ``b``, ``c_prime``, and ``a:w`` for what a moderator adds to it. Columns ``within``,
        ``between``, ``estimate`` (between less within, the contextual effect), ``se, z, p, ci_lower, ci_upper``.
    test : TestResult
        Wald test that all differences are zero.
    fit : Fit
        Of the model with cluster means.
    """

    table: pd.DataFrame
    test: TestResult
    fit: FitEffects

    def __str__(self) -> str:
        test = f"{self.test.hypothesis}: chi2({self.test.df}) = {self.test.statistic:.2f}, p = {self.test.p:.4f}"
        if np.isnan(self.test.p):
            test = f"{self.test.hypothesis}: no test, since some of these are not identified ({self.fit.message})"
        return f"{self.table.rename(escape_control).round(4).to_string()}\n{escape_control(test)}"


@renamed(kind="covariance", found="fit")
def conflation(
    fit: FitEffects,
    data: Any = None,
    covariance: Covariance | None = None,
    level: float = 0.95,
    intercepts: Literal["apart", "free"] = "apart",
) -> Conflation:
    """Test whether the paths of a mediation model are the same within and between clusters.

    The cluster means of x and of the mediators are added to the equations (Mundlak 1978), from the moments of the fit:
    the coefficient of a mean is the path between clusters less that within, so that the model of the fit is the one in
    which all of them are zero. Where they are not, its paths are mixtures (Zhang, Zyphur & Preacher 2009), and
    ``center="cluster"`` takes them apart.

    Parameters
    ----------
    fit : Fit
        Of a :class:`Mediation`. Of one whose mediators are split the within and between coefficients are compared as
        they are; its slopes vary with the deviations alone, so that the uncentred model is not a special case of it.
    data : frame or path, optional
        The data, where values are missing and the moments do not say which rows a cluster mean is of.
    covariance : {"joint", "block", "robust"}, optional
        Of the fixed effects; by default as for :meth:`jaxmed.Fit.effects`.
    level : float
        Of the intervals.
    intercepts : {"apart", "free"}
        Whether the random intercept of an outcome that mediators move is independent of the other random effects, or
        as in the fit. The cluster mean of a mediator holds the mediator's random intercept, so that a path b between
        clusters and a covariance of the two intercepts explain the same: with ``"free"`` only what moves b within
        clusters of few rows tells them apart.

    Returns
    -------
    Conflation

    Raises
    ------
    FitError
        The model is not a :class:`Mediation`, or nothing varies both within and between clusters; the model with
        cluster means did not converge.
    DataError
        The moments do not suffice; pass the data.

    Notes
    -----
    A difference in b may be a path that differs between clusters, or what moves both intercepts and is not in the
    model: these data cannot say which. An uncentred fit in which the intercepts may covary has room for it already.

    The coefficients of a split model are compared as they are. Where the slopes of a and b covary between clusters,
    those between clusters differ from those within even if every cluster has one path for both: by .08 in b with the
    population of :func:`jaxmed.simulate`.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> found = jm.conflation(fit)
    >>> list(found.table.index), found.test.df
    (['a', 'b', 'c_prime'], 3)
    >>> bool(found.test.p > 0.05)
    True
    """
    check_is_fit(fit, "conflation")
    chosen: Covariance = fit.default_covariance if covariance is None else covariance
    check_choice("covariance", chosen, Covariance)
    check_choice("intercepts", intercepts, Literal["apart", "free"])
    critical = critical_value(level)
    if not fit.spec.has_effects:
        raise FitError("within and between paths are those of a jaxmed.Mediation; this fit is of a System")
    centred = fit.spec.is_split(fit.facts)
    pairs = _centred_pairs(fit, fit.spec) if centred else _contextual_pairs(fit, fit.spec)
    if not pairs:
        raise FitError(
            "no path of this model has a part within and a part between clusters: x and the mediators do not vary "
            "within clusters"
        )
    whole = fit if centred else _with_means(fit, pairs, data, intercepts)
    if not whole.converged:
        raise FitError(f"the model with cluster means has no estimates to compare: {whole.message}")
    labels = list(whole.system.labels)
    p = len(labels)
    contrast, within = np.zeros((len(pairs), p)), np.zeros(len(pairs))
    for row, (_, one, other) in enumerate(pairs):
        contrast[row, labels.index(other)] = 1.0
        contrast[row, labels.index(one)] = -float(centred)
        within[row] = whole.params[one]
    difference = contrast @ whole.values[:p]
    error = whole.errors(np.pad(contrast, ((0, 0), (0, len(whole.labels) - p))), chosen)
    names = [name for name, _, _ in pairs]
    table = normal_table(names, difference, error, critical)
    table.insert(0, "between", within + difference)
    table.insert(0, "within", within)
    hypothesis = f"between = within: {', '.join(names)}"
    test = TestResult(float("nan"), len(names), float("nan"), hypothesis)
    if np.all(error > 0):
        matrix = contrast @ whole.generalized(chosen)[:p, :p] @ contrast.T
        statistic = float(difference @ np.linalg.solve(matrix, difference))
        test = chi_squared(statistic, len(names), hypothesis)
    return Conflation(table, test, whole)


Pairs = list[tuple[str, str, str]]  # name of a path, labels of its coefficient and of that between clusters


def _centred_pairs(fit: FitEffects, spec: Spec) -> Pairs:
    paths = spec.estimands(fit.facts).paths
    pairs = []
    for edge in spec.edges_in(fit.facts):
        within, between = edge.path("_within"), edge.path("_between")
        if within in paths and between in paths:
            for (one, by), (other, _) in zip(paths[within].pieces, paths[between].pieces, strict=True):
                pairs.append((":".join([edge.path(), *by]), one, other))
    return pairs


def _contextual_pairs(fit: FitEffects, spec: Spec) -> Pairs:
    paths = spec.estimands(fit.facts).paths
    pairs = []
    alike = fit.facts.cluster_level | fit.facts.equal_means
    for edge in spec.edges_in(fit.facts):
        if edge.source not in alike and edge.outcome not in fit.facts.equal_means:
            for label, by in paths[edge.path()].pieces:
                mean = ":".join([f"between({edge.source})", *by])
                pairs.append((":".join([edge.path(), *by]), label, f"{edge.outcome}~{mean}"))
    return pairs


def _with_means(fit: FitEffects, pairs: Pairs, data: Any, intercepts: str) -> FitEffects:
    """The same model with cluster means, as a system."""
    system = fit.system
    equations = []
    for equation in system.equations:
        own = f"{equation.outcome}~"
        means = [mean.removeprefix(own) for _, label, mean in pairs if label in equation.labels]
        equations.append(Equation(equation.outcome, (*equation.predictors, *means), equation.random, equation.level))
    covariance = _apart(fit) if intercepts == "apart" else system.covariance
    whole = System(equations, system.cluster, covariance, system.residuals, system.zero)
    listwise = fit.moments.groups == equation_groups(system, "listwise")[0]
    missing: Missing = "listwise" if listwise and any(fit.sample_summary.missing.values()) else "available"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with_means = estimate(type(fit), fit.moments if data is None else data, whole, reml=fit.reml, missing=missing)
    same = fit.too_few_clusters and with_means.converged and not with_means.flat  # as is said of that fit
    for warning in said:
        if issubclass(warning.category, DesignWarning) or (same and issubclass(warning.category, ConvergenceWarning)):
            continue  # said of the fit itself
        warn_caller(f"of the model with cluster means: {warning.message}", warning.category)
    return with_means


def _apart(fit: FitEffects) -> Any:
    """The covariance of the random effects with the intercepts of outcomes that mediators move in groups of their own.

    Only where they could covary with the intercept of another outcome.
    """
    system, spec = fit.system, fit.spec
    if system.covariance in ("diagonal", "block") or not system.random_labels:
        return system.covariance
    whole = system.covariance == "unstructured"
    groups = [list(system.random_labels)] if whole else [list(group) for group in system.covariance]
    every = [f"{outcome}~{INTERCEPT}" for outcome in system.outcomes]
    moved = [f"{edge.outcome}~{INTERCEPT}" for edge in spec.edges if edge.source in spec.mediators]
    shared = [label for group in groups if sum(one in group for one in every) > 1 for label in group]
    alone = [label for label in dict.fromkeys(moved) if label in shared]
    rest = [[label for label in group if label not in alone] for group in groups]
    return [*(group for group in rest if group), *([label] for label in alone)]
