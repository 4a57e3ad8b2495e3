"""Cross-products per cluster: the one data structure past the reader."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from jaxmed.errors import DataError
from jaxmed.spec import System

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Intake:
    """What the reader saw: every row is accounted for.

    Attributes
    ----------
    rows : int
        Rows in the data.
    used : tuple of int
        Rows that count in each equation.
    missing : dict
        Column -> rows in which it is missing.
    dropped : int
        Rows that count in no equation.
    """

    rows: int
    used: tuple[int, ...]
    missing: dict[str, int]
    dropped: int

    def __add__(self, other: Intake) -> Intake:
        return Intake(
            rows=self.rows + other.rows,
            used=tuple(a + b for a, b in zip(self.used, other.used, strict=True)),
            missing={name: count + other.missing[name] for name, count in self.missing.items()},
            dropped=self.dropped + other.dropped,
        )


@dataclass(frozen=True)
class Pattern:
    """Cross-products over the rows of one missingness pattern.

    Attributes
    ----------
    observed : tuple of str
        Columns with a value in these rows.
    products : ndarray, shape (k (k + 1) / 2, n_clusters)
        Upper triangle, row by row, of the cross-products of ``(1, *observed)``; the first row counts the rows.
    """

    observed: tuple[str, ...]
    products: Floats


@dataclass(frozen=True, eq=False)
class Moments:
    """Per-cluster counts and cross-products of the working columns ``(value - shift) / scale``.

    Moments of disjoint sets of rows add: ``read(part_1) + read(part_2)`` equals ``read(all)``.

    Attributes
    ----------
    cluster : str
        Name of the cluster column.
    columns : tuple of str
    shift, scale : ndarray, shape (n_columns,)
        Working column = (user column - shift) / scale.
    clusters : ndarray, shape (n_clusters,)
        Cluster labels, sorted.
    patterns : tuple of Pattern
    groups : tuple of tuple of str
        The columns that a row had to have observed, per equation of the system the moments were read for.
    intake : Intake
    """

    cluster: str
    columns: tuple[str, ...]
    shift: Floats
    scale: Floats
    clusters: NDArray[np.generic]
    patterns: tuple[Pattern, ...]
    groups: tuple[tuple[str, ...], ...]
    intake: Intake = field(repr=False)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.clusters)

    @property
    def table(self) -> Floats:
        """All products, pattern under pattern: shape (rows, n_clusters)."""
        if len(self.patterns) == 1:
            return self.patterns[0].products
        return np.concatenate([pattern.products for pattern in self.patterns])

    def rows_of(self, columns: tuple[str, ...]) -> NDArray[np.int64]:
        """Rows of :attr:`table` that hold the cross-products of ``columns`` (``"1"`` allowed).

        Shape (terms, len(columns), len(columns)): one term per pattern in which all of them are observed; the
        cross-product matrix is the sum over terms.
        """
        terms = []
        offset = 0
        for pattern in self.patterns:
            names = ("1", *pattern.observed)
            if all(name in names for name in columns):
                at = np.array([names.index(name) for name in columns])
                terms.append(offset + _packed_index(len(names))[np.ix_(at, at)])
            offset += len(pattern.products)
        return np.array(terms, dtype=np.int64).reshape(-1, len(columns), len(columns))

    def cross_products(self, columns: tuple[str, ...]) -> Floats:
        """Cross-product matrices of working columns, shape (len(columns), len(columns), n_clusters)."""
        table = self.table
        size = len(columns)
        return sum((table[term] for term in self.rows_of(columns)), np.zeros((size, size, self.n_clusters)))

    def row_counts(self, columns: tuple[str, ...]) -> Floats:
        """Rows per cluster in which all of ``columns`` are observed, shape (n_clusters,)."""
        return self.table[self.rows_of(("1", *columns))[:, 0, 0]].sum(axis=0)

    def totals(self, columns: tuple[str, ...]) -> Floats:
        """Cross-product matrix over all clusters, shape (len(columns), len(columns))."""
        return self.table.sum(axis=1)[self.rows_of(columns)].sum(axis=0)

    def for_system(self, system: System) -> Moments:
        """These moments as the data of another system over the same columns.

        Raises
        ------
        DataError
            A column is not among them; or there were missing values and the systems differ in what a row must have, so
            that rows may have been left out that the other system would use.
        """
        if system.cluster != self.cluster:
            raise DataError(
                f"these moments are by cluster {self.cluster!r}, not {system.cluster!r}; read the data again"
            )
        absent = [name for name in system.columns if name not in self.columns]
        if absent:
            raise DataError(
                f"these moments have no column {absent[0]!r}, only {list(self.columns)}; read the data again"
            )
        if system.groups != self.groups and any(self.intake.missing.values()):
            raise DataError(
                "these moments were read for another model and the data has missing values, so rows may be absent that "
                "this model would use; fit from the data instead"
            )
        moved = np.array(
            [0.0 if name not in system.centred else at for name, at in zip(self.columns, self.shift, strict=True)]
        )
        intake = replace(self.intake, used=tuple(int(self.row_counts(group).sum()) for group in system.groups))
        return replace(self.rescaled(moved, self.scale), groups=system.groups, intake=intake)

    def rescaled(self, shift: Floats, scale: Floats) -> Moments:
        """The same moments with other working columns, by a linear map per cross-product matrix (no data needed)."""
        if np.array_equal(shift, self.shift) and np.array_equal(scale, self.scale):
            return self
        patterns = []
        for pattern in self.patterns:
            at = [self.columns.index(name) for name in pattern.observed]
            size = len(at) + 1
            linear = np.eye(size)
            linear[1:, 0] = (self.shift[at] - shift[at]) / scale[at]
            linear[np.arange(1, size), np.arange(1, size)] = self.scale[at] / scale[at]
            full = pattern.products[_packed_index(size)]
            mapped = np.einsum("ab,bcj,dc->adj", linear, full, linear, optimize=True)
            patterns.append(replace(pattern, products=mapped[np.triu_indices(size)]))
        return replace(self, shift=shift, scale=scale, patterns=tuple(patterns))

    def __add__(self, other: Moments) -> Moments:
        mine, others = ([frozenset(group) for group in moments.groups] for moments in (self, other))
        if sorted(map(sorted, mine)) != sorted(map(sorted, others)) or self.cluster != other.cluster:
            raise DataError(
                f"moments of {self.groups} and {other.groups} cannot be added: they are of different models"
            )
        order = [other.columns.index(name) for name in self.columns]
        if not (np.array_equal(self.shift, other.shift[order]) and np.array_equal(self.scale, other.scale[order])):
            back = np.argsort(order)
            other = other.rescaled(self.shift[back], self.scale[back])
        if self.clusters.dtype.kind != other.clusters.dtype.kind:
            kinds = f"{self.clusters.dtype} and {other.clusters.dtype}"
            raise DataError(f"the cluster ids of these moments are of different types ({kinds}); make them one type")
        clusters = np.union1d(self.clusters, other.clusters)
        summed: dict[tuple[str, ...], Floats] = {}
        for part in (self, other):
            at = np.searchsorted(clusters, part.clusters)
            for pattern in part.patterns:
                empty = np.zeros((len(pattern.products), len(clusters)))
                summed.setdefault(pattern.observed, empty)[:, at] += pattern.products
        patterns = tuple(Pattern(observed, products) for observed, products in sorted(summed.items()))
        used = tuple(other.intake.used[others.index(group)] for group in mine)
        intake = self.intake + replace(other.intake, used=used)
        return replace(self, clusters=clusters, patterns=patterns, intake=intake)


def _packed_index(size: int) -> NDArray[np.int64]:
    """Position of entry (i, j) in a packed upper triangle, as a symmetric (size, size) table."""
    index = np.zeros((size, size), dtype=np.int64)
    row, col = np.triu_indices(size)
    index[row, col] = index[col, row] = np.arange(len(row))
    return index
