"""The model written down naively, as the tests' oracle: a dense covariance matrix per cluster, plain NumPy, no JAX.

Everything works with complex G, variances and coefficients as well, so that :func:`gradient` can differentiate by a
complex step: Im f(t + ih) / h with h = 1e-30 has no cancellation and is exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxmed.spec import INTERCEPT, System


class Cluster(NamedTuple):
    """Stacked rows of one cluster: equation by equation, rows with a missing value left out per equation."""

    label: object
    x: np.ndarray  # (n, p)
    z: np.ndarray  # (n, q)
    y: np.ndarray  # (n,)
    equation: np.ndarray  # (n,)


def stack(data: pd.DataFrame, system: System) -> list[Cluster]:
    """Clusters of a frame in the order of their sorted labels; those that count in no equation are left out."""
    clusters = []
    labels, random = list(system.labels), [system.labels.index(label) for label in system.random_labels]
    for label, rows in data.groupby(system.cluster, sort=True):
        parts = []
        for e, equation in enumerate(system.equations):
            own = rows.dropna(subset=list(equation.columns))
            x = np.zeros((len(own), len(labels)))
            for name in equation.predictors:
                x[:, labels.index(f"{equation.outcome}~{name}")] = 1.0 if name == INTERCEPT else own[name]
            parts.append((x, own[equation.outcome].to_numpy(float), np.full(len(own), e)))
        x, y, at = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(y):
            clusters.append(Cluster(label, x, x[:, random], y, at))
    return clusters


def covariance(cluster: Cluster, g: np.ndarray, sigma2: np.ndarray) -> np.ndarray:
    """V_j = Z_j G Z_j' + R_j."""
    return cluster.z @ g @ cluster.z.T + np.diag(sigma2[cluster.equation])


def _logdet(matrix: np.ndarray) -> complex:
    sign, logabs = np.linalg.slogdet(matrix)
    return np.log(sign) + logabs


def gls(clusters: list[Cluster], g: np.ndarray, sigma2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Generalised least squares: beta and X'V^-1X."""
    information, score = 0.0, 0.0
    for cluster in clusters:
        weighted = np.linalg.solve(covariance(cluster, g, sigma2), cluster.x)
        information = information + cluster.x.T @ weighted
        score = score + weighted.T @ cluster.y
    return np.linalg.solve(information, score), information


def loglik(
    clusters: list[Cluster], g: np.ndarray, sigma2: np.ndarray, reml: bool, beta: np.ndarray | None = None
) -> float | complex:
    """Log likelihood at ``beta`` (default: the GLS estimate); REML without the constant log|X'X| / 2."""
    if beta is None or reml:
        estimate, information = gls(clusters, g, sigma2)
        beta = estimate if beta is None else beta
    deviance, rows = 0.0, 0
    for cluster in clusters:
        v = covariance(cluster, g, sigma2)
        residual = cluster.y - cluster.x @ beta
        deviance = deviance + _logdet(v) + residual @ np.linalg.solve(v, residual)
        rows += len(residual)
    if reml:
        deviance, rows = deviance + _logdet(information), rows - len(beta)
    value = -(deviance + rows * np.log(2 * np.pi)) / 2
    return value if np.iscomplexobj(g) or np.iscomplexobj(sigma2) or np.iscomplexobj(beta) else float(np.real(value))


def blups(clusters: list[Cluster], g: np.ndarray, sigma2: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Predictions G Z_j'V_j^-1 (y_j - X_j beta), shape (clusters, q)."""
    return np.array([g @ c.z.T @ np.linalg.solve(covariance(c, g, sigma2), c.y - c.x @ beta) for c in clusters])


def henderson(clusters: list[Cluster], g: np.ndarray, sigma2: np.ndarray) -> np.ndarray:
    """Prediction-error covariance of (beta, u_1, ..., u_J): the inverse of the mixed-model equations' matrix."""
    p, q = clusters[0].x.shape[1], len(g)
    size = p + q * len(clusters)
    matrix = np.zeros((size, size))
    for j, cluster in enumerate(clusters):
        design = np.zeros((len(cluster.y), size))
        design[:, :p] = cluster.x
        own = slice(p + q * j, p + q * (j + 1))
        design[:, own] = cluster.z
        matrix += design.T @ (design / sigma2[cluster.equation][:, None])
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
