"""What moments say about the distribution of columns: between and within clusters, or of two values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmed._data.moments import Moments
from jaxmed._support import Floats


def variance_components(moments: Moments, columns: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Means of columns and their covariances between and within clusters, by analysis of variance.

    With mean products B between and W within, between = (B - W) / n0 and n0 = (N - sum n_j^2 / N) / (J - 1); what is no
    covariance is moved to the nearest that is one.
    """
    if not columns:
        return np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0))
    products = moments.cross_products(("1", *columns))
    rows, totals = products[0, 0], products[0, 1:]
    present = rows > 0
    rows, totals = rows[present], totals[:, present]
    n, clusters = rows.sum(), len(rows)
    total = products[1:, 1:, present].sum(axis=2)
    of_means = (totals / rows) @ totals.T
    overall = np.outer(totals.sum(axis=1), totals.sum(axis=1)) / n
    within = (total - of_means) / max(n - clusters, 1)
    level_2 = np.array([name in moments.cluster_level for name in columns])
    within[level_2] = within[:, level_2] = 0.0
    even = (n - np.sum(rows**2) / n) / (clusters - 1)
    between = ((of_means - overall) / (clusters - 1) - within) / even
    units = [moments.unit(name) for name in columns]
    scale = np.array([unit for _, unit in units])
    means = np.array([shift for shift, _ in units]) + scale * totals.sum(axis=1) / n
    return means, *(_nearest(part) * np.outer(scale, scale) for part in (between, within))


def _nearest(matrix: Floats) -> Floats:
    """The positive semi-definite matrix that is nearest to a symmetric one."""
    value, vector = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vector * np.maximum(value, 0.0)) @ vector.T


def two_valued(moments: Moments, columns: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Columns of two values: low, high, and the share of rows that have the high one."""
    found = {}
    for name in columns:
        if name in moments.sample_summary.ranges:
            low, high = moments.sample_summary.ranges[name]
            mean, variance, _ = moments.spread(name)
            if abs(variance + (mean - low) * (mean - high)) <= 1e-9 * (high - low) ** 2:
                found[name] = (float(low), float(high), float((mean - low) / (high - low)))
    return found
