"""What looks odd in data: one sentence each, said once, when the data are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxmed._data.files import indicator
from jaxmed._data.moments import ALMOST, HARDLY, SAME, Moments, is_few
from jaxmed._data.source import DISTINCT, Column, Source, original
from jaxmed._model import System
from jaxmed._support import Floats, current_sizes

Ends: TypeAlias = Mapping[str, tuple[Floats, Floats]]  # column -> smallest and largest value by cluster
Whole: TypeAlias = tuple[NDArray[np.intp], list[Floats]]  # code of every row's cluster, and the columns

NAMED = 3  # clusters, and rows of each, that a sentence names
CODES = (-9.0, *(sign * code for code in (77.0, 88.0, 99.0, 999.0, 9999.0) for sign in (-1, 1)))
DIFFERENT = 0.95  # of the values of a column within clusters: fewer that are different may be alike by chance
CHANCE = 0.05  # rows that are alike by chance, at the most, for each that is alike
FAR_CODE, FAR = 3.0, 8.0  # sds from the mean: a code that is worth a query, an extreme value


# Values entered once per cluster -------------------------------------------------------------------------------------


def filled_in(source: Source, system: System) -> list[str]:
    """What was filled in with the value of the cluster."""
    counts: dict[str, int] = {}
    for name in system.columns:
        if name in source.filled:
            counts.setdefault(original(source.schema(), name), source.filled[name])
    return [
        f"{name!r} has one value in each cluster, entered on some rows only: "
        + ("1 row was filled in with that of its" if n == 1 else f"{n} rows were filled in with the value of their")
        + " cluster"
        for name, n in counts.items()
    ]


# Variation within clusters -------------------------------------------------------------------------------------------


def within_clusters(
    source: Source, system: System, moments: Moments, ends: Ends, names: Sequence[str]
) -> tuple[list[str], str]:
    """Remarks on columns that hardly vary within clusters, or within a few; and why one of ``names`` is refused.

    Parameters
    ----------
    ends : mapping
        Of the columns that may hardly vary, by the clusters of the moments; NaN where a cluster has no value.
    names : sequence of str
        Columns whose variation within clusters the effects rest on.
    """
    remarks, refusal = [], ""
    groups: dict[str, list[str]] = {}
    for column in moments.columns:
        groups.setdefault(original(source.schema(), column), []).append(column)
    for name, group in groups.items():
        if not set(group) <= ends.keys():
            continue
        sds = {column: moments.sd(column) for column in group}
        spread = {column: ends[column][1] - ends[column][0] for column in group}
        varying = np.any([spread[column] > ALMOST * sds[column] for column in group], axis=0)
        if set(group) <= moments.constants.keys():
            remarks += _almost_constant(name, moments, spread[name]) if name in spread else []
        elif _few_vary(moments, group, varying):
            remarks.append(_few(source, system, moments, name, group, ends, np.flatnonzero(varying)))
        elif name in names and group == [name] and np.nanmax(spread[name]) <= HARDLY * sds[name]:
            refusal = refusal or _hardly(name, system.cluster, float(np.nanmax(spread[name])), sds[name])
    return remarks, refusal


def _almost_constant(name: str, moments: Moments, spread: Floats) -> list[str]:
    low, high = moments.sample_summary.ranges[name]
    different = spread > SAME * (high - low)
    if not np.any(different):
        return []
    return [
        f"{name!r} is almost constant within clusters: in {np.count_nonzero(different)} of "
        f"{np.count_nonzero(~np.isnan(spread))} clusters its values differ, by {np.nanmax(spread):.2g} at the most, as "
        "rounding does; it is taken as constant within clusters"
    ]


def _hardly(name: str, cluster: str, largest: float, sd: float) -> str:
    means = f"data.groupby({cluster!r})[{name!r}].transform('mean')"
    return (
        f"column {name!r} hardly varies within clusters: by {largest:.2g} at the most, its standard deviation is "
        f"{sd:.2g}. If these differences are rounding, make it constant: data[{name!r}] = {means}; if they are what "
        f"you are after, subtract the cluster means: data[{name!r}] -= {means}"
    )


def _few_vary(moments: Moments, group: Sequence[str], varying: NDArray[np.bool_]) -> bool:
    """Whether columns vary in a few clusters only, and tell the others apart: else it is a rare value of the rows."""
    rows = moments.sums(group[0])[0]
    telling = rows >= moments.telling_rows(group[0])
    if not is_few(int(np.sum(varying)), int(np.sum(telling)), int(np.sum(rows > 0))):
        return False
    steady = ~varying & telling
    means = [moments.cluster_means(column)[steady] for column in group]
    return any(len(mean) and np.ptp(mean) > ALMOST for mean in means)  # in units near the sd


def _few(
    source: Source,
    system: System,
    moments: Moments,
    name: str,
    group: Sequence[str],
    ends: Ends,
    varying: NDArray[np.intp],
) -> str:
    """A column of the clusters, as it seems, that varies in some of them."""
    named = varying[:NAMED]
    labels = list(moments.clusters[named])
    found = source.rows_of(system, group, labels)
    said = []
    for k, label in enumerate(labels):
        what = ""
        if found is not None:
            numbers, values = found[k]
            what = _who_has_what(numbers, _texts(name, group, values, moments))
        elif group == [name]:
            what = f"values from {ends[name][0][named[k]]:g} to {ends[name][1][named[k]]:g}"
        said.append(f"{system.cluster} {label}" + (f" ({what})" if what else ""))
    more = len(varying) - len(named)
    said += [f"{more} more"] if more else []
    n = int(np.count_nonzero(moments.sums(group[0])[0]))
    counted = "; rows are counted from 0" if found is not None else ""
    return (
        f"{name!r} has one value in {n - len(varying)} of {n} clusters but varies in {len(varying)}: "
        f"{', '.join(said)}{counted}. If it belongs to the cluster, correct these rows, or the ids if two clusters "
        "share one; as it is, it is taken as a variable of the rows"
    )


def _texts(name: str, group: Sequence[str], values: Sequence[Floats], moments: Moments) -> list[str | None]:
    """The values of rows as text, values that are one by one text; None where missing."""
    if list(group) == [name]:
        known = np.unique(values[0][~np.isnan(values[0])])
        first = np.diff(known, prepend=-np.inf) > ALMOST * moments.sd(name)
        shown = [f"{value:g}" for value in known[first]]
        at = np.cumsum(first) - 1
        return [None if np.isnan(value) else shown[at[np.searchsorted(known, value)]] for value in values[0]]
    categories = [indicator(column)[1] for column in group]
    others = [category for category in moments.categories.get(name, ()) if category not in categories]
    other = repr(others[0]) if len(others) == 1 else "another category"
    rows = zip(*values, strict=True)
    return [
        None if np.isnan(row[0]) else next((repr(c) for c, on in zip(categories, row, strict=True) if on), other)
        for row in rows
    ]


def _who_has_what(numbers: NDArray[np.int64], texts: Sequence[str | None]) -> str:
    """Which rows have which value, those of the rarer value by their number."""
    rows: dict[str, list[int]] = {}
    for number, text in zip(numbers.tolist(), texts, strict=True):
        if text is not None:
            rows.setdefault(text, []).append(number)
    if len(rows) != 2:
        return f"{len(rows)} values in {sum(map(len, rows.values()))} rows"
    (rare, few), (common, many) = sorted(rows.items(), key=lambda item: len(item[1]))
    if len(few) > NAMED:
        return f"{len(few)} rows have {rare}, {len(many)} rows have {common}"
    if len(few) == len(many):
        return f"{_rows(few)} {rare}, {_rows(many)} {common}"
    others = "the other" if len(many) == 1 else f"the {len(many)} others"
    return f"{_rows(few)} {rare}, {others} {common}"


def _rows(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"row {numbers[0]} has"
    return f"rows {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} have"


# Single rows and values ----------------------------------------------------------------------------------------------


def in_rows(source: Source, system: System, summaries: Mapping[str, Column], moments: Moments) -> list[str]:
    """Remarks on codes, extreme values, rows that are there twice, ids that look alike, and kinds of outcomes."""
    whole = source.whole(system, current_sizes().remark_rows)
    columns = [column for name, column in summaries.items() if name in source.schema()]
    strange: dict[str, str] = {}
    for column in columns:
        found = _codes(source, system, column, whole is None)
        if not found and whole is not None:
            found = _extreme(column, whole[1][system.columns.index(column.name)])
        if found:
            strange[column.name] = found
    twice = [] if whole is None else _twice(source, system, moments, *whole)
    outcomes = [_outcome(source, summaries[name]) for name in system.outcomes if name not in strange]
    return [*strange.values(), *twice, *_alike(system.cluster, moments.clusters), *filter(None, outcomes)]


def _codes(source: Source, system: System, column: Column, costly: bool) -> str:
    """Values such as -99 that stand apart from all others, farther than these spread."""
    name, ends = column.name, [end for end in (column.minimum, column.maximum) if end in CODES]
    if costly:
        ends = [end for end in ends if abs(end - column.mean) > FAR_CODE * column.sd]
    if not ends:
        return ""
    low, high, counts = source.apart(system, name, CODES)
    if not low < high:
        return ""
    found: list[str] = []
    codes: list[str] = []
    for side, limit in ((-1, low), (1, high)):
        own = sorted((code for code, n in counts.items() if n and side * code > side * limit), key=abs)
        if own and abs(own[0] - limit) > high - low:
            found += [f"{code:g} in {_count(counts[code])}" for code in own]
            codes += [f"{code:g}" for code in own]
    if not found:
        return ""
    listed = codes[0] if len(codes) == 1 else f"[{', '.join(codes)}]"
    return (
        f"{name!r} is {' and '.join(found)}, far from all its other values ({low:g} to {high:g}): if that stands for "
        f"a missing value, set it to missing: data[{name!r}] = data[{name!r}].replace({listed}, float('nan'))"
    )


def _extreme(column: Column, values: Floats) -> str:
    """One value that lies farther from all others than these spread."""
    name = column.name
    for end in (column.minimum, column.maximum):
        if not abs(end - column.mean) > FAR * column.sd:
            continue
        rows = np.flatnonzero(values == end)
        others = values[(values != end) & ~np.isnan(values)]
        low, high = others.min(), others.max()
        following = low if end < low else high
        if len(rows) == 1 and low < high and abs(end - following) > high - low:
            return (
                f"{name!r} has one extreme value, {end:g} in row {rows[0]} (counted from 0): its other values are "
                f"{low:g} to {high:g}; check it, and look at fit.influence()"
            )
    return ""


def _twice(
    source: Source, system: System, moments: Moments, codes: NDArray[np.intp], values: Sequence[Floats]
) -> list[str]:
    """Complete rows that are the same in the cluster and in all columns, one of whose values no other row has.

    Such a value is of a column whose values are nearly all different within clusters: answers on a few scales, and
    values at the end of a scale, are often the same in two rows of a cluster.
    """
    own = [v for name, v in zip(system.columns, values, strict=True) if name not in moments.constants]
    rows = np.flatnonzero((codes >= 0) & ~np.isnan(sum(values, np.zeros(len(codes)))))
    keys = _keys([codes[rows], *(column[rows] for column in values)])
    ordered = np.sort(keys)
    if not np.any(ordered[1:] == ordered[:-1]):
        return []
    _, first, kind = np.unique(keys, return_index=True, return_inverse=True)
    alone = np.zeros(len(first), dtype=bool)
    for column in own:
        _, at, counts = np.unique(column[rows[first]], return_inverse=True, return_counts=True)
        if len(np.unique(_keys([codes[rows[first]], column[rows[first]]]))) >= DIFFERENT * len(first):
            alone |= counts[at] == 1
    again = np.flatnonzero(alone[kind] & (first[kind] != np.arange(len(rows))))
    one = rows[first]  # row of each kind
    alike = _pairs(np.unique(_keys([column[one] for column in own]), return_counts=True)[1]) if own else 0.0
    within = _pairs(np.bincount(codes[one]))
    between = _pairs(np.array([len(one)])) - within
    if not (len(again) and (1 + alike) * within <= CHANCE * len(again) * between):
        return []
    before, again = rows[first[kind[again[0]]]], rows[again]
    names = list(dict.fromkeys(original(source.schema(), name) for name in system.columns))
    said = "1 row repeats" if len(again) == 1 else f"{len(again)} rows repeat"
    return [
        f"{said} another row in {system.cluster!r} and all columns of the model (row {again[0]} is row {before} again, "
        "counted from 0): if they were entered twice, keep one of each: "
        f"data = data.drop_duplicates({[system.cluster, *names]})"
    ]


def _pairs(sizes: NDArray[np.int64]) -> float:
    """Pairs within groups of these sizes."""
    return float(np.sum(sizes * (sizes - 1.0))) / 2


def _keys(columns: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """A number for every row, the same for rows that are the same."""
    keys = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        bits = (column + 0.0).view(np.uint64)  # no negative zero
        keys = (keys ^ (keys >> np.uint64(32)) ^ bits) * np.uint64(0x9E3779B97F4A7C15)
    return keys


def _alike(cluster: str, labels: NDArray[np.generic]) -> list[str]:
    """Ids of clusters that only blanks or the case of letters tell apart."""
    if labels.dtype.kind != "U":
        return []
    texts = labels.tolist()
    plain = [" ".join(text.lower().split()) for text in texts]
    if len(set(plain)) == len(plain):
        return []
    groups: dict[str, list[str]] = {}
    for text, key in zip(texts, plain, strict=True):
        groups.setdefault(key, []).append(text)
    same = [group for group in groups.values() if len(group) > 1]
    more = f" (and so are {len(same) - 1} more)" if len(same) > 1 else ""
    return [
        f"the ids {' and '.join(map(repr, same[0][:NAMED]))} are different clusters{more}, though they differ only in "
        "blanks or the case of letters: if they are one, write them alike: "
        f"data[{cluster!r}] = data[{cluster!r}].str.lower().str.split().str.join(' ')"
    ]


def _outcome(source: Source, column: Column) -> str:
    """What a linear model says of an outcome that is binary, ordinal or a count."""
    name, low, high = column.name, column.minimum, column.maximum
    whole, values = column.whole, column.distinct
    if values is None or whole is None:
        if name not in source.schema():
            return ""
        whole = low == math.floor(low) and high == math.floor(high)
        values = _distinct(source, name) if whole else ()
        whole = whole and all(value == math.floor(value) for value in next(source.values(name), []) if value == value)
    unknown = "which joint standard errors do not take into account; look at fit.effects(covariance='robust')"
    if len(values) == 2:
        times = "" if high - low == 1 else f"{high - low:g} times "
        return (
            f"{name!r} has two values ({low:g} and {high:g}): effects on it are {times}differences of the probability "
            f"of {high:g}, and its residual variance depends on its mean, {unknown}, and at predictions outside "
            f"{low:g} to {high:g}"
        )
    if whole and len(values) > 2:
        return (
            f"{name!r} has {len(values)} values, whole numbers from {low:g} to {high:g}: the steps between them count "
            f"as equal, effects on it are differences of its mean, and its residual variance may depend on its mean, "
            f"{unknown}"
        )
    if whole and not values and low == 0 and column.mean < 2 * column.sd and high > column.mean + 3 * column.sd:
        return (
            f"{name!r} looks like a count (whole numbers from 0 to {high:g}, {column.mean:.3g} on average): effects on "
            f"it are differences of the mean count, and its residual variance grows with its mean, {unknown}"
        )
    return ""


def _distinct(source: Source, name: str) -> tuple[float, ...]:
    """The values of a column, if they are few."""
    found = {float(value) for value in source.distinct(name, DISTINCT) if value == value}
    return tuple(sorted(found)) if len(found) <= DISTINCT else ()


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
