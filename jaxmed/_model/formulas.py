"""Formulas in the convention of lme4 and brms -> equations; parsed by formulae, evaluated by nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jaxmed._model.terms import INTERCEPT, PARTS, check_name
from jaxmed._support import SpecError


def parse(formula: str) -> tuple[str, list[str], list[str], str | None]:
    """Outcome, predictors, random predictors and cluster of one formula.

    ``"y ~ m*w + x + (1 + m | id)"``: columns, products of columns, within(x) and between(x). The intercept is there
    unless ``0 +`` or ``- 1`` takes it out, also in the part in brackets.

    Raises
    ------
    SpecError
        Not a formula, a function of columns, more than one part in brackets.
    """
    from formulae import model_description

    if not isinstance(formula, str) or formula.count("~") != 1:
        raise SpecError(f"{formula!r} is not a formula; write one such as 'y ~ m + x + (1 + m | id)'")
    if formula.count("|") > 1:
        raise SpecError(
            f"the formula {formula!r} has more than one |; write one part (... | id) per equation, and choose how its "
            "effects covary by covariance='diagonal' or by groups of labels"
        )
    _check_tokens(formula)
    try:
        # The parser would drop the category of an indicator; in backquotes it is a name.
        described = model_description(re.sub(r"`[^`]*`|[A-Za-z_.][\w.]*\[[^\]]*\]", _quoted, formula))
    except Exception as error:  # the parser's errors have no common base
        raise SpecError(f"the formula {formula!r} cannot be read ({type(error).__name__}): {error}") from error
    if described.response is None:
        raise SpecError(f"the formula {formula!r} has no outcome; write it on the left of ~")
    outcome = _name(described.response.term, formula)
    predictors = [_name(term, formula) for term in described.common_terms]
    grouped = described.group_terms
    random = [_name(term.expr, formula) for term in grouped]
    cluster = _name(grouped[0].factor, formula) if grouped else None
    return outcome, predictors, random, cluster


TOKEN = re.compile(
    r"(?P<name>`[^`]*`|[^\W\d]\w*(?:\.\w+)*(?:\[[^\]]*\])?|\.?[^\W\d][\w.]*)|(?P<number>[01](?![\w.]))|(?P<sign>[~+\-*:|()])|(?P<space>\s+)"
)


def _check_tokens(formula: str) -> None:
    """Refuse what the parser would pass over without a word: it stops reading where it does not understand."""
    at, depth, operand = 0, 0, False
    while at < len(formula):
        token = TOKEN.match(formula, at)
        found = token[0] if token else formula[at]
        kind = token.lastgroup if token else None
        wrong = kind is None
        if kind in ("name", "number"):
            wrong, operand = operand or ":" in found.strip("`").split("[")[0], True
        elif kind == "sign":
            call = found == "(" and operand
            wrong = (
                (found == "|" and depth == 0)
                or formula.startswith("**", at)
                or (call and not formula[:at].endswith(PARTS))
            )
            operand = found == ")"
            depth += {"(": 1, ")": -1}.get(found, 0)
        if wrong:
            raise SpecError(
                f"the formula {formula!r} is not understood at {formula[at:]!r}: columns (in `backquotes` where their "
                "names are no words), products such as x:w or x*w, within(x) and between(x), 0 or 1 for the intercept "
                "and one part (... | id) are, and nothing is evaluated; make other terms columns of the data first"
            )
        at += len(found)


def _quoted(name: re.Match[str]) -> str:
    return name[0] if name[0].startswith("`") else f"`{name[0]}`"


def _name(term: Any, formula: str) -> str:
    """A term of the parser -> a term of ours; only columns, their products, within(x) and between(x)."""
    kind = type(term).__name__
    if kind == "Intercept":
        return INTERCEPT
    parts = getattr(term, "components", None)
    if kind != "Term" or not parts:
        raise SpecError(f"the formula {formula!r} has a part of kind {kind}, which is not understood")
    names = []
    for part in parts:
        name = str(part.name)
        plain = type(part).__name__ == "Variable" and not name.replace(".", "").isdigit()
        call = type(part).__name__ == "Call" and name.startswith(tuple(f"{p}(" for p in PARTS))
        if not (plain or call):
            raise SpecError(
                f"the formula {formula!r} has {name!r}: columns, products such as x:w or x*w, within(x) and "
                "between(x) are understood, and nothing is evaluated; make it a column of the data first"
            )
        names.append(name)
    return ":".join(names)


def common_cluster(formulas: Iterable[str], clusters: list[str | None]) -> str:
    """The one cluster column that formulas name."""
    named = dict.fromkeys(check_name(name, "cluster") for name in clusters if name is not None)
    if len(named) != 1:
        found = f"name the clusters {list(named)}" if named else "have no random part that names the cluster"
        raise SpecError(
            f"the formulas {list(formulas)} {found}; give one cluster column, (1 | id) in at least one of them, or "
            "cluster='id'"
        )
    return next(iter(named))
