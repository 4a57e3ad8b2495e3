"""The pictures of a report: which ones a fit has, drawn as SVG that stands inside an HTML page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from jaxmed import plots
from jaxmed._inference import estimands_of
from jaxmed._report.html import element, join
from jaxmed._results import Fit, Route, cluster_slopes, numeric_moderators, varying_routes
from jaxmed._simulation import IntervalKind, Replicates
from jaxmed._support import FitError
from jaxmed.plots._style import words

SIZE = (4.8, 3.6)  # inches; small, so that letters stay legible on a phone
STYLE: dict[str, Any] = {
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "svg.hashsalt": "jaxmed",  # and is the same file for the same fit
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Picture(NamedTuple):
    """A picture of a report.

    Attributes
    ----------
    name : str
        Its id.
    draw : callable
        Draws on the axes given as ``ax``.
    caption : str
    alternative : str
        What it shows, for those who do not see it.
    size : (float, float)
        Inches.
    """

    name: str
    draw: Callable[..., object]
    caption: str
    alternative: str
    size: tuple[float, float] = SIZE


def svg(picture: Picture) -> Markup:
    """A picture as an SVG element, its ids its own, without anything that a reader would have to fetch."""
    try:
        import matplotlib as mpl
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FitError("a report needs matplotlib; install it with: pip install 'jaxmed[plot]'") from error
    with mpl.rc_context(), style.context(["default", STYLE]):
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(ax=figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return inline(stream.getvalue(), picture.name, picture.alternative)


def inline(text: str, name: str, alternative: str) -> Markup:
    """SVG of a file as an element of a page.

    Examples
    --------
    >>> print(inline('<?xml version="1.0"?><svg><g id="a"/><use xlink:href="#a"/></svg>', "f", "A < B")[42:])
    <title id="f-title">A &lt; B</title><g id="f-a"/><use href="#f-a"/></svg>
    """
    text = text[text.index("<svg") :]
    for unwanted in (r"<!--.*?-->", r"<metadata>.*?</metadata>"):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', rest)
    rest = re.sub(r"url\(#", f"url(#{name}-", rest)
    rest = re.sub(r"\n\s*", "\n", rest).strip()
    title = element("title", alternative, id=f"{name}-title")
    head = f'<svg{f" {box.group()}" if box else ""} role="img" aria-labelledby="{name}-title">'
    return join([Markup(head), title, Markup(rest)])


def diagram(fit: Fit, level: float, summary: str) -> Iterator[Picture]:
    """The path diagram of a mediation model."""
    if not fit.spec.has_effects:
        return
    count = len(fit.spec.mediators)
    height = 3.3 if count == 1 else 3.9 if fit.spec.serial else 1.8 + 1.1 * count
    below = any(set(paths) - {"a"} and set(paths) - {"b"} for _, paths in fit.spec.moderators)
    caption = f"Paths with {100 * level:g}% intervals. A dot on a path says that it varies between clusters" + (
        "; dashed boxes are moderators." if fit.spec.moderators else "."
    )
    yield Picture(
        "path-diagram",
        lambda ax: plots.path_diagram(fit, level, ax=ax),
        caption,
        f"Path diagram. {summary}",
        (5.6 if fit.spec.serial else 4.8, height + (0.7 if below else 0.0)),
    )


def moderated(fit: Fit, level: float) -> Iterator[Picture]:
    """Indirect and total effects over each moderator that moves them."""
    if not fit.spec.has_effects:
        return
    estimands = estimands_of(fit)
    rows = [row for row in estimands.rows if row.kind in ("indirect", "total")]
    for k, name in enumerate(numeric_moderators(fit)):
        for row in rows:
            if estimands.degree(row, name):
                yield Picture(
                    f"conditional-{k}-{rows.index(row)}",
                    lambda ax, name=name, row=row: plots.conditional(fit, name, row.name, level, ax=ax),
                    f"{row.name} over {name}, with its {100 * level:g}% interval; dark where it excludes zero. Ticks "
                    "are the values of clusters.",
                    f"Curve of {row.name} over {name} with its interval; the table of regions has the limits.",
                )


def clusters(fit: Fit, level: float) -> Iterator[Picture]:
    """How effects, slopes and lines vary between clusters."""
    if not fit.system.random_labels:
        return
    for k, route in enumerate(varying_routes(fit) if fit.spec.has_effects else []):
        yield from _of_route(fit, route, level, k)
    for e, equation in enumerate(fit.system.equations):
        columns = [name for name in equation.columns if name != equation.outcome]
        for name in columns:
            if equation.random and name in _sources(fit, equation.outcome) and name not in fit.facts.cluster_level:
                yield Picture(
                    f"lines-{e}-{columns.index(name)}",
                    lambda ax, o=equation.outcome, p=name: plots.cluster_lines(fit, o, p, ax=ax),
                    f"Fitted lines of {equation.outcome} on {name}, one per cluster, each over 1.5 standard deviations "
                    "to both sides of the cluster's mean; thick: average.",
                    f"Lines of {equation.outcome} on {name} by cluster.",
                )


def _sources(fit: Fit, outcome: str) -> list[str]:
    if fit.spec.has_effects:
        return [edge.source for edge in fit.spec.edges_in(fit.facts) if edge.outcome == outcome and not edge.contrast]
    equation = fit.system.equations[fit.system.outcomes.index(outcome)]
    return [name for name in equation.columns if name != outcome]


def _of_route(fit: Fit, route: Route, level: float, k: int) -> Iterator[Picture]:
    what = words(route.effect)
    yield Picture(
        f"distribution-{k}",
        lambda ax: plots.cluster_effects(fit, route.effect, ax=ax),
        f"The {what} of clusters: predictions (bars) and their distribution in the population by the model "
        "(curve). Predictions are drawn towards the average.",
        f"Histogram of the predicted {what} of clusters, with the population's density.",
    )
    yield Picture(
        f"caterpillar-{k}",
        lambda ax: plots.caterpillar(fit, route.column, level, ax=ax),
        f"Predicted {what} of every cluster with its {100 * level:g}% interval.",
        f"Predicted {what} of clusters in order, with intervals.",
    )
    spread = cluster_slopes(fit, route).spread
    if len(route.paths) == 2 and min(spread[0, 0], spread[1, 1]) > 0:
        yield Picture(
            f"slopes-{k}",
            lambda ax: plots.slopes(fit, route.effect, level, ax=ax),
            f"Predicted slopes {route.paths[0]} and {route.paths[1]} of clusters. Ellipses hold {100 * level:g}% of a "
            "normal distribution: of the population (solid) and of the predictions (dashed).",
            f"Scatter of the slopes {route.paths[0]} and {route.paths[1]} by cluster, with ellipses.",
        )


def checks(fit: Fit, level: float) -> Iterator[Picture]:
    """Quantile plots of the random effects whose variance is not zero."""
    if not fit.system.random_labels:
        return
    table, variances = fit.ranef(), np.diag(fit.random_cov)
    for k, label in enumerate(fit.system.random_labels):
        left = variances[k] - table[f"{label}_se"].to_numpy() ** 2
        if np.sum(left > 1e-8 * variances[k]) > 2:
            yield Picture(
                f"quantiles-{k}",
                lambda ax, label=label: plots.quantiles(fit, label, level, ax=ax),
                f"Standardized predictions of the random effect {label} against normal quantiles, with a pointwise "
                f"{100 * level:g}% band.",
                f"Normal quantile plot of the random effect {label}.",
            )


def bootstrapped(
    fit: Fit, replicates: Replicates, terms: list[str], kind: IntervalKind, level: float
) -> Iterator[Picture]:
    """Distributions of effects over the replicates."""
    for k, term in enumerate(terms):
        yield Picture(
            f"replicates-{k}",
            lambda ax, term=term: plots.replicates(replicates, term, kind, level, fit=fit, ax=ax),
            f"Distribution of {term} over the bootstrap replicates, with its {kind} interval.",
            f"Histogram of {term} over the bootstrap replicates.",
        )


def influential(table: pd.DataFrame, term: str) -> Iterator[Picture]:
    """What single clusters do to an effect."""
    largest = table["cook"].idxmax()
    yield Picture(
        "influence-plot",
        lambda ax: plots.influence(table, term, ax=ax),
        f"What each cluster adds to {term}, against its Cook's distance; the largest are named.",
        f"Scatter of {len(table)} clusters. The largest Cook's distance, {table['cook'].max():.3f}, is that of cluster "
        f"{largest}.",
    )
