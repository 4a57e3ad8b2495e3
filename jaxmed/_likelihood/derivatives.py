"""Derivatives of the likelihood in closed form (docs/method.md, Derivatives).

In the entries of G and in tau, the entries of the residual precisions; ``jax.hessian`` of
:func:`jaxmed._likelihood.likelihood.negative_loglik` is their definition and the tests' oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxmed._likelihood import linalg
from jaxmed._likelihood.executor import Array, module_of, put
from jaxmed._likelihood.layout import Layout, log_precision, log_precision_curvature, log_precision_slopes
from jaxmed._likelihood.likelihood import (
    Data,
    Reduced,
    add_all,
    marginal_blocks,
    marginal_of,
    over_blocks,
    place,
    profile,
    reduce_block,
)


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


class FullEvaluation(NamedTuple):
    """Value and derivatives of F = f + (beta - beta_gls)'S_xx(beta - beta_gls) / 2 in beta too, at one point.

    Attributes
    ----------
    value : Array, scalar
    gradient : Array, shape (p + n,)
        In (beta, free entries of G, tau).
    hessian : Array, shape (p + n, p + n)
    magnitude : Array, scalar
        Size of the terms whose sum is F.
    """

    value: Array
    gradient: Array
    hessian: Array
    magnitude: Array


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
        self.row, self.col = layout.free_index
        self.places = [place(layout, piece) for piece in layout.pieces]
        self.once = np.where(self.row == self.col, 0.5, 1.0)


@lru_cache(64)
def _indices(layout: Layout) -> _Indices:
    return _Indices(layout)


def gradient(layout: Layout, root: Array, tau: Array, data: Data) -> tuple[Array, Array]:
    """The negative log likelihood f and its gradient in (free entries of G, tau)."""
    total, logdet = marginal_blocks(layout, root, tau, data)
    f, beta_cov, contrast = profile(layout, total[0], logdet, tau, data.n_rows)
    sums = second_pass(layout, root, tau, data, beta_cov, contrast, curvature=False)
    return f, _gradient(layout, _indices(layout), sums[:3], beta_cov, contrast, tau, data.n_rows)


def evaluate(layout: Layout, root: Array, tau: Array, data: Data) -> Evaluation:
    """The negative log likelihood f, gradient and Hessian in (free entries of G, tau), and the GLS estimate."""
    return assemble(layout, tau, data.n_rows, *passes(layout, root, tau, data))


def passes(layout: Layout, root: Array, tau: Array, data: Data) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    """The sums over clusters that :func:`assemble` makes an evaluation of."""
    if module_of(root, data.table) is not np:
        first = marginal_blocks(layout, root, tau, data)  # the compiler finds what both passes need
        _, beta_cov, contrast = profile(layout, first[0][0], first[1], tau, data.n_rows)
        return first, second_pass(layout, root, tau, data, beta_cov, contrast)
    reduced = [reduce_block(layout, root, tau, block) for block in data.table]
    first = add_all(map(marginal_of, reduced))
    _, beta_cov, contrast = profile(layout, first[0][0], first[1], tau, data.n_rows)
    body = _second(layout, beta_cov, contrast)
    return first, add_all(map(body, reduced))


def assemble(
    layout: Layout, tau: Array, n_rows: Array, first: tuple[Array, Array], second: tuple[Array, ...]
) -> Evaluation:
    """The evaluation from the sums of the two passes over all clusters."""
    p = layout.n_fixed
    total, logdet = first
    f, beta_cov, contrast = profile(layout, total[0], logdet, tau, n_rows)
    grad, hessian, moved = _at_contrast(layout, tau, n_rows, second, beta_cov, contrast)
    # What moves beta.
    jacobian = beta_cov @ moved.T
    hessian = hessian - moved @ jacobian
    magnitude = _magnitude(layout, tau, n_rows, first, contrast)
    return Evaluation(f, grad, (hessian + hessian.T) / 2, -contrast[:p], beta_cov, jacobian, magnitude)


def assemble_full(
    layout: Layout, tau: Array, n_rows: Array, beta: Array, first: tuple[Array, Array], second: tuple[Array, ...]
) -> FullEvaluation:
    """The evaluation at any beta, from the sums of the two passes, the second with the contrast ``(-beta, 1)``."""
    p = layout.n_fixed
    total, logdet = first
    f, beta_cov, best = profile(layout, total[0], logdet, tau, n_rows)
    xp = module_of(total, beta)
    contrast = xp.append(-beta, 1.0)
    away = beta + best[:p]
    in_theta, hessian, moved = _at_contrast(layout, tau, n_rows, second, beta_cov, contrast)
    in_beta = total[0][:p, :p] @ away  # -(S v)_x, without its cancellation
    whole = linalg.quarters(total[0][:p, :p], -moved.T, -moved, hessian)
    return FullEvaluation(
        f + away @ in_beta / 2,
        xp.concatenate([in_beta, in_theta]),
        (whole + whole.T) / 2,
        _magnitude(layout, tau, n_rows, first, contrast),
    )


def _magnitude(layout: Layout, tau: Array, n_rows: Array, first: tuple[Array, Array], contrast: Array) -> Array:
    """Size of the terms whose sum is f."""
    total, logdet = first
    xp, volume = module_of(tau, contrast), log_precision(layout, tau, n_rows)
    return contrast @ total[1] @ contrast + xp.abs(logdet) + xp.abs(volume) + xp.sum(n_rows) + 1


def _at_contrast(
    layout: Layout, tau: Array, n_rows: Array, second: tuple[Array, ...], beta_cov: Array, contrast: Array
) -> tuple[Array, Array, Array]:
    """Gradient and Hessian in (free entries of G, tau) with beta held, and dS/d(G, tau) v, shape (n, p)."""
    xp, p, q = module_of(tau, contrast), layout.n_fixed, layout.n_random
    at = _indices(layout)
    _, _, sum_q, outer, mixed, square = second
    grad = _gradient(layout, at, second[:3], beta_cov, contrast, tau, n_rows)

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
    in_tau = square - log_precision_curvature(layout, tau, n_rows)
    hessian = linalg.quarters(g_g, g_tau.T, g_tau, in_tau)
    # dS/dG contracted with the contrast, and dS/dtau.
    moved_g = -(with_r[at.row, :, at.col] + with_r[at.col, :, at.row]) * at.once[:, None]
    moved = xp.concatenate([moved_g, sum_q[:, :p] @ contrast])
    if layout.reml:
        with_x = outer[:, :n_unique][at.unique[:, :, None, None], at.unique[None, None]]
        d_g = with_x.transpose(0, 2, 1, 3)[at.row, at.col]
        d_g = -(d_g + d_g.swapaxes(1, 2)) * at.once[:, None, None]
        relative = beta_cov @ xp.concatenate([d_g, sum_q[:, :p, :p]])
        flat = relative.reshape(len(relative), p * p)
        hessian = hessian - flat @ relative.swapaxes(1, 2).reshape(len(relative), p * p).T
    return grad, hessian / 2, moved


def _gradient(
    layout: Layout,
    at: _Indices,
    sums: tuple[Array, ...],
    beta_cov: Array,
    contrast: Array,
    tau: Array,
    n_rows: Array,
) -> Array:
    """Gradient of f from the first three sums of the second pass."""
    xp = module_of(tau, contrast)
    sum_g, trace, sum_q = sums
    weight = xp.outer(contrast, contrast)
    if layout.reml:
        weight = weight + xp.pad(beta_cov, ((0, 1), (0, 1)))
    in_g = 2 * at.once * sum_g[at.row, at.col]
    in_tau = trace + xp.sum(weight * sum_q, axis=(1, 2))
    in_tau = in_tau - n_rows @ log_precision_slopes(layout, tau)
    return xp.concatenate([in_g, in_tau]) / 2


def second_pass(
    layout: Layout,
    root: Array,
    tau: Array,
    data: Data,
    beta_cov: Array,
    contrast: Array,
    *,
    curvature: bool = True,
) -> tuple[Array, ...]:
    """Sums over clusters behind gradient and Hessian, at fixed Lambda = df/dS (docs/method.md, Derivatives).

    Per cluster, with K = L M^-1 L', U = K W_z, B = I - E U, r = P_z v and Lambda = vv' (+ (X'V^-1X)^-1 for REML):
    sum_g = P_zz - P_z Lambda P_z'; trace_c = tr(K W_c,zz); sum_q = Q_c = B'W_cB = dP/dtau_c. For the curvature also
    the outer products of P_z with (P_z, r, 2 P_z Lambda P_z' - P_zz) and the sums that mix G with tau and tau with tau.
    """
    body = _second(layout, beta_cov, contrast, curvature=curvature)
    xp, at = module_of(root, contrast), _indices(layout)
    p, q, n_pieces = layout.n_fixed, layout.n_random, len(layout.pieces)

    zeros: tuple[Array, ...] = (
        xp.zeros((q, q)),
        xp.zeros(n_pieces),
        xp.zeros((n_pieces, p + 1, p + 1)),
    )
    if curvature:
        n_unique, n_packed = len(at.unique_row), len(at.tril[0])
        zeros = (
            *zeros,
            xp.zeros((n_unique, n_unique + q + n_packed)),
            xp.zeros((n_pieces, q, q)),
            xp.zeros((n_pieces, n_pieces)),
        )
    return over_blocks(data, lambda block: body(reduce_block(layout, root, tau, block)), zeros)


def _second(
    layout: Layout, beta_cov: Array, contrast: Array, *, curvature: bool = True
) -> Callable[[Reduced], tuple[Array, ...]]:
    """The sums of the second pass over one block."""
    xp, at = module_of(contrast), _indices(layout)
    p, n_pieces = layout.n_fixed, len(layout.pieces)
    own = [found.own for found in at.places]
    times_contrast = contrast[:, None]

    def body(block: Reduced) -> tuple[Array, ...]:
        # The last axis of every array holds the clusters j of the block, which formulas leave out.
        # W_c: cross-products of [X y] that the entry tau_c of a residual precision weights; W = sum_c tau_c W_c.
        embedded, weighted, half, half_root, _ = block
        # M = I + L'W_zz L = FF' (Cholesky): half = F^-1 L'W_z and half_root = F^-1 L', so that products of them
        # have L M^-1 L' in the middle.
        # P_z: the rows of P = [X y]'V^-1[X y] that belong to random effects, W_z - W_zz L M^-1 L' W_z.
        p_z = weighted[at.z] - linalg.matmul(half[:, at.z].swapaxes(0, 1), half)
        p_zx, p_zz = p_z[:, :p], p_z[:, at.z]
        score = xp.sum(p_z * times_contrast, axis=1)  # r = P_z v = Z'V^-1(y - X beta), with v = (-beta, 1)
        outer = score[:, None] * score[None]  # P_z Lambda P_z' with Lambda = vv'
        if layout.reml:  # Lambda = vv' + S_xx^-1, where beta_cov = S_xx^-1
            p_zx_cov = linalg.matmul(p_zx, beta_cov[:, :, None])
            outer = outer + linalg.matmul(p_zx_cov, p_zx.swapaxes(0, 1))
        k = linalg.matmul(half_root.swapaxes(0, 1), half_root)  # K = L M^-1 L'
        u = linalg.matmul(half_root.swapaxes(0, 1), half)  # U = K W_z

        trace, d_p, mixed, weighted_n = [], [], [], []
        for c, found in enumerate(at.places):
            own_rows = embedded[c][found.local]
            own_zz = own_rows[:, at.z[own[c]]]  # W_c,zz
            # B = I - E U: W_c B, its random rows N_c, and Q_c = B'W_c B = dP / dtau_c.
            w_b = placed(layout, found.fixed, embedded[c]) - linalg.matmul(own_rows.swapaxes(0, 1), u[own[c]])
            n_c = w_b[at.z[own[c]]]
            q_c = w_b - linalg.matmul(u[own[c]].swapaxes(0, 1), n_c)
            trace.append(xp.sum(k[np.ix_(own[c], own[c])] * own_zz))  # tr(K W_c,zz) = d log|M| / dtau_c
            d_p.append(linalg.total(q_c))
            if curvature:
                # Second derivative in G and tau_c: tr(dG (Q_c,zz - 2 Q_c,z Lambda P_z')).
                q_z = q_c[at.z]
                cross = q_z[:, at.z] - 2 * xp.sum(q_z * times_contrast, axis=1)[:, None] * score[None]
                if layout.reml:
                    cross = cross - 2 * linalg.matmul(q_z[:, :p], p_zx_cov.swapaxes(0, 1))
                mixed.append(linalg.total(cross))
                weighted_n.append((own_zz, n_c, xp.sum(n_c * times_contrast, axis=1)))
        first = (linalg.total(p_zz - outer), xp.stack(trace), xp.stack(d_p))
        if not curvature:
            return first

        # Second derivatives in tau_c and tau_d: -2 tr(K N_d Lambda N_c') - tr(K W_d,zz K W_c,zz).
        square = xp.zeros((n_pieces, n_pieces))
        for c, (zz_c, n_c, score_c) in enumerate(weighted_n):
            for d, (zz_d, n_d, score_d) in enumerate(weighted_n[: c + 1]):
                k_cd = k[np.ix_(own[c], own[d])]
                moved = linalg.matmul(zz_c, k_cd)
                total = -xp.sum(moved * linalg.matmul(k_cd, zz_d))
                total = total - 2 * xp.sum(score_c * linalg.matmul(k_cd, score_d[:, None])[:, 0])
                if layout.reml:
                    n_cov = linalg.matmul(n_c[:, :p], beta_cov[:, :, None])
                    total = total - 2 * xp.sum(n_cov * linalg.matmul(k_cd, n_d[:, :p]))
                square = put(put(square, (c, d), total), (d, c), total)
        # Second derivatives in G are products of entries of P_z with entries of P_z, r and 2 P_z Lambda P_z' - P_zz:
        # each different entry once, their products over all clusters as one matrix product.
        left = p_zx[at.unique_row, at.unique_col]
        right = xp.concatenate([left, score, (2 * outer - p_zz)[at.tril]])
        return (*first, left @ right.T, xp.stack(mixed), square)

    return body


def placed(layout: Layout, fixed: tuple[int, ...], rows: Array) -> Array:
    """Rows of a piece -> their place in the (p + 1, p + 1, clusters) matrix."""
    xp = module_of(rows)
    if fixed == tuple(range(fixed[0], fixed[-1] + 1)):
        above = xp.zeros((fixed[0], *rows.shape[1:]), rows.dtype)
        below = xp.zeros((layout.n_fixed - fixed[-1] - 1, *rows.shape[1:]), rows.dtype)
        return xp.concatenate([above, rows[:-1], below, rows[-1:]])
    whole = xp.zeros((layout.n_fixed + 1, *rows.shape[1:]), rows.dtype)
    return put(whole, np.array((*fixed, layout.n_fixed)), rows)
