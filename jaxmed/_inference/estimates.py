"""The frozen record of a fit: NumPy arrays inside, pandas out, plain data in and out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxmed._data import Moments, SampleSummary
from jaxmed._inference.choices import Covariance, WholeCovariance
from jaxmed._inference.estimability import Estimable, Working, delta
from jaxmed._inference.hypothesis_tests import TestResult, chi_squared
from jaxmed._inference.messages import fewer_covariances, negative_icc_notes, parameter_in_words
from jaxmed._inference.record import estimates_to_dict
from jaxmed._likelihood import EngineChoice, Problem, make_problem
from jaxmed._model import INTERCEPT, DataFacts, Spec, System
from jaxmed._support import (
    FitError,
    Floats,
    SpecError,
    Status,
    check_choice,
    check_flag,
    escape_control,
    one_or_more,
    renamed,
    root,
    symmetric,
)

NAMED = 8  # parameters in a message; ``Estimates.unknown`` has all
Null = Literal["separate", "pooled"]
IMPRECISE = 1e7  # standard errors are right to 1e-6 at 1e6, and wrong in the second digit at 1e8


def problem_of(fit: Estimates, moments: Moments) -> Problem:
    """The likelihood that a fit maximised, given the moments of its data."""
    return make_problem(fit.system, moments, fit.reml, known_rows=fit.sample_summary.used, engine=fit.engine)


@dataclass(frozen=True, eq=False, repr=False)
class Estimates:
    """Everything a fit found, on the user's scale.

    Attributes
    ----------
    spec : Mediation or System
    facts : DataFacts
        What the data said about the model: categories, and columns that do not vary within clusters.
    moderator_values : dict
        Moderator -> the values at which effects are shown unless others are asked for.
    moderator_means : dict
        Column of a moderator -> its mean over the rows of all processes, where there were several.
    remarks : tuple of str
        What was noticed about the model on these data.
    cautions : tuple of str
        Why some effects should not be read.
    negative_icc : dict
        Outcome -> intraclass correlation of its residuals, where it is negative.
    reml : bool
    values : ndarray, shape (p + n,)
        (fixed effects, free entries of G row by row, residual variances, residual covariances).
    joint, block : ndarray, shape (p + n, p + n)
        Covariances of ``values``.
    working : Working
        The same in the units of the optimiser.
    estimable : Estimable or None
        Of a flat maximum: what is identified in spite of it.
    free : tuple of (int, int)
        Entries of G that ``values`` holds; the others are zero.
    loglik : float
        Maximised log likelihood (restricted if ``reml``).
    null, null_pooled : (float, int)
        Log likelihood without random effects and its number of residual variances: one per outcome, and one for all.
    sample_summary : SampleSummary
        Rows read, used and left out.
    cluster_sizes : (int, float, int)
        Smallest, mean and largest number of stacked rows per cluster.
    n_clusters : int
    status, n_iter, grad_norm, decrement
        How the optimiser ended; see :class:`jaxmed._support.errors.Status`.
    singular : bool
        G is at its boundary: a variance of zero or a correlation of one.
    reduced_rank : bool
        Covariances take the rank of a singular G as known, because the Hessian in G itself is indefinite there.
    largest_share : float
        The largest variance that a random effect adds to its outcome, in units of the residual variance.
    trace : tuple of (int, float, float)
        Stage, negative log likelihood and Newton decrement by iteration, on the working scale.
    engine : {"auto", "numpy", "jax"}
        What computed the fit, and computes what follows from it; "auto" of a loaded fit, whose size decides.
    """

    spec: Spec
    facts: DataFacts
    moderator_values: dict[str, tuple[float | str, ...]]
    moderator_means: dict[str, float] = field(kw_only=True, default_factory=dict)
    remarks: tuple[str, ...] = field(kw_only=True, default=())
    cautions: tuple[str, ...] = field(kw_only=True, default=())
    negative_icc: dict[str, float] = field(kw_only=True, default_factory=dict)
    reml: bool
    values: Floats
    joint: Floats
    block: Floats
    working: Working = field(repr=False)
    estimable: Estimable | None = field(kw_only=True, repr=False, default=None)
    free: tuple[tuple[int, int], ...]
    loglik: float
    null: tuple[float, int]
    null_pooled: tuple[float, int]
    sample_summary: SampleSummary
    cluster_sizes: tuple[int, float, int]
    n_clusters: int
    status: int
    n_iter: int
    grad_norm: float
    decrement: float
    singular: bool
    reduced_rank: bool
    largest_share: float
    trace: tuple[tuple[int, float, float], ...] = field(repr=False)
    engine: EngineChoice = field(kw_only=True, default="auto")

    def __repr__(self) -> str:
        kind = "REML" if self.reml else "ML"
        return escape_control(
            f"<{type(self).__name__} of {', '.join(self.system.outcomes)}: {kind}, log likelihood {self.loglik:.4f}, "
            f"{self.n_clusters} clusters, {Status(self.status).name.lower()}>"
        )

    # Names -----------------------------------------------------------------------------------------------------------

    @cached_property
    def system(self) -> System:
        """The system of equations behind ``spec``, as these data could answer it."""
        return self.spec.system(self.facts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the data changed about the model, and what looks odd in the data or in the model on them."""
        changed = self.spec.notes(self.facts)
        negative = negative_icc_notes(self.negative_icc, self.facts)
        return tuple(dict.fromkeys((*changed, *self.sample_summary.remarks, *self.remarks, *negative)))

    @property
    def default_covariance(self) -> WholeCovariance:
        """Covariance of standard errors of effects by default: "joint", or "robust" where there is ``negative_icc``."""
        return "robust" if self.negative_icc else "joint"

    @property
    def default_se(self) -> WholeCovariance:
        """Former name of :attr:`default_covariance`."""
        return self.default_covariance

    @property
    def intake(self) -> SampleSummary:
        """Former name of ``sample_summary``; see also :attr:`jaxmed.Fit.sample`."""
        return self.sample_summary

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all entries of ``values``, see :attr:`jaxmed.System.parameter_labels`."""
        return self.system.parameter_labels

    @property
    def _n_fixed(self) -> int:
        return len(self.system.labels)

    # Estimates -------------------------------------------------------------------------------------------------------

    @property
    def fixed(self) -> dict[str, float]:
        """Fixed effects by label."""
        return dict(zip(self.system.labels, self.values.tolist(), strict=False))

    @property
    def params(self) -> pd.Series:
        """Fixed effects by label."""
        return pd.Series(self.values[: self._n_fixed], index=self.system.labels, name="estimate")

    @property
    def bse(self) -> pd.Series:
        """Joint standard errors of the fixed effects by label."""
        return self.standard_errors("joint")

    @renamed(kind="covariance")
    def standard_errors(self, covariance: Covariance = "joint") -> pd.Series:
        """Standard errors of the fixed effects by any covariance: "joint", "block" or "robust".

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> (fit.standard_errors("joint") / fit.standard_errors("block")).round(3).to_dict()
        {'m~1': 1.002, 'm~x': 1.004, 'y~1': 1.027, 'y~m': 1.057, 'y~x': 1.094}
        """
        diagonal = np.diag(self.covariance(covariance))[: self._n_fixed]
        return pd.Series(root(diagonal), index=self.system.labels, name="se")

    @renamed(kind="covariance")
    def covariance(self, covariance: Covariance = "joint") -> Floats:
        """Covariance of ``values``, shape (p + n, p + n); ``"robust"`` of a fit that holds its moments.

        Raises
        ------
        SpecError
            Another covariance.
        FitError
            ``"robust"`` of estimates alone, or of a fit that holds only some of its clusters.
        """
        check_choice("covariance", covariance, Covariance)
        if covariance == "robust":
            return self._where_identified(self._robust)
        return self.joint if covariance == "joint" else self.block

    def _where_identified(self, covariance: Floats) -> Floats:
        """A covariance with NaN where the joint one has it."""
        return np.where(np.isnan(self.joint), np.nan, covariance)

    @renamed(kind="covariance")
    def errors(self, jacobian: Any, covariance: Covariance = "joint") -> Floats:
        """First-order standard errors of functions of ``values``, from their derivatives, shape (..., p + n).

        NaN where the function is not identified. At a flat maximum some functions are, such as the total effect
        between clusters, although its parts are not.

        Raises
        ------
        SpecError
            Derivatives that are no numbers by parameter; another covariance.
        FitError
            As :meth:`covariance`.

        Examples
        --------
        >>> import numpy as np
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> bool(np.allclose(fit.errors(np.eye(22)[:5]), fit.bse))
        True
        """
        matrix = self.generalized(covariance)
        try:
            jacobian = np.asarray(jacobian, dtype=float)
        except (TypeError, ValueError):
            jacobian = np.zeros(0)
        if jacobian.shape[-1:] != (self.n_params,):
            raise SpecError(f"jacobian must be numbers with one column for each of the {self.n_params} parameters")
        if self.estimable is None:
            return delta(jacobian, matrix)
        return self.estimable.errors(jacobian, matrix, self._n_fixed if covariance == "block" else 0)

    @renamed(kind="covariance")
    def generalized(self, covariance: Covariance = "joint") -> Floats:
        """As :meth:`covariance`; at a flat maximum whole, by a generalised inverse.

        Right for what :meth:`errors` gives an error of, and meaningless for the rest.

        Raises
        ------
        SpecError, FitError
            As :meth:`covariance`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> bool((fit.generalized() == fit.covariance()).all())
        True
        """
        check_choice("covariance", covariance, Covariance)
        if self.estimable is None:
            return self.covariance(covariance)
        if covariance == "robust":
            return self._robust
        whole = self.estimable
        return whole.joint if covariance == "joint" else whole.block

    @property
    def _robust(self) -> Floats:
        """Cluster-robust covariance of ``values``: a :class:`jaxmed.Fit` has it, estimates alone do not suffice."""
        raise FitError("covariance='robust' needs the moments of a fit, and these are estimates alone")

    @renamed(kind="covariance")
    def cov_params(self, covariance: Covariance = "joint", full: bool = False) -> pd.DataFrame:
        """Covariance of the fixed effects; with ``full``, of all parameters (labels as in :attr:`labels`).

        ``"joint"`` takes account of the variance parameters being estimated; ``"block"`` does not, as in nlme, lme4
        and Stata, and its standard errors of b and c' are too small in a stacked model (docs/method.md). ``"robust"``
        is the cluster-robust sandwich, which does not rest on normality (:meth:`jaxmed.Fit.robust_cov`).

        Raises
        ------
        SpecError, FitError
            As :meth:`covariance`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> fit.cov_params().shape, fit.cov_params(full=True).shape
        ((5, 5), (22, 22))
        """
        labels = self.labels if check_flag("full", full) else self.system.labels
        matrix = self.covariance(covariance)[: len(labels), : len(labels)]
        return pd.DataFrame(matrix, index=labels, columns=labels)

    @property
    def _in_g(self) -> slice:
        return slice(self._n_fixed, self._n_fixed + len(self.free))

    @property
    def random_cov(self) -> pd.DataFrame:
        """G, the covariance of the random effects."""
        return self._random_table(self.values, 0.0)

    @property
    def random_cov_se(self) -> pd.DataFrame:
        """Joint standard errors of the entries of G; NaN for entries held at zero."""
        return self.random_cov_errors("joint")

    @renamed(kind="covariance")
    def random_cov_errors(self, covariance: Covariance = "joint") -> pd.DataFrame:
        """Standard errors of the entries of G by any covariance; NaN for entries held at zero."""
        return self._random_table(root(np.diag(self.covariance(covariance))), np.nan)

    def _random_table(self, of: Floats, elsewhere: float) -> pd.DataFrame:
        labels = self.system.random_labels
        matrix = symmetric(len(labels), self.free, of[self._in_g], elsewhere)
        return pd.DataFrame(matrix, index=labels, columns=labels)

    @property
    def _in_residual(self) -> slice:
        return slice(self._in_g.stop, self._in_g.stop + len(self.system.outcomes))

    @property
    def residual_var(self) -> pd.Series:
        """Residual variances by outcome."""
        return pd.Series(self.values[self._in_residual], index=self.system.outcomes, name="estimate")

    @property
    def residual_var_se(self) -> pd.Series:
        """Standard errors of the residual variances."""
        return pd.Series(root(np.diag(self.joint))[self._in_residual], index=self.system.outcomes, name="se")

    @property
    def residual_cov(self) -> pd.DataFrame:
        """Covariance of the residuals of one row, by outcome; zero where they are independent."""
        return self._residual_table(self.values, 0.0)

    @property
    def residual_cov_se(self) -> pd.DataFrame:
        """Joint standard errors of :attr:`residual_cov`; NaN for entries held at zero."""
        return self.residual_cov_errors("joint")

    @renamed(kind="covariance")
    def residual_cov_errors(self, covariance: Covariance = "joint") -> pd.DataFrame:
        """Standard errors of :attr:`residual_cov` by any covariance; NaN for entries held at zero."""
        return self._residual_table(root(np.diag(self.covariance(covariance))), np.nan)

    def _residual_table(self, of: Floats, elsewhere: float) -> pd.DataFrame:
        outcomes = self.system.outcomes
        pairs = [*((e, e) for e in range(len(outcomes))), *self.system.residual_pairs]
        matrix = symmetric(len(outcomes), pairs, of[self._in_g.stop :], elsewhere)
        return pd.DataFrame(matrix, index=outcomes, columns=outcomes)

    # Fit statistics --------------------------------------------------------------------------------------------------

    @property
    def nobs(self) -> int:
        """Stacked rows: the rows of every equation together; of an equation of level 2, clusters."""
        return sum(self.sample_summary.used)

    @property
    def n_params(self) -> int:
        """Fixed effects, free entries of G, residual variances and covariances."""
        return len(self.values)

    @property
    def aic(self) -> float:
        """-2 loglik + 2 n_params."""
        return -2 * self.loglik + 2 * self.n_params

    @property
    def bic(self) -> float:
        """-2 loglik + n_params log(nobs)."""
        return -2 * self.loglik + self.n_params * float(np.log(self.nobs))

    @property
    def converged(self) -> bool:
        """Whether the optimiser met its convergence criterion."""
        return self.status == Status.CONVERGED

    @property
    def imprecise(self) -> bool:
        """Whether double precision leaves few correct digits: ``largest_share`` is above 1e7 (docs/reliability.md)."""
        return self.largest_share > IMPRECISE

    @property
    def largest_group(self) -> int:
        """Random effects that covary freely with each other, of the largest such group; 0 without random effects."""
        of = np.array(self.free, dtype=int).reshape(-1, 2)
        return int(np.max(np.bincount(of.ravel()), initial=1)) - 1

    @property
    def too_few_clusters(self) -> bool:
        """Whether there are no more clusters than random effects that covary freely, so that G is singular."""
        return self.n_clusters <= self.largest_group > 1

    @property
    def flat(self) -> bool:
        """Whether some joint standard errors are NaN: the log likelihood is flat in a direction that moves these.

        Or the point is no maximum; then all of them are.
        """
        return not np.all(np.isfinite(self.joint))

    @property
    def unknown(self) -> list[str]:
        """Parameters without a joint standard error, as tables name them; see :attr:`flat`."""
        return list(map(parameter_in_words, self._unidentified))

    @property
    def _unidentified(self) -> list[str]:
        return [self.labels[k] for k in np.flatnonzero(np.isnan(np.diag(self.joint)))]

    @property
    def message(self) -> str:
        """How the optimiser ended, what it means and what helps."""
        text, unknown, fewer = Status(self.status).message, self.unknown, "consider fewer random effects"
        if unknown:
            text = text.removesuffix(" and Hessian positive definite")
        if self.singular:
            text += (
                "; singular: a random-effect variance is zero or a correlation is one, so standard errors of "
                f"(co)variances and intervals that rest on normality are rough; {fewer}"
            )
        if self.too_few_clusters:
            text += (
                f"; {self.n_clusters} clusters do not identify the covariance of {self.largest_group} random effects"
            )
        if len(unknown) == len(self.labels):
            text += (
                "; the Hessian in (G, residual variances) is not positive definite, so joint standard errors are not "
                f"available: block standard errors of the fixed effects are; {fewer}"
            )
        elif unknown:
            some = [*unknown[:NAMED], f"{len(unknown) - NAMED} others"] if len(unknown) > NAMED + 1 else unknown
            text += (
                f"; not identified: the likelihood is flat in {', '.join(some)}, or in variances that their standard "
                f"errors depend on, so they have no joint standard errors; {fewer}"
            )
            text += fewer_covariances(self.spec, self.facts, self._unidentified)
        text += "".join(f"; {caution}" for caution in self.cautions)
        if self.reduced_rank and len(unknown) < len(self.labels):
            text += "; standard errors take the rank of the random-effects covariance as known"
        if self.imprecise:
            text += (
                f"; imprecise: a random effect varies {self.largest_share:.0e} times as much as the residual of its "
                "outcome, which leaves standard errors and the log likelihood few correct digits in double precision; "
                "check the column, or fit the outcome without what hardly varies"
            )
        return text

    # Tests -----------------------------------------------------------------------------------------------------------

    def lr_test(self, null: Null = "separate") -> TestResult:
        """Likelihood-ratio test against the model without random effects.

        Parameters
        ----------
        null : {"separate", "pooled"}
            The null model has one residual variance per outcome, or one for all outcomes together. The latter is what
            Stata's ``mixed`` prints for a stacked model as "LR test vs. linear regression".

        Returns
        -------
        TestResult
            df: free entries of G, and how many residual (co)variances the model has more than the null model.

        Raises
        ------
        SpecError
            Another null model.

        Notes
        -----
        The variances are tested on their boundary, so the chi-squared p is conservative. Under REML both models have
        the same fixed effects, so the restricted likelihoods compare.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> test = fit.lr_test()
        >>> round(test.statistic, 1), test.df
        (987.0, 15)
        """
        check_choice("null", null, Null)
        loglik, n_variances = self.null if null == "separate" else self.null_pooled
        df = len(self.free) + len(self.system.outcomes) + len(self.system.residual_pairs) - n_variances
        what = "one residual variance per outcome" if null == "separate" else "a single residual variance"
        if self.system.residual_pairs:
            what += ", independent residuals"
        return chi_squared(2 * (self.loglik - loglik), df, f"no random effects ({what})")

    @renamed(kind="covariance")
    def wald(
        self, terms: str | tuple[str, ...] | list[str] | None = None, covariance: Covariance = "joint"
    ) -> TestResult:
        """Wald test that fixed effects are all zero.

        Parameters
        ----------
        terms : str or list of str, optional
            Labels to test. By default all; with a single equation all but its intercept, the usual overall test.
        covariance : {"joint", "block", "robust"}
            Of the fixed effects; Stata's ``mixed`` prints the block one.

        Returns
        -------
        TestResult
            b' V^-1 b of the k terms, df k; NaN where one has no standard error, and its hypothesis says which.

        Raises
        ------
        SpecError
            Unknown or repeated terms, another covariance.
        FitError
            As :meth:`covariance`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> test = fit.wald(["m~x", "y~m"])
        >>> round(test.statistic, 1), test.df
        (175.6, 2)
        """
        labels = list(self.system.labels)
        if terms is None:
            single = len(self.system.equations) == 1
            intercept = f"{self.system.outcomes[0]}~{INTERCEPT}"
            terms = [label for label in labels if not (single and len(labels) > 1 and label == intercept)]
        terms = one_or_more(terms)
        known = [term for term in terms if isinstance(term, str) and term in labels]
        if not terms or len(set(known)) < len(terms):
            raise SpecError(f"terms={terms!r}: choose from {labels}, each once")
        at = [labels.index(term) for term in terms]
        hypothesis = f"{', '.join(terms)} = 0"
        matrix = self.covariance(covariance)[np.ix_(at, at)]
        if not np.all(np.isfinite(matrix)):
            identified = np.isfinite(np.diag(matrix))
            without = [term for term, one in zip(terms, identified, strict=True) if not one]
            why = f"{hypothesis} (no standard error of {', '.join(without)}: read fit.message)"
            return TestResult(float("nan"), len(at), float("nan"), why)
        try:
            statistic = float(self.values[at] @ np.linalg.solve(matrix, self.values[at]))
        except np.linalg.LinAlgError:  # x so far from zero that intercept and slope are one number
            statistic = float("nan")
        return chi_squared(statistic, len(at), hypothesis)

    # Plain data ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data (dicts, lists, numbers, text; NaN as None) under the public names."""
        return estimates_to_dict(self)
