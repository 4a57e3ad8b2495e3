"""Small dense algebra over many clusters at once, in plain array arithmetic.

Every array is ``(rows, columns, clusters)``: the cluster axis comes last, so that each scalar of a small matrix is a
vector over clusters. Nothing here reaches a LAPACK or cuSOLVER custom call: those deadlock the CPU thread pool when
they are batched under second derivatives or ``vmap`` (docs/decisions.md).

NumPy's own Cholesky factors serve single matrices where NumPy executes.
"""

from __future__ import annotations

import numpy as np

from jaxmed._likelihood.executor import Array, for_loop, module_of, traced_once


def matmul(left: Array, right: Array) -> Array:
    """Product of ``(n, k, ...)`` and ``(k, m, ...)`` matrices along the leading two axes -> ``(n, m, ...)``.

    Written as a multiply and a short sum, which the compiler turns into one vectorised loop over clusters; a batched
    ``dot`` would move the cluster axis to the front and treat the matrices one by one.
    """
    xp = module_of(left, right)
    if xp is np:
        return np.einsum("ik...,km...->im...", left, right)
    return xp.sum(left[:, :, None] * right[None, :, :], axis=1)


def total(array: Array) -> Array:
    """Sum over clusters, the last axis, as a product with ones: several times faster than a reduction on a CPU."""
    return array @ module_of(array).ones(array.shape[-1], array.dtype)


@traced_once
def half_solve(matrix: Array, right: Array) -> tuple[Array, Array]:
    """Forward elimination with the Cholesky factor F of symmetric positive definite matrices.

    Parameters
    ----------
    matrix : Array, shape (q, q, ...)
    right : Array, shape (q, m, ...)

    Returns
    -------
    half : Array, shape (q, m, ...)
        ``F^-1 right``, so that ``half' half = right' matrix^-1 right``.
    logdet : Array, shape (...)
        ``log|matrix|``. Both are NaN where a matrix is not positive definite.
    """
    xp = module_of(matrix, right)
    size = matrix.shape[0]
    table = xp.concatenate([matrix, right], axis=1)
    rows = []
    logdet = xp.zeros(matrix.shape[2:], matrix.dtype)
    for _ in range(size):
        pivot = table[0, 0]
        row = table[0] / xp.sqrt(pivot)
        logdet = logdet + xp.log(pivot)
        remaining = table.shape[0] - 1
        rows.append(row[remaining + 1 :])
        table = table[1:, 1:] - row[1 : remaining + 1, None] * row[None, 1:]
    if not rows:
        return xp.zeros((0, *right.shape[1:]), right.dtype), logdet
    return xp.stack(rows), logdet


@traced_once
def cholesky(matrix: Array) -> Array:
    """Lower Cholesky factor of one ``(n, n)`` matrix; NaN where it is not positive definite.

    For the matrices of an optimiser (n = number of variance parameters): a loop over columns, where unrolling would
    cost compile time. It survives ``vmap`` because it is plain arithmetic.
    """
    xp = module_of(matrix)
    if xp is np:
        return _cholesky(matrix)
    size = matrix.shape[0]
    index = xp.arange(size)

    def column(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, factor = state
        scaled = xp.where(index >= k, rest[:, k] / xp.sqrt(rest[k, k]), 0.0)
        return rest - scaled[:, None] * scaled[None, :], factor.at[:, k].set(scaled)

    return for_loop(size, column, (matrix, xp.zeros_like(matrix)))[1]


def _cholesky(matrix: np.ndarray) -> Array:
    """By NumPy; of a complex step A + i h B with the derivative L tril(L^-1 B L^-T), half of its diagonal."""
    try:
        factor = np.linalg.cholesky(matrix.real)
    except np.linalg.LinAlgError:
        factor = np.full(matrix.shape, np.nan)
    if not np.all(np.isfinite(factor)):
        return np.full(matrix.shape, np.nan)
    if not np.iscomplexobj(matrix):
        return factor
    inner = np.tril(np.linalg.solve(factor, np.linalg.solve(factor, matrix.imag).T))
    return factor + 1j * factor @ (inner - np.diag(np.diag(inner)) / 2)


@traced_once
def solve_cholesky(factor: Array, right: Array) -> Array:
    """Solve ``F F' x = right`` for one ``(n, n)`` lower factor and an ``(n,)`` or ``(n, m)`` right-hand side."""
    xp = module_of(factor, right)
    size = factor.shape[0]
    if xp is np:
        if not np.all(np.isfinite(factor)):
            return np.full(np.shape(right), np.nan)
        return np.linalg.solve(factor.T, np.linalg.solve(factor, right))
    diagonal = xp.diagonal(factor)

    def forward(k: Array, rest: Array) -> Array:
        value = rest[k] / diagonal[k]
        below = xp.where(xp.arange(size) > k, factor[:, k], 0.0)
        return (rest - below.reshape((size,) + (1,) * (rest.ndim - 1)) * value).at[k].set(value)

    def backward(step: Array, rest: Array) -> Array:
        k = size - 1 - step
        value = rest[k] / diagonal[k]
        above = xp.where(xp.arange(size) < k, factor[k, :], 0.0)
        return (rest - above.reshape((size,) + (1,) * (rest.ndim - 1)) * value).at[k].set(value)

    return for_loop(size, backward, for_loop(size, forward, right))


def quarters(one: Array, right: Array, below: Array, other: Array) -> Array:
    """The matrix of four."""
    xp = module_of(one, right, below, other)
    return xp.concatenate([xp.concatenate([one, right], axis=1), xp.concatenate([below, other], axis=1)])


def inverse(matrix: Array) -> Array:
    """Inverse of one symmetric positive definite ``(n, n)`` matrix; NaN where it is not positive definite."""
    identity = module_of(matrix).eye(matrix.shape[0], dtype=matrix.dtype)
    solved = solve_cholesky(cholesky(matrix), identity)
    return (solved + solved.T) / 2


def logdet(matrix: Array) -> Array:
    """``log|matrix|`` of one symmetric positive definite ``(n, n)`` matrix; NaN where it is not."""
    xp = module_of(matrix)
    return 2 * xp.sum(xp.log(xp.diagonal(cholesky(matrix))))
