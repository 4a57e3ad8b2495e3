"""A fit and everything it can be asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from jaxmed._data import moments_file
from jaxmed._inference import OF_VARIANCES, EffectCovariance, check_level, plain_data, predict_clusters, robust
from jaxmed._results import local_optima, moderation, summary, within_between
from jaxmed._results.fit_effects import FitEffects
from jaxmed._results.influence import influence_table
from jaxmed._results.residuals import cluster_residual_table, residual_table
from jaxmed._results.tables import TableName, export, numbers
from jaxmed._results.verification import Verification, verify
from jaxmed._support import check_count, check_flag, escape_control, renamed


@dataclass(frozen=True, eq=False, repr=False)
class Fit(FitEffects):
    """A fitted model: estimates, tests, effects, predictions, tables and plain data.

    Attributes beyond those of :class:`jaxmed._inference.estimates.Estimates`:

    moments : Moments
        The data, as cross-products per cluster.
    """

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

    def robust_cov(self, correction: robust.Correction = "CR1") -> pd.DataFrame:
        """Cluster-robust (sandwich) covariance of all parameters.

        B (sum_j s_j s_j') B, with s_j the :meth:`scores` of the clusters and B the joint covariance. With many
        clusters it is the covariance of the estimates whatever the distribution of random effects and residuals. It
        does not correct the estimates: m is a response and a predictor, so that with random effects that are not
        normal they have a bias of order 1/n_j, n_j the rows of a cluster.
        ``covariance="robust"`` elsewhere is ``"CR1"``.

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
        covariance = self._where_identified(robust.sandwich(self, self._scores, correction))
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
            flat, of those that are identified.

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

    # Functions that take one fit, as methods.
    conflation = within_between.conflation
    optima = local_optima.optima
    johnson_neyman = moderation.johnson_neyman

    def verify(self) -> Verification:
        """Compare the closed forms of this fit with automatic differentiation of the plain likelihood.

        Value, gradient and Hessian at the estimates, in the variance parameters, are computed again by ``jax.grad`` and
        ``jax.hessian`` of the likelihood as it is defined, with all clusters in one block. JAX compiles for seconds.

        Returns
        -------
        Verification
            Decimal digits that agree: ``value``, ``gradient`` (in standard deviations of the parameters) and
            ``hessian`` (scaled to a diagonal of ones).

        Raises
        ------
        FitError
            The fit holds only some of its clusters.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> min(fit.verify()) > 8
        True
        """
        return verify(self, self.moments)

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

    @renamed(se="covariance")
    def summary(
        self,
        covariance: EffectCovariance | None = None,
        level: float = 0.95,
        at: Mapping[str, Any] | None = None,
        difference: bool = False,
        heterogeneity: bool = False,
    ) -> str:
        """Tables for a terminal.

        Parameters
        ----------
        covariance : {"joint", "bauer", "robust"}, optional
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
            As :meth:`effects`; ``covariance="bauer"`` for another model than Bauer's.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.summary().splitlines()[0])
        Multilevel mediation: x -> m -> y within id
        """
        chosen: EffectCovariance = self.default_covariance if covariance is None else covariance
        tables = self._effect_tables(chosen, level, at)
        check_flag("heterogeneity", heterogeneity)
        if check_flag("difference", difference):
            tables["Differences of effects"] = self.effects(chosen, level, at, difference=True)
        if heterogeneity:
            tables["Effects over clusters (population)"] = self.heterogeneity(level, at, OF_VARIANCES[chosen])
        return summary.text(self, tables, chosen, check_level(level))

    def _effect_tables(
        self, covariance: EffectCovariance, level: float = 0.95, at: Mapping[str, Any] | None = None
    ) -> dict[str, pd.DataFrame]:
        return {"Effects": self.effects(covariance, level, at)} if self.spec.has_effects else {}

    @renamed(se="covariance")
    def to_latex(
        self,
        table: TableName = "effects",
        covariance: EffectCovariance | None = None,
        level: float = 0.95,
        at: Mapping[str, Any] | None = None,
    ) -> str:
        r"""One table as LaTeX, in the style of booktabs, with every name escaped.

        Parameters
        ----------
        table : {"effects", "coefficients", "variances", "heterogeneity"}
            Effects; fixed effects; covariance of random effects and residuals; how effects vary between clusters.
        covariance, level, at
            As for :meth:`effects`; ``covariance="bauer"`` takes block standard errors for coefficients.

        Returns
        -------
        str
            A ``table`` environment with caption.

        Raises
        ------
        SpecError
            An unknown table, covariance, level or moderator.
        FitError
            Effects of a model that is not a :class:`Mediation`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.to_latex().splitlines()[6])
        a & 0.6517 & 0.0544 & 11.99 & $<0.001$ & 0.5452 & 0.7582 \\
        """
        return export(numbers(self, table, covariance, level, at), "latex")

    @renamed(se="covariance")
    def to_markdown(
        self,
        table: TableName = "effects",
        covariance: EffectCovariance | None = None,
        level: float = 0.95,
        at: Mapping[str, Any] | None = None,
    ) -> str:
        r"""One table in Markdown; parameters and errors as for :meth:`to_latex`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.to_markdown().splitlines()[2])
        | a | 0.6517 | 0.0544 | 11.99 | \<0.001 | 0.5452 | 0.7582 |
        """
        return export(numbers(self, table, covariance, level, at), "markdown")

    @renamed(se="covariance")
    def to_csv(
        self,
        table: TableName = "effects",
        covariance: EffectCovariance | None = None,
        level: float = 0.95,
        at: Mapping[str, Any] | None = None,
    ) -> str:
        """One table as comma-separated text with all digits; parameters and errors as for :meth:`to_latex`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> print(fit.to_csv().splitlines()[0])
        effect,estimate,se,z,p,ci_lower,ci_upper
        """
        return export(numbers(self, table, covariance, level, at), "csv")

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return summary.html(self, self._effect_tables(self.default_covariance), self.default_covariance, 0.95)

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
            ``effects`` holds a table by covariance: rows by effect or, of a model with moderators, a list
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
        robust = robust or self.default_covariance == "robust"
        if robust:
            plain["bse_robust"] = plain_data(self.standard_errors("robust").to_dict())
            plain["cov_robust"] = plain_data(self.covariance("robust").tolist())
        if not self.spec.has_effects:
            return plain
        known: dict[EffectCovariance, bool] = {
            "joint": True,
            "bauer": self.spec.is_simple(self.facts),
            "robust": robust,
        }
        plain["effects"] = {name: _rows(self.effects(name, at=at)) for name, use in known.items() if use}
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
        return escape_control(
            json.dumps(self.to_dict(**tables), indent=indent, allow_nan=False, ensure_ascii=False), "\n"
        )

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
