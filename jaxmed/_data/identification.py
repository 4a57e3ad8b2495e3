"""Whether data can answer a system: collinearity, exact fits and random effects that no cluster can show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxmed._data.design import Design
from jaxmed._data.moments import CONSTANT
from jaxmed._data.totals import EquationTotals, Totals, outer_products, symmetric_basis
from jaxmed._model import INTERCEPT, Equation, varies_within
from jaxmed._support import DataError, Floats

COLLINEAR = 1e-10  # share of a column's sum of squares that the columns before it leave unexplained
ROUNDING = 1e-14  # share of a column's sum of squares within clusters that rounding can make
FAR = 1e3  # sds from zero, for columns whose origin matters to the model


def check_identified(design: Design, totals: Totals, add: Callable[[Floats], Floats] = lambda sums: sums) -> None:
    """Raise :class:`DataError`, naming columns and remedy, where the likelihood has no unique finite maximum.

    ``totals`` are sums over all clusters; where the design has only some of them, ``add`` adds up the others' sums.
    """
    for e, (equation, sums) in enumerate(zip(design.system.equations, totals.equations, strict=True)):
        _check_origin(design.names(e), sums, design.system.centred)
        if sums.rows <= len(equation.predictors):
            raise DataError(
                f"only {sums.rows} rows have all of {', '.join(map(repr, equation.columns))} observed, too few for the "
                f"{len(equation.predictors)} coefficients of {equation.outcome!r}"
            )
        total = sums.among(design.names(e))
        _check_collinear(equation, design.names(e), total, design.constant, totals.clusters)
        _check_within(equation, sums, design.constant, design.system.cluster if sums.rows <= totals.clusters else "")
        if equation.random:
            _check_variances(design, e, sums, add)


def _check_origin(names: tuple[str, ...], sums: EquationTotals, centred: frozenset[str]) -> None:
    """A term whose origin matters to the model must not lie far from it."""
    for name in names:
        if name == INTERCEPT or name in centred:
            continue
        total = sums.among((INTERCEPT, name))
        mean = total[0, 1] / total[0, 0]
        sd = np.sqrt(max(total[1, 1] / total[0, 0] - mean**2, 0.0))
        if abs(mean) > FAR * sd:
            raise DataError(
                f"column {name!r} lies more than {FAR:g} standard deviations from zero, and this model depends on "
                "where its zero is (no intercept, or a random slope that cannot covary with a random intercept); "
                "subtract a constant from it first, or use an intercept and covariance='unstructured'"
            )


def _check_collinear(
    equation: Equation, names: tuple[str, ...], total: Floats, constant: frozenset[str], clusters: int
) -> None:
    """Every column, the outcome last, against the columns before it."""
    unit = 1 / np.sqrt(np.maximum(np.diag(total), np.finfo(float).tiny))
    gram = total * unit[:, None] * unit
    if _all_left(gram):
        return
    for k in range(1, len(names)):
        weights = np.linalg.solve(gram[:k, :k], gram[:k, k])
        left = gram[k, k] - gram[:k, k] @ weights
        if left > COLLINEAR:
            continue
        involved = [names[i] for i in range(k) if abs(weights[i]) > 1e-6]
        others = " and ".join(repr(name) for name in involved if name != INTERCEPT) or "the intercept"
        if k == len(names) - 1:
            raise DataError(
                f"{equation.outcome!r} is an exact linear function of {others}, to 10 digits: nothing is left for a "
                f"residual variance. Check that {equation.outcome!r} is not a copy of another column"
            )
        if not any(name != INTERCEPT for name in involved):
            raise DataError(
                f"column {names[k]!r} is collinear with the intercept in the equation of {equation.outcome!r}: it has "
                "one value in all rows that count there; remove it, or merge a category that has no rows with another"
            )
        of_clusters = {name for name in equation.predictors if not varies_within(name, constant)}
        named = " and ".join(repr(name) for name in equation.predictors if name in of_clusters - {INTERCEPT})
        if clusters < len(of_clusters) and of_clusters.issuperset((names[k], *involved)):
            raise DataError(
                f"effects between clusters need as many clusters as coefficients at the least: {clusters} clusters "
                f"cannot answer for {named} in the equation of {equation.outcome!r}, next to the intercept; with so "
                "few, only effects within clusters can be estimated"
            )
        raise DataError(
            f"column {names[k]!r} is collinear with {others} in the equation of {equation.outcome!r}, so their effects "
            f"are not identified separately; remove one of them"
        )


def _all_left(gram: Floats) -> bool:
    """Whether the pivots of a Gram matrix, what each column leaves unexplained, are all well above the limit."""
    try:
        return bool(np.min(np.diag(np.linalg.cholesky(gram))) ** 2 > 2 * COLLINEAR)
    except np.linalg.LinAlgError:
        return False


def _check_within(equation: Equation, sums: EquationTotals, constant: frozenset[str], cluster: str) -> None:
    """Next to a random intercept the outcome and random slopes must vary within clusters; ids may be those of rows."""
    if INTERCEPT not in equation.random:
        return
    total = sums.total
    for k, name in [(len(sums.names) - 1, sums.names[-1]), *enumerate(sums.names[:-1])]:
        is_outcome = k == len(sums.names) - 1
        if name == INTERCEPT or not (is_outcome or name in equation.random):
            continue
        centred = total[k, k] - total[0, k] ** 2 / total[0, 0]
        if name not in constant and sums.within[k, k] > CONSTANT * max(centred, np.finfo(float).tiny):
            continue
        flat = "does not vary within any cluster"
        if name not in constant and sums.within[k, k] > ROUNDING * centred:
            flat = "varies too little within clusters (by less than a millionth of its standard deviation on average)"
        if is_outcome:
            raise DataError(
                f"{name!r} {flat}, so its residual variance and its random intercept are not "
                "identified separately; give a cluster-level outcome an Equation with level=2, one row per cluster"
                + (f"; or does {cluster!r} tell rows apart, not clusters?" if cluster else "")
            )
        raise DataError(
            f"{name!r} {flat}, so its slope in the equation of {equation.outcome!r} cannot "
            f"vary between clusters; leave it out of random, e.g. random={{{equation.outcome!r}: "
            f"{[other for other in equation.random if other != name]}, ...}}"
        )


def _check_variances(design: Design, e: int, sums: EquationTotals, add: Callable[[Floats], Floats]) -> None:
    """Variances and covariances of the random effects and the residual must move V_j in different directions.

    The directions are Z_j E Z_j' for every entry of the equation's G, and I; their Gram matrix, sum_j tr(dV_j dV_j'),
    depends on the cross-products Z_j'Z_j alone.
    """
    equation = design.system.equations[e]
    q = len(equation.random)
    # In a basis of uncorrelated columns, whose total is the identity: collinear ones are another check's business.
    change = np.linalg.inv(np.linalg.cholesky(sums.among(equation.random)))
    outer = add(outer_products(design, e, equation.random, change))  # sum_j A_ab A_cd
    directions = symmetric_basis(q)
    flat = directions.reshape(len(directions), -1)
    gram = np.zeros((len(flat) + 1, len(flat) + 1))
    gram[:-1, :-1] = flat @ outer.transpose(1, 2, 0, 3).reshape(q * q, q * q) @ flat.T  # sum of E_bc A_ab A_cd F_ad
    gram[:-1, -1] = gram[-1, :-1] = flat @ np.eye(q).ravel()
    gram[-1, -1] = sums.rows
    unit = 1 / np.sqrt(np.diag(gram))
    if np.linalg.eigvalsh(gram * unit[:, None] * unit)[0] < COLLINEAR:
        fewer = f"random={ {one.outcome: list(one.random[:1]) for one in design.system.equations} }"
        raise DataError(
            f"the random effects {list(equation.random)} of {equation.outcome!r} cannot be separated from each other "
            f"or from the residual in clusters this small; take fewer, such as {fewer}, or larger clusters"
        )
