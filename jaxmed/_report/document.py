"""A fit as one HTML file that needs nothing else: tables, pictures, words, and how to do it again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from jaxmed._data import describe_moments
from jaxmed._inference import TestResult, check_level
from jaxmed._report import figures
from jaxmed._report import text as report_text
from jaxmed._report.blocks import Content, code, matrix, number_table, paragraph_list, paragraphs, pictures
from jaxmed._report.diagnostics import diagnostics
from jaxmed._report.html import element, join, page, table
from jaxmed._results import SE_NOTES, Fit, check_is_fit, johnson_neyman, legend, middle, numeric_moderators, tables
from jaxmed._simulation import IntervalKind, Replicates, check_fit
from jaxmed._support import (
    ConvergenceWarning,
    FitError,
    check_choice,
    check_folder_of,
    check_path,
    write_atomically,
)
from jaxmed._version import __version__

MOST = 4  # pictures of replicates
MOST_ANSWERS = 10


def report(
    fit: Fit,
    path: str | Path,
    replicates: Replicates | None = None,
    *,
    kind: IntervalKind = "percentile",
    level: float = 0.95,
    at: Mapping[str, Any] | None = None,
) -> None:
    """Write a report of a fit: one HTML file without scripts or anything from elsewhere, all or nothing.

    Parameters
    ----------
    fit : Fit
    path : path
        Of the .html file.
    replicates : Replicates, optional
        Of this fit; their intervals and distributions are added.
    kind : {"percentile", "basic", "bc", "bca", "studentized"}
        Of the bootstrap intervals.
    level : float
        Of all intervals.
    at : dict, optional
        Values of moderators, as in :meth:`jaxmed.Fit.effects`.

    Raises
    ------
    SpecError
        An unknown kind, level or moderator.
    FitError
        The fit has no standard errors; the replicates are of another fit; the file cannot be written; matplotlib is not
        installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "report.html"
    ...     jm.report(fit, path)
    ...     path.read_text(encoding="utf-8").splitlines()[0]
    '<!DOCTYPE html>'
    """
    check_is_fit(fit, "report")
    check_choice("kind", kind, IntervalKind)
    if np.all(np.isnan(np.diag(fit.joint))):
        raise FitError(f"this fit has no joint standard errors to report ({fit.message})")
    path = check_path("path", path)
    check_folder_of(path)
    level = check_level(level)
    if replicates is not None:
        check_fit(fit, replicates.origin)
    effects = fit.effects(level=level, at=at) if fit.spec.has_effects else None
    text = _document(Content(fit, level, at, replicates, kind, effects))
    write_atomically(path, lambda stream: stream.write(text.encode()))


def _document(of: Content) -> str:
    found = [(name, title, make(of)) for name, title, make in SECTIONS]
    title = report_text.title(of.fit)
    kind = "Multilevel mediation" if of.fit.spec.has_effects else "Mixed model"
    header = join([element("h1", title), element("p", f"{kind}: report of a fit by jaxmed", class_="lead")])
    footer = element("p", f"Made by jaxmed {__version__}. This page holds all it needs; it fetches nothing.")
    return page(f"{title}: {kind.lower()}", header, [section for section in found if section[2]], footer)


# Sections ------------------------------------------------------------------------------------------------------------


def _question(of: Content) -> Markup:
    return paragraphs(report_text.question(of.fit))


def _answer(of: Content) -> Markup:
    fit = of.fit
    warning = not fit.converged or fit.singular or fit.flat or fit.imprecise or fit.cautions
    parts = []
    if warning:
        parts.append(element("div", *paragraph_list(report_text.convergence(of.fit)), class_="warning"))
    if of.effects is not None:
        answers = _answers(of)
        answers += report_text.shares(of.fit, of.level)
        answers += report_text.levels_differ(of.conflation)
        parts.append(element("div", element("ul", *(element("li", text) for text in answers)), class_="key"))
    return join(parts)


def _answers(of: Content) -> list[str]:
    """Sentences on the effects; of those at many values of moderators, at one of them each."""
    if of.effects is None:
        return []
    found = report_text.answers(of.fit, of.effects, of.level)
    if len(found) > MOST_ANSWERS:
        found = report_text.answers(of.fit, of.fit.effects(level=of.level, at=middle(of.fit)), of.level)
    return found


def _data(of: Content) -> Markup:
    fit = of.fit
    found = describe_moments(fit.moments)
    sample_summary, sizes = fit.sample_summary, found.clusters
    used = report_text.listed(
        f"{count} {'rows' if equation.level == 1 else 'clusters'} (that of {equation.outcome})"
        for equation, count in zip(fit.system.equations, sample_summary.used, strict=True)
    )
    low, high = sizes["min"], sizes["max"]
    each = (
        f"{low:g} rows each"
        if low == high
        else f"{low:g} to {high:g} rows (mean {sizes['mean']:.1f}, median {sizes['median']:g})"
    )
    left = (
        f"{sample_summary.dropped} of them complete no equation and are left out"
        if sample_summary.dropped
        else "none is left out"
    )
    words = [
        f"{sample_summary.rows} rows were read; {left}. The equations use {used}.",
        f"There are {fit.n_clusters} clusters ({fit.spec.cluster}) of {each}.",
        *(f"{note}." for note in fit.notes),
    ]
    rows = []
    for name, row in found.variables.iterrows():
        digits = tables.decimals([row["sd"]])
        numbers = [tables.rounded(row[column], digits) for column in ("mean", "sd", "min", "max")]
        rows.append([str(name), f"{row['count']:g}", f"{row['missing']:g}", *numbers, tables.rounded(row["icc"], 3)])
    heads = ["", "count", "missing", "mean", "sd", "min", "max", "ICC"]
    note = (
        "Of the rows that count. ICC: intraclass correlation, the share of the variance that lies between clusters "
        "(one-way analysis of variance)."
    )
    parts = [paragraphs(words), table("variables", "Variables", heads, rows, note=note)]
    parts.append(matrix("correlations", "Correlations (rows that have all variables)", found.correlations, 3))
    if any(sample_summary.missing.values()):
        patterns = [[observed, str(count)] for observed, count in sample_summary.patterns.items()]
        parts.append(table("patterns", "Rows by the columns that they have", ["observed", "rows"], patterns))
    return join(parts)


def _model(of: Content) -> Markup:
    fit = of.fit
    rows = [
        [e.outcome, ", ".join(e.predictors), ", ".join(e.random) or "none", "row" if e.level == 1 else "cluster"]
        for e in fit.system.equations
    ]
    heads = ["outcome", "predictors", "random", "one row per"]
    parts = [pictures(figures.diagram(fit, of.level, " ".join(_answers(of))), wide=True)]
    note = "1 is the intercept. A coefficient listed as random varies between clusters around its average."
    parts.append(table("equations", "Equations", heads, rows, stubs=4, note=note))
    return join(parts)


def _effects(of: Content) -> Markup:
    if of.effects is None:
        return Markup("")
    fit = of.fit
    note = "; ".join(legend(fit)).replace("->", "→") + "."
    if fit.flat:
        note += " Effects without standard errors are those that are not identified."
    if of.effects["se"].eq(0).any():
        note += " What the model fixes has no standard error."
    parts = [number_table("effects", tables.numbers(fit, "effects", level=of.level, at=of.at), note)]
    if fit.spec.contrasts(fit.facts) and not fit.spec.moderators:
        tests = [
            [str(name), f"{row['chi2']:.2f}", f"{row['df']:g}", tables.p_value(row["p"])]
            for name, row in fit.omnibus().iterrows()
        ]
        title = f"Wald tests of all categories of {fit.spec.sources[0]} together"
        parts.append(table("omnibus", title, ["effect", "χ²", "df", "p"], tests))
    regions = [
        [effect, name, *_region(row)]
        for name in numeric_moderators(fit)
        for effect in _conditional(fit, name)
        for _, row in johnson_neyman(fit, name, effect, of.level).iterrows()
    ]
    if numeric_moderators(fit):
        parts.append(element("h3", "Over moderators"))
        text = f"Where the {100 * of.level:g}% interval of a conditional effect excludes zero, within the data's range:"
        if regions:
            heads = ["effect", "moderator", "sign", "from", "to"]
            note = "Other moderators at their mean or first value (Johnson & Neyman regions)."
            parts += [element("p", text), table("regions", "Regions", heads, regions, stubs=3, note=note)]
        else:
            parts.append(
                element("p", "None of the effects that depend on a moderator has an interval that excludes zero.")
            )
        parts.append(pictures(figures.moderated(fit, of.level)))
    return join(parts)


def _conditional(fit: Fit, moderator: str) -> list[str]:
    """Indirect and total effects that depend on a moderator."""
    estimands = fit.spec.estimands(fit.facts)
    rows = [row for row in estimands.rows if row.kind in ("indirect", "total")]
    return [row.name for row in rows if estimands.degree(row, moderator)]


def _region(row: pd.Series) -> list[str]:
    return ["positive" if row["sign"] > 0 else "negative", f"{row['lower']:.3g}", f"{row['upper']:.3g}"]


def _clusters(of: Content) -> Markup:
    fit = of.fit
    drawn = pictures(figures.clusters(fit, of.level))
    if not fit.system.random_labels or not drawn:
        return Markup("")
    parts = []
    if of.effects is not None and report_text.effects_vary(fit):
        note = (
            "In the population, by the model: standard deviations of effects over clusters, and the share of clusters "
            "whose indirect effect is positive."
        )
        parts.append(
            number_table("heterogeneity", tables.numbers(fit, "heterogeneity", level=of.level, at=of.at), note)
        )
    return join([*parts, drawn])


def _bootstrap(of: Content) -> Markup:
    if of.replicates is None:
        return Markup("")
    replicates = of.replicates
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        intervals = replicates.intervals(of.kind, of.level, fit=of.fit)
    words = [
        f"{len(replicates)} replicates of {replicates.origin.requested} asked for, seed {replicates.seed}, made by the "
        f"{report_text.METHODS.get(replicates.method, replicates.method)}; {len(replicates.failures())} did not "
        "converge and are left out of the intervals.",
        *dict.fromkeys(f"Note: {warning.message}." for warning in said),
    ]
    shown = intervals[["estimate", "se", "ci_lower", "ci_upper", "ci_lower_mcse", "ci_upper_mcse"]]
    shown = shown.rename(columns={"ci_lower_mcse": "error of lower", "ci_upper_mcse": "error of upper"})
    note = (
        f"Intervals: {of.kind}. SE: standard deviation of the replicates. Error: Monte Carlo standard error of a limit."
    )
    numbers = tables.Numbers("bootstrap", "Bootstrap intervals of effects", shown, of.level)
    labels = replicates.origin.labels[replicates.origin.n_params :]
    terms = [name for name in labels if name.startswith(("indirect", "total")) and " - " not in name][:MOST]
    several = figures.bootstrapped(of.fit, replicates, terms, of.kind, of.level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said above
        drawn = pictures(several)
    return join([paragraphs(words), number_table("bootstrap", numbers, note), drawn])


def _estimates(of: Content) -> Markup:
    fit = of.fit
    parts = [
        number_table("coefficients", tables.numbers(fit, "coefficients", level=of.level), SE_NOTES[fit.default_se]),
        number_table(
            "variances",
            tables.numbers(fit, "variances", level=of.level),
            "Limits of variances are symmetric on the log scale, those of covariances on their own.",
        ),
    ]
    if fit.system.random_labels:
        g = fit.random_cov.to_numpy()
        sd = np.sqrt(np.diag(g))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = g / np.outer(sd, sd)
        np.fill_diagonal(found, sd)
        shown = pd.DataFrame(found, index=fit.random_cov.index, columns=fit.random_cov.columns)
        title = "Random effects: standard deviations (diagonal) and correlations"
        parts.append(matrix("random-correlations", title, shown, 3))
    return join(parts)


def _fit(of: Content) -> Markup:
    fit = of.fit
    wald = fit.wald()
    facts = [
        ["method", "REML" if fit.reml else "ML"],
        ["restricted log likelihood" if fit.reml else "log likelihood", f"{fit.loglik:.4f}"],
        ["AIC", f"{fit.aic:.2f}"],
        ["BIC", f"{fit.bic:.2f}"],
        ["parameters", str(fit.n_params)],
        ["observations, stacked over equations", str(fit.nobs)],
        ["clusters", str(fit.n_clusters)],
        ["Wald test of all fixed effects", _test(wald)],
    ]
    if fit.free:
        facts.append(["likelihood-ratio test against no random effects (conservative)", _test(fit.lr_test())])
    parts = [table("statistics", "Fit statistics", ["", "value"], facts), element("h3", "Convergence")]
    return join([*parts, paragraphs(report_text.convergence(fit))])


def _test(test: TestResult) -> str:
    if np.isnan(test.p):
        return "not available"
    text = tables.p_value(test.p)
    return f"χ²({test.df}) = {test.statistic:.2f}, p {text.replace('<', '< ') if '<' in text else f'= {text}'}"


def _checks(of: Content) -> Markup:
    drawn = pictures(figures.checks(of.fit, of.level))
    if not drawn:
        return Markup("")
    words = (
        "If the model holds, points lie along the line. Heavy tails or a bend speak against normal random effects; the "
        "averages stand up to that better than their intervals and the distribution of effects over clusters."
    )
    return join([element("p", words), drawn])


def _methods(of: Content) -> Markup:
    found = report_text.references(of.fit, of.replicates)
    parts = [
        element("p", "For a paper; edit to taste."),
        element("blockquote", element("p", report_text.methods(of.fit, of.level, of.replicates, of.kind))),
    ]
    if found:
        parts += [element("h3", "References"), element("ul", *(element("li", work) for work in found))]
    return join(parts)


def _again(of: Content) -> Markup:
    model = json.dumps(of.fit.spec.to_dict(), indent=1, ensure_ascii=False)
    versions = [[name, version] for name, version in report_text.versions().items()]
    return join(
        [
            element("p", "The model, in Python; DATA stands for the frame or the path of the file:"),
            code(report_text.call(of.fit), "Python code of the model"),
            element("p", "The model as JSON, as in the results of the command line:"),
            code(model, "The model as JSON"),
            table("versions", "Versions", ["", "version"], versions, stubs=2),
        ]
    )


# A section is a function of the content; one that returns nothing is left out.
SECTIONS: tuple[tuple[str, str, Callable[[Content], Markup]], ...] = (
    ("question", "Question", _question),
    ("answer", "In brief", _answer),
    ("data", "Data", _data),
    ("model", "Model", _model),
    ("effects-section", "Effects", _effects),
    ("clusters", "Differences between clusters", _clusters),
    ("bootstrap-section", "Bootstrap", _bootstrap),
    ("estimates", "All estimates", _estimates),
    ("fit", "Fit and convergence", _fit),
    ("checks", "Checks of the random effects", _checks),
    ("diagnostics", "Diagnostics", diagnostics),
    ("methods", "Methods paragraph", _methods),
    ("again", "To reproduce this", _again),
)
