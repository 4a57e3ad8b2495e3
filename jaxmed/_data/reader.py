"""Data becomes moments: opening, checks, and what is asked of whoever holds the rows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import narwhals as nw
import numpy as np
import pandas as pd

from jaxmed._data.chunked import Chunks, Frame, PandasFrame
from jaxmed._data.files import CsvFile, ParquetFile, open_file, resolve_names
from jaxmed._data.lazy import Query
from jaxmed._data.moments import ALMOST, LARGEST, Moments, Pattern, SampleSummary
from jaxmed._data.moments_file import is_moments
from jaxmed._data.remarks import Ends, filled_in, in_rows, within_clusters
from jaxmed._data.source import Column, Grouped, ReadPlan, Source, original, own_words
from jaxmed._model import DataFacts, Mediation, Spec, System, category_text, check_spec
from jaxmed._support import DataError, DataTypeError, Floats, check_choice, check_path

CATEGORIES = 100  # of one column, at the most
Missing = Literal["available", "listwise", "raise"]


def read_facts(data: Any, spec: Spec) -> tuple[Source, DataFacts]:
    """Open the data of a model, look up the categories of its categorical columns, and fill in values of clusters."""
    check_spec(spec)
    source = open_data(data, (spec.cluster, *spec.columns))
    facts = DataFacts({name: categories(source, name) for name in spec.categorical}, unknown=True)
    _fill(source, spec, spec.system(facts))
    return source, facts


def _fill(source: Source, spec: Spec, system: System) -> None:
    """Fill in what was entered on some rows of a cluster only, of columns other than outcomes of the row.

    What is asked of the source from now on has the values in all rows of the cluster.
    """
    if isinstance(spec, Mediation):
        rows = {spec.y}
    else:
        rows = {equation.outcome for equation in system.equations if equation.level == 1}
    found, all_rows, no_cluster = source.summaries(system)
    if no_cluster == all_rows:
        return
    columns = {column.name: column for column in found}
    groups: dict[str, list[str]] = {}
    for name in system.columns:
        if name not in rows:
            groups.setdefault(original(source.schema(), name), []).append(name)
    wanted = [group for group in groups.values() if all(_has_gaps(columns[name]) for name in group)]
    closeness = {name: ALMOST * column.sd if column.sd > 0 else 0.0 for name, column in columns.items()}
    names = source.fill(system, wanted, closeness) if wanted else ()
    if names:
        after = {column.name: column.missing for column in source.summaries(system)[0]}
        source.filled = {name: columns[name].missing - after[name] for name in names}


def _has_gaps(column: Column) -> bool:
    return column.missing > 0 and column.infinite == 0 and math.isfinite(column.minimum)


def read_moments(data: Any, spec: Spec, missing: Missing = "available") -> Moments:
    """Read the data of a model once and for all: what a fit needs of them, by cluster.

    Moments stand for the data in :func:`jaxmed.fit`, :func:`jaxmed.save_moments` keeps them in a file, and those of
    disjoint sets of rows add up, so that parts of the data may be read in different places.

    Parameters
    ----------
    data : frame or path
        As for :func:`jaxmed.fit`.
    spec : Mediation or System
        The model; others over the same columns can be fitted to the same moments, as far as no rows were left out.
    missing : {"available", "listwise", "raise"}
        As for :func:`jaxmed.fit`.

    Returns
    -------
    Moments
        80 bytes a cluster for complete 1-1-1 data, whatever the number of rows.

    Raises
    ------
    DataError
        The data cannot be read, see :func:`jaxmed.fit`; or x or a mediator hardly varies within clusters.

    Notes
    -----
    A column that has one value in every cluster, and in some clusters is missing on some rows, is taken to be entered
    once per cluster: these rows get the value of their cluster (``sample_summary.filled``). y, and outcomes of the row
    in a :class:`System`, are left as they are. What looks odd in the data is in ``sample_summary.remarks``.

    Examples
    --------
    >>> import jaxmed as jm
    >>> rows = jm.datasets.load_example()
    >>> model = jm.Mediation(x="x", m="m", y="y", cluster="id")
    >>> moments = jm.read_moments(rows[:500], model) + jm.read_moments(rows[500:], model)
    >>> moments.n_clusters, moments.sample_summary.rows
    (100, 800)
    >>> jm.fit(moments, model).converged
    True
    """
    source, facts = read_facts(data, spec)
    system = spec.system(facts)
    sources = spec.sources
    moments, refusal = _read(source, system, missing, facts, sources)
    if refusal:
        raise DataError(refusal)
    return moments.lean()


def sample_of(source: Source, spec: Spec, facts: DataFacts) -> SampleSummary:
    """What the reader saw; that x or a mediator hardly varies within clusters is a remark here."""
    sources = spec.sources
    moments, refusal = _read(source, spec.system(facts), "available", facts, sources)
    remarks = (refusal,) if refusal else ()
    return replace(moments.sample_summary, remarks=(*remarks, *moments.sample_summary.remarks))


def open_data(data: Any, columns: Sequence[str]) -> Source:
    """Open data, checking that the named columns (the cluster id first) are there, once each."""
    if isinstance(data, (Chunks, Query)):
        return data
    columns = list(dict.fromkeys(columns))
    named = isinstance(data, (str, os.PathLike))
    if named and is_moments(data):
        raise DataError(
            f"{str(data)!r} holds moments, no rows; give it to jaxmed.fit or jaxmed.load_moments, and the data here"
        )
    native = open_file(check_path("data", data), columns) if named else data
    if isinstance(native, (CsvFile, ParquetFile)):
        return Chunks(native)
    if isinstance(native, pd.DataFrame):
        return Chunks(PandasFrame(native, columns))
    try:
        frame = nw.from_native(native)
    except TypeError as error:
        raise DataTypeError(
            f"data of type {type(data).__name__} cannot be read; pass a pandas, polars, pyarrow, DuckDB or PySpark "
            "frame, or a path to a .csv, .parquet, .dta or .feather file"
        ) from error
    if isinstance(frame, nw.DataFrame):
        return Chunks(Frame(frame, columns))
    with own_words():
        names = frame.collect_schema().names()
        return Query(frame.select(*resolve_names(names, columns)))


def categories(source: Source, name: str) -> tuple[str, ...]:
    """Categories of a column as text, sorted; whole numbers without a decimal point."""
    dtype = source.schema()[name]
    if dtype.is_temporal() or dtype.is_nested():
        raise DataError(f"the categorical column {name!r} has type {dtype}; make its categories text or whole numbers")
    # NaN, which may be among the values, is missing.
    found = {value for value in source.distinct(name, CATEGORIES + 1) if value == value}
    if len(found) > CATEGORIES:
        raise DataError(
            f"the categorical column {name!r} has more than {CATEGORIES} categories; merge some, or take it out of "
            "reference to use it as a number"
        )
    if found & {math.inf, -math.inf}:
        raise DataError(
            f"the categorical column {name!r} has infinite values; set them to missing or remove these rows"
        )
    if not found:
        raise DataError(f"column {name!r} has no values: it is missing in every row")
    kinds = sorted({type(value).__name__ for value in found})
    if len(kinds) > 1:
        raise DataError(f"the categorical column {name!r} mixes types ({', '.join(kinds)}); make them one type first")
    return tuple(category_text(value) for value in sorted(found))


def equation_groups(system: System, missing: Missing) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Columns that a row must have observed, per equation, and columns of which every value counts in a mean."""
    check_choice("missing", missing, Missing)
    if missing == "listwise":
        return (system.columns,) * len(system.equations), ()
    return system.groups, system.averaged


def read(
    data: Any, system: System, missing: Missing = "available", facts: DataFacts | None = None, remarks: bool = True
) -> Moments:
    """Read what a system needs from data, as moments.

    Two passes: summaries (for checks, and to choose shift and scale), then sums by cluster of the products of the
    working columns; frames in memory and files chunk by chunk, lazy frames in their own engine. A row counts in every
    equation whose columns it has observed (or, with ``missing="listwise"``, in all or none); a row without a cluster id
    counts nowhere.

    Parameters
    ----------
    data : frame, path or Source
        pandas, polars (eager or lazy), pyarrow, DuckDB, PySpark, Dask or Ibis; or a path to .csv, .parquet, .dta or
        .feather.
    system : System
    missing : {"available", "listwise", "raise"}
    facts : DataFacts, optional
        Categories of the columns that the system has indicators of.
    remarks : bool
        Whether to look for what is odd in the data.

    Raises
    ------
    DataError
        With the column, the value seen, what is allowed and the remedy.
    """
    source = data if isinstance(data, (Chunks, Query)) else read_facts(data, system)[0]
    return _read(source, system, missing, facts, remarks=remarks)[0]


def _read(
    source: Source,
    system: System,
    missing: Missing,
    facts: DataFacts | None,
    sources: Sequence[str] = (),
    remarks: bool = True,
) -> tuple[Moments, str]:
    """Moments, and what there is to refuse of ``sources``, x and mediators, if anything."""
    groups, averaged = equation_groups(system, missing)
    summaries, rows, missing_cluster = summarise(source, system)
    counts = {name: column.missing for name, column in summaries.items()} | {system.cluster: missing_cluster}
    check_complete(counts, missing)
    shift, scale = _working_scale(summaries)
    with_missing = frozenset(name for name, count in counts.items() if count)
    plan = ReadPlan(system, groups, averaged, shift, scale, (facts or DataFacts()).categories, with_missing)
    moments = _to_moments(source.grouped(plan), plan, summaries, rows, counts)
    ends = _ends(source, plan, moments)
    constants = {name: low / 2 + high / 2 for name, (low, high) in ends.items() if _is_one(source, moments, name, ends)}
    filled = {name: source.filled[name] for name in system.columns if name in source.filled}
    moments = replace(moments, constants=constants, sample_summary=replace(moments.sample_summary, filled=filled))
    if not remarks:
        return moments, ""
    within, refusal = within_clusters(source, system, moments, ends, sources)
    found = (*filled_in(source, system), *within, *in_rows(source, system, summaries, moments))
    return replace(moments, sample_summary=replace(moments.sample_summary, remarks=found)), refusal


def check_complete(counts: dict[str, int], missing: Missing) -> None:
    """Refuse missing values where the caller asked for that."""
    present = {name: count for name, count in counts.items() if count}
    if missing == "raise" and present:
        raise DataError(
            f"missing values (column: rows) {present}, and missing='raise' allows none; fill them in, or use "
            "missing='available' (a row counts in every equation it is complete for) or 'listwise' (complete rows only)"
        )


# First pass: summaries and checks ------------------------------------------------------------------------------------


def summarise(source: Source, system: System) -> tuple[dict[str, Column], int, int]:
    """Summaries of the columns of a system, the number of rows, and of rows without a cluster id.

    Raises :class:`DataError` where a column has infinite values, no values, or a single value.
    """
    summaries, rows, no_cluster = source.summaries(system)
    if rows == 0:
        raise DataError("the data has no rows")
    for column in summaries:
        _check_values(column, rows)
    check_some_ids(system.cluster, rows, no_cluster)
    return {column.name: column for column in summaries}, rows, no_cluster


def check_some_ids(cluster: str, rows: int, missing: int) -> None:
    """Some row has a cluster id."""
    if missing == rows:
        raise DataError(f"the cluster column {cluster!r} is missing in all {rows} rows")


def check_finite(column: str, infinite: int, rows: int) -> None:
    """No value is infinite."""
    if infinite:
        raise DataError(
            f"column {column!r} has {infinite} infinite {'value' if infinite == 1 else 'values'} among {rows} rows; "
            "only finite numbers are allowed: set them to missing or remove these rows"
        )


def _check_values(column: Column, rows: int) -> None:
    if column.missing == rows:
        raise DataError(f"column {column.name!r} has no values: it is missing in every row")
    check_finite(column.name, column.infinite, rows)
    if column.minimum == column.maximum:
        raise DataError(
            f"column {column.name!r} is constant (every value is {column.minimum:g}), so its effect "
            "is not identified beside the intercept, and nothing can explain it; remove it from the "
            "model or check how it was read"
        )
    largest, spread = max(abs(column.minimum), abs(column.maximum)), column.maximum - column.minimum
    if largest > LARGEST or spread < 1 / LARGEST:
        raise DataError(
            f"column {column.name!r} has values up to {largest:g} that spread over {spread:g}, too large or too small "
            "to multiply; divide it by a power of ten first"
        )


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


def _to_moments(
    grouped: Grouped, plan: ReadPlan, summaries: dict[str, Column], rows: int, missing: dict[str, int]
) -> Moments:
    system = plan.system
    if not any(code & (2 ** len(plan.groups) - 1) for code in grouped.patterns):
        counts = ", ".join(f"{name!r}: {column.missing}" for name, column in summaries.items())
        raise DataError(f"no row has all the columns of any equation observed (missing values: {counts})")
    order = np.argsort(grouped.labels, kind="stable")
    clusters = grouped.labels[order]
    first = np.concatenate([[True], clusters[1:] != clusters[:-1]])
    once = np.all(first)  # unless a label is there twice: -0.0 and 0.0, or in several patterns
    clusters = clusters if once else clusters[first]
    if len(clusters) < 2:
        raise DataError(
            f"the cluster column {system.cluster!r} has one cluster ({clusters[0]}); a multilevel model needs at "
            "least two, and some tens to estimate how effects vary"
        )
    if not (once and all(isinstance(at, slice) for at, _ in grouped.patterns.values())):
        place = np.empty(len(order), dtype=np.intp)
        place[order] = np.cumsum(first) - 1
    patterns = []
    used = np.zeros(len(plan.groups))
    dropped = rows
    for code, (at, products) in grouped.patterns.items():
        table = np.empty((len(plan.packed(code)), len(clusters)))
        for row, values in zip(table, products, strict=True):
            if once and isinstance(at, slice):
                np.take(values, order, out=row)
            else:
                row[:] = np.bincount(place[at], values, len(clusters))
        patterns.append(Pattern(plan.observed(code), table))
        own = [e for e in range(len(used)) if code >> e & 1]
        used[own] += table[0].sum()
        dropped -= int(table[0].sum()) if own else 0
    patterns.sort(key=lambda pattern: pattern.observed)
    by_pattern = {", ".join(pattern.observed): int(pattern.products[0].sum()) for pattern in patterns}
    ranges = {name: (column.minimum, column.maximum) for name, column in summaries.items()}
    sample_summary = SampleSummary(rows, tuple(int(count) for count in used), missing, dropped, by_pattern, ranges)
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
        sample_summary,
    )


def _ends(source: Source, plan: ReadPlan, moments: Moments) -> Ends:
    """Smallest and largest value by cluster, over the rows that count, of columns that may hardly vary within clusters.

    Sums only tell candidates: the engines round them in their own ways.
    """
    candidates = moments.nearly_constant()
    if not candidates:
        return {}
    labels, found = source.extremes(plan, candidates)
    known = np.isin(labels, moments.clusters)
    place = np.searchsorted(moments.clusters, labels[known])
    ends = {}
    for name in candidates:
        low, high = np.full((2, moments.n_clusters), np.nan)
        np.fmin.at(low, place, found[name][0][known])
        np.fmax.at(high, place, found[name][1][known])
        low[~np.isfinite(low)] = np.nan
        ends[name] = low, high
    return ends


def _is_one(source: Source, moments: Moments, name: str, ends: Ends) -> bool:
    """Whether a column has one value in every cluster; of what was filled in that is known."""
    low, high = ends[name]
    return name in source.filled or not np.any(high - low > ALMOST * moments.sd(name))
