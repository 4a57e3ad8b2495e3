"""Mediation effects as pure functions of the parameters: differentiate them for delta, map them over draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmed._runtime import float64
from jaxmed.moments import Floats

NAMES = ("a", "b", "c_prime", "cov_ab", "indirect", "total")


@dataclass(frozen=True)
class Paths:
    """Positions of the paths in the parameter vector (beta, free entries of G, residual variances).

    ``cov_ab`` is the position of cov(a_j, b_j), or None where a slope is fixed or the covariance is held at zero.
    """

    a: int
    b: int
    c_prime: int
    cov_ab: int | None


def mediation(paths: Paths, values: Array) -> Array:
    """Effects of the 1-1-1 model in the order of :data:`NAMES`.

    Average indirect effect E[a_j b_j] = ab + cov(a_j, b_j); average total effect = indirect + c' (Bauer, Preacher &
    Gil 2006; Kenny, Korchmaros & Bolger 2003).
    """
    a, b, c_prime = values[paths.a], values[paths.b], values[paths.c_prime]
    cov_ab = jnp.zeros_like(a) if paths.cov_ab is None else values[paths.cov_ab]
    indirect = a * b + cov_ab
    return jnp.stack([a, b, c_prime, cov_ab, indirect, indirect + c_prime])


@float64
@partial(jax.jit, static_argnums=0)
def _value_and_jacobian(paths: Paths, values: Array) -> tuple[Array, Array]:
    return mediation(paths, values), jax.jacfwd(lambda v: mediation(paths, v))(values)


def delta(paths: Paths, values: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Effects and their first-order (delta-method) standard errors from a covariance of all parameters."""
    estimate, jacobian = _value_and_jacobian(paths, values)
    variance = np.einsum("ei,ij,ej->e", jacobian, covariance, jacobian)
    return np.asarray(estimate), np.sqrt(variance)


def bauer(paths: Paths, values: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Effects and the standard errors of Bauer, Preacher & Gil (2006) from the block covariance.

    Var(indirect) = b^2 Var(a) + a^2 Var(b) + Var(a) Var(b) + 2ab Cov(a,b) + Cov(a,b)^2 + Var(cov_ab): the second-order
    terms stand, and the covariance between fixed effects and cov_ab is taken as zero.
    """
    estimate, se = delta(paths, values, covariance)
    a, b = paths.a, paths.b
    second_order = covariance[a, a] * covariance[b, b] + covariance[a, b] ** 2
    se = se.copy()
    for name in ("indirect", "total"):
        at = NAMES.index(name)
        se[at] = np.sqrt(se[at] ** 2 + second_order)
    return estimate, se
