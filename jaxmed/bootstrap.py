"""The bootstrap: data sets made from a fit, refitted by the thousand, in shards that can stop and go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxmed import resample
from jaxmed.batches import Fitted, Refits, Refitter, fitted, given_rows, make_refitter, with_size
from jaxmed.errors import DataError, FitError, SpecError
from jaxmed.fit import Fit
from jaxmed.generate import RowsNeededError
from jaxmed.progress import counted
from jaxmed.replicates import (
    Origin,
    Replicates,
    make_origin,
    make_table,
    read_replicates,
    replicate_files,
    write_replicates,
)

METHODS = ("parametric", "cluster", "residual", "two_stage")
EVERY = 10.0  # seconds of work that are written to a file
MOST = 1 << 32  # replicates


def bootstrap(
    fit: Fit,
    n: int,
    method: str = "parametric",
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
    n, seed = _check_count("n", n, 1, MOST), _check_count("seed", seed, 0, 2**63 - 1)
    part, parts = _check_shard(shard)
    if not isinstance(fit, Fit):
        raise SpecError(f"bootstrap needs a Fit first, as jaxmed.fit returns it; got {type(fit).__name__}")
    if method not in METHODS:
        raise SpecError(f"method={method!r} is not known; choose one of {list(METHODS)}")
    if not fit.converged:
        raise FitError(f"this fit is no starting point for a bootstrap: {fit.message}")
    if fit.n_clusters > np.count_nonzero(_sizes(fit)):
        raise FitError("this fit holds only some of its clusters (it was made over several processes); fit them in one")
    origin, targets = make_origin(fit, method, seed, n, at)
    base = fitted(fit, fit.theta, fit.moments, targets)
    refitter = _refitter(fit, base, method, seed, data)
    if batch is not None:
        refitter = with_size(refitter, _check_count("batch", batch, 1, 1 << 20))
    batches = -(-n // refitter.size)
    first, last = (min(batches * k // parts * refitter.size, n) for k in (part, part + 1))
    kept = _Store(None if out is None else Path(out), origin, first, last)
    try:
        with counted(f"{method} bootstrap", len(kept.wanted)) as advance:
            for found in refitter.run(kept.wanted):
                kept.add(found)
                advance(len(found.numbers))
    except BaseException as error:
        kept.flush()
        if not isinstance(error, Exception):
            error.add_note(kept.interrupted())
            error.replicates = kept.replicates(fit)  # type: ignore[attr-defined]
        raise
    kept.flush()
    return kept.replicates(fit)


class _Store:
    """Replicates of one shard: those that are in files already, and those to come."""

    def __init__(self, folder: Path | None, origin: Origin, first: int, last: int) -> None:
        self._folder, self._origin, self._first, self._last = folder, origin, first, last
        self._tables: list[pd.DataFrame] = []
        self._waiting: list[Refits] = []
        self._written = time.monotonic()
        wanted = np.ones(last - first, dtype=bool)
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FitError(f"the folder {str(folder)!r} cannot be made: {error.strerror or error}") from error
            if not os.access(folder, os.W_OK):
                raise FitError(f"the folder {str(folder)!r} cannot be written to; choose another")
            for table in self._known(folder):
                inside = table["replicate"].between(first, last - 1)
                table = table[inside]
                new = wanted[table["replicate"].to_numpy() - first]
                self._tables.append(table[new])
                wanted[table["replicate"].to_numpy() - first] = False
        self.wanted = (np.flatnonzero(wanted) + first).tolist()

    def _known(self, folder: Path) -> Iterator[pd.DataFrame]:
        for path in replicate_files(folder):
            table, origin = read_replicates(path)
            refused = origin.difference(self._origin)
            if refused:
                raise DataError(f"{str(folder)!r} holds other replicates: {refused}; choose another folder")
            yield table

    def add(self, found: Refits) -> None:
        """Keep the outcome of a batch, and write from time to time."""
        self._waiting.append(found)
        if self._folder is not None and time.monotonic() - self._written > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is not in files yet."""
        if not self._waiting:
            return
        table = make_table(self._waiting, self._origin)
        if self._folder is not None:
            numbers = table["replicate"]
            name = f"replicates-{numbers.iloc[0]:010d}-{numbers.iloc[-1]:010d}.parquet"
            write_replicates(self._folder / name, table, self._origin)
        self._tables.append(table)
        self._waiting = []
        self._written = time.monotonic()

    def replicates(self, fit: Fit) -> Replicates:
        """All of this shard so far."""
        table = pd.concat(self._tables) if self._tables else make_table([], self._origin)
        return Replicates(table.sort_values("replicate", ignore_index=True), self._origin, fit=fit)

    def interrupted(self) -> str:
        """What an interruption leaves behind, and how to go on."""
        done = sum(len(table) for table in self._tables)
        text = f"{done} of {self._last - self._first} replicates are done"
        if self._folder is None:
            return f"{text}; with out=FOLDER they would be kept"
        return f"{text} and kept in {str(self._folder)!r}; the same call goes on from there"


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
    rows = resample.read_rows(data, fit, fit.moments)
    pool = resample.reflated(rows, fit, _predicted(fit)) if method == "residual" else None

    def make(number: int) -> tuple[Any, Any]:
        rng, cluster = resample.generator(seed, number), rows.cluster
        if method == "two_stage":
            columns, cluster = resample.two_stage(rows, rng)
        elif pool is not None:
            columns = resample.from_residuals(rows, fit, pool, rng)
        else:
            columns = resample.drawn(rows, fit, rng)
        return given_rows(base, resample.design_of(rows, columns, cluster, base.design))

    return replace(make_refitter(base, "given", seed), make=make)


def _predicted(fit: Fit) -> Any:
    """Predicted random effects, shape (q, J); NaN for clusters without rows that count."""
    labels = list(fit.system.random_labels)
    if not labels:
        return np.zeros((0, fit.moments.n_clusters))
    return fit.ranef().reindex(fit.moments.clusters)[labels].to_numpy().T


def _sizes(fit: Fit) -> Any:
    return sum(pattern.products[0] for pattern in fit.moments.patterns)


def _check_count(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise SpecError(f"{name}={value!r} must be a whole number from {least} to {most}")
    return int(value)


def _check_shard(shard: Any) -> tuple[int, int]:
    ok = isinstance(shard, (tuple, list)) and len(shard) == 2
    if ok and all(isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in shard):
        part, parts = map(int, shard)
        if 0 <= part < parts:
            return part, parts
    raise SpecError(f"shard={shard!r} must be (i, k): part i of k parts, i from 0 to k - 1")
