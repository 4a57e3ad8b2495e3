"""The only reader of data: frames of any library narwhals knows, and files, become moments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, mul, or_
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed.errors import DataError, SpecError
from jaxmed.files import indicator, read_file, resolve_names
from jaxmed.mediation import Facts, Spec, check_spec
from jaxmed.moments import SAME, Floats, Intake, Moments, Monomial, Pattern, packed_rows
from jaxmed.spec import System
from jaxmed.terms import category_text

LARGEST = 1e150  # values beyond it, or spreads below its inverse, have no finite square
CATEGORIES = 100  # of one column, at the most
MISSING = ("available", "listwise", "raise")


@dataclass(frozen=True)
class Column:
    """Summary of one numeric column over its observed values."""

    name: str
    missing: int
    mean: float
    sd: float
    minimum: float
    maximum: float


def survey(data: Any, spec: Spec) -> tuple[nw.LazyFrame[Any], Facts]:
    """Open the data of a model and look up the categories of its categorical columns."""
    check_spec(spec)
    frame = open_frame(data, (spec.cluster, *spec.columns))
    return frame, Facts({name: categories(frame, name) for name in spec.categorical})


def categories(frame: nw.LazyFrame[Any], name: str) -> tuple[str, ...]:
    """Categories of a column as text, sorted; whole numbers without a decimal point."""
    with _own_words():
        dtype = frame.collect_schema()[name]
    if dtype.is_temporal() or dtype.is_nested():
        raise DataError(f"the categorical column {name!r} has type {dtype}; make its categories text or whole numbers")
    values = _collect(frame.select(nw.col(name)).filter(~nw.col(name).is_null()).unique().head(CATEGORIES + 2))[
        name
    ].to_list()
    present = [value for value in values if value == value]  # NaN is missing
    if len(present) > CATEGORIES:
        raise DataError(
            f"the categorical column {name!r} has more than {CATEGORIES} categories; merge some, or take it out of "
            "reference to use it as a number"
        )
    if any(value in (math.inf, -math.inf) for value in present):
        raise DataError(
            f"the categorical column {name!r} has infinite values; set them to missing or remove these rows"
        )
    if not present:
        raise DataError(f"column {name!r} has no values: it is missing in every row")
    kinds = sorted({type(value).__name__ for value in present})
    if len(kinds) > 1:
        raise DataError(f"the categorical column {name!r} mixes types ({', '.join(kinds)}); make them one type first")
    return tuple(category_text(value) for value in sorted(present))


def equation_groups(system: System, missing: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Columns that a row must have observed, per equation, and columns of which every value counts in a mean."""
    if missing not in MISSING:
        raise SpecError(f"missing={missing!r} is not known; choose one of {list(MISSING)}")
    if missing == "listwise":
        return (system.columns,) * len(system.equations), ()
    return system.groups, system.averaged


def read(data: Any, system: System, missing: str = "available", facts: Facts | None = None) -> Moments:
    """Read what a system needs from data, as moments.

    Two passes in the data's own engine: summaries (for checks, and to choose shift and scale), then one group-by-sum
    of the products of the working columns. A row counts in every equation whose columns it has observed (or, with
    ``missing="listwise"``, in all or none); a row without a cluster id counts nowhere.

    Parameters
    ----------
    data : frame or path
        pandas, polars (eager or lazy), pyarrow, DuckDB, PySpark, Dask or Ibis; or a path to .csv, .parquet, .dta or
        .feather.
    system : System
    missing : {"available", "listwise", "raise"}
    facts : Facts, optional
        Categories of the columns that the system has indicators of.

    Raises
    ------
    DataError
        With the column, the value seen, what is allowed and the remedy.
    """
    frame = open_frame(data, (system.cluster, *system.columns))
    groups, averaged = equation_groups(system, missing)
    prepared = prepare(frame, system)
    summaries, rows, missing_cluster = summarise(prepared, system)
    counts = {name: column.missing for name, column in summaries.items()} | {system.cluster: missing_cluster}
    check_complete(counts, missing)
    shift, scale = _working_scale(summaries)
    plan = _Plan(system, groups, averaged, shift, scale, (facts or Facts()).categories)
    moments = _to_moments(_group(prepared, plan), plan, summaries, rows, counts)
    return replace(moments, constants=_constants(prepared, plan, moments))


def check_complete(counts: dict[str, int], missing: str) -> None:
    """Refuse missing values where the caller asked for that."""
    present = {name: count for name, count in counts.items() if count}
    if missing == "raise" and present:
        raise DataError(
            f"missing values (column: rows) {present}, and missing='raise' allows none; fill them in, or use "
            "missing='available' (a row counts in every equation it is complete for) or 'listwise' (complete rows only)"
        )


@dataclass(frozen=True)
class _Plan:
    """What the second pass has to do."""

    system: System
    groups: tuple[tuple[str, ...], ...]
    averaged: tuple[str, ...]
    shift: Floats
    scale: Floats
    categories: Mapping[str, tuple[str, ...]]

    @property
    def bits(self) -> tuple[tuple[str, ...], ...]:
        """Groups of columns whose completeness tells patterns apart: the equations', then the averaged columns."""
        return (*self.groups, *((name,) for name in self.averaged if (name,) not in self.groups))

    def complete(self) -> list[nw.Expr]:
        """Whether a row has all columns of each group."""
        at = {name: k for k, name in enumerate(self.system.columns)}
        return [reduce(and_, (~nw.col(f"v{at[name]}").is_null() for name in group)) for group in self.bits]

    @property
    def monomials(self) -> list[Monomial]:
        return [(), *((name,) for name in self.system.columns), *self.system.row_products]


# Opening -------------------------------------------------------------------------------------------------------------


def open_frame(data: Any, columns: Sequence[str]) -> nw.LazyFrame[Any]:
    """Open data and keep the named columns (the cluster id first), checking that they are there, once each."""
    columns = list(dict.fromkeys(columns))
    native = read_file(Path(data), columns) if isinstance(data, (str, Path)) else data
    if isinstance(native, pd.DataFrame):
        native = native[resolve_names(list(native.columns), columns)]
        native = native.assign(**{name: _plain(native[name]) for name in native.columns if _is_coded(native[name])})
    try:
        frame = nw.from_native(native).lazy()
    except TypeError as error:
        raise DataError(
            f"data of type {type(data).__name__} cannot be read; pass a pandas, polars, pyarrow, DuckDB or PySpark "
            "frame, or a path to a .csv, .parquet, .dta or .feather file"
        ) from error
    with _own_words():
        names = frame.collect_schema().names()
    return frame.select(*resolve_names(names, columns))


def _is_coded(column: pd.Series) -> bool:
    """A pandas Categorical whose categories are numbers."""
    return isinstance(column.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(column.cat.categories)


def _plain(column: pd.Series) -> pd.Series:
    return column.astype("Int64" if pd.api.types.is_integer_dtype(column.cat.categories) else "float64")


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
    values = [_value(frame, schema, name).alias(f"v{at}") for at, name in enumerate(system.columns)]
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
    return frame.select(cluster.alias("cluster"), *values)


def _value(frame: nw.LazyFrame[Any], schema: nw.Schema, name: str) -> nw.Expr:
    """A column as float64 with nulls; ``"g[B]"``, unless there is such a column, as the indicator of g being B."""
    if name in schema:
        _check_numeric(frame, name, schema[name])
        return nw.col(name).cast(nw.Float64).fill_nan(None)
    column, category = indicator(name)
    dtype = schema[column]
    present = ~nw.col(column).is_null()
    if dtype.is_numeric():
        present = ~nw.col(column).cast(nw.Float64).fill_nan(None).is_null()
        same = nw.col(column) == _to_number(category)
    elif isinstance(dtype, nw.Boolean):
        same = nw.col(column) == (category == "True")
    else:
        same = nw.col(column).cast(nw.String) == category
    return nw.when(present).then(same.cast(nw.Float64))


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


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
        "or code its categories as 0 and 1 (a categorical covariate or moderator: name the category to compare with in "
        f"reference={{{name!r}: ...}})"
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


def _working_scale(summaries: dict[str, Column]) -> tuple[Floats, Floats]:
    """Shift and scale per column: a power of two near the sd, and the mean to a sixteenth of that.

    Coarse on purpose: scaling by a power of two is exact, and engines that differ in the last digit of a mean still
    give the same working columns.
    """
    shift, scale = np.zeros(len(summaries)), np.ones(len(summaries))
    for at, column in enumerate(summaries.values()):
        size = column.sd if math.isfinite(column.sd) else abs(column.mean)
        scale[at] = 2.0 ** round(math.log2(size)) if size > 0 else 1.0
        shift[at] = round(column.mean / scale[at] * 16) / 16 * scale[at]
    return shift, scale


def _group(prepared: nw.LazyFrame[Any], plan: _Plan) -> nw.DataFrame[Any]:
    """One group-by-sum over (cluster, pattern): columns cluster, pattern, p0 (rows), p1, ... (packed products)."""
    columns, monomials = plan.system.columns, plan.monomials
    at = {name: k for k, name in enumerate(columns)}
    working = (
        ((nw.col(f"v{k}") - float(plan.shift[k])) / float(plan.scale[k])).alias(f"v{k}") for k in range(len(columns))
    )
    pattern = sum((flag.cast(nw.Int64) * 2**e for e, flag in enumerate(plan.complete())), nw.lit(0))
    row, col = np.triu_indices(len(monomials))
    products = [
        reduce(mul, (nw.col(f"v{at[name]}") for name in (*monomials[i], *monomials[j]))).alias(f"p{k}")
        for k, (i, j) in enumerate(zip(row, col, strict=True))
        if k > 0
    ]
    with _own_words():
        return (
            prepared.select("cluster", pattern.alias("pattern"), *working)
            .filter(~nw.col("cluster").is_null(), nw.col("pattern") > 0)
            .select("cluster", "pattern", *products)
            .group_by("cluster", "pattern")
            .agg(nw.len().alias("p0"), *(nw.col(f"p{k}").sum() for k in range(1, len(row))))
            .collect()
        )


def _to_moments(
    collected: nw.DataFrame[Any], plan: _Plan, summaries: dict[str, Column], rows: int, missing: dict[str, int]
) -> Moments:
    system, monomials = plan.system, plan.monomials
    code = collected["pattern"].to_numpy().astype(np.int64)
    if not np.any(code & (2 ** len(plan.groups) - 1)):
        counts = ", ".join(f"{name!r}: {column.missing}" for name, column in summaries.items())
        raise DataError(f"no row has all the columns of any equation observed (missing values: {counts})")
    labels = _labels(collected["cluster"], system.cluster)
    clusters, cluster_at = np.unique(labels, return_inverse=True)
    if len(clusters) < 2:
        raise DataError(
            f"the cluster column {system.cluster!r} has one cluster ({clusters[0]}); a multilevel model needs at "
            "least two, and some tens to estimate how effects vary"
        )
    n_products = len(monomials) * (len(monomials) + 1) // 2
    products = np.stack([collected[f"p{at}"].to_numpy().astype(np.float64) for at in range(n_products)])
    patterns = []
    used = np.zeros(len(plan.groups))
    dropped = rows
    for bits in np.unique(code):
        complete = [e for e in range(len(plan.bits)) if bits >> e & 1]
        observed = tuple(name for name in system.columns if any(name in plan.bits[e] for e in complete))
        packed = packed_rows(len(monomials), [k for k, found in enumerate(monomials) if set(found) <= set(observed)])
        table = np.zeros((len(packed), len(clusters)))
        chosen = code == bits
        np.add.at(table.T, cluster_at[chosen], products[np.ix_(packed, chosen)].T)  # engines may split -0.0 from 0.0
        patterns.append(Pattern(observed, table))
        own = [e for e in complete if e < len(used)]
        used[own] += table[0].sum()
        dropped -= int(table[0].sum()) if own else 0
    patterns.sort(key=lambda pattern: pattern.observed)
    by_pattern = {", ".join(pattern.observed): int(pattern.products[0].sum()) for pattern in patterns}
    ranges = {name: (column.minimum, column.maximum) for name, column in summaries.items()}
    intake = Intake(rows, tuple(int(count) for count in used), missing, dropped, by_pattern, ranges)
    return Moments(
        system.cluster,
        system.columns,
        system.row_products,
        plan.shift,
        plan.scale,
        clusters,
        tuple(patterns),
        plan.groups,
        plan.averaged,
        dict(plan.categories),
        {},
        intake,
    )


def _constants(prepared: nw.LazyFrame[Any], plan: _Plan, moments: Moments) -> dict[str, Floats]:
    """Columns with one value in every cluster, over the rows that count.

    Sums only tell candidates: the engines round them in their own ways.
    """
    candidates = moments.nearly_constant()
    if not candidates:
        return {}
    at = {name: moments.columns.index(name) for name in candidates}
    low = [nw.col(f"v{k}").min().alias(f"low{k}") for k in at.values()]
    high = [nw.col(f"v{k}").max().alias(f"high{k}") for k in at.values()]
    counts = prepared.filter(~nw.col("cluster").is_null(), reduce(or_, plan.complete()))
    found = _collect(counts.group_by("cluster").agg(*low, *high))
    place = np.searchsorted(moments.clusters, _labels(found["cluster"], moments.cluster))
    constants = {}
    for name, k in at.items():
        ends = [found[f"{end}{k}"].to_numpy().astype(np.float64) for end in ("low", "high")]
        smallest, largest = moments.intake.ranges[name]
        if not np.any(ends[1] - ends[0] > SAME * (largest - smallest)):
            value = np.full(moments.n_clusters, np.nan)
            value[place] = ends[0] / 2 + ends[1] / 2
            constants[name] = value
    return constants


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
