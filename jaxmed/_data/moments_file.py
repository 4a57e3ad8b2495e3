"""Saved fits and moments: a zip file of JSON text and NumPy arrays, no pickle, so that reading it runs no code."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from jaxmed._data.moments import Moments, Pattern, SampleSummary
from jaxmed._support import Count, DataError, FitError, Floats, check_path, parse, write_atomically

MOMENTS = ".moments"  # how the names of files of moments end
FORMAT = 1  # of moments in a file


class Header(TypedDict):
    """What a file of moments says of its arrays."""

    format: Count
    cluster: str
    columns: tuple[str, ...]
    row_products: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, ...], ...]
    averaged: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    constants: tuple[str, ...]
    observed: tuple[tuple[str, ...], ...]
    intake: SampleSummary


def is_moments(path: str | os.PathLike[Any]) -> bool:
    """Whether a file is one of moments, by its name."""
    return Path(path).suffix.lower() == MOMENTS


def write(path: str | Path, plain: dict[str, Any], moments: Moments) -> None:
    """Write plain data and moments, all or nothing: a failure leaves an earlier file as it was."""
    _write(path, {"fit": _text(plain)} | _arrays(moments))


def save_moments(moments: Moments, path: str | Path) -> None:
    """Write moments to one file, all or nothing, so that the data need be read once.

    Parameters
    ----------
    moments : Moments
        Of :func:`jaxmed.read_moments`, or ``fit.moments``.
    path : path
        With the ending ``.moments``; :func:`jaxmed.fit` takes it in place of data, and :func:`jaxmed.load_moments`
        reads it back. The rows of the data are not in it, only cluster ids and cross-products per cluster.

    Raises
    ------
    DataError
        The first argument is something else.
    FitError
        The file cannot be written, or has another ending.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jaxmed as jm
    >>> model = jm.Mediation(x="x", m="m", y="y", cluster="id")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "example.moments"
    ...     jm.save_moments(jm.read_moments(jm.datasets.load_example(), model), path)
    ...     jm.fit(path, model).n_clusters
    100
    """
    if not isinstance(moments, Moments):
        raise DataError(
            f"save_moments writes moments to a path, but got {type(moments).__name__} first; give it the moments of "
            "jaxmed.read_moments, or fit.moments, and then the path"
        )
    path = check_path("path", path)
    if not is_moments(path):
        raise FitError(f"{str(path)!r}: the name of a file of moments must end in {MOMENTS}, so that a fit knows it")
    _write(path, _arrays(moments))


def load_moments(path: str | os.PathLike[Any]) -> Moments:
    """Read moments that :func:`save_moments` wrote, or those of a saved fit.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Moments

    Raises
    ------
    DataError
        No such file, or no moments in it.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import jaxmed as jm
    >>> moments = jm.read_moments(jm.datasets.load_example(), jm.Mediation("x", "m", "y", "id"))
    >>> with TemporaryDirectory() as folder:
    ...     jm.save_moments(moments, f"{folder}/rows.moments")
    ...     jm.load_moments(f"{folder}/rows.moments").n_clusters == moments.n_clusters
    True
    """
    with _opened(path, "is not a file of moments that jaxmed saved, or is damaged") as stored:
        return _moments(stored)


def _arrays(moments: Moments) -> dict[str, NDArray[Any]]:
    header = {
        "format": FORMAT,
        "cluster": moments.cluster,
        "columns": moments.columns,
        "row_products": moments.row_products,
        "groups": moments.groups,
        "averaged": moments.averaged,
        "categories": moments.categories,
        "constants": list(moments.constants),
        "observed": [pattern.observed for pattern in moments.patterns],
        "intake": asdict(moments.sample_summary),
    }
    arrays: dict[str, NDArray[Any]] = {"moments": _text(header), "clusters": moments.clusters}
    arrays |= {"shift": moments.shift, "scale": moments.scale}
    arrays |= {f"constant{k}": value for k, value in enumerate(moments.constants.values())}
    return arrays | {f"products{k}": pattern.products for k, pattern in enumerate(moments.patterns)}


def _write(path: str | Path, arrays: dict[str, NDArray[Any]]) -> None:
    # Not compressed: sums of products shrink by a fifth, in forty times the time.
    write_atomically(check_path("path", path), lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def read(path: str | Path) -> tuple[dict[str, Any], Moments]:
    """Inverse of :func:`write`."""
    with _opened(path, "is not a fit that jaxmed saved, or is damaged") as stored:
        return parse(stored["fit"].tobytes()), _moments(stored)


@contextmanager
def _opened(path: str | os.PathLike[Any], refusal: str) -> Iterator[Any]:
    """The arrays of a file, by name."""
    path = check_path("path", path)
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except FileNotFoundError as error:
        raise DataError(f"there is no file {str(path)!r}") from error
    except OSError as error:
        if error.strerror is None:
            raise DataError(f"{str(path)!r} {refusal} ({error})") from error
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (MemoryError, DataError):
        raise
    except Exception as error:  # zip, zlib and NumPy have many words for a damaged file
        reason = str(error).partition("\n")[0][:120]
        raise DataError(f"{str(path)!r} {refusal} ({reason})") from error


def _check_sizes(path: str | Path) -> None:
    """Refuse arrays that claim more than the file holds, before there is anything of that size in memory."""
    headers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as stored:
        members = stored.infolist()
        if sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("its parts are larger than the file")
        for member in members:
            with stored.open(member) as stream:
                shape, _, dtype = headers[np.lib.format.read_magic(stream)[0]](stream)
                if math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
                    raise ValueError(f"{member.filename!r} is not of the size that it claims")


def _text(plain: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(plain, allow_nan=False, ensure_ascii=False).encode(), dtype=np.uint8)


def _moments(stored: Any) -> Moments:
    header = parse(stored["moments"].tobytes(), Header)
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}, and this version of jaxmed reads {FORMAT}; read the data again")
    clusters = stored["clusters"]
    if clusters.ndim != 1 or clusters.dtype.kind not in "biufUmM" or not np.all(clusters[1:] > clusters[:-1]):
        raise ValueError("clusters must be sorted and each be there once")
    n, names = len(clusters), header["columns"]
    shift, scale = (_floats(stored, name, (len(names),)) for name in ("shift", "scale"))
    if not (np.all(np.isfinite(shift)) and np.all((scale > 0) & np.isfinite(scale))):
        raise ValueError("shifts must be finite, and scales positive")
    found = Moments(
        header["cluster"],
        names,
        header["row_products"],
        shift,
        scale,
        clusters,
        (),
        header["groups"],
        header["averaged"],
        header["categories"],
        {name: _floats(stored, f"constant{k}", (n,)) for k, name in enumerate(header["constants"])},
        header["intake"],
    )
    used = [
        *found.constants,
        *found.averaged,
        *(name for part in (*found.groups, *found.row_products) for name in part),
    ]
    for named in (names, *header["observed"]):
        if len(set(named)) < len(named) or not {*named, *used} <= set(names):
            raise ValueError("columns must be among those it lists, each once")
    if len(found.sample_summary.used) != len(found.groups):
        raise ValueError("its counts of rows are not those of its equations")
    patterns = []
    for at, observed in enumerate(header["observed"]):
        k = len(found.monomials(observed))
        products = _floats(stored, f"products{at}", (k * (k + 1) // 2, n))
        if not np.all(np.isfinite(products)) or np.any(products[0] < 0):
            raise ValueError("sums of products must be finite, and counts not negative")
        patterns.append(Pattern(observed, products))
    return replace(found, patterns=tuple(patterns))


def _floats(stored: Any, name: str, shape: tuple[int, ...]) -> Floats:
    """One array of numbers, if it has this shape."""
    found = stored[name]
    if found.dtype != np.float64 or found.shape != shape:
        raise ValueError(f"{name} must be numbers of shape {shape}, not {found.dtype} of shape {found.shape}")
    return found
