"""The only reader of data: frames of any library narwhals knows, and files, become moments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed.errors import DataError
from jaxmed.files import check_names, read_file
from jaxmed.moments import Floats, Intake, Moments, Pattern
from jaxmed.spec import System

LARGEST = 1e150  # values beyond it, or spreads below its inverse, have no finite square


@dataclass(frozen=True)
class Column:
    """Summary of one numeric column over its observed values."""

    name: str
    missing: int
    mean: float
    sd: float
    minimum: float
    maximum: float


def read(data: Any, system: System) -> Moments:
    """Read what a system needs from data, as moments.

    Two passes in the data's own engine: summaries (for checks, and to choose shift and scale), then one group-by-sum
    of the products of the working columns. A row counts in every equation whose columns it has observed; a row
    without a cluster id counts nowhere.

    Parameters
    ----------
    data : frame or path
        pandas, polars (eager or lazy), pyarrow, DuckDB, PySpark, Dask or Ibis; or a path to .csv, .parquet, .dta or
        .feather.
    system : System

    Raises
    ------
    DataError
        With the column, the value seen, what is allowed and the remedy.
    """
    frame = open_frame(data, (system.cluster, *system.columns))
    prepared = prepare(frame, system)
    summaries, rows, missing_cluster = summarise(prepared, system)
    shift, scale = _working_scale(summaries, system)
    collected = _group(prepared, system, shift, scale)
    return _to_moments(collected, system, shift, scale, summaries, rows, missing_cluster)


# Opening -------------------------------------------------------------------------------------------------------------


def open_frame(data: Any, columns: Sequence[str]) -> nw.LazyFrame[Any]:
    """Open data and keep the named columns (the cluster id first), checking that they are there, once each."""
    columns = list(dict.fromkeys(columns))
    native = read_file(Path(data), columns) if isinstance(data, (str, Path)) else data
    if isinstance(native, pd.DataFrame):
        check_names(list(native.columns), columns)
        native = native[columns]
        cluster = native[columns[0]]
        if isinstance(cluster.dtype, pd.CategoricalDtype) and pd.api.types.is_integer_dtype(cluster.cat.categories):
            native = native.assign(**{columns[0]: cluster.astype("Int64")})
    try:
        frame = nw.from_native(native).lazy()
    except TypeError as error:
        raise DataError(
            f"data of type {type(data).__name__} cannot be read; pass a pandas, polars, pyarrow, DuckDB or PySpark "
            "frame, or a path to a .csv, .parquet, .dta or .feather file"
        ) from error
    with _own_words():
        names = frame.collect_schema().names()
    check_names(names, columns)
    return frame.select(*columns)


@contextmanager
def _own_words() -> Iterator[None]:
    """Pass an error inside the data's own library on as one sentence; NumPy's floating-point warnings are not news."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"the data could not be read by its own library ({type(error).__name__}): {error}") from error


# First pass: summaries and checks ------------------------------------------------------------------------------------


def prepare(frame: nw.LazyFrame[Any], system: System) -> nw.LazyFrame[Any]:
    """The cluster id as ``cluster`` and the columns of the system as ``v0, v1, ...``, float64 with NaN as missing."""
    with _own_words():
        schema = frame.collect_schema()
    for name in system.columns:
        _check_numeric(frame, name, schema[name])
    dtype = schema[system.cluster]
    cluster = nw.col(system.cluster)
    if dtype.is_nested():
        raise DataError(f"the cluster column {system.cluster!r} has type {dtype}; use numbers, text or dates as ids")
    if isinstance(dtype, nw.Datetime) and dtype.time_zone is not None:
        raise DataError(
            f"the cluster column {system.cluster!r} holds times in a time zone, which predictions by cluster could not "
            f"keep; make them text first, e.g. data[{system.cluster!r}] = data[{system.cluster!r}].astype(str)"
        )
    if dtype.is_float():
        cluster = cluster.fill_nan(None)
    elif isinstance(dtype, (nw.String, nw.Categorical, nw.Enum)):
        text = cluster if isinstance(dtype, nw.String) else cluster.cast(nw.String)
        # An empty text is no id, nor is what a cast makes of a missing one.
        cluster = nw.when(~nw.col(system.cluster).is_null(), text != "").then(text)
    values = (nw.col(name).cast(nw.Float64).fill_nan(None).alias(f"v{at}") for at, name in enumerate(system.columns))
    return frame.select(cluster.alias("cluster"), *values)


def summarise(prepared: nw.LazyFrame[Any], system: System) -> tuple[dict[str, Column], int, int]:
    """Summaries of the columns of a system, the number of rows, and of rows without a cluster id.

    Raises :class:`DataError` where a column has infinite values, no values, or a single value.
    """
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
    with _own_words():
        row = prepared.select(*wanted).collect().rows(named=True)[0]
    rows, no_cluster = int(row["rows"]), int(row["no_cluster"] or 0)
    if rows == 0:
        raise DataError("the data has no rows")
    summaries = {}
    for at, name in enumerate(system.columns):
        statistics = {key: _number(row[f"{key}{at}"]) for key in ("mean", "sd", "minimum", "maximum")}
        summaries[name] = Column(name=name, missing=int(row[f"missing{at}"] or 0), **statistics)
        _check_values(prepared, f"v{at}", summaries[name], rows)
    if no_cluster == rows:
        raise DataError(f"the cluster column {system.cluster!r} is missing in all {rows} rows")
    return summaries, rows, no_cluster


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _check_numeric(frame: nw.LazyFrame[Any], name: str, dtype: nw.dtypes.DType) -> None:
    if dtype.is_numeric() or isinstance(dtype, nw.Boolean):
        return
    seen = _collect(frame.select(nw.col(name)).filter(~nw.col(name).is_null()).head(1000))[name].to_list()
    if not seen and len(_collect(frame.select(nw.col(name)).head(1))) == 0:
        raise DataError("the data has no rows")
    if not seen and not dtype.is_temporal():
        raise DataError(f"column {name!r} has no values: it is missing in every row")
    example = next((value for value in seen if not _is_number(value)), seen[0] if seen else None)
    raise DataError(
        f"column {name!r} must be numeric, but it has type {dtype} with values such as {example!r}; "
        f"convert it first, e.g. data[{name!r}] = pandas.to_numeric(data[{name!r}], errors='coerce'), "
        "or code its categories as 0 and 1"
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_values(prepared: nw.LazyFrame[Any], at: str, column: Column, rows: int) -> None:
    if column.missing == rows:
        raise DataError(f"column {column.name!r} has no values: it is missing in every row")
    if math.inf in (column.maximum, -column.minimum):
        infinite = len(_collect(prepared.filter(nw.col(at).abs() == math.inf).select(at)))
        values = "value" if infinite == 1 else "values"
        raise DataError(
            f"column {column.name!r} has {infinite} infinite {values} among {rows} rows; only finite numbers are "
            "allowed: set them to missing or remove these rows"
        )
    if column.minimum == column.maximum:
        raise DataError(
            f"column {column.name!r} is constant (every value is {column.minimum:g}), so it cannot be told from the "
            "intercept and nothing can explain it; remove it from the model or check how it was read"
        )
    largest, spread = max(abs(column.minimum), abs(column.maximum)), column.maximum - column.minimum
    if largest > LARGEST or spread < 1 / LARGEST:
        raise DataError(
            f"column {column.name!r} has values up to {largest:g} that spread over {spread:g}, too large or too small "
            "to multiply; divide it by a power of ten first"
        )


def _collect(lazy: nw.LazyFrame[Any]) -> nw.DataFrame[Any]:
    """Run a lazy query."""
    with _own_words():
        return lazy.collect()


# Second pass: products -----------------------------------------------------------------------------------------------


def _working_scale(summaries: dict[str, Column], system: System) -> tuple[Floats, Floats]:
    """Shift and scale per column: a power of two near the sd, and the mean to a sixteenth of that.

    Coarse on purpose: scaling by a power of two is exact, and engines that differ in the last digit of a mean still
    give the same working columns.
    """
    shift = np.zeros(len(system.columns))
    scale = np.ones(len(system.columns))
    for at, name in enumerate(system.columns):
        column = summaries[name]
        centred = name in system.centred
        sd = column.sd if math.isfinite(column.sd) else abs(column.mean)
        size = sd if centred else math.hypot(sd, column.mean)
        scale[at] = 2.0 ** round(math.log2(size)) if size > 0 else 1.0
        if centred:
            shift[at] = round(column.mean / scale[at] * 16) / 16 * scale[at]
    return shift, scale


def _group(prepared: nw.LazyFrame[Any], system: System, shift: Floats, scale: Floats) -> nw.DataFrame[Any]:
    """One group-by-sum over (cluster, pattern): columns cluster, pattern, p0 (rows), p1, ... (packed products)."""
    columns = system.columns
    working = (((nw.col(f"v{at}") - float(shift[at])) / float(scale[at])).alias(f"v{at}") for at in range(len(columns)))
    usable = [reduce(and_, (~nw.col(f"v{columns.index(name)}").is_null() for name in group)) for group in system.groups]
    pattern = sum((flag.cast(nw.Int64) * 2**e for e, flag in enumerate(usable)), nw.lit(0))
    pairs = [(i, j) for i in range(len(columns) + 1) for j in range(i, len(columns) + 1)]
    products = [_product(i, j).alias(f"p{at}") for at, (i, j) in enumerate(pairs) if at > 0]
    with _own_words():
        return (
            prepared.select("cluster", pattern.alias("pattern"), *working)
            .filter(~nw.col("cluster").is_null(), nw.col("pattern") > 0)
            .select("cluster", "pattern", *products)
            .group_by("cluster", "pattern")
            .agg(nw.len().alias("p0"), *(nw.col(f"p{at}").sum() for at in range(1, len(pairs))))
            .collect()
        )


def _product(i: int, j: int) -> nw.Expr:
    if i == 0:
        return nw.col(f"v{j - 1}")
    return nw.col(f"v{i - 1}") * nw.col(f"v{j - 1}")


def _to_moments(
    collected: nw.DataFrame[Any],
    system: System,
    shift: Floats,
    scale: Floats,
    summaries: dict[str, Column],
    rows: int,
    missing_cluster: int,
) -> Moments:
    columns = system.columns
    if len(collected) == 0:
        counts = ", ".join(f"{name!r}: {column.missing}" for name, column in summaries.items())
        raise DataError(f"no row has all the columns of any equation observed (missing values: {counts})")
    labels = _labels(collected["cluster"], system.cluster)
    clusters, cluster_at = np.unique(labels, return_inverse=True)
    if len(clusters) < 2:
        raise DataError(
            f"the cluster column {system.cluster!r} has one cluster ({clusters[0]}); a multilevel model needs at "
            "least two, and some tens to estimate how effects vary"
        )
    code = collected["pattern"].to_numpy().astype(np.int64)
    products = np.stack([collected[f"p{at}"].to_numpy().astype(np.float64) for at in range(_n_pairs(len(columns)))])
    patterns = []
    for bits in np.unique(code):
        groups = [group for e, group in enumerate(system.groups) if bits >> e & 1]
        observed = tuple(name for name in columns if any(name in group for group in groups))
        packed = _packed_rows(len(columns) + 1, [0, *(1 + columns.index(name) for name in observed)])
        table = np.zeros((len(packed), len(clusters)))
        chosen = code == bits
        np.add.at(table.T, cluster_at[chosen], products[np.ix_(packed, chosen)].T)  # engines may split -0.0 from 0.0
        patterns.append(Pattern(observed, table))
    used = [sum(p.products[0].sum() for p in patterns if set(group) <= set(p.observed)) for group in system.groups]
    missing = {name: column.missing for name, column in summaries.items()} | {system.cluster: missing_cluster}
    used_rows = int(sum(pattern.products[0].sum() for pattern in patterns))
    intake = Intake(rows=rows, used=tuple(int(count) for count in used), missing=missing, dropped=rows - used_rows)
    patterns.sort(key=lambda pattern: pattern.observed)
    return Moments(system.cluster, columns, shift, scale, clusters, tuple(patterns), system.groups, intake)


def _n_pairs(columns: int) -> int:
    return (columns + 1) * (columns + 2) // 2


def _packed_rows(size: int, keep: list[int]) -> NDArray[np.int64]:
    """Rows of the packed triangle of ``size`` that hold the packed triangle of the kept indices."""
    row, col = np.triu_indices(size)
    return np.flatnonzero(np.isin(row, keep) & np.isin(col, keep))


def _labels(series: nw.Series[Any], name: str) -> NDArray[np.generic]:
    """Cluster ids as a sortable NumPy array: integers, text or dates as they are, whole floats as integers."""
    dtype = series.dtype
    if isinstance(dtype, (nw.Object, nw.String)):
        values = series.to_list()
        kinds = sorted({type(value).__name__ for value in values})
        if len(kinds) > 1:
            raise DataError(
                f"the cluster column {name!r} mixes types ({', '.join(kinds)}); make them one type first, e.g. "
                f"data[{name!r}] = data[{name!r}].astype(str)"
            )
        labels = np.array(values, dtype="datetime64[D]" if kinds == ["date"] else None)
        if kinds == ["str"] and any(value.endswith("\0") for value in values):
            raise DataError(f"the cluster column {name!r} has ids that end in a NUL character; remove it")
    else:
        labels = series.to_numpy()
    if labels.ndim != 1 or labels.dtype == object:
        raise DataError(f"the cluster column {name!r} has ids such as {labels.flat[0]}; use numbers, text or dates")
    if labels.dtype.kind == "f" and np.all(labels == np.floor(labels)) and np.all(np.abs(labels) < 2**53):
        labels = labels.astype(np.int64)
    return labels


def to_pandas(prepared: nw.LazyFrame[Any]) -> pd.DataFrame:
    """A prepared frame in memory, as pandas."""
    return _collect(prepared).to_pandas()
