"""New data from a fitted model, drawn as cross-products per cluster: no row is made, whatever the size of a cluster.

The columns of a cluster's n rows that no equation draws span r dimensions. In an orthonormal basis of them the errors
of an equation are r standard normal numbers, and what lies outside has the length of a chi variable with n - r degrees
of freedom (Bartlett's decomposition of a Wishart matrix, 1933). That direction is the next of the basis, so that an
outcome which is drawn first is a predictor of the next like any other column. The cost is the same for 8 rows and for
8 million.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmed._data import Block, Design, Moments
from jaxmed._likelihood import Layout
from jaxmed._model import terms
from jaxmed._refit.sample_rows import RowsNeededError
from jaxmed._support import Floats, packed_index, upper

FEW = 16  # degrees of freedom up to which a chi-squared number is made of uniform ones
DEPENDENT = 1e-10  # share of a column's sum of squares in a cluster that counts as none


class DrawnTerm(NamedTuple):
    """A term with an outcome in it: ``A 1 + B outcome + C mean(outcome) 1``, the coefficients by cluster.

    Attributes
    ----------
    position : int
        Among the names of the block.
    at : int
        Of the coefficients in :attr:`Known.coefficients`; -1 where the term is the outcome itself (A = C = 0, B = 1).
    """

    position: int
    at: int


class BlockPlan(NamedTuple):
    """How the rows that count in the same equations are drawn.

    Attributes
    ----------
    equations : tuple of int
    size : int
        Number of names.
    outside : tuple of int
        Positions of the names that no equation draws; the first is ``"1"``.
    errors : tuple of int
        Equations whose unit errors enter.
    predictors : tuple of tuple of int
        Positions of the predictors, per equation of ``equations``.
    outcomes : tuple of int
        Positions of the outcomes, per equation.
    drawn : tuple of (int, tuple of DrawnTerm)
        Equation of an outcome and the terms it enters.
    most : int
        Rows of the largest cluster beyond its rank.
    """

    equations: tuple[int, ...]
    size: int
    outside: tuple[int, ...]
    errors: tuple[int, ...]
    predictors: tuple[tuple[int, ...], ...]
    outcomes: tuple[int, ...]
    drawn: tuple[tuple[int, tuple[DrawnTerm, ...]], ...]
    most: int = 0


class DrawPlan(NamedTuple):
    """How a system is drawn; hashable, so that compiled programs are shared by it.

    Attributes
    ----------
    blocks : tuple of BlockPlan
    order : tuple of int
        Equations, every outcome before its use as a predictor.
    level_2 : tuple of int
        Equations with a row per cluster.
    averaged : tuple of int
        Equations of whose outcome the cluster mean is a predictor.
    """

    blocks: tuple[BlockPlan, ...]
    order: tuple[int, ...]
    level_2: tuple[int, ...]
    averaged: tuple[int, ...]


class Known(NamedTuple):
    """What is not drawn, by cluster; J clusters.

    Attributes
    ----------
    products : tuple of ndarray, shape (k (k + 1) / 2, J)
        Cross-products of the blocks of the data.
    roots : tuple of ndarray, shape (k, k, J)
        Per block, coordinates of its outside columns in an orthonormal basis: row by direction, zero beyond the rank.
    free : tuple of ndarray, shape (J,)
        Rows beyond the rank, n - r.
    coefficients : tuple of ndarray, shape (3, J)
        Of terms with an outcome.
    kept : tuple of ndarray, shape (2, J)
        Per equation: rows in which its outcome is observed, and its sum over those of them that are not drawn.
    """

    products: tuple[Array, ...]
    roots: tuple[Array, ...]
    free: tuple[Array, ...]
    coefficients: tuple[Array, ...]
    kept: tuple[Array, ...]


class Population(NamedTuple):
    """Parameters on the working scale.

    Attributes
    ----------
    beta : Array, shape (p,)
    root : Array, shape (q, q)
        L of G = LL'.
    residual_root : Array, shape (E, E)
        Lower root of the residual covariance.
    """

    beta: Array
    root: Array
    residual_root: Array


# Planning, with names ------------------------------------------------------------------------------------------------


def make_draw_plan(design: Design, moments: Moments) -> tuple[DrawPlan, Known]:
    """How to draw the data of a design, and what of them stays.

    Raises
    ------
    RowsNeededError
        A term multiplies an outcome, row by row, by something that varies within clusters.
    """
    system = design.system
    coefficients: list[Floats] = []
    blocks = [_plan_block(design, block, moments, coefficients) for block in design.blocks]
    roots, free = [], []
    for block, own in zip(design.blocks, blocks, strict=True):
        root, rank = gram_root(_among(block, own.outside), block.products[0])
        roots.append(root)
        free.append(block.products[0] - rank)
    most = [int(rows.max(initial=0)) for rows in free]
    averaged = {f.column for name in system.terms for f in terms.factors(name) if f.part}
    plan = DrawPlan(
        tuple(block._replace(most=min(rows, FEW + 1)) for block, rows in zip(blocks, most, strict=True)),
        system.order,
        tuple(e for e, equation in enumerate(system.equations) if equation.level == 2),
        tuple(e for e, outcome in enumerate(system.outcomes) if outcome in averaged),
    )
    kept = tuple(_kept(design, moments, e) for e in range(len(system.equations)))
    products = tuple(block.products for block in design.blocks)
    # NumPy until a compiled program takes them in.
    known: Any = (products, tuple(roots), tuple(free), tuple(coefficients), kept)
    return plan, Known(*known)


def _plan_block(design: Design, block: Block, moments: Moments, coefficients: list[Floats]) -> BlockPlan:
    system = design.system
    of = {outcome: e for e, outcome in enumerate(system.outcomes)}
    drawn: dict[int, list[DrawnTerm]] = {}
    for position, name in enumerate(block.names):
        found = _drawn_in(design, block, moments, name)
        if found is None:
            continue
        e = of[found.column]
        if name == found.column and e in block.equations:
            continue  # the outcome itself, drawn by its equation
        at = -1
        if terms.factors(name) != (terms.Factor(found.column),):
            at = len(coefficients)
            coefficients.append(_coefficients(design, moments, name, found))
        drawn.setdefault(e, []).append(DrawnTerm(position, at))
    positions = {name: position for position, name in enumerate(block.names)}
    inside = {term.position for several in drawn.values() for term in several}
    inside |= {positions[system.outcomes[e]] for e in block.equations}
    group = {e: group for group in system.residual_groups for e in group}
    return BlockPlan(
        block.equations,
        len(block.names),
        tuple(position for position in range(len(block.names)) if position not in inside),
        tuple(sorted({f for e in block.equations for f in group[e] if f <= e})),
        tuple(tuple(positions[name] for name in system.equations[e].predictors) for e in block.equations),
        tuple(positions[system.outcomes[e]] for e in block.equations),
        tuple((e, tuple(several)) for e, several in drawn.items()),
    )


def _drawn_in(design: Design, block: Block, moments: Moments, name: str) -> terms.Factor | None:
    """The factor of a term that is drawn anew, or none."""
    system = design.system
    of = {outcome: e for e, outcome in enumerate(system.outcomes)}
    found = []
    for factor in terms.factors(name):
        e = of.get(factor.column)
        if e is not None and (system.equations[e].level == 2 or e in block.equations or factor.part):
            found.append(factor)
            if factor.part == "within" and e not in block.equations:
                raise RowsNeededError(f"{name!r} in rows that do not count in the equation of {factor.column!r}")
    if not found:
        return None
    others = [factor for factor in terms.factors(name) if factor not in found]
    if len(found) > 1 or any(f.part != "between" and f.column not in moments.cluster_level for f in others):
        raise RowsNeededError(repr(name))
    return found[0]


def _coefficients(design: Design, moments: Moments, name: str, found: terms.Factor) -> Floats:
    """A, B and C of a working term in the working outcome, shape (3, J)."""
    beside: Floats = np.ones(moments.n_clusters)
    for factor in terms.factors(name):
        if factor != found:
            at, unit = moments.unit(factor.column)
            beside = beside * (at + unit * moments.cluster_means(factor.column))
    slope = beside * design.scale[found.column] / design.scale[name]
    start = beside * (0.0 if found.part == "within" else design.shift[found.column]) - design.shift[name]
    own, mean = {"": (1.0, 0.0), "within": (1.0, -1.0), "between": (0.0, 1.0)}[found.part]
    return np.stack([start / design.scale[name], own * slope, mean * slope])


def _kept(design: Design, moments: Moments, e: int) -> Floats:
    """Rows in which an outcome is observed, and the sum of its working values over those that no equation draws."""
    outcome = design.system.outcomes[e]
    rows, total, _ = moments.sums(outcome)
    at, unit = moments.unit(outcome)
    if design.system.equations[e].level == 2:
        return np.stack(
            [rows, (at + unit * moments.cluster_means(outcome) - design.shift[outcome]) / design.scale[outcome]]
        )
    left: Floats = (rows * (at - design.shift[outcome]) + unit * total) / design.scale[outcome]
    for block in design.blocks:
        if e in block.equations:
            left = left - block.products[block.names.index(outcome)]  # with "1", the first name
    return np.stack([rows, left])


def _among(block: Block, positions: Sequence[int]) -> Floats:
    """Cross-products of some names of a block, shape (k, k, J)."""
    return block.products[packed_index(len(block.names))[np.ix_(positions, positions)]]


def gram_root(products: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Pivoted Cholesky of the cross-products of every cluster.

    Parameters
    ----------
    products : ndarray, shape (k, k, J)
        Positive semi-definite.
    rows : ndarray, shape (J,)
        The rank is at most this.

    Returns
    -------
    root : ndarray, shape (k, k, J)
        ``sum_l root[l, a] root[l, b] = products[a, b]``; rows beyond the rank are zero.
    rank : ndarray, shape (J,)
    """
    left = products.copy()
    k, n = len(left), left.shape[2]
    at, diagonal = np.arange(n), np.arange(k)
    whole = np.where(left[diagonal, diagonal] > 0, left[diagonal, diagonal], 1.0)
    root, rank = np.zeros_like(left), np.zeros(n)
    for step in range(k):
        share = left[diagonal, diagonal] / whole
        pivot = np.argmax(share, axis=0)
        found = (share[pivot, at] > DEPENDENT) & (step < rows)
        unit = 1 / np.sqrt(np.where(found, left[pivot, pivot, at], 1.0))
        root[step] = np.where(found, left[pivot, :, at].T * unit, 0.0)
        left -= root[step][:, None] * root[step]
        left[pivot, :, at] = left[:, pivot, at] = 0.0
        rank += found
    return root, rank


# Drawing -------------------------------------------------------------------------------------------------------------


def draw(layout: Layout, plan: DrawPlan, known: Known, population: Population, key: Array) -> Array:
    """Moments of new data, shape (rows of the table, J), in the order of :attr:`jaxmed._data.design.Design.table`.

    Random effects first, then outcome after outcome: each from the outcomes drawn before it.
    """
    n_clusters = known.products[0].shape[1]
    keys = jax.random.split(key, 2 * len(plan.blocks) + 1)
    effects = population.root @ jax.random.normal(keys[-1], (layout.n_random, n_clusters))
    slopes = jnp.broadcast_to(population.beta[:, None], (layout.n_fixed, n_clusters))
    slopes = slopes.at[np.array(layout.random, dtype=int)].add(effects)
    columns: list[dict[int, Array]] = []
    errors = []
    for b, block in enumerate(plan.blocks):
        k, more = len(block.outside), len(block.errors)
        root = jnp.concatenate([known.roots[b], jnp.zeros((more, k, n_clusters))])
        columns.append({position: root[:, at] for at, position in enumerate(block.outside)})
        errors.append(_unit_errors(keys[2 * b], keys[2 * b + 1], root, known.free[b], more, block.most))
    for e in plan.order:
        for b, block in enumerate(plan.blocks):
            if e in block.equations:
                at = block.equations.index(e)
                first = layout.starts[e]
                value = jnp.zeros_like(columns[b][block.outside[0]])
                for j, position in enumerate(block.predictors[at]):
                    value = value + slopes[first + j] * columns[b][position]
                for f, error in zip(block.errors, errors[b], strict=True):
                    if f <= e:
                        value = value + population.residual_root[e, f] * error
                columns[b][block.outcomes[at]] = value
        _fill(plan, known, e, columns)
    return jnp.concatenate([_products(plan.blocks[b], known.products[b], columns[b]) for b in range(len(columns))])


def _unit_errors(normal_key: Array, chi_key: Array, root: Array, free: Array, count: int, most: int) -> list[Array]:
    """Coordinates of independent unit errors, each (directions, J): error k opens direction k beyond the rank."""
    size, n_clusters = len(root) - count, root.shape[2]
    present = jnp.any(root[:size] != 0, axis=1)
    normals = jax.random.normal(normal_key, (count, len(root) - 1, n_clusters))
    degrees = free - jnp.arange(count)[:, None]
    lengths = jnp.where(degrees > 0, jnp.sqrt(chi_squared(chi_key, jnp.maximum(degrees, 1.0), most)), 0.0)
    found = []
    for k in range(count):
        inside = jnp.where(present, normals[k, :size], 0.0)
        opened = jnp.where(degrees[:k] > 0, normals[k, size : size + k], 0.0)
        rest = jnp.zeros((count - k - 1, n_clusters))
        found.append(jnp.concatenate([inside, opened, lengths[k][None], rest]))
    return found


def chi_squared(key: Array, degrees: Array, most: int) -> Array:
    """Chi-squared numbers with whole degrees of freedom, at most ``most``.

    Few degrees: minus twice the logarithm of a product of uniform numbers, one for two degrees, and for an odd one the
    square of a normal number. A gamma generator with its rejections takes ten times as long.
    """
    if most > FEW:
        return jax.random.chisquare(key, degrees)
    uniform_key, normal_key = jax.random.split(key)
    pairs = most // 2
    uniform = 1 - jax.random.uniform(uniform_key, (pairs, *degrees.shape))  # in (0, 1]
    halves = jnp.floor(degrees / 2)
    inside = jnp.arange(pairs).reshape(-1, *[1] * degrees.ndim) < halves
    pair_sum = -2 * jnp.log(jnp.prod(jnp.where(inside, uniform, 1.0), axis=0))
    return pair_sum + jnp.where(degrees > 2 * halves, jax.random.normal(normal_key, degrees.shape) ** 2, 0.0)


def _fill(plan: DrawPlan, known: Known, e: int, columns: list[dict[int, Array]]) -> None:
    """The terms that an outcome enters, once it is drawn in all blocks."""
    sums = [
        jnp.sum(columns[b][block.outside[0]] * columns[b][block.outcomes[block.equations.index(e)]], axis=0)
        for b, block in enumerate(plan.blocks)
        if e in block.equations
    ]
    rows, kept = known.kept[e]
    if e in plan.level_2:
        drawn = sum(known.products[b][0] for b, block in enumerate(plan.blocks) if e in block.equations)
        mean = jnp.where(drawn > 0, sum(sums), kept)
    elif e in plan.averaged:
        mean = (sum(sums) + kept) / jnp.maximum(rows, 1.0)
    else:
        mean = jnp.zeros_like(rows)
    for b, block in enumerate(plan.blocks):
        for term in dict(block.drawn).get(e, ()):
            one = columns[b][block.outside[0]]
            if e in plan.level_2:
                own = mean * one
            elif e in block.equations:
                own = columns[b][block.outcomes[block.equations.index(e)]]
            else:  # only its cluster mean counts
                own = jnp.zeros_like(one)
            if term.at >= 0:
                constant, times, average = known.coefficients[term.at]
                own = times * own + (constant + average * mean) * one
            columns[b][term.position] = own


def _products(block: BlockPlan, products: Array, columns: dict[int, Array]) -> Array:
    """Packed cross-products of all names; those among outside columns are as they were."""
    outside = set(block.outside)
    found: list[Array] = []
    for row, (i, j) in enumerate(zip(*_pairs(block.size), strict=True)):
        kept = i in outside and j in outside
        found.append(products[row] if kept else jnp.sum(columns[i] * columns[j], axis=0))
    return jnp.stack(found)


def _pairs(size: int) -> tuple[list[int], list[int]]:
    row, col = upper(size)
    return row.tolist(), col.tolist()
