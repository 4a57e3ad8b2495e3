"""What anybody may have written: JSON and a check of its form, and text that is safe to show."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, overload

import msgspec

# Controls (of a terminal, too), what has no width or turns the direction of others, halves, ends of lines.
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # without width, but Persian, Hindi and emoji are written with them
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Form = TypeVar("Form")


@overload
def parse(text: str | bytes) -> Any: ...
@overload
def parse(text: str | bytes, form: type[Form]) -> Form: ...
def parse(text: str | bytes, form: Any = Any) -> Any:
    """JSON as plain data, or as what its ``form`` says (see :func:`convert`).

    Raises
    ------
    ValueError
        It is no JSON, nested more deeply than anything that jaxmed writes, or of another form.
    """
    with _in_words():
        return msgspec.json.decode(text, type=form)


def convert(plain: Any, form: type[Form]) -> Form:
    """Plain data in the form of a type: a ``TypedDict``, a dataclass, ``list[float]``.

    Lists become tuples where the type says so, and names that it does not have are left out.

    Raises
    ------
    ValueError
        The data have another form; the message names the place.

    Examples
    --------
    >>> convert({"a": [1, 2.5]}, dict[str, tuple[float, ...]])
    {'a': (1.0, 2.5)}
    >>> convert({"a": [1, "2.5"]}, dict[str, list[float]])
    Traceback (most recent call last):
    ...
    ValueError: Expected `float`, got `str` - at `$[...][1]`
    """
    with _in_words():
        return msgspec.convert(plain, form)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


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
