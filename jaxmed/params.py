"""Names and positions of a system's parameters: theta <-> coefficients, G and residual variances, and their scale."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmed.moments import Floats, Moments
from jaxmed.spec import INTERCEPT, System


@dataclass(frozen=True)
class Layout:
    """Where everything sits in the arrays of one system; hashable, so that compiled programs are shared by it.

    Fixed effects are stacked equation by equation: p in all, of which q vary between clusters, in E equations.

    Attributes
    ----------
    sizes : tuple of int
        Predictors per equation.
    random : tuple of int
        For each random effect, the position of its column among the p fixed effects (ascending).
    free : tuple of (int, int)
        The free entries (row >= column) of G, row by row.
    rows : nested tuples of int, (equation, term, d, d)
        Rows of the table of moments whose sum over terms is the cross-product of columns i and j of ``[X_e y_e]``; a
        term is a missingness pattern in which the equation is observed.
    reml : bool
        Restricted likelihood.
    """

    sizes: tuple[int, ...]
    random: tuple[int, ...]
    free: tuple[tuple[int, int], ...]
    rows: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    reml: bool

    @property
    def n_equations(self) -> int:
        """Number of equations, E."""
        return len(self.sizes)

    @property
    def n_fixed(self) -> int:
        """Number of fixed effects, p."""
        return sum(self.sizes)

    @property
    def n_random(self) -> int:
        """Number of random effects, q."""
        return len(self.random)

    @property
    def n_theta(self) -> int:
        """Number of variance parameters: free entries of G and residual variances."""
        return len(self.free) + self.n_equations

    @property
    def starts(self) -> tuple[int, ...]:
        """First fixed effect of each equation."""
        return tuple(int(start) for start in np.cumsum((0, *self.sizes[:-1])))

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Consecutive random effects that may covary: G is zero outside these blocks."""
        first = [min(col for row, col in self.free if row == k) for k in range(self.n_random)]
        return tuple(tuple(k for k in range(self.n_random) if first[k] == at) for at in sorted(set(first)))

    @property
    def owners(self) -> tuple[int, ...]:
        """Equation of each random effect."""
        return tuple(int(e) for e in np.searchsorted(np.cumsum(self.sizes), self.random, side="right"))

    def random_of(self, equation: int) -> list[int]:
        """Positions among the q random effects of those of one equation."""
        return [k for k, owner in enumerate(self.owners) if owner == equation]


def make_layout(system: System, moments: Moments, reml: bool) -> Layout:
    """Layout of a system over moments that were read for it."""
    labels = system.labels
    random = tuple(labels.index(label) for label in system.random_labels)
    owner = [e for e, equation in enumerate(system.equations) for _ in equation.random]
    pairs = [(a, b) for a in range(len(random)) for b in range(a + 1)]
    if system.covariance == "diagonal":
        pairs = [(a, b) for a, b in pairs if a == b]
    elif system.covariance == "block":
        pairs = [(a, b) for a, b in pairs if owner[a] == owner[b]]
    rows = tuple(moments.rows_of((*equation.predictors, equation.outcome)) for equation in system.equations)
    nested = tuple(tuple(tuple(tuple(int(at) for at in row) for row in term) for term in terms) for terms in rows)
    sizes = tuple(len(equation.predictors) for equation in system.equations)
    return Layout(sizes, random, tuple(pairs), nested, reml)


def lower(layout: Layout, entries: Array) -> Array:
    """Free entries -> ``(q, q)`` lower-triangular matrix with zeros elsewhere."""
    matrix = jnp.zeros((layout.n_random, layout.n_random), entries.dtype)
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T
    return matrix.at[row, col].set(entries)


def free_entries(layout: Layout, matrix: Array) -> Array:
    """Symmetric or lower-triangular ``(q, q)`` matrix -> its free entries."""
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T
    return matrix[row, col]


def root_and_precision(layout: Layout, theta: Array) -> tuple[Array, Array]:
    """Optimiser's parameters -> root L of G = LL', ``(q, q)``, and residual precisions tau, ``(E,)``.

    theta holds the free entries of L and then the logarithms of the residual standard deviations. L is free, so a
    singular G is an interior point.
    """
    n_free = len(layout.free)
    return lower(layout, theta[:n_free]), jnp.exp(-2 * theta[n_free:])


def root_chain(layout: Layout, root: Array, order: Array, tau: Array, gradient: Array) -> tuple[Array, Array]:
    """Derivatives of the core parameters (free entries of G = RR', tau) in the root and the log residual sds.

    Parameters
    ----------
    root : Array, shape (q, q)
    order : Array, shape (q,)
        The free entry (i, k) of a step is added to entry (order[i], k) of the root.
    tau : Array, shape (E,)
    gradient : Array, shape (n,)
        Of some function f in the core parameters.

    Returns
    -------
    jacobian : Array, shape (n, n)
        Core parameters by coordinates: dG = e_i R_k' + R_k e_i' for entry (i, k), dtau = -2 tau.
    curvature : Array, shape (n, n)
        sum_c (df/dcore_c) d2core_c: the part of the Hessian that is due to the map.
    """
    n_free = len(layout.free)
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T
    moved = jnp.eye(layout.n_random)[order[row]][:, :, None] * root[:, col].T[:, None, :]
    moved = moved + moved.swapaxes(1, 2)
    weight = lower(layout, gradient[:n_free])
    weight = weight + weight.T
    in_g = weight[order[row][:, None], order[row]] * (col[:, None] == col)
    corner = jnp.zeros((n_free, layout.n_equations))
    jacobian = jnp.block([[moved[:, row, col].T, corner], [corner.T, jnp.diag(-2 * tau)]])
    curvature = jnp.block([[in_g, corner], [corner.T, jnp.diag(4 * tau * gradient[n_free:])]])
    return jacobian, curvature


def triangular(layout: Layout, root: Array, *, pivot: bool) -> tuple[Array, Array]:
    """Rotate a root of G (G = RR' stays) so that its rows are triangular, block by block of G.

    Modified Gram-Schmidt on the rows. With ``pivot`` the row with the largest remainder comes first; returns the root
    and the order of its rows.
    """
    result, order = jnp.zeros_like(root), jnp.arange(layout.n_random)
    for block in layout.blocks:
        at = np.array(block)
        rest = root[np.ix_(at, at)]
        columns, chosen = [], []
        left = jnp.ones(len(block), dtype=bool)
        for k in range(len(block)):
            size = jnp.where(left, jnp.sum(rest**2, axis=1), -1.0)
            row = jnp.argmax(size) if pivot else jnp.asarray(k)
            norm = jnp.sqrt(jnp.maximum(size[row], 0.0))
            direction = rest[row] / jnp.where(norm > 0, norm, 1.0)
            column = jnp.where(left, rest @ direction, 0.0)
            rest = rest - column[:, None] * direction
            left = left & (jnp.arange(len(block)) != row)
            rest = jnp.where(left[:, None], rest, 0.0)
            columns.append(column)
            chosen.append(row)
        result = result.at[np.ix_(at, at)].set(jnp.stack(columns, axis=1))
        order = order.at[at].set(at[0] + jnp.stack(chosen))
    return result, order


@dataclass(frozen=True)
class Scale:
    """The affine map from estimates on working columns to the user's scale.

    Working columns are ``(value - shift) / scale``. With u = value: beta = ``linear`` beta* + ``offset``,
    G = A G* A' for the random part A of ``linear``, sigma_e^2 = s_e^2 sigma_e*^2. Written for the vector
    (beta, free entries of G, residual variances): user = ``matrix`` working + (offset, 0).

    Attributes
    ----------
    linear : ndarray, shape (p, p)
    offset : ndarray, shape (p,)
    matrix : ndarray, shape (p + n_theta, p + n_theta)
    loglik : float
        What to add to the working log likelihood to get the user's.
    """

    linear: Floats
    offset: Floats
    matrix: Floats
    loglik: float


def make_scale(system: System, layout: Layout, moments: Moments) -> Scale:
    """Scale of a system's estimates over moments; exact, also for REML (whose constant depends on X)."""
    shift = dict(zip(moments.columns, moments.shift, strict=True))
    scale = dict(zip(moments.columns, moments.scale, strict=True))
    p, n_free = layout.n_fixed, len(layout.free)
    linear, offset = np.zeros((p, p)), np.zeros(p)
    loglik = 0.0
    for e, equation in enumerate(system.equations):
        first = layout.starts[e]
        at = {name: first + k for k, name in enumerate(equation.predictors)}
        unit = scale[equation.outcome]
        for name, k in at.items():
            linear[k, k] = unit / scale.get(name, 1.0)
            if name != INTERCEPT and shift[name] != 0:
                linear[at[INTERCEPT], k] = -linear[k, k] * shift[name]
        if shift[equation.outcome] != 0:
            offset[at[INTERCEPT]] = shift[equation.outcome]
        loglik -= moments.intake.used[e] * np.log(unit)
    if layout.reml:
        loglik += np.sum(np.log(np.diagonal(linear)))
    block = linear[np.ix_(layout.random, layout.random)]
    matrix = np.zeros((p + layout.n_theta, p + layout.n_theta))
    matrix[:p, :p] = linear
    for k, (row, col) in enumerate(layout.free):
        basis = np.zeros((layout.n_random, layout.n_random))
        basis[row, col] = basis[col, row] = 1.0
        moved = block @ basis @ block.T
        matrix[p : p + n_free, p + k] = [moved[i, j] for i, j in layout.free]
    for e, equation in enumerate(system.equations):
        matrix[p + n_free + e, p + n_free + e] = scale[equation.outcome] ** 2
    return Scale(linear, offset, matrix, float(loglik))
