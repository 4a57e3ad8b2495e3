"""Cluster-level predictions: random effects, a_j, b_j and their product, with standard errors of prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed._data import Design, Moments
from jaxmed._inference.effects import expected_product, product_covariance
from jaxmed._inference.estimability import Working
from jaxmed._inference.estimates import Estimates, problem_of
from jaxmed._likelihood import (
    Array,
    Data,
    Layout,
    Problem,
    data_for,
    executed,
    likelihood,
    linalg,
    map_blocks,
    module_of,
    root_and_precision,
)
from jaxmed._model import Estimands
from jaxmed._support import FitError, Floats, current_sizes


class Predictions(NamedTuple):
    """Conditional distribution of the random effects of every cluster, at given parameters.

    Attributes
    ----------
    effects : Array, shape (q, clusters)
        Empirical Bayes means E[u_j | data].
    covariance : Array, shape (q, q, clusters)
        Var(u_j | data) at known fixed effects, K_j = L M_j^-1 L'.
    sensitivity : Array, shape (q, p, clusters)
        -d u_j / d beta, the random rows of G Z'V^-1 X.
    """

    effects: Array
    covariance: Array
    sensitivity: Array


def posterior(layout: Layout, root: Array, tau: Array, beta: Array, data: Data) -> Predictions:
    """Predictions for every cluster of the padded table, block by block."""
    p = layout.n_fixed
    xp = module_of(root, data.table)
    contrast = xp.append(-beta, 1.0)

    def body(block: Array) -> Predictions:
        half, half_root, _ = likelihood.eliminate(layout, root, likelihood.weighted_products(layout, tau, block))
        u = linalg.matmul(half_root.swapaxes(0, 1), half)
        covariance = linalg.matmul(half_root.swapaxes(0, 1), half_root)
        return Predictions(xp.sum(u * contrast[:, None], axis=1), covariance, u[:, :p])

    return map_blocks(body, data.table)


class ClusterPredictions(NamedTuple):
    """:class:`Predictions` on the working scale, in NumPy.

    Attributes
    ----------
    effects, covariance, sensitivity
        As there.
    error : ndarray, shape (q, q, clusters)
        Covariance of the errors of prediction: ``covariance``, and what the uncertainty of the fixed effects adds.
    """

    effects: Floats
    covariance: Floats
    sensitivity: Floats
    error: Floats


@executed
def _predict(layout: Layout, theta: Array, beta: Array, data: Data) -> Predictions:
    root, tau = root_and_precision(layout, theta)
    return posterior(layout, root, tau, beta, data)


def predict_clusters(fit: Estimates, moments: Moments) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.ranef`."""
    problem = _problem(fit, moments)
    design, linear = problem.design, problem.scale.linear
    unit = _unit(problem)
    estimands = fit.spec.estimands(fit.facts) if fit.spec.has_effects else None
    names = set() if estimands is None else moderators_of(estimands)
    moderators = {name: moderator_by_cluster(fit, moments, name) for name in names}
    parts: list[dict[str, Floats]] = []
    step = current_sizes().shard_clusters
    for first in range(0, design.n_clusters, step):  # some at a time: what is in between is larger than the table
        some = slice(first, first + step)
        predicted = _predict_some(problem, fit.working, design.part(some))
        columns: dict[str, Floats] = {}
        for label, row in zip(fit.system.random_labels, unit, strict=True):
            columns[label], variance = row @ predicted.effects, np.einsum("b,bcj,c->j", row, predicted.error, row)
            columns[f"{label}_se"] = _root(variance)
        if estimands is not None:
            own = {name: value[some] for name, value in moderators.items()}
            columns |= _paths(fit, estimands, predicted, linear, unit, own)
        parts.append(columns)
    whole = {name: np.concatenate([columns[name] for columns in parts]) for name in parts[0]}
    table = pd.DataFrame(whole, index=pd.Index(moments.clusters, name=fit.system.cluster))
    return table[design.sizes > 0]  # a cluster may have no row that counts


def predict_working(fit: Estimates, moments: Moments) -> tuple[NDArray[np.int64], ClusterPredictions, Floats]:
    """Positions of the clusters that have rows, their predictions, and the map from these to the user's scale, (q, q).

    Raises
    ------
    FitError
        The model has no random effects.
    """
    problem = _problem(fit, moments)
    present = np.flatnonzero(problem.design.sizes > 0)
    step = current_sizes().shard_clusters
    parts = [
        _predict_some(problem, fit.working, problem.design.part(present[first : first + step]))
        for first in range(0, len(present), step)
    ]
    whole = ClusterPredictions(*(np.concatenate(several, axis=-1) for several in zip(*parts, strict=True)))
    return present, whole, _unit(problem)


def _problem(fit: Estimates, moments: Moments) -> Problem:
    if not fit.system.random_labels:
        raise FitError("this model has no random effects, so there is nothing to predict by cluster")
    return problem_of(fit, moments)


def _unit(problem: Problem) -> Floats:
    """From random effects on the working scale to the user's, shape (q, q)."""
    random = problem.layout.random
    return problem.scale.linear[np.ix_(random, random)]


def _predict_some(problem: Problem, working: Working, some: Design) -> ClusterPredictions:
    """Predictions of the clusters of a design, padding cut off."""
    layout = problem.layout
    p = layout.n_fixed
    data = data_for(problem.engine, some.table, (0,) * len(layout.seen))
    predicted = _predict(problem.engine, layout, working.theta, working.values[:p], data)
    effects, covariance, sensitivity = (np.asarray(part)[..., : some.n_clusters] for part in predicted)
    by_beta = np.einsum("apj,pr,brj->abj", sensitivity, working.block[:p, :p], sensitivity, optimize=True)
    return ClusterPredictions(effects, covariance, sensitivity, covariance + by_beta)


def _paths(
    fit: Estimates,
    estimands: Estimands,
    predicted: ClusterPredictions,
    linear: Floats,
    unit: Floats,
    moderators: Mapping[str, Floats],
) -> dict[str, Floats]:
    """Slopes of every cluster along the routes from x to y, and the expected products along each.

    An error d of the fixed effects enters a_j as (unit vector - sensitivity) d. Given the data slopes are jointly
    normal, from which follow mean and variance of their products.
    """
    labels, random = list(fit.system.labels), list(fit.system.random_labels)
    p = len(labels)
    # Slopes between clusters do not vary, and c' is no part of a route through a mediator.
    edges = fit.spec.edges_in(fit.facts)
    names = [edge.path(part) for edge in edges for part in ("", "_within") if edge.kind != "c_prime"]
    names = [name for name in names if name in estimands.paths]
    means, slopes, loads = [], [], []
    n_clusters = predicted.effects.shape[1]
    for name in names:
        value, load = np.zeros(n_clusters), np.zeros((len(random), n_clusters))
        direction = np.zeros((p, n_clusters))
        for label, by in estimands.paths[name].pieces:
            weight = np.prod([moderators[column] for column in by], axis=0) * np.ones(n_clusters)
            value += weight * fit.params[label]
            direction += linear[labels.index(label)][:, None] * weight
            if label in random:
                row = unit[random.index(label)]
                value += weight * (row @ predicted.effects)
                direction -= weight * np.einsum("b,bpj->pj", row, predicted.sensitivity)
                load += row[:, None] * weight
        means.append(value)
        slopes.append(direction)
        loads.append(load)
    if not names:
        return {}
    mean, slope, load = np.stack(means), np.stack(slopes), np.stack(loads)
    covariance = np.einsum("apj,pr,brj->abj", slope, fit.working.block[:p, :p], slope, optimize=True)
    covariance += np.einsum("akj,klj,blj->abj", load, predicted.covariance, load, optimize=True)
    columns: dict[str, Floats] = {}
    for k, name in enumerate(names):
        columns[name], columns[f"{name}_se"] = mean[k], _root(covariance[k, k])
    for row in estimands.rows:
        along = row.terms[0][1]
        if row.kind == "indirect" and len(row.terms) == 1 and set(along) <= set(names):
            route = tuple(names.index(path) for path in along)
            product, variance = product_moments(route, mean, covariance)
            name = "ab" + row.name.removeprefix("indirect")
            columns[name], columns[f"{name}_se"] = product, _root(variance)
    return columns


def _root(variance: Floats) -> Floats:
    """Standard deviations; a variance of zero may have been rounded to less."""
    return np.asarray(np.sqrt(np.maximum(variance, 0.0)))


def moderators_of(estimands: Estimands) -> set[str]:
    """Columns that paths depend on."""
    return {column for path in estimands.paths.values() for _, by in path.pieces for column in by}


def moderator_by_cluster(fit: Estimates, moments: Moments, column: str) -> Floats:
    """A moderator by cluster: its value where it belongs to the cluster, NaN if missing; else its overall mean."""
    if column in moments.constants:
        return moments.constants[column]
    mean = fit.moderator_means.get(column)
    return np.full(moments.n_clusters, moments.spread(column)[0] if mean is None else mean)


def product_moments(route: tuple[int, ...], mean: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of the product of normal slopes along a route, by cluster."""
    product = expected_product(mean, covariance, route)
    return product, product_covariance(mean, covariance, route, route)
