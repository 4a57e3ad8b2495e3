"""Cluster ids, and tables by cluster to which chunks are added."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from jaxmed._data.files import numbers_if_they_fit, written_numbers
from jaxmed._data.source import check_one_kind, cluster_labels, no_ids
from jaxmed._support import Floats, current_sizes

Codes = NDArray[np.intp]
Tables = dict[int, list[Floats]]  # pattern -> values by cluster, one array per packed product


class Total:
    """Tables by cluster to which chunks are added; clusters are found as they come."""

    def __init__(self, cluster: str, written: bool, combine: np.ufunc, empty: float) -> None:
        self._cluster, self._combine, self._empty = cluster, combine, empty
        self._numbers: tuple[str, ...] = ("int64", "float64") if written else ()
        self._written = written
        self._ids: Any = None
        self._tables: Tables = {}
        self._waiting: list[tuple[Any, Tables]] = []

    def add(self, ids: Any, tables: Tables) -> None:
        """Take in tables of some clusters."""
        if self._written:
            self._numbers = written_numbers(ids, self._numbers)
        if self._ids is None:
            self._ids, self._tables = ids, tables
            return
        self._waiting.append((ids, tables))
        if sum(len(ids) for ids, _ in self._waiting) > max(current_sizes().waiting_clusters, len(self._ids) // 2):
            self._settle()

    def _settle(self) -> None:
        """Add up what waits."""
        before = len(self._ids)
        places, self._ids = _unify([self._ids, *(ids for ids, _ in self._waiting)], self._cluster)
        size = len(self._ids)
        for table in self._tables.values():
            for k, old in enumerate(table):
                table[k] = np.concatenate([old, np.full(size - before, self._empty)])
        for place, (_, tables) in zip(places[1:], self._waiting, strict=True):
            for pattern, rows in tables.items():
                if pattern not in self._tables:
                    self._tables[pattern] = [np.full(size, self._empty) for _ in rows]
                for old, new in zip(self._tables[pattern], rows, strict=True):
                    old[place] = self._combine(old[place], new)  # a cluster is in a chunk once
        self._waiting = []

    @property
    def ids(self) -> Any:
        """The ids that were found, as chunks have them, in the order of the labels."""
        return np.empty(0) if self._ids is None else self._ids

    def finish(self) -> tuple[NDArray[np.generic], Tables]:
        """Cluster labels and their tables."""
        if self._ids is None:
            return np.empty(0), {}
        if self._waiting:
            self._settle()
        ids = numbers_if_they_fit(self._ids, self._numbers) if self._written else self._ids
        if isinstance(ids, pa.Array):
            ids = ids.to_pylist() if pa.types.is_string(ids.type) else ids.to_numpy(zero_copy_only=False)
        return cluster_labels(ids, self._cluster), self._tables


def places(known: Any, ids: Any, name: str) -> Codes:
    """Position of each id among known ones, -1 where it is none of them."""
    if ids is known:
        return np.arange(len(ids))
    at = _unify([known, ids], name)[0][1]
    return np.where(at < len(known), at, -1)


def united(parts: list[Any], name: str) -> list[Codes]:
    """Codes of the ids of chunks among those of all chunks."""
    return [np.arange(len(parts[0]))] if len(parts) == 1 else _unify(parts, name)[0]


def encode(series: nw.Series[Any], name: str) -> tuple[Codes, Any]:
    """Code of every id, -1 where it is missing, and the ids: a NumPy array, or text as a pyarrow array."""
    if isinstance(series.dtype, nw.Object):
        return _encode_objects(series, name)
    try:
        values = series.to_arrow()
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        return _encode_arrow(values)
    except (TypeError, UnicodeError, pa.ArrowException):  # of several types, or of one that Arrow has not
        return _encode_objects(series, name)


def _encode_objects(series: nw.Series[Any], name: str) -> tuple[Codes, Any]:
    values = pd.Series(series.to_list(), dtype=object).to_numpy()
    try:
        codes, found = pd.factorize(values)
    except TypeError as error:  # a value that cannot be hashed
        raise no_ids(values[0], name) from error
    check_one_kind((type(value).__name__ for value in found), name)
    try:
        return codes, _text_or_numpy(pa.array(list(found)))
    except (TypeError, OverflowError, UnicodeError, pa.ArrowException) as error:
        raise no_ids(found[0], name) from error


def _encode_arrow(values: pa.Array) -> tuple[Codes, Any]:
    if pa.types.is_null(values.type):
        return np.full(len(values), -1), np.empty(0, dtype=object)
    if values.null_count == 0 and pa.types.is_primitive(values.type):
        return _factorize(values.to_numpy(zero_copy_only=False))
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    coded = values.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp)
    return codes, _text_or_numpy(coded.dictionary)


def _text_or_numpy(ids: pa.Array) -> Any:
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return ids.cast(pa.string())
    return ids.to_numpy(zero_copy_only=False)


def _factorize(values: NDArray[Any]) -> tuple[Codes, NDArray[Any]]:
    """Codes and distinct values, in order of appearance."""
    if len(values) and np.all(values[1:] >= values[:-1]):  # no table of hashes for what is sorted
        first = np.concatenate([[True], values[1:] != values[:-1]])
        return np.cumsum(first) - 1, values[first]
    if values.dtype.kind in "mMb":  # pandas knows not every unit of time
        bits = f"i{values.dtype.itemsize}"
        codes, found = pd.factorize(values.view(bits))
        return codes, found.view(values.dtype)
    return pd.factorize(values)


def _unify(parts: list[Any], name: str) -> tuple[list[Codes], Any]:
    """Codes of ids in parts among all of them; those of the first part come first and keep their order."""
    there = [part for part in parts if len(part)] or parts[:1]  # a part without any id has no type
    check_one_kind(("str" if isinstance(part, pa.Array) else str(part.dtype) for part in there), name)
    if isinstance(there[0], pa.Array):
        coded = pa.chunked_array(there).combine_chunks().dictionary_encode()
        codes, ids = coded.indices.to_numpy().astype(np.intp), coded.dictionary
    else:
        codes, ids = _factorize(np.concatenate(there))
    return np.split(codes, np.cumsum([len(part) for part in parts])[:-1]), ids
