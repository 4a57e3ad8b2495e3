"""Plain data from files that anybody may have written: JSON, and a check that it has the form its reader expects."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any

KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a count", lambda value: type(value) is int and 0 <= value < 2**63),
    float: ("a number", lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max),
    list: ("a list", lambda value: isinstance(value, list)),
    dict: ("a table", lambda value: isinstance(value, dict)),
    NoneType: ("null", lambda value: value is None),
}


def parse(text: str | bytes) -> Any:
    """JSON as plain data.

    Raises
    ------
    ValueError
        It is no JSON, or nested more deeply than anything that jaxmed writes.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"it has the number {constant}")


def check_form(value: Any, form: Any, name: str = "it") -> None:
    """Refuse plain data of another form.

    Parameters
    ----------
    value : object
    form : object
        ``str``, ``bool``, ``int`` (a count: not negative, of 64 bits), ``float`` (any finite number), ``list`` and
        ``dict`` (of anything), or several of them, ``float | None``; ``[f]``, a list of any length; ``(f, g)``, a list
        of this length; ``{str: f}``, a table with any names; ``{"name": f}``, a table that has these names.
    name : str
        What the value is called.

    Raises
    ------
    ValueError
        The value has another form; the message names the place.

    Examples
    --------
    >>> check_form({"a": [1, 2.5], "b": None}, {"a": [float], "b": str | None})
    >>> check_form({"a": [1, "2.5"]}, {"a": [float]})
    Traceback (most recent call last):
    ...
    ValueError: a[1] is '2.5', not a number
    """
    if isinstance(form, (list, tuple)):
        check_form(value, list, name)
        if isinstance(form, tuple) and len(value) != len(form):
            raise ValueError(f"{name} has {len(value)} entries, not {len(form)}")
        for k, item in enumerate(value):
            check_form(item, form[k if isinstance(form, tuple) else 0], f"{name}[{k}]")
    elif isinstance(form, dict):
        check_form(value, dict, name)
        for key, own in (dict.fromkeys(value, form[str]) if str in form else form).items():
            if key not in value:
                raise ValueError(f"{name} has no {key!r}")
            check_form(value[key], own, key)
    else:
        kinds = [KINDS[kind] for kind in (form.__args__ if isinstance(form, UnionType) else (form,))]
        if not any(fits(value) for _, fits in kinds):
            raise ValueError(f"{name} is {shown(value)}, not {' or '.join(words for words, _ in kinds)}")


def shown(value: Any) -> str:
    """A value for a message: its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
