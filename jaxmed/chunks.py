"""Rows in memory or in a file: chunk by chunk, summed by NumPy, so that memory follows clusters and not rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, reduce
from operator import and_, mul, or_
from typing import Any, Protocol, TypeVar

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from jaxmed.columns import Column, Grouped, Plan, own_words, working_columns
from jaxmed.errors import DataError
from jaxmed.files import RetypedError, numbers_if_they_fit, resolve_names, written_numbers
from jaxmed.ids import Codes, Tables, Total, encode
from jaxmed.moments import Floats
from jaxmed.progress import progress
from jaxmed.spec import System

Result = TypeVar("Result")

ROWS = 1 << 20  # of a frame in memory that are looked at at a time
BLOCK = 1 << 14  # rows whose products stay in the processor's cache


class Parts(Protocol):
    """A table that can be gone through part by part, more than once."""

    title: str
    rows: int | None
    written_ids: bool

    @property
    def schema(self) -> nw.Schema:
        """Columns and their types."""

    def parts(self, columns: Sequence[str]) -> Iterator[nw.DataFrame[Any]]:
        """Some columns, part by part."""


class Frame:
    """Columns of a frame in memory, in slices."""

    title = "reading the data"
    written_ids = False

    def __init__(self, frame: nw.DataFrame[Any], columns: Sequence[str]) -> None:
        with own_words():
            self._frame = frame.select(resolve_names(frame.columns, columns))
        self.rows: int | None = len(frame)

    @property
    def schema(self) -> nw.Schema:
        """Columns and their types."""
        return self._frame.schema

    def parts(self, columns: Sequence[str]) -> Iterator[nw.DataFrame[Any]]:
        """Some columns, :data:`ROWS` at a time."""
        for at in range(0, len(self._frame), ROWS):
            yield self._frame.select(columns)[at : at + ROWS]


class PandasFrame:
    """Columns of a pandas frame, in slices: a selection of columns would copy them all."""

    title = Frame.title
    written_ids = False

    def __init__(self, frame: pd.DataFrame, columns: Sequence[str]) -> None:
        names = resolve_names(list(frame.columns), columns)
        self._columns = {name: frame[name] for name in names}
        self.rows: int | None = len(frame)

    @property
    def schema(self) -> nw.Schema:
        """Columns and their types."""
        dtypes = {
            name: nw.from_native(_plain(column), series_only=True).dtype for name, column in self._columns.items()
        }
        return nw.Schema(dtypes)

    def parts(self, columns: Sequence[str]) -> Iterator[nw.DataFrame[Any]]:
        """Some columns, :data:`ROWS` at a time."""
        for at in range(0, self.rows or 0, ROWS):
            part = {name: _plain(self._columns[name].iloc[at : at + ROWS]) for name in columns}
            yield nw.from_native(pd.DataFrame(part), eager_only=True)


def _plain(column: pd.Series) -> pd.Series:
    """A pandas Categorical whose categories are numbers as these numbers; any other column as it is."""
    if isinstance(column.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(column.cat.categories):
        return column.astype("Int64" if pd.api.types.is_integer_dtype(column.cat.categories) else "float64")
    return column


class Chunks:
    """A table in parts; see :class:`jaxmed.columns.Source`."""

    def __init__(self, parts: Parts) -> None:
        self._table = parts
        self._schema: nw.Schema | None = None
        self._kept: tuple[System, list[_Chunk]] | None = None  # what was read, where it is one chunk

    def schema(self) -> nw.Schema:
        """Columns and their types."""
        if self._schema is None:
            with own_words():
                self._schema = self._table.schema
        return self._schema

    def values(self, name: str) -> Iterator[list[Any]]:
        """Values of a column that are not null, part by part."""
        for part in self._parts([name]):
            with own_words():
                found = part[name].drop_nulls().to_list()
            yield found

    def distinct(self, name: str, most: int) -> set[Any]:
        """Distinct values of a column that are not null, or some more than ``most`` of them."""

        def action() -> set[Any]:
            found: set[Any] = set()
            for part in self._parts([name]):
                with own_words():
                    values = part[name].drop_nulls().unique().to_list()
                # Every part has a NaN of its own, and a set would count them all.
                found.update(value for value in values if value == value)
                if len(found) > most:
                    break
            return found

        return self._pass(action)

    def _parts(self, columns: Sequence[str]) -> Iterator[nw.DataFrame[Any]]:
        """Some columns, part by part, with a word on how far it is."""
        done, rows = 0, self._table.rows
        parts = self._table.parts(columns)
        with progress(self._table.title) as say:
            while True:
                with own_words():
                    part = next(parts, None)
                if part is None:
                    return
                if done:
                    say(f"{done:,} rows" + (f" of {rows:,}" if rows else ""))
                done += len(part)
                yield part

    def _pass(self, action: Callable[[], Result]) -> Result:
        """Go through the rows; again where a column turns out to have another type."""
        while True:
            try:
                with np.errstate(all="ignore"):
                    return action()
            except RetypedError:
                self._kept = self._schema = None

    def _chunks(self, system: System) -> Iterator[_Chunk]:
        """The working columns of a system."""
        if self._kept is not None and self._kept[0] is system:
            yield from self._kept[1]
            return
        wanted = working_columns(self, system)
        columns = resolve_names(list(self.schema()), (system.cluster, *system.columns))
        single: list[_Chunk] = []
        many = False
        for part in self._parts(columns):
            with own_words():
                chunk = _Chunk(part.select(*wanted), system)
            many = many or bool(single)
            single = [] if many else [chunk]
            yield chunk
        if not many and self._table.rows is not None:
            self._kept = system, single

    def summaries(self, system: System) -> tuple[list[Column], int, int]:
        """Of the columns of a system; the number of rows, and of rows without a cluster id."""

        def action() -> tuple[list[_Summary], int, int]:
            found = [_Summary() for _ in system.columns]
            rows = no_cluster = 0
            for chunk in self._chunks(system):
                rows += chunk.rows
                no_cluster += chunk.no_cluster
                for summary, values in zip(found, chunk.values, strict=True):
                    for at in range(0, chunk.rows, BLOCK):
                        summary.add(values[at : at + BLOCK])
            return found, rows, no_cluster

        found, rows, no_cluster = self._pass(action)
        return [summary.column(name) for name, summary in zip(system.columns, found, strict=True)], rows, no_cluster

    def grouped(self, plan: Plan) -> Grouped:
        """Sums of products by cluster and pattern."""

        def action() -> Total:
            total = Total(plan.system.cluster, self._table.written_ids, np.add, 0.0)
            for chunk in self._chunks(plan.system):
                total.add(chunk.ids, chunk.products(plan))
            return total

        total = self._pass(action)
        labels, tables = total.finish()
        counts = sum((table[0] for table in tables.values()), np.zeros(len(labels)))
        used = slice(None) if np.all(counts) else np.flatnonzero(counts)

        def rows(table: list[Floats]) -> Iterator[Floats]:
            while table:
                yield table.pop(0)[used]

        return Grouped(labels[used], {pattern: (slice(None), rows(table)) for pattern, table in tables.items()})

    def extremes(
        self, plan: Plan, names: Sequence[str]
    ) -> tuple[NDArray[np.generic], dict[str, tuple[Floats, Floats]]]:
        """Smallest and largest value of columns by cluster, over the rows that count."""
        at = plan.positions(names)

        def action() -> Total:
            total = Total(plan.system.cluster, self._table.written_ids, np.minimum, np.inf)
            for chunk in self._chunks(plan.system):
                total.add(chunk.ids, {0: chunk.lowest(plan, at)})
            return total

        labels, tables = self._pass(action).finish()
        ends = tables.get(0, [])
        return labels, {name: (ends[2 * k], -ends[2 * k + 1]) for k, name in enumerate(names)}

    def to_pandas(self, system: System) -> pd.DataFrame:
        """The cluster id and the columns of a system, row by row."""

        def action() -> pd.DataFrame:
            parts = [chunk.to_pandas() for chunk in self._chunks(system)]
            if not parts:
                raise DataError("the data has no rows")
            return pd.concat(parts, ignore_index=True)

        table = self._pass(action)
        if self._table.written_ids:
            ids = pa.array(table["cluster"], pa.string(), from_pandas=True)
            table["cluster"] = numbers_if_they_fit(ids, written_numbers(ids)).to_pandas()
        return table


class _Chunk:
    """The cluster ids and the columns of a system over some rows."""

    def __init__(self, prepared: nw.DataFrame[Any], system: System) -> None:
        self._prepared = prepared
        self._cluster = system.cluster
        self.rows = len(prepared)
        self.values: list[Floats] = [
            prepared[f"v{at}"].to_numpy().astype(np.float64, copy=False) for at in range(len(system.columns))
        ]

    @property
    def no_cluster(self) -> int:
        """Rows without a cluster id."""
        return int(self._prepared["cluster"].null_count())

    @cached_property
    def _coded(self) -> tuple[Codes, Any]:
        return encode(self._prepared["cluster"], self._cluster)

    @property
    def ids(self) -> Any:
        """Cluster ids that occur."""
        return self._coded[1]

    def _complete(self, plan: Plan) -> list[NDArray[np.bool_]]:
        """Whether a row has all columns of each group."""
        present = [~np.isnan(values) for values in self.values]
        return [reduce(and_, (present[k] for k in plan.positions(group))) for group in plan.bits]

    def products(self, plan: Plan) -> Tables:
        """Sums of products by the clusters of this chunk."""
        codes, ids = self._coded
        if not plan.missing:
            every = 2 ** len(plan.bits) - 1
            return {every: _sums(plan, every, codes, self.values, len(ids))}
        pattern = sum((flag.astype(np.int64) << e for e, flag in enumerate(self._complete(plan))), 0 * codes)
        pattern[codes < 0] = 0
        found = {}
        for bits in map(int, np.unique(pattern)):
            if bits:
                rows = np.flatnonzero(pattern == bits)
                found[bits] = _sums(plan, bits, codes[rows], [values[rows] for values in self.values], len(ids))
        return found

    def lowest(self, plan: Plan, columns: Sequence[int]) -> list[Floats]:
        """Smallest value and smallest negative value of columns, by the clusters of this chunk."""
        codes, ids = self._coded
        counts = (codes >= 0) & reduce(or_, self._complete(plan))
        found = []
        for k in columns:
            rows = np.flatnonzero(counts & ~np.isnan(self.values[k]))
            for sign in (1.0, -1.0):
                low = np.full(len(ids), np.inf)
                np.minimum.at(low, codes[rows], sign * self.values[k][rows])
                found.append(low)
        return found

    def to_pandas(self) -> pd.DataFrame:
        """As it is, row by row."""
        return self._prepared.to_pandas()


def _sums(plan: Plan, pattern: int, codes: Codes, values: list[Floats], n_clusters: int) -> list[Floats]:
    """Packed products by cluster, of rows of one pattern.

    Runs of rows of one cluster are summed first, some rows at a time: ``bincount`` is slow where it adds to the same
    place again and again.
    """
    columns = plan.positions(plan.observed(pattern))
    factors = [plan.positions(plan.monomials[k]) for k in plan.kept(pattern)[1:]]

    def working(values: list[Floats]) -> dict[int, Floats]:
        return {k: (values[k] - plan.shift[k]) / plan.scale[k] for k in columns}

    edges = codes[1:] != codes[:-1]
    edges[BLOCK - 1 :: BLOCK] = True
    starts = np.concatenate([[0], np.flatnonzero(edges) + 1])
    if 2 * len(starts) > len(codes):
        counts = np.bincount(codes, minlength=n_clusters).astype(np.float64)
        return [counts, *(_by_code(codes, product, n_clusters) for product in _products(factors, working(values)))]
    runs = np.empty((len(plan.packed(pattern)), len(starts)))
    runs[0] = np.diff(starts, append=len(codes))
    for at in range(0, len(codes), BLOCK):
        low, high = np.searchsorted(starts, [at, at + BLOCK])
        part = [column[at : at + BLOCK] for column in values]
        for row, product in zip(runs[1:], _products(factors, working(part)), strict=True):
            np.add.reduceat(product, starts[low:high] - at, out=row[low:high])
    return [_by_code(codes[starts], row, n_clusters) for row in runs]


def _products(factors: list[list[int]], working: dict[int, Floats]) -> Iterator[Floats]:
    """Packed products of 1 and monomials, given by their columns, without that of 1 and 1."""
    monomials = [reduce(mul, (working[k] for k in factor)) for factor in factors]
    yield from monomials
    for k, left in enumerate(monomials):
        for right in monomials[k:]:
            yield left * right


def _by_code(codes: Codes, values: Floats, n_clusters: int) -> Floats:
    sums: Any = np.bincount(codes, values, n_clusters)
    return sums


class _Summary:
    """Count, mean and sum of squares around it, smallest and largest value of a column, chunk by chunk."""

    def __init__(self) -> None:
        self.missing = self.count = self.infinite = 0
        self.mean = self.square = np.float64(0)
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, values: Floats) -> None:
        """Take in more values (Chan, Golub & LeVeque 1983)."""
        missing = np.isnan(values)
        here = int(np.count_nonzero(missing))
        self.missing += here
        seen = values[~missing] if here else values
        if not len(seen):
            return
        self.minimum, self.maximum = min(self.minimum, float(seen.min())), max(self.maximum, float(seen.max()))
        if math.inf in (self.maximum, -self.minimum):
            self.infinite += int(np.count_nonzero(np.isinf(seen)))
            return
        mean = seen.mean()
        around = seen - mean
        total = self.count + len(seen)
        off = mean - self.mean
        around *= around  # not np.dot, whose threads wait for each other
        self.square += around.sum() + off * off * self.count * len(seen) / total
        self.mean += off * len(seen) / total
        self.count = total

    def column(self, name: str) -> Column:
        """What was found."""
        sd = float(np.sqrt(self.square / (self.count - 1))) if self.count > 1 else math.nan
        return Column(name, self.missing, float(self.mean), sd, self.minimum, self.maximum, self.infinite)
