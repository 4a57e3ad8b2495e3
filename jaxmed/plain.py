"""What anybody may have written: JSON and a check of its form, and text that is safe to show."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any

# Controls (of a terminal, too), letters without width, those that turn the direction of others, halves of letters.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
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


def visible(text: str) -> str:
    r"""Text as it is shown: what cannot be seen, or would command a terminal, by its number.

    Examples
    --------
    >>> print(visible("a\x1b[2Jb"))
    a\u001b[2Jb
    """
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
