"""Whether the covariance of the random effects is singular."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import Totals
from jaxmed._likelihood import Layout
from jaxmed._model import System
from jaxmed._support import Floats

SINGULAR_EIGENVALUE = 1e-6  # of the correlation matrix of the random effects
SINGULAR_VARIANCE = 1e-9  # of a random effect's share, relative to the residual variance


def is_singular(layout: Layout, theta: Floats, mean_square: Floats) -> bool:
    """Whether G is at the boundary: a variance of zero, or a correlation of one.

    ``mean_square``, shape (q,), is the mean square of each random column, so that a variance is judged by what it
    contributes to the outcome, next to the residual variance of its equation.
    """
    return bool(are_singular(layout, theta[None], mean_square)[0])


def are_singular(layout: Layout, theta: Floats, mean_square: Floats) -> NDArray[np.bool_]:
    """:func:`is_singular` of many fits, ``theta`` of shape (fits, n); a theta that is not finite is none."""
    if layout.n_random == 0:
        return np.zeros(len(theta), dtype=bool)
    found = np.any(shares(layout, theta, mean_square) < SINGULAR_VARIANCE, axis=1)
    rest = ~found & np.all(np.isfinite(theta), axis=1)
    matrix = _matrices(layout, theta)
    unit = 1 / np.sqrt(np.diagonal(matrix[rest], axis1=1, axis2=2))
    found[rest] = np.linalg.eigvalsh(matrix[rest] * unit[:, :, None] * unit[:, None])[:, 0] < SINGULAR_EIGENVALUE
    return found


def shares(layout: Layout, theta: Floats, mean_square: Floats) -> Floats:
    """Variance that each random effect adds to its outcome, over the residual variance, shape (fits, q)."""
    variance = np.diagonal(_matrices(layout, theta), axis1=1, axis2=2)
    residual = np.exp(2 * theta[:, len(layout.free) : len(layout.free) + layout.n_equations])
    return np.asarray(variance * mean_square / residual[:, list(layout.owners)])


def _matrices(layout: Layout, theta: Floats) -> Floats:
    """G of many fits, shape (fits, q, q)."""
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T
    root = np.zeros((len(theta), layout.n_random, layout.n_random))
    root[:, row, col] = theta[:, : len(layout.free)]
    return root @ root.swapaxes(1, 2)


def mean_squares(system: System, totals: Totals) -> Floats:
    """Mean square of each random column, shape (q,), on the working scale."""
    return np.array(
        [
            sums.among((name,))[0, 0] / sums.rows
            for equation, sums in zip(system.equations, totals.equations, strict=True)
            for name in equation.random
        ]
    )
