"""``jaxmed.fit``: a model from what the caller says, and its fit."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from jaxmed._data import Missing
from jaxmed._likelihood import EngineChoice
from jaxmed._model import MODEL, Mediation, Spec, check_spec
from jaxmed._results.estimation import estimate
from jaxmed._results.result import Fit
from jaxmed._support import (
    SpecError,
)

OPTIONS = tuple(name for name in MODEL if name not in ("x", "m", "y", "cluster"))
OWN = ("reml", "missing", "max_iter", "distributed", "engine")


def fit(
    data: Any,
    spec: Spec | None = None,
    *,
    x: str | None = None,
    m: str | None = None,
    y: str | None = None,
    cluster: str | None = None,
    reml: bool = True,
    missing: Missing = "available",
    max_iter: int = 100,
    distributed: bool = False,
    engine: EngineChoice = "auto",
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
    engine : {"auto", "numpy", "jax"}
        What computes the fit: NumPy at once, or a program that JAX compiles in seconds and runs on all cores and
        devices. By default the size of the model and of the data decides (docs/scale.md). Both give the same to 1e-8
        standard errors.
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
        The optimiser ended without meeting its convergence criterion, the log likelihood is flat at its maximum
        (no joint standard errors), there are no more clusters than random effects that covary, effects between
        clusters depend on a weakly identified covariance of intercepts, or double precision leaves few correct digits;
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
    return estimate(
        Fit, data, spec, reml=reml, missing=missing, max_iter=max_iter, distributed=distributed, engine=engine
    )


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
