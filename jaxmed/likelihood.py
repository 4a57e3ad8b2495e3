"""Exact marginal likelihood of a system from its moments, ML and REML, and its derivatives in closed form.

With G = LL', residual precisions tau_e = 1/sigma_e^2 and the cross-products W = sum_e tau_e W_e of ``[X y]`` of a
cluster, ``A`` its random-by-random block and ``M = I + L'AL``,

    P = [X y]' V^-1 [X y] = W - W_z' L M^-1 L' W_z,      log|V| = sum_e n_e log sigma_e^2 + log|M|,

and everything else follows from S = sum_j P_j and sum_j log|M_j|: the GLS estimate of the fixed effects, the
generalised residual sum of squares and log|X'V^-1X|. The derivatives are those of docs/method.md, in the entries of
G and in tau; ``jax.hessian`` of :func:`negative_loglik` is their definition and the tests' oracle.

Clusters are taken in blocks, so that memory does not grow with their number. Clusters whose moments are zero (padding)
contribute exactly nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from jaxmed import linalg
from jaxmed.params import Layout

BLOCK = 128
Sums = TypeVar("Sums", bound=tuple[Array, ...])


class Data(NamedTuple):
    """What the likelihood reads: the padded table of moments and the counts of rows.

    Attributes
    ----------
    table : Array, shape (rows, padded clusters)
        Packed moments, clusters last, padded with zeros to a whole number of blocks.
    n_blocks : Array, int
        Blocks that hold data (the padding beyond them is not visited).
    n_rows : Array, shape (E,)
        Rows that count in each equation.
    """

    table: Array
    n_blocks: Array
    n_rows: Array


class Evaluation(NamedTuple):
    """Value and derivatives of the profiled negative log likelihood f at one point.

    Attributes
    ----------
    value : Array, scalar
    gradient : Array, shape (n,)
        In (free entries of G, tau); n = ``layout.n_theta``.
    hessian : Array, shape (n, n)
    beta : Array, shape (p,)
        GLS estimate of the fixed effects.
    beta_cov : Array, shape (p, p)
        ``(X'V^-1X)^-1``.
    beta_jacobian : Array, shape (p, n)
        Derivative of ``beta`` in (free entries of G, tau).
    magnitude : Array, scalar
        Size of the terms whose sum is f: f is known to a few eps of it.
    """

    value: Array
    gradient: Array
    hessian: Array
    beta: Array
    beta_cov: Array
    beta_jacobian: Array
    magnitude: Array


def make_data(table: NDArray[np.float64], n_rows: tuple[int, ...]) -> Data:
    """Pad a table of moments with empty clusters to one of a few sizes, so that compiled programs are used again."""
    n_clusters = table.shape[1]
    n_blocks = max(1, -(-n_clusters // BLOCK))
    padded = 1
    while padded < n_blocks:
        padded = padded + padded // 2 if (padded & (padded - 1)) == 0 and padded > 1 else -(-padded * 4 // 3)
    wide = np.zeros((len(table), padded * BLOCK))
    wide[:, :n_clusters] = table
    # NumPy until a compiled program takes them in: float64 arrays cannot exist outside the float64 scope.
    return Data(wide, np.int64(n_blocks), np.asarray(n_rows, dtype=np.float64))  # type: ignore[arg-type]


# The model of one block ----------------------------------------------------------------------------------------------


def _products(layout: Layout, block: Array) -> list[Array]:
    """Cross-products of ``[X_e y_e]`` per equation, each (d_e, d_e, clusters)."""
    return [sum((block[np.array(term)] for term in terms[1:]), block[np.array(terms[0])]) for terms in layout.rows]


def _embed(layout: Layout, e: int, product: Array) -> Array:
    """Rows of equation e of the stacked ``[X y]'[X y]``: (d_e, d_e, clusters) -> (d_e, p + 1, clusters)."""
    first, size = layout.starts[e], layout.sizes[e]
    left = jnp.zeros((size + 1, first, product.shape[2]), product.dtype)
    right = jnp.zeros((size + 1, layout.n_fixed - first - size, product.shape[2]), product.dtype)
    return jnp.concatenate([left, product[:, :size], right, product[:, size:]], axis=1)


def _stack(embedded: list[Array]) -> Array:
    """Embedded rows of all equations -> the stacked (p + 1, p + 1, clusters) matrix; the y rows add up."""
    return jnp.concatenate([*(rows[:-1] for rows in embedded), sum(rows[-1:] for rows in embedded)])


def _eliminate(layout: Layout, root: Array, weighted: Array) -> tuple[Array, Array, Array]:
    """``(F^-1 L'W_z, F^-1 L', log|M|)`` with ``M = FF'``; shapes (q, p + 1, J), (q, q, J), (J,)."""
    z = np.array(layout.random, dtype=int)
    q = len(z)
    transposed = root.T[:, :, None]
    left = linalg.matmul(transposed, weighted[z])
    matrix = linalg.matmul(left[:, z], root[:, :, None]) + jnp.eye(q)[:, :, None]
    roots = jnp.broadcast_to(transposed, (q, q, weighted.shape[2]))
    half, logdet = linalg.half_solve(matrix, jnp.concatenate([left, roots], axis=1))
    return half[:, : layout.n_fixed + 1], half[:, layout.n_fixed + 1 :], logdet


def _weighted(layout: Layout, tau: Array, block: Array) -> Array:
    """W = sum_e tau_e W_e, shape (p + 1, p + 1, clusters)."""
    return _stack([_embed(layout, e, tau[e] * product) for e, product in enumerate(_products(layout, block))])


def _marginal(layout: Layout, root: Array, tau: Array, block: Array) -> tuple[Array, Array]:
    """S = sum_j P_j and sum_j W_j, shape (2, p + 1, p + 1), and sum_j log|M_j| of one block."""
    weighted = _weighted(layout, tau, block)
    half, _, logdet = _eliminate(layout, root, weighted)
    reduced = weighted - linalg.matmul(half.swapaxes(0, 1), half)
    return jnp.sum(jnp.stack([reduced, weighted]), axis=-1), jnp.sum(logdet)


def _profile(layout: Layout, total: Array, logdet: Array, tau: Array, n_rows: Array) -> tuple[Array, Array, Array]:
    """f, ``(X'V^-1X)^-1`` and the contrast ``v = (-beta, 1)`` from the summed S and log|M|."""
    p = layout.n_fixed
    beta_cov = linalg.inverse(total[:p, :p])
    contrast = jnp.append(-(beta_cov @ total[:p, p]), 1.0)
    deviance = contrast @ total @ contrast + logdet - jnp.sum(n_rows * jnp.log(tau))
    degrees = jnp.sum(n_rows)
    if layout.reml:
        degrees = degrees - p
        deviance = deviance + linalg.logdet(total[:p, :p])
    return (deviance + degrees * np.log(2 * np.pi)) / 2, beta_cov, contrast


def negative_loglik(layout: Layout, root: Array, tau: Array, data: Data) -> Array:
    """The negative log likelihood f in one block: the plain definition that automatic differentiation can go through.

    Stacked as in Bauer, Preacher & Gil (2006); REML as in Harville (1974) without the constant log|X'X|.
    """
    total, logdet = _marginal(layout, root, tau, data.table)
    return _profile(layout, total[0], logdet, tau, data.n_rows)[0]


# Blocked evaluation --------------------------------------------------------------------------------------------------


def _over_blocks(data: Data, body: Callable[[Array], Sums], zeros: Sums) -> Sums:
    """Sum ``body(block)`` over the blocks of clusters."""

    def step(index: Array, sums: Sums) -> Sums:
        block = lax.dynamic_slice_in_dim(data.table, index * BLOCK, BLOCK, axis=1)
        return jax.tree.map(jnp.add, sums, body(block))

    return lax.fori_loop(0, data.n_blocks, step, zeros)


def _marginal_blocks(layout: Layout, root: Array, tau: Array, data: Data) -> tuple[Array, Array]:
    p = layout.n_fixed
    return _over_blocks(
        data, lambda block: _marginal(layout, root, tau, block), (jnp.zeros((2, p + 1, p + 1)), jnp.zeros(()))
    )


def value(layout: Layout, root: Array, tau: Array, data: Data) -> Array:
    """The negative log likelihood f, in blocks."""
    total, logdet = _marginal_blocks(layout, root, tau, data)
    return _profile(layout, total[0], logdet, tau, data.n_rows)[0]


class _Indices:
    """Static index tables of the second pass."""

    def __init__(self, layout: Layout) -> None:
        p, q = layout.n_fixed, layout.n_random
        self.z = np.array(layout.random, dtype=int)
        pairs: dict[tuple[int, int], int] = {}
        self.unique = np.zeros((q, p), dtype=int)
        for a, at in enumerate(layout.random):
            for c in range(p):
                self.unique[a, c] = pairs.setdefault((min(at, c), max(at, c)), len(pairs))
        first = np.unique(self.unique, return_index=True)[1]
        self.unique_row, self.unique_col = np.unravel_index(first, (q, p)) if q else (first, first)
        self.tril = np.tril_indices(q)
        self.packed = np.zeros((q, q), dtype=int)
        self.packed[self.tril] = self.packed.T[self.tril] = np.arange(len(self.tril[0]))
        self.row, self.col = np.array(layout.free, dtype=int).reshape(-1, 2).T
        self.once = np.where(self.row == self.col, 0.5, 1.0)


def gradient(layout: Layout, root: Array, tau: Array, data: Data) -> tuple[Array, Array]:
    """The negative log likelihood f and its gradient in (free entries of G, tau)."""
    total, logdet = _marginal_blocks(layout, root, tau, data)
    f, beta_cov, contrast = _profile(layout, total[0], logdet, tau, data.n_rows)
    indices = _Indices(layout)
    sums = _second_pass(layout, indices, root, tau, data, beta_cov, contrast, curvature=False)
    return f, _gradient(layout, indices, sums[0], sums[1], sums[2], beta_cov, contrast, tau, data.n_rows)


def evaluate(layout: Layout, root: Array, tau: Array, data: Data) -> Evaluation:
    """The negative log likelihood f, gradient and Hessian in (free entries of G, tau), and the GLS estimate."""
    p, q = layout.n_fixed, layout.n_random
    total, logdet = _marginal_blocks(layout, root, tau, data)
    f, beta_cov, contrast = _profile(layout, total[0], logdet, tau, data.n_rows)
    at = _Indices(layout)
    sum_g, trace, sum_q, outer, mixed, square = _second_pass(
        layout, at, root, tau, data, beta_cov, contrast, curvature=True
    )
    grad = _gradient(layout, at, sum_g, trace, sum_q, beta_cov, contrast, tau, data.n_rows)

    # Expand the packed sums of products: P_zx (x) P_zx, P_zx (x) r and P_zz (x) (2 P_z Lambda P_z' - P_zz).
    n_unique = len(at.unique_row)
    with_r = outer[:, n_unique : n_unique + q][at.unique]
    with_b = outer[:, n_unique + q :][at.unique[:, at.z][:, :, None, None], at.packed[None, None]]
    both = with_b.transpose(3, 0, 1, 2)
    both = both + both.transpose(1, 0, 2, 3)
    both = both + both.transpose(0, 1, 3, 2)
    g_g = both[at.row[:, None], at.col[:, None], at.row, at.col] * at.once[:, None] * at.once
    symmetrised = mixed + mixed.swapaxes(1, 2)
    g_tau = symmetrised[:, at.row, at.col] * at.once
    hessian = jnp.concatenate(
        [
            jnp.concatenate([g_g, g_tau.T], axis=1),
            jnp.concatenate([g_tau, square + jnp.diag(data.n_rows / tau**2)], axis=1),
        ]
    )
    # dS/dG contracted with the contrast, and dS/dtau: what moves beta.
    moved_g = -(with_r[at.row, :, at.col] + with_r[at.col, :, at.row]) * at.once[:, None]
    moved = jnp.concatenate([moved_g, sum_q[:, :p] @ contrast])
    jacobian = beta_cov @ moved.T
    hessian = hessian - 2 * moved @ jacobian
    if layout.reml:
        with_x = outer[:, :n_unique][at.unique[:, :, None, None], at.unique[None, None]]
        d_g = with_x.transpose(0, 2, 1, 3)[at.row, at.col]
        d_g = -(d_g + d_g.swapaxes(1, 2)) * at.once[:, None, None]
        relative = beta_cov @ jnp.concatenate([d_g, sum_q[:, :p, :p]])
        flat = relative.reshape(len(relative), p * p)
        hessian = hessian - flat @ relative.swapaxes(1, 2).reshape(len(relative), p * p).T
    magnitude = contrast @ total[1] @ contrast + jnp.abs(logdet) + jnp.sum(jnp.abs(data.n_rows * jnp.log(tau))) + 1
    return Evaluation(f, grad, (hessian + hessian.T) / 4, -contrast[:p], beta_cov, jacobian, magnitude)


def _gradient(
    layout: Layout,
    at: _Indices,
    sum_g: Array,
    trace: Array,
    sum_q: Array,
    beta_cov: Array,
    contrast: Array,
    tau: Array,
    n_rows: Array,
) -> Array:
    """Gradient of f from the sums over clusters."""
    weight = jnp.outer(contrast, contrast)
    if layout.reml:
        weight = weight.at[:-1, :-1].add(beta_cov)
    in_g = 2 * at.once * sum_g[at.row, at.col]
    in_tau = trace + jnp.sum(weight * sum_q, axis=(1, 2)) - n_rows / tau
    return jnp.concatenate([in_g, in_tau]) / 2


def _second_pass(
    layout: Layout,
    at: _Indices,
    root: Array,
    tau: Array,
    data: Data,
    beta_cov: Array,
    contrast: Array,
    *,
    curvature: bool,
) -> tuple[Array, ...]:
    """Sums over clusters behind gradient and Hessian, at fixed Lambda = df/dS (docs/method.md, Derivatives).

    Per cluster, with K = L M^-1 L', U = K W_z, B = I - E U, r = P_z v and Lambda = vv' (+ (X'V^-1X)^-1 for REML):
    sum_g = P_zz - P_z Lambda P_z'; trace_e = tr(K W_e,zz); sum_q = Q_e = B'W_eB = dP/dtau_e. For the curvature also
    the outer products of P_z with (P_z, r, 2 P_z Lambda P_z' - P_zz) and the sums that mix G with tau and tau with tau.
    """
    p, q, n_equations = layout.n_fixed, layout.n_random, layout.n_equations
    own = [np.array(layout.random_of(e), dtype=int) for e in range(n_equations)]
    times_contrast = contrast[:, None]

    def body(block: Array) -> tuple[Array, ...]:
        embedded = [_embed(layout, e, product) for e, product in enumerate(_products(layout, block))]
        weighted = _stack([tau[e] * rows for e, rows in enumerate(embedded)])
        half, half_root, _ = _eliminate(layout, root, weighted)
        p_z = weighted[at.z] - linalg.matmul(half[:, at.z].swapaxes(0, 1), half)
        p_zx, p_zz = p_z[:, :p], p_z[:, at.z]
        score = jnp.sum(p_z * times_contrast, axis=1)
        spread = score[:, None] * score[None]
        if layout.reml:
            p_zx_cov = linalg.matmul(p_zx, beta_cov[:, :, None])
            spread = spread + linalg.matmul(p_zx_cov, p_zx.swapaxes(0, 1))
        k = linalg.matmul(half_root.swapaxes(0, 1), half_root)
        u = linalg.matmul(half_root.swapaxes(0, 1), half)

        trace, d_p, mixed, weighted_n = [], [], [], []
        for e in range(n_equations):
            z_local = at.z[own[e]] - layout.starts[e]
            own_rows = embedded[e][z_local]
            own_zz = own_rows[:, at.z[own[e]]]
            w_b = _place(layout, e, embedded[e]) - linalg.matmul(own_rows.swapaxes(0, 1), u[own[e]])
            n_e = w_b[at.z[own[e]]]
            q_e = w_b - linalg.matmul(u[own[e]].swapaxes(0, 1), n_e)
            trace.append(jnp.sum(k[np.ix_(own[e], own[e])] * own_zz))
            d_p.append(jnp.sum(q_e, axis=-1))
            if curvature:
                q_z = q_e[at.z]
                cross = q_z[:, at.z] - 2 * jnp.sum(q_z * times_contrast, axis=1)[:, None] * score[None]
                if layout.reml:
                    cross = cross - 2 * linalg.matmul(q_z[:, :p], p_zx_cov.swapaxes(0, 1))
                mixed.append(jnp.sum(cross, axis=-1))
                weighted_n.append((own_zz, n_e, jnp.sum(n_e * times_contrast, axis=1)))
        first = (jnp.sum(p_zz - spread, axis=-1), jnp.stack(trace), jnp.stack(d_p))
        if not curvature:
            return first

        square = jnp.zeros((n_equations, n_equations))
        for e, (zz_e, n_e, score_e) in enumerate(weighted_n):
            for f, (zz_f, n_f, score_f) in enumerate(weighted_n[: e + 1]):
                k_ef = k[np.ix_(own[e], own[f])]
                moved = linalg.matmul(zz_e, k_ef)
                total = -jnp.sum(moved * linalg.matmul(k_ef, zz_f))
                total = total - 2 * jnp.sum(score_e * linalg.matmul(k_ef, score_f[:, None])[:, 0])
                if layout.reml:
                    n_cov = linalg.matmul(n_e[:, :p], beta_cov[:, :, None])
                    total = total - 2 * jnp.sum(n_cov * linalg.matmul(k_ef, n_f[:, :p]))
                square = square.at[e, f].set(total).at[f, e].set(total)
        left = p_zx[at.unique_row, at.unique_col]
        right = jnp.concatenate([left, score, (2 * spread - p_zz)[at.tril]])
        return (*first, left @ right.T, jnp.stack(mixed), square)

    zeros: tuple[Array, ...] = (
        jnp.zeros((q, q)),
        jnp.zeros(n_equations),
        jnp.zeros((n_equations, p + 1, p + 1)),
    )
    if curvature:
        n_unique, n_packed = len(at.unique_row), len(at.tril[0])
        zeros = (
            *zeros,
            jnp.zeros((n_unique, n_unique + q + n_packed)),
            jnp.zeros((n_equations, q, q)),
            jnp.zeros((n_equations, n_equations)),
        )
    return _over_blocks(data, body, zeros)


def _place(layout: Layout, e: int, rows: Array) -> Array:
    """Embedded rows of one equation -> their place in the (p + 1, p + 1, clusters) matrix."""
    first, size = layout.starts[e], layout.sizes[e]
    width, batch = rows.shape[1:]
    above = jnp.zeros((first, width, batch), rows.dtype)
    below = jnp.zeros((layout.n_fixed - first - size, width, batch), rows.dtype)
    return jnp.concatenate([above, rows[:-1], below, rows[-1:]])


class Predictions(NamedTuple):
    """Conditional distribution of the random effects of every cluster, at given parameters.

    Attributes
    ----------
    effects : Array, shape (q, clusters)
        Empirical Bayes means E[u_j | data].
    covariance : Array, shape (q, q, clusters)
        Var(u_j | data) at known fixed effects, K_j = L M_j^-1 L'.
    sensitivity : Array, shape (q, p, clusters)
        -d u_j / d beta, the random rows of G Z'V^-1 X.
    """

    effects: Array
    covariance: Array
    sensitivity: Array


def predict(layout: Layout, root: Array, tau: Array, beta: Array, data: Data) -> Predictions:
    """Predictions for every cluster of the padded table, block by block."""
    p = layout.n_fixed
    contrast = jnp.append(-beta, 1.0)

    def body(index: Array) -> Predictions:
        block = lax.dynamic_slice_in_dim(data.table, index * BLOCK, BLOCK, axis=1)
        half, half_root, _ = _eliminate(layout, root, _weighted(layout, tau, block))
        u = linalg.matmul(half_root.swapaxes(0, 1), half)
        covariance = linalg.matmul(half_root.swapaxes(0, 1), half_root)
        return Predictions(jnp.sum(u * contrast[:, None], axis=1), covariance, u[:, :p])

    blocks = lax.map(body, jnp.arange(data.table.shape[1] // BLOCK))
    return jax.tree.map(lambda part: jnp.moveaxis(part, 0, -2).reshape(*part.shape[1:-1], -1), blocks)
