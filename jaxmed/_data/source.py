"""What is read from data, whoever does the reading: ids, columns as float64, and sums of products by cluster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed._data.files import RetypedError, indicator
from jaxmed._data.moments import Monomial
from jaxmed._model import System
from jaxmed._support import DataError, Floats, JaxmedError, is_own, packed_rows


@dataclass(frozen=True)
class Column:
    """Summary of one numeric column over its observed values.

    Attributes
    ----------
    whole : bool, optional
        Whether every value is a whole number; None where nobody looked.
    distinct : tuple of float, optional
        The values, sorted, where there are :data:`DISTINCT` at the most, else empty; None where nobody looked.
    """

    name: str
    missing: int
    mean: float
    sd: float
    minimum: float
    maximum: float
    infinite: int = 0
    whole: bool | None = None
    distinct: tuple[float, ...] | None = None


DISTINCT = 7  # values that are listed in passing


@dataclass(frozen=True)
class ReadPlan:
    """What the second pass has to do.

    Attributes
    ----------
    groups : tuple of tuple of str
        Columns that a row must have observed, per equation.
    averaged : tuple of str
        Columns of which every value counts, whatever else the row lacks.
    shift, scale : ndarray, shape (n_columns,)
        Of the working columns.
    categories : dict
        Of the columns that the system has indicators of.
    missing : set of str
        Columns, the cluster id among them, that have missing values.
    """

    system: System
    groups: tuple[tuple[str, ...], ...]
    averaged: tuple[str, ...]
    shift: Floats
    scale: Floats
    categories: Mapping[str, tuple[str, ...]]
    missing: frozenset[str]

    @property
    def bits(self) -> tuple[tuple[str, ...], ...]:
        """Groups of columns whose completeness tells patterns apart: the equations', then the averaged columns."""
        return (*self.groups, *((name,) for name in self.averaged if (name,) not in self.groups))

    def positions(self, names: Sequence[str]) -> list[int]:
        """Where columns are among those of the system."""
        at = {name: k for k, name in enumerate(self.system.columns)}
        return [at[name] for name in names]

    @property
    def monomials(self) -> list[Monomial]:
        """What the products are of."""
        return [(), *((name,) for name in self.system.columns), *self.system.row_products]

    def observed(self, pattern: int) -> tuple[str, ...]:
        """Columns that the rows of a pattern have, as far as its bits say."""
        complete = {name for e, group in enumerate(self.bits) if pattern >> e & 1 for name in group}
        return tuple(name for name in self.system.columns if name in complete)

    def kept(self, pattern: int) -> list[int]:
        """Positions of the monomials that the rows of a pattern have."""
        observed = set(self.observed(pattern))
        return [k for k, found in enumerate(self.monomials) if set(found) <= observed]

    def packed(self, pattern: int) -> NDArray[np.int64]:
        """Rows of the packed products of all monomials that a pattern has."""
        return packed_rows(len(self.monomials), self.kept(pattern))


@dataclass(frozen=True)
class Grouped:
    """Sums of products by cluster and pattern.

    Attributes
    ----------
    labels : ndarray
        Cluster ids, possibly one several times.
    patterns : dict
        Pattern -> positions among ``labels``, and an iterator over its packed products, each for these positions. It
        can be gone through once, so that whoever fills a table need not hold all products twice.
    """

    labels: NDArray[np.generic]
    patterns: dict[int, tuple[Any, Iterator[Floats]]]


class Source(Protocol):
    """Data that can be asked for what moments need: rows in memory or in a file, or a query of some engine.

    Attributes
    ----------
    filled : dict
        Column -> rows whose missing value was filled in: whatever the source is asked for has it.
    """

    filled: dict[str, int]

    def schema(self) -> nw.Schema:
        """Columns and their types."""

    def values(self, name: str) -> Iterator[list[Any]]:
        """Values of a column that are not null, in parts; no parts where there are no rows."""

    def distinct(self, name: str, most: int) -> set[Any]:
        """Distinct values of a column that are not null, or some more than ``most`` of them; NaN at most once."""

    def summaries(self, system: System) -> tuple[list[Column], int, int]:
        """Of the columns of a system; the number of rows, and of rows without a cluster id."""

    def grouped(self, plan: ReadPlan) -> Grouped:
        """Sums of products by cluster and pattern."""

    def extremes(
        self, plan: ReadPlan, names: Sequence[str]
    ) -> tuple[NDArray[np.generic], dict[str, tuple[Floats, Floats]]]:
        """Smallest and largest value of columns by cluster, over the rows that count; not finite for none."""

    def fill(self, system: System, groups: Sequence[Sequence[str]], closeness: Mapping[str, float]) -> tuple[str, ...]:
        """Fill in missing values by the value that a column has elsewhere in the cluster, from now on.

        Parameters
        ----------
        groups : sequence of sequence of str
            Columns that are filled in together, or not at all: where each has one value in every cluster.
        closeness : mapping
            Column -> difference up to which values are one.

        Returns
        -------
        tuple of str
            The columns that have rows to fill in.
        """

    def apart(self, system: System, name: str, codes: Sequence[float]) -> tuple[float, float, dict[float, int]]:
        """Smallest and largest value of a column without codes, NaN if there is none, and rows by code."""

    def rows_of(
        self, system: System, names: Sequence[str], labels: Sequence[Any]
    ) -> list[tuple[NDArray[np.int64], list[Floats]]] | None:
        """Positions of the rows of some clusters, and their values in columns; None where rows have no order.

        Of clusters that :meth:`grouped` found.
        """

    def whole(self, system: System, most: int) -> tuple[NDArray[np.intp], list[Floats]] | None:
        """Code of every row's cluster, -1 for none, and the columns; None of more rows than ``most``, or of a query."""

    def to_pandas(self, system: System) -> pd.DataFrame:
        """The cluster id and the columns of a system, row by row."""


@contextmanager
def own_words() -> Iterator[None]:
    """Pass an error inside the data's own library on as one sentence; NumPy's floating-point warnings are not news."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (JaxmedError, MemoryError, RetypedError):
        raise
    except Exception as error:
        if is_own(error):
            raise
        raise DataError(f"the data could not be read by its own library ({type(error).__name__}): {error}") from error


def working_columns(source: Source, system: System) -> list[nw.Expr]:
    """The cluster id as ``cluster`` and the columns of the system as ``v0, v1, ...``, float64 with null or NaN."""
    schema = source.schema()
    return [
        _cluster(schema[system.cluster], system.cluster).alias("cluster"),
        *(_value(source, schema, name).alias(f"v{at}") for at, name in enumerate(system.columns)),
    ]


def _cluster(dtype: nw.dtypes.DType, name: str) -> nw.Expr:
    cluster = nw.col(name)
    if dtype.is_nested():
        raise DataError(f"the cluster column {name!r} has type {dtype}; use numbers, text or dates as ids")
    if isinstance(dtype, nw.Datetime) and dtype.time_zone is not None:
        raise DataError(
            f"the cluster column {name!r} holds times in a time zone, which predictions by cluster could not "
            f"keep; make them text first, e.g. data[{name!r}] = data[{name!r}].astype(str)"
        )
    if dtype.is_float():
        return cluster.fill_nan(None)
    if isinstance(dtype, (nw.String, nw.Categorical, nw.Enum)):
        text = cluster if isinstance(dtype, nw.String) else cluster.cast(nw.String)
        # An empty text is no id, nor is what a cast makes of a missing one.
        return nw.when(~nw.col(name).is_null(), text != "").then(text)
    return cluster


def _value(source: Source, schema: nw.Schema, name: str) -> nw.Expr:
    """A column as float64; ``"g[B]"``, unless there is such a column, as the indicator of g being B."""
    if name in schema:
        _check_numeric(source, name, schema[name])
        return nw.col(name).cast(nw.Float64)
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


def original(schema: Mapping[str, Any], name: str) -> str:
    """The column of the data behind a column of a system: of an indicator its categorical column."""
    return name if name in schema else indicator(name)[0]


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check_numeric(source: Source, name: str, dtype: nw.dtypes.DType) -> None:
    if dtype.is_numeric() or isinstance(dtype, nw.Boolean):
        return
    first: list[Any] = []
    rows = False
    for seen in source.values(name):
        rows = True
        first = first or seen[:1]
        wrong = [value for value in seen if not _is_number(value)]
        if wrong:
            first = wrong[:1]
            break
    if not rows:
        raise DataError("the data has no rows")
    if not first and not dtype.is_temporal():
        raise DataError(f"column {name!r} has no values: it is missing in every row")
    example = first[0] if first else None
    raise DataError(
        f"column {name!r} must be numeric, but it has type {dtype} with values such as {example!r}; of a "
        f"categorical x, covariate or moderator name the category to compare with in reference={{{name!r}: ...}}; code "
        f"other categories as 0 and 1, and make numbers of text, e.g. data[{name!r}] = "
        f"pandas.to_numeric(data[{name!r}], errors='coerce')"
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def cluster_labels(ids: NDArray[np.generic] | list[Any], name: str) -> NDArray[np.generic]:
    """Cluster ids as a sortable NumPy array: integers, text or dates as they are, whole floats as integers."""
    if isinstance(ids, list):
        kinds = check_one_kind((type(value).__name__ for value in ids), name)
        labels = np.array(ids, dtype="datetime64[D]" if kinds == ["date"] else None)
        if kinds == ["str"] and any(value.endswith("\0") for value in ids):
            raise DataError(f"the cluster column {name!r} has ids that end in a NUL character; remove it")
    else:
        labels = ids
    if labels.ndim != 1 or labels.dtype == object:
        raise no_ids(labels.flat[0], name)
    if labels.dtype.kind == "f" and np.all(labels == np.floor(labels)) and np.all(np.abs(labels) < 2**53):
        labels = labels.astype(np.int64)
    return labels


def no_ids(example: Any, name: str) -> DataError:
    """What to say of ids of another type."""
    return DataError(
        f"the cluster column {name!r} has ids such as {example} of type {type(example).__name__}; use numbers, text or "
        f"dates, e.g. data[{name!r}] = data[{name!r}].astype(str)"
    )


def check_one_kind(types: Iterable[str], name: str) -> list[str]:
    """The distinct types of ids, of which there may be one only."""
    kinds = sorted(set(types))
    if len(kinds) > 1:
        raise DataError(
            f"the cluster column {name!r} mixes types ({', '.join(kinds)}); make them one type first, e.g. "
            f"data[{name!r}] = data[{name!r}].astype(str)"
        )
    return kinds
