"""Log likelihoods without random effects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxmed._data import Totals
from jaxmed._model import System


def null_models(
    system: System, scale: Mapping[str, float], totals: Totals, reml: bool
) -> tuple[tuple[float, int], tuple[float, int]]:
    """(log likelihood, number of residual variances) of the system without random effects.

    First with one residual variance per outcome, then with one for all outcomes together: the "linear regression" that
    a stacked model is tested against in Stata. Closed form, ordinary least squares from the summed cross-products.
    Residuals are independent in both.
    """
    rss, rows, fixed, logdet = [], [], [], []
    for equation, sums in zip(system.equations, totals.equations, strict=True):
        total = sums.among((*equation.predictors, equation.outcome))
        x_x, x_y = total[:-1, :-1], total[:-1, -1]
        rss.append((total[-1, -1] - x_y @ np.linalg.solve(x_x, x_y)) * scale[equation.outcome] ** 2)
        rows.append(sums.rows)
        fixed.append(len(equation.predictors))
        units = sum(np.log(scale.get(name, 1.0)) for name in equation.predictors)
        logdet.append(np.linalg.slogdet(x_x)[1] + 2 * units)

    def loglik(rss: float, rows: int, fixed: int, logdet: float) -> float:
        degrees = rows - fixed if reml else rows
        return float(-(degrees * (np.log(2 * np.pi * rss / degrees) + 1) + (logdet if reml else 0.0)) / 2)

    each = sum(loglik(*one) for one in zip(rss, rows, fixed, logdet, strict=True))
    pooled = loglik(sum(rss), sum(rows), sum(fixed), sum(logdet))
    return (each, len(rss)), (pooled, 1)
