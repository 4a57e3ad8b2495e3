"""Cross-products per cluster: the one data structure past the reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxmed._model import INTERCEPT
from jaxmed._support import Count, DataError, Floats, escape_control, packed_index, packed_rows

Monomial: TypeAlias = tuple[str, ...]  # sorted columns of a product; () is the constant 1
Polynomial: TypeAlias = Mapping[Monomial, "float | Floats"]  # coefficients, possibly one per cluster

# Values beyond it, or spreads below its inverse, are refused: the variance of an estimated slope variance is of the
# order of (y / x)^4, and must be neither infinite nor zero in float64.
LARGEST = 1e37
CONSTANT = 1e-12  # share of a column's sum of squares within clusters that counts as none
ALMOST = 1e-4  # of a column's sd: values this close within a cluster are one value
HARDLY = 1e-2  # of a column's sd: values this close within every cluster hardly vary
NEARLY = 3e-5  # share of the sum of squares within clusters, above that of what hardly varies: (HARDLY / 2)^2
FEW, FEW_SHARE = 5, 0.05  # clusters, of those with two rows, in which a column of the clusters may vary by mistake
LEAST = 10  # clusters: of fewer, a few are many
EQUAL = 1e-3  # mean square between over that within clusters: five clusters have less by chance 1 time in 500,000
SAME = 1e-10  # of a column's range: values this close differ by rounding in double precision


@dataclass(frozen=True)
class SampleSummary:
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
    patterns : dict
        Observed columns, as text -> rows with this pattern of missing values, of those that count.
    ranges : dict
        Column -> smallest and largest value.
    filled : dict
        Column -> rows whose missing value was filled in with the one value that their cluster has.
    remarks : tuple of str
        What looks odd in the data, one sentence each, without a full stop.
    """

    rows: Count
    used: tuple[Count, ...]
    missing: dict[str, Count]
    dropped: Count
    patterns: dict[str, Count] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    filled: dict[str, Count] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __add__(self, other: SampleSummary) -> SampleSummary:
        return SampleSummary(
            rows=self.rows + other.rows,
            used=tuple(a + b for a, b in zip(self.used, other.used, strict=True)),
            missing={name: count + other.missing[name] for name, count in self.missing.items()},
            dropped=self.dropped + other.dropped,
            patterns=_added(self.patterns, other.patterns),
            ranges={
                name: (min(low, other.ranges[name][0]), max(high, other.ranges[name][1]))
                for name, (low, high) in self.ranges.items()
            },
            filled=_added(self.filled, other.filled),
            remarks=tuple(dict.fromkeys((*self.remarks, *other.remarks))),
        )

    def about(self, columns: Iterable[str], absent: Iterable[str]) -> SampleSummary:
        """The same without what was filled in, and without the remarks, that are about absent columns."""
        columns, heads = set(columns), tuple(f"{name!r} " for name in absent)
        filled = {name: count for name, count in self.filled.items() if name in columns}
        remarks = tuple(remark for remark in self.remarks if not remark.startswith(heads))
        return replace(self, filled=filled, remarks=remarks)


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Counts by name, added."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in (*one, *other)}


@dataclass(frozen=True)
class Pattern:
    """Cross-products over the rows of one missingness pattern.

    Attributes
    ----------
    observed : tuple of str
        Columns with a value in these rows.
    products : ndarray, shape (k (k + 1) / 2, n_clusters)
        Upper triangle, row by row, of the cross-products of 1, the observed columns and the row products among them
        (:meth:`Moments.monomials`); the first row counts the rows.
    """

    observed: tuple[str, ...]
    products: Floats


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Per-cluster counts and cross-products of the working columns ``(value - shift) / scale``.

    Moments of disjoint sets of rows add: ``read(part_1) + read(part_2)`` equals ``read(all)``.

    Attributes
    ----------
    cluster : str
        Name of the cluster column.
    columns : tuple of str
    row_products : tuple of tuple of str
        Products of working columns, row by row, that count as columns of their own.
    shift, scale : ndarray, shape (n_columns,)
        Working column = (user column - shift) / scale.
    clusters : ndarray, shape (n_clusters,)
        Cluster labels, sorted.
    patterns : tuple of Pattern
    groups : tuple of tuple of str
        The columns that a row had to have observed, per equation of the system the moments were read for.
    averaged : tuple of str
        Columns of which every observed value is in, whatever else the row lacks.
    categories : dict
        Categorical column -> its categories, of which ``columns`` has indicators.
    constants : dict
        Columns that do not vary within any cluster -> their value by cluster, shape (n_clusters,), NaN where missing.
    sample_summary : SampleSummary
    """

    cluster: str
    columns: tuple[str, ...]
    row_products: tuple[Monomial, ...]
    shift: Floats
    scale: Floats
    clusters: NDArray[np.generic]
    patterns: tuple[Pattern, ...]
    groups: tuple[tuple[str, ...], ...]
    averaged: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    constants: dict[str, Floats]
    sample_summary: SampleSummary = field(repr=False)

    def __repr__(self) -> str:
        rows, columns = self.sample_summary.rows, ", ".join(self.columns)
        return escape_control(
            f"<{type(self).__name__}: {columns} in {rows} rows of {self.n_clusters} clusters ({self.cluster})>"
        )

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.clusters)

    @property
    def intake(self) -> SampleSummary:
        """Former name of ``sample_summary``."""
        return self.sample_summary

    def monomials(self, observed: Iterable[str]) -> list[Monomial]:
        """What the products of a pattern are of: 1, the observed columns, and the row products among them."""
        observed = tuple(observed)
        among = [product for product in self.row_products if set(product) <= set(observed)]
        return [(), *((name,) for name in observed), *among]

    def unit(self, column: str) -> tuple[float, float]:
        """Shift and scale of one column."""
        at = self.columns.index(column)
        return float(self.shift[at]), float(self.scale[at])

    @property
    def table(self) -> Floats:
        """All products, pattern under pattern: shape (rows, n_clusters)."""
        return np.concatenate([pattern.products for pattern in self.patterns])

    def cross_products(self, columns: tuple[str, ...]) -> Floats:
        """Cross-products of working columns (``"1"`` allowed) over the rows that have them all, (k, k, n_clusters)."""
        wanted = [() if name == INTERCEPT else (name,) for name in columns]
        total = np.zeros((len(wanted), len(wanted), self.n_clusters))
        for pattern in self.patterns:
            monomials = self.monomials(pattern.observed)
            if all(monomial in monomials for monomial in wanted):
                at = [monomials.index(monomial) for monomial in wanted]
                total += pattern.products[packed_index(len(monomials))[np.ix_(at, at)]]
        return total

    def sums(self, column: str) -> Floats:
        """Rows, sum and sum of squares of a working column, over all rows in which it is observed, (3, n_clusters)."""
        found = np.zeros((3, self.n_clusters))
        for pattern in self.patterns:
            if column in pattern.observed:
                index = packed_index(len(self.monomials(pattern.observed)))
                at = 1 + pattern.observed.index(column)
                found += pattern.products[[0, index[0, at], index[at, at]]]
        return found

    def cluster_means(self, column: str) -> Floats:
        """Mean of a working column by cluster, over all rows in which it is observed; 0 where it never is."""
        if column in self.constants:
            shift, scale = self.unit(column)
            return np.nan_to_num((self.constants[column] - shift) / scale)
        rows, total, _ = self.sums(column)
        return np.divide(total, rows, out=np.zeros_like(total), where=rows > 0)

    def spread(self, column: str) -> tuple[float, float, float]:
        """Mean of a column, and its mean squares around that mean: in all, and within clusters (user's scale)."""
        rows, total, square = self.sums(column)
        shift, scale = self.unit(column)
        mean = total.sum() / rows.sum()
        around = square.sum() - total.sum() * mean
        within = (square - np.divide(total**2, rows, out=np.zeros_like(total), where=rows > 0)).sum()
        return shift + scale * mean, around / rows.sum() * scale**2, within / rows.sum() * scale**2

    @property
    def cluster_level(self) -> frozenset[str]:
        """Columns that do not vary within any cluster, of those that some cluster has twice."""
        return frozenset(name for name in self.constants if np.any(self.sums(name)[0] > 1))

    @cached_property
    def equal_means(self) -> frozenset[str]:
        """Columns whose cluster means are all the same: balanced within clusters, or centred by cluster beforehand.

        The mean squares between and within clusters of independent rows have a ratio near one; these have nearly zero.
        """
        found = set()
        for name in self.columns:
            rows, total, square = self.sums(name)
            clusters, n = np.count_nonzero(rows), rows.sum()
            if clusters < 5 or n - clusters < 5:
                continue
            between = np.sum(np.divide(total**2, rows, out=np.zeros_like(total), where=rows > 0))
            around = (between - total.sum() ** 2 / n) / (clusters - 1)
            within = (square.sum() - between) / (n - clusters)
            if within > 0 and around < EQUAL * within:
                found.add(name)
        return frozenset(found)

    def sd(self, column: str) -> float:
        """Standard deviation of a column over the rows that count (user's scale); NaN of no rows."""
        if not np.any(self.sums(column)[0] > 0):
            return float("nan")
        return float(np.sqrt(max(self.spread(column)[1], 0.0)))

    def nearly_constant(self) -> tuple[str, ...]:
        """Columns that, as far as sums tell, hardly vary within clusters, or vary within a few clusters only."""
        return tuple(column for column in self.columns if self._nearly_constant(column))

    def _nearly_constant(self, column: str) -> bool:
        rows, total, square = self.sums(column)
        if not np.all(rows):
            rows, total, square = (part[rows > 0] for part in (rows, total, square))
        if not len(rows):
            return False
        around = square.sum() - total.sum() ** 2 / rows.sum()
        within = square - total**2 / rows
        if within.sum() <= NEARLY * around:
            return True
        enough = ALMOST**2 / 4 * around / rows.sum()

        def varying(some: slice) -> int:
            return int(np.sum((rows[some] > 1) & (within[some] > np.maximum(enough, CONSTANT * square[some]))))

        if varying(slice(1000)) > FEW:  # a first and quick look
            return False
        return is_few(varying(slice(None)), int(np.sum(rows >= self.telling_rows(column))), len(rows))

    def telling_rows(self, column: str) -> int:
        """Rows that a cluster must have to tell whether a column is one of the clusters.

        Two, or one where the column is missing more often than there are clusters: it may have been entered once each.
        """
        return 1 if self.sample_summary.missing.get(column, 0) >= self.n_clusters else 2

    def lean(self) -> Moments:
        """These moments without row products that follow from the others: those with a column of the clusters."""
        fixed = self.cluster_level
        return self._with_products(tuple(product for product in self.row_products if not set(product) & fixed))

    def _with_products(self, kept: tuple[Monomial, ...]) -> Moments:
        """These moments with some of their row products only."""
        if kept == self.row_products:
            return self
        patterns = []
        for pattern in self.patterns:
            monomials = self.monomials(pattern.observed)
            keep = [at for at, monomial in enumerate(monomials) if len(monomial) < 2 or monomial in kept]
            patterns.append(replace(pattern, products=pattern.products[packed_rows(len(monomials), keep)]))
        return replace(self, row_products=kept, patterns=tuple(patterns))

    def for_columns(
        self, cluster: str, columns: tuple[str, ...], groups: tuple[tuple[str, ...], ...], averaged: tuple[str, ...]
    ) -> Moments:
        """These moments as the data of another system over the same columns.

        Raises
        ------
        DataError
            A column is not among them; or there were missing values and the systems differ in what a row must have, so
            that rows may have been left out that the other system would use.
        """
        if cluster != self.cluster:
            raise DataError(f"these moments are by cluster {self.cluster!r}, not {cluster!r}; read the data again")
        absent = [name for name in columns if name not in self.columns]
        if absent:
            raise DataError(
                f"these moments have no column {absent[0]!r}, only {list(self.columns)}; read the data again"
            )
        known = [{name for old in self.groups if set(old) <= set(group) for name in old} for group in groups]
        inside = all(set(group) == found for group, found in zip(groups, known, strict=True))
        if not (inside and set(averaged) <= set(self.averaged)) and any(self.sample_summary.missing.values()):
            raise DataError(
                "these moments were read for another model and the data has missing values, so rows may be absent that "
                "this model would use; fit from the data instead"
            )
        counted = [(set(p.observed), int(p.products[0].sum())) for p in self.patterns]
        used = tuple(sum(rows for observed, rows in counted if set(group) <= observed) for group in groups)
        in_any = sum(rows for observed, rows in counted if any(set(group) <= observed for group in groups))
        kept = tuple(
            pattern
            for pattern in self.patterns
            if set(averaged) & set(pattern.observed) or any(set(group) <= set(pattern.observed) for group in groups)
        )
        patterns = {", ".join(pattern.observed): int(pattern.products[0].sum()) for pattern in kept}
        sample_summary = replace(
            self.sample_summary, used=used, dropped=self.sample_summary.rows - in_any, patterns=patterns
        )
        categorical = [name for name in self.categories if not any(other.startswith(f"{name}[") for other in columns)]
        sample_summary = sample_summary.about(columns, (*(set(self.columns) - set(columns)), *categorical))
        return replace(self, groups=groups, averaged=averaged, patterns=kept, sample_summary=sample_summary)

    def rescaled(self, shift: Floats, scale: Floats) -> Moments:
        """The same moments with other working columns, by a linear map per cross-product matrix (no data needed)."""
        if np.array_equal(shift, self.shift) and np.array_equal(scale, self.scale):
            return self
        unit = {
            name: {(name,): self.scale[at] / scale[at], (): (self.shift[at] - shift[at]) / scale[at]}
            for at, name in enumerate(self.columns)
        }
        patterns = []
        for pattern in self.patterns:
            monomials = self.monomials(pattern.observed)
            targets = [multiply(unit[name] for name in monomial) for monomial in monomials]
            patterns.append(replace(pattern, products=transform(pattern.products, monomials, targets)))
        return replace(self, shift=shift, scale=scale, patterns=tuple(patterns))

    def _with_common_products(self, other: Moments) -> Moments:
        """The sum where one part has row products that the other did not need."""
        fixed = _common_constants(self, other, np.union1d(self.clusters, other.clusters)).keys()
        different = set(self.row_products) ^ set(other.row_products)
        if any(not set(product) & fixed for product in different):
            raise DataError(
                f"moments with the row products {self.row_products} and {other.row_products} cannot be added: a "
                "moderator varies within clusters in one part of the data only; read the data in one go"
            )
        common = tuple(product for product in self.row_products if product in other.row_products)
        return self._with_products(common) + other._with_products(common)

    def __radd__(self, other: object) -> Moments:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # so that sum() works

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        mine, others = ([frozenset(group) for group in moments.groups] for moments in (self, other))
        same = sorted(map(sorted, mine)) == sorted(map(sorted, others)) and self.cluster == other.cluster
        if not same or set(self.averaged) != set(other.averaged):
            raise DataError(
                f"moments of {self.groups} and {other.groups} cannot be added: they are of different models"
            )
        if self.categories != other.categories:
            raise DataError(
                f"moments with the categories {self.categories} and {other.categories} cannot be added; read the data "
                "in one go"
            )
        if self.row_products != other.row_products:
            return self._with_common_products(other)
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
                observed = tuple(name for name in self.columns if name in pattern.observed)
                products = pattern.products
                if observed != pattern.observed:
                    old = self.monomials(pattern.observed)
                    keep = [old.index(name) for name in self.monomials(observed)]
                    products = products[packed_rows(len(old), keep)]
                empty = np.zeros((len(products), len(clusters)))
                summed.setdefault(observed, empty)[:, at] += products
        patterns = tuple(Pattern(observed, products) for observed, products in sorted(summed.items()))
        constants = _common_constants(self, other, clusters)
        _check_filled(self.sample_summary.filled | other.sample_summary.filled, constants)
        used = tuple(other.sample_summary.used[others.index(group)] for group in mine)
        sample_summary = self.sample_summary + replace(other.sample_summary, used=used)
        return replace(self, clusters=clusters, patterns=patterns, constants=constants, sample_summary=sample_summary)


def _common_constants(one: Moments, other: Moments, clusters: NDArray[np.generic]) -> dict[str, Floats]:
    """Columns with one value in every cluster of two sets of moments together, by the clusters of both."""
    places = [np.searchsorted(clusters, part.clusters) for part in (one, other)]
    found = {}
    for name in one.constants.keys() & other.constants.keys():
        values = np.full((2, len(clusters)), np.nan)
        values[0, places[0]], values[1, places[1]] = one.constants[name], other.constants[name]
        value = np.where(np.isnan(values[0]), values[1], values[0])
        if not np.any(np.abs(values[0] - values[1]) > ALMOST * _common_sd(one, other, name)):
            found[name] = value
    return found


def _common_sd(one: Moments, other: Moments, name: str) -> float:
    """Standard deviation of a column over the rows of two sets of moments together."""
    n, around = 0.0, 0.0
    means: list[float] = []
    for part in (one, other):
        rows = float(part.sums(name)[0].sum())
        if rows:
            mean, square, _ = part.spread(name)
            around += rows * square + (n * rows / (n + rows) * (mean - means[0]) ** 2 if means else 0.0)
            n += rows
            means.append(mean)
    return float(np.sqrt(max(around / n, 0.0))) if n else float("nan")


def _check_filled(filled: Mapping[str, int], constants: Mapping[str, Floats]) -> None:
    """What was filled in within one part of the data has one value per cluster in all of them."""
    wrong = [name for name in filled if name not in constants]
    if wrong:
        raise DataError(
            f"column {wrong[0]!r} has one value in each cluster of one part of the data, where missing values were "
            "filled in with it, but several in both parts together; read the data in one go"
        )


def is_few(varying: int, several: int, clusters: int) -> bool:
    """Whether a column that varies in so many of the clusters with several rows may be one of the clusters."""
    return clusters >= LEAST and 0 < varying <= min(FEW, FEW_SHARE * several)


# Polynomials in columns ----------------------------------------------------------------------------------------------


def multiply(polynomials: Iterable[Polynomial]) -> dict[Monomial, float | Floats]:
    """Product of polynomials; zero coefficients are left out."""
    result: dict[Monomial, float | Floats] = {(): 1.0}
    for polynomial in polynomials:
        following: dict[Monomial, float | Floats] = {}
        for one, left in result.items():
            for other, right in polynomial.items():
                monomial = tuple(sorted(one + other))
                following[monomial] = following.get(monomial, 0.0) + left * right
        result = following
    return {monomial: value for monomial, value in result.items() if np.any(value != 0.0)}


def transform(products: Floats, monomials: Sequence[Monomial], targets: Sequence[Polynomial]) -> Floats:
    """Packed cross-products of polynomials from those of monomials, cluster by cluster: T_j C_j T_j'.

    Parameters
    ----------
    products : ndarray, shape (k (k + 1) / 2, n_clusters)
        Packed cross-products of ``monomials``.
    monomials : sequence
    targets : sequence of polynomial
        With monomials among ``monomials`` only.

    Returns
    -------
    ndarray, shape (t (t + 1) / 2, n_clusters)
    """
    index = packed_index(len(monomials))
    at = {monomial: k for k, monomial in enumerate(monomials)}
    single = [next(iter(target)) if [*target.values()] == [1.0] else None for target in map(_scalars, targets)]
    if single == list(monomials):
        return products
    if None not in single:  # a selection
        return products[packed_rows(len(monomials), [at[monomial] for monomial in single if monomial is not None])]
    result = np.empty((len(targets) * (len(targets) + 1) // 2, products.shape[1]))
    row = 0
    for k, target in enumerate(targets):
        left = np.zeros((len(monomials), products.shape[1]))
        for monomial, value in target.items():
            left += value * products[index[at[monomial]]]
        for other in targets[k:]:
            terms = [value * left[at[monomial]] for monomial, value in other.items()]
            result[row] = sum(terms[1:], terms[0]) if terms else 0.0
            row += 1
    return result


def _scalars(polynomial: Polynomial) -> dict[Monomial, float]:
    """Its coefficients as scalars; NaN where they differ between clusters."""
    return {monomial: float(value) if np.ndim(value) == 0 else np.nan for monomial, value in polynomial.items()}
