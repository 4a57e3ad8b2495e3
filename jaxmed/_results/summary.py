"""A fit as people read it: text for a terminal, HTML for a notebook, from the same tables."""

from __future__ import annotations

import html as html_
import textwrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmed._inference import (
    OF_COEFFICIENTS,
    EffectCovariance,
    Estimates,
    TestResult,
    critical_value,
    normal_table,
    omnibus_table,
)
from jaxmed._model import Mediation
from jaxmed._results.tables import variance_table
from jaxmed._support import check_choice, escape_control

SE_NOTES: dict[EffectCovariance, str] = {
    "joint": "Standard errors: joint (fixed effects, covariances and residual variances estimated together).",
    "bauer": "Standard errors: block, with the effect formulas of Bauer, Preacher & Gil (2006), as Stata prints.",
    "robust": "Standard errors: cluster-robust (sandwich), times J / (J - 1), of all parameters together.",
}


class Table(NamedTuple):
    """A titled table of formatted cells; ``note`` stands below it."""

    title: str
    cells: pd.DataFrame
    note: str = ""


def number(value: float) -> str:
    """Seven digits, as Stata shows them; powers of ten where the value is very large or small; "." for NaN."""
    if not np.isfinite(value):
        return "."
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.6e}"
    return f"{value:.7f}" if abs(value) < 1 else f"{value:.7g}"


def fixed(value: float, digits: int) -> str:
    """``value`` with ``digits`` decimals; "." for NaN."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "."


def text(fit: Estimates, tables: dict[str, pd.DataFrame], covariance: EffectCovariance, level: float) -> str:
    """The whole summary as plain text."""
    title, facts, shown, notes = _content(fit, tables, covariance, level)
    title = escape_control(title)
    parts = [f"{title}\n{'=' * len(title)}", _columns([(name, escape_control(value)) for name, value in facts])]
    parts += ["\n".join(filter(None, [table.title, _align(table.cells), table.note])) for table in shown]
    wrapped = [textwrap.fill(escape_control(note), 100) for note in notes]
    return "\n\n".join([*parts, "\n".join(wrapped)]) + "\n"


def html(fit: Estimates, tables: dict[str, pd.DataFrame], covariance: EffectCovariance, level: float) -> str:
    """The whole summary as an HTML fragment; every name is escaped."""
    title, facts, shown, notes = _content(fit, tables, covariance, level)
    rows = "".join(f"<tr><th>{html_.escape(k)}</th><td>{html_.escape(v)}</td></tr>" for k, v in facts)
    parts = [f"<h3>{html_.escape(title)}</h3>", f"<table>{rows}</table>"]
    for table in shown:
        parts.append(f"<h4>{html_.escape(table.title)}</h4>{table.cells.to_html(escape=True)}")
        if table.note:
            parts.append(f"<p>{html_.escape(table.note)}</p>")
    parts += [f"<p>{html_.escape(note)}</p>" for note in notes]
    return f"<div class='jaxmed-fit'>{''.join(parts)}</div>"


def _content(
    fit: Estimates, tables: dict[str, pd.DataFrame], covariance: EffectCovariance, level: float
) -> tuple[str, list[tuple[str, str]], list[Table], list[str]]:
    check_choice("covariance", covariance, EffectCovariance)
    of_coefficients = OF_COEFFICIENTS[covariance]
    spec = fit.spec
    if isinstance(spec, Mediation):
        through = (" -> " if spec.serial else ", ").join(spec.mediators)
        title = f"Multilevel mediation: {spec.x} -> {through} -> {spec.y} within {spec.cluster}"
    else:
        title = f"Mixed model: {', '.join(fit.system.outcomes)} within {spec.cluster}"
    wald = fit.wald(covariance=of_coefficients)
    low, mean, high = fit.cluster_sizes
    facts = [
        ("Method", "REML" if fit.reml else "ML"),
        ("Log restricted-likelihood" if fit.reml else "Log likelihood", fixed(fit.loglik, 4)),
        ("AIC, BIC", f"{fixed(fit.aic, 2)}, {fixed(fit.bic, 2)}"),
        (f"Wald chi2({wald.df})", f"{fixed(wald.statistic, 2)} (p = {fixed(wald.p, 4)})"),
        ("Number of obs", f"{fit.nobs} ({_by_outcome(fit)})"),
        ("Number of clusters", f"{fit.n_clusters} (stacked obs per cluster: min {low}, avg {mean:.1f}, max {high})"),
        ("Random effects", ", ".join(fit.system.random_labels) or "none"),
        ("Rows", _rows(fit)),
    ]
    if fit.system.random_labels and (fit.system.covariance != "unstructured" or fit.system.zero):
        facts.insert(-1, ("Their covariance", covariance_words(fit)))
    if any(fit.sample_summary.missing.values()):
        patterns = "; ".join(f"{observed}: {count}" for observed, count in fit.sample_summary.patterns.items())
        facts.append(("Rows by observed columns", patterns))
    critical = critical_value(level)
    shown = [Table(title, _effect_cells(found, level)) for title, found in tables.items()]
    if shown:
        shown[0] = shown[0]._replace(note=_legend(fit))
        shown += _omnibus(fit, covariance)
    coefficients = normal_table(
        list(fit.params.index), fit.params.to_numpy(), fit.standard_errors(of_coefficients).to_numpy(), critical
    )
    shown.append(Table("Fixed effects", _coefficients(coefficients, level)))
    alone = "no random effects, independent residuals" if fit.system.residual_pairs else "no random effects"
    tests = [(alone, fit.lr_test())] if fit.free else []
    if len(fit.system.outcomes) > 1:
        tests.append(("linear regression", fit.lr_test("pooled")))
    note = "\n".join(f"LR test vs. {against}: {_test(test)}" for against, test in tests)
    shown.append(Table("Random effects (covariance G) and residuals", _variances(fit, level, covariance), note))
    notes = [f"Note: {note}." for note in fit.notes]
    if not (fit.flat or fit.cautions) and spec.free_intercepts(fit.facts):
        notes.append(
            "Note: effects of a mediator between clusters and the covariance of the random intercepts explain the same "
            "differences between clusters, so that both are weakly identified; intercepts='independent' holds that "
            "covariance at zero."
        )
    products = [label for label in fit.system.random_labels if ":" in label]
    if isinstance(spec, Mediation) and spec.random == "all" and products:
        notes.append(f"Note: random='all' includes the slopes of products: {', '.join(products)}.")
    notes.append(SE_NOTES[covariance])
    if fit.free:
        notes.append("LR tests are conservative: variances are tested on their boundary.")
    notes.append(f"After {fit.n_iter} iterations: {fit.message}.")
    return title, facts, shown, notes


def _effect_cells(table: pd.DataFrame, level: float) -> pd.DataFrame:
    """Cells of a table of effects; what is fixed by the model has no uncertainty to show."""
    held = table["se"].eq(0)
    table = table.assign(**{column: table[column].mask(held) for column in ("se", "ci_lower", "ci_upper")})
    if isinstance(table.index, pd.MultiIndex):
        table.index = pd.Index([_at(key, table.index.names[1:]) for key in table.index])
    return _coefficients(table, level)


def _at(key: tuple[Any, ...], moderators: list[Any]) -> str:
    """An entry of the index of effects: ``"indirect, w = 1"``."""
    values = zip(moderators, key[1:], strict=True)
    given = [
        f"{name} = {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in values if pd.notna(value)
    ]
    return ", ".join([str(key[0]), *given])


def covariance_words(fit: Estimates) -> str:
    """Which random effects covary, in words."""
    system = fit.system
    named = {"unstructured": "free", "diagonal": "none", "block": "free within equations"}
    if isinstance(system.covariance, str):
        text = named[system.covariance]
    else:
        groups = [", ".join(group) for group in system.covariance if len(group) > 1]
        text = f"free among {'; among '.join(groups)}" if groups else "none"
    zero = ", ".join(f"cov({one},{other})" for one, other in system.zero)
    return f"{text}, but for {zero} = 0" if zero else text


def _omnibus(fit: Estimates, covariance: EffectCovariance) -> list[Table]:
    """Tests of all categories of x together, of a model without moderators; none where x is numeric."""
    spec = fit.spec
    if spec.moderators or not spec.contrasts(fit.facts):
        return []
    found = omnibus_table(fit, OF_COEFFICIENTS[covariance])
    cells = {"chi2": found["chi2"].map(lambda value: fixed(value, 2)), "df": found["df"].map("{:g}".format)}
    cells["P>chi2"] = found["p"].map(lambda p: fixed(p, 4))
    return [Table(f"Tests of all categories of {spec.sources[0]} together", pd.DataFrame(cells, index=found.index))]


def legend(fit: Estimates) -> list[str]:
    """What the names of effects mean, in a few sentences; nothing for a system."""
    spec = fit.spec
    if not isinstance(spec, Mediation):
        return []
    paths = "; ".join(f"{edge.name}: {edge.source} -> {edge.outcome}" for edge in spec.edges)
    if spec.contrasts(fit.facts):
        compared = dict(spec.reference)[spec.x]
        paths += f"; [category]: that category of {spec.x} less {compared}"
    if spec.is_simple(fit.facts):
        return [paths, "cov_ab: cov(a_j, b_j) between clusters; indirect: a b + cov_ab; total: indirect + c_prime"]
    product = "cov: covariances between clusters; indirect: expected product of paths"
    if spec.center is None and spec.is_split(fit.facts):
        product = "indirect: product of the paths between clusters"
    lines = [paths, f"{product}; total: indirect + c_prime"]
    if spec.moderators:
        moved = "; ".join(f"{name}: {', '.join(found)}" for name, found in spec.moderators)
        lines.append(f"moderators: {moved}; index: slope of the indirect effect in a moderator")
    if spec.is_split(fit.facts):
        lines.append("within: deviations from cluster means; between: cluster means; contextual: between - within")
    return lines


def _legend(fit: Estimates) -> str:
    """The same in lines of a terminal."""
    lines = [escape_control(line) for line in legend(fit)]
    if fit.spec.is_simple(fit.facts):
        return ";\n".join(lines)
    return "\n".join("\n".join(textwrap.wrap(line, 100)) for line in lines)


def _by_outcome(fit: Estimates) -> str:
    return ", ".join(
        f"{name}: {count}" for name, count in zip(fit.system.outcomes, fit.sample_summary.used, strict=True)
    )


def _rows(fit: Estimates) -> str:
    missing = ", ".join(f"{name} {count}" for name, count in fit.sample_summary.missing.items() if count)
    text = f"{fit.sample_summary.rows} read, {fit.sample_summary.dropped} left out"
    return f"{text} (missing values: {missing})" if missing else f"{text} (no missing values)"


def _test(test: TestResult) -> str:
    return f"chi2({test.df}) = {fixed(test.statistic, 2)}, p = {fixed(test.p, 4)}"


def _heads(level: float) -> list[str]:
    return [f"[{100 * level:g}% conf.", "interval]"]


def _coefficients(table: pd.DataFrame, level: float) -> pd.DataFrame:
    cells = {
        "estimate": table["estimate"].map(number),
        "std. err.": table["se"].map(number),
        **(
            {"z": table["z"].map(lambda z: fixed(z, 2)), "P>|z|": table["p"].map(lambda p: fixed(p, 3))}
            if "z" in table
            else {}
        ),
        _heads(level)[0]: table["ci_lower"].map(number),
        _heads(level)[1]: table["ci_upper"].map(number),
    }
    return pd.DataFrame(cells, index=table.index)


def _variances(fit: Estimates, level: float, covariance: EffectCovariance) -> pd.DataFrame:
    """Cells of the table of (co)variances."""
    found = variance_table(fit, level, covariance)
    heads = ("estimate", "std. err.", *_heads(level))
    columns = zip(heads, found.columns, strict=True)
    return pd.DataFrame({head: found[column].map(number) for head, column in columns}, index=found.index)


def _columns(facts: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def _align(cells: pd.DataFrame) -> str:
    """Right-aligned columns under a ruled head."""
    names = [escape_control(str(name)) for name in cells.index]
    stub = max(map(len, names))
    widths = [max(len(head), *(len(cell) for cell in cells[head])) for head in cells.columns]
    head = " " * stub + " | " + "  ".join(f"{h:>{w}}" for h, w in zip(cells.columns, widths, strict=True))
    rule = "-" * (stub + 1) + "+" + "-" * (len(head) - stub - 2)
    rows = [
        f"{name:>{stub}} | " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        for name, row in zip(names, cells.to_numpy(), strict=True)
    ]
    return "\n".join([rule, head, rule, *rows, rule])
