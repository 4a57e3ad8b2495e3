"""Cluster-level predictions: random effects, a_j, b_j and their product, with standard errors of prediction."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
from jax import Array

from jaxmed import likelihood
from jaxmed._runtime import float64
from jaxmed.errors import FitError
from jaxmed.likelihood import Data, Predictions
from jaxmed.moments import Floats, Moments
from jaxmed.params import Layout, make_layout, make_scale, root_and_precision
from jaxmed.result import Estimates
from jaxmed.spec import Mediation


class ClusterPredictions(NamedTuple):
    """:class:`jaxmed.likelihood.Predictions` on the user's scale, padding cut off."""

    effects: Floats
    covariance: Floats
    sensitivity: Floats


@float64
@partial(jax.jit, static_argnums=0)
def _predict(layout: Layout, theta: Array, beta: Array, data: Data) -> Predictions:
    return likelihood.predict(layout, *root_and_precision(layout, theta), beta, data)


def predict_clusters(found: Estimates, theta: Floats, moments: Moments) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.ranef`; ``theta`` is the optimiser's optimum on the working scale of ``moments``."""
    labels, random = found.system.labels, found.system.random_labels
    if not random:
        raise FitError("this model has no random effects, so there is nothing to predict by cluster")
    predicted = _on_user_scale(found, theta, moments)
    beta_cov = found.block[: len(labels), : len(labels)]
    columns: dict[str, Floats] = {}
    for k, label in enumerate(random):
        moved = predicted.sensitivity[k]
        variance = predicted.covariance[k, k] + np.einsum("pj,pr,rj->j", moved, beta_cov, moved)
        columns[label] = predicted.effects[k]
        columns[f"{label}_se"] = np.sqrt(variance)
    if isinstance(found.spec, Mediation):
        columns |= _paths(found, found.spec, predicted, beta_cov)
    return pd.DataFrame(columns, index=pd.Index(moments.clusters, name=found.system.cluster))


def _on_user_scale(found: Estimates, theta: Floats, moments: Moments) -> ClusterPredictions:
    """Conditional means, covariances and sensitivities to the user's fixed effects."""
    layout = make_layout(found.system, moments, found.reml)
    scale = make_scale(found.system, layout, moments)
    beta = np.linalg.solve(scale.linear, found.values[: layout.n_fixed] - scale.offset)
    working = _predict(layout, theta, beta, likelihood.make_data(moments.table, moments.intake.used))
    effects, covariance, sensitivity = (np.asarray(part)[..., : moments.n_clusters] for part in working)
    unit = scale.linear[np.ix_(layout.random, layout.random)]
    return ClusterPredictions(
        unit @ effects,
        np.einsum("ab,bcj,dc->adj", unit, covariance, unit, optimize=True),
        np.einsum("ab,bpj,pr->arj", unit, sensitivity, np.linalg.inv(scale.linear), optimize=True),
    )


def _paths(found: Estimates, spec: Mediation, predicted: ClusterPredictions, beta_cov: Floats) -> dict[str, Floats]:
    """a_j, b_j and E[a_j b_j | data].

    An error d of the fixed effects enters a_j as (unit vector - sensitivity) d. The product of two normals has mean
    ab + Cab and variance a^2 Vb + b^2 Va + 2ab Cab + Va Vb + Cab^2.
    """
    labels, random = list(found.system.labels), list(found.system.random_labels)
    value: dict[str, Floats] = {}
    slope: dict[str, Floats] = {}
    for name in ("a", "b"):
        label = spec.paths[name]
        direction = np.zeros_like(predicted.sensitivity[0])
        direction[labels.index(label)] = 1.0
        deviation: Floats | float = 0.0
        if label in random:
            deviation = predicted.effects[random.index(label)]
            direction = direction - predicted.sensitivity[random.index(label)]
        value[name] = np.full(direction.shape[1], found.params[label]) + deviation
        slope[name] = direction

    def covariance(one: str, other: str) -> Floats:
        between: Floats = np.einsum("pj,pr,rj->j", slope[one], beta_cov, slope[other])
        if spec.paths[one] in random and spec.paths[other] in random:
            between = between + predicted.covariance[random.index(spec.paths[one]), random.index(spec.paths[other])]
        return between

    a, b = value["a"], value["b"]
    var_a, var_b, cov = covariance("a", "a"), covariance("b", "b"), covariance("a", "b")
    product = a**2 * var_b + b**2 * var_a + 2 * a * b * cov + var_a * var_b + cov**2
    return {
        "a": a,
        "a_se": np.sqrt(var_a),
        "b": b,
        "b_se": np.sqrt(var_b),
        "ab": a * b + cov,
        "ab_se": np.sqrt(product),
    }
