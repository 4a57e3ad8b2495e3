"""Job files: one TOML file that says what a command is to do, with the names of the command's options."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmed._model import MODEL, Mediation, Spec, System
from jaxmed._support import SpecError, escape_control

SETTINGS = (*MODEL, "formulas")

COMMANDS = ("demo", "fit", "describe", "stack", "bootstrap", "report", "simulate", "power")
STUDIES = ("simulate", "power")
LARGEST = 1 << 24  # bytes of a job file
PATHS = ("data", "fit", "json", "save", "moments", "out")
FLAGS = ("serial", "reml", "difference", "heterogeneity", "verbose", "quiet")


def read_job(path: Path, command: str, allowed: Iterable[str]) -> dict[str, Any]:
    """Settings of one command: its table ``[command]``, over those of the table ``[model]``.

    Paths in a job file are relative to its folder.

    Raises
    ------
    SpecError
        No such file, no TOML, a table or a setting that is not known.
    """
    try:
        with open(path, "rb") as stream:
            text = stream.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise SpecError(f"the job file {str(path)!r} is larger than {LARGEST >> 20} MB, which no job is")
        tables = tomllib.loads(text.decode())
    except OSError as error:
        raise SpecError(f"the job file {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"the job file {str(path)!r} is not TOML: {error}") from error
    loose = [name for name, table in tables.items() if not isinstance(table, dict)]
    if loose:
        raise SpecError(
            f"the job file {str(path)!r} sets {loose[0]!r} outside a table; put it below [model] or [{command}]"
        )
    unknown = [name for name in tables if name not in ("model", "population", *COMMANDS)]
    if unknown:
        raise SpecError(
            f"the job file {str(path)!r} has a table [{unknown[0]}]; it may have [model], [population] and "
            f"{', '.join(f'[{name}]' for name in COMMANDS)}"
        )
    _check_keys(path, "[model]", tables.get("model", {}), SETTINGS)
    _check_keys(path, f"[{command}]", tables.get(command, {}), allowed)
    settings = tables.get("model", {}) | tables.get(command, {})
    if command in STUDIES:
        settings |= {"population": tables.get("population", {})}
        _resolve(path, settings["population"], PATHS)
    if not settings:
        raise SpecError(f"the job file {str(path)!r} has neither a table [model] nor [{command}]")
    for name in FLAGS:
        if not isinstance(settings.get(name, True), bool):
            raise SpecError(f"the job file {str(path)!r} has {name}={settings[name]!r}; write true or false")
    _resolve(path, settings, (*PATHS, "replicates") if command == "report" else PATHS)
    return settings


def _resolve(path: Path, settings: dict[str, Any], names: Sequence[str]) -> None:
    """Paths relative to the folder of the job file."""
    for name in names:
        if name in settings and not isinstance(settings[name], str):
            raise SpecError(f"the job file {str(path)!r} has {name}={settings[name]!r}; give a path as text")
        if settings.get(name, "-") != "-":
            settings[name] = path.parent / settings[name]


def settings_of(command: str, job: Path | None, given: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Settings of a job file, and over them what was given on the command line."""
    allowed = (*own, *SETTINGS)
    settings = {} if job is None else read_job(job, command, allowed)
    return settings | {name: value for name, value in given.items() if name in allowed and value is not None}


def _check_keys(path: Path, table: str, given: Mapping[str, Any], allowed: Iterable[str]) -> None:
    known = list(allowed)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it may have {', '.join(known)}"
            raise SpecError(f"the job file {str(path)!r} has {name!r} in {table}; {hint}")


def model_of(settings: Mapping[str, Any]) -> Spec:
    """The model that settings describe: roles of a mediation model, or formulas of a system."""
    given = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
    if "formulas" in given:
        formulas = given.pop("formulas")
        extra = [name for name in given if name not in ("cluster", "covariance", "residuals", "zero")]
        if extra:
            raise SpecError(f"formulas say the whole model; leave out {extra[0]!r}")
        return System.from_formulas(formulas, **given)
    absent = [name for name in ("x", "m", "y", "cluster") if name not in given]
    if absent:
        raise SpecError(
            f"which columns are {', '.join(absent)}? Give --{' and --'.join(absent)}, or --formula once per equation"
        )
    return Mediation(**given)


def parse_lists(options: Iterable[str] | None, option: str, *, keys: str) -> dict[str, list[str]] | list[str] | None:
    """``["m=1,x", "y=1,m"]`` -> ``{"m": ["1", "x"], "y": ["1", "m"]}``; without any "=" one list of all names.

    ``keys`` says in words what stands before the "=", for the error message.
    """
    options = list(options or [])
    if not options:
        return None
    if not any("=" in text for text in options):
        return [name for text in options for name in split_names(text)]
    chosen: dict[str, list[str]] = {}
    for text in options:
        key, sign, names = text.rpartition("=")
        if key in chosen:
            raise SpecError(f"{option} {text!r}: {key!r} is named twice; list all that belongs to it in one {option}")
        if not sign or not key:
            raise SpecError(
                f"{option} {text!r} is not understood; write {option} {keys}=COLUMN,COLUMN once per {keys.lower()}"
            )
        chosen[key] = split_names(names)
    return chosen


def split_names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def to_json(plain: Mapping[str, Any]) -> str:
    """JSON text; numbers keep all their digits."""
    return escape_control(json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False), "\n")


def parse_values(options: Iterable[str] | None) -> dict[str, list[float | str]] | None:
    """``["w=-1,0,1"]`` -> ``{"w": [-1.0, 0.0, 1.0]}``; what is no number is the name of a category."""
    lists = parse_lists(options, "--at", keys="MODERATOR")
    if isinstance(lists, list):
        raise SpecError(f"--at {', '.join(lists)!r} is not understood; write --at MODERATOR=VALUE,VALUE")
    return None if lists is None else {name: [_number(text) for text in texts] for name, texts in lists.items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
