"""From moments of columns to moments of terms: a linear map of each cluster's cross-products, and no row again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jaxmed._data.moments import Moments, Monomial, Polynomial, multiply, transform
from jaxmed._model import INTERCEPT, Equation, System, terms
from jaxmed._support import DataError, Floats, packed_index


@dataclass(frozen=True)
class Block:
    """Cross-products over the rows that count in the same equations.

    Attributes
    ----------
    equations : tuple of int
        The equations in which these rows count.
    names : tuple of str
        ``"1"`` and the terms and outcomes of these equations.
    products : ndarray, shape (k (k + 1) / 2, n_clusters)
        Upper triangle, row by row, of the cross-products of ``names`` at working scale.
    """

    equations: tuple[int, ...]
    names: tuple[str, ...]
    products: Floats


@dataclass(frozen=True, eq=False)
class Design:
    """The terms of a system over some data: all that likelihood and checks read.

    Attributes
    ----------
    system : System
    blocks : tuple of Block
    shift, scale : dict of str to float
        Working term = (user term - shift) / scale.
    n_clusters : int
    constant : frozenset of str
        Terms and outcomes that do not vary within any cluster.
    """

    system: System
    blocks: tuple[Block, ...]
    shift: dict[str, float]
    scale: dict[str, float]
    n_clusters: int
    constant: frozenset[str]

    def part(self, clusters: slice | NDArray[np.int64]) -> Design:
        """The design of some of the clusters."""
        blocks = tuple(replace(block, products=block.products[:, clusters]) for block in self.blocks)
        return replace(self, blocks=blocks, n_clusters=len(np.arange(self.n_clusters)[clusters]))

    def with_blocks(self, keys: Iterable[tuple[int, ...]]) -> Design:
        """The same design with a block for each of some sets of equations, empty where there was none."""
        known = {block.equations: block for block in self.blocks}
        for key in keys:
            if key not in known:
                names = _names(self.system, key)
                known[key] = Block(key, names, np.zeros((len(names) * (len(names) + 1) // 2, self.n_clusters)))
        return replace(self, blocks=tuple(known[key] for key in sorted(known)))

    @property
    def table(self) -> Floats:
        """All products, block under block: shape (rows, n_clusters)."""
        if len(self.blocks) == 1:
            return self.blocks[0].products
        return np.concatenate([block.products for block in self.blocks])

    def names(self, e: int) -> tuple[str, ...]:
        """Predictors and outcome of an equation."""
        equation = self.system.equations[e]
        return (*equation.predictors, equation.outcome)

    def rows(self, e: int, f: int, among: frozenset[int], chosen: frozenset[int]) -> NDArray[np.int64]:
        """Rows of :attr:`table` with the cross-products of the names of equations e and f.

        Of the blocks in which ``chosen`` are exactly the equations observed ``among`` some. Shape (terms, d_e, d_f);
        the cross-product is the sum over terms.
        """
        found = []
        offset = 0
        for block in self.blocks:
            if among & set(block.equations) == chosen:
                index = packed_index(len(block.names))
                of = [[block.names.index(name) for name in self.names(at)] for at in (e, f)]
                found.append(offset + index[np.ix_(*of)])
            offset += len(block.products)
        return np.array(found, dtype=np.int64).reshape(-1, len(self.names(e)), len(self.names(f)))

    @property
    def sizes(self) -> Floats:
        """Stacked rows per cluster, shape (n_clusters,)."""
        found = np.zeros(self.n_clusters)
        for block in self.blocks:
            found += len(block.equations) * block.products[0]
        return found


def make_design(system: System, moments: Moments) -> Design:
    """Map moments of columns to those of the terms of a system (docs/method.md, Data).

    Raises
    ------
    DataError
        A product of columns that vary within clusters was not read; a cluster-level equation with row-level terms.
    """
    shift, scale = {}, {}
    for name in system.terms:
        flat = [f.column for f in terms.factors(name) if f.part == "within" and f.column in moments.cluster_level]
        if flat:
            raise DataError(
                f"{flat[0]!r} does not vary within clusters, so {name!r} is zero in every row; leave it out"
            )
        shift[name], scale[name] = _unit(name, moments, name in system.centred)
    blocks: dict[tuple[int, ...], Block] = {}

    def add(equations: tuple[int, ...], names: tuple[str, ...], products: Floats) -> None:
        known = blocks.get(equations)
        blocks[equations] = Block(equations, names, products if known is None else known.products + products)

    rows = [e for e, equation in enumerate(system.equations) if equation.level == 1]
    for pattern in moments.patterns:
        available = tuple(e for e in rows if set(moments.groups[e]) <= set(pattern.observed))
        if not available:
            continue
        names = _names(system, available)
        monomials = moments.monomials(pattern.observed)
        targets = [_working(name, moments, shift, scale) for name in names]
        for name, target in zip(names, targets, strict=True):
            _check_read(name, target, monomials)
        add(available, names, transform(pattern.products, monomials, targets))
    for equations, weight in _cluster_patterns(system, moments).items():
        names = _names(system, equations)
        values = np.stack([_cluster_value(name, moments, shift, scale) for name in names]) * weight
        row, col = np.triu_indices(len(names))
        add(equations, names, values[row] * values[col])
    constant = frozenset(name for name in system.terms if not terms.varies_within(name, moments.cluster_level))
    return Design(system, tuple(blocks[key] for key in sorted(blocks)), shift, scale, moments.n_clusters, constant)


def _names(system: System, equations: tuple[int, ...]) -> tuple[str, ...]:
    """``"1"`` and the terms of some equations, in the order of the system's."""
    own = {name for e in equations for name in (*system.equations[e].predictors, system.equations[e].outcome)}
    return (INTERCEPT, *(name for name in system.terms if name in own))


def _unit(name: str, moments: Moments, centred: bool) -> tuple[float, float]:
    """Shift and scale of a term: near its mean and sd as far as those of its columns tell; the scale a power of two."""
    centre, size, spread = 1.0, 1.0, 1.0
    for factor in terms.factors(name):
        shift, scale = moments.unit(factor.column)
        shift = 0.0 if factor.part == "within" else shift
        centre *= shift
        size *= shift**2 + scale**2
        spread *= shift**2
    if not centred:
        return 0.0, 2.0 ** round(math.log2(size) / 2)
    left = size - spread
    if len(terms.factors(name)) == 1:
        left = scale**2
    return centre, 2.0 ** round(math.log2(left if left > 0 else size) / 2)


def _units(
    name: str, moments: Moments, shift: dict[str, float]
) -> tuple[list[tuple[terms.Factor, float, float]], float]:
    """Factors of a term, with shift and scale of their columns, and what is left to subtract of the shift of the term.

    The shift of a single factor is subtracted from its column's, which costs no digits wherever the column lies.
    """
    found = terms.factors(name)
    first = shift[name] if len(found) == 1 else 0.0
    units = [(factor, *moments.unit(factor.column)) for factor in found]
    return [(factor, at - first, unit) for factor, at, unit in units], shift[name] - first


def _working(name: str, moments: Moments, shift: dict[str, float], scale: dict[str, float]) -> Polynomial:
    """A working term as a polynomial in working columns, its coefficients possibly one per cluster."""
    parts: list[Polynomial] = []
    if name == INTERCEPT:
        return {(): 1.0}
    found, left = _units(name, moments, shift)
    for factor, at, unit in found:
        if factor.part == "within":
            parts.append({(factor.column,): unit, (): -unit * moments.cluster_means(factor.column)})
        elif factor.part == "between" or (len(found) > 1 and factor.column in moments.cluster_level):
            parts.append({(): at + unit * moments.cluster_means(factor.column)})
        else:
            parts.append({(factor.column,): unit, (): at})
    whole = multiply(parts)
    whole[()] = whole.get((), 0.0) - left
    return {monomial: value / scale[name] for monomial, value in whole.items() if np.any(value != 0.0)}


def _check_read(name: str, target: Polynomial, monomials: list[Monomial]) -> None:
    absent = [monomial for monomial in target if monomial not in monomials]
    if absent:
        raise DataError(
            f"the term {name!r} needs the product of {' and '.join(map(repr, absent[0]))} row by row, which is not "
            "among these moments; fit from the data instead"
        )


def _cluster_patterns(system: System, moments: Moments) -> dict[tuple[int, ...], Floats]:
    """Equations of level 2 that a cluster has the columns for -> indicator of these clusters."""
    equations = [e for e, equation in enumerate(system.equations) if equation.level == 2]
    if not equations:
        return {}
    present = np.zeros((len(equations), moments.n_clusters), dtype=bool)
    for k, e in enumerate(equations):
        _check_cluster_level(system, e, moments)
        for pattern in moments.patterns:
            if set(moments.groups[e]) <= set(pattern.observed):
                present[k] |= pattern.products[0] > 0
    code = (present * 2 ** np.arange(len(equations))[:, None]).sum(axis=0)
    return {
        tuple(e for k, e in enumerate(equations) if bits >> k & 1): (code == bits).astype(float)
        for bits in np.unique(code[code > 0]).tolist()
    }


def _check_cluster_level(system: System, e: int, moments: Moments) -> None:
    equation = system.equations[e]
    for name in (*equation.predictors, equation.outcome):
        if terms.varies_within(name, moments.cluster_level):
            raise DataError(
                f"the equation of {equation.outcome!r} has one row per cluster (level=2), but {name!r} varies within "
                f"clusters; use 'between({name})' or level=1"
            )


def _cluster_value(name: str, moments: Moments, shift: dict[str, float], scale: dict[str, float]) -> Floats:
    """A working term of the cluster, shape (n_clusters,)."""
    if name == INTERCEPT:
        return np.ones(moments.n_clusters)
    value = np.ones(moments.n_clusters)
    found, left = _units(name, moments, shift)
    for factor, at, unit in found:
        value = value * (0.0 if factor.part == "within" else at + unit * moments.cluster_means(factor.column))
    return (value - left) / scale[name]


def term_values(name: str, columns: Mapping[str, Floats], cluster: NDArray[np.int64]) -> Floats:
    """A term row by row, shape (n_rows,); cluster means are over the rows in which the column is observed (not NaN).

    ``cluster`` is the index of every row's cluster, from 0; -1 is no cluster and has no mean.
    """
    value = np.ones(len(cluster))
    for factor in terms.factors(name):
        column = np.asarray(columns[factor.column], dtype=float)
        if factor.part:
            used = ~np.isnan(column) & (cluster >= 0)
            size = int(cluster.max(initial=-1)) + 1
            near = column[used][0] if used.any() else 0.0  # a column may lie 1e15 sds from zero
            column = column - near
            with np.errstate(invalid="ignore", divide="ignore"):
                means = np.bincount(cluster[used], column[used], size) / np.bincount(cluster[used], minlength=size)
            mean = np.where(cluster >= 0, means[cluster], np.nan)
            column = near + mean if factor.part == "between" else column - mean
        value = value * column
    return value


def outcome_values(
    equation: Equation,
    params: Mapping[str, float],
    effects: Mapping[str, Floats],
    error: Floats,
    columns: Mapping[str, Floats],
    cluster: NDArray[np.int64],
) -> Floats:
    """Values of one outcome, shape (n_rows,), from its predictors.

    Parameters
    ----------
    params : mapping
        Fixed effects by label.
    effects : mapping
        Random effects by label, shape (J,).
    error : ndarray, shape (n_rows,)
    columns : mapping
        Predictors, shape (n_rows,).
    cluster : ndarray of int, shape (n_rows,)
        Cluster index of every row, from 0.
    """
    value = error.copy()
    for name, label in zip(equation.predictors, equation.labels, strict=True):
        slope = params[label] + (effects[label][cluster] if label in effects else 0.0)
        value = value + slope * term_values(name, columns, cluster)
    return value
