"""Data files -> frames, by the libraries that own the formats."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxmed.errors import DataError

MISSING_TEXT = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "."]
BLOCK = 1 << 26  # bytes of a csv file over which column types are inferred


def read_file(path: Path, columns: Sequence[str]) -> Any:
    """The named columns of a .csv, .parquet, .feather or .dta file.

    Raises
    ------
    DataError
        No such file, an ending that is not known, a column that is not there or is there twice, or a file that its
        library cannot read (its own message is passed on).
    """
    readers: dict[str, Callable[[Path, list[str]], Any]] = {
        ".csv": _read_csv,
        ".parquet": _read_parquet,
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
    try:
        return reader(path, list(dict.fromkeys(columns)))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # whatever a format's library says of a damaged file, as one sentence
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
    close = difflib.get_close_matches(name, text, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(repr(other) for other in present[:12])
    return f"the columns are {shown}" + (f" and {len(present) - 12} more" if len(present) > 12 else "")


def _read_csv(path: Path, columns: list[str]) -> Any:
    """Strict: every line has as many fields as the header. Types are inferred, but for the id (the first column)."""
    from pyarrow import ArrowInvalid, csv

    try:
        columns = resolve_names(csv.open_csv(path).schema.names, columns)
        convert = csv.ConvertOptions(
            include_columns=columns,
            null_values=MISSING_TEXT,
            strings_can_be_null=True,
            column_types={columns[0]: "string"},
        )
        table = csv.read_csv(path, csv.ReadOptions(block_size=BLOCK), convert_options=convert)
    except ArrowInvalid as error:
        if "Expected" not in str(error):
            raise
        raise DataError(
            f"{str(path)!r}: every line must have as many fields as the header ({error}); give row names a header or "
            "leave them out, and end no line with a comma"
        ) from error
    return table.set_column(0, columns[0], _ids(table.column(0)))


def _ids(text: Any) -> Any:
    """Ids as numbers if every one is written as a number is, so that "01" and "1" stay two."""
    from pyarrow import ArrowInvalid, compute

    for pattern, kind in ((r"^-?(0|[1-9]\d*)$", "int64"), (r"^-?(0|[1-9]\d*)\.\d+$", "float64")):
        if compute.all(compute.match_substring_regex(text, pattern)).as_py():
            try:
                return text.cast(kind)
            except ArrowInvalid:  # more digits than fit
                return text
    return text


def _read_parquet(path: Path, columns: list[str]) -> Any:
    from pyarrow import parquet

    columns = resolve_names(parquet.read_schema(path).names, columns)
    return parquet.read_table(path, columns=columns, partitioning=None)


def _read_feather(path: Path, columns: list[str]) -> Any:
    from pyarrow import feather

    table = feather.read_table(path)
    return table.select(resolve_names(table.column_names, columns))


def _read_stata(path: Path, columns: list[str]) -> Any:
    return pd.read_stata(path, convert_categoricals=False)
