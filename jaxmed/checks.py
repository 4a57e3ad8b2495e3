"""Whether data can answer a system: collinearity, exact fits and random effects that no cluster can show."""

from __future__ import annotations

import numpy as np

from jaxmed.errors import DataError
from jaxmed.moments import Floats, Moments
from jaxmed.spec import INTERCEPT, Equation, System

COLLINEAR = 1e-10  # share of a column's sum of squares that the columns before it leave unexplained
WITHIN = 1e-12  # share of a column's sum of squares that lies within clusters


def check_identified(system: System, moments: Moments) -> None:
    """Raise :class:`DataError`, naming columns and remedy, where the likelihood has no unique finite maximum."""
    for e, equation in enumerate(system.equations):
        names = (*equation.predictors, equation.outcome)
        products = moments.cross_products(names)
        total = products.sum(axis=-1)
        rows = moments.intake.used[e]
        if rows <= len(equation.predictors):
            raise DataError(
                f"only {rows} rows have all of {', '.join(map(repr, equation.columns))} observed, too few for the "
                f"{len(equation.predictors)} coefficients of {equation.outcome!r}"
            )
        _check_collinear(equation, names, total)
        _check_within(equation, products, total)
        _check_residual(equation, moments)


def _check_collinear(equation: Equation, names: tuple[str, ...], total: Floats) -> None:
    """Every column, the outcome last, against the columns before it."""
    unit = 1 / np.sqrt(np.maximum(np.diag(total), np.finfo(float).tiny))
    gram = total * unit[:, None] * unit
    for k in range(1, len(names)):
        weights = np.linalg.solve(gram[:k, :k], gram[:k, k])
        left = gram[k, k] - gram[:k, k] @ weights
        if left > COLLINEAR:
            continue
        involved = [names[i] for i in range(k) if abs(weights[i]) > 1e-6]
        others = " and ".join(repr(name) for name in involved if name != INTERCEPT) or "the intercept"
        if k == len(names) - 1:
            raise DataError(
                f"{equation.outcome!r} is an exact linear function of {others}: nothing is left for a residual "
                f"variance. Check that {equation.outcome!r} is not a copy of another column"
            )
        raise DataError(
            f"column {names[k]!r} is collinear with {others} in the equation of {equation.outcome!r}, so their effects "
            f"cannot be told apart; remove one of them"
        )


def _check_within(equation: Equation, products: Floats, total: Floats) -> None:
    """Next to a random intercept, random slopes and the outcome must vary within clusters."""
    if INTERCEPT not in equation.random:
        return
    names = (*equation.predictors, equation.outcome)
    at = names.index(INTERCEPT)
    rows = products[at, at]
    used = rows > 0
    for k, name in enumerate(names):
        is_outcome = k == len(names) - 1
        if name == INTERCEPT or not (is_outcome or name in equation.random):
            continue
        within = np.sum(products[k, k, used] - products[at, k, used] ** 2 / rows[used])
        centred = total[k, k] - total[at, k] ** 2 / total[at, at]
        if within > WITHIN * max(centred, np.finfo(float).tiny):
            continue
        if is_outcome:
            raise DataError(
                f"{name!r} does not vary within any cluster, so its residual variance cannot be told from its random "
                "intercept; a cluster-level outcome needs another model"
            )
        raise DataError(
            f"{name!r} does not vary within any cluster, so its slope in the equation of {equation.outcome!r} cannot "
            f"vary between clusters; leave it out of random, e.g. random={{{equation.outcome!r}: "
            f"{[other for other in equation.random if other != name]}, ...}}"
        )


def _check_residual(equation: Equation, moments: Moments) -> None:
    """Some cluster must have more rows than random effects, or the residual variance is not identified."""
    size = len(equation.random)
    rows = moments.row_counts(equation.columns)
    if size and np.all(rows <= size):
        raise DataError(
            f"no cluster has more than {int(rows.max())} rows for {equation.outcome!r}, whose {size} random effects "
            "then cannot be told from the residual; use fewer random effects or larger clusters"
        )
