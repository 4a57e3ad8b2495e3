"""Scores of the clusters: what each adds to the gradient of the log likelihood, in closed form from its moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import Design, Moments
from jaxmed._inference.estimates import Estimates, problem_of
from jaxmed._likelihood import (
    Array,
    Data,
    Engine,
    Layout,
    Scale,
    data_for,
    eliminate,
    embed,
    executed,
    linalg,
    log_precision_slopes,
    log_sds_to_variances,
    map_blocks,
    module_of,
    place,
    placed,
    precision_chain,
    root_and_precision,
    rows_by_cluster,
    variances_to_precisions,
    weighted_sum,
)
from jaxmed._support import FitError, Floats, current_sizes


class Pieces(NamedTuple):
    """What the scores of some clusters are made of, on the working scale.

    Attributes
    ----------
    reduced : Array, shape (p + 1, p + 1, J)
        P_j = [X y]'V_j^-1[X y].
    in_tau : Array, shape (n_pieces, J)
        tr(K W_c,zz) + tr(Lambda Q_c): derivatives of log|M_j| + tr(Lambda P_j) in tau.
    moved : Array, shape (n_pieces, p, p)
        Sum over clusters of Q_c,xx = dX_j'V_j^-1X_j / dtau_c.
    """

    reduced: Array
    in_tau: Array
    moved: Array


class Point(NamedTuple):
    """What the derivatives of the residuals' part have in common over clusters.

    Attributes
    ----------
    pieces_by_set : Array, shape (n_pieces, n_sets)
        Derivatives of log|Sigma_SS^-1| in tau.
    in_variances : Array, shape (n_pieces, n_residual)
        Derivatives of tau in the residual variances and covariances.
    """

    pieces_by_set: Array
    in_variances: Array


@executed
def _pieces(layout: Layout, theta: Array, beta: Array, beta_cov: Array, data: Data) -> Pieces:
    """Pieces of the clusters of a padded table, block by block; the formulas are those of the second pass."""
    root, tau = root_and_precision(layout, theta)
    xp = module_of(root, data.table)
    contrast = xp.append(-beta, 1.0)
    weight = xp.outer(contrast, contrast)
    if layout.reml:
        weight = weight + xp.pad(beta_cov, ((0, 1), (0, 1)))
    z, p = np.array(layout.random, dtype=int), layout.n_fixed
    places = [place(layout, piece) for piece in layout.pieces]

    def body(block: Array) -> Pieces:
        embedded = [embed(layout, piece, block) for piece in layout.pieces]
        weighted = weighted_sum(layout, tau, embedded)
        half, half_root, _ = eliminate(layout, root, weighted)
        k = linalg.matmul(half_root.swapaxes(0, 1), half_root)
        u = linalg.matmul(half_root.swapaxes(0, 1), half)
        in_tau, moved = [], []
        for c, found in enumerate(places):
            own_rows = embedded[c][found.local]
            own_zz = own_rows[:, z[found.own]]
            w_b = placed(layout, found.fixed, embedded[c]) - linalg.matmul(own_rows.swapaxes(0, 1), u[found.own])
            q_c = w_b - linalg.matmul(u[found.own].swapaxes(0, 1), w_b[z[found.own]])
            trace = xp.sum(k[np.ix_(found.own, found.own)] * own_zz, axis=(0, 1))
            in_tau.append(trace + xp.sum(weight[:, :, None] * q_c, axis=(0, 1)))
            moved.append(linalg.total(q_c[:p, :p])[..., None])
        reduced = weighted - linalg.matmul(half.swapaxes(0, 1), half)
        return Pieces(reduced, xp.stack(in_tau), xp.stack(moved))

    found = map_blocks(body, data.table)
    return found._replace(moved=xp.sum(found.moved, axis=-1))


def _point(layout: Layout, theta: Floats) -> Point:
    variances = log_sds_to_variances(layout, theta[len(layout.free) :])
    tau = variances_to_precisions(layout, variances)
    in_variances, _ = precision_chain(layout, variances, np.zeros(len(layout.pieces)))
    return Point(log_precision_slopes(layout, tau).T, in_variances)


class Scores(NamedTuple):
    """Scores of the clusters on the working scale, and what goes with them.

    Attributes
    ----------
    clusters : ndarray, shape (J,)
        Labels of the clusters that have rows.
    scale : Scale
        From the working to the user's scale.
    values : ndarray, shape (p + n, J)
        Derivatives of each cluster's term in (fixed effects, free entries of G, residual variances and covariances).
    information : ndarray, shape (p, p, J)
        X_j'V_j^-1X_j.
    moved : ndarray, shape (n, p, p)
        Derivatives of X'V^-1X, summed over clusters, in (free entries of G, residual variances and covariances).
    beta_cov : ndarray, shape (p, p)
        (X'V^-1X)^-1.
    """

    clusters: NDArray[np.generic]
    scale: Scale
    values: Floats
    information: Floats
    moved: Floats
    beta_cov: Floats

    @property
    def on_user_scale(self) -> Floats:
        """:attr:`values` in the user's parameters."""
        return np.asarray(np.linalg.solve(self.scale.matrix.T, self.values), dtype=float)


def cluster_scores(fit: Estimates, moments: Moments) -> Scores:
    """Scores at the estimates: l_j the cluster's log likelihood, with e_j = y_j - X_j beta and C = (X'V^-1X)^-1,

    d l_j / d beta = X_j'V_j^-1 e_j,    d l_j / d theta_k = -(tr(V_j^-1 dV_k) - e_j'V_j^-1 dV_k V_j^-1 e_j) / 2,

    under REML plus tr(C X_j'V_j^-1 dV_k V_j^-1 X_j) / 2, the cluster's share of the derivative of -log|X'V^-1X| / 2 at
    known C. So they sum to the gradient of what was maximised, which is zero at the optimum. With normal random effects
    and residuals, or with predictors that are no responses, each of them has mean zero at the true (G, sigma^2), where
    beta is estimated: E[e_j e_j'] = V_j - X_j C X_j' (docs/diagnostics.md).

    Raises
    ------
    FitError
        The moments are those of some of the fit's clusters only.
    """
    problem = problem_of(fit, moments)
    design, layout = problem.design, problem.layout
    present = np.flatnonzero(design.sizes > 0)
    if len(present) < fit.n_clusters:
        raise FitError(
            f"this fit holds {len(present)} of its {fit.n_clusters} clusters (it was made over several processes), "
            "and scores need them all; fit them in one"
        )
    p = layout.n_fixed
    theta, beta, beta_cov = fit.working.theta, fit.working.values[:p], fit.working.block[:p, :p]
    parts = list(_parts(problem.engine, layout, design, present, theta, beta, beta_cov, _point(layout, theta)))
    values, information, moved = zip(*parts, strict=True)
    return Scores(
        moments.clusters[present],
        problem.scale,
        np.hstack(values),
        np.concatenate(information, axis=2),
        sum(moved),
        beta_cov,
    )


def _parts(
    engine: Engine,
    layout: Layout,
    design: Design,
    present: NDArray[np.int64],
    theta: Floats,
    beta: Floats,
    beta_cov: Floats,
    point: Point,
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """``values``, ``information`` and ``moved`` of :class:`Scores`, some clusters at a time."""
    p, z = layout.n_fixed, list(layout.random)
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T
    once = np.where(row == col, 0.5, 1.0)[:, None]
    contrast = np.append(-beta, 1.0)
    by_set, in_variances = np.asarray(point.pieces_by_set), np.asarray(point.in_variances)
    nothing = (0,) * len(layout.seen)
    step = current_sizes().shard_clusters
    for first in range(0, len(present), step):
        some = design.part(present[first : first + step])
        found = _pieces(engine, layout, theta, beta, beta_cov, data_for(engine, some.table, nothing))
        reduced = np.asarray(found.reduced)[..., : some.n_clusters]
        in_tau = np.asarray(found.in_tau)[:, : some.n_clusters]
        against = np.einsum("abj,b->aj", reduced, contrast)
        p_z, score = reduced[z][:, :p], against[z]
        gradient = reduced[np.ix_(z, z)][row, col] - score[row] * score[col]
        if layout.reml:
            gradient = gradient - np.einsum("kpj,pr,krj->kj", p_z[row], beta_cov, p_z[col], optimize=True)
        in_tau = (in_tau - by_set @ rows_by_cluster(layout, some)) / 2
        values = np.vstack([against[:p], -once * gradient, -in_variances.T @ in_tau])
        outer = np.einsum("kpj,krj->kpr", p_z[row], p_z[col], optimize=True)
        moved_g = -once[:, :, None] * (outer + outer.swapaxes(1, 2))
        moved_spread = np.einsum("cv,cpr->vpr", in_variances, np.asarray(found.moved))
        yield values, reduced[:p, :p], np.concatenate([moved_g, moved_spread])
