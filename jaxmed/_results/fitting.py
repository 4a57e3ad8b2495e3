"""Data and a specification become a fit: the one orchestration."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed._data import moments_file
from jaxmed._data.design import Design, make_design
from jaxmed._data.identification import check_identified
from jaxmed._data.moments import Intake, Moments
from jaxmed._data.reader import check_complete, equation_groups, read_moments
from jaxmed._data.totals import Totals, add_up
from jaxmed._inference import covariance as inference
from jaxmed._inference import profile, robust
from jaxmed._inference.dependence import barely_informed, negative_dependence, notes_on
from jaxmed._inference.effect_tables import effect_table, heterogeneity_table, omnibus_table
from jaxmed._inference.estimates import Estimable, Estimates, Working, fields_from_dict, plain_data
from jaxmed._inference.limits import check_level
from jaxmed._inference.random_effects import moderators_of, predict_clusters
from jaxmed._inference.satterthwaite import satterthwaite_table
from jaxmed._inference.scores import Scores, cluster_scores
from jaxmed._likelihood.distributed import agree, common_blocks, over_all, together
from jaxmed._likelihood.layout import Layout, count_rows, make_layout, make_scale, root_and_precision, theta_of
from jaxmed._likelihood.optimise import Solution
from jaxmed._likelihood.processes import ALONE, Hosts, all_hosts
from jaxmed._likelihood.shards import Shards, make_shards, profile_shards, value_shards
from jaxmed._model.mediation import MODEL, Facts, Mediation, Spec, check_spec, compiled
from jaxmed._results import summary
from jaxmed._results.influence import influence_table
from jaxmed._results.intercepts import check_intercepts
from jaxmed._results.interval_tables import interval_table
from jaxmed._results.optimization import solve
from jaxmed._results.residuals import cluster_residual_table, residual_table
from jaxmed._results.tables import export, numbers
from jaxmed._support.arrays import Floats
from jaxmed._support.errors import (
    ConvergenceWarning,
    DataError,
    DesignWarning,
    FitError,
    JaxmedError,
    SpecError,
    Status,
)
from jaxmed._support.runtime import float64, jit_by_key
from jaxmed._support.text import visible
from jaxmed._support.validation import check_choice, check_count, check_flag

OPTIONS = tuple(name for name in MODEL if name not in ("x", "m", "y", "cluster"))
OWN = ("reml", "missing", "max_iter", "distributed")


def fit(
    data: Any,
    spec: Spec | None = None,
    *,
    x: str | None = None,
    m: str | None = None,
    y: str | None = None,
    cluster: str | None = None,
    reml: bool = True,
    missing: str = "available",
    max_iter: int = 100,
    distributed: bool = False,
    **options: Any,
) -> Fit:
    """Fit a multilevel mediation model, or any system of mixed equations, by its exact marginal likelihood.

    Parameters
    ----------
    data : frame, path or Moments
        pandas, polars (eager or lazy), pyarrow, DuckDB or PySpark frame, or a path to .csv, .parquet, .dta, .feather.
        One row per observation. Moments stand for the data they were read from and save reading it again:
        ``fit.moments``, those of :func:`jaxmed.read_moments`, or the path of a .moments file.
    spec : Mediation or System, optional
        The model. Without it, the :class:`Mediation` of ``x``, ``m``, ``y``, ``cluster`` and ``options``.
    x, m, y, cluster : str, optional
        Columns of predictor, mediator, outcome and cluster id, instead of ``spec``.
    reml : bool
        Restricted maximum likelihood (default) or maximum likelihood.
    missing : {"available", "listwise", "raise"}
        A row counts in every equation whose columns it has; or only rows that have every column of the model count;
        or missing values are refused. Rows are taken to be missing at random given what is observed in the equation.
    max_iter : int
        Newton iterations at the most; a fit that does not converge starts once more, with as many.
    distributed : bool
        ``data`` holds the clusters of this process of ``jax.distributed``: every process calls ``fit`` with its own,
        small sums are added over processes, and all get the same estimates; ``moments`` and ``ranef()`` are those of
        their own clusters (docs/scale.md).
    **options
        Further options of :class:`Mediation`: ``random``, ``covariance``, ``covariates``, ``moderators``, ``center``,
        ``serial``, ``reference``, ``residuals``, ``intercepts``, ``zero``.

    Returns
    -------
    Fit

    Raises
    ------
    SpecError
        The model contradicts itself.
    DataError
        The data cannot be read or cannot answer the model; the message names column, value and remedy.

    Warns
    -----
    ConvergenceWarning
        The optimiser ended without its certificate, the log likelihood is flat at its maximum (no joint standard
        errors), there are no more clusters than random effects that covary, effects between clusters rest on a
        covariance of intercepts that the data hardly show, or double precision leaves few correct digits;
        ``fit.status`` and ``fit.message`` say why.
    DesignWarning
        The data changed the model, or look odd; see ``fit.notes``.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> fit.converged
    True
    >>> list(fit.effects().index)
    ['a', 'b', 'c_prime', 'cov_ab', 'indirect', 'total']
    """
    spec = _spec(spec, {"x": x, "m": m, "y": y, "cluster": cluster}, options)
    max_iter = check_count("max_iter", max_iter)
    check_flag("distributed", distributed)
    if not isinstance(reml, (bool, np.bool_)):
        raise SpecError(f"reml={reml!r} must be True (REML) or False (maximum likelihood)")
    hosts = all_hosts() if distributed else ALONE
    facts, moments = together(hosts, lambda: _facts_and_moments(data, spec, missing))
    if hosts != ALONE:
        alike = [frozenset(names) for names in hosts.gather(sorted(facts.equal_means))]
        facts = replace(facts, equal_means=frozenset.intersection(*alike))
    request = {"model": spec.to_dict(), "reml": bool(reml), "missing": missing, "max_iter": int(max_iter)}
    moments, intake = agree(moments, hosts, request)
    system = compiled(spec, facts)
    design = common_blocks(together(hosts, lambda: make_design(system, moments)), hosts)
    totals = over_all(add_up(design), hosts)
    check_identified(design, totals, hosts.add)
    layout = make_layout(design, bool(reml))
    solution, covariances = solve(layout, design, totals, int(max_iter), hosts)
    cautions: tuple[str, ...] = ()
    if isinstance(spec, Mediation) and hosts == ALONE and solution.status == Status.CONVERGED:
        solution, covariances, cautions = check_intercepts(
            spec, facts, layout, design, totals, solution, covariances, int(max_iter)
        )
    values = _moderator_values(spec, facts, moments, intake, hosts)
    fit = _assemble(
        spec, facts, layout, design, totals, moments, intake, values, solution, covariances, cautions, hosts
    )
    return fit if hosts == ALONE else replace(fit, moderator_means=_moderator_means(fit, hosts))


def _facts_and_moments(data: Any, spec: Spec, missing: str) -> tuple[Facts, Moments]:
    """Read the data of a model, and what they say about it."""
    if isinstance(data, (str, os.PathLike)) and moments_file.is_moments(data):
        data = moments_file.load_moments(data)
    if isinstance(data, Moments):
        facts = Facts(_known_categories(spec, data), unknown=True)
        system = compiled(spec, facts)
        groups, averaged = equation_groups(system, missing)
        own = (spec.cluster, *system.columns)
        check_complete({name: count for name, count in data.intake.missing.items() if name in own}, missing)
        moments = data.for_columns(spec.cluster, system.columns, groups, averaged)
    else:
        moments = read_moments(data, spec, missing)
        facts = Facts(moments.categories)
    if isinstance(spec, Mediation):
        facts = Facts(facts.categories, moments.cluster_level, moments.equal_means)
    return facts, moments


def _known_categories(spec: Spec, moments: Moments) -> dict[str, tuple[str, ...]]:
    """Categories of a model's categorical columns, as they were when the moments were read."""
    absent = [name for name in spec.categorical if name not in moments.categories]
    if absent:
        raise DataError(f"these moments were read without the categories of {absent[0]!r}; fit from the data instead")
    return {name: moments.categories[name] for name in spec.categorical}


def _spec(spec: Spec | None, roles: Mapping[str, Any], options: Mapping[str, Any]) -> Spec:
    """The model that is meant: the one given, or the mediation model of the roles and options."""
    if spec is not None:
        given = [name for name, value in roles.items() if value is not None] + list(options)
        if given:
            raise SpecError(f"give either a model or its columns, not both (got a model and {given})")
        check_spec(spec)
        return spec
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        close = get_close_matches(unknown[0], (*roles, *OPTIONS, *OWN), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {[*roles, *OPTIONS, *OWN]}"
        raise SpecError(f"jaxmed.fit has no option {unknown[0]!r}; {hint}")
    absent = [role for role, name in roles.items() if name is None]
    if absent:
        raise SpecError(
            f"which columns are {', '.join(absent)}? Name x, m, y and cluster, or pass a Mediation or System"
        )
    return Mediation(**roles, **options)


_root_and_precision = float64(jit_by_key(root_and_precision))


def _assemble(
    spec: Spec,
    facts: Facts,
    layout: Layout,
    design: Design,
    totals: Totals,
    moments: Moments,
    intake: Intake,
    moderator_values: dict[str, tuple[float | str, ...]],
    solution: Solution,
    found: inference.Covariances,
    cautions: tuple[str, ...],
    hosts: Hosts,
) -> Fit:
    """Estimates on the user's scale, with everything a reader asks of them."""
    theta = np.asarray(solution.theta)
    mean_square = inference.mean_squares(design.system, totals)
    singular = inference.is_singular(layout, theta, mean_square)
    known, p = bool(np.all(np.isfinite(found.joint))), layout.n_fixed
    flat, changes = np.zeros((len(found.values), 0)), np.zeros((0, p, p))
    if not known:
        shards = make_shards(design.table, count_rows(layout, design.system, totals), hosts)
        found, flat, changes = inference.without_inverse(
            layout, theta, solution.evaluation, found, singular, partial(_beta_cov_at, layout, shards)
        )
    used = tuple(sums.rows for sums in totals.equations)
    scale = make_scale(design, layout, used)
    offset = np.concatenate([scale.offset, np.zeros(layout.n_theta)])
    joint, block = (_carried(scale.matrix, np.asarray(part)) for part in (found.joint, found.block))
    estimable = Estimable(joint, block, scale.matrix @ flat, scale.linear @ changes @ scale.linear.T)
    moved = estimable.moves(np.eye(len(joint)), joint)
    if moved.any():
        joint, block = _without(joint, moved), _without(block, moved & (np.arange(len(moved)) >= p))
    null, null_pooled = inference.null_models(design.system, design.scale, totals, layout.reml)
    made = int(np.sum(np.isfinite(solution.trace[:, 1])))
    alone = hosts == ALONE and solution.status == Status.CONVERGED
    beta_cov = np.asarray(solution.evaluation.beta_cov)
    fit = Fit(
        spec=spec,
        facts=facts,
        moderator_values=moderator_values,
        remarks=notes_on(design, barely_informed(design)) if hosts == ALONE else (),
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
        intake=replace(intake, used=used),
        cluster_sizes=(totals.smallest, totals.rows / totals.clusters, totals.largest),
        n_clusters=totals.clusters,
        status=int(solution.status),
        n_iter=int(solution.n_iter),
        grad_norm=float(solution.grad_norm),
        decrement=float(solution.decrement),
        singular=singular,
        reduced_rank=singular and not known,
        largest_share=float(inference.shares(layout, theta[None], mean_square).max(initial=0.0)),
        trace=tuple((int(stage), float(f), float(left)) for stage, f, left in solution.trace[:made]),
        moments=moments,
    )
    if not fit.converged or fit.imprecise or fit.flat or fit.too_few_clusters or fit.cautions:
        warnings.warn(fit.message, ConvergenceWarning, stacklevel=3)
    for note in fit.notes:
        warnings.warn(note, DesignWarning, stacklevel=3)
    return fit


def _beta_cov_at(layout: Layout, shards: Shards, values: Floats) -> Floats:
    """(X'V^-1X)^-1 at some (free entries of G, residual (co)variances), on the working scale."""
    root, tau = _root_and_precision(layout, theta_of(layout, values))
    return np.asarray(profile_shards(layout, root, tau, shards)[1])


def _carried(matrix: Floats, covariance: Floats) -> Floats:
    """Covariance on the user's scale; NaN where it depends on a parameter whose own is NaN."""
    carried = matrix @ np.where(np.isnan(covariance), 0.0, covariance) @ matrix.T
    return _without(carried, (matrix != 0) @ np.isnan(np.diag(covariance)))


def _without(covariance: Floats, unknown: NDArray[np.bool_]) -> Floats:
    """A covariance with NaN in the rows and columns of parameters that the data do not tell."""
    return np.where(unknown | unknown[:, None], np.nan, covariance)


def _moderator_values(
    spec: Spec, facts: Facts, moments: Moments, intake: Intake, hosts: Hosts
) -> dict[str, tuple[float | str, ...]]:
    """Values at which to show effects: mean and mean -+ sd, the two values of a binary column, or all categories.

    Of a column of the clusters, mean and sd (divisor n - 1) are those over clusters.
    """
    found: dict[str, tuple[float | str, ...]] = {}
    for name, _ in spec.moderators if isinstance(spec, Mediation) else ():
        if name in facts.categories:
            found[name] = facts.categories[name]
            continue
        low, high = intake.ranges[name]
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


def _moderator_means(fit: Fit, hosts: Hosts) -> dict[str, float]:
    """Means of moderators of the rows, over the rows of all processes."""
    found = {}
    for column in sorted(moderators_of(fit.spec.estimands(fit.facts))) if isinstance(fit.spec, Mediation) else ():
        if column not in fit.moments.constants:
            count, total, _ = hosts.add(fit.moments.sums(column).sum(axis=1))
            shift, scale = fit.moments.unit(column)
            found[column] = float(shift + scale * total / count)
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Estimates):
    """A fitted model: estimates, tests, effects, predictions, tables and plain data.

    Attributes beyond those of :class:`jaxmed._inference.estimates.Estimates`:

    moments : Moments
        The data, as cross-products per cluster.
    """

    moments: Moments = field(repr=False)

    def effects(
        self,
        se: str | None = None,
        level: float = 0.95,
        at: Mapping[str, Any] | None = None,
        difference: bool = False,
    ) -> pd.DataFrame:
        """Paths, covariances of paths, indirect and total effects with standard errors and intervals.

        Parameters
        ----------
        se : {"joint", "bauer", "robust"}, optional
            By default joint, or robust where residuals are negatively correlated within clusters (``default_se``).
            First-order delta method on the joint covariance of all parameters or on the cluster-robust one
            (:meth:`robust_cov`), or the formulas of Bauer, Preacher & Gil (2006) on the block covariance, as in the
            worked Stata example (one mediator, no moderators). For ``"bauer"`` at level .95 the limits of indirect and
            total use that example's 1.96; all others use the exact normal quantile.
        level : float
            Confidence level.
        at : dict, optional
            Values of the moderators, ``{"w": [-1, 0, 1]}``; of those not named, and by default, the mean and the mean
            -+ one sd (over clusters for a column of the clusters), both values of a binary column, all categories.
        difference : bool
            Differences between these values instead of the effects at each, for all pairs that differ in one
            moderator; ``"1 vs -1"`` is the effect at 1 minus that at -1.

        Returns
        -------
        DataFrame
            Columns ``estimate, se, z, p, ci_lower, ci_upper``. Index, with one mediator: ``a, b, c_prime, cov_ab,
            indirect, total``. Several mediators: ``a_m1``, ``b_m1``, ``cov_ab_m1``, ``indirect_m1``, ... for each,
            ``indirect`` for all of them, and differences of specific indirect effects; serial: also ``d_m1_m2`` and
            ``indirect_m1_m2``. With ``center="cluster"``: ``indirect_within``, ``indirect_between`` and so on for every
            effect, and ``contextual_...``, between minus within. With moderators the index is a MultiIndex of effect
            and moderators: ``effects().loc["indirect"]``. Where the indirect effect is linear in w, there is
            ``index_<w>``, the index of moderated mediation (its slope in w; Hayes 2015), with NaN for w.

        Raises
        ------
        FitError
            The model is not a :class:`Mediation`.
        SpecError
            Moderators or values that the model does not have.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.effects().loc["indirect", ["estimate", "se", "ci_lower", "ci_upper"]].round(3).tolist()
        [0.557, 0.068, 0.424, 0.69]
        """
        return effect_table(self, self.chosen_se(se), level, at, difference)

    def omnibus(self, se: str | None = None, at: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Wald tests that an effect is zero for all categories of x at once, of an x with three or more.

        Parameters
        ----------
        se : {"joint", "robust"}, optional
            Covariance of all parameters; by default as for :meth:`effects`.
        at : dict, optional
            Values of moderators, as in :meth:`effects`.

        Returns
        -------
        DataFrame
            Columns ``chi2, df, p``; a row for every effect that x has a contrast of: ``a``, ``c_prime``, ``cov_ab``,
            ``indirect``, ``total``.

        Raises
        ------
        SpecError
            Another kind; moderators or values that the model does not have.
        FitError
            x is numeric or has two categories.

        Examples
        --------
        >>> import numpy as np
        >>> import jaxmed as jm
        >>> data = jm.datasets.load_example()
        >>> data["arm"] = np.array(["none", "half", "full"])[np.arange(len(data)) % 3]
        >>> fit = jm.fit(data, x="arm", m="m", y="y", cluster="id", reference={"arm": "none"}, random={"m": ["1"]})
        >>> [name for name in fit.effects().index if name.startswith("indirect")]
        ['indirect[full]', 'indirect[half]']
        >>> int(fit.omnibus().loc["indirect", "df"])
        2
        """
        kind = check_choice("se", self.chosen_se(se), ("joint", "robust"))
        return omnibus_table(self, kind, at)

    def heterogeneity(
        self, level: float = 0.95, at: Mapping[str, Any] | None = None, se: str = "joint"
    ) -> pd.DataFrame:
        """How much indirect and total effects vary between clusters, in the population.

        ``sd_indirect`` and ``sd_total`` are the standard deviations of a_j b_j and a_j b_j + c'_j over clusters (Bauer,
        Preacher & Gil 2006, equation 6), ``share_indirect_positive`` is the share of clusters whose a_j b_j is
        positive: shares of normal slopes, which robust standard errors do not free from that. Standard errors by the
        delta method, limits on the log and logit scale.

        Parameters
        ----------
        level : float
        at : dict, optional
            Values of moderators, as in :meth:`effects`.
        se : {"joint", "robust"}
            Covariance of all parameters.

        Returns
        -------
        DataFrame
            Columns ``estimate, se, ci_lower, ci_upper``; for several mediators a row per specific effect too.

        Raises
        ------
        FitError
            The model is not a :class:`Mediation`.
        SpecError
            Another level or kind; moderators or values that the model does not have.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.heterogeneity()["estimate"].round(2).to_dict()
        {'sd_indirect': 0.58, 'sd_total': 0.64, 'share_indirect_positive': 0.94}
        """
        return heterogeneity_table(self, level, at, se)

    def intervals(
        self,
        method: str = "delta",
        level: float = 0.95,
        seed: int | None = None,
        *,
        se: str | None = None,
        terms: str | Sequence[str] = "effects",
        at: Mapping[str, Any] | None = None,
        draws: int = 20_000,
    ) -> pd.DataFrame:
        """Intervals for effects and parameters; those of the bootstrap are :meth:`jaxmed.Replicates.intervals`.

        Parameters
        ----------
        method : {"delta", "monte_carlo", "profile"}
            ``"delta"``: estimate -+ z standard errors, as in :meth:`effects`. ``"monte_carlo"``: quantiles of the
            effects at parameters drawn from their estimated joint normal distribution. ``"profile"``: values that a
            likelihood-ratio test does not reject, by constrained refits (docs/intervals.md).
        level : float
        seed : int
            Required for ``"monte_carlo"``.
        se : {"joint", "block", "robust", "bauer", "independent"}, optional
            By default as for :meth:`effects`. Covariance of all parameters that ``"delta"`` (joint, block, robust,
            bauer) and ``"monte_carlo"`` (joint, block, robust, independent) rest on; ``"independent"`` draws every
            parameter by itself, as Preacher & Selig (2012) do for a and b, for comparison.
        terms : "effects", "parameters", "all" or list of str
            Effects, parameters, or names of either.
        at : dict, optional
            Values of moderators, as in :meth:`effects`.
        draws : int
            Of ``"monte_carlo"``.

        Returns
        -------
        DataFrame
            Columns ``estimate, se, z, p, ci_lower, ci_upper``. ``"monte_carlo"``: se is the sd of the draws, and
            ``ci_lower_mcse, ci_upper_mcse`` are the Monte Carlo errors of the limits. ``"profile"``: z is the signed
            root of the likelihood-ratio statistic of the value zero.

        Raises
        ------
        SpecError
            An unknown method, kind, level or term; no seed where one is needed.
        FitError
            The covariance asked for is not available at this fit.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.intervals("monte_carlo", seed=1).loc["indirect", ["ci_lower", "ci_upper"]].round(2).tolist()
        [0.43, 0.7]
        """
        return interval_table(self, self.moments, method, level, seed, se, terms, at, draws)

    def profile(
        self, term: str, values: Sequence[float] | None = None, at: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """The likelihood along one effect or parameter, all others at their best.

        Parameters
        ----------
        term : str
            Name of an effect or a parameter.
        values : sequence of float, optional
            By default 21 values over 3.5 standard errors to both sides.
        at : dict, optional
            Values of moderators, as in :meth:`effects`.

        Returns
        -------
        DataFrame
            Columns ``value``, ``zeta`` (signed root of twice the drop of the log likelihood) and ``loglik``.

        Raises
        ------
        SpecError
            An unknown or fixed term, or values that it cannot have.
        FitError
            The fit holds only some of its clusters.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.profile("indirect", [0.4, 0.5]).round(2).to_numpy().tolist()
        [[0.4, -2.67, -2133.58], [0.5, -0.89, -2130.4]]
        """
        return profile.profile_curve(self, self.moments, term, values, at)

    @cached_property
    def _scores(self) -> Scores:
        return cluster_scores(self, self.moments)

    @cached_property
    def _robust(self) -> Floats:
        return robust.sandwich(self, self._scores)

    def scores(self) -> pd.DataFrame:
        """Scores of the clusters: the derivatives of what each adds to the log likelihood, at the estimates.

        Returns
        -------
        DataFrame
            A row a cluster, a column a parameter (fixed effects, free entries of G, residual variances and
            covariances). Columns sum to zero at the optimum. Under REML a cluster's share of the restricted likelihood
            is that at known (X'V^-1X)^-1 (docs/diagnostics.md).

        Raises
        ------
        FitError
            The fit holds only some of its clusters.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> scores = fit.scores()
        >>> scores.shape, bool(scores.sum().abs().max() < 1e-4)
        ((100, 22), True)
        """
        found = self._scores
        index = pd.Index(found.clusters, name=self.system.cluster)
        return pd.DataFrame(found.on_user_scale.T, index=index, columns=list(self.labels))

    def robust_cov(self, correction: str = "CR1") -> pd.DataFrame:
        """Cluster-robust (sandwich) covariance of all parameters.

        B (sum_j s_j s_j') B, with s_j the :meth:`scores` of the clusters and B the joint covariance. It is right in
        large samples of clusters whatever the distribution of random effects and residuals, where means and
        covariances are as modelled. ``kind="robust"`` and ``se="robust"`` elsewhere are ``"CR1"``.

        Parameters
        ----------
        correction : {"CR0", "CR1"}
            None, or the factor J / (J - 1), J the number of clusters.

        Returns
        -------
        DataFrame
            Labels of all parameters, in rows and columns, as in :meth:`cov_params` with ``full``.

        Raises
        ------
        SpecError
            Another correction.
        FitError
            The fit holds only some of its clusters.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> labels = ["m~x", "m~x~~y~m"]
        >>> fit.robust_cov().loc[labels, labels].round(5).to_numpy().tolist()
        [[0.0029, 4e-05], [4e-05, 0.00068]]
        """
        covariance = self._told(robust.sandwich(self, self._scores, correction))
        return pd.DataFrame(covariance, index=list(self.labels), columns=list(self.labels))

    def influence(
        self, exact: bool = False, *, standardized: bool = False, at: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """What every cluster does to the effects: the estimate from all clusters less that without it.

        Parameters
        ----------
        exact : bool
            Refit the model without each cluster in turn; otherwise one step from the cluster's score, which needs no
            refit and is close where no cluster is very influential (docs/diagnostics.md).
        standardized : bool
            Changes in units of the joint standard error.
        at : dict, optional
            Values of moderators, as in :meth:`effects`.

        Returns
        -------
        DataFrame
            A row a cluster. A column an effect, in units of the effect (``"indirect[w=1]"`` at values of moderators),
            or, for a :class:`System`, a fixed effect; then Cook's distances d'Cov^-1 d / k, with the joint covariance,
            of the changes d of the k fixed effects, ``cook``, and of all parameters, ``cook_all``; where the maximum is
            flat, of those that the data tell.

        Raises
        ------
        SpecError
            Moderators or values that the model does not have.
        FitError
            The fit holds only some of its clusters.

        Warns
        -----
        ConvergenceWarning
            Refits without a cluster that did not converge; their rows are NaN.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.influence()["cook"].nlargest(3).round(2).to_dict()
        {71: 0.04, 65: 0.04, 46: 0.03}
        """
        return influence_table(self, self.moments, self._scores, exact, standardized, at)

    def satterthwaite(
        self,
        kind: str = "joint",
        level: float = 0.95,
        *,
        terms: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Tests and intervals of the t distribution with Satterthwaite's degrees of freedom.

        df = 2 V^2 / Var(V) for an estimate with variance V, Var(V) by the delta method from exact derivatives of V in
        all parameters (docs/diagnostics.md).

        Parameters
        ----------
        kind : {"joint", "block"}
            Covariance that V comes from. With one equation ``"block"`` gives the degrees of freedom of fixed effects
            that lmerTest gives.
        level : float
        terms : "effects", "parameters", "all" or list of str, optional
            By default the fixed effects, and then the effects of a mediation model. A t distribution supposes that
            estimate and V are nearly independent, which those of variances are not.
        at : dict, optional
            Values of moderators, as in :meth:`effects`.

        Returns
        -------
        DataFrame
            Columns ``estimate, se, df, t, p, ci_lower, ci_upper``.

        Raises
        ------
        SpecError
            An unknown kind, level or term.
        FitError
            The fit is singular.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.satterthwaite()["df"].loc[["m~x", "y~m", "indirect", "total"]].round(1).to_dict()
        {'m~x': 95.1, 'y~m': 112.9, 'indirect': 30.8, 'total': 43.4}
        """
        return satterthwaite_table(self, self.moments, kind, level, terms, at)

    def ranef(self) -> pd.DataFrame:
        """Predictions for every cluster (empirical Bayes), on the user's scale.

        Returns
        -------
        DataFrame
            One row per cluster. For every random effect, by its label, the deviation u_j from the fixed effect, and
            ``<label>_se``. For a mediation model also ``a``, ``b`` (fixed effect plus deviation) and ``ab``, the
            expected product E[a_j b_j | data] = a_j b_j + Cov(a_j, b_j | data), each with ``_se``; with several
            mediators or centring under the names of the paths (``a_m1``, ``ab_m1``, ``b_within``). With moderators
            they are at the cluster's own value, or at the overall mean of a moderator of the rows. Standard errors are
            those of prediction error: they include the uncertainty of the fixed effects and take the variance
            parameters as known (Henderson's mixed-model equations).

        Raises
        ------
        FitError
            The model has no random effects.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.ranef()[["a", "b", "ab"]].mean().round(2).to_dict()
        {'a': 0.65, 'b': 0.61, 'ab': 0.56}
        """
        return predict_clusters(self, self.moments)

    def cluster_residuals(self) -> pd.DataFrame:
        """Standardized predictions of the clusters' random effects, for normal plots and outlying clusters.

        Returns
        -------
        DataFrame
            A row a cluster. For every random effect, by its label, its prediction over the standard deviation that the
            prediction has under the model (Lange & Ryan 1989), and ``<label>_quantile``, the normal quantile that
            belongs to its rank. ``distance`` is the squared Mahalanobis distance of all predictions of the cluster from
            zero, about chi-squared with ``df`` degrees of freedom (fewer than there are random effects where the
            cluster does not show them all), and ``p`` its upper tail.

        Raises
        ------
        FitError
            The model has no random effects, or the covariance of its fixed effects is not available.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.cluster_residuals().nsmallest(2, "p")[["distance", "df", "p"]].round(3).to_numpy().tolist()
        [[14.779, 5.0, 0.011], [13.445, 5.0, 0.02]]
        """
        return cluster_residual_table(self, self.moments)

    def residuals(self, data: Any) -> pd.DataFrame:
        """Residuals row by row, equation under equation.

        Parameters
        ----------
        data : frame or path
            The data of the fit, which holds cross-products only.

        Returns
        -------
        DataFrame
            A row for every row that counts in an equation, ``fit.nobs`` in all: ``outcome``, the cluster, ``row`` (the
            position of the row in the data, from 0; -1 for the one row of a cluster in an equation of level 2),
            ``observed``, ``fitted`` (fixed and predicted random effects), ``marginal`` (observed less fixed effects),
            ``conditional`` (observed less fitted) and ``standardized`` (conditional over the residual standard
            deviation, the Pearson residuals of nlme).

        Raises
        ------
        DataError
            The data are others than those of the fit.

        Examples
        --------
        >>> import jaxmed as jm
        >>> data = jm.datasets.load_example()
        >>> fit = jm.fit(data, x="x", m="m", y="y", cluster="id")
        >>> fit.residuals(data).groupby("outcome")["standardized"].std().round(2).to_dict()
        {'m': 0.92, 'y': 0.89}
        """
        return residual_table(self, self.moments, data)

    def summary(
        self,
        se: str | None = None,
        level: float = 0.95,
        at: Mapping[str, Any] | None = None,
        difference: bool = False,
        heterogeneity: bool = False,
    ) -> str:
        """Tables for a terminal.

        Parameters
        ----------
        se : {"joint", "bauer", "robust"}, optional
            By default as for :meth:`effects`. ``"bauer"`` prints the numbers of the worked Stata example: block
            standard errors, its effect formulas, and the variance of its extra random effect; ``"robust"``
            cluster-robust standard errors throughout.
        level : float
        at : dict, optional
            Values of moderators, as in :meth:`effects`.
        difference, heterogeneity : bool
            Add the table of :meth:`effects` of differences, and that of :meth:`heterogeneity`.

        Returns
        -------
        str

        Raises
        ------
        SpecError, FitError
            As :meth:`effects`; ``se="bauer"`` for another model than Bauer's.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.summary().splitlines()[0])
        Multilevel mediation: x -> m -> y within id
        """
        se = self.chosen_se(se)
        tables = self._effect_tables(se, level, at)
        check_flag("heterogeneity", heterogeneity)
        if check_flag("difference", difference):
            tables["Differences of effects"] = self.effects(se, level, at, difference=True)
        if heterogeneity:
            tables["Effects over clusters (population)"] = self.heterogeneity(
                level, at, "robust" if se == "robust" else "joint"
            )
        return summary.text(self, tables, se, check_level(level))

    def _effect_tables(
        self, se: str | None = None, level: float = 0.95, at: Mapping[str, Any] | None = None
    ) -> dict[str, pd.DataFrame]:
        return {"Effects": self.effects(se, level, at)} if isinstance(self.spec, Mediation) else {}

    def to_latex(
        self, table: str = "effects", se: str | None = None, level: float = 0.95, at: Mapping[str, Any] | None = None
    ) -> str:
        r"""One table as LaTeX, in the style of booktabs, with every name escaped.

        Parameters
        ----------
        table : {"effects", "coefficients", "variances", "heterogeneity"}
            Effects; fixed effects; covariance of random effects and residuals; how effects vary between clusters.
        se, level, at
            As for :meth:`effects`; ``se="bauer"`` takes block standard errors for coefficients.

        Returns
        -------
        str
            A ``table`` environment with caption.

        Raises
        ------
        SpecError
            An unknown table, kind of standard error, level or moderator.
        FitError
            Effects of a model that is not a :class:`Mediation`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.to_latex().splitlines()[6])
        a & 0.6517 & 0.0544 & 11.99 & $<0.001$ & 0.5452 & 0.7582 \\
        """
        return export(numbers(self, table, se, level, at), "latex")

    def to_markdown(
        self, table: str = "effects", se: str | None = None, level: float = 0.95, at: Mapping[str, Any] | None = None
    ) -> str:
        r"""One table in Markdown; parameters and errors as for :meth:`to_latex`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.to_markdown().splitlines()[2])
        | a | 0.6517 | 0.0544 | 11.99 | \<0.001 | 0.5452 | 0.7582 |
        """
        return export(numbers(self, table, se, level, at), "markdown")

    def to_csv(
        self, table: str = "effects", se: str | None = None, level: float = 0.95, at: Mapping[str, Any] | None = None
    ) -> str:
        """One table as comma-separated text with all digits; parameters and errors as for :meth:`to_latex`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.to_csv().splitlines()[0])
        effect,estimate,se,z,p,ci_lower,ci_upper
        """
        return export(numbers(self, table, se, level, at), "csv")

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return summary.html(self, self._effect_tables(), self.default_se, 0.95)

    def to_dict(
        self,
        at: Mapping[str, Any] | None = None,
        difference: bool = False,
        heterogeneity: bool = False,
        robust: bool = False,
    ) -> dict[str, Any]:
        """Plain data under the public names; see also :meth:`to_json` and :meth:`save`.

        Parameters
        ----------
        at : dict, optional
            Values of moderators, as in :meth:`effects`.
        difference, heterogeneity : bool
            Add ``effect_differences`` and ``heterogeneity``, the tables of :meth:`effects` and :meth:`heterogeneity`.
        robust : bool
            Add ``bse_robust``, ``cov_robust`` and the effects with cluster-robust standard errors.

        Returns
        -------
        dict
            ``effects`` holds a table by kind of standard error: rows by effect or, of a model with moderators, a list
            of rows with the moderators as further columns. NaN is None.

        Raises
        ------
        SpecError, FitError
            As :meth:`effects` and, with ``robust``, :meth:`robust_cov`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> round(fit.to_dict()["effects"]["joint"]["indirect"]["estimate"], 3)
        0.557
        """
        for name, value in (("difference", difference), ("heterogeneity", heterogeneity), ("robust", robust)):
            check_flag(name, value)
        plain = super().to_dict()
        robust = robust or self.default_se == "robust"
        if robust:
            plain["bse_robust"] = plain_data(self.standard_errors("robust").to_dict())
            plain["cov_robust"] = plain_data(self.covariance("robust").tolist())
        if not isinstance(self.spec, Mediation):
            return plain
        kinds = ["joint", *(["bauer"] if self.spec.is_simple(self.facts) else []), *(["robust"] if robust else [])]
        plain["effects"] = {se: _rows(self.effects(se, at=at)) for se in kinds}
        if self.spec.contrasts(self.facts):
            plain["omnibus"] = _rows(self.omnibus(at=at))
        if difference:
            plain["effect_differences"] = _rows(self.effects(at=at, difference=True))
        if heterogeneity:
            plain["heterogeneity"] = _rows(self.heterogeneity(at=at))
        return plain

    def to_json(self, indent: int | None = 1, **tables: Any) -> str:
        """JSON text of :meth:`to_dict`, which takes ``tables``; numbers keep all their digits, NaN is null.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> import json
        >>> json.loads(fit.to_json()) == fit.to_dict()
        True
        """
        indent = None if indent is None else check_count("indent", indent, 0, 100)
        return visible(json.dumps(self.to_dict(**tables), indent=indent, allow_nan=False, ensure_ascii=False), "\n")

    def save(self, path: str | Path) -> None:
        """Write the fit and its moments to one file (a zip of JSON and NumPy arrays, no pickle), all or nothing.

        :func:`jaxmed.load` reads it back. The rows of the data are not in it, only cross-products per cluster.

        Raises
        ------
        FitError
            The file cannot be written.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> with TemporaryDirectory() as folder:
        ...     fit.save(f"{folder}/fit.jaxmed")
        ...     jm.load(f"{folder}/fit.jaxmed").loglik == fit.loglik
        True
        """
        moments_file.write(path, self.to_dict(), self.moments)


def _rows(table: pd.DataFrame) -> Any:
    """A table of effects as plain data: by effect, or a list of rows where it has moderators."""
    by_row = isinstance(table.index, pd.MultiIndex)
    return plain_data(table.reset_index().to_dict("records") if by_row else table.to_dict(orient="index"))


def load(path: str | Path, verify: bool = False) -> Fit:
    """Read a fit that :meth:`Fit.save` wrote.

    Parameters
    ----------
    path : str or Path
    verify : bool
        Evaluate the likelihood again at the stored estimates, from the stored moments, and compare.

    Returns
    -------
    Fit

    Raises
    ------
    DataError
        No such file, or not a saved fit.
    FitError
        ``verify`` found another log likelihood than the stored one.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> with TemporaryDirectory() as folder:
    ...     fit.save(f"{folder}/fit.jaxmed")
    ...     again = jm.load(f"{folder}/fit.jaxmed", verify=True)
    >>> again.params.equals(fit.params)
    True
    """
    check_flag("verify", verify)
    plain, moments = moments_file.read(path)
    try:
        fit = Fit(**fields_from_dict(plain), moments=moments)
        _check_whole(fit)
    except (JaxmedError, ValueError) as error:
        raise DataError(f"{str(path)!r} is not a fit that jaxmed saved, or is damaged ({error})") from error
    if verify:
        clusters = add_up(make_design(fit.system, fit.moments)).clusters
        if clusters != fit.n_clusters:
            raise FitError(
                f"{str(path)!r} holds {clusters} of the {fit.n_clusters} clusters of a fit over several processes, so "
                "its log likelihood cannot be verified; load it with verify=False"
            )
        again, values = _at_stored(fit)
        if not np.allclose(values, fit.values, rtol=1e-9, atol=1e-9 * np.max(np.abs(values)), equal_nan=True):
            raise FitError(f"{str(path)!r}: its estimates are not those in the units of its optimiser")
        if not abs(again - fit.loglik) <= 1e-9 * (1 + abs(fit.loglik)):
            raise FitError(f"{str(path)!r}: log likelihood is {again!r} from its moments, but {fit.loglik!r} is stored")
    return fit


def _check_whole(fit: Fit) -> None:
    """Refuse a model, estimates and moments that do not belong together."""
    system, moments, n = fit.system, fit.moments, len(fit.labels)
    n_theta = n - len(system.labels)
    shapes = {"values": (n,), "joint": (n, n), "block": (n, n)}
    wrong = [name for name, shape in shapes.items() if getattr(fit, name).shape != shape]
    shapes["theta"] = (n_theta,)
    wrong += [name for name, part in fit.working._asdict().items() if part.shape != shapes[name]]
    if fit.estimable is not None:
        kept, p = fit.estimable, n - n_theta
        shapes["directions"] = (n, max(kept.directions.size // n, 1))
        shapes["changes"] = (len(kept.changes), p, p) if kept.changes.size else kept.changes.shape
        wrong += [
            name
            for name, part in fit.estimable._asdict().items()
            if part.shape != shapes[name] or not np.all(np.isfinite(part))
        ]
    if wrong:
        raise ValueError(f"{wrong[0]} are not those of its model")
    if fit.free != system.random_pairs or len(fit.intake.used) != len(system.equations):
        raise ValueError("its equations are not those of its model")
    if fit.status not in set(Status):
        raise ValueError(f"status {fit.status} is not known")
    if system.cluster != moments.cluster or not set(system.columns) <= set(moments.columns):
        raise ValueError("its moments are of other columns")
    of = [name for name, _ in fit.spec.moderators] if isinstance(fit.spec, Mediation) else []
    if list(fit.moderator_values) != of or not all(fit.moderator_values.values()):
        raise ValueError("its values of moderators are not those of its model")


@float64
def _at_stored(fit: Fit) -> tuple[float, Floats]:
    """Log likelihood, from its moments, and estimates on the user's scale, of a fit's estimates in working units."""
    design = make_design(fit.system, fit.moments)
    layout = make_layout(design, fit.reml)
    totals = add_up(design)
    scale = make_scale(design, layout, [sums.rows for sums in totals.equations])
    shards = make_shards(design.table, count_rows(layout, design.system, totals))
    root, tau = _root_and_precision(layout, jnp.asarray(fit.working.theta))
    return scale.loglik - value_shards(layout, root, tau, shards), scale.carried(fit.working.values)
