"""Small dense algebra over many clusters at once, in plain array arithmetic.

Every array is ``(rows, columns, clusters)``: the cluster axis comes last, so that each scalar of a small matrix is a
vector over clusters. Nothing here reaches a LAPACK or cuSOLVER custom call: those deadlock the CPU thread pool when
they are batched under second derivatives or ``vmap`` (docs/decisions.md).

What a program uses in several places is ``jax.jit`` by itself, so that it is traced once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


def matmul(left: Array, right: Array) -> Array:
    """Product of ``(n, k, ...)`` and ``(k, m, ...)`` matrices along the leading two axes -> ``(n, m, ...)``.

    Written as a multiply and a short sum, which the compiler turns into one vectorised loop over clusters; a batched
    ``dot`` would move the cluster axis to the front and treat the matrices one by one.
    """
    return jnp.sum(left[:, :, None] * right[None, :, :], axis=1)


def total(array: Array) -> Array:
    """Sum over clusters, the last axis, as a product with ones: several times faster than a reduction on a CPU."""
    return array @ jnp.ones(array.shape[-1], array.dtype)


@jax.jit
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
    size = matrix.shape[0]
    table = jnp.concatenate([matrix, right], axis=1)
    rows = []
    logdet = jnp.zeros(matrix.shape[2:], matrix.dtype)
    for _ in range(size):
        pivot = table[0, 0]
        row = table[0] / jnp.sqrt(pivot)
        logdet = logdet + jnp.log(pivot)
        remaining = table.shape[0] - 1
        rows.append(row[remaining + 1 :])
        table = table[1:, 1:] - row[1 : remaining + 1, None] * row[None, 1:]
    if not rows:
        return jnp.zeros((0, *right.shape[1:]), right.dtype), logdet
    return jnp.stack(rows), logdet


@jax.jit
def cholesky(matrix: Array) -> Array:
    """Lower Cholesky factor of one ``(n, n)`` matrix by a loop over columns; NaN where it is not positive definite.

    For the matrices of an optimiser (n = number of variance parameters), where unrolling would cost compile time. It
    survives ``vmap`` because it is plain arithmetic.
    """
    size = matrix.shape[0]
    index = jnp.arange(size)

    def column(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, factor = state
        scaled = jnp.where(index >= k, rest[:, k] / jnp.sqrt(rest[k, k]), 0.0)
        return rest - scaled[:, None] * scaled[None, :], factor.at[:, k].set(scaled)

    return lax.fori_loop(0, size, column, (matrix, jnp.zeros_like(matrix)))[1]


@jax.jit
def solve_cholesky(factor: Array, right: Array) -> Array:
    """Solve ``F F' x = right`` for one ``(n, n)`` lower factor and an ``(n,)`` or ``(n, m)`` right-hand side."""
    size = factor.shape[0]
    diagonal = jnp.diagonal(factor)

    def forward(k: Array, rest: Array) -> Array:
        value = rest[k] / diagonal[k]
        below = jnp.where(jnp.arange(size) > k, factor[:, k], 0.0)
        return (rest - below.reshape((size,) + (1,) * (rest.ndim - 1)) * value).at[k].set(value)

    def backward(step: Array, rest: Array) -> Array:
        k = size - 1 - step
        value = rest[k] / diagonal[k]
        above = jnp.where(jnp.arange(size) < k, factor[k, :], 0.0)
        return (rest - above.reshape((size,) + (1,) * (rest.ndim - 1)) * value).at[k].set(value)

    return lax.fori_loop(0, size, backward, lax.fori_loop(0, size, forward, right))


def inverse(matrix: Array) -> Array:
    """Inverse of one symmetric positive definite ``(n, n)`` matrix; NaN where it is not positive definite."""
    solved = solve_cholesky(cholesky(matrix), jnp.eye(matrix.shape[0], dtype=matrix.dtype))
    return (solved + solved.T) / 2


def logdet(matrix: Array) -> Array:
    """``log|matrix|`` of one symmetric positive definite ``(n, n)`` matrix; NaN where it is not."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky(matrix))))
