"""Sums over clusters that checks, starting values and null models need; those of disjoint clusters add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from jaxmed._data.design import Design
from jaxmed._model import INTERCEPT
from jaxmed._support import Floats, current_sizes, packed_index, upper

MOST = 1 << 53  # rows: the least of no clusters


@dataclass(frozen=True, eq=False)
class EquationTotals:
    """Sums over the rows of one equation.

    Attributes
    ----------
    names : tuple of str
        ``"1"`` first, then the other predictors, then the outcome, k in all; working scale.
    total : ndarray, shape (k, k)
        Cross-products.
    within : ndarray, shape (k, k)
        Cross-products around the means of the clusters.
    clusters : int
        Clusters that have rows.
    """

    names: tuple[str, ...]
    total: Floats
    within: Floats
    clusters: int

    @property
    def rows(self) -> int:
        """Rows; of an equation of level 2, clusters."""
        return round(float(self.total[0, 0]))

    def index(self, names: Sequence[str]) -> list[int]:
        """Positions of some names."""
        return [self.names.index(name) for name in names]

    def among(self, names: Sequence[str]) -> Floats:
        """Total cross-products of some names."""
        at = self.index(names)
        return self.total[np.ix_(at, at)]

    def __add__(self, other: EquationTotals) -> EquationTotals:
        clusters = self.clusters + other.clusters
        return EquationTotals(self.names, self.total + other.total, self.within + other.within, clusters)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        found = {"total": self.total.tolist(), "within": self.within.tolist()}
        return {"names": self.names, "clusters": self.clusters} | found


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over all clusters.

    Attributes
    ----------
    equations : tuple of EquationTotals
    blocks : dict
        Equations in which rows count -> such rows.
    clusters : int
        Clusters that have rows in some equation.
    smallest, largest : int
        Stacked rows of a cluster.
    """

    equations: tuple[EquationTotals, ...]
    blocks: dict[tuple[int, ...], int]
    clusters: int
    smallest: int
    largest: int

    @property
    def rows(self) -> int:
        """Stacked rows."""
        return sum(equation.rows for equation in self.equations)

    def __add__(self, other: Totals) -> Totals:
        blocks = dict(self.blocks)
        for equations, rows in other.blocks.items():
            blocks[equations] = blocks.get(equations, 0) + rows
        return Totals(
            tuple(a + b for a, b in zip(self.equations, other.equations, strict=True)),
            blocks,
            self.clusters + other.clusters,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, inverse of :func:`totals_from_dict`."""
        return {
            "equations": [equation.to_dict() for equation in self.equations],
            "blocks": [[list(equations), rows] for equations, rows in self.blocks.items()],
            "clusters": self.clusters,
            "smallest": self.smallest,
            "largest": self.largest,
        }


def totals_from_dict(plain: Mapping[str, Any]) -> Totals:
    """Totals from plain data."""
    equations = (
        EquationTotals(tuple(e["names"]), np.array(e["total"]), np.array(e["within"]), e["clusters"])
        for e in plain["equations"]
    )
    blocks = {tuple(equations): rows for equations, rows in plain["blocks"]}
    return Totals(tuple(equations), blocks, plain["clusters"], plain["smallest"], plain["largest"])


def add_up(design: Design) -> Totals:
    """Sum over the clusters of a design."""
    sizes = design.sizes
    present = sizes[sizes > 0]
    return Totals(
        tuple(_equation(design, e) for e in range(len(design.system.equations))),
        {block.equations: round(float(block.products[0].sum())) for block in design.blocks},
        len(present),
        int(present.min(initial=MOST)),
        int(present.max(initial=0)),
    )


def _equation(design: Design, e: int) -> EquationTotals:
    names = (INTERCEPT, *(name for name in design.names(e) if name != INTERCEPT))
    k = len(names)
    index = packed_index(k)
    total, between, clusters = np.zeros(k * (k + 1) // 2), np.zeros((k, k)), 0
    for products in packed_products(design, e, names):
        sums = products[:k]
        present = sums[0] > 0
        total += products.sum(axis=1)
        between += np.divide(sums, sums[0], out=np.zeros_like(sums), where=present) @ sums.T
        clusters += int(np.count_nonzero(present))
    return EquationTotals(names, total[index], total[index] - between, clusters)


def packed_products(design: Design, e: int, names: Sequence[str]) -> Iterator[Floats]:
    """Packed cross-products of working terms over the rows of an equation, some clusters at a time.

    Shape (k (k + 1) / 2, up to ``totals_clusters``), the upper triangle row by row.
    """
    row, col = upper(len(names))
    places = []
    for block in design.blocks:
        if e in block.equations:
            at = np.array([block.names.index(name) for name in names])
            places.append((block.products, packed_index(len(block.names))[at[row], at[col]]))
    step = current_sizes().totals_clusters
    for first in range(0, design.n_clusters, step):
        chunk = slice(first, first + step)
        parts = [products[:, chunk][rows] for products, rows in places]
        yield sum(parts[1:], parts[0]) if parts else np.zeros((len(row), 0))


@cache
def symmetric_basis(size: int) -> Floats:
    """Symmetric matrices of zeros and ones, one for each entry of a packed upper triangle (read-only)."""
    row, col = upper(size)
    basis = np.zeros((len(row), size, size))
    basis[np.arange(len(row)), row, col] = basis[np.arange(len(row)), col, row] = 1.0
    basis.flags.writeable = False
    return basis


def outer_products(design: Design, e: int, names: Sequence[str], change: Floats) -> Floats:
    """sum_j vec(A_j) vec(A_j)' with A_j = change C_j change', C_j the cross-products of q names in an equation.

    Parameters
    ----------
    change : ndarray, shape (q, q)

    Returns
    -------
    ndarray, shape (q, q, q, q)
    """
    q = len(names)
    index = packed_index(q)
    row, col = upper(q)
    moved = (change @ symmetric_basis(q) @ change.T)[:, row, col].T
    outer = np.zeros((len(row), len(row)))
    for products in packed_products(design, e, names):
        changed = moved @ products
        outer += changed @ changed.T
    return outer[index[:, :, None, None], index]
