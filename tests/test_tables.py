"""Tables for papers: escaped, rounded, and the same numbers in every format."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm
from jaxmed._results.tables import cells, decimals, escape_latex, escape_markdown, p_value, rounded

ODD = r"m_1 & 5%~^#${}\|<>" + '"'


@pytest.fixture(scope="module")
def fit():
    data = jm.datasets.load_example().rename(columns={"m": "m_1&2%"})
    return jm.fit(data, jm.Mediation(x="x", m="m_1&2%", y="y", cluster="id", random="none"))


def test_latex_escapes_every_special_letter():
    found = escape_latex(ODD)
    assert found == (
        r"m\_1 \& 5\%\textasciitilde{}\textasciicircum{}\#\$\{\}\textbackslash{}\textbar{}\textless{}\textgreater{}"
        r"\textquotedbl{}"
    )
    commands = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]", "", found)
    assert not set(commands) & set("&%$#_{}~^\\")


def test_markdown_escapes_what_ends_a_cell():
    assert escape_markdown("a|b_c*<d>") == r"a\|b\_c\*\<d\>"


@pytest.mark.parametrize(
    ("errors", "digits"), [([0.0465], 4), ([0.5, 12.0], 3), ([99.0], 1), ([1e6], 0), ([1e-12], 8), ([np.nan, 0.0], 4)]
)
def test_decimals_follow_the_smallest_standard_error(errors, digits):
    assert decimals(errors) == digits


def test_numbers_as_text():
    assert [rounded(value, 2) for value in (-0.001, 1.005, np.nan, 2e7)] == ["0.00", "1.00", "", "2.000e+07"]
    assert [p_value(value) for value in (0.0004, 0.0005, 0.25, np.nan)] == ["<0.001", "0.001", "0.250", ""]


def test_csv_keeps_all_digits(fit):
    for table in ("effects", "coefficients", "variances"):
        found = pd.read_csv(io.StringIO(fit.to_csv(table)), index_col=0)
        assert not found.empty
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(fit.to_csv()), index_col=0), fit.effects(), check_names=False)


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_rows_are_the_rounded_numbers(fit, form):
    table = fit.effects()
    text = {"latex": fit.to_latex, "markdown": fit.to_markdown}[form]()
    shown = [line for line in text.splitlines() if re.match(r"(\| )?(a|b|c.*prime|indirect|total)\b", line)]
    assert len(shown) == 5
    for line, name in zip(shown, ["a", "b", "c_prime", "indirect", "total"], strict=True):
        values = re.split(r" & | \| ", line.strip("| ").removesuffix(r" \\").replace("$", ""))[1:]
        row, digits = table.loc[name], decimals(table["se"])
        assert values[0] == f"{row['estimate']:.{digits}f}"
        assert values[1] == f"{row['se']:.{digits}f}"
        assert values[-2:] == [f"{row[limit]:.{digits}f}" for limit in ("ci_lower", "ci_upper")]


def test_latex_as_a_whole(fit):
    text = fit.to_latex("coefficients", level=0.9)
    assert r"m\_1\&2\%\textasciitilde{}x" in text
    assert r"90\% lower" in text
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {6}
    assert not re.search(r"(?<!\$)-\d", text)  # a minus sign is one only in mathematics


def test_what_is_fixed_has_no_uncertainty(fit):
    assert cells(fit.effects()).loc["cov_ab"].tolist() == ["0.0000", "", "", "", "", ""]


def test_moderators_are_columns():
    roles = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
    spec = jm.Mediation(**roles, moderators={"climate": ["a"]}, random="none")
    found = jm.fit(jm.datasets.load_schools(), spec)
    lines = found.to_markdown(at={"climate": [-1, 1]}).splitlines()
    assert lines[0].startswith("|  | climate | Estimate | SE | z | p |")
    assert lines[2].startswith("| a | -1 | ")
    assert lines[-1].startswith(r"| index\_climate |  | ")
    assert found.to_csv(at={"climate": [-1, 1]}).splitlines()[1].startswith("a,-1.0,")


def test_refusals(fit):
    with pytest.raises(jm.SpecError, match="table='efects' is not known; choose one of"):
        fit.to_latex("efects")
    with pytest.raises(jm.SpecError, match="covariance='odd' is not known"):
        fit.to_csv(covariance="odd")
    with pytest.raises(jm.SpecError, match="level=95 is not a confidence level"):
        fit.to_markdown(level=95)


def test_every_kind_of_standard_error(fit):
    """Effects, coefficients and variances with cluster-robust errors, in the digits that are written."""
    for table, expected in {
        "effects": fit.effects(covariance="robust")["se"],
        "coefficients": fit.standard_errors("robust"),
    }.items():
        rows = [line.split(",") for line in fit.to_csv(table, covariance="robust").splitlines()]
        at = rows[0].index("se")
        assert [float(row[at]) for row in rows[1:]] == pytest.approx(expected.to_list(), rel=1e-3)
    rows = [line.split(",") for line in fit.to_csv("variances", covariance="robust").splitlines()]
    found = {row[0]: row for row in rows[1:]}
    error = fit.residual_cov_errors("robust").loc["y", "y"]
    assert float(found["var(residual y)"][rows[0].index("se")]) == pytest.approx(error, rel=1e-3)
