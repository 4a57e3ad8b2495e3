"""Indirect, total, conditional, within and between effects: pure functions of the parameters.

Every effect is a weighted sum of expected products of slopes along routes from x to y, or a covariance of two slopes.
The slopes of a cluster are jointly normal, so that expected products follow from means and covariances alone (Isserlis
1918): E[a_j b_j] = ab + cov(a_j, b_j), E[a_j d_j b_j] = adb + a cov(d, b) + d cov(a, b) + b cov(a, d), and so on. With
moderators a slope at their values is a weighted sum of coefficients, which leaves it normal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxmed._inference.estimability import delta
from jaxmed._likelihood import COMPLEX_STEP, Array, module_of
from jaxmed._model import Estimands, Row
from jaxmed._support import Floats

DIFFERENCES = {1: 672 / 840, 2: -168 / 840, 3: 32 / 840, 4: -3 / 840}  # of a central difference of order 8


class EffectIndex(NamedTuple):
    """Where the effects of a model find their parameters; hashable, so that compiled programs are shared by it.

    Attributes
    ----------
    paths : tuple of tuple of int
        Per path the positions of its coefficients in ``Estimates.values``.
    covariances : nested tuples of int, (path, path, piece, piece)
        Positions of the covariances of their random effects; -1 where there is none.
    rows : tuple of (terms, covariance)
        As :class:`jaxmed._model.estimands.Row`, with paths as indices.
    """

    paths: tuple[tuple[int, ...], ...]
    covariances: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    rows: tuple[tuple[tuple[tuple[float, tuple[int, ...]], ...], bool], ...]


def make_index(estimands: Estimands, labels: Sequence[str], rows: Sequence[Row]) -> EffectIndex:
    """Find the parameters of some effects among the labels of all."""
    at = {label: k for k, label in enumerate(labels)}
    names = list(estimands.paths)
    pieces = [[label for label, _ in path.pieces] for path in estimands.paths.values()]

    def covariance(one: str, other: str) -> int:
        return at.get(f"{one}~~{other}", at.get(f"{other}~~{one}", -1))

    covariances = tuple(
        tuple(tuple(tuple(covariance(a, b) for b in others) for a in own) for others in pieces) for own in pieces
    )
    found = tuple(
        (
            tuple((weight, tuple(names.index(path) for path in route)) for weight, route in row.terms),
            row.kind == "covariance",
        )
        for row in rows
    )
    return EffectIndex(tuple(tuple(at[label] for label in own) for own in pieces), covariances, found)


def make_weights(estimands: Estimands, values: Mapping[str, Floats]) -> tuple[Floats, ...]:
    """Weights of the coefficients of every path at ``n`` points: products of moderators, each (n, coefficients)."""
    n = len(next(iter(values.values()))) if values else 1
    return tuple(
        np.stack([np.prod([values[name] for name in by], axis=0) * np.ones(n) for _, by in path.pieces], axis=1)
        for path in estimands.paths.values()
    )


def slopes(plan: EffectIndex, values: Array, weights: Sequence[Array]) -> tuple[Array, Array]:
    """Mean (paths, ..., n) and covariance (paths, paths, ..., n) of the slopes of a cluster at n points.

    ``values`` of one parameter vector, or of several, (..., parameters).
    """
    xp = module_of(values, *weights)
    padded = xp.concatenate([values, xp.zeros((*values.shape[:-1], 1), values.dtype)], axis=-1)
    mean = xp.stack([padded[..., np.array(own)] @ w.T for own, w in zip(plan.paths, weights, strict=True)])
    covariance = [
        xp.stack(
            [
                xp.einsum("...ab,na,nb->...n", padded[..., np.array(block)], w, v)
                for block, v in zip(row, weights, strict=True)
            ]
        )
        for row, w in zip(plan.covariances, weights, strict=True)
    ]
    return mean, xp.stack(covariance)


def expected_product(mean: Array, covariance: Array, along: Sequence[int]) -> Array:
    """E[prod_k X_k] of jointly normal X, repeated indices allowed: E[X_1 R] = m_1 E[R] + sum_k C_1k E[R without k]."""
    if not along:
        return module_of(mean).ones(mean.shape[1:], mean.dtype)
    first, rest = along[0], list(along[1:])
    total = mean[first] * expected_product(mean, covariance, rest)
    for k, other in enumerate(rest):
        total = total + covariance[first, other] * expected_product(mean, covariance, rest[:k] + rest[k + 1 :])
    return total


def product_covariance(mean: Array, covariance: Array, one: Sequence[int], other: Sequence[int]) -> Array:
    """Cov(prod_one, prod_other) of jointly normal X: the pairings that link the two products, so nothing cancels."""
    if not one:
        return module_of(mean).zeros(mean.shape[1:], mean.dtype)
    first, rest = one[0], list(one[1:])
    total = mean[first] * product_covariance(mean, covariance, rest, other)
    for k, inside in enumerate(rest):
        left = rest[:k] + rest[k + 1 :]
        total = total + covariance[first, inside] * product_covariance(mean, covariance, left, other)
    for k, across in enumerate(other):
        left = [*rest, *other[:k], *other[k + 1 :]]
        total = total + covariance[first, across] * expected_product(mean, covariance, left)
    return total


def _weighted(mean: Array, covariance: Array, terms: Sequence[tuple[float, tuple[int, ...]]]) -> Array:
    """A weighted sum of expected products."""
    first, *rest = (weight * expected_product(mean, covariance, along) for weight, along in terms)
    return sum(rest, first)


def effects(plan: EffectIndex, values: Array, weights: Sequence[Array]) -> Array:
    """All rows of a plan at n points, shape (..., n, rows)."""
    mean, covariance = slopes(plan, values, weights)
    found = []
    for terms, is_covariance in plan.rows:
        if is_covariance:
            (_, (one, other)), *_ = terms
            found.append(covariance[one, other])
        else:
            found.append(_weighted(mean, covariance, terms))
    return module_of(mean).stack(found, axis=-1)


def linear_combinations(plan: EffectIndex, values: Array, weights: Sequence[Array], combination: Array) -> Array:
    """Weighted sums of the rows of a plan at several points, shape (..., sums)."""
    found = effects(plan, values, weights)
    return found.reshape(*found.shape[:-2], -1) @ combination.T


def heterogeneity(plan: EffectIndex, values: Array, weights: Sequence[Array]) -> Array:
    """Population variance of every row over clusters; then, for a row of one route a b, the share with ab > 0.

    Var(sum_r w_r prod_r) = sum_rs w_r w_s Cov(prod_r, prod_s), for one route of two slopes the equation (6) of Bauer,
    Preacher & Gil (2006): b^2 s_aa + a^2 s_bb + s_aa s_bb + 2ab s_ab + s_ab^2. Shape (..., n, rows + shares).
    """
    mean, covariance = slopes(plan, values, weights)
    found = []
    for terms, _ in plan.rows:
        parts = [
            one * other * product_covariance(mean, covariance, along, beside)
            for (one, along), (other, beside) in product(terms, terms)
        ]
        found.append(sum(parts))
    for terms, _ in plan.rows:
        if len(terms) == 1 and len(terms[0][1]) == 2:
            one, other = terms[0][1]
            found.append(
                _same_sign(
                    mean[one], mean[other], covariance[one, one], covariance[other, other], covariance[one, other]
                )
            )
    return np.stack(found, axis=-1)


def _same_sign(a: Floats, b: Floats, var_a: Floats, var_b: Floats, cov: Floats) -> Floats:
    """P(a_j b_j > 0) of a bivariate normal; a slope that does not vary has its own sign in every cluster.

    With h = a/sd_a, k = b/sd_b and r their correlation, P = 1 - F(h) - F(k) + 2 F2(h, k; r), and F2 = F(h) F(k) +
    int_0^asin(r) exp(-(h^2 + k^2 - 2hk sin t) / (2 cos^2 t)) dt / 2 pi (Drezner & Wesolowsky 1990). Analytic in all
    arguments, so that complex steps give its derivatives.
    """
    free_a, free_b = np.real(var_a) > 0, np.real(var_b) > 0
    sd_a, sd_b = np.sqrt(np.where(free_a, var_a, 1.0)), np.sqrt(np.where(free_b, var_b, 1.0))
    h, k = a / sd_a, b / sd_b
    above_a = np.where(free_a, _normal(h), np.real(a) > 0)
    above_b = np.where(free_b, _normal(k), np.real(b) > 0)
    r = np.where(free_a & free_b, cov / (sd_a * sd_b), 0.0)
    least = 1 - 1e-12
    r = np.where(np.abs(np.real(r)) < least, r, least * np.sign(np.real(r)))
    node, weight = np.polynomial.legendre.leggauss(96)
    end = np.arcsin(r)[..., None]
    t, h, k = end * (node + 1) / 2, h[..., None], k[..., None]
    integrand = np.exp(-(h**2 + k**2 - 2 * h * k * np.sin(t)) / (2 * np.cos(t) ** 2))
    both = above_a * above_b + end[..., 0] / 2 * (integrand @ weight) / (2 * np.pi)
    return np.asarray(1 - above_a - above_b + 2 * both)


def _normal(z: Floats) -> Floats:
    """The normal distribution function, of complex numbers too."""
    return np.asarray(special.erfc(-z / np.sqrt(2)) / 2)


def value_and_jacobian(
    function: Callable[..., Any],
    plan: EffectIndex,
    values: Floats,
    weights: tuple[Floats, ...],
) -> tuple[Floats, Floats]:
    """A function of the slopes, :func:`effects` or :func:`heterogeneity`, at n points.

    Returns
    -------
    value : ndarray, shape (n, rows)
    jacobian : ndarray, shape (n, rows, parameters)
    """
    at = partial(function, plan, weights=weights)
    return np.asarray(at(values)), _derivatives(at, values)


def _derivatives(function: Callable[[Floats], Any], values: Floats) -> Floats:
    """Derivatives by complex steps, all at once: (..., parameters) -> (..., what the function returns, parameters)."""
    points = values[..., None, :] + COMPLEX_STEP * 1j * np.eye(values.shape[-1])
    return np.moveaxis(np.imag(function(points)) / COMPLEX_STEP, values.ndim - 1, -1)


def linear_combinations_and_jacobian(
    plan: EffectIndex, values: Floats, weights: tuple[Floats, ...], combination: Floats
) -> tuple[Floats, Floats]:
    """Weighted sums of the rows of a plan at several points, (sums,), and their derivatives (sums, parameters).

    ``values`` of one parameter vector, or of several, (vectors, parameters), which then is the first axis of both.
    """
    at = partial(linear_combinations, plan, weights=weights, combination=combination)
    return np.asarray(at(values)), _derivatives(at, values)


def linear_combinations_at(
    plan: EffectIndex, values: Floats, weights: tuple[Floats, ...], combination: Floats
) -> Floats:
    """Weighted sums of the rows of a plan at many parameter vectors, shape (vectors, sums)."""
    return np.asarray(linear_combinations(plan, values, weights, combination))


def second_derivatives(
    plan: EffectIndex, values: Floats, weights: tuple[Floats, ...], combination: Floats, unit: Floats
) -> Floats:
    """Second derivatives of weighted sums of effects, shape (sums, parameters, parameters).

    Effects are polynomials of the parameters, and central differences of their first derivatives over 8 points are
    exact for those of degree 8 or less, so that only rounding counts: steps are as large as the parameters (``unit``).
    """
    at = partial(linear_combinations, plan, weights=weights, combination=combination)
    times, factors = np.array(list(DIFFERENCES.items())).T
    steps = np.diag(unit) * np.concatenate([times, -times])[:, None, None]
    slopes = _derivatives(at, values + steps)  # (points, parameter that moves, sums, parameters)
    found = np.einsum("p,pksl->skl", np.concatenate([factors, -factors]), slopes) / unit[:, None]
    return (found + found.swapaxes(1, 2)) / 2


def bauer(plan: EffectIndex, names: Sequence[str], jacobian: Floats, covariance: Floats) -> Floats:
    """Standard errors of Bauer, Preacher & Gil (2006) from the block covariance, for one mediator.

    Var(indirect) = b^2 Var(a) + a^2 Var(b) + Var(a) Var(b) + 2ab Cov(a,b) + Cov(a,b)^2 + Var(cov_ab): the second-order
    terms stand, and the covariance between fixed effects and cov_ab is taken as zero.
    """
    (a,), (b,), *_ = plan.paths
    second_order = (covariance[..., a, a] * covariance[..., b, b] + covariance[..., a, b] ** 2)[..., None]
    se = delta(jacobian, covariance)
    products = np.isin(names, ("indirect", "total"))
    return np.where(products, np.sqrt(se**2 + second_order), se)
