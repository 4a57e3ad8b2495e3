"""Which functions of the parameters the data identify, and their standard errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmed._support import Floats, root

MOVED = 1e-6  # of its standard error: less than this a flat direction does not move a parameter or an effect
CHANGED = 1e-4  # of its variance: less than this the error of a sum does not change along a flat direction


class Working(NamedTuple):
    """Estimates in the units of the optimiser, in which predictors far from zero cost no digits.

    Attributes
    ----------
    theta : ndarray, shape (n,)
        The optimiser's parameters.
    values : ndarray, shape (p + n,)
        As ``values`` of :class:`Estimates`, of working terms (:class:`jaxmed._likelihood.layout.Scale`).
    joint, block : ndarray, shape (p + n, p + n)
        Covariances of ``values``.
    """

    theta: Floats
    values: Floats
    joint: Floats
    block: Floats


def delta(jacobian: Floats, covariance: Floats) -> Floats:
    """First-order (delta-method) standard errors, (..., sums), from a covariance of all parameters, or from several.

    NaN only where a sum depends on an entry that is NaN.
    """
    unknown = np.isnan(covariance)
    variance = np.sum((jacobian @ np.where(unknown, 0.0, covariance)) * jacobian, axis=-1)
    if np.any(unknown):
        moves = (jacobian != 0).astype(float)
        variance = np.where(np.sum((moves @ unknown) * moves, axis=-1) > 0, np.nan, variance)
    return root(variance)


class Estimable(NamedTuple):
    """What is identified at a flat maximum: functions of the parameters that no flat direction moves.

    Such a function, h'b in the first order, has the variance h'Ch with any generalised inverse C of the curvature, and
    others have none, as of estimable functions in linear models (Searle 1971, ch. 5).

    Attributes
    ----------
    joint, block : ndarray, shape (p + n, p + n)
        Covariances by the generalised inverse, without NaN.
    directions : ndarray, shape (p + n, k)
        How the flat directions move ``values``, where the least that counts is a part ``MOVED`` of a standard error.
    changes : ndarray, shape (r, p, p)
        How Cov(beta) at known variances changes along those directions on which it depends: the restricted likelihood
        of clusters whose differences fixed effects take up. Errors that change with it are not known either.
    """

    joint: Floats
    block: Floats
    directions: Floats
    changes: Floats

    def errors(self, jacobian: Floats, covariance: Floats, n_fixed: int = 0) -> Floats:
        """As :func:`delta`, NaN where a flat direction moves a sum or changes its error.

        Of block errors, only where it does so by parameters after the ``n_fixed`` first ones: these do not depend on G.
        """
        return np.where(self.moves(jacobian, covariance, n_fixed), np.nan, delta(jacobian, covariance))

    def moves(self, jacobian: Floats, covariance: Floats, n_fixed: int = 0) -> NDArray[np.bool_]:
        """Whether a flat direction moves a function of the parameters, or changes its error."""
        error = delta(jacobian, covariance)[..., None]
        moved = np.any(np.abs(jacobian[..., n_fixed:] @ self.directions[n_fixed:]) > MOVED * error, axis=-1)
        if n_fixed or not self.changes.size:
            return np.asarray(moved)
        fixed = jacobian[..., : self.changes.shape[1]]
        change = np.einsum("...a,kab,...b->...k", fixed, self.changes, fixed)
        return np.asarray(moved | np.any(np.abs(change) > CHANGED * error**2, axis=-1))
