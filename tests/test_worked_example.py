"""The worked example of Bauer, Preacher & Gil (2006): precise answers, the issue's numbers, all 226 printed numbers."""

from __future__ import annotations

import functools
import re

import numpy as np
import pandas as pd
import pytest
from compare import assert_same_fit
from conftest import REFERENCE, read_reference

import jaxmed as jm
from jaxmed._inference.limits import critical_value, limits_on_scale, normal_table

RANDOM = {
    "full": "all",
    "full_diag": "all",
    "ab_int": {"m": ["1", "x"], "y": ["1", "m"]},
    "ab_noint": {"m": ["x"], "y": ["m"]},
    "a_int": {"m": ["1", "x"], "y": ["1"]},
    "int_only": {"m": ["1"], "y": ["1"]},
}
# In the order of the printed tables, intercept last.
SINGLE = {"y_on_x": ("y", ["x", "1"]), "m_on_x": ("m", ["x", "1"]), "y_on_m_x": ("y", ["m", "x", "1"])}
METHODS = ["REML", "ML"]


@pytest.fixture(scope="module")
def fitted(bpg2006):
    """Fits by (model, method), each made once."""

    @functools.cache
    def fit(name: str, method: str) -> jm.Fit:
        if name in SINGLE:
            outcome, predictors = SINGLE[name]
            model = jm.System([jm.Equation(outcome, predictors, random=predictors)], cluster="id")
        else:
            covariance = "diagonal" if name.endswith("_diag") else "unstructured"
            model = jm.Mediation("x", "m", "y", "id", random=RANDOM[name], covariance=covariance)
        return jm.fit(bpg2006, model, reml=method == "REML")

    return fit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RANDOM)
def test_stacked_models(fitted, name, method):
    """1e-6 on the log likelihood; 1e-5 relative, ten times what the references are trusted to."""
    fit, reference = fitted(name, method), read_reference(f"bpg2006/bpg2006_{name}.json")[method]
    assert_same_fit(fit, reference)
    assert fit.singular == reference["singular"]
    for se in ("joint", "bauer"):
        effects = fit.effects(se)
        for row, expected in reference["effects"].items():
            error = expected.get(f"se_{se}", expected.get("se"))
            assert effects.loc[row, "estimate"] == pytest.approx(expected["estimate"], rel=1e-5)
            assert effects.loc[row, "se"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SINGLE)
def test_single_equation_models(fitted, name, method):
    assert_same_fit(fitted(name, method), read_reference("bpg2006/bpg2006_preliminary.json")[name][method])


def test_headline_numbers(fitted):
    """The numbers that this package was asked to give, each to half a unit of its last digit."""
    fit = fitted("full", "REML")
    bauer, joint = fit.effects("bauer"), fit.effects("joint")
    found = {
        "loglik": (fit.loglik, -2126.134518896, 9),
        "a": (bauer.loc["a", "estimate"], 0.611856580, 9),
        "b": (bauer.loc["b", "estimate"], 0.610563188, 9),
        "c_prime": (bauer.loc["c_prime", "estimate"], 0.220811646, 9),
        "cov_ab": (bauer.loc["cov_ab", "estimate"], 0.098955319, 9),
        "cov_ab se": (bauer.loc["cov_ab", "se"], 0.022822555, 9),
        "indirect": (bauer.loc["indirect", "estimate"], 0.472532424, 9),
        "indirect se": (bauer.loc["indirect", "se"], 0.053330047, 9),
        "indirect joint se": (joint.loc["indirect", "se"], 0.0547, 4),
        "total": (bauer.loc["total", "estimate"], 0.693344070, 9),
        "total se": (bauer.loc["total", "se"], 0.058293316, 9),
        "total joint se": (joint.loc["total", "se"], 0.0562, 4),
    }
    # Half a unit of the last digit, and 1e-9 because the digits given for the log likelihood are ten of thirteen.
    wrong = {name: row for name, row in found.items() if abs(row[0] - row[1]) > 0.5 * 10.0 ** -row[2] + 1e-9}
    assert not wrong


# The printed tables --------------------------------------------------------------------------------------------------

COLUMNS = {"": "estimate", "coef": "estimate", "se": "se", "z": "z", "p": "p", "ci_lo": "ci_lower", "ci_hi": "ci_upper"}
STACKED = {"sm": "m~1", "smx": "m~x", "sy": "y~1", "sym": "y~m", "syx": "y~x"}
FINAL = {"a:": "a", "b:": "b", "c prime:": "c_prime", r"cov\(ajbj\):": "cov_ab"}
FINAL_COLUMNS = {"effect": "estimate", "se": "se", "ratio": "z", "LCL": "ci_lower", "UCL": "ci_upper"}


@functools.cache
def seed_rows() -> list[tuple[str, str, str, float]]:
    table = pd.read_csv(REFERENCE / "bpg2006" / "seed_numbers.csv", dtype=str)
    return [(a, b, c, float(d)) for a, b, c, d in table.itertuples(index=False)]


def locate(table: str, quantity: str) -> tuple[str, str]:
    """(row, column) of a printed quantity in the names of this package."""
    if table == "final":
        if quantity in FINAL:
            return FINAL[quantity], "estimate"
        row, column = quantity.split()
        return row, FINAL_COLUMNS[column]
    if quantity in ("loglik", "Wald chi2"):
        return quantity, ""
    if quantity.startswith("LR vs"):
        return "LR", re.search(r"chi2\(\d+\)", quantity)[0]
    outcome = "m" if table == "m_on_x" else "y"
    names = STACKED if table == "stacked_REML" else {"x": f"{outcome}~x", "m": "y~m", "_cons": f"{outcome}~1"}
    stem, _, column = quantity.rpartition(" ")
    if column not in COLUMNS:
        stem, column = quantity, ""
    if stem.startswith("fid "):
        row = "var(fid: sm) = difference"
    elif stem == "var(Residual)":
        row = f"var(residual {outcome})"
    elif found := re.fullmatch(r"(var|cov)\((.*)\)", stem):
        row = f"{found[1]}({','.join(names[name] for name in found[2].split(','))})"
    else:
        row = names[stem]
    return row, COLUMNS[column]


def seed_fit(fitted, table: str) -> jm.Fit:
    return fitted(table, "ML") if table in SINGLE else fitted("full", "REML")


def assert_all_visited(visited: list[tuple[str, str]]) -> None:
    assert len(visited) == len(set(visited)) == 226


def values_of(fit: jm.Fit) -> dict[tuple[str, str], float]:
    """Every number of the printed tables, from the fit's own attributes and methods."""
    critical = critical_value(0.95)
    single = len(fit.system.equations) == 1
    test = fit.lr_test() if single else fit.lr_test("pooled")
    values = {
        ("loglik", ""): fit.loglik,
        ("Wald chi2", ""): fit.wald(covariance="block").statistic,
        ("LR", f"chi2({test.df})"): test.statistic,
    }

    def add(row: str, **columns: float) -> None:
        values.update({(row, column): float(value) for column, value in columns.items()})

    def add_variance(row: str, estimate: float, se: float) -> None:
        lower, upper = limits_on_scale(estimate, se, critical, "log")
        add(row, estimate=estimate, se=se, ci_lower=lower, ci_upper=upper)

    table = normal_table(fit.params.index, fit.params.to_numpy(), fit.standard_errors("block").to_numpy(), critical)
    if not single:
        table = pd.concat([table, fit.effects("bauer")])
    for row, columns in table.iterrows():
        add(row, **columns)
    labels = fit.random_cov.index
    for i, one in enumerate(labels):
        add_variance(f"var({one})", fit.random_cov.loc[one, one], fit.random_cov_se.loc[one, one])
        for other in labels[i + 1 :]:
            estimate, se = fit.random_cov.loc[one, other], fit.random_cov_se.loc[one, other]
            limits = {"ci_lower": estimate - critical * se, "ci_upper": estimate + critical * se}
            add(f"cov({one},{other})", estimate=estimate, se=se, **limits)
    for outcome, estimate in fit.residual_var.items():
        add_variance(f"var(residual {outcome})", estimate, fit.residual_var_se[outcome])
    if not single:
        m, y = "m~~m", "y~~y"
        covariance = fit.cov_params("joint", full=True).loc[[m, y], [m, y]].to_numpy()
        se = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        add_variance("var(fid: sm) = difference", fit.residual_var["m"] - fit.residual_var["y"], se)
    return values


def test_every_printed_number(fitted):
    """1e-6 relative to the precise value, 1e-7 absolute near zero; tail probabilities to 1e-5 relative as well."""
    values = {table: values_of(seed_fit(fitted, table)) for table in (*SINGLE, "stacked_REML", "final")}
    visited, wrong = [], []
    for table, quantity, _, precise in seed_rows():
        row, column = locate(table, quantity)
        found = values[table][row, column]
        visited.append((table, quantity))
        close = abs(found - precise) <= max(1e-6 * abs(precise), 1e-7)
        if column == "p":
            close &= abs(found - precise) <= 1e-5 * abs(precise)
        if not close:
            wrong.append((table, quantity, found, precise))
    assert not wrong
    assert_all_visited(visited)


def parse_summary(text: str) -> dict[tuple[str, str], str]:
    """The printed text of a summary as (row, column) -> cell."""
    columns = ["estimate", "se", "z", "p", "ci_lower", "ci_upper"]
    cells = {}
    for line in text.splitlines():
        if found := re.match(r"Log (?:restricted-)?likelihood +(\S+)$", line):
            cells["loglik", ""] = found[1]
        elif found := re.match(r"Wald (chi2)\(\d+\) +(\S+) \(p", line):
            cells["Wald chi2", ""] = found[2]
        elif found := re.match(r"LR test vs. .*: (chi2\(\d+\)) = (\S+), p", line):
            cells["LR", found[1]] = found[2]
        elif " | " in line and "std. err." not in line:
            row, _, numbers = line.partition(" | ")
            numbers = numbers.split()
            names = columns if len(numbers) == 6 else [name for name in columns if name not in ("z", "p")]
            cells.update({(row.strip(), name): number for name, number in zip(names, numbers, strict=True)})
    return cells


def test_every_printed_number_is_in_the_summary(fitted):
    """Each printed cell is the precise value, rounded where the summary rounds (0.51 units: fits differ by 1e-9)."""
    tables = (*SINGLE, "stacked_REML", "final")
    texts = {table: parse_summary(seed_fit(fitted, table).summary(covariance="bauer")) for table in tables}
    visited, wrong = [], []
    for table, quantity, _, precise in seed_rows():
        row, column = locate(table, quantity)
        cell = texts[table][row, column]
        visited.append((table, quantity))
        decimals = {"z": 2, "p": 3}.get(column) or {"loglik": 4, "Wald chi2": 2, "LR": 2}.get(row)
        if decimals is None:  # seven decimals, or seven digits from one on
            decimals = 7 if abs(precise) < 1 else 7 - len(str(int(abs(precise))))
        if abs(float(cell) - precise) > 0.51 * 10.0**-decimals:
            wrong.append((table, quantity, cell, precise))
    assert not wrong
    assert_all_visited(visited)
