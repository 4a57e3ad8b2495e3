"""Numbered results that are computed in parts, in any order, and kept in a folder of files from which work goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jaxmed._support.arrays import Floats
from jaxmed._support.atomic_files import write_atomically, write_once
from jaxmed._support.errors import DataError, WriteError
from jaxmed._support.text import parse
from jaxmed._support.validation import check_list, check_path

EVERY = 10.0  # seconds of work that are written to a file
ROOM = 1000  # bytes in memory for a byte of a file, at the most: tables of one value repeated come to a tenth of it
READERS = {  # what a file of results holds -> how it is read
    "replicates": "read them with jaxmed.load_replicates or jaxmed merge",
    "a power study": "read it with jaxmed.load_power, or by the jaxmed power command that made it, without --shard",
}


class Ledger:
    """Rows with numbers in a range: those that are in files already, and those to come.

    Parameters
    ----------
    key : str
        Column of the numbers.
    first, last : int
        The range, ``last`` excluded.
    known : iterable of DataFrame
        What files hold; numbers beyond the range, and numbers that were there before, are passed over.
    folder : path, optional
        Where to write to.
    stem : str
        How names of files begin.
    about : dict
        What every file says it is of.
    """

    def __init__(
        self,
        key: str,
        first: int,
        last: int,
        known: Iterable[pd.DataFrame],
        folder: Path | None,
        stem: str,
        about: dict[str, Any],
    ) -> None:
        self._key, self._folder, self._stem, self.about = key, folder, stem, about
        self._tables: list[pd.DataFrame] = []
        self._written = time.monotonic()
        wanted = np.ones(last - first, dtype=bool)
        for table in known:
            table = table[table[key].between(first, last - 1)]
            at = table[key].to_numpy() - first
            self._tables.append(table[wanted[at]])
            wanted[at] = False
        self._in_files = len(self._tables)
        self.wanted: list[int] = (np.flatnonzero(wanted) + first).tolist()
        self.asked = last - first

    def add(self, table: pd.DataFrame) -> None:
        """Keep new rows, and write from time to time."""
        self._tables.append(table)
        if self._folder is not None and time.monotonic() - self._written > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is not in files yet; an interruption at any point leaves every row there once."""
        count = len(self._tables)
        if count == self._in_files:
            return
        if self._folder is not None:
            table = pd.concat(self._tables[self._in_files :], ignore_index=True)
            numbers = table[self._key]
            name = f"{self._stem}-{numbers.iloc[0]:010d}-{numbers.iloc[-1]:010d}.parquet"
            write_table(self._folder / name, table, self.about)
        self._in_files = count
        self._written = time.monotonic()

    def table(self, empty: pd.DataFrame) -> pd.DataFrame:
        """All rows so far, by number; ``empty`` where there are none."""
        found = pd.concat(self._tables) if self._tables else empty
        return found.sort_values(self._key, ignore_index=True)

    @property
    def done(self) -> int:
        """How many rows there are."""
        return sum(len(table) for table in self._tables)


def interrupted(done: int, asked: int, what: str, folder: Path | None) -> str:
    """What an interruption leaves behind, and how to go on."""
    text = f"{done} of {asked} {what} are done"
    if folder is None:
        return f"{text}; with out=FOLDER they would be kept"
    return f"{text} and kept in {str(folder)!r}; the same call goes on from there"


def as_folder(out: Any) -> Path | None:
    """The folder that a caller names, or none.

    Raises
    ------
    SpecError
        It is no path.
    """
    return None if out is None else check_path("out", out)


def open_folder(folder: Path) -> list[Path]:
    """Make a folder to write to, unless it is there, and list its files.

    Raises
    ------
    FitError
        It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"the folder {str(folder)!r} cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise WriteError(f"the folder {str(folder)!r} cannot be written to; choose another")
    return files_of(folder)


def files_of(folder: Path) -> list[Path]:
    """Tables in a folder, by name; files still being written have other names."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".parquet" and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be read: {error.strerror or error}") from error


def write_table(path: Path, table: pd.DataFrame, about: dict[str, Any]) -> None:
    """Write a table with what it is of, all or nothing."""
    write_atomically(path, _filler(table, about))


def claim(path: Path, table: pd.DataFrame, about: dict[str, Any]) -> None:
    """Write a table without rows that says what a folder is of, unless another job has done so."""
    write_once(path, _filler(table, about))


def _filler(table: pd.DataFrame, about: dict[str, Any]) -> Callable[[BinaryIO], object]:
    """What writes a table to a stream, with a checksum: parquet has none of all that it holds."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    text = json.dumps(about, allow_nan=False, ensure_ascii=False).encode()
    checksum = _checksum(arrow.to_pandas(ignore_metadata=True), text).encode()
    arrow = arrow.replace_schema_metadata({b"jaxmed": text, b"checksum": checksum})
    return lambda stream: pq.write_table(arrow, stream)


def _checksum(table: pd.DataFrame, text: bytes) -> str:
    """A digest of the names, types and values of columns, all of them numbers, and of what they are of."""
    found = hashlib.sha256(text)
    for name, column in table.items():
        found.update(f"{name} {column.dtype} {len(column)}".encode())
        found.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return found.hexdigest()


def read_table(path: Path, what: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table, and what it is of; :class:`DataError` where there is no such file, or none of ours."""
    try:
        with pq.ParquetFile(path, memory_map=False) as opened:
            metadata = opened.schema_arrow.metadata or {}
            if b"jaxmed" not in metadata:
                raise ValueError(f"no {what} in it")
            numbers = opened.metadata.num_rows * opened.metadata.num_columns
            if 8 * numbers > ROOM * (path.stat().st_size + ROOM):
                raise ValueError(f"it claims {numbers} numbers, more than such a file holds")
            table = opened.read().to_pandas(ignore_metadata=True)
        # Files of earlier versions have none.
        if b"checksum" in metadata and metadata[b"checksum"].decode() != _checksum(table, metadata[b"jaxmed"]):
            raise ValueError("its checksum is another")
        about = parse(metadata[b"jaxmed"])
    except FileNotFoundError as error:
        raise DataError(f"there is no file or folder {str(path)!r}") from error
    except OSError as error:
        if error.strerror is not None:
            raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        raise damaged(path, what, error) from error
    except (pa.ArrowException, ValueError) as error:
        raise damaged(path, what, error) from error
    kind = about.get("kind", "replicates" if "method" in about else what) if isinstance(about, dict) else what
    if isinstance(kind, str) and kind in READERS and kind != what:
        raise DataError(f"{str(path)!r} holds {kind}, not {what}: {READERS[kind]}, or give another folder")
    return table, about


def damaged(path: Path, what: str, error: Exception) -> DataError:
    """The error of a file that is something else."""
    return DataError(
        f"{str(path)!r} is not a file of {what}, or is damaged ({str(error).splitlines()[0][:120]}); delete it, "
        "and what was in it is computed again"
    )


def all_files(paths: str | Path | Iterable[str | Path], what: str) -> list[Path]:
    """Files, and those in folders; :class:`DataError` where there are none."""
    given = (
        [paths] if isinstance(paths, (str, os.PathLike)) else check_list("paths", paths, "such as ['part0', 'part1']")
    )
    folders = [check_path("paths", path) for path in given]
    files = [file for path in folders for file in (files_of(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f"there are no {what} in {', '.join(repr(str(folder)) for folder in folders) or 'paths=[]'}")
    return files


def check_equal(table: pd.DataFrame, key: str, columns: Sequence[str], unit: Floats, what: str, within: float) -> None:
    """Rows of one number, sorted side by side, must be equal to ``within`` units wherever they were computed."""
    numbers = table[key].to_numpy()
    values = table[list(columns)].to_numpy()
    again = np.flatnonzero(numbers[1:] == numbers[:-1])
    apart = np.abs(values[again + 1] - values[again]) / np.where(unit > 0, unit, 1.0)
    wrong = again[np.nanmax(apart, axis=1, initial=0.0) > within]
    if len(wrong):
        raise DataError(
            f"{key} {numbers[wrong[0]]} has two different results in these files; they are not of one {what}"
        )
