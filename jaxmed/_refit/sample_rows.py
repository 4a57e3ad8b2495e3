"""New data from a fitted model row by row, where cross-products per cluster do not suffice: NumPy, one at a time.

Draws come from counter-based generators: those of replicate i depend on the seed and on i alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import Design, Moments, Pattern, make_design, no_ids, outcome_values, read_facts
from jaxmed._inference import Estimates
from jaxmed._model import System
from jaxmed._support import DataError, Floats, upper

Ints = NDArray[np.int64]


class RowsNeededError(Exception):
    """Cross-products do not suffice; the message names the term that needs the rows."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows behind some moments.

    Attributes
    ----------
    system : System
    moments : Moments
        Of these rows.
    columns : dict
        Column -> values on the user's scale, shape (n_rows,), NaN where missing.
    cluster : ndarray of int, shape (n_rows,)
        Position of every row's cluster among ``moments.clusters``.
    numbers : ndarray of int, shape (n_rows,)
        Positions of the rows in the data, from 0; empty where nobody asks.
    """

    system: System
    moments: Moments
    columns: dict[str, Floats]
    cluster: Ints
    numbers: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def read_rows(data: Any, fit: Estimates, moments: Moments) -> Rows:
    """The rows that a fit's moments were read from.

    Raises
    ------
    DataError
        The data are others than those of the fit.
    """
    source, facts = read_facts(data, fit.spec)
    system = fit.system
    if fit.spec.system(replace(fit.facts, categories=facts.categories)) != system:
        raise DataError("these data have other categories than those of the fit; give the data that were fitted")
    wide = source.to_pandas(system)
    names = [system.cluster, *system.columns]
    wide.columns = names
    numbers = np.flatnonzero(wide[system.cluster].notna())
    wide = wide.iloc[numbers]
    labels = wide[system.cluster].to_numpy()
    if moments.clusters.dtype.kind == "U":
        labels = labels.astype(str)
    order = np.argsort(moments.clusters)
    try:
        at = np.searchsorted(moments.clusters, labels, sorter=order)
    except TypeError:  # nothing orders them
        raise no_ids(labels[0], system.cluster) from None
    known = moments.clusters[order[np.minimum(at, len(order) - 1)]] == labels
    columns = {name: wide[name].to_numpy(dtype=float, na_value=np.nan) for name in system.columns}
    counting = np.any(list(_known(columns, moments).values()), axis=0)
    if not np.all(known[counting]):
        raise DataError(
            f"these data have the cluster {labels[counting & ~known].tolist()[0]!r}, which the fit has not; give the "
            "data that were fitted"
        )
    keep = counting & known
    kept = {name: value[keep] for name, value in columns.items()}
    rows = Rows(system, moments, kept, order[at[keep]].astype(np.int64), numbers[keep])
    again = moments_of(rows, rows.columns, rows.cluster)
    for one, other in zip(again.patterns, moments.patterns, strict=True):
        size = np.abs(other.products).max(axis=1, keepdims=True)
        if not np.allclose(one.products, other.products, rtol=0, atol=1e-8 * np.maximum(size, 1.0)):
            raise DataError("these data are not those of the fit: their sums differ; give the data that were fitted")
    return rows


def _known(columns: Mapping[str, Floats], moments: Moments) -> dict[str, NDArray[np.bool_]]:
    """Which columns of every row count: those of the equations whose columns it has, and those with a cluster mean."""
    seen = {name: ~np.isnan(columns[name]) for name in moments.columns}
    found = {name: np.zeros_like(present) for name, present in seen.items()}
    for group in (*moments.groups, *((name,) for name in moments.averaged)):
        complete = np.all([seen[name] for name in group], axis=0)
        for name in group:
            found[name] |= complete
    return found


def moments_of(rows: Rows, columns: Mapping[str, Floats], cluster: Ints) -> Moments:
    """Moments of other rows with the units, patterns and clusters of those at hand."""
    like = rows.moments
    n = like.n_clusters
    counts = _known(columns, like)
    working = {name: (columns[name] - like.unit(name)[0]) / like.unit(name)[1] for name in like.columns}
    patterns = []
    for pattern in like.patterns:
        at = np.all([counts[name] == (name in pattern.observed) for name in like.columns], axis=0)
        own = {name: working[name][at] for name in pattern.observed}
        monomials = like.monomials(pattern.observed)
        values = [np.prod([own[name] for name in monomial], axis=0) * np.ones(at.sum()) for monomial in monomials]
        products = np.stack(
            [
                np.bincount(cluster[at], values[i] * values[j], n).astype(float)
                for i, j in zip(*upper(len(monomials)), strict=True)
            ]
        )
        patterns.append(Pattern(pattern.observed, products))
    moments = replace(like, patterns=tuple(patterns))
    return replace(moments, constants={name: _constant(moments, name) for name in like.constants})


def _constant(moments: Moments, name: str) -> Floats:
    """The value of a column that does not vary within clusters, NaN where it is never observed."""
    rows, total, _ = moments.sums(name)
    shift, scale = moments.unit(name)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(rows > 0, shift + scale * total / rows, np.nan)


def design_of(rows: Rows, columns: Mapping[str, Floats], cluster: Ints, like: Design) -> Design:
    """Design of other rows, with the blocks of the one at hand."""
    return make_design(rows.system, moments_of(rows, columns, cluster)).with_blocks(
        block.equations for block in like.blocks
    )


def generated(
    rows: Rows, params: Mapping[str, float], effects: Mapping[str, Floats], errors: Floats
) -> dict[str, Floats]:
    """All columns with outcomes made anew, each from the outcomes made before it.

    Parameters
    ----------
    params : mapping
        Fixed effects by label.
    effects : mapping
        Random effects by label, shape (J,).
    errors : ndarray, shape (E, n_rows)

    A row keeps an outcome whose predictors it lacks, and misses what it missed.
    """
    columns = dict(rows.columns)
    for e in rows.system.order:
        outcome = rows.system.outcomes[e]
        value = outcome_values(rows.system.equations[e], params, effects, errors[e], columns, rows.cluster)
        old = rows.columns[outcome]
        columns[outcome] = np.where(np.isnan(value) | np.isnan(old), old, value)
    return columns


def drawn(rows: Rows, fit: Estimates, rng: np.random.Generator) -> dict[str, Floats]:
    """Outcomes drawn from the fitted model."""
    n = rows.moments.n_clusters
    effects = symmetric_root(fit.random_cov.to_numpy()) @ rng.standard_normal((len(fit.random_cov), n))
    errors = symmetric_root(fit.residual_cov.to_numpy()) @ _noise(rows, rng)
    return generated(rows, fit.fixed, dict(zip(fit.system.random_labels, effects, strict=True)), errors)


def _noise(rows: Rows, rng: np.random.Generator) -> Floats:
    """Unit errors: by row, or by cluster for an equation of level 2."""
    noise = rng.standard_normal((len(rows.system.equations), len(rows.cluster)))
    for e, equation in enumerate(rows.system.equations):
        if equation.level == 2:
            noise[e] = rng.standard_normal(rows.moments.n_clusters)[rows.cluster]
    return noise


def symmetric_root(matrix: Floats) -> Floats:
    """The symmetric square root of a positive semi-definite matrix."""
    value, vector = np.linalg.eigh(matrix)
    return (vector * np.sqrt(np.maximum(value, 0.0))) @ vector.T


@dataclass(frozen=True, eq=False)
class Reflated:
    """Predicted random effects and residuals, given the covariances that the model says they have.

    Shrunken predictions vary less than what they predict; centred and multiplied by S^-1/2 G^1/2 they have the
    estimated covariance G exactly (Carpenter, Goldstein & Rasbash 2003).

    Attributes
    ----------
    effects : ndarray, shape (q, J)
    errors : tuple of (equations, ndarray of shape (equations, pool))
        Per group of equations that share residuals, the residuals of rows (of clusters for level 2) that have them all.
    """

    effects: Floats
    errors: tuple[tuple[tuple[int, ...], Floats], ...]


def reflated(rows: Rows, fit: Estimates, predicted: Floats) -> Reflated:
    """From predicted random effects, shape (q, J), in the order of the labels."""
    effects = dict(zip(fit.system.random_labels, predicted, strict=True))
    residuals = []
    for equation in rows.system.equations:
        nothing = np.zeros(len(rows.cluster))
        fitted = outcome_values(equation, fit.fixed, effects, nothing, rows.columns, rows.cluster)
        residuals.append(rows.columns[equation.outcome] - fitted)
    covariance = fit.residual_cov.to_numpy()
    errors = []
    for group in rows.system.residual_groups:
        own = np.stack([residuals[e] for e in group])
        if rows.system.equations[group[0]].level == 2:
            own = own[:, np.unique(rows.cluster, return_index=True)[1]]
        own = own[:, ~np.isnan(own).any(axis=0)]
        errors.append((group, _inflated(own, covariance[np.ix_(group, group)])))
    present = predicted[:, ~np.isnan(predicted).any(axis=0)]
    return Reflated(_inflated(present, fit.random_cov.to_numpy()), tuple(errors))


def _inflated(values: Floats, covariance: Floats) -> Floats:
    """Values (variables, n) moved linearly so that their mean is zero and their covariance (divisor n) as given."""
    if not len(values):
        return values
    centred = values - values.mean(axis=1, keepdims=True)
    value, vector = np.linalg.eigh(centred @ centred.T / values.shape[1])
    found = value > 1e-12 * max(float(value.max()), np.finfo(float).tiny)
    inverse_root = (vector[:, found] / np.sqrt(value[found])) @ vector[:, found].T
    return symmetric_root(covariance) @ inverse_root @ centred


def from_residuals(rows: Rows, fit: Estimates, pool: Reflated, rng: np.random.Generator) -> dict[str, Floats]:
    """Outcomes from random effects and residuals drawn with replacement from the reflated ones."""
    n = rows.moments.n_clusters
    effects = pool.effects[:, rng.integers(0, pool.effects.shape[1], n)]
    errors = np.zeros((len(rows.system.equations), len(rows.cluster)))
    for group, own in pool.errors:
        by_cluster = rows.system.equations[group[0]].level == 2
        chosen = rng.integers(0, own.shape[1], n if by_cluster else len(rows.cluster))
        errors[list(group)] = own[:, chosen[rows.cluster] if by_cluster else chosen]
    return generated(rows, fit.fixed, dict(zip(fit.system.random_labels, effects, strict=True)), errors)


def two_stage(rows: Rows, rng: np.random.Generator) -> tuple[dict[str, Floats], Ints]:
    """Clusters drawn with replacement, and rows with replacement within each: columns, and every row's new cluster."""
    n = rows.moments.n_clusters
    order = np.argsort(rows.cluster, kind="stable")
    sizes = np.bincount(rows.cluster, minlength=n)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    present = np.flatnonzero(sizes)
    chosen = np.zeros(n, dtype=np.int64)
    chosen[: len(present)] = rng.choice(present, len(present))
    count = np.zeros(n, dtype=np.int64)
    count[: len(present)] = sizes[chosen[: len(present)]]
    cluster = np.repeat(np.arange(n), count)
    within = np.floor(rng.random(len(cluster)) * count[cluster]).astype(np.int64)
    picked = order[first[chosen[cluster]] + within]
    return {name: value[picked] for name, value in rows.columns.items()}, cluster
