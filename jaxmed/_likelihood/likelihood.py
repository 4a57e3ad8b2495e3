"""Exact marginal likelihood of a system from its moments, ML and REML, and its derivatives in closed form.

With G = LL', the entries tau_c of the residual precisions (1/sigma_e^2 where residuals are independent) and the
cross-products W = sum_c tau_c W_c of ``[X y]`` of a cluster, ``A`` its random-by-random block and ``M = I + L'AL``,

    P = [X y]' V^-1 [X y] = W - W_z' L M^-1 L' W_z,      log|V| = sum_S n_S log|Sigma_SS| + log|M|,

and everything else follows from S = sum_j P_j and sum_j log|M_j|: the GLS estimate of the fixed effects, the
generalised residual sum of squares and log|X'V^-1X|. The derivatives are in :mod:`jaxmed._likelihood.derivatives`.

Clusters are taken in blocks, so that memory does not grow with their number. Clusters whose moments are zero (padding)
contribute exactly nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, reduce
from operator import add
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxmed._likelihood import linalg
from jaxmed._likelihood.executor import Array, Engine, map_arrays, module_of, traced_once
from jaxmed._likelihood.layout import Layout, Piece, log_precision

BLOCK = 128
NUMPY_BLOCK = 512
Sums = TypeVar("Sums", bound=tuple[Array, ...])


class Data(NamedTuple):
    """What the likelihood reads: blocks of moments and the counts of rows.

    Attributes
    ----------
    table : Array, shape (padded blocks, rows, clusters of a block)
        Packed moments, clusters last, padded with empty clusters and blocks.
    n_blocks : Array, int
        Blocks that hold data (the padding beyond them is not visited).
    n_rows : Array, shape (n_sets,)
        Rows of each set of equations in ``layout.seen``: of each equation where residuals are independent.
    """

    table: Array
    n_blocks: Array
    n_rows: Array


def make_data(table: NDArray[np.float64], n_rows: tuple[int, ...], block: int = BLOCK) -> Data:
    """Cut a table of moments, shape (rows, clusters), into blocks.

    Padded with empty clusters to 1, 8, 64, ... blocks, so that compiled programs are used again; only blocks with data
    are visited.
    """
    n_clusters = table.shape[1]
    n_blocks = max(1, -(-n_clusters // block))
    padded = 1
    while padded < n_blocks:
        padded *= 8
    cut = np.zeros((padded, len(table), block))
    whole = n_clusters // block
    cut[:whole] = table[:, : whole * block].reshape(len(table), whole, block).swapaxes(0, 1)
    if whole < n_blocks:
        cut[whole, :, : n_clusters - whole * block] = table[:, whole * block :]
    # NumPy until a compiled program takes them in: float64 arrays cannot exist outside the float64 scope.
    return Data(cut, np.int64(n_blocks), np.asarray(n_rows, dtype=np.float64))


def data_for(engine: Engine, table: NDArray[np.float64], n_rows: tuple[int, ...]) -> Data:
    """A table of moments in blocks, as an engine takes them."""
    return make_numpy_data(table, n_rows) if engine == "numpy" else make_data(table, n_rows)


def make_numpy_data(table: NDArray[np.float64], n_rows: tuple[int, ...]) -> Data:
    """A table of moments in blocks for NumPy, which stay in the processor's cache; only the last is padded."""
    block = min(max(table.shape[1], 1), NUMPY_BLOCK)
    n_blocks = max(1, -(-table.shape[1] // block))
    padded = np.pad(table, ((0, 0), (0, n_blocks * block - table.shape[1])))
    cut = np.ascontiguousarray(padded.reshape(len(table), n_blocks, block).swapaxes(0, 1))
    return Data(cut, np.int64(n_blocks), np.asarray(n_rows, dtype=np.float64))


# The model of one block ----------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a piece has its rows in the stacked ``[X y]'[X y]``.

    Attributes
    ----------
    fixed : tuple of int
        Fixed effects of its equations; the last row, of the outcomes, comes after them.
    own : ndarray of int
        Random effects of its equations, among the q.
    local : ndarray of int
        Rows of these random effects among ``fixed``.
    """

    fixed: tuple[int, ...]
    own: NDArray[np.int64]
    local: NDArray[np.int64]


def place(layout: Layout, piece: Piece) -> Place:
    """Where the rows of a piece go."""
    equations = sorted({piece.first, piece.second})
    fixed = tuple(at for e in equations for at in range(layout.starts[e], layout.starts[e] + layout.sizes[e]))
    own = [k for k, owner in enumerate(layout.owners) if owner in equations]
    local = [fixed.index(layout.random[k]) for k in own]
    return Place(fixed, np.array(own, dtype=int), np.array(local, dtype=int))


def embed(layout: Layout, piece: Piece, block: Array) -> Array:
    """Rows of a piece of the stacked ``[X y]'[X y]``, unweighted: (rows of the table, J) -> (fixed + 1, p + 1, J)."""
    product = sum((block[np.array(term)] for term in piece.rows[1:]), block[np.array(piece.rows[0])])
    e, f = piece.first, piece.second
    if e == f:
        return _spread(layout, e, product)
    # Of two equations: the cross-products stand twice, and the outcomes' row collects both.
    upper, lower = _spread(layout, f, product), _spread(layout, e, product.swapaxes(0, 1))
    return module_of(product).concatenate([upper[:-1], lower[:-1], upper[-1:] + lower[-1:]])


def _spread(layout: Layout, e: int, product: Array) -> Array:
    """Columns of equation e, ``(rows, d_e)``, to their place among the p + 1: (rows, p + 1, J)."""
    xp, first, size = module_of(product), layout.starts[e], layout.sizes[e]
    left = xp.zeros((product.shape[0], first, product.shape[2]), product.dtype)
    right = xp.zeros((product.shape[0], layout.n_fixed - first - size, product.shape[2]), product.dtype)
    return xp.concatenate([left, product[:, :size], right, product[:, size:]], axis=1)


def weighted_sum(layout: Layout, tau: Array, embedded: list[Array]) -> Array:
    """W = sum_c tau_c W_c, shape (p + 1, p + 1, J): rows of equal place are added, then stacked, the outcomes' last."""
    xp = module_of(tau, *embedded)
    rows: list[Array | None] = [None] * layout.n_equations
    last = xp.zeros((1, *embedded[0].shape[1:]), embedded[0].dtype)

    def add(e: int, part: Array) -> None:
        known = rows[e]
        rows[e] = part if known is None else known + part

    for c, (piece, found) in enumerate(zip(layout.pieces, embedded, strict=True)):
        found = tau[c] * found
        size = layout.sizes[piece.first]
        add(piece.first, found[:size])
        if piece.first != piece.second:
            add(piece.second, found[size:-1])
        last = last + found[-1:]
    return xp.concatenate([*(part for part in rows if part is not None), last])


def eliminate(layout: Layout, root: Array, weighted: Array) -> tuple[Array, Array, Array]:
    """``(F^-1 L'W_z, F^-1 L', log|M|)`` with ``M = FF'``; shapes (q, p + 1, J), (q, q, J), (J,)."""
    xp, z = module_of(root, weighted), np.array(layout.random, dtype=int)
    q = len(z)
    transposed = root.T[:, :, None]
    left = linalg.matmul(transposed, weighted[z])
    matrix = linalg.matmul(left[:, z], root[:, :, None]) + xp.eye(q, dtype=weighted.dtype)[:, :, None]
    roots = xp.broadcast_to(transposed, (q, q, weighted.shape[2]))
    half, logdet = linalg.half_solve(matrix, xp.concatenate([left, roots], axis=1))
    return half[:, : layout.n_fixed + 1], half[:, layout.n_fixed + 1 :], logdet


def weighted_products(layout: Layout, tau: Array, block: Array) -> Array:
    """W of the clusters of one block, shape (p + 1, p + 1, clusters)."""
    return weighted_sum(layout, tau, [embed(layout, piece, block) for piece in layout.pieces])


class Reduced(NamedTuple):
    """What both passes need of one block.

    Attributes
    ----------
    embedded : list of Array
        W_c of every piece, see :func:`embed`.
    weighted : Array
        W = sum_c tau_c W_c.
    half, half_root, logdet
        As :func:`eliminate`.
    """

    embedded: list[Array]
    weighted: Array
    half: Array
    half_root: Array
    logdet: Array


def reduce_block(layout: Layout, root: Array, tau: Array, block: Array) -> Reduced:
    """The block with its random effects eliminated."""
    embedded = [embed(layout, piece, block) for piece in layout.pieces]
    weighted = weighted_sum(layout, tau, embedded)
    return Reduced(embedded, weighted, *eliminate(layout, root, weighted))


def marginal_of(block: Reduced) -> tuple[Array, Array]:
    """S = sum_j P_j and sum_j W_j, shape (2, p + 1, p + 1), and sum_j log|M_j| of one block."""
    reduced = block.weighted - linalg.matmul(block.half.swapaxes(0, 1), block.half)
    return linalg.total(module_of(reduced).stack([reduced, block.weighted])), linalg.total(block.logdet)


def _marginal(layout: Layout, root: Array, tau: Array, block: Array) -> tuple[Array, Array]:
    return marginal_of(reduce_block(layout, root, tau, block))


@partial(traced_once, static=1)
def profile(layout: Layout, total: Array, logdet: Array, tau: Array, n_rows: Array) -> tuple[Array, Array, Array]:
    """f, ``(X'V^-1X)^-1`` and the contrast ``v = (-beta, 1)`` from the summed S and log|M|."""
    p = layout.n_fixed
    beta_cov = linalg.inverse(total[:p, :p])
    contrast = module_of(total).append(-(beta_cov @ total[:p, p]), 1.0)
    deviance = contrast @ total @ contrast + logdet - log_precision(layout, tau, n_rows)
    degrees = n_rows @ np.array([float(len(equations)) for equations in layout.seen])
    if layout.reml:
        degrees = degrees - p
        deviance = deviance + linalg.logdet(total[:p, :p])
    return (deviance + degrees * np.log(2 * np.pi)) / 2, beta_cov, contrast


def negative_loglik(layout: Layout, root: Array, tau: Array, data: Data) -> Array:
    """The negative log likelihood f in one block: the plain definition that automatic differentiation can go through.

    Stacked as in Bauer, Preacher & Gil (2006); REML as in Harville (1974) without the constant log|X'X|.
    """
    blocks, rows, size = data.table.shape
    total, logdet = _marginal(layout, root, tau, data.table.swapaxes(0, 1).reshape(rows, blocks * size))
    return profile(layout, total[0], logdet, tau, data.n_rows)[0]


# Blocked evaluation --------------------------------------------------------------------------------------------------


def over_blocks(data: Data, body: Callable[[Array], Sums], zeros: Sums) -> Sums:
    """Sum ``body(block)`` over the blocks of clusters.

    Without a loop where there is one block, so that the compiler finds what two passes have in common.
    """
    if data.table.shape[0] == 1:
        return body(data.table[0])
    if module_of(data.table) is np:
        return add_all(map(body, data.table[: int(data.n_blocks)]))
    from jax import lax

    def step(index: Array, sums: Sums) -> Sums:
        block = lax.dynamic_index_in_dim(data.table, index, keepdims=False)
        return map_arrays(lambda one, other: one + other, sums, body(block))

    return lax.fori_loop(0, data.n_blocks, step, zeros)


def add_all(several: Iterable[Sums]) -> Sums:
    """Sums of the arrays of several tuples, place by place."""
    return reduce(partial(map_arrays, add), several)


@partial(traced_once, static=1)
def marginal_blocks(layout: Layout, root: Array, tau: Array, data: Data) -> tuple[Array, Array]:
    """S and W summed over all clusters, shape (2, p + 1, p + 1), and sum_j log|M_j|, in blocks."""
    xp, p = module_of(root, data.table), layout.n_fixed
    return over_blocks(
        data, lambda block: _marginal(layout, root, tau, block), (xp.zeros((2, p + 1, p + 1)), xp.zeros(()))
    )


def value(layout: Layout, root: Array, tau: Array, data: Data) -> Array:
    """The negative log likelihood f, in blocks."""
    total, logdet = marginal_blocks(layout, root, tau, data)
    return profile(layout, total[0], logdet, tau, data.n_rows)[0]
