"""Data files -> tables, by the libraries that own the formats; long ones part by part."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import narwhals as nw
import pandas as pd
import pyarrow as pa

from jaxmed._support import DataError, current_sizes, is_own

MISSING_TEXT = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "."]
BUFFER = 1 << 20  # bytes of a column of a parquet file that are read at a time
NEXT_TYPE = {pa.float64(): pa.bool_()}  # to try where a value does not fit; any other type becomes text


class RetypedError(Exception):
    """A value did not fit the type of its csv column, which has another now: read again from the start."""


def open_file(path: Path, columns: Sequence[str]) -> Any:
    """The named columns of a .csv, .parquet, .feather or .dta file: a frame, or a file to be read part by part.

    Raises
    ------
    DataError
        No such file, an ending that is not known, a column that is not there or is there twice, or a file that its
        library cannot read (its own message is passed on).
    """
    readers: dict[str, Callable[[Path, list[str]], Any]] = {
        ".csv": CsvFile,
        ".parquet": ParquetFile,
        ".feather": _read_feather,
        ".dta": _read_stata,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{str(path)!r} has an ending that cannot be read; use one of {', '.join(readers)}")
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}; check the path (working folder: {str(Path.cwd())!r})")
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not a file")
    if path.stat().st_size == 0:
        raise DataError(f"the file {str(path)!r} is empty")
    with _file_words(path):
        return reader(path, list(dict.fromkeys(columns)))


@contextmanager
def _file_words(path: Path) -> Iterator[None]:
    """Whatever a format's library says of a damaged file, as one sentence."""
    try:
        yield
    except (DataError, RetypedError):
        raise
    except MemoryError as error:
        raise DataError(
            f"{str(path)!r} is damaged, or larger than the memory ({error}); parquet and csv are read part by part"
        ) from error
    except Exception as error:
        if is_own(error):
            raise
        raise DataError(f"{str(path)!r} cannot be read as {path.suffix} ({type(error).__name__}): {error}") from error


def indicator(name: str) -> tuple[str, str]:
    """Column and category of an indicator, ``"g[B]"`` -> ``("g", "B")``; the category is empty otherwise."""
    column, bracket, category = name.partition("[")
    return (column, category[:-1]) if column and bracket and name.endswith("]") else (name, "")


def resolve_names(present: Sequence[Any], wanted: Sequence[str]) -> list[str]:
    """The columns to read, each there exactly once: for an indicator ``"g[B]"``, unless it is a column itself, g."""
    found = []
    for name in wanted:
        source = name if name in present else indicator(name)[0]
        count = list(present).count(source)
        if count == 0:
            raise DataError(f"there is no column {source!r} in the data; {_hint(present, source)}")
        if count > 1:
            raise DataError(f"the data has {count} columns named {source!r}; rename them so that each name is unique")
        found.append(source)
    return list(dict.fromkeys(found))


def _hint(present: Sequence[Any], name: str) -> str:
    text = [other for other in present if isinstance(other, str)]
    if len(text) < len(present) and name in map(str, present):
        return "its column names are not text: data.columns = data.columns.astype(str) makes them so"
    if len(present) == 1 and any(mark in str(present[0]) for mark in ";\t|"):
        return f"its one column is {present[0]!r}: separate columns by commas, or give pandas.read_csv(path, sep=...)"
    close = difflib.get_close_matches(name, text, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(repr(other) for other in present[:12])
    return f"the columns are {shown}" + (f" and {len(present) - 12} more" if len(present) > 12 else "")


class CsvFile:
    """A csv file, read strictly: every line has as many fields as the header.

    Types are those of the first block, numbers as float64; a later value that does not fit gives its column another
    type (:class:`RetypedError`). The first column holds the ids, as they are written.
    """

    written_ids = True
    rows: int | None = None

    def __init__(self, path: Path, columns: list[str]) -> None:
        from pyarrow import csv

        self.title = f"reading {path.name}"
        self._path = path
        self._names: list[str] = []
        self._types: dict[str, pa.DataType] = {}
        with self._strictly(), csv.open_csv(path) as opened:
            self._names = opened.schema.names
        columns = resolve_names(self._names, columns)
        self._types[columns[0]] = pa.string()
        with self._strictly(), self._open(columns) as opened:
            inferred = opened.schema
        for name in columns[1:]:
            kind = inferred.field(name).type
            self._types[name] = pa.float64() if pa.types.is_null(kind) or pa.types.is_integer(kind) else kind

    @property
    def schema(self) -> nw.Schema:
        """Columns and their types."""
        return _schema(pa.schema(self._types.items()))

    def parts(self, columns: Sequence[str]) -> Iterator[nw.DataFrame[Any]]:
        """Some columns, one block of the file at a time."""
        with _file_words(self._path), self._strictly(), self._open(columns) as opened:
            for batch in opened:
                yield _frame(batch)

    def _open(self, columns: Sequence[str]) -> Any:
        from pyarrow import csv

        convert = csv.ConvertOptions(
            include_columns=list(columns),
            null_values=MISSING_TEXT,
            strings_can_be_null=True,
            column_types=self._types,
        )
        return csv.open_csv(self._path, csv.ReadOptions(block_size=current_sizes().csv_bytes), convert_options=convert)

    @contextmanager
    def _strictly(self) -> Iterator[None]:
        from pyarrow import ArrowInvalid

        try:
            yield
        except ArrowInvalid as error:
            if "newlines_in_values" in str(error):
                most = current_sizes().csv_bytes // 2**20
                raise DataError(
                    f"{str(self._path)!r} has a line break inside quotes, or a line longer than {most} MB, which "
                    "cannot be read block by block; remove it, or convert the file to parquet"
                ) from error
            if "Empty CSV file" in str(error):
                raise DataError(
                    f"{str(self._path)!r}: the data has no rows: nothing follows the first line, or the file is "
                    "not text in UTF-8"
                ) from error
            if "CSV parse error: Expected" in str(error):
                raise DataError(
                    f"{str(self._path)!r}: every line must have as many fields as the header ({error}); give row names "
                    "a header or leave them out, and end no line with a comma"
                ) from error
            column = re.search(r"CSV column #(\d+):.*conversion error", str(error))
            name = self._names[int(column[1])] if column and self._names else ""
            if self._types.get(name, pa.string()) == pa.string():
                raise
            self._types[name] = NEXT_TYPE.get(self._types[name], pa.string())
            raise RetypedError from error


def written_numbers(text: Any, numbers: Sequence[str] = ("int64", "float64")) -> tuple[str, ...]:
    """The types among ``numbers`` that every one of these ids is written as; "01" is written as none."""
    from pyarrow import compute

    patterns = {"int64": r"^-?(0|[1-9]\d*)$", "float64": r"^-?(0|[1-9]\d*)\.\d+$"}
    return tuple(kind for kind in numbers if compute.all(compute.match_substring_regex(text, patterns[kind])).as_py())


def numbers_if_they_fit(text: Any, numbers: Sequence[str]) -> Any:
    """Ids as numbers of the first type that every one is written as, so that "01" and "1" stay two."""
    from pyarrow import ArrowInvalid

    try:
        return text.cast(numbers[0]) if numbers else text
    except ArrowInvalid:  # more digits than fit
        return text


class ParquetFile:
    """A parquet file, read some rows at a time whatever the size of its row groups."""

    written_ids = False

    def __init__(self, path: Path, columns: list[str]) -> None:
        from pyarrow import parquet

        self.title = f"reading {path.name}"
        self._path = path
        with parquet.ParquetFile(path) as opened:
            self.rows: int | None = opened.metadata.num_rows
            whole = opened.schema_arrow
        self.schema = _schema(whole.empty_table().select(resolve_names(whole.names, columns)).schema)

    def parts(self, columns: Sequence[str]) -> Iterator[nw.DataFrame[Any]]:
        """Some columns, some at a time."""
        from pyarrow import parquet

        with (
            _file_words(self._path),
            parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=BUFFER) as opened,
        ):
            for batch in opened.iter_batches(current_sizes().parquet_rows, columns=list(columns)):
                yield _frame(batch.select(list(columns)))


def _schema(schema: pa.Schema) -> nw.Schema:
    return nw.from_native(schema.empty_table(), eager_only=True).schema


def _frame(batch: pa.RecordBatch) -> nw.DataFrame[Any]:
    return nw.from_native(pa.Table.from_batches([batch]), eager_only=True)


def _read_feather(path: Path, columns: list[str]) -> Any:
    from pyarrow import feather

    with path.open("rb") as opened:
        if opened.read(4) == b"FEA1":  # Arrow reads it without looking, and a damaged one out of memory
            raise DataError(f"{str(path)!r} is of version 1 of feather, of 2016; write it again with version 2")
    table = feather.read_table(path)
    table = table.select(resolve_names(table.column_names, columns))
    table.validate(full=True)  # Arrow believes a file's offsets, and reads where they point
    return table


def _read_stata(path: Path, columns: list[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a damaged file, before the error that is passed on
        return pd.read_stata(path, convert_categoricals=False)
