"""The model written down naively, as the tests' oracle: a dense covariance matrix per cluster, plain NumPy, no JAX.

Everything works with complex G, residual covariances and coefficients as well, so that :func:`gradient` can
differentiate by a complex step: Im f(t + ih) / h with h = 1e-30 has no cancellation and is exact to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxmed._model.system import System


class Cluster(NamedTuple):
    """Stacked rows of one cluster: equation by equation, rows with a missing value left out per equation."""

    label: object
    x: np.ndarray  # (n, p)
    z: np.ndarray  # (n, q)
    y: np.ndarray  # (n,)
    equation: np.ndarray  # (n,)
    row: np.ndarray  # (n,), the row of the frame it comes from; -1 for the cluster's own
    seen: np.ndarray  # (n,), bit e is set: that row counts in equation e, which may share residuals with this one


def term(data: pd.DataFrame, name: str, cluster: str) -> np.ndarray:
    """Values of ``"x"``, ``"x:w"``, ``"within(x)"``, ``"between(x)"``, ``"g[B]"`` and products of these, row by row.

    Cluster means are over all rows in which the column is observed.
    """
    value = np.ones(len(data))
    for piece in name.split(":") if name != "1" else ():
        part, column = re.fullmatch(r"(?:(within|between)\()?(.*?)\)?", piece).groups()
        if column in data:
            x = data[column].to_numpy(float)
        else:
            own, category = re.fullmatch(r"(.*)\[(.*)\]", column).groups()
            x = np.where(data[own].isna(), np.nan, data[own].astype(str) == category)
        mean = pd.Series(x).groupby(data[cluster].to_numpy()).transform("mean").to_numpy()
        value = value * {None: x, "within": x - mean, "between": mean}[part]
    return value


def stack(data: pd.DataFrame, system: System, units: Mapping[str, tuple[float, float]] | None = None) -> list[Cluster]:
    """Clusters of a frame in the order of their sorted labels; those that count in no equation are left out.

    An equation of level 2 has one row per cluster, if some row of the frame has all its columns. ``units`` are shift
    and scale by which terms are moved to (value - shift) / scale.
    """
    labels, outcomes, clusters = list(system.labels), list(system.outcomes), []
    random = [labels.index(label) for label in system.random_labels]
    values = {"1": np.ones(len(data))}
    for name in system.terms:
        shift, scale = (units or {}).get(name, (0.0, 1.0))
        values[name] = (term(data, name, system.cluster) - shift) / scale
    observed = {name: ~np.isnan(term(data, name, system.cluster)) for name in system.columns}
    together = np.eye(len(outcomes), dtype=bool)
    for group in system.residuals:
        at = [outcomes.index(name) for name in group]
        together[np.ix_(at, at)] = True
    for label, rows in data.groupby(system.cluster, sort=True).indices.items():
        parts = []
        for e, equation in enumerate(system.equations):
            own = rows[np.all([observed[name][rows] for name in equation.columns], axis=0)]
            own = own[:1] if equation.level == 2 else own
            x = np.zeros((len(own), len(labels)))
            for name in equation.predictors:
                x[:, labels.index(f"{equation.outcome}~{name}")] = values[name][own]
            row = np.full(len(own), -1) if equation.level == 2 else own
            parts.append((x, values[equation.outcome][own], np.full(len(own), e), row))
        x, y, at, row = (np.concatenate(column) for column in zip(*parts, strict=True))
        beside = (row[:, None] == row) & together[at[:, None], at]
        if len(y):
            clusters.append(Cluster(label, x, x[:, random], y, at, row, beside @ 2**at))
    return clusters


def residual_covariance(cluster: Cluster, sigma: np.ndarray) -> np.ndarray:
    """R_j: residuals of one row covary. ``sigma``: variances (E,), covariances (E, E), or those by ``seen``."""
    if sigma.ndim == 1:
        return np.diag(sigma[cluster.equation])
    sigma = np.broadcast_to(sigma, (2 ** len(sigma[0]), *sigma.shape[-2:]))
    entries = sigma[cluster.seen[:, None], cluster.equation[:, None], cluster.equation]
    same = (cluster.row[:, None] == cluster.row) & (cluster.seen[:, None] == cluster.seen)
    return np.where(same, entries, 0.0)


def covariance(cluster: Cluster, g: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """V_j = Z_j G Z_j' + R_j."""
    return cluster.z @ g @ cluster.z.T + residual_covariance(cluster, sigma)


def _logdet(matrix: np.ndarray) -> complex:
    sign, logabs = np.linalg.slogdet(matrix)
    return np.log(sign) + logabs


def gls(clusters: list[Cluster], g: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Generalised least squares: beta and X'V^-1X."""
    information, score = 0.0, 0.0
    for cluster in clusters:
        weighted = np.linalg.solve(covariance(cluster, g, sigma), cluster.x)
        information = information + cluster.x.T @ weighted
        score = score + weighted.T @ cluster.y
    return np.linalg.solve(information, score), information


def loglik(
    clusters: list[Cluster], g: np.ndarray, sigma: np.ndarray, reml: bool, beta: np.ndarray | None = None
) -> float | complex:
    """Log likelihood at ``beta`` (default: the GLS estimate); REML without the constant log|X'X| / 2."""
    if beta is None or reml:
        estimate, information = gls(clusters, g, sigma)
        beta = estimate if beta is None else beta
    deviance, rows = 0.0, 0
    for cluster in clusters:
        v = covariance(cluster, g, sigma)
        residual = cluster.y - cluster.x @ beta
        deviance = deviance + _logdet(v) + residual @ np.linalg.solve(v, residual)
        rows += len(residual)
    if reml:
        deviance, rows = deviance + _logdet(information), rows - len(beta)
    value = -(deviance + rows * np.log(2 * np.pi)) / 2
    return value if np.iscomplexobj(g) or np.iscomplexobj(sigma) or np.iscomplexobj(beta) else float(np.real(value))


def blups(clusters: list[Cluster], g: np.ndarray, sigma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Predictions G Z_j'V_j^-1 (y_j - X_j beta), shape (clusters, q)."""
    return np.array([g @ c.z.T @ np.linalg.solve(covariance(c, g, sigma), c.y - c.x @ beta) for c in clusters])


def henderson(clusters: list[Cluster], g: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Prediction-error covariance of (beta, u_1, ..., u_J): the inverse of the mixed-model equations' matrix."""
    p, q = clusters[0].x.shape[1], len(g)
    size = p + q * len(clusters)
    matrix = np.zeros((size, size))
    for j, cluster in enumerate(clusters):
        design = np.zeros((len(cluster.y), size))
        design[:, :p] = cluster.x
        own = slice(p + q * j, p + q * (j + 1))
        design[:, own] = cluster.z
        matrix += design.T @ np.linalg.solve(residual_covariance(cluster, sigma), design)
        matrix[own, own] += np.linalg.inv(g)
    return np.linalg.inv(matrix)


def symmetric(entries: np.ndarray, free: tuple[tuple[int, int], ...], size: int) -> np.ndarray:
    """Free entries (row, col) -> symmetric matrix, zero elsewhere."""
    matrix = np.zeros((size, size), dtype=np.asarray(entries).dtype)
    for value, (row, col) in zip(entries, free, strict=True):
        matrix[row, col] = matrix[col, row] = value
    return matrix


def gradient(function: Callable[[np.ndarray], np.ndarray], point: np.ndarray) -> np.ndarray:
    """Derivatives along the last axis, by complex steps."""
    steps = 1e-30j * np.eye(len(point))
    return np.stack([np.imag(function(point + step)) / 1e-30 for step in steps], axis=-1)


def hessian(function: Callable[[np.ndarray], complex], point: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Central differences of the complex-step gradient g: one subtraction, so the error is g''' h^2/6 + eps |g|/h."""
    moves = np.diag(step)
    columns = [(gradient(function, point + move) - gradient(function, point - move)) / 2 for move in moves]
    matrix = np.array(columns) / step[:, None]
    return (matrix + matrix.T) / 2
