"""Tables of a fit for papers: the same numbers as LaTeX, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxmed._inference import (
    OF_COEFFICIENTS,
    OF_VARIANCES,
    EffectCovariance,
    Estimates,
    check_level,
    critical_value,
    effect_table,
    heterogeneity_table,
    limits_on_scale,
    normal_table,
)
from jaxmed._support import check_choice, escape_control

TableName = Literal["effects", "coefficients", "variances", "heterogeneity"]
HEADS = {"estimate": "Estimate", "se": "SE", "z": "z", "p": "p"}
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


class Numbers(NamedTuple):
    """A table of numbers with what it is called.

    Attributes
    ----------
    name : str
    title : str
    values : DataFrame
        Columns among ``estimate, se, z, p, ci_lower, ci_upper``; the index holds what each row is of, with the values
        of moderators as further levels.
    level : float
        Of the intervals.
    """

    name: str
    title: str
    values: pd.DataFrame
    level: float


def numbers(
    fit: Estimates,
    table: TableName,
    covariance: EffectCovariance | None = None,
    level: float = 0.95,
    at: Mapping[str, Any] | None = None,
) -> Numbers:
    """One table of a fit by its name.

    Parameters
    ----------
    fit : Estimates
    table : {"effects", "coefficients", "variances", "heterogeneity"}
    covariance : {"joint", "bauer", "robust"}, optional
        As for :meth:`jaxmed.Fit.effects`; ``"bauer"`` takes the block covariance for coefficients.
    level : float
    at : dict, optional
        Values of moderators, of effects and heterogeneity.

    Raises
    ------
    SpecError
        An unknown table, covariance, level or moderator.
    FitError
        Effects of a model that is not a mediation model.
    """
    check_level(level)
    check_choice("table", table, TableName)
    chosen: EffectCovariance = fit.default_covariance if covariance is None else covariance
    check_choice("covariance", chosen, EffectCovariance)
    if table == "effects":
        return Numbers(table, "Effects", effect_table(fit, chosen, level, at, False), level)
    if table == "heterogeneity":
        values = heterogeneity_table(fit, level, at, OF_VARIANCES[chosen])
        return Numbers(table, "Effects over clusters (population)", values, level)
    if table == "coefficients":
        error = fit.standard_errors(OF_COEFFICIENTS[chosen]).to_numpy()
        values = normal_table(list(fit.params.index), fit.params.to_numpy(), error, critical_value(level))
        return Numbers(table, "Fixed effects", values, level)
    title = "Covariance of the random effects, and residuals"
    return Numbers(table, title, variance_table(fit, level, chosen), level)


def variance_table(fit: Estimates, level: float, covariance: EffectCovariance = "joint") -> pd.DataFrame:
    """Variances with limits from the log scale, then covariances with symmetric ones, in Stata's order.

    Parameters
    ----------
    fit : Estimates
    level : float
    covariance : {"joint", "bauer", "robust"}
        Of all parameters; ``"bauer"`` is the joint one, and adds the variance of the extra random effect of the worked
        Stata example.

    Returns
    -------
    DataFrame
        Columns ``estimate, se, ci_lower, ci_upper``.
    """
    critical = critical_value(level)
    random = fit.system.random_labels
    whole = OF_VARIANCES[covariance]
    g, g_se = fit.random_cov.to_numpy(), fit.random_cov_errors(whole).to_numpy()
    residual_se = fit.residual_cov_errors(whole).to_numpy()
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
    names += [f"var(residual {outcome})" for outcome in fit.system.outcomes]
    estimate += fit.residual_var.to_list()
    error += np.diag(residual_se).tolist()
    for row, col in fit.system.residual_pairs:
        names.append(f"cov(residual {fit.system.outcomes[col]},{fit.system.outcomes[row]})")
        estimate.append(fit.residual_cov.iloc[row, col])
        error.append(residual_se[row, col])
    if covariance == "bauer" and fit.spec.is_simple(fit.facts):
        difference = fit.residual_var.iloc[0] - fit.residual_var.iloc[1]
        at = fit.joint[-2:, -2:]
        names.append("var(fid: sm) = difference")
        estimate.append(difference if difference > 0 else np.nan)
        error.append(np.sqrt(at[0, 0] + at[1, 1] - 2 * at[0, 1]) if difference > 0 else np.nan)
    values, errors = np.array(estimate), np.array(error)
    lower, upper = limits_on_scale(values, errors, critical, "log")
    plain = np.array([name.startswith("cov(") for name in names])
    lower[plain] = values[plain] - critical * errors[plain]
    upper[plain] = values[plain] + critical * errors[plain]
    columns = {"estimate": values, "se": errors, "ci_lower": lower, "ci_upper": upper}
    return pd.DataFrame(columns, index=pd.Index(names))


# Cells ---------------------------------------------------------------------------------------------------------------


def decimals(errors: Any, significant: int = 3) -> int:
    """Decimals that show the smallest standard error with so many digits, 0 to 8 of them.

    Examples
    --------
    >>> decimals([0.0465, 0.5]), decimals([120.0])
    (4, 0)
    """
    usable = np.asarray(errors, dtype=float)
    usable = usable[np.isfinite(usable) & (usable > 0)]
    if not len(usable):
        return 4
    return int(np.clip(significant - 1 - np.floor(np.log10(usable.min())), 0, 8))


def rounded(value: float, digits: int) -> str:
    """A number with ``digits`` decimals, in powers of ten from 10^7 on; nothing for NaN."""
    if not np.isfinite(value):
        return ""
    if abs(value) >= 1e7:
        return f"{value:.3e}"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def p_value(value: float) -> str:
    """Three decimals, "<0.001" below; nothing for NaN."""
    if not np.isfinite(value):
        return ""
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table of numbers as text; what the model fixes (se 0) has no uncertainty to show."""
    held = table["se"].eq(0) if "se" in table else pd.Series(False, index=table.index)
    digits = decimals(table["se"]) if "se" in table else 4
    found = {}
    for column in table.columns:
        values = table[column].mask(held) if column in ("se", "ci_lower", "ci_upper") else table[column]
        if column == "z":
            found[column] = [rounded(value, 2) for value in values]
        elif column == "df":
            found[column] = [rounded(value, 1) for value in values]
        elif column == "p":
            found[column] = [p_value(value) for value in values]
        else:
            found[column] = [rounded(value, digits) for value in values]
    return pd.DataFrame(found, index=table.index)


def stub(index: pd.Index[Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and entries of the first columns of a table: what each row is of, and values of moderators."""
    if not isinstance(index, pd.MultiIndex):
        return [""], [[str(name)] for name in index]
    entries = [[str(name), *map(_value, at)] for name, *at in index]
    return ["", *map(str, index.names[1:])], entries


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:.4g}"


def heads(columns: Any, level: float) -> list[str]:
    """Heads of the columns of numbers; those of limits name the level."""
    limits = {"ci_lower": f"{100 * level:g}% lower", "ci_upper": f"{100 * level:g}% upper"}
    return [{**HEADS, **limits}.get(column, str(column)) for column in columns]


# Formats -------------------------------------------------------------------------------------------------------------


def export(table: Numbers, form: str) -> str:
    """A table as text of one of the formats ``"latex"``, ``"markdown"`` and ``"csv"``."""
    return {"latex": _latex, "markdown": _markdown, "csv": _csv}[form](table)


def escape_latex(text: str) -> str:
    r"""Text as LaTeX shows it.

    Examples
    --------
    >>> print(escape_latex("y~m_1 & 5%"))
    y\textasciitilde{}m\_1 \& 5\%
    """
    return "".join(LATEX.get(letter, letter) for letter in escape_control(" ".join(text.split())))


def escape_markdown(text: str) -> str:
    """Text that no Markdown reader takes for markup or for the end of a cell."""
    return "".join(
        f"\\{letter}" if letter in r"\`*_{}[]()<>#|~$&" else letter for letter in escape_control(" ".join(text.split()))
    )


def _latex(table: Numbers) -> str:
    first, entries = stub(table.values.index)
    body = cells(table.values)
    columns = "l" * len(first) + "r" * body.shape[1]
    rows = [
        " & ".join([*map(escape_latex, entry), *map(_latex_number, row)]) + r" \\"
        for entry, row in zip(entries, body.to_numpy(), strict=True)
    ]
    top = " & ".join(map(escape_latex, [*first, *heads(body.columns, table.level)])) + r" \\"
    lines = [
        r"\begin{table}",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        *(r"\toprule", top, r"\midrule", *rows, r"\bottomrule"),
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_number(text: str) -> str:
    """In mathematics, where a minus sign is one."""
    return f"${text}$" if text[:1] in ("-", "<") else text


def _markdown(table: Numbers) -> str:
    first, entries = stub(table.values.index)
    body = cells(table.values)
    rows = [
        [*map(escape_markdown, entry), *(cell.replace("<", "\\<") for cell in row)]
        for entry, row in zip(entries, body.to_numpy(), strict=True)
    ]
    top = [*map(escape_markdown, first), *heads(body.columns, table.level)]
    rule = [":--"] * len(first) + ["--:"] * body.shape[1]
    return "".join(f"| {' | '.join(row)} |\n" for row in [top, rule, *rows])


def _csv(found: Numbers) -> str:
    """All digits, the names of :meth:`jaxmed.Fit.effects` as heads."""
    table = found.values
    if not isinstance(table.index, pd.MultiIndex):
        table = table.rename_axis("effect" if found.name in ("effects", "heterogeneity") else "parameter")
    return table.to_csv()
