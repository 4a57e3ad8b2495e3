"""What the predictors of an equation may be: columns, their products, and their parts within and between clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from jaxmed._support import ArgumentTypeError, SpecError, check_list

INTERCEPT = "1"
PARTS = ("within", "between")


@dataclass(frozen=True)
class Factor:
    """A column or one of its parts.

    Attributes
    ----------
    column : str
        Column of the data; ``"g[B]"`` is the indicator of category B of column g.
    part : {"", "within", "between"}
        The column itself, its deviation from the cluster's mean, or that mean.
    """

    column: str
    part: str = ""


@cache
def factors(term: str) -> tuple[Factor, ...]:
    """Factors of a term: ``"within(x):w"`` has two, ``"1"`` none.

    Raises
    ------
    SpecError
        A term that cannot be read, such as ``"x:"``.

    Examples
    --------
    >>> factors("within(x):w")
    (Factor(column='x', part='within'), Factor(column='w', part=''))
    """
    if term == INTERCEPT:
        return ()
    found = []
    for piece in _split(term):
        part = next((part for part in PARTS if piece.startswith(f"{part}(") and piece.endswith(")")), "")
        column = piece[len(part) + 1 : -1] if part else piece
        check_name(column, f"a column in the term {term!r}")
        if column == INTERCEPT or (part and factors(column) != (Factor(column),)):
            raise SpecError(
                f"the term {term!r} is not understood; write a column, a product such as 'x:w', or within(x) and "
                "between(x) of a single column"
            )
        found.append(Factor(column, part))
    return tuple(found)


def _split(term: str) -> list[str]:
    """Split at colons outside brackets."""
    pieces, depth = [""], 0
    for letter in term:
        depth += (letter in "[(") - (letter in "])")
        if letter == ":" and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def columns(term: str) -> tuple[str, ...]:
    """Distinct columns of a term."""
    return tuple(dict.fromkeys(factor.column for factor in factors(term)))


def canonical(term: str) -> tuple[Factor, ...]:
    """Factors in a fixed order: the same for ``"x:w"`` and ``"w:x"``."""
    return tuple(sorted(factors(term), key=lambda factor: (factor.column, factor.part)))


def row_products(term: str) -> set[tuple[str, ...]]:
    """Products of two or more columns, row by row, that a term may need: those of all subsets of its columns.

    ``within(x):v`` is x v minus the mean of x times v; and a product of shifted columns needs the products of fewer.
    """
    choices = [((), (factor.column,)) if factor.part != "between" else ((),) for factor in factors(term)]
    found = (tuple(sorted(sum(chosen, ()))) for chosen in product(*choices))
    return {monomial for monomial in found if len(monomial) > 1}


def varies_within(term: str, cluster_level: frozenset[str]) -> bool:
    """Whether a term varies within clusters, given the columns that do not."""
    return any(factor.part != "between" and factor.column not in cluster_level for factor in factors(term))


def category_text(value: Any) -> str:
    """A category as text; whole numbers without a decimal point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def find_category(value: Any, categories: Sequence[str]) -> str | None:
    """The category that a user means: by its text, or as the same number; None if there is none."""
    text = category_text(value)
    if text in categories:
        return text
    number = _number(text)
    return next((category for category in categories if number is not None and _number(category) == number), None)


def _number(text: str) -> float | None:
    try:
        return {"True": 1.0, "False": 0.0}.get(text.capitalize()) if text.isalpha() else float(text)
    except ValueError:
        return None


def check_name(value: Any, what: str) -> str:
    """A column name is text that is not empty and no pattern of a data frame library."""
    if not isinstance(value, str) or not value:
        raise (SpecError if isinstance(value, str) else ArgumentTypeError)(
            f"{what} must be a column name (text); got {value!r} of type {type(value).__name__}. "
            "If the columns of your frame have other names, rename them first: data.columns = data.columns.astype(str)"
        )
    if value == "*" or (value.startswith("^") and value.endswith("$")):
        raise SpecError(f"{what} is {value!r}, which data frames read as a pattern; rename the column")
    return value


def check_terms(value: Any, what: str) -> tuple[str, ...]:
    """Check that ``value`` is a sequence of distinct terms and return it as a tuple."""
    names = tuple(check_list(what, value, "of column names such as ['1', 'x']"))
    seen: dict[tuple[Factor, ...], str] = {}
    for name in names:
        check_name(name, f"every entry of {what}")
        if canonical(name) in seen:
            raise SpecError(f"{what} names {name!r} more than once; list each column once")
        seen[canonical(name)] = name
    return names
