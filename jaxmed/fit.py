"""Data and a specification become a fit: the one orchestration."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array

from jaxmed import effects as effects_
from jaxmed import inference, likelihood, optimise, store, summary
from jaxmed._runtime import float64, progress
from jaxmed.checks import check_identified
from jaxmed.errors import ConvergenceWarning, DataError, FitError, SpecError, Status
from jaxmed.frame import read
from jaxmed.intervals import check_level, critical_value, normal_table
from jaxmed.likelihood import Data
from jaxmed.moments import Floats, Moments
from jaxmed.optimise import Solution
from jaxmed.params import Layout, make_layout, make_scale, root_and_precision
from jaxmed.predict import predict_clusters
from jaxmed.result import Estimates, fields_from_dict, plain_data
from jaxmed.spec import Mediation, Spec, System, system_of

MANY_CLUSTERS = 100_000  # from here on a fit starts at the optimum of a subsample
SUBSAMPLE = 2_000  # clusters in it, at least


def fit(
    data: Any,
    spec: Spec | None = None,
    *,
    x: str | None = None,
    m: str | None = None,
    y: str | None = None,
    cluster: str | None = None,
    reml: bool = True,
    max_iter: int = 100,
) -> Fit:
    """Fit a multilevel mediation model, or any system of mixed equations, by its exact marginal likelihood.

    Parameters
    ----------
    data : frame, path or Moments
        pandas, polars (eager or lazy), pyarrow, DuckDB or PySpark frame, or a path to .csv, .parquet, .dta, .feather.
        One row per observation. Rows with a missing outcome still count in the other equation. ``fit.moments`` of an
        earlier fit stands for its data and saves reading it again.
    spec : Mediation or System, optional
        The model. Without it, the 1-1-1 model of ``x``, ``m``, ``y`` and ``cluster`` with all coefficients random.
    x, m, y, cluster : str, optional
        Columns of predictor, mediator, outcome and cluster id, instead of ``spec``.
    reml : bool
        Restricted maximum likelihood (default) or maximum likelihood.
    max_iter : int
        Newton iterations at the most.

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
        The optimiser ended without its certificate; ``fit.status`` and ``fit.message`` say why.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> fit.converged
    True
    >>> list(fit.effects().index)
    ['a', 'b', 'c_prime', 'cov_ab', 'indirect', 'total']
    """
    spec = _spec(spec, x, m, y, cluster)
    if isinstance(max_iter, bool) or not isinstance(max_iter, (int, np.integer)) or max_iter < 1:
        raise SpecError(f"max_iter={max_iter!r} must be a whole number of at least 1")
    if not isinstance(reml, (bool, np.bool_)):
        raise SpecError(f"reml={reml!r} must be True (REML) or False (maximum likelihood)")
    system = system_of(spec)
    moments = data.for_system(system) if isinstance(data, Moments) else read(data, system)
    check_identified(system, moments)
    layout = make_layout(system, moments, bool(reml))
    solution, covariances = _solve(system, layout, moments, int(max_iter))
    return _assemble(spec, system, layout, moments, solution, covariances)


def _spec(spec: Spec | None, x: str | None, m: str | None, y: str | None, cluster: str | None) -> Spec:
    roles = {"x": x, "m": m, "y": y, "cluster": cluster}
    if spec is not None:
        given = [role for role, name in roles.items() if name is not None]
        if given:
            raise SpecError(f"give either a model or its columns, not both (got a model and {given})")
        system_of(spec)
        return spec
    absent = [role for role, name in roles.items() if name is None]
    if absent:
        raise SpecError(
            f"which columns are {', '.join(absent)}? Name x, m, y and cluster, or pass a Mediation or System"
        )
    return Mediation(**roles)  # type: ignore[arg-type]


@float64
def _solve(system: System, layout: Layout, moments: Moments, max_iter: int) -> tuple[Solution, inference.Covariances]:
    """Optimise and infer. Very many clusters start from the optimum of some thousand of them, evenly picked."""
    table = moments.table
    start = jnp.asarray(optimise.starting_values(system, layout, moments))
    if moments.n_clusters < MANY_CLUSTERS:
        return _compiled(layout, likelihood.make_data(table, moments.intake.used), start, max_iter)
    part = slice(None, None, moments.n_clusters // SUBSAMPLE)
    counts = tuple(int(moments.row_counts(group)[part].sum()) for group in system.groups)
    sample, _ = _compiled(layout, likelihood.make_data(table[:, part], counts), start, max_iter)
    if int(sample.status) == Status.CONVERGED:
        start = sample.theta
    data = jax.device_put(likelihood.make_data(table, moments.intake.used))
    with progress(f"fitting {moments.n_clusters} clusters") as say:
        solution = optimise.solve_in_steps(
            layout, data, start, max_iter, lambda step, left: say(f"Newton step {step}, {left:.1e} left to gain")
        )
    return solution, _covariances(layout, solution.theta, solution.evaluation)


@partial(jax.jit, static_argnums=0)
def _compiled(layout: Layout, data: Data, start: Array, max_iter: int) -> tuple[Solution, inference.Covariances]:
    solution = optimise.solve(layout, data, start, max_iter)
    return solution, inference.covariances(layout, solution.theta, solution.evaluation)


_covariances = jax.jit(inference.covariances, static_argnums=0)


def _assemble(
    spec: Spec, system: System, layout: Layout, moments: Moments, solution: Solution, found: inference.Covariances
) -> Fit:
    """Estimates on the user's scale, with everything a reader asks of them."""
    theta = np.asarray(solution.theta)
    counts = [moments.row_counts(group) for group in system.groups]
    mean_square = np.array(
        [
            moments.totals((name,))[0, 0] / counts[e].sum()
            for e, equation in enumerate(system.equations)
            for name in equation.random
        ]
    )
    singular = inference.is_singular(layout, theta, mean_square)
    reduced_rank = singular and not np.all(np.isfinite(found.joint))
    if reduced_rank:
        found = inference.rank_constrained(layout, theta, solution.evaluation)
    scale = make_scale(system, layout, moments)
    offset = np.concatenate([scale.offset, np.zeros(layout.n_theta)])
    sizes = np.sum(counts, axis=0)
    null, null_pooled = inference.null_models(system, moments, layout.reml)
    made = int(np.sum(np.isfinite(solution.trace[:, 1])))
    fit = Fit(
        spec=spec,
        reml=layout.reml,
        values=scale.matrix @ found.values + offset,
        joint=scale.matrix @ found.joint @ scale.matrix.T,
        block=scale.matrix @ found.block @ scale.matrix.T,
        free=layout.free,
        loglik=float(scale.loglik - solution.evaluation.value),
        null=null,
        null_pooled=null_pooled,
        intake=moments.intake,
        cluster_sizes=(int(sizes.min()), float(sizes.mean()), int(sizes.max())),
        n_clusters=moments.n_clusters,
        status=int(solution.status),
        n_iter=int(solution.n_iter),
        grad_norm=float(solution.grad_norm),
        decrement=float(solution.decrement),
        singular=singular,
        reduced_rank=reduced_rank,
        trace=tuple((int(stage), float(f), float(left)) for stage, f, left in solution.trace[:made]),
        theta=theta,
        moments=moments,
    )
    if not fit.converged:
        warnings.warn(fit.message, ConvergenceWarning, stacklevel=3)
    return fit


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Estimates):
    """A fitted model: estimates, tests, effects, predictions, tables and plain data.

    Attributes beyond those of :class:`jaxmed.result.Estimates`:

    theta : ndarray
        Optimiser's parameters at the optimum, on the working scale.
    moments : Moments
        The data, as cross-products per cluster.
    """

    theta: Floats = field(repr=False)
    moments: Moments = field(repr=False)

    def effects(self, se: str = "joint", level: float = 0.95, at: Any = None) -> pd.DataFrame:
        """Paths, cov(a_j, b_j), average indirect and total effect with standard errors and intervals.

        Parameters
        ----------
        se : {"joint", "bauer"}
            First-order delta method on the joint covariance of all parameters, or the formulas of Bauer, Preacher &
            Gil (2006) on the block covariance, as in the worked Stata example. For ``"bauer"`` at level .95 the
            limits of indirect and total use that example's 1.96; all others use the exact normal quantile.
        level : float
            Confidence level.
        at : None
            Values of moderators; this model has none.

        Returns
        -------
        DataFrame
            Index ``a, b, c_prime, cov_ab, indirect, total``; columns ``estimate, se, z, p, ci_lower, ci_upper``.

        Raises
        ------
        FitError
            The model is not a :class:`Mediation`.
        """
        if at is not None:
            raise SpecError(f"at={at!r}: this model has no moderators, so effects do not depend on values of any")
        critical: float | Floats = critical_value(level)
        if se not in ("joint", "bauer"):
            raise SpecError(f"se={se!r} is not known; choose 'joint' or 'bauer'")
        paths = self._paths()
        if se == "joint":
            estimate, error = effects_.delta(paths, self.values, self.joint)
        else:
            estimate, error = effects_.bauer(paths, self.values, self.block)
            if level == 0.95:
                critical = np.where(np.isin(effects_.NAMES, ("indirect", "total")), 1.96, critical)
        return normal_table(effects_.NAMES, estimate, error, critical)

    def _paths(self) -> effects_.Paths:
        if not isinstance(self.spec, Mediation):
            raise FitError(
                "effects are defined for a jaxmed.Mediation; this fit is of a System, whose coefficients are in params"
            )
        labels = list(self.labels)
        at = {name: labels.index(label) for name, label in self.spec.paths.items()}
        pair = f"{self.spec.paths['a']}~~{self.spec.paths['b']}"
        return effects_.Paths(**at, cov_ab=labels.index(pair) if pair in labels else None)

    def intervals(self, method: str = "delta", level: float = 0.95, seed: int | None = None) -> pd.DataFrame:
        """Intervals for the effects; ``"delta"`` is that of ``effects(se="joint")`` and needs no seed."""
        if method != "delta":
            raise SpecError(f"method={method!r} is not known; choose 'delta'")
        return self.effects(level=level)

    def ranef(self) -> pd.DataFrame:
        """Predictions for every cluster (empirical Bayes), on the user's scale.

        Returns
        -------
        DataFrame
            One row per cluster. For every random effect, by its label, the deviation u_j from the fixed effect, and
            ``<label>_se``. For a mediation model also ``a``, ``b`` (fixed effect plus deviation) and ``ab``, the
            expected product E[a_j b_j | data] = a_j b_j + Cov(a_j, b_j | data), each with ``_se``. Standard errors are
            those of prediction error: they include the uncertainty of the fixed effects and take the variance
            parameters as known (Henderson's mixed-model equations).

        Raises
        ------
        FitError
            The model has no random effects.
        """
        return predict_clusters(self, self.theta, self.moments)

    def summary(self, se: str = "joint", level: float = 0.95) -> str:
        """Tables for a terminal.

        ``se="bauer"`` prints the numbers of the worked Stata example: block standard errors, its effect formulas, and
        the variance of its extra random effect.
        """
        return summary.text(self, self._effects_or_none(se, level), se, check_level(level))

    def _effects_or_none(self, se: str, level: float) -> pd.DataFrame | None:
        return self.effects(se, level) if isinstance(self.spec, Mediation) else None

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return summary.html(self, self._effects_or_none("joint", 0.95), "joint", 0.95)

    def to_dict(self) -> dict[str, Any]:
        """Plain data under the public names; see also :meth:`to_json` and :meth:`save`."""
        plain = super().to_dict() | {"theta": self.theta.tolist()}
        if isinstance(self.spec, Mediation):
            plain["effects"] = {se: plain_data(self.effects(se).to_dict(orient="index")) for se in ("joint", "bauer")}
        return plain

    def to_json(self, indent: int | None = 1) -> str:
        """JSON text of :meth:`to_dict`; numbers keep all their digits, NaN is null."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        """Write the fit and its moments to one file (a zip of JSON and NumPy arrays, no pickle), all or nothing.

        :func:`jaxmed.load` reads it back. The rows of the data are not in it, only cross-products per cluster.
        """
        store.write(path, self.to_dict(), self.moments)


def load(path: str | Path, verify: bool = False) -> Fit:
    """Read a fit that :meth:`Fit.save` wrote.

    Parameters
    ----------
    path : path
    verify : bool
        Evaluate the likelihood again at the stored estimates, from the stored moments, and compare.

    Raises
    ------
    DataError
        No such file, or not a saved fit.
    FitError
        ``verify`` found another log likelihood than the stored one.
    """
    plain, moments = store.read(path)
    try:
        fit = Fit(**fields_from_dict(plain), theta=np.array(plain["theta"], dtype=float), moments=moments)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, SpecError):
            raise
        raise DataError(f"{str(path)!r} is not a fit that jaxmed saved, or is damaged ({error!r})") from error
    if verify:
        again = _loglik(fit)
        if not abs(again - fit.loglik) <= 1e-9 * (1 + abs(fit.loglik)):
            raise FitError(f"{str(path)!r}: log likelihood is {again!r} from its moments, but {fit.loglik!r} is stored")
    return fit


def _loglik(fit: Fit) -> float:
    """Log likelihood at the fit's estimates, evaluated from its moments."""
    layout = make_layout(fit.system, fit.moments, fit.reml)
    data = likelihood.make_data(fit.moments.table, fit.moments.intake.used)
    return make_scale(fit.system, layout, fit.moments).loglik - float(_value(layout, fit.theta, data))


@float64
@partial(jax.jit, static_argnums=0)
def _value(layout: Layout, theta: Array, data: Data) -> Array:
    return likelihood.value(layout, *root_and_precision(layout, theta), data)
