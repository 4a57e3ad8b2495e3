"""Residuals: standardized predictions of the clusters' random effects, and residuals row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import chdtrc, ndtri

from jaxmed._data import Moments, outcome_values
from jaxmed._inference import Estimates, predict_working
from jaxmed._refit import read_rows
from jaxmed._support import FitError, Floats, symmetric

RANK = 1e-8  # of the largest eigenvalue: below it predictions of a cluster do not vary


def cluster_residual_table(fit: Estimates, moments: Moments) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.cluster_residuals`."""
    labels = list(fit.system.random_labels)
    present, predicted, user = predict_working(fit, moments)
    p, n_free = len(fit.system.labels), len(fit.free)
    g = symmetric(len(labels), fit.free, fit.working.values[p : p + n_free])
    variance = (g[:, :, None] - predicted.error).transpose(2, 0, 1)
    if not np.all(np.isfinite(variance)):
        raise FitError(
            "predictions of random effects have no standard deviations, because the covariance of the fixed effects is "
            f"not available ({fit.message})"
        )
    unit = np.sqrt(np.where(np.diag(g) > 0, np.diag(g), 1.0))
    value, vector = np.linalg.eigh(variance / np.outer(unit, unit))
    kept = value > RANK * np.maximum(value[:, -1:], RANK)
    along = np.einsum("jab,aj->jb", vector, predicted.effects / unit[:, None])
    squares = np.divide(along**2, value, out=np.zeros_like(along), where=kept)
    columns: dict[str, Floats] = {}
    for label, row in zip(labels, user, strict=True):
        own = np.einsum("a,jab,b->j", row, variance, row)
        known = own > RANK * (row @ g @ row)
        spread = np.sqrt(np.where(known, own, 1.0))
        columns[label] = np.where(known, (row @ predicted.effects) / spread, np.nan)
        columns[f"{label}_quantile"] = normal_quantiles(columns[label])
    distance, df = squares.sum(axis=1), kept.sum(axis=1)
    columns |= {"distance": distance, "df": df, "p": np.where(df > 0, chdtrc(np.maximum(df, 1), distance), np.nan)}
    return pd.DataFrame(columns, index=pd.Index(moments.clusters[present], name=fit.system.cluster))


def normal_quantiles(values: Floats) -> Floats:
    """Expected normal order statistics of the ranks, F^-1((rank - 3/8) / (n + 1/4)) (Blom 1958); NaN stays NaN."""
    found = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    n = np.count_nonzero(known)
    found[known] = ndtri((pd.Series(values[known]).rank().to_numpy() - 0.375) / (n + 0.25))
    return found


def residual_table(fit: Estimates, moments: Moments, data: Any) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.residuals`."""
    rows = read_rows(data, fit, moments)
    effects: dict[str, Floats] = {}
    if fit.system.random_labels:
        present, predicted, user = predict_working(fit, moments)
        whole = np.zeros((len(predicted.effects), moments.n_clusters))  # no rows, no effects
        whole[:, present] = user @ predicted.effects
        effects = dict(zip(fit.system.random_labels, whole, strict=True))
    parts = []
    for e, equation in enumerate(fit.system.equations):
        own = np.ones(len(rows.cluster), dtype=bool)
        for name in moments.groups[e]:
            own &= ~np.isnan(rows.columns[name])
        chosen = np.flatnonzero(own)
        if equation.level == 2:
            chosen = chosen[np.unique(rows.cluster[chosen], return_index=True)[1]]
        nothing = np.zeros(len(rows.cluster))
        marginal, fitted = (
            outcome_values(equation, fit.fixed, own_effects, nothing, rows.columns, rows.cluster)[chosen]
            for own_effects in ({}, effects)
        )
        at = rows.cluster[chosen]
        observed = rows.columns[equation.outcome][chosen]
        conditional = observed - fitted
        parts.append(
            pd.DataFrame(
                {
                    "outcome": equation.outcome,
                    fit.system.cluster: moments.clusters[at],
                    "row": -1 if equation.level == 2 else rows.numbers[chosen],
                    "observed": observed,
                    "fitted": fitted,
                    "marginal": observed - marginal,
                    "conditional": conditional,
                    "standardized": conditional / np.sqrt(fit.residual_var[equation.outcome]),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
