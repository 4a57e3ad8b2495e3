"""Data that an engine holds (polars lazy, DuckDB, PySpark, Dask, Ibis): it does the sums itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, reduce
from operator import and_, mul, or_
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed.columns import Column, Grouped, Plan, cluster_labels, own_words, working_columns
from jaxmed.moments import Floats
from jaxmed.spec import System

SEEN = 1000  # values to look at, where some are enough


class Query:
    """A lazy frame; see :class:`jaxmed.columns.Source`."""

    def __init__(self, frame: nw.LazyFrame[Any]) -> None:
        self._frame = frame

    @cached_property
    def _schema(self) -> nw.Schema:
        with own_words():
            return self._frame.collect_schema()

    def schema(self) -> nw.Schema:
        """Columns and their types."""
        return self._schema

    def values(self, name: str, distinct: bool) -> Iterator[list[Any]]:
        """Values of a column that are not null, :data:`SEEN` at the most; none where there are no rows."""
        column = self._frame.select(nw.col(name))
        present = column.filter(~nw.col(name).is_null())
        found = _collect((present.unique() if distinct else present).head(SEEN))[name].to_list()
        if found or len(_collect(column.head(1))):
            yield found

    def _prepared(self, system: System) -> nw.LazyFrame[Any]:
        """The cluster id and the columns of a system, NaN made null."""
        cluster, *values = working_columns(self, system)
        return self._frame.select(cluster, *(value.fill_nan(None) for value in values))

    def summaries(self, system: System) -> tuple[list[Column], int, int]:
        """Of the columns of a system; the number of rows, and of rows without a cluster id."""
        prepared = self._prepared(system)
        wanted = [nw.len().alias("rows"), nw.col("cluster").null_count().alias("no_cluster")]
        for at in range(len(system.columns)):
            value = nw.col(f"v{at}")
            wanted += [
                value.null_count().alias(f"missing{at}"),
                value.mean().alias(f"mean{at}"),
                value.std().alias(f"sd{at}"),
                value.min().alias(f"minimum{at}"),
                value.max().alias(f"maximum{at}"),
            ]
        row = _collect(prepared.select(*wanted)).rows(named=True)[0]
        found = []
        for at, name in enumerate(system.columns):
            numbers = {key: _number(row[f"{key}{at}"]) for key in ("mean", "sd", "minimum", "maximum")}
            infinite = 0
            if math.inf in (numbers["maximum"], -numbers["minimum"]):
                infinite = len(_collect(prepared.filter(nw.col(f"v{at}").abs() == math.inf).select(f"v{at}")))
            found.append(Column(name=name, missing=int(row[f"missing{at}"] or 0), infinite=infinite, **numbers))
        return found, int(row["rows"]), int(row["no_cluster"] or 0)

    def grouped(self, plan: Plan) -> Grouped:
        """Sums of products by cluster and pattern, by one group-by."""
        columns, monomials = plan.system.columns, plan.monomials
        at = {name: k for k, name in enumerate(columns)}
        working = (
            ((nw.col(f"v{k}") - float(plan.shift[k])) / float(plan.scale[k])).alias(f"v{k}")
            for k in range(len(columns))
        )
        pattern = sum((flag.cast(nw.Int64) * 2**e for e, flag in enumerate(_complete(plan))), nw.lit(0))
        row, col = np.triu_indices(len(monomials))
        products = [
            reduce(mul, (nw.col(f"v{at[name]}") for name in (*monomials[i], *monomials[j]))).alias(f"p{k}")
            for k, (i, j) in enumerate(zip(row, col, strict=True))
            if k > 0
        ]
        collected = _collect(
            self._prepared(plan.system)
            .select("cluster", pattern.alias("pattern"), *working)
            .filter(~nw.col("cluster").is_null(), nw.col("pattern") > 0)
            .select("cluster", "pattern", *products)
            .group_by("cluster", "pattern")
            .agg(nw.len().alias("p0"), *(nw.col(f"p{k}").sum() for k in range(1, len(row))))
        )
        code = collected["pattern"].to_numpy().astype(np.int64)

        def rows(chosen: NDArray[np.bool_], packed: NDArray[np.int64]) -> Iterator[Floats]:
            for k in packed:
                yield collected[f"p{k}"].to_numpy().astype(np.float64, copy=False)[chosen]

        patterns = {int(bits): (code == bits, rows(code == bits, plan.packed(int(bits)))) for bits in np.unique(code)}
        return Grouped(_labels(collected["cluster"], plan.system.cluster), patterns)

    def extremes(
        self, plan: Plan, names: Sequence[str]
    ) -> tuple[NDArray[np.generic], dict[str, tuple[Floats, Floats]]]:
        """Smallest and largest value of columns by cluster, over the rows that count."""
        at = plan.positions(names)
        ends = [nw.col(f"v{k}").min().alias(f"low{k}") for k in at]
        ends += [nw.col(f"v{k}").max().alias(f"high{k}") for k in at]
        counts = self._prepared(plan.system).filter(~nw.col("cluster").is_null(), reduce(or_, _complete(plan)))
        found = _collect(counts.group_by("cluster").agg(*ends))

        def column(name: str) -> Floats:
            return found[name].to_numpy().astype(np.float64)

        values = {name: (column(f"low{k}"), column(f"high{k}")) for name, k in zip(names, at, strict=True)}
        return _labels(found["cluster"], plan.system.cluster), values

    def to_pandas(self, system: System) -> pd.DataFrame:
        """The cluster id and the columns of a system, row by row."""
        return _collect(self._prepared(system)).to_pandas()


def _complete(plan: Plan) -> list[nw.Expr]:
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
