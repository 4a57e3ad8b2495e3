"""The bootstrap: data sets made from a fit, refitted by the thousand, in shards that can stop and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxmed._refit import (
    Fitted,
    Refitter,
    Rows,
    RowsNeededError,
    fitted,
    given_rows,
    make_refitter,
    sample_rows,
    with_size,
)
from jaxmed._results import Fit, check_is_fit
from jaxmed._simulation.replicates import Origin, Replicates, make_origin, make_table, read_replicates
from jaxmed._support import (
    ConvergenceWarning,
    DataError,
    DesignWarning,
    FitError,
    Ledger,
    as_folder,
    check_choice,
    check_count,
    check_shard,
    claim,
    counted,
    interrupted,
    open_folder,
    stream,
    warn_caller,
)

BootstrapMethod = Literal["parametric", "cluster", "residual", "two_stage"]
MOST = 10_000_000  # replicates


def bootstrap(
    fit: Fit,
    n: int,
    method: BootstrapMethod = "parametric",
    *,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    out: str | Path | None = None,
    data: Any = None,
    at: Mapping[str, Any] | None = None,
    batch: int | None = None,
) -> Replicates:
    """Bootstrap a fit: make ``n`` data sets, fit the model to each, and keep all estimates.

    Replicate i depends on the seed and on i alone: shards, batches, devices and interruptions do not change its draw.

    Parameters
    ----------
    fit : Fit
    n : int
        Replicates in all, of all shards together.
    method : {"parametric", "cluster", "residual", "two_stage"}
        ``"parametric"``: random effects and residuals from the fitted model, generative: m is drawn, and then y from
        that m. Cross-products are drawn, not rows, so that clusters of 8 rows cost the same as clusters of 8 million;
        where a term multiplies an outcome by something that varies within clusters rows are needed, and ``data``.
        ``"cluster"``: clusters drawn with replacement; one drawn twice is two clusters.
        ``"residual"``: predicted random effects and residuals, reflated to the covariances of the model and drawn with
        replacement (Carpenter, Goldstein & Rasbash 2003), generative; needs ``data``.
        ``"two_stage"``: clusters drawn with replacement, and rows with replacement within each; needs ``data``.
    seed : int
        Same seed, same draws.
    shard : (int, int)
        ``(i, k)`` computes part i = 0..k - 1 of k parts of the replicates, in whole batches: with fewer batches than
        parts some parts are empty.
    out : path, optional
        Folder to write to while the work goes on, every ten seconds, each file all or nothing. What is there already is
        not computed again, so that the same call goes on where an interrupted one stopped, and a larger ``n`` adds
        to a smaller one. Shards may share the folder; :func:`jaxmed.load_replicates` puts them together.
    data : frame or path, optional
        The data of the fit, for methods that need rows.
    at : dict, optional
        Values of moderators at which to compute effects, as in :meth:`Fit.effects`.
    batch : int, optional
        Replicates that are computed together; by default up to 256, fewer for very many clusters. Estimates of other
        batches agree to rounding.

    Returns
    -------
    Replicates
        Of this shard.

    Raises
    ------
    SpecError
        An unknown method, a count or seed that is no whole number, a shard that is none.
    DataError
        ``data`` are not those of the fit; ``out`` holds replicates of something else, or damaged files.
    FitError
        Rows are needed and ``data`` is not given; the fit did not converge; ``out`` cannot be written.

    Warns
    -----
    ConvergenceWarning
        The likelihood of the fit is flat at its maximum.
    DesignWarning
        The residuals of the fit are negatively correlated within clusters, and the method does not keep that.

    Notes
    -----
    Ctrl-C writes what is done to ``out``; without ``out`` the exception carries it as ``error.replicates``.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> replicates = jm.bootstrap(fit, 200, seed=1)
    >>> len(replicates), len(replicates.failures())
    (200, 0)
    >>> bool(0.4 < replicates.intervals().loc["indirect", "ci_lower"] < 0.5)
    True
    """
    n, seed = check_count("n", n, 1, MOST), check_count("seed", seed, 0)
    part, parts = check_shard(shard)
    check_is_fit(fit, "bootstrap")
    check_choice("method", method, BootstrapMethod)
    if not fit.converged:
        raise FitError(f"this fit is no starting point for a bootstrap: {fit.message}")
    if fit.n_clusters > np.count_nonzero(_sizes(fit)):
        raise FitError("this fit holds only some of its clusters (it was made over several processes); fit them in one")
    if fit.flat:
        said = f"replicates say nothing of what the fit does not know, and give no intervals of it: {fit.message}"
        warn_caller(said, ConvergenceWarning)
    if fit.negative_icc and method != "cluster":
        warn_caller(
            f"residuals of {', '.join(map(repr, fit.negative_icc))} are negatively correlated within clusters, which "
            f"replicates of the {method} bootstrap are not: their intervals are as wrong as joint standard errors; "
            "use method='cluster'",
            DesignWarning,
        )
    origin, targets = make_origin(fit, method, seed, n, at)
    base = fitted(fit, fit.moments, targets)
    refitter = _refitter(fit, base, method, seed, data)
    if batch is not None:
        refitter = with_size(refitter, check_count("batch", batch, 1, 1 << 20))
    batches = -(-n // refitter.size)
    first, last = (min(batches * k // parts * refitter.size, n) for k in (part, part + 1))
    folder = as_folder(out)
    known = () if folder is None else _known(folder, origin)
    kept = Ledger("replicate", first, last, known, folder, "replicates", origin.to_dict())

    def gathered() -> Replicates:
        return Replicates(kept.table(make_table([], origin)), origin, fit=fit)

    try:
        with counted(f"{method} bootstrap", len(kept.wanted)) as advance:
            for some in refitter.run(kept.wanted):
                kept.add(make_table([some], origin))
                advance(len(some.numbers))
    except BaseException as error:
        kept.flush()
        if not isinstance(error, Exception):
            error.add_note(interrupted(kept.done, kept.asked, "replicates", folder))
            error.replicates = gathered()  # type: ignore[attr-defined]
        raise
    kept.flush()
    return gathered()


def _known(folder: Path, origin: Origin) -> Iterator[pd.DataFrame]:
    """What is in a folder already; from now on the folder is of these replicates."""
    yield from (_of(origin, path) for path in open_folder(folder))
    own = folder / "replicates.parquet"
    claim(own, make_table([], origin), origin.to_dict())
    _of(origin, own)


def _of(origin: Origin, path: Path) -> pd.DataFrame:
    """The replicates of a file, which must be of the same origin."""
    table, found = read_replicates(path)
    refused = found.difference(origin)
    if refused:
        raise DataError(f"{str(path.parent)!r} holds other replicates: {refused}; choose another folder")
    return table


def _refitter(fit: Fit, base: Fitted, method: str, seed: int, data: Any) -> Refitter:
    """Where the data sets of a method come from."""
    if method == "cluster":
        return make_refitter(base, "resampled", seed)
    if method == "parametric":
        try:
            return make_refitter(base, "drawn", seed)
        except RowsNeededError as error:
            why = f"needs rows here, because of the term {error}"
    else:
        why = "needs the rows of the data"
    if data is None:
        raise FitError(f"method={method!r} {why}; pass the data too: jaxmed.bootstrap(fit, ..., data=data)")
    rows = sample_rows.read_rows(data, fit, fit.moments)
    draw = _row_draws(fit, rows, method)

    def make(number: int) -> tuple[Any, Any]:
        columns, cluster = draw(stream(seed, number))
        return given_rows(base, sample_rows.design_of(rows, columns, cluster, base.problem.design))

    return replace(make_refitter(base, "given", seed), make=make)


def _row_draws(fit: Fit, rows: Rows, method: str) -> Callable[[np.random.Generator], tuple[Any, Any]]:
    """How a method that needs rows makes the columns of a data set and the cluster of every row."""
    if method == "parametric":
        return lambda rng: (sample_rows.drawn(rows, fit, rng), rows.cluster)
    if method == "two_stage":
        return lambda rng: sample_rows.two_stage(rows, rng)
    if method == "residual":
        pool = sample_rows.reflated(rows, fit, _predicted(fit))
        return lambda rng: (sample_rows.from_residuals(rows, fit, pool, rng), rows.cluster)
    raise NotImplementedError(f"method {method!r} has no way to make data")


def _predicted(fit: Fit) -> Any:
    """Predicted random effects, shape (q, J); NaN for clusters without rows that count."""
    labels = list(fit.system.random_labels)
    if not labels:
        return np.zeros((0, fit.moments.n_clusters))
    return fit.ranef().reindex(fit.moments.clusters)[labels].to_numpy().T


def _sizes(fit: Fit) -> Any:
    return sum(pattern.products[0] for pattern in fit.moments.patterns)
