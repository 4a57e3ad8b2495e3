"""What the sections of a report are made of: its content, paragraphs, tables, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from markupsafe import Markup

from jaxmed._report import figures
from jaxmed._report.figures import Picture
from jaxmed._report.html import element, figure, join, table
from jaxmed._results import Conflation, Fit, conflation, tables
from jaxmed._simulation import IntervalKind, Replicates
from jaxmed._support import DataError, FitError


@dataclass(frozen=True, eq=False)
class Content:
    """What a report is of; every section is a function of it.

    Attributes
    ----------
    fit : Fit
    level : float
    at : mapping or None
        Values of moderators.
    replicates : Replicates or None
    kind : str
        Of the bootstrap intervals.
    effects : DataFrame or None
        The table of effects, of a mediation model.
    """

    fit: Fit
    level: float
    at: Mapping[str, Any] | None
    replicates: Replicates | None
    kind: IntervalKind
    effects: pd.DataFrame | None

    @cached_property
    def conflation(self) -> Conflation | str:
        """Paths within clusters against those between them, or why there is no comparison; empty of a system."""
        if not self.fit.spec.has_effects:
            return ""
        try:
            return conflation(self.fit, level=self.level)
        except (FitError, DataError) as error:
            return str(error)


def paragraph_list(words: Iterable[str]) -> list[Markup]:
    """A paragraph each."""
    return [element("p", text) for text in words]


def paragraphs(words: Iterable[str]) -> Markup:
    """Paragraphs one after the other."""
    return join(paragraph_list(words))


def code(text: str, name: str) -> Markup:
    """Code that scrolls inside its own box."""
    return element("pre", element("code", text), class_="scroll", tabindex=0, role="region", aria_label=name)


def pictures(pictures: Iterable[Picture], wide: bool = False) -> Markup:
    """Figures: side by side where there is room, or over the whole width."""
    made = [figure(figures.svg(picture), picture.caption, wide) for picture in pictures]
    if not made:
        return Markup("")
    return join(made) if wide else element("div", *made, class_="figures")


def number_table(name: str, found: tables.Numbers, note: str | None = None) -> Markup:
    """A table of numbers, rounded by their standard errors."""
    first, entries = tables.stub(found.values.index)
    body = tables.cells(found.values).to_numpy()
    rows = [[*entry, *row] for entry, row in zip(entries, body, strict=True)]
    heads = [*first, *tables.heads(found.values.columns, found.level)]
    return table(name, found.title, heads, rows, len(first), note)


def matrix(name: str, title: str, values: pd.DataFrame, digits: int) -> Markup:
    """The lower triangle of a symmetric table."""
    rows = [
        [str(label), *(tables.rounded(value, digits) if k <= at else "" for k, value in enumerate(row))]
        for at, (label, row) in enumerate(zip(values.index, values.to_numpy(), strict=True))
    ]
    return table(name, title, ["", *map(str, values.columns)], rows)
