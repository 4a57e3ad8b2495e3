"""A saved fit: one zip file of JSON text and NumPy arrays. No pickle, so reading a stranger's file runs nothing."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmed.errors import DataError, FitError
from jaxmed.moments import Intake, Moments, Pattern


def write(path: str | Path, plain: dict[str, Any], moments: Moments) -> None:
    """Write plain data and moments, all or nothing: a failure leaves an earlier file as it was."""
    header = {
        "columns": moments.columns,
        "groups": moments.groups,
        "observed": [pattern.observed for pattern in moments.patterns],
        "intake": asdict(moments.intake),
    }
    arrays: dict[str, NDArray[Any]] = {"fit": _text(plain), "moments": _text(header), "clusters": moments.clusters}
    arrays |= {"shift": moments.shift, "scale": moments.scale}
    arrays |= {f"products{k}": pattern.products for k, pattern in enumerate(moments.patterns)}
    target = Path(path)
    name = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        try:
            with open(name, "xb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **arrays)
            os.replace(name, target)
        finally:
            name.unlink(missing_ok=True)
    except OSError as error:
        raise FitError(f"the fit could not be saved to {str(target)!r}: {error.strerror or error}") from error


def read(path: str | Path) -> tuple[dict[str, Any], Moments]:
    """Inverse of :func:`write`."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            plain = json.loads(stored["fit"].tobytes())
            return plain, _moments(stored)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {str(path)!r}") from error
    except MemoryError:
        raise
    except Exception as error:  # zip, zlib and NumPy have many words for a damaged file
        raise DataError(f"{str(path)!r} is not a fit that jaxmed saved, or is damaged ({error})") from error


def _text(plain: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(plain, allow_nan=False, ensure_ascii=False).encode(), dtype=np.uint8)


def _moments(stored: Any) -> Moments:
    header = json.loads(stored["moments"].tobytes())
    patterns = tuple(Pattern(tuple(observed), stored[f"products{k}"]) for k, observed in enumerate(header["observed"]))
    intake = Intake(**(header["intake"] | {"used": tuple(header["intake"]["used"])}))
    groups = tuple(tuple(group) for group in header["groups"])
    columns = tuple(header["columns"])
    return Moments(columns, stored["shift"], stored["scale"], stored["clusters"], patterns, groups, intake)
