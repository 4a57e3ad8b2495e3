"""Arrays of numbers: packed triangles, symmetric matrices and their roots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@cache
def upper(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the entries of a packed upper triangle, in their order (read-only)."""
    row, col = np.triu_indices(size)
    row.flags.writeable = col.flags.writeable = False
    return row, col


@cache
def packed_index(size: int) -> NDArray[np.int64]:
    """Position of entry (i, j) in a packed upper triangle, as a symmetric (size, size) table (read-only)."""
    index = np.zeros((size, size), dtype=np.int64)
    row, col = upper(size)
    index[row, col] = index[col, row] = np.arange(len(row))
    index.flags.writeable = False
    return index


def symmetric(size: int, pairs: Sequence[tuple[int, int]], entries: Floats | float, elsewhere: float = 0.0) -> Floats:
    """A symmetric matrix, shape (size, size), with ``entries`` at the (row, column) ``pairs``."""
    matrix = np.full((size, size), elsewhere)
    row, col = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    matrix[row, col] = matrix[col, row] = entries
    return matrix


def root(variance: Floats) -> Floats:
    """Square root; NaN of a negative variance."""
    return np.sqrt(np.where(variance >= 0, variance, np.nan))


def packed_rows(size: int, keep: list[int]) -> NDArray[np.int64]:
    """Rows of the packed triangle of ``size`` that hold the packed triangle of the kept indices, in their order."""
    index = packed_index(size)
    row, col = upper(len(keep))
    kept = np.array(keep)
    return index[kept[row], kept[col]]


def lower_root(covariance: Floats) -> Floats:
    """The lower-triangular root of a positive semi-definite matrix; columns of zeros where it is singular."""
    left = np.array(covariance, dtype=float)
    root = np.zeros_like(left)
    for k in range(len(left)):
        if left[k, k] > 1e-14 * covariance[k, k]:
            root[k:, k] = left[k:, k] / np.sqrt(left[k, k])
            left -= np.outer(root[:, k], root[:, k])
    return root
