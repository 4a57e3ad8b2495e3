"""Data and a model become a fit: the one orchestration."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import (
    Missing,
    Moments,
    SampleSummary,
    check_complete,
    check_identified,
    equation_groups,
    moments_file,
    read_moments,
)
from jaxmed._inference import (
    Covariances,
    Estimable,
    Working,
    barely_informed,
    is_singular,
    mean_squares,
    moderators_of,
    negative_dependence,
    notes_on,
    null_models,
    shares,
    without_inverse,
)
from jaxmed._likelihood import (
    ALONE,
    EngineChoice,
    Hosts,
    Problem,
    Shards,
    Solution,
    agree,
    all_hosts,
    make_problem,
    profile_shards,
    theta_of,
    together,
)
from jaxmed._model import DataFacts, Spec
from jaxmed._results.fit_effects import FitEffects
from jaxmed._results.optimum import solve
from jaxmed._results.second_optimum import check_intercepts
from jaxmed._support import (
    ConvergenceWarning,
    DataError,
    DesignWarning,
    Floats,
    SpecError,
    Status,
    check_choice,
    check_count,
    check_flag,
    warn_caller,
)

FitLike = TypeVar("FitLike", bound=FitEffects)


def estimate(
    kind: type[FitLike],
    data: Any,
    spec: Spec,
    *,
    reml: bool,
    missing: Missing = "available",
    max_iter: int = 100,
    distributed: bool = False,
    engine: EngineChoice = "auto",
) -> FitLike:
    """Read, check, optimise and infer; arguments after ``kind``, the class of the fit, as for :func:`jaxmed.fit`."""
    max_iter = check_count("max_iter", max_iter)
    check_flag("distributed", distributed)
    if not isinstance(reml, (bool, np.bool_)):
        raise SpecError(f"reml={reml!r} must be True (REML) or False (maximum likelihood)")
    check_choice("engine", engine, EngineChoice)
    if distributed and engine == "numpy":
        raise SpecError("engine='numpy' fits in one process; leave it out with distributed=True")
    hosts = all_hosts() if distributed else ALONE
    facts, moments = together(hosts, lambda: _facts_and_moments(data, spec, missing))
    if hosts != ALONE:
        alike = [frozenset(names) for names in hosts.gather(sorted(facts.equal_means))]
        facts = replace(facts, equal_means=frozenset.intersection(*alike))
    request = {"model": spec.to_dict(), "reml": bool(reml), "missing": missing, "max_iter": int(max_iter)}
    moments, sample_summary = agree(moments, hosts, request)
    system = spec.system(facts)
    problem = make_problem(system, moments, bool(reml), hosts, engine=engine)
    check_identified(problem.design, problem.totals, hosts.add)
    solution, covariances = solve(problem, int(max_iter))
    cautions: tuple[str, ...] = ()
    if hosts == ALONE and solution.status == Status.CONVERGED:
        solution, covariances, cautions = check_intercepts(spec, facts, problem, solution, covariances, int(max_iter))
    values = _moderator_values(spec, facts, moments, sample_summary, hosts)
    fit = _assemble(kind, spec, facts, problem, moments, sample_summary, values, solution, covariances, cautions)
    return fit if hosts == ALONE else replace(fit, moderator_means=_moderator_means(fit, hosts))


def _facts_and_moments(data: Any, spec: Spec, missing: Missing) -> tuple[DataFacts, Moments]:
    """Read the data of a model, and what they say about it."""
    if isinstance(data, (str, os.PathLike)) and moments_file.is_moments(data):
        data = moments_file.load_moments(data)
    if isinstance(data, Moments):
        facts = DataFacts(_known_categories(spec, data), unknown=True)
        system = spec.system(facts)
        groups, averaged = equation_groups(system, missing)
        own = (spec.cluster, *system.columns)
        check_complete({name: count for name, count in data.sample_summary.missing.items() if name in own}, missing)
        moments = data.for_columns(spec.cluster, system.columns, groups, averaged)
    else:
        moments = read_moments(data, spec, missing)
        facts = DataFacts(moments.categories)
    if spec.has_effects:
        facts = DataFacts(facts.categories, moments.cluster_level, moments.equal_means)
    return facts, moments


def _known_categories(spec: Spec, moments: Moments) -> dict[str, tuple[str, ...]]:
    """Categories of a model's categorical columns, as they were when the moments were read."""
    absent = [name for name in spec.categorical if name not in moments.categories]
    if absent:
        raise DataError(f"these moments were read without the categories of {absent[0]!r}; fit from the data instead")
    return {name: moments.categories[name] for name in spec.categorical}


def _assemble(
    kind: type[FitLike],
    spec: Spec,
    facts: DataFacts,
    problem: Problem,
    moments: Moments,
    sample_summary: SampleSummary,
    moderator_values: dict[str, tuple[float | str, ...]],
    solution: Solution,
    found: Covariances,
    cautions: tuple[str, ...],
) -> FitLike:
    """Estimates on the user's scale, with everything a reader asks of them."""
    layout, design, totals, scale = problem.layout, problem.design, problem.totals, problem.scale
    theta = np.asarray(solution.theta)
    mean_square = mean_squares(design.system, totals)
    singular = is_singular(layout, theta, mean_square)
    known, p = bool(np.all(np.isfinite(found.joint))), layout.n_fixed
    flat, changes = np.zeros((len(found.values), 0)), np.zeros((0, p, p))
    if not known:
        found, flat, changes = without_inverse(
            layout, theta, solution.evaluation, found, singular, partial(_beta_cov_at, problem, problem.shards())
        )
    offset = np.concatenate([scale.offset, np.zeros(layout.n_theta)])
    joint, block = (_carried(scale.matrix, np.asarray(part)) for part in (found.joint, found.block))
    estimable = Estimable(joint, block, scale.matrix @ flat, scale.linear @ changes @ scale.linear.T)
    moved = estimable.moves(np.eye(len(joint)), joint)
    if moved.any():
        joint, block = _without(joint, moved), _without(block, moved & (np.arange(len(moved)) >= p))
    null, null_pooled = null_models(design.system, design.scale, totals, layout.reml)
    made = int(np.sum(np.isfinite(solution.trace[:, 1])))
    alone = problem.hosts == ALONE and solution.status == Status.CONVERGED
    beta_cov = np.asarray(solution.evaluation.beta_cov)
    fit = kind(
        spec=spec,
        facts=facts,
        moderator_values=moderator_values,
        remarks=notes_on(design, barely_informed(design)) if problem.hosts == ALONE else (),
        cautions=cautions,
        negative_icc=negative_dependence(layout, design, np.asarray(found.values), beta_cov) if alone else {},
        reml=layout.reml,
        values=scale.matrix @ found.values + offset,
        joint=joint,
        block=block,
        estimable=estimable if moved.any() else None,
        working=Working(theta, *map(np.asarray, found)),
        free=layout.free,
        loglik=float(scale.loglik - solution.evaluation.value),
        null=null,
        null_pooled=null_pooled,
        sample_summary=replace(sample_summary, used=problem.used),
        cluster_sizes=(totals.smallest, totals.rows / totals.clusters, totals.largest),
        n_clusters=totals.clusters,
        status=int(solution.status),
        n_iter=int(solution.n_iter),
        grad_norm=float(solution.grad_norm),
        decrement=float(solution.decrement),
        singular=singular,
        reduced_rank=singular and not known,
        largest_share=float(shares(layout, theta[None], mean_square).max(initial=0.0)),
        trace=tuple((int(stage), float(f), float(left)) for stage, f, left in solution.trace[:made]),
        moments=moments,
        engine=problem.engine,
    )
    if not fit.converged or fit.imprecise or fit.flat or fit.too_few_clusters or fit.cautions:
        warn_caller(fit.message, ConvergenceWarning)
    for note in fit.notes:
        warn_caller(note, DesignWarning)
    return fit


def _beta_cov_at(problem: Problem, shards: Shards, values: Floats) -> Floats:
    """(X'V^-1X)^-1 at some (free entries of G, residual (co)variances), on the working scale."""
    root, tau = problem.root_and_precision(theta_of(problem.layout, values))
    return np.asarray(profile_shards(problem.layout, root, tau, shards)[1])


def _carried(matrix: Floats, covariance: Floats) -> Floats:
    """Covariance on the user's scale; NaN where it depends on a parameter whose own is NaN."""
    carried = matrix @ np.where(np.isnan(covariance), 0.0, covariance) @ matrix.T
    return _without(carried, (matrix != 0) @ np.isnan(np.diag(covariance)))


def _without(covariance: Floats, unknown: NDArray[np.bool_]) -> Floats:
    """A covariance with NaN in the rows and columns of parameters that the data do not tell."""
    return np.where(unknown | unknown[:, None], np.nan, covariance)


def _moderator_values(
    spec: Spec, facts: DataFacts, moments: Moments, sample_summary: SampleSummary, hosts: Hosts
) -> dict[str, tuple[float | str, ...]]:
    """Values at which to show effects: mean and mean -+ sd, the two values of a binary column, or all categories.

    Of a column of the clusters, mean and sd (divisor n - 1) are those over clusters.
    """
    found: dict[str, tuple[float | str, ...]] = {}
    for name, _ in spec.moderators:
        if name in facts.categories:
            found[name] = facts.categories[name]
            continue
        low, high = sample_summary.ranges[name]
        shift, scale = moments.unit(name)

        def spread(sums: Floats, shift: float = shift, scale: float = scale) -> tuple[float, float, float]:
            count, total, square = hosts.add(sums)
            return count, shift + scale * total / count, scale**2 * (square / count - (total / count) ** 2)

        count, mean, variance = spread(moments.sums(name).sum(axis=1))
        if abs(variance + (mean - low) * (mean - high)) <= 1e-9 * (high - low) ** 2:
            found[name] = (float(low), float(high))
            continue
        if name in facts.cluster_level:
            values = moments.cluster_means(name)[moments.sums(name)[0] > 0]
            count, mean, variance = spread(np.array([len(values), values.sum(), (values**2).sum()]))
        sd = float(np.sqrt(variance * count / (count - 1)))
        found[name] = (mean - sd, mean, mean + sd)
    return found


def _moderator_means(fit: FitEffects, hosts: Hosts) -> dict[str, float]:
    """Means of moderators of the rows, over the rows of all processes."""
    found = {}
    for column in sorted(moderators_of(fit.spec.estimands(fit.facts))):
        if column not in fit.moments.constants:
            count, total, _ = hosts.add(fit.moments.sums(column).sum(axis=1))
            shift, scale = fit.moments.unit(column)
            found[column] = float(shift + scale * total / count)
    return found
