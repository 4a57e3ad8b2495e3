"""The only reader of data: frames of any library narwhals knows, and files, become moments."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
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
from jaxmed.moments import Floats, Intake, Moments, Pattern
from jaxmed.spec import System

MISSING_TEXT = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "."]


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
    """Open data and keep the named columns, checking that they are there, once each."""
    native = _read_file(Path(data), columns) if isinstance(data, (str, Path)) else data
    if isinstance(native, pd.DataFrame):
        _check_names([str(name) for name in native.columns], columns)
        native = native[list(dict.fromkeys(columns))]
    try:
        frame = nw.from_native(native).lazy()
    except TypeError as error:
        raise DataError(
            f"data of type {type(data).__name__} cannot be read; pass a pandas, polars, pyarrow, DuckDB or PySpark "
            "frame, or a path to a .csv, .parquet, .dta or .feather file"
        ) from error
    _check_names(frame.collect_schema().names(), columns)
    return frame.select(*dict.fromkeys(columns))


def _check_names(present: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        count = list(present).count(name)
        if count == 0:
            close = difflib.get_close_matches(name, present, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the columns are {_some(present)}"
            raise DataError(f"there is no column {name!r} in the data; {hint}")
        if count > 1:
            raise DataError(f"the data has {count} columns named {name!r}; rename them so that each name is unique")


def _some(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _read_file(path: Path, columns: Sequence[str]) -> Any:
    """Load the needed columns of a file with the library that owns its format."""
    readers = {".csv": _read_csv, ".parquet": _read_arrow, ".feather": _read_arrow, ".dta": _read_stata}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{str(path)!r} has an ending that cannot be read; use one of {', '.join(readers)}")
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}; check the path (working folder: {str(Path.cwd())!r})")
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not a file")
    if path.stat().st_size == 0:
        raise DataError(f"the file {str(path)!r} is empty")
    try:
        return reader(path, columns)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(path)!r} cannot be read as {path.suffix}: {error}") from error


def _read_csv(path: Path, columns: Sequence[str]) -> Any:
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = [str(name) for name in header.iloc[0]]
    _check_names(names, columns)
    return pd.read_csv(
        path,
        header=0,
        names=list(range(len(names))),
        usecols=[names.index(name) for name in dict.fromkeys(columns)],
        na_values=MISSING_TEXT,
        keep_default_na=False,
        low_memory=False,
    ).rename(columns=dict(enumerate(names)))


def _read_arrow(path: Path, columns: Sequence[str]) -> Any:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        _check_names(parquet.read_schema(path).names, columns)
        return parquet.read_table(path, columns=list(dict.fromkeys(columns)))
    import pyarrow.feather as feather

    table = feather.read_table(path)
    _check_names(table.column_names, columns)
    return table.select(list(dict.fromkeys(columns)))


def _read_stata(path: Path, columns: Sequence[str]) -> Any:
    return pd.read_stata(path, convert_categoricals=False)


# First pass: summaries and checks ------------------------------------------------------------------------------------


def prepare(frame: nw.LazyFrame[Any], system: System) -> nw.LazyFrame[Any]:
    """The cluster id as ``cluster`` and the columns of the system as ``v0, v1, ...``, float64 with NaN as missing."""
    schema = frame.collect_schema()
    for name in system.columns:
        _check_numeric(frame, name, schema[name])
    cluster = nw.col(system.cluster)
    if schema[system.cluster].is_float():
        cluster = cluster.fill_nan(None)
    elif isinstance(schema[system.cluster], (nw.Categorical, nw.Enum)):
        cluster = cluster.cast(nw.String)
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
    row = _collect(prepared.select(*wanted)).rows(named=True)[0]
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
        raise DataError(
            f"column {column.name!r} has {infinite} infinite values among {rows} rows; only finite numbers are "
            "allowed: set them to missing or remove these rows"
        )
    if column.minimum == column.maximum:
        raise DataError(
            f"column {column.name!r} is constant (every value is {column.minimum:g}), so its effect cannot be told "
            "from the intercept; remove it from the model or check how it was read"
        )


def _collect(lazy: nw.LazyFrame[Any]) -> nw.DataFrame[Any]:
    """Run a lazy query; an error inside the data's own engine is passed on as one sentence."""
    try:
        return lazy.collect()
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"the data could not be read by its own library ({type(error).__name__}): {error}") from error


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
    return _collect(
        prepared.select("cluster", pattern.alias("pattern"), *working)
        .filter(~nw.col("cluster").is_null(), nw.col("pattern") > 0)
        .select("cluster", "pattern", *products)
        .group_by("cluster", "pattern")
        .agg(nw.len().alias("p0"), *(nw.col(f"p{at}").sum() for at in range(1, len(pairs))))
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
            f"the cluster column {system.cluster!r} has one cluster ({clusters[0]!r}); a multilevel model needs at "
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
        table[:, cluster_at[chosen]] = products[np.ix_(packed, chosen)]
        patterns.append(Pattern(observed, table))
    used = [sum(p.products[0].sum() for p in patterns if set(group) <= set(p.observed)) for group in system.groups]
    missing = {name: column.missing for name, column in summaries.items()} | {system.cluster: missing_cluster}
    used_rows = int(sum(pattern.products[0].sum() for pattern in patterns))
    intake = Intake(rows=rows, used=tuple(int(count) for count in used), missing=missing, dropped=rows - used_rows)
    return Moments(
        columns, shift, scale, clusters, tuple(sorted(patterns, key=lambda pattern: pattern.observed)), intake
    )


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
        labels = np.array(values)
    else:
        labels = series.to_numpy()
    if labels.dtype == object:
        labels = labels.astype(str)
    if labels.dtype.kind == "f" and np.all(labels == np.floor(labels)) and np.all(np.abs(labels) < 2**53):
        labels = labels.astype(np.int64)
    return labels


def to_pandas(prepared: nw.LazyFrame[Any]) -> pd.DataFrame:
    """A prepared frame in memory, as pandas."""
    return _collect(prepared).to_pandas()
