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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr

from jaxmed._inference.estimability import delta
from jaxmed._model import Estimands, Row
from jaxmed._support import Floats
from jaxmed._support.runtime import float64, jit_by_key


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
    """Mean (paths,) and covariance (paths, paths) of the slopes of a cluster at one point."""
    padded = jnp.append(values, 0.0)
    mean = jnp.stack([padded[np.array(own)] @ w for own, w in zip(plan.paths, weights, strict=True)])
    covariance = [
        jnp.stack([w @ padded[np.array(block)] @ v for block, v in zip(row, weights, strict=True)])
        for row, w in zip(plan.covariances, weights, strict=True)
    ]
    return mean, jnp.stack(covariance)


def expected_product(mean: Array, covariance: Array, along: Sequence[int]) -> Array:
    """E[prod_k X_k] of jointly normal X, repeated indices allowed: E[X_1 R] = m_1 E[R] + sum_k C_1k E[R without k]."""
    if not along:
        return jnp.ones(mean.shape[1:], mean.dtype)
    first, rest = along[0], list(along[1:])
    total = mean[first] * expected_product(mean, covariance, rest)
    for k, other in enumerate(rest):
        total = total + covariance[first, other] * expected_product(mean, covariance, rest[:k] + rest[k + 1 :])
    return total


def product_covariance(mean: Array, covariance: Array, one: Sequence[int], other: Sequence[int]) -> Array:
    """Cov(prod_one, prod_other) of jointly normal X: the pairings that link the two products, so nothing cancels."""
    if not one:
        return jnp.zeros(mean.shape[1:], mean.dtype)
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
    parts = [weight * expected_product(mean, covariance, along) for weight, along in terms]
    return jnp.sum(jnp.stack(parts), axis=0)


def effects(plan: EffectIndex, values: Array, weights: Sequence[Array]) -> Array:
    """All rows of a plan at one point."""
    mean, covariance = slopes(plan, values, weights)
    found = []
    for terms, is_covariance in plan.rows:
        if is_covariance:
            (_, (one, other)), *_ = terms
            found.append(covariance[one, other])
        else:
            found.append(_weighted(mean, covariance, terms))
    return jnp.stack(found)


def linear_combinations(plan: EffectIndex, values: Array, weights: Sequence[Array], combination: Array) -> Array:
    """Weighted sums of the rows of a plan at several points, shape (sums,)."""
    found = jax.vmap(lambda *at: effects(plan, values, at))(*weights)
    return combination @ found.reshape(-1)


def heterogeneity(plan: EffectIndex, values: Array, weights: Sequence[Array]) -> Array:
    """Population sd of every row over clusters; then, for a row of one route a b, the share of clusters with ab > 0.

    Var(sum_r w_r prod_r) = sum_rs w_r w_s Cov(prod_r, prod_s), for one route of two slopes the equation (6) of Bauer,
    Preacher & Gil (2006): b^2 s_aa + a^2 s_bb + s_aa s_bb + 2ab s_ab + s_ab^2. Returned as variances, and shares as
    probabilities.
    """
    mean, covariance = slopes(plan, values, weights)
    found = []
    for terms, _ in plan.rows:
        parts = [
            one * other * product_covariance(mean, covariance, along, beside)
            for (one, along), (other, beside) in product(terms, terms)
        ]
        found.append(jnp.sum(jnp.stack(parts), axis=0))
    for terms, _ in plan.rows:
        if len(terms) == 1 and len(terms[0][1]) == 2:
            one, other = terms[0][1]
            found.append(
                _same_sign(
                    mean[one], mean[other], covariance[one, one], covariance[other, other], covariance[one, other]
                )
            )
    return jnp.stack(found)


def _same_sign(a: Array, b: Array, var_a: Array, var_b: Array, cov: Array) -> Array:
    """P(a_j b_j > 0) of a bivariate normal; a slope that does not vary has its own sign in every cluster.

    With h = a/sd_a, k = b/sd_b and r their correlation, P = 1 - F(h) - F(k) + 2 F2(h, k; r), and F2 = F(h) F(k) +
    int_0^asin(r) exp(-(h^2 + k^2 - 2hk sin t) / (2 cos^2 t)) dt / 2 pi (Drezner & Wesolowsky 1990).
    """
    free_a, free_b = var_a > 0, var_b > 0
    sd_a, sd_b = jnp.sqrt(jnp.where(free_a, var_a, 1.0)), jnp.sqrt(jnp.where(free_b, var_b, 1.0))
    h, k = a / sd_a, b / sd_b
    above_a = jnp.where(free_a, ndtr(h), (a > 0).astype(h.dtype))
    above_b = jnp.where(free_b, ndtr(k), (b > 0).astype(k.dtype))
    r = jnp.clip(jnp.where(free_a & free_b, cov / (sd_a * sd_b), 0.0), -1 + 1e-12, 1 - 1e-12)
    node, weight = np.polynomial.legendre.leggauss(96)
    end = jnp.arcsin(r)
    t = end * (node + 1) / 2
    integrand = jnp.exp(-(h**2 + k**2 - 2 * h * k * jnp.sin(t)) / (2 * jnp.cos(t) ** 2))
    both = above_a * above_b + end / 2 * jnp.sum(weight * integrand) / (2 * np.pi)
    return 1 - above_a - above_b + 2 * both


@float64
@partial(jit_by_key, static=2)
def _value_and_jacobian(
    function: Callable[[EffectIndex, Array, Sequence[Array]], Array],
    plan: EffectIndex,
    values: Array,
    weights: tuple[Array, ...],
) -> tuple[Array, Array]:
    def at(values: Array, weights: tuple[Array, ...]) -> Array:
        return function(plan, values, weights)

    over = jax.vmap(at, in_axes=(None, 0)), jax.vmap(jax.jacfwd(at), in_axes=(None, 0))
    return over[0](values, weights), over[1](values, weights)


def value_and_jacobian(
    function: Callable[[EffectIndex, Array, Sequence[Array]], Array],
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
    value, jacobian = _value_and_jacobian(function, plan, values, weights)
    return np.asarray(value), np.asarray(jacobian)


@float64
@jit_by_key
def _linear_combinations_and_jacobian(
    plan: EffectIndex, values: Array, weights: tuple[Array, ...], combination: Array
) -> tuple[Array, Array]:
    def at(values: Array) -> Array:
        return linear_combinations(plan, values, weights, combination)

    def both(values: Array) -> tuple[Array, Array]:
        return at(values), jax.jacfwd(at)(values)

    return both(values) if values.ndim == 1 else jax.vmap(both)(values)


def linear_combinations_and_jacobian(
    plan: EffectIndex, values: Floats, weights: tuple[Floats, ...], combination: Floats
) -> tuple[Floats, Floats]:
    """Weighted sums of the rows of a plan at several points, (sums,), and their derivatives (sums, parameters).

    ``values`` of one parameter vector, or of several, (vectors, parameters), which then is the first axis of both.
    """
    value, jacobian = _linear_combinations_and_jacobian(plan, values, weights, combination)
    return np.asarray(value), np.asarray(jacobian)


@float64
@jit_by_key
def _linear_combinations_at(plan: EffectIndex, values: Array, weights: tuple[Array, ...], combination: Array) -> Array:
    return jax.vmap(lambda one: linear_combinations(plan, one, weights, combination))(values)


def linear_combinations_at(
    plan: EffectIndex, values: Floats, weights: tuple[Floats, ...], combination: Floats
) -> Floats:
    """Weighted sums of the rows of a plan at many parameter vectors, shape (vectors, sums)."""
    return np.asarray(_linear_combinations_at(plan, values, weights, combination))


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
