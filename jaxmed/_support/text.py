"""What anybody may have written: JSON and a check of its form, and text that is safe to show."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any

# Controls (of a terminal, too), what has no width or turns the direction of others, halves, ends of lines.
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # without width, but Persian, Hindi and emoji are written with them
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


def escape_control(text: str, keep: str = "") -> str:
    r"""Text as it is shown: what cannot be seen, ends a line or would command a terminal, by its number.

    In JSON that means the same; ``keep`` names letters that stay.

    Examples
    --------
    >>> print(escape_control("a\x1b[2Jb"))
    a\u001b[2Jb
    """
    if text.isprintable():
        return text
    return "".join(
        letter if unicodedata.category(letter) not in HIDDEN or letter in keep or letter in JOINERS else _number(letter)
        for letter in text
    )


def _number(letter: str) -> str:
    code = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{code[k : k + 4]}" for k in range(0, len(code), 4))
