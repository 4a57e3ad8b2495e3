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


def check_names(present: Sequence[Any], wanted: Sequence[str]) -> None:
    """Every wanted column is there exactly once."""
    for name in wanted:
        count = list(present).count(name)
        if count == 0:
            raise DataError(f"there is no column {name!r} in the data; {_hint(present, name)}")
        if count > 1:
            raise DataError(f"the data has {count} columns named {name!r}; rename them so that each name is unique")


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
    """Strict: every line has as many fields as the header. Types are inferred; cluster ids fall back to text."""
    from pyarrow import ArrowInvalid

    try:
        return _csv_table(path, columns, {})
    except ArrowInvalid as error:
        if "Expected" in str(error):
            raise DataError(
                f"{str(path)!r}: every line must have as many fields as the header ({error}); give row names a header "
                "or leave them out, and end no line with a comma"
            ) from error
        if "conversion error" not in str(error):
            raise
        # The first block of a large file may look like numbers and a later one not. The first column is the cluster id.
        return _csv_table(path, columns, {columns[0]: "string"})


def _csv_table(path: Path, columns: list[str], types: dict[str, Any]) -> Any:
    from pyarrow import csv

    check_names(csv.open_csv(path).schema.names, columns)
    convert = csv.ConvertOptions(
        include_columns=columns, null_values=MISSING_TEXT, strings_can_be_null=True, column_types=types
    )
    return csv.read_csv(path, csv.ReadOptions(block_size=BLOCK), convert_options=convert)


def _read_parquet(path: Path, columns: list[str]) -> Any:
    from pyarrow import parquet

    check_names(parquet.read_schema(path).names, columns)
    return parquet.read_table(path, columns=columns)


def _read_feather(path: Path, columns: list[str]) -> Any:
    from pyarrow import feather

    table = feather.read_table(path)
    check_names(table.column_names, columns)
    return table.select(columns)


def _read_stata(path: Path, columns: list[str]) -> Any:
    return pd.read_stata(path, convert_categoricals=False)
