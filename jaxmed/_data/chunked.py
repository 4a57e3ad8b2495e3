"""Rows in memory or in a file: chunk by chunk, summed by NumPy, so that memory follows clusters and not rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from operator import and_, mul, or_
from typing import Any, Protocol, TypeVar

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from jaxmed._data.cluster_ids import Codes, Tables, Total, encode, places, united
from jaxmed._data.files import RetypedError, numbers_if_they_fit, resolve_names, written_numbers
from jaxmed._data.source import DISTINCT, Column, Grouped, ReadPlan, own_words, working_columns
from jaxmed._model import System
from jaxmed._support import DataError, Floats, current_sizes, progress

Result = TypeVar("Result")


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
        """Some columns, some at a time."""
        for at in range(0, len(self._frame), current_sizes().frame_rows):
            yield self._frame.select(columns)[at : at + current_sizes().frame_rows]


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
        """Some columns, some at a time."""
        for at in range(0, self.rows or 0, current_sizes().frame_rows):
            part = {name: _plain(self._columns[name].iloc[at : at + current_sizes().frame_rows]) for name in columns}
            yield nw.from_native(pd.DataFrame(part), eager_only=True)


def _plain(column: pd.Series) -> pd.Series:
    """A pandas Categorical whose categories are numbers as these numbers; any other column as it is."""
    if isinstance(column.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(column.cat.categories):
        return column.astype("Int64" if pd.api.types.is_integer_dtype(column.cat.categories) else "float64")
    return column


class Chunks:
    """A table in parts; see :class:`jaxmed._data.source.Source`."""

    def __init__(self, parts: Parts) -> None:
        self._table = parts
        self.filled: dict[str, int] = {}
        self._schema: nw.Schema | None = None
        self._kept: tuple[System, list[_Chunk]] | None = None  # what was read, where it is not more than a chunk
        self._seen: dict[System, tuple[list[Column], int, int]] = {}
        self._fills: tuple[Any, dict[str, Floats]] | None = None  # ids, and the values by cluster to fill in
        self._labels: tuple[NDArray[np.generic], Any] | None = None  # of clusters, and ids as chunks have them

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
                self._seen.clear()

    def _chunks(self, system: System) -> Iterator[_Chunk]:
        """The working columns of a system."""
        if self._kept is not None and self._kept[0] == system:
            yield from self._kept[1]
            return
        wanted = working_columns(self, system)
        columns = resolve_names(list(self.schema()), (system.cluster, *system.columns))
        kept: list[_Chunk] = []
        rows = 0
        for part in self._parts(columns):
            with own_words():
                chunk = _Chunk(part.select(*wanted), system)
            if self._fills is not None:
                chunk.fill(*self._fills)
            rows += chunk.rows
            kept = [*kept, chunk] if rows <= current_sizes().frame_rows else []
            yield chunk
        if rows <= current_sizes().frame_rows:
            self._kept = system, kept

    def summaries(self, system: System) -> tuple[list[Column], int, int]:
        """Of the columns of a system; the number of rows, and of rows without a cluster id."""
        if system in self._seen:
            return self._seen[system]

        def action() -> tuple[list[_Summary], int, int]:
            found = [_Summary(name in system.outcomes) for name in system.columns]
            rows = no_cluster = 0
            for chunk in self._chunks(system):
                rows += chunk.rows
                no_cluster += chunk.no_cluster
                for summary, values in zip(found, chunk.values, strict=True):
                    for at in range(0, chunk.rows, current_sizes().cache_rows):
                        summary.add(values[at : at + current_sizes().cache_rows])
            return found, rows, no_cluster

        found, rows, no_cluster = self._pass(action)
        columns = [summary.column(name) for name, summary in zip(system.columns, found, strict=True)]
        self._seen[system] = columns, rows, no_cluster
        return self._seen[system]

    def grouped(self, plan: ReadPlan) -> Grouped:
        """Sums of products by cluster and pattern."""

        def action() -> Total:
            total = Total(plan.system.cluster, self._table.written_ids, np.add, 0.0)
            for chunk in self._chunks(plan.system):
                total.add(chunk.ids, chunk.products(plan))
            return total

        total = self._pass(action)
        labels, tables = total.finish()
        self._labels = labels, total.ids
        counts = sum((table[0] for table in tables.values()), np.zeros(len(labels)))
        used = slice(None) if np.all(counts) else np.flatnonzero(counts)

        def rows(table: list[Floats]) -> Iterator[Floats]:
            while table:
                yield table.pop(0)[used]

        return Grouped(labels[used], {pattern: (slice(None), rows(table)) for pattern, table in tables.items()})

    def extremes(
        self, plan: ReadPlan, names: Sequence[str]
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

    def fill(self, system: System, groups: Sequence[Sequence[str]], closeness: Mapping[str, float]) -> tuple[str, ...]:
        """Fill in missing values by the value that a column has elsewhere in the cluster, from now on."""
        at = {name: system.columns.index(name) for group in groups for name in group}

        def action() -> tuple[Total, list[Sequence[str]]]:
            total = Total(system.cluster, self._table.written_ids, np.minimum, np.inf)
            left = list(groups)
            for chunk in self._chunks(system):
                left = [group for group in left if not any(chunk.varies(at[name], closeness[name]) for name in group)]
                tables: list[Floats] = chunk.ends([at[name] for name in at]) if left else []
                varying = _apart(tables, list(at), closeness)
                left = [group for group in left if not varying & set(group)]
                if not left:
                    break
                total.add(chunk.ids, {0: tables})
            return total, left

        total, left = self._pass(action)
        tables = total.finish()[1].get(0, []) if left else []
        varying = _apart(tables, list(at), closeness)
        values = {}
        for k, name in enumerate(at if tables else ()):
            low, high, absent = tables[3 * k], -tables[3 * k + 1], tables[3 * k + 2]
            known = low <= high
            if np.any(known & (absent < 0)):
                values[name] = np.full(len(low), np.nan)
                values[name][known] = low[known] / 2 + high[known] / 2
        filled = [name for group in left if not varying & set(group) for name in group if name in values]
        if filled:
            self._fills = total.ids, {name: values[name] for name in filled}
            self._seen.clear()
            if self._kept is not None and self._kept[0] != system:
                self._kept = None
            for chunk in self._kept[1] if self._kept is not None else ():
                chunk.fill(*self._fills)
        return tuple(filled)

    def apart(self, system: System, name: str, codes: Sequence[float]) -> tuple[float, float, dict[float, int]]:
        """Smallest and largest value of a column without codes, NaN if there is none, and rows by code."""
        at = system.columns.index(name)

        def action() -> tuple[float, float, dict[float, int]]:
            low, high, counts = math.inf, -math.inf, dict.fromkeys(codes, 0)
            for chunk in self._chunks(system):
                values = chunk.values[at]
                others = ~np.isnan(values)
                for code in codes:
                    here = values == code
                    counts[code] += int(np.count_nonzero(here))
                    others &= ~here
                low, high = np.min(values, where=others, initial=low), np.max(values, where=others, initial=high)
            return (float(low), float(high), counts) if low <= high else (math.nan, math.nan, counts)

        return self._pass(action)

    def rows_of(
        self, system: System, names: Sequence[str], labels: Sequence[Any]
    ) -> list[tuple[NDArray[np.int64], list[Floats]]] | None:
        """Positions of the rows of some clusters, and their values in columns."""
        if self._labels is None:
            return None
        every, ids = self._labels
        first = np.array([np.flatnonzero(every == label)[0] for label in labels])
        wanted = ids.take(pa.array(first)) if isinstance(ids, pa.Array) else ids[first]
        at = [system.columns.index(name) for name in names]

        def action() -> list[list[tuple[NDArray[np.int64], list[Floats]]]]:
            found: list[list[tuple[NDArray[np.int64], list[Floats]]]] = [[] for _ in labels]
            start = 0
            for chunk in self._chunks(system):
                place = np.append(places(wanted, chunk.ids, system.cluster), -1)[chunk.codes]
                for k in range(len(labels)):
                    rows = np.flatnonzero(place == k)
                    found[k].append((start + rows, [chunk.values[column][rows] for column in at]))
                start += chunk.rows
            return found

        return [
            (
                np.concatenate([rows for rows, _ in parts]),
                [np.concatenate([values[k] for _, values in parts]) for k in range(len(at))],
            )
            for parts in self._pass(action)
        ]

    def whole(self, system: System, most: int) -> tuple[Codes, list[Floats]] | None:
        """Code of every row's cluster, -1 for none, and the columns; None of more rows than ``most``."""
        if self.summaries(system)[1] > most:
            return None

        def action() -> tuple[Codes, list[Floats]]:
            chunks = list(self._chunks(system))
            found = united([chunk.ids for chunk in chunks], system.cluster)
            codes = [np.append(place, -1)[chunk.codes] for chunk, place in zip(chunks, found, strict=True)]
            values = zip(*(chunk.values for chunk in chunks), strict=True)
            return _joined(codes), [_joined(column) for column in values]

        return self._pass(action)

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
        self._names = system.columns
        self._filled: set[int] = set()
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

    @property
    def codes(self) -> Codes:
        """Position of every row's id among these, -1 for none."""
        return self._coded[0]

    def fill(self, known: Any, values: Mapping[str, Floats]) -> None:
        """Put values by cluster, of known ids, where a column is missing."""
        place = np.append(places(known, self.ids, self._cluster), -1)
        for k, name in enumerate(self._names):
            if name in values:
                rows = np.flatnonzero(np.isnan(self.values[k]))
                column = self.values[k].copy()
                column[rows] = np.append(values[name], np.nan)[place[self.codes[rows]]]
                self.values[k] = column
                self._filled.add(k)

    def varies(self, k: int, closeness: float) -> bool:
        """Whether a column varies between some neighbours of one cluster: a first and quick look."""
        codes, values = self.codes[: current_sizes().cache_rows], self.values[k][: current_sizes().cache_rows]
        beside = (codes[1:] == codes[:-1]) & (codes[1:] >= 0)
        return bool(np.any(beside & (np.abs(values[1:] - values[:-1]) > closeness)))

    def ends(self, columns: Sequence[int]) -> list[Floats]:
        """By cluster of this chunk, for each column: smallest value, smallest negative value, -1 if one is missing."""
        codes, ids = self._coded
        found = []
        for k in columns:
            missing = np.isnan(self.values[k])
            rows = np.flatnonzero((codes >= 0) & ~missing)
            for sign in (1.0, -1.0):
                low = np.full(len(ids), np.inf)
                np.minimum.at(low, codes[rows], sign * self.values[k][rows])
                found.append(low)
            absent = np.zeros(len(ids))
            absent[codes[missing & (codes >= 0)]] = -1.0
            found.append(absent)
        return found

    def _complete(self, plan: ReadPlan) -> list[NDArray[np.bool_]]:
        """Whether a row has all columns of each group."""
        present = [~np.isnan(values) for values in self.values]
        return [reduce(and_, (present[k] for k in plan.positions(group))) for group in plan.bits]

    def products(self, plan: ReadPlan) -> Tables:
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

    def lowest(self, plan: ReadPlan, columns: Sequence[int]) -> list[Floats]:
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
        """Row by row: as it is, but for what was filled in."""
        table = self._prepared.to_pandas()
        return table.assign(**{f"v{k}": self.values[k] for k in self._filled})


def _apart(tables: list[Floats], names: Sequence[str], closeness: Mapping[str, float]) -> set[str]:
    """Columns that vary within a cluster, by :meth:`_Chunk.ends`."""
    if not tables:
        return set()
    spread = {name: -tables[3 * k + 1] - tables[3 * k] for k, name in enumerate(names)}
    return {name for name in names if np.any(spread[name] > closeness[name])}


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _sums(plan: ReadPlan, pattern: int, codes: Codes, values: list[Floats], n_clusters: int) -> list[Floats]:
    """Packed products by cluster, of rows of one pattern.

    Runs of rows of one cluster are summed first, some rows at a time: ``bincount`` is slow where it adds to the same
    place again and again.
    """
    columns = plan.positions(plan.observed(pattern))
    factors = [plan.positions(plan.monomials[k]) for k in plan.kept(pattern)[1:]]

    def working(values: list[Floats]) -> dict[int, Floats]:
        return {k: (values[k] - plan.shift[k]) / plan.scale[k] for k in columns}

    step = current_sizes().cache_rows
    edges = codes[1:] != codes[:-1]
    edges[step - 1 :: step] = True
    starts = np.concatenate([[0], np.flatnonzero(edges) + 1])
    if 2 * len(starts) > len(codes):
        counts = np.bincount(codes, minlength=n_clusters).astype(np.float64)
        return [counts, *(_by_code(codes, product, n_clusters) for product in _products(factors, working(values)))]
    runs = np.empty((len(plan.packed(pattern)), len(starts)))
    runs[0] = np.diff(starts, append=len(codes))
    for at in range(0, len(codes), step):
        low, high = np.searchsorted(starts, [at, at + step])
        part = [column[at : at + step] for column in values]
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
    """Count, mean and sum of squares around it, smallest and largest value of a column, chunk by chunk.

    On demand whether all are whole numbers, and the values themselves as long as they are few.
    """

    def __init__(self, telling: bool) -> None:
        self.whole = telling
        self.distinct: list[float] | None = [] if telling else None
        self._telling = telling
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
        self._tell_apart(seen)
        mean = seen.mean()
        around = seen - mean
        total = self.count + len(seen)
        off = mean - self.mean
        around *= around  # not np.dot, whose threads wait for each other
        self.square += around.sum() + off * off * self.count * len(seen) / total
        self.mean += off * len(seen) / total
        self.count = total

    def _tell_apart(self, seen: Floats) -> None:
        self.whole = self.whole and bool(np.all(np.floor(seen) == seen))
        if self.distinct is None or (self.whole and len(self.distinct) == self.maximum - self.minimum + 1):
            return
        for value in self.distinct:
            seen = seen[seen != value]
        for some in (seen[:100], seen):
            new = np.unique(some)
            if len(self.distinct) + len(new) > DISTINCT:
                self.distinct = None
                return
        self.distinct += new.tolist()

    def column(self, name: str) -> Column:
        """What was found."""
        sd = float(np.sqrt(self.square / (self.count - 1))) if self.count > 1 else math.nan
        found = Column(name, self.missing, float(self.mean), sd, self.minimum, self.maximum, self.infinite)
        return replace(found, whole=self.whole, distinct=tuple(sorted(self.distinct or ()))) if self._telling else found
