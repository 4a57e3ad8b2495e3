"""What a fit is looked over for: negative dependence within clusters, and slopes that few clusters inform."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxmed._data import Design, packed_products
from jaxmed._likelihood import Layout
from jaxmed._model import INTERCEPT, terms
from jaxmed._support import Floats, lower_root, packed_index, symmetric

NEGATIVE = -0.1  # intraclass correlation: standard errors are 5% too small there, sqrt(1.1)
UNLIKELY = -1.96  # z of the score of a variance: one-sided 2.5%
AT_ZERO = 1e-6  # share of the residual variance: a random intercept that varies less does not vary
CHUNK = 1 << 12  # clusters at a time
MOST = 20_000  # clusters that are looked at for negative dependence, evenly picked
FEW = 10  # clusters
SMALL_SHARE = 0.05  # of all clusters
STILL = 1e-8  # of the mean sum of squares within clusters: a term that varies less in a cluster does not vary there


def negative_dependence(layout: Layout, design: Design, values: Floats, beta_cov: Floats) -> dict[str, float]:
    """Outcomes whose residuals are negatively correlated within clusters, and the intraclass correlation.

    A random intercept cannot show a negative correlation: its variance is estimated as zero. There the score of that
    variance, with r_j = 1'V_j^-1 e_j,

        U = sum_j (r_j^2 - 1'V_j^-1 1 + [REML] 1'V_j^-1 X_j (X'V^-1X)^-1 X_j'V_j^-1 1) / 2,

    is negative, and one scoring step from zero leads to the negative variance that would fit best: U over the
    information I = sum_j (1 - 1/n_j) (1'V_j^-1 1)^2 / 2, that of clusters of independent rows where the residual
    variance is estimated as well.

    Parameters
    ----------
    values : ndarray, shape (p + n,)
        Fixed effects, free entries of G, residual variances and covariances, on the working scale.
    beta_cov : ndarray, shape (p, p)
        (X'V^-1X)^-1.
    """
    p, n_free = layout.n_fixed, len(layout.free)
    beta, variances = values[:p], values[p + n_free : p + n_free + layout.n_equations]
    g = symmetric(layout.n_random, layout.free, values[p : p + n_free])
    checked = {}
    for e, equation in enumerate(design.system.equations):
        if equation.level != 1 or INTERCEPT not in equation.predictors:
            continue
        at = layout.starts[e] + equation.predictors.index(INTERCEPT)
        own = layout.random.index(at) if at in layout.random else None
        if own is None or g[own, own] < AT_ZERO * variances[e]:
            checked[e] = at
    if not checked:
        return {}
    root, tau = lower_root(g), _precisions(layout, values[p + n_free :])
    picked = np.arange(design.n_clusters)[:: max(design.n_clusters // MOST, 1)]
    some = design.part(picked)
    score, information = np.zeros((2, len(checked)))
    for first in range(0, some.n_clusters, CHUNK):
        part = some.part(slice(first, first + CHUNK))
        reduced = _reduced(layout, root, tau, part.table)
        for k, (e, at) in enumerate(checked.items()):
            rows = sum((b.products[0] for b in part.blocks if e in b.equations), np.zeros(part.n_clusters))
            row = reduced[:, at]
            spread = row[:, at]
            residual = row[:, -1] - row[:, :-1] @ beta
            share = np.einsum("ja,ab,jb->j", row[:, :-1], beta_cov, row[:, :-1]) if layout.reml else 0.0
            score[k] += np.sum(residual**2 - spread + share) / 2
            information[k] += np.sum(spread**2 * (1 - 1 / np.maximum(rows, 1))) / 2
    found = {}
    for k, e in enumerate(checked):
        if information[k] > 0 and score[k] < UNLIKELY * np.sqrt(information[k]):
            correlation = float(score[k] / information[k] / variances[e])
            if correlation < NEGATIVE:
                found[design.system.outcomes[e]] = max(correlation, -1.0)
    return found


def _precisions(layout: Layout, variances: Floats) -> Floats:
    """Entries of the residual precisions of all sets, in the order of ``layout.pieces``."""
    n = layout.n_equations
    covariance = symmetric(n, [*((e, e) for e in range(n)), *layout.pairs], variances)
    found = [np.linalg.inv(covariance[np.ix_(seen, seen)])[np.triu_indices(len(seen))] for seen in layout.seen]
    return np.concatenate(found)


def _reduced(layout: Layout, root: Floats, tau: Floats, table: Floats) -> Floats:
    """P_j = [X y]'V_j^-1[X y] of some clusters, shape (J, p + 1, p + 1)."""
    p = layout.n_fixed
    weighted = np.zeros((p + 1, p + 1, table.shape[1]))
    for c, piece in enumerate(layout.pieces):
        product = sum(table[np.array(term)] for term in piece.rows) * tau[c]
        one, other = (
            [*range(layout.starts[e], layout.starts[e] + layout.sizes[e]), p] for e in (piece.first, piece.second)
        )
        weighted[np.ix_(one, other)] += product
        if piece.first != piece.second:
            weighted[np.ix_(other, one)] += product.swapaxes(0, 1)
    found: Floats = np.moveaxis(weighted, -1, 0)
    z = np.array(layout.random, dtype=int)
    if not len(z):
        return found
    left = root.T @ found[:, z]
    matrix = left[:, :, z] @ root + np.eye(len(z))
    return found - left.swapaxes(1, 2) @ np.linalg.solve(matrix, left)


def barely_informed(design: Design) -> dict[tuple[str, str], int]:
    """Slopes that vary between clusters, by outcome and term, and the number of clusters that inform them, if few.

    A cluster informs a slope if its term varies within the cluster.
    """
    found = {}
    for e, equation in enumerate(design.system.equations):
        slopes = [name for name in equation.random if name != INTERCEPT]
        if not slopes:
            continue
        names = (INTERCEPT, *slopes)
        index = packed_index(len(names))
        inside, present = [], []
        for products in packed_products(design, e, names):
            rows = products[0]
            sums, squares = products[index[0, 1:]], np.stack([products[index[k, k]] for k in range(1, len(names))])
            inside.append(squares - np.divide(sums**2, rows, out=np.zeros_like(sums), where=rows > 0))
            present.append(rows > 0)
        within, counts = np.concatenate(inside, axis=1), np.concatenate(present)
        clusters = int(counts.sum())
        informed = np.sum(within > STILL * within.mean(axis=1, keepdims=True), axis=1)
        for name, count in zip(slopes, informed.tolist(), strict=True):
            if count < SMALL_SHARE * clusters or (count < FEW and 2 * count < clusters):
                found[equation.outcome, name] = count
    return found


def notes_on(design: Design, few: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """What is said of slopes that few clusters inform, a sentence each, with random effects that do without them."""
    found = []
    random = {
        equation.outcome: [name for name in equation.random if (equation.outcome, name) not in few]
        for equation in design.system.equations
    }
    for (outcome, name), count in few.items():
        what = "the product " if len(terms.factors(name)) > 1 else ""
        found.append(
            f"the slope of {what}{name!r} on {outcome!r} may differ between clusters, but {name!r} varies within "
            f"{count} of {design.n_clusters} clusters only, so its variance between clusters rests on these; "
            f"random={random} leaves it out"
        )
    return tuple(found)
