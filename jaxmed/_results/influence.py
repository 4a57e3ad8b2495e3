"""What every cluster does to the estimates: exact refits without it, or one step from its score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxmed._data import Moments
from jaxmed._inference import Estimates, Scores, effects, quantities
from jaxmed._refit import fitted, leave_one_out
from jaxmed._support import ConvergenceWarning, Floats, check_flag, warn_caller

LEAST = 1e-10  # of |I - C X_j'V_j^-1X_j|: below it the other clusters do not identify the fixed effects


def influence_table(
    fit: Estimates,
    moments: Moments,
    scores: Scores,
    exact: bool,
    standardized: bool,
    at: Mapping[str, Any] | None,
) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.influence`."""
    for name, value in (("exact", exact), ("standardized", standardized)):
        check_flag(name, value)
    known = quantities(fit, at)
    p = len(fit.system.labels)
    inside = _refitted(fit, moments) if exact else one_step(fit, scores)
    moved = inside @ scores.scale.matrix.T
    of_effects = np.zeros((0, len(moved)))
    if known.targets is not None:
        of = known.targets
        without = effects.linear_combinations_at(of.plan, fit.values - moved, of.weights, of.combination)
        of_effects = known.values[known.n_params :] - without
    shown = slice(known.n_params, None) if known.targets is not None else slice(0, p)
    changes, error = of_effects if known.targets is not None else moved[:, :p], known.errors[shown]
    changes = np.where(np.isnan(error), np.nan, changes)  # the data do not say what they are
    if standardized:
        changes = np.divide(changes, error, out=np.zeros_like(changes), where=error > 0)
    table = pd.DataFrame(
        changes, index=pd.Index(scores.clusters, name=fit.system.cluster), columns=list(known.labels[shown])
    )
    identified, joint = np.arange(len(fit.labels)), fit.working.joint
    if fit.flat:  # others move along the flat direction at no loss, and refits end anywhere on it
        identified = np.flatnonzero(np.isfinite(np.diag(fit.joint)))
    for name, chosen in (("cook", identified[identified < p]), ("cook_all", identified)):
        table[name] = cook(inside[:, chosen], joint[np.ix_(chosen, chosen)])
    return table


def one_step(fit: Estimates, scores: Scores) -> Floats:
    """Estimates less, about, those without each cluster, on the working scale, shape (J, p + n).

    B s_j with the joint covariance B and the derivative s_j of the gradient in the weight of cluster j: its score,
    under REML plus tr(C X_j'V_j^-1X_j C dX'V^-1X) / 2, since C = (X'V^-1X)^-1 loses the cluster too. For beta at given
    variance parameters the step is exact: (C_-j - C) s_j is added, with C_-j = (X'V^-1X - X_j'V_j^-1X_j)^-1.
    """
    c = scores.beta_cov
    p, values = len(c), np.array(scores.values)
    weight = np.einsum("ab,bcj,cd->jad", c, scores.information, c, optimize=True)
    if fit.reml:
        values[p:] += np.einsum("jab,kab->kj", weight, scores.moved, optimize=True) / 2
    moved = (fit.working.joint @ values).T
    left = np.eye(p) - np.einsum("ab,bcj->jac", c, scores.information)
    finite = np.all(np.isfinite(left), axis=(1, 2))
    left[~finite] = 0.0
    lost = np.linalg.det(left) < LEAST
    left[lost] = np.eye(p)
    without = np.linalg.solve(left, np.broadcast_to(c, left.shape)) - c
    moved[:, :p] += np.einsum("jab,bj->ja", without, values[:p])
    moved[lost] = np.nan
    return moved


def cook(moved: Floats, covariance: Floats) -> Floats:
    """d_j'Cov^-1 d_j / k of changes d_j of k estimates, shape (J,); within the range of a singular Cov."""
    unit = np.sqrt(np.diag(covariance))
    unit = np.where(unit > 0, unit, 1.0)
    correlation = covariance / np.outer(unit, unit)
    if not correlation.size or not np.all(np.isfinite(correlation)):
        return np.full(len(moved), np.nan)
    value, vector = np.linalg.eigh(correlation)
    kept = value > 1e-10 * value.max(initial=0.0)
    along = (moved / unit) @ vector[:, kept]
    return np.asarray(np.sum(along**2 / value[kept], axis=1) / np.count_nonzero(kept), dtype=float)


def _refitted(fit: Estimates, moments: Moments) -> Floats:
    """Estimates less those of exact refits without each cluster, on the working scale, (J, p + n)."""
    values, converged = leave_one_out(fitted(fit, moments, None))
    failed = ~converged
    if failed.any():
        warn_caller(
            f"{failed.sum()} of {len(failed)} refits without a cluster did not converge: their rows are NaN",
            ConvergenceWarning,
        )
    moved = fit.working.values - values
    moved[failed] = np.nan
    return moved
