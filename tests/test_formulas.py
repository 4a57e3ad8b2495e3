"""Formulas in the convention of lme4 and brms."""

from __future__ import annotations

import pytest

import jaxmed as jm

MEDIATION = jm.Mediation(x="x", m="m", y="y", cluster="id")


def one(formula: str) -> jm.Equation:
    return jm.System.from_formulas([formula], cluster="id").equations[0]


def test_the_mediation_model():
    formulas = ["m ~ x + (1 + x | id)", "y ~ m + x + (1 + m + x | id)"]
    assert jm.System.from_formulas(formulas) == MEDIATION.system()


def test_options_are_passed_on():
    formulas = ["m1 ~ x + (1 | id)", "m2 ~ x + (1 | id)"]
    system = jm.System.from_formulas(formulas, covariance="diagonal", residuals=[["m1", "m2"]])
    assert (system.covariance, system.residuals) == ("diagonal", (("m1", "m2"),))


@pytest.mark.parametrize(
    ("formula", "predictors", "random"),
    [
        ("y ~ x", ("1", "x"), ()),
        ("y ~ 1", ("1",), ()),
        ("y ~ 0 + x + (0 + x | id)", ("x",), ("x",)),
        ("y ~ x - 1", ("x",), ()),
        ("y ~ x + (x | id)", ("1", "x"), ("1", "x")),
        ("y ~ m*w + (1 | id)", ("1", "m", "w", "m:w"), ("1",)),
        ("y ~ m:w + (1 | id)", ("1", "m:w"), ("1",)),
        ("y ~ within(x) + between(x) + (within(x) | id)", ("1", "within(x)", "between(x)"), ("1", "within(x)")),
        ("y ~ x:within(w) + (1 | id)", ("1", "x:within(w)"), ("1",)),
        ("y ~ site[B] + x:site[C d] + (1 | id)", ("1", "site[B]", "x:site[C d]"), ("1",)),
        ("y ~ `a b` + `a/b` + x.1 + (1 | id)", ("1", "a b", "a/b", "x.1"), ("1",)),
        ("y ~ (a + b + c) + (1 | id)", ("1", "a", "b", "c"), ("1",)),
    ],
)
def test_terms(formula, predictors, random):
    equation = one(formula)
    assert (equation.outcome, equation.predictors, equation.random) == ("y", predictors, random)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ log(x) + (1 | id)", r"is not understood at '\(x\) .* nothing is evaluated; make other terms columns"),
        ("y ~ np.log(x) + (1 | id)", r"is not understood at '\(x\)"),
        ("log(y) ~ x + (1 | id)", r"is not understood at '\(y\)"),
        ("y ~ C(g) + (1 | id)", r"is not understood at '\(g\)"),
        ("y ~ offset(z) + (1 | id)", r"is not understood at '\(z\)"),
        ("y ~ notwithin(z) + (1 | id)", r"has 'notwithin\(z\)': columns, products"),
        ("y ~ x + 2 + (1 | id)", r"is not understood at '2 \+"),
        ("y ~ x**2 + (1 | id)", r"is not understood at '\*\*2"),
        ("y ~ (x + w)**1 + (1 | id)", r"is not understood at '\*\*1"),
        ("y ~ x + (1 | id/site)", r"is not understood at '/site"),
        ("y ~ m x + (1 | id)", "is not understood at 'x"),
        ("y ~ m , x + (1 | id)", "is not understood at ', x"),
        ("y ~ m == 3 + (1 | id)", "is not understood at '== 3"),
        ("y ~ m < x + (1 | id)", "is not understood at '< x"),
        ("y ~ m + 1 | id", r"is not understood at '\| id"),
        ("y ~ 'm' + (1 | id)", "is not understood at \"'m'"),
        ("y ~ `a:b` + (1 | id)", "is not understood at '`a:b`"),
        ("y ~ x (1 | id)", r"is not understood at '\(1"),
        ("y ~ x + (1 | id) + (0 + x | id)", r"more than one \|"),
        ("y ~ x + (x || id)", r"more than one \|"),
        ("y ~ x + (1 | id", "cannot be read"),
        ("x + (1 | id)", "is not a formula"),
        (3, "3 is not a formula"),
        ("y ~ x ~ z", "is not a formula"),
        ("y ~ 0 + x + (x | id)", "'1' is random in the equation of 'y' but not among its predictors"),
        ("y ~ x + (z | id)", "'z' is random in the equation of 'y'"),
        ("y ~ x + (1 | other)", r"name the clusters \['other', 'id'\]"),
        ("y ~ y + (1 | id)", "'y' is both the outcome and a predictor"),
    ],
)
def test_refusals(formula, message):
    with pytest.raises(jm.SpecError, match=message):
        one(formula)


def test_a_cluster_must_be_named():
    with pytest.raises(jm.SpecError, match="have no random part that names the cluster"):
        jm.System.from_formulas(["y ~ x"])
    with pytest.raises(jm.SpecError, match=r"name the clusters \['id', 'site'\]"):
        jm.System.from_formulas(["m ~ x + (1 | id)", "y ~ m + (1 | site)"])


def test_a_fit_from_formulas_is_the_same_fit():
    data = jm.datasets.load_example()
    formulas = ["m ~ x + (1 + x | id)", "y ~ m + x + (1 + m + x | id)"]
    found = jm.fit(data, jm.System.from_formulas(formulas))
    assert found.params.equals(jm.fit(data, MEDIATION).params)
