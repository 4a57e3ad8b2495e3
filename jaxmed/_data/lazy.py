"""Data that an engine holds (polars lazy, DuckDB, PySpark, Dask, Ibis): it does the sums itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from operator import and_, mul, or_
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed._data.source import Column, Grouped, ReadPlan, cluster_labels, own_words, working_columns
from jaxmed._model import System
from jaxmed._support import Floats

DIGITS = 1e-3  # a standard deviation below so much of the mean is computed again
SEEN = 1000  # values to look at, where some are enough
FIRST = 10_000  # rows that may show that a column varies within clusters


class Query:
    """A lazy frame; see :class:`jaxmed._data.source.Source`."""

    def __init__(self, frame: nw.LazyFrame[Any]) -> None:
        self.filled: dict[str, int] = {}
        self._frame = frame
        self._seen: dict[System, tuple[list[Column], int, int]] = {}
        self._fills: tuple[str, ...] = ()

    @cached_property
    def _schema(self) -> nw.Schema:
        with own_words():
            return self._frame.collect_schema()

    def schema(self) -> nw.Schema:
        """Columns and their types."""
        return self._schema

    @own_words()
    def values(self, name: str) -> Iterator[list[Any]]:
        """Some values of a column that are not null; nothing where there are no rows."""
        column = self._frame.select(nw.col(name))
        found = _collect(column.filter(~nw.col(name).is_null()).head(SEEN))[name].to_list()
        return iter([found] if found or len(_collect(column.head(1))) else [])

    @own_words()
    def distinct(self, name: str, most: int) -> set[Any]:
        """Distinct values of a column that are not null, or some more than ``most`` of them."""
        column = self._frame.select(nw.col(name)).filter(~nw.col(name).is_null())
        return set(_collect(column.unique().head(most + 1))[name].to_list())

    def _prepared(self, system: System, missing: Collection[str]) -> nw.LazyFrame[Any]:
        """The cluster id and the columns of a system, NaN made null in those that may have missing values."""
        prepared = self._as_it_is(system, {*missing, *self._fills})
        filled = [f"v{at}" for at, name in enumerate(system.columns) if name in self._fills]
        return prepared.with_columns(_filled(name).alias(name) for name in filled) if filled else prepared

    def _as_it_is(self, system: System, missing: Collection[str]) -> nw.LazyFrame[Any]:
        cluster, *values = working_columns(self, system)
        named = zip(system.columns, values, strict=True)
        return self._frame.select(
            cluster, *(value.fill_nan(None) if name in missing else value for name, value in named)
        )

    @own_words()
    def summaries(self, system: System) -> tuple[list[Column], int, int]:
        """Of the columns of a system; the number of rows, and of rows without a cluster id.

        The first look takes every number as it is, and deviations from zero. Where a sum is NaN a second one makes NaN
        null, and where too few digits are left it takes deviations from the mean: conditions on every value, or an
        engine's own standard deviation, would take up to twice the time.
        """
        if system in self._seen:
            return self._seen[system]
        centres = [0.0] * len(system.columns)
        with_nan: set[str] = set()
        while True:
            prepared = self._prepared(system, with_nan)
            row = _sums(prepared, centres)
            found = [_column(row, at, name, centres[at]) for at, name in enumerate(system.columns)]
            nan = {column.name for column in found if math.isnan(column.mean)} - with_nan
            coarse = [
                column.sd < DIGITS * abs(column.mean) and not centre
                for column, centre in zip(found, centres, strict=True)
            ]
            if not nan and not any(coarse):
                break
            with_nan |= nan
            centres = [
                column.mean if far else centre for column, far, centre in zip(found, coarse, centres, strict=True)
            ]
        for at, column in enumerate(found):
            if math.inf in (column.maximum, -column.minimum):
                infinite = prepared.filter(nw.col(f"v{at}").abs() == math.inf).select(nw.len().alias("rows"))
                found[at] = replace(column, infinite=int(_collect(infinite)["rows"][0]))
        self._seen[system] = found, int(row["rows"]), int(row["rows"]) - int(row["with_cluster"])
        return self._seen[system]

    @own_words()
    def grouped(self, plan: ReadPlan) -> Grouped:
        """Sums of products by cluster and pattern, by one group-by."""
        columns, monomials = plan.system.columns, plan.monomials
        at = {name: k for k, name in enumerate(columns)}
        working = [_working(plan, k) for k in range(len(columns))]
        row, col = np.triu_indices(len(monomials))
        products = [
            reduce(mul, (nw.col(f"v{at[name]}") for name in (*monomials[i], *monomials[j]))).alias(f"p{k}")
            for k, (i, j) in enumerate(zip(row, col, strict=True))
            if k > 0
        ]
        prepared, keys = self._prepared(plan.system, plan.missing), ["cluster"]
        if plan.missing:
            pattern = sum((flag.cast(nw.Int64) * 2**e for e, flag in enumerate(_complete(plan))), nw.lit(0))
            keys = ["cluster", "pattern"]
            prepared = prepared.select("cluster", pattern.alias("pattern"), *working)
            prepared = prepared.filter(~nw.col("cluster").is_null(), nw.col("pattern") > 0)
        else:
            prepared = prepared.select("cluster", *working)
        sums = prepared.select(*keys, *products).group_by(*keys)
        collected = _collect(sums.agg(nw.len().alias("p0"), *(nw.col(f"p{k}").sum() for k in range(1, len(row)))))
        labels = _labels(collected["cluster"], plan.system.cluster)

        def rows(chosen: Any, packed: NDArray[np.int64]) -> Iterator[Floats]:
            for k in packed:
                yield collected[f"p{k}"].to_numpy().astype(np.float64, copy=False)[chosen]

        if not plan.missing:
            every = 2 ** len(plan.bits) - 1
            return Grouped(labels, {every: (slice(None), rows(slice(None), plan.packed(every)))})
        code = collected["pattern"].to_numpy().astype(np.int64)
        found = {int(bits): np.flatnonzero(code == bits) for bits in np.unique(code)}
        return Grouped(labels, {bits: (at, rows(at, plan.packed(bits))) for bits, at in found.items()})

    @own_words()
    def extremes(
        self, plan: ReadPlan, names: Sequence[str]
    ) -> tuple[NDArray[np.generic], dict[str, tuple[Floats, Floats]]]:
        """Smallest and largest value of columns by cluster, over the rows that count."""
        at = plan.positions(names)
        ends = [nw.col(f"v{k}").min().alias(f"low{k}") for k in at]
        ends += [nw.col(f"v{k}").max().alias(f"high{k}") for k in at]
        counts = self._prepared(plan.system, plan.missing).filter(
            ~nw.col("cluster").is_null(), reduce(or_, _complete(plan))
        )
        found = _collect(counts.group_by("cluster").agg(*ends))

        def column(name: str) -> Floats:
            return found[name].to_numpy().astype(np.float64)

        values = {name: (column(f"low{k}"), column(f"high{k}")) for name, k in zip(names, at, strict=True)}
        return _labels(found["cluster"], plan.system.cluster), values

    @own_words()
    def fill(self, system: System, groups: Sequence[Sequence[str]], closeness: Mapping[str, float]) -> tuple[str, ...]:
        """Fill in missing values by the value that a column has elsewhere in the cluster, from now on."""
        at = {name: system.columns.index(name) for group in groups for name in group}
        prepared = self._as_it_is(system, tuple(at)).filter(~nw.col("cluster").is_null())
        filled: set[str] = set()
        for rows in (prepared.head(FIRST), prepared):
            spread, filled = _ends(rows, at)
            groups = [group for group in groups if all(spread[name] <= closeness[name] for name in group)]
            if not groups:
                return ()
        self._fills = tuple(name for group in groups for name in group if name in filled)
        self._seen.clear()
        return self._fills

    @own_words()
    def apart(self, system: System, name: str, codes: Sequence[float]) -> tuple[float, float, dict[float, int]]:
        """Smallest and largest value of a column without codes, NaN if there is none, and rows by code."""
        value = nw.col(f"v{system.columns.index(name)}")
        prepared = self._prepared(system, (name,)).select(value.alias("value"))
        others = prepared.filter(~nw.col("value").is_in(list(codes)))
        ends = _collect(others.select(nw.col("value").min().alias("low"), nw.col("value").max().alias("high")))
        coded = prepared.filter(nw.col("value").is_in(list(codes))).group_by("value").agg(nw.len().alias("rows"))
        counts = {float(row["value"]): int(row["rows"]) for row in _collect(coded).rows(named=True)}
        return _number(ends["low"][0]), _number(ends["high"][0]), {code: counts.get(code, 0) for code in codes}

    def rows_of(
        self, system: System, names: Sequence[str], labels: Sequence[Any]
    ) -> list[tuple[NDArray[np.int64], list[Floats]]] | None:
        """Nothing: the rows of a query have no order."""
        return None

    def whole(self, system: System, most: int) -> tuple[NDArray[np.intp], list[Floats]] | None:
        """Nothing: rows stay with their engine."""
        return None

    @own_words()
    def to_pandas(self, system: System) -> pd.DataFrame:
        """The cluster id and the columns of a system, row by row, in the order in which the engine gives them."""
        table = _collect(self._as_it_is(system, system.columns)).to_pandas()
        for name in self._fills:  # here, since engines may move rows when they fill
            if name in system.columns:
                column = f"v{system.columns.index(name)}"
                clusters = table.groupby("cluster")[column]
                value = clusters.transform("min") / 2 + clusters.transform("max") / 2
                table[column] = table[column].where(table[column].notna(), value)
        return table


def _filled(name: str) -> nw.Expr:
    """A column with its missing values filled in by the one value that it has in the cluster."""
    value = nw.col(name)
    ends = (value.min().over("cluster"), value.max().over("cluster"))
    known = nw.when(~nw.col("cluster").is_null()).then(ends[0] / 2 + ends[1] / 2)
    return nw.when(value.is_null()).then(known).otherwise(value)


def _ends(rows: nw.LazyFrame[Any], at: Mapping[str, int]) -> tuple[dict[str, float], set[str]]:
    """Largest range of columns within a cluster, and those that are missing in some rows of a cluster that has them."""
    ends, wanted = [nw.len().alias("rows")], []
    for k in at.values():
        value = nw.col(f"v{k}")
        ends += [value.min().alias(f"low{k}"), value.max().alias(f"high{k}"), value.count().alias(f"count{k}")]
        count = nw.col(f"count{k}")
        wanted.append((nw.col(f"high{k}") - nw.col(f"low{k}")).max().alias(f"spread{k}"))
        wanted.append(((count > 0) & (count < nw.col("rows"))).cast(nw.Int64).max().alias(f"absent{k}"))
    row = _collect(rows.group_by("cluster").agg(*ends).select(*wanted)).rows(named=True)[0]
    spread = {name: 0.0 if row[f"spread{k}"] is None else float(row[f"spread{k}"]) for name, k in at.items()}
    return spread, {name for name, k in at.items() if row[f"absent{k}"]}


def _working(plan: ReadPlan, k: int) -> nw.Expr:
    """A working column; a product with the inverse of a power of two is exact, and faster than a quotient."""
    value, shift, scale = nw.col(f"v{k}"), float(plan.shift[k]), float(plan.scale[k])
    if shift:
        value = value - shift
    return value if scale == 1 else (value * (1 / scale)).alias(f"v{k}")


def _sums(prepared: nw.LazyFrame[Any], centres: Sequence[float]) -> dict[str, Any]:
    """Rows, and by column what is there, sum and sum of squares of deviations from a centre, and the range."""
    wanted = [nw.len().alias("rows"), nw.col("cluster").count().alias("with_cluster")]
    for at, centre in enumerate(centres):
        value = nw.col(f"v{at}")
        away = value - centre if centre else value
        wanted += [
            value.count().alias(f"count{at}"),
            away.sum().alias(f"sum{at}"),
            (away * away).sum().alias(f"square{at}"),
            value.min().alias(f"minimum{at}"),
            value.max().alias(f"maximum{at}"),
        ]
    return _collect(prepared.select(*wanted)).rows(named=True)[0]


def _column(row: dict[str, Any], at: int, name: str, centre: float) -> Column:
    total, square, minimum, maximum = (_number(row[f"{key}{at}"]) for key in ("sum", "square", "minimum", "maximum"))
    count = int(row[f"count{at}"])
    away = total / count if count else math.nan
    sd = math.sqrt(max(square - count * away * away, 0.0) / (count - 1)) if count > 1 else math.nan
    return Column(name, int(row["rows"]) - count, centre + away, sd, minimum, maximum)


def _complete(plan: ReadPlan) -> list[nw.Expr]:
    """Whether a row has all columns of each group."""
    return [reduce(and_, (~nw.col(f"v{k}").is_null() for k in plan.positions(group))) for group in plan.bits]


def _collect(lazy: nw.LazyFrame[Any]) -> nw.DataFrame[Any]:
    """Run a lazy query, by the streaming engine where there is one to choose."""
    with own_words():
        if lazy.implementation.is_polars():
            return lazy.collect("polars", engine="streaming")
        return lazy.collect()


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _labels(series: nw.Series[Any], name: str) -> NDArray[np.generic]:
    as_list = isinstance(series.dtype, (nw.Object, nw.String))
    return cluster_labels(series.to_list() if as_list else series.to_numpy(), name)
