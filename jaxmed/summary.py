"""A fit as people read it: text for a terminal, HTML for a notebook, from the same tables."""

from __future__ import annotations

import html as html_
import textwrap
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxmed.errors import SpecError
from jaxmed.intervals import critical_value, normal_table, variance_limits
from jaxmed.moments import Floats
from jaxmed.result import Estimates, TestResult
from jaxmed.spec import Mediation, Spec

SE_NOTES = {
    "joint": "Standard errors: joint (fixed effects, covariances and residual variances estimated together).",
    "bauer": "Standard errors: block, with the effect formulas of Bauer, Preacher & Gil (2006), as Stata prints.",
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


def text(fit: Estimates, effects: pd.DataFrame | None, se: str, level: float) -> str:
    """The whole summary as plain text."""
    title, facts, tables, notes = _content(fit, effects, se, level)
    parts = [f"{title}\n{'=' * len(title)}", _columns(facts)]
    parts += ["\n".join(filter(None, [table.title, _align(table.cells), table.note])) for table in tables]
    wrapped = [textwrap.fill(note, 100) for note in notes]
    return "\n\n".join([*parts, "\n".join(wrapped)]) + "\n"


def html(fit: Estimates, effects: pd.DataFrame | None, se: str, level: float) -> str:
    """The whole summary as an HTML fragment; every name is escaped."""
    title, facts, tables, notes = _content(fit, effects, se, level)
    rows = "".join(f"<tr><th>{html_.escape(k)}</th><td>{html_.escape(v)}</td></tr>" for k, v in facts)
    parts = [f"<h3>{html_.escape(title)}</h3>", f"<table>{rows}</table>"]
    for table in tables:
        parts.append(f"<h4>{html_.escape(table.title)}</h4>{table.cells.to_html(escape=True)}")
        if table.note:
            parts.append(f"<p>{html_.escape(table.note)}</p>")
    parts += [f"<p>{html_.escape(note)}</p>" for note in notes]
    return f"<div class='jaxmed-fit'>{''.join(parts)}</div>"


def _content(
    fit: Estimates, effects: pd.DataFrame | None, se: str, level: float
) -> tuple[str, list[tuple[str, str]], list[Table], list[str]]:
    if se not in SE_NOTES:
        raise SpecError(f"se={se!r} is not known; choose 'joint' or 'bauer'")
    kind = "joint" if se == "joint" else "block"
    spec = fit.spec
    if isinstance(spec, Mediation):
        title = f"Multilevel mediation: {spec.x} -> {spec.m} -> {spec.y} within {spec.cluster}"
    else:
        title = f"Mixed model: {', '.join(fit.system.outcomes)} within {spec.cluster}"
    wald = fit.wald(kind=kind)
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
    critical = critical_value(level)
    tables = []
    if effects is not None:
        held = effects["se"].eq(0)
        shown = effects.assign(**{column: effects[column].mask(held) for column in ("se", "ci_lower", "ci_upper")})
        tables.append(Table("Effects", _coefficients(shown, level), _legend(spec)))
    coefficients = normal_table(
        list(fit.params.index), fit.params.to_numpy(), fit.standard_errors(kind).to_numpy(), critical
    )
    tables.append(Table("Fixed effects", _coefficients(coefficients, level)))
    tests = [("no random effects", fit.lr_test())] if fit.free else []
    if len(fit.system.outcomes) > 1:
        tests.append(("linear regression", fit.lr_test("pooled")))
    note = "\n".join(f"LR test vs. {against}: {_test(test)}" for against, test in tests)
    tables.append(Table("Random effects (covariance G) and residuals", _variances(fit, critical, level, se), note))
    notes = [SE_NOTES[se]]
    if fit.free:
        notes.append("LR tests are conservative: variances are tested on their boundary.")
    notes.append(f"After {fit.n_iter} iterations: {fit.message}.")
    return title, facts, tables, notes


def _legend(spec: Spec) -> str:
    if not isinstance(spec, Mediation):
        return ""
    return (
        f"a: {spec.x} -> {spec.m}; b: {spec.m} -> {spec.y}; c_prime: {spec.x} -> {spec.y};\n"
        "cov_ab: cov(a_j, b_j) between clusters; indirect: a b + cov_ab; total: indirect + c_prime"
    )


def _by_outcome(fit: Estimates) -> str:
    return ", ".join(f"{name}: {count}" for name, count in zip(fit.system.outcomes, fit.intake.used, strict=True))


def _rows(fit: Estimates) -> str:
    missing = ", ".join(f"{name} {count}" for name, count in fit.intake.missing.items() if count)
    text = f"{fit.intake.rows} read, {fit.intake.dropped} left out"
    return f"{text} (missing values: {missing})" if missing else f"{text} (no missing values)"


def _test(test: TestResult) -> str:
    return f"chi2({test.df}) = {fixed(test.statistic, 2)}, p = {fixed(test.p, 4)}"


def _heads(level: float) -> list[str]:
    return [f"[{100 * level:g}% conf.", "interval]"]


def _coefficients(table: pd.DataFrame, level: float) -> pd.DataFrame:
    cells = {
        "estimate": table["estimate"].map(number),
        "std. err.": table["se"].map(number),
        "z": table["z"].map(lambda z: fixed(z, 2)),
        "P>|z|": table["p"].map(lambda p: fixed(p, 3)),
        _heads(level)[0]: table["ci_lower"].map(number),
        _heads(level)[1]: table["ci_upper"].map(number),
    }
    return pd.DataFrame(cells, index=table.index)


def _variances(fit: Estimates, critical: float, level: float, se: str) -> pd.DataFrame:
    """Variances with limits from the log scale, then covariances with symmetric ones, in Stata's order."""
    random = fit.system.random_labels
    g, g_se = fit.random_cov.to_numpy(), fit.random_cov_se.to_numpy()
    names, estimate, error = [], [], []
    for k, label in enumerate(random):
        names.append(f"var({label})")
        estimate.append(g[k, k])
        error.append(g_se[k, k])
    for col in range(len(random)):
        for row in range(col + 1, len(random)):
            if (row, col) in fit.free:
                names.append(f"cov({random[col]},{random[row]})")
                estimate.append(g[row, col])
                error.append(g_se[row, col])
    n_covariances = len(names) - len(random)
    names += [f"var(residual {outcome})" for outcome in fit.system.outcomes]
    estimate += fit.residual_var.to_list()
    error += fit.residual_var_se.to_list()
    if se == "bauer" and isinstance(fit.spec, Mediation):
        difference = fit.residual_var.iloc[0] - fit.residual_var.iloc[1]
        at = fit.joint[-2:, -2:]
        names.append("var(fid: sm) = difference")
        estimate.append(difference if difference > 0 else np.nan)
        error.append(np.sqrt(at[0, 0] + at[1, 1] - 2 * at[0, 1]) if difference > 0 else np.nan)
    values, errors = np.array(estimate), np.array(error)
    lower, upper = variance_limits(values, errors, critical)
    plain = slice(len(random), len(random) + n_covariances)
    lower[plain] = values[plain] - critical * errors[plain]
    upper[plain] = values[plain] + critical * errors[plain]
    cells: dict[str, list[str]] = {}
    for head, column in zip(("estimate", "std. err.", *_heads(level)), (values, errors, lower, upper), strict=True):
        cells[head] = [number(value) for value in _floats(column)]
    return pd.DataFrame(cells, index=names)


def _floats(values: Floats) -> list[float]:
    return [float(value) for value in values]


def _columns(facts: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def _align(cells: pd.DataFrame) -> str:
    """Right-aligned columns under a ruled head."""
    stub = max(len(str(name)) for name in cells.index)
    widths = [max(len(head), *(len(cell) for cell in cells[head])) for head in cells.columns]
    head = " " * stub + " | " + "  ".join(f"{h:>{w}}" for h, w in zip(cells.columns, widths, strict=True))
    rule = "-" * (stub + 1) + "+" + "-" * (len(head) - stub - 2)
    rows = [
        f"{name:>{stub}} | " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        for name, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    return "\n".join([rule, head, rule, *rows, rule])
