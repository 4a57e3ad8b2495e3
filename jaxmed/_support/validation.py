"""Whole numbers, parts of a whole and words that callers give, checked."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from functools import wraps
from numbers import Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np

from jaxmed._support.errors import ArgumentTypeError, SpecError

LARGEST = 2**63 - 1


def check_count(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """A whole number within bounds.

    Raises
    ------
    SpecError
        It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        bounds = f"of at least {least} (and below 2**63)" if most == LARGEST else f"from {least} to {most}"
        kind = SpecError if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else ArgumentTypeError
        raise kind(f"{name}={value!r} must be a whole number {bounds}")
    return int(value)


Choice = TypeVar("Choice")


def check_choice(name: str, value: Choice, choices: Any, also: str = "") -> Choice:
    """One of some words, given as a ``Literal`` or in a list.

    Anything else, arrays and what cannot be compared included, is refused.

    Raises
    ------
    SpecError
        It is something else; ``also`` says what else would do.
    """
    known = list(get_args(choices) or choices)
    if not isinstance(value, str) or value not in known:
        words = " or ".join(map(repr, known)) if len(known) <= 2 else f"one of {known}"
        kind = SpecError if isinstance(value, str) else ArgumentTypeError
        raise kind(f"{name}={value!r} is not known; choose {words}{also}")
    return value


def is_number(value: Any) -> bool:
    """Whether a value is one finite real number that float64 can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False


def check_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises
    ------
    SpecError
        It is something else, whose truth may be a matter of taste.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentTypeError(f"{name}={value!r} must be True or False")
    return bool(value)


def check_list(name: str, value: Any, example: str) -> list[Any]:
    """What can be gone through, and is not text.

    Raises
    ------
    SpecError
        It is something else, an array without dimensions among it.
    """
    try:
        if not isinstance(value, (str, bytes)):
            return list(value)
    except TypeError:
        pass
    raise ArgumentTypeError(f"{name} must be a list {example}; got {value!r}")


def one_or_more(value: Any) -> list[Any]:
    """The entries of what can be gone through; text, and what cannot, is one entry."""
    try:
        return [value] if isinstance(value, (str, bytes)) else list(value)
    except TypeError:
        return [value]


def check_path(name: str, value: Any) -> Path:
    """A path that a file system can have.

    Raises
    ------
    SpecError
        It is something else, no text, or too long a name.
    """
    why = ""
    try:
        if isinstance(value, (str, os.PathLike)) and os.fspath(value) and b"\0" not in os.fsencode(value):
            path = Path(value)
            path.exists()
            return path
    except (UnicodeEncodeError, TypeError):
        pass
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # whoever opens it says what is wrong
            return path
        why = f" ({error.strerror})"
    value = str(value) if isinstance(value, Path) else value
    kind = SpecError if isinstance(value, (str, Path)) else ArgumentTypeError
    raise kind(f"{name}={value!r} must be a path: text that can name a file, or a pathlib.Path{why}")


def check_shard(shard: Any) -> tuple[int, int]:
    """Part i of k parts, counted from 0.

    Raises
    ------
    SpecError
        It is something else.
    """
    ok = isinstance(shard, (tuple, list)) and len(shard) == 2
    if ok and all(isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in shard):
        part, parts = map(int, shard)
        if 0 <= part < parts:
            return part, parts
    kind = SpecError if ok else ArgumentTypeError
    raise kind(f"shard={shard!r} must be (i, k): part i of k parts, i from 0 to k - 1")


P = ParamSpec("P")
R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keywords by their former names too, ``@renamed(former="name")``.

    Raises
    ------
    ArgumentTypeError
        A call has both names.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for former, name in names.items():
                if former in kwargs:
                    if name in kwargs:
                        raise ArgumentTypeError(f"{former}= is the former name of {name}=; give one of them")
                    kwargs[name] = kwargs.pop(former)
            return function(*args, **kwargs)

        return call

    return wrap
