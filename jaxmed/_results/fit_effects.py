"""Effects of a fit: tables with standard errors, intervals, profiles and their variation between clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jaxmed._data import Moments
from jaxmed._inference import (
    EffectCovariance,
    Estimates,
    IntervalCovariance,
    ModelCovariance,
    Optimizer,
    Sample,
    Scores,
    WholeCovariance,
    cluster_scores,
    effect_table,
    heterogeneity_table,
    omnibus_table,
    profile,
    robust,
    satterthwaite_table,
)
from jaxmed._results.interval_tables import IntervalMethod, interval_table
from jaxmed._support import ArgumentTypeError, Floats, check_choice, renamed


@dataclass(frozen=True, eq=False, repr=False)
class FitEffects(Estimates):
    """Estimates with the moments of the data: effects, their intervals and how they vary between clusters."""

    moments: Moments = field(repr=False)

    @property
    def optimizer(self) -> Optimizer:
        """How the optimiser ended: status, message, n_iter, grad_norm, decrement, trace."""
        return Optimizer(self.status, self.message, self.n_iter, self.grad_norm, self.decrement, self.trace)

    @property
    def sample(self) -> Sample:
        """Which data were used: rows, used, dropped, clusters, cluster_sizes, missing, filled, patterns."""
        sample_summary = self.sample_summary
        used = dict(zip(self.system.outcomes, sample_summary.used, strict=True))
        return Sample(
            sample_summary.rows,
            used,
            sample_summary.dropped,
            self.n_clusters,
            self.cluster_sizes,
            dict(sample_summary.missing),
            dict(sample_summary.filled),
            dict(sample_summary.patterns),
        )

    @property
    def identified(self) -> pd.Series:
        """Whether each parameter is identified, by label: others have no standard error.

        All are False where no joint covariance is available, as of a fit that did not converge; see ``fit.message``.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> bool(fit.identified.all())
        True
        """
        known = np.isfinite(np.diag(self.joint))
        return pd.Series(known, index=list(self.labels), name="identified")

    @renamed(se="covariance")
    def effects(
        self,
        covariance: EffectCovariance | None = None,
        level: float = 0.95,
        at: Mapping[str, Any] | None = None,
        difference: bool = False,
    ) -> pd.DataFrame:
        """Paths, covariances of paths, indirect and total effects with standard errors and intervals.

        Parameters
        ----------
        covariance : {"joint", "bauer", "robust"}, optional
            By default joint, or robust where residuals are negatively correlated within clusters
            (``default_covariance``). First-order delta method on the joint covariance of all parameters or on the
            cluster-robust one (:meth:`robust_cov`), or the formulas of Bauer, Preacher & Gil (2006) on the block
            covariance, as in the worked Stata example (one mediator, no moderators). For ``"bauer"`` at level .95 the
            limits of indirect and total use that example's 1.96; all others use the exact normal quantile.
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
        chosen: EffectCovariance = self.default_covariance if covariance is None else covariance
        return effect_table(self, chosen, level, at, difference)

    @renamed(se="covariance")
    def omnibus(self, covariance: WholeCovariance | None = None, at: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Wald tests that an effect is zero for all categories of x at once, of an x with three or more.

        Parameters
        ----------
        covariance : {"joint", "robust"}, optional
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
            Another covariance; moderators or values that the model does not have.
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
        chosen = self.default_covariance if covariance is None else covariance
        check_choice("covariance", chosen, WholeCovariance)
        return omnibus_table(self, chosen, at)

    @renamed(se="covariance")
    def heterogeneity(
        self, level: float = 0.95, at: Mapping[str, Any] | None = None, covariance: WholeCovariance = "joint"
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
        covariance : {"joint", "robust"}
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
            Another level or covariance; moderators or values that the model does not have.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.heterogeneity()["estimate"].round(2).to_dict()
        {'sd_indirect': 0.58, 'sd_total': 0.64, 'share_indirect_positive': 0.94}
        """
        return heterogeneity_table(self, level, at, covariance)

    @renamed(se="covariance")
    def intervals(
        self,
        method: IntervalMethod = "delta",
        level: float = 0.95,
        seed: int | None = None,
        *,
        covariance: IntervalCovariance | None = None,
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
        covariance : {"joint", "block", "robust", "bauer", "independent"}, optional
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
            An unknown method, covariance, level or term; no seed where one is needed.
        FitError
            The covariance asked for is not available at this fit.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.intervals("monte_carlo", seed=1).loc["indirect", ["ci_lower", "ci_upper"]].round(2).tolist()
        [0.43, 0.7]
        """
        return interval_table(self, self.moments, method, level, seed, covariance, terms, at, draws)

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

    @renamed(kind="covariance")
    def satterthwaite(
        self,
        covariance: ModelCovariance = "joint",
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
        covariance : {"joint", "block"}
            Of all parameters, that V comes from. With one equation ``"block"`` gives the degrees of freedom of fixed
            effects that lmerTest gives.
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
            An unknown covariance, level or term.
        FitError
            The fit is singular.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.satterthwaite()["df"].loc[["m~x", "y~m", "indirect", "total"]].round(1).to_dict()
        {'m~x': 95.1, 'y~m': 112.9, 'indirect': 30.8, 'total': 43.4}
        """
        return satterthwaite_table(self, self.moments, covariance, level, terms, at)


def check_is_fit(value: Any, function: str) -> None:
    """Refuse what is no fit.

    Raises
    ------
    ArgumentTypeError
        A :class:`SpecError` and a ``TypeError``.
    """
    if not isinstance(value, FitEffects):
        raise ArgumentTypeError(f"{function} needs a Fit, as jaxmed.fit returns it; got {type(value).__name__}")
