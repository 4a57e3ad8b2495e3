"""What a mediation model says: equations and labels, plain data, refusals, designs, summaries and saved fits."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm
from jaxmed._model.data_facts import DataFacts
from jaxmed._model.mediation import from_dict
from jaxmed._model.terms import factors

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
TWO = ROLES | {"m": ["m1", "m2"]}
THREE = ROLES | {"m": ["m1", "m2", "m3"]}


# Equations -----------------------------------------------------------------------------------------------------------


def predictors(model: jm.Mediation, facts: DataFacts | None = None) -> dict[str, tuple[str, ...]]:
    return {equation.outcome: equation.predictors for equation in model.system(facts).equations}


def random(model: jm.Mediation, facts: DataFacts | None = None) -> dict[str, tuple[str, ...]]:
    return {equation.outcome: equation.random for equation in model.system(facts).equations}


def level2(*names: str, **categories: tuple[str, ...]) -> DataFacts:
    return DataFacts(categories, frozenset(names))


@pytest.mark.parametrize(
    ("options", "m", "y"),
    [
        ({}, "1 x", "1 m x"),
        ({"covariates": ["age"]}, "1 x age", "1 m x age"),
        ({"covariates": "age"}, "1 x age", "1 m x age"),
        ({"covariates": {"y": ["age", "z"]}}, "1 x", "1 m x age z"),
        ({"covariates": {"m": "age"}}, "1 x age", "1 m x"),
        ({"covariates": {"y": ["age:z", "between(age)"]}}, "1 x", "1 m x age:z between(age)"),
        ({"covariates": {"m": ["within(age):z"]}}, "1 x within(age):z", "1 m x"),
        ({"moderators": {"w": "a"}}, "1 x w x:w", "1 m x"),
        ({"moderators": {"w": "b"}}, "1 x", "1 m x w m:w"),
        ({"moderators": {"w": "c_prime"}}, "1 x", "1 m x w x:w"),
        ({"moderators": {"w": ["a", "b"]}}, "1 x w x:w", "1 m x w m:w"),
        ({"moderators": "w"}, "1 x w x:w", "1 m x w m:w x:w"),
        ({"moderators": ["w", "v"]}, "1 x w v x:w x:v", "1 m x w v m:w m:v x:w x:v"),
        ({"moderators": {"w": "a", "v": ["b"]}}, "1 x w x:w", "1 m x v m:v"),
        ({"moderators": {"w": "b"}, "covariates": ["w", "age"]}, "1 x w age", "1 m x w m:w age"),
        ({"center": "cluster"}, "1 within(x) between(x)", "1 within(m) between(m) within(x) between(x)"),
        (
            {"center": "cluster", "moderators": {"w": "b"}},
            "1 within(x) between(x)",
            "1 within(m) between(m) within(x) between(x) w within(m):w between(m):w",
        ),
    ],
)  # fmt: skip
def test_equations_of_one_mediator(options, m, y):
    assert predictors(jm.Mediation(**ROLES, **options)) == {"m": tuple(m.split()), "y": tuple(y.split())}


@pytest.mark.parametrize(
    ("roles", "options", "expected"),
    [
        (TWO, {}, {"m1": "1 x", "m2": "1 x", "y": "1 m1 m2 x"}),
        (TWO, {"serial": True}, {"m1": "1 x", "m2": "1 m1 x", "y": "1 m1 m2 x"}),
        (THREE, {"serial": True}, {"m1": "1 x", "m2": "1 m1 x", "m3": "1 m1 m2 x", "y": "1 m1 m2 m3 x"}),
        (TWO, {"moderators": {"w": "a"}}, {"m1": "1 x w x:w", "m2": "1 x w x:w", "y": "1 m1 m2 x"}),
        (TWO, {"moderators": {"w": "a_m2"}}, {"m1": "1 x", "m2": "1 x w x:w", "y": "1 m1 m2 x"}),
        (TWO, {"moderators": {"w": "b"}}, {"m1": "1 x", "m2": "1 x", "y": "1 m1 m2 x w m1:w m2:w"}),
        (TWO, {"moderators": {"w": ["b_m1"]}}, {"m1": "1 x", "m2": "1 x", "y": "1 m1 m2 x w m1:w"}),
        (
            TWO,
            {"serial": True, "moderators": {"w": "d"}},
            {"m1": "1 x", "m2": "1 m1 x w m1:w", "y": "1 m1 m2 x"},
        ),
        (
            THREE,
            {"serial": True, "moderators": {"w": "d_m1_m3"}},
            {"m1": "1 x", "m2": "1 m1 x", "m3": "1 m1 m2 x w m1:w", "y": "1 m1 m2 m3 x"},
        ),
        (TWO, {"covariates": {"m2": ["age"]}}, {"m1": "1 x", "m2": "1 x age", "y": "1 m1 m2 x"}),
        (
            TWO,
            {"center": "cluster", "serial": True},
            {
                "m1": "1 within(x) between(x)",
                "m2": "1 within(m1) between(m1) within(x) between(x)",
                "y": "1 within(m1) between(m1) within(m2) between(m2) within(x) between(x)",
            },
        ),
    ],
)
def test_equations_of_several_mediators(roles, options, expected):
    assert predictors(jm.Mediation(**roles, **options)) == {k: tuple(v.split()) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("roles", "options", "groups"),
    [
        (ROLES, {}, ()),
        (TWO, {}, (("m1", "m2"),)),
        (THREE, {}, (("m1", "m2", "m3"),)),
        (TWO, {"residuals": "independent"}, ()),
        (TWO, {"serial": True}, ()),
    ],
)
def test_residuals_of_parallel_mediators_are_correlated(roles, options, groups):
    assert jm.Mediation(**roles, **options).system().residuals == groups


def test_a_list_of_one_mediator_is_the_mediator():
    assert jm.Mediation(**ROLES | {"m": ["m"]}) == jm.Mediation(**ROLES)


SITE = level2("site[B]", "site[C]", site=("A", "B", "C"))


def test_categories_become_indicators():
    model = jm.Mediation(**ROLES, covariates={"m": ["site"]}, moderators={"site": "b"}, reference={"site": "A"})
    assert predictors(model, SITE) == {
        "m": ("1", "x", "site[B]", "site[C]"),
        "y": ("1", "m", "x", "site[B]", "site[C]", "m:site[B]", "m:site[C]"),
    }
    other = jm.Mediation(**ROLES, covariates=["site"], reference={"site": "C"})
    assert predictors(other, SITE)["m"] == ("1", "x", "site[A]", "site[B]")


# Random effects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "facts", "m", "y"),
    [
        ({"covariates": ["age"]}, level2(), "1 x", "1 m x"),
        ({"moderators": "v"}, level2(), "1 x x:v", "1 m x m:v x:v"),
        ({"moderators": "w"}, level2("w"), "1 x", "1 m x"),
        ({"moderators": ["w", "v"]}, level2("w"), "1 x x:v", "1 m x m:v x:v"),
        ({"center": "cluster"}, level2(), "1 within(x)", "1 within(m) within(x)"),
        ({"center": "cluster", "moderators": {"v": "b"}}, level2(), "1 within(x)", "1 within(m) within(x) within(m):v"),
        ({"center": "cluster", "moderators": {"w": "b"}}, level2("w"), "1 within(x)", "1 within(m) within(x)"),
        ({"moderators": {"g": "a"}, "reference": {"g": "n"}}, level2(g=("n", "y")), "1 x x:g[y]", "1 m x"),
        ({"moderators": {"site": "a"}, "reference": {"site": "A"}}, SITE, "1 x", "1 m x"),
        ({"random": "none", "moderators": "v"}, level2(), "", ""),
        ({"random": {"y": ["m"]}}, level2(), "", "m"),
        ({"random": {"m": ["x", "age"], "y": ["age"]}, "covariates": ["age"]}, level2(), "x age", "age"),
        ({"random": {"m": ["x:v", "1"]}, "moderators": {"v": "a"}}, level2(), "1 x:v", ""),
        (
            {"random": {"m": ["1", "site[B]"]}, "covariates": {"m": ["site"]}, "reference": {"site": "A"}},
            level2(site=("A", "B", "C")),
            "1 site[B]",
            "",
        ),
        ({"random": {"m": ["within(x)"], "y": ["1"]}, "center": "cluster"}, level2(), "within(x)", "1"),
        ({"random": {"y": ["1", "between(x)"]}, "center": "cluster"}, level2(), "", "1"),
        ({"random": {"m": ["1", "x"], "y": ["m"]}}, level2("x"), "1", "within(m)"),
        ({"random": {"m": ["1", "x"], "y": ["m"]}, "center": "none"}, level2("x"), "1", "m"),
        ({"random": {"m": ["1"], "y": ["1", "m"]}}, level2("x", "m"), "", "1"),
        ({"random": {"m": ["1", "x:w"]}, "moderators": {"w": "a"}}, level2("w"), "1 x:w", ""),
        ({}, level2("x"), "1", "1 within(m)"),
        ({"center": "none"}, level2("x"), "1", "1 m"),
        ({}, level2("x", "m"), "", "1"),
    ],
)  # fmt: skip
def test_random_effects(options, facts, m, y):
    """All: intercepts, paths, and products whose factors all vary within clusters; covariates only by name."""
    assert random(jm.Mediation(**ROLES, **options), facts) == {"m": tuple(m.split()), "y": tuple(y.split())}


def test_covariance_groups_follow_the_data():
    """Random effects that the data cannot show leave their group; those that are shown keep theirs."""
    groups = [["m~1", "y~1"], ["m~x", "y~m"], ["y~x"]]
    system = jm.Mediation(**ROLES, covariance=groups).system(level2("x"))
    assert system.random_labels == ("m~1", "y~1", "y~within(m)")
    assert system.random_pairs == ((0, 0), (1, 0), (1, 1), (2, 2))
    free = jm.Mediation(**ROLES, covariance=groups).system()
    assert len(free.random_pairs) == 7


def test_random_effects_of_categories():
    """Slopes of indicators and of their products by name, and their covariances by group."""
    model = jm.Mediation(
        **ROLES,
        random={"m": ["1", "g[y]"], "y": ["1", "m:g[y]"]},
        covariates={"m": ["g"]},
        moderators={"g": "b"},
        reference={"g": "n"},
        covariance=[["m~1", "m~g[y]"], ["y~1"], ["y~m:g[y]"]],
    )
    system = model.system(level2(g=("n", "y")))
    assert system.random_labels == ("m~1", "m~g[y]", "y~1", "y~m:g[y]")
    assert system.random_pairs == ((0, 0), (1, 0), (1, 1), (2, 2), (3, 3))


def test_random_effects_of_a_category_that_is_not_there():
    model = jm.Mediation(**ROLES, random={"m": ["site[Z]"]}, covariates=["site"], reference={"site": "A"})
    with pytest.raises(
        jm.SpecError, match=r"'site\[Z\]' is random in the equation of 'm' but not among its predictors"
    ):
        model.system(SITE)


def test_all_coefficients_written_out_are_all():
    model = jm.Mediation(**ROLES, random={"m": ["x", "1"], "y": ["m", "x", "1"]})
    assert model == jm.Mediation(**ROLES)
    assert model.random == "all"


# Designs -------------------------------------------------------------------------------------------------------------


def test_equations_of_the_cluster():
    """2-2-1: the mediator's equation has level 2; parallel mediators of different levels share no residuals."""
    levels = {e.outcome: e.level for e in jm.Mediation(**ROLES).system(level2("x", "m")).equations}
    assert levels == {"m": 2, "y": 1}
    mixed = jm.Mediation(**THREE).system(level2("x", "m1"))
    assert [e.level for e in mixed.equations] == [2, 1, 1, 1]
    assert mixed.residuals == (("m2", "m3"),)
    both = jm.Mediation(**THREE).system(level2("x", "m1", "m3"))
    assert both.residuals == (("m1", "m3"),)


@pytest.mark.parametrize(
    ("roles", "options", "fixed", "message"),
    [
        (ROLES, {}, "y", r"the outcome 'y' does not vary within clusters \(an x-m-2 design\)"),
        (ROLES, {}, "m y", r"the outcome 'y' does not vary .* multilevel structural equation modelling"),
        (ROLES, {}, "x y", r"x-m-2 design"),
        (ROLES, {}, "m", r"'m' does not vary within clusters but 'x' does \(a 1-2-1 design\).*cluster means of 'x'"),
        (TWO, {}, "m2", r"'m2' does not vary within clusters but 'x' does"),
        (TWO, {"serial": True}, "x m2", r"'m2' does not vary within clusters but 'm1' does"),
        (ROLES, {"center": "cluster"}, "m", r"'m' does not vary within clusters but 'x' does"),
        (ROLES, {"covariates": ["age"]}, "x m", r"'age' varies within clusters; use 'between\(age\)' or leave it out"),
        (ROLES, {"moderators": {"v": "a"}}, "x m", r"its equation has one row per cluster, but 'v' varies within"),
    ],
)
def test_designs_that_observed_variables_cannot_answer(roles, options, fixed, message):
    with pytest.raises(jm.DataError, match=message):
        jm.Mediation(**roles, **options).system(level2(*fixed.split()))


def test_notes():
    """One sentence for each variable of the cluster, of what it changes."""
    model = jm.Mediation(**ROLES)
    assert model.notes(level2()) == ()
    (only,) = model.notes(level2("x"))
    fixed = "'x' does not vary within clusters: its slope cannot vary between clusters and is fixed"
    assert only.startswith(f"{fixed}; it can move 'm' only between clusters, so 'm' is split")
    assert jm.Mediation(**ROLES, center="none").notes(level2("x")) == (fixed,)
    x, m = model.notes(level2("x", "m"))
    assert x == fixed
    assert m.startswith("'m' does not vary within clusters: its equation has one row per cluster")
    centred = jm.Mediation(**ROLES, center="cluster").notes(level2("x"))
    assert "so there are no within effects" in centred[0]


# Plain data ----------------------------------------------------------------------------------------------------------

MODELS = [
    jm.Mediation(**ROLES),
    jm.Mediation(**ROLES, covariates=["age", "z"]),
    jm.Mediation(**ROLES, covariates={"m": ["age"], "y": ["age:z", "between(age)"]}),
    jm.Mediation(**ROLES, moderators="w"),
    jm.Mediation(**ROLES, moderators={"w": "a", "v": ["b", "c_prime"]}),
    jm.Mediation(**ROLES, center="cluster"),
    jm.Mediation(**ROLES, center="cluster", moderators={"w": "b"}, random={"m": ["within(x)"]}),
    jm.Mediation(**ROLES, covariates=["site"], reference={"site": "A"}),
    jm.Mediation(**ROLES, covariates=["site"], reference={"site": "A"}, random={"m": ["1", "site[B]"]}),
    jm.Mediation(**ROLES, moderators={"site": "a"}, reference={"site": "A"}),
    jm.Mediation(**ROLES, moderators={"g": "a"}, reference={"g": 1}),
    jm.Mediation(**ROLES, covariance=[["m~1", "y~1"], ["m~x", "y~m"], ["y~x"]]),
    jm.Mediation(**ROLES, random="none", covariance="diagonal"),
    jm.Mediation(**TWO),
    jm.Mediation(**TWO, residuals="independent", covariance="block"),
    jm.Mediation(**TWO, serial=True, moderators={"w": "d"}),
    jm.Mediation(**THREE, serial=True, center="cluster", covariates={"m3": "age"}),
]


@pytest.mark.parametrize("model", MODELS, ids=range(len(MODELS)))
def test_plain_data_round_trip(model):
    """Through JSON, as a saved fit does."""
    again = from_dict(json.loads(json.dumps(model.to_dict())))
    assert again == model
    assert hash(again) == hash(model)
    assert repr(again) == repr(model)


def test_models_that_differ_are_unequal():
    assert len(set(MODELS)) == len(MODELS)


@pytest.mark.parametrize("lost", ["x", "cluster"])
def test_incomplete_plain_data(lost):
    plain = MODELS[0].to_dict()
    del plain[lost]
    with pytest.raises(jm.SpecError, match="this saved mediation is not complete"):
        from_dict(plain)


def test_models_are_read_without_being_told_the_columns():
    """Columns to read: those of the equations, the categorical one once, with no category known but the reference."""
    model = jm.Mediation(**ROLES, covariates=["age", "site"], reference={"site": "A"})
    assert model.categorical == ("site",)
    assert {factor.column.partition("[")[0] for name in model.columns for factor in factors(name)} == {
        "x",
        "m",
        "y",
        "age",
        "site",
    }


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "options", "message"),
    [
        ({"m": []}, {}, "m is an empty list; name at least one mediator"),
        ({"m": ["m1", "m1"]}, {}, r"m\[0\] and m\[1\] are the same column 'm1'"),
        ({"m": ["m1", "x"]}, {}, "are the same column 'x'"),
        ({"m": None}, {}, "m must be a column name"),
        ({"m": ["m1", 2]}, {}, r"m\[1\] must be a column name .* got 2 of type int"),
        ({"x": "x:z"}, {}, "x='x:z' is a term, not a column"),
        ({"m": "within(m)"}, {}, r"m='within\(m\)' is a term, not a column"),
        ({"cluster": "x"}, {}, "x and cluster are the same column 'x'"),
        ({"x": "^x$"}, {}, "read as a pattern"),
        ({}, {"center": "grand"}, "center='grand' is not known; choose 'cluster' or 'none' or leave it out"),
        ({}, {"center": True}, "center=True is not known"),
        ({}, {"serial": "yes"}, "serial='yes' must be True or False"),
        ({}, {"serial": True}, r"serial=True needs at least two mediators, m=\['m1', 'm2'\]"),
        ({}, {"residuals": "free"}, "residuals='free' is not known; choose 'correlated' or 'independent'"),
        ({}, {"covariance": "free"}, "covariance='free' is not known; choose one of"),
        ({}, {"covariance": 3}, "covariance=3 is not known"),
        ({}, {"covariance": [["m~1"], [3]]}, "covariance has 3; list labels of random effects such as 'm~x'"),
        ({}, {"covariance": [["m~1"], ["m~1"]]}, "covariance lists 'm~1' twice"),
        ({}, {"covariance": [["m~1", "m~x", "y~1", "y~m"]]}, "'y~x' is missing from its list of"),
        ({}, {"covariance": [["m~1", "m~x", "y~1", "y~m", "y~x", "z"]]}, "'z' is not one of"),
        # reference
        ({}, {"reference": "A"}, r"reference must be a dict such as \{'site': 'A'\}; got 'A'"),
        ({}, {"reference": {"site": ["A"]}, "covariates": ["site"]}, r"reference\['site'\] must be one category"),
        ({}, {"reference": {"site": None}, "covariates": ["site"]}, r"reference\['site'\] must be one category"),
        ({}, {"reference": {3: "A"}}, "every key of reference must be a column name"),
        ({}, {"reference": {"site": "A"}}, "reference names 'site', which is neither x nor a covariate"),
        ({}, {"reference": {"y": "A"}}, "reference names 'y', but of x, m, y and cluster only x may be categorical"),
        # moderators
        ({}, {"moderators": {"w": "d"}}, r"moderators\['w'\]='d': choose paths from \['a', 'b', 'c_prime'\]"),
        ({}, {"moderators": {"w": []}}, r"moderators\['w'\]=\[\]: choose paths from"),
        ({}, {"moderators": {"w": None}}, r"moderators\['w'\]=None: choose paths from"),
        ({}, {"moderators": {"w": ["a", "c"]}}, r"choose paths from"),
        ({"m": ["m1", "m2"]}, {"moderators": {"w": "a_m3"}}, r"'a', 'b', 'c_prime', 'a_m1', 'a_m2', 'b_m1', 'b_m2'"),
        ({}, {"moderators": {"w:v": "a"}}, "the moderator 'w:v' is not a single column"),
        ({}, {"moderators": "between(w)"}, r"the moderator 'between\(w\)' is not a single column"),
        ({}, {"moderators": {"1": "a"}}, "the moderator '1' is not a single column"),
        ({}, {"moderators": {"x": "b"}}, "'x' is x, m, y or cluster of this model and cannot moderate its paths"),
        ({}, {"moderators": "id"}, "'id' is x, m, y or cluster of this model"),
        ({}, {"moderators": 3}, "moderators must be a list of column names"),
        ({}, {"moderators": ["w", "w"]}, "moderators names 'w' more than once"),
        ({}, {"moderators": {3: "a"}}, "every moderator must be a column name"),
        # covariates
        ({}, {"covariates": {"z": ["age"]}}, r"covariates has the key 'z'; the outcomes of this model are"),
        ({}, {"covariates": ["1"]}, r"covariates\['m'\] has the intercept; list other columns only"),
        ({}, {"covariates": ["x"]}, r"covariates\['m'\] has 'x', x, m, y or cluster of this model"),
        ({}, {"covariates": {"y": ["age:m"]}}, r"covariates\['y'\] has 'm', x, m, y or cluster of this model"),
        ({}, {"covariates": ["id"]}, r"has 'id', x, m, y or cluster of this model"),
        ({}, {"covariates": 3}, "covariates must be a list of column names"),
        ({}, {"covariates": {"m": 3}}, r"covariates\['m'\] must be a list of column names"),
        ({}, {"covariates": ["age", "age"]}, "covariates names 'age' more than once"),
        ({}, {"covariates": ["age:z", "z:age"]}, "covariates names 'z:age' more than once"),
        ({}, {"covariates": ["age:"]}, "a column in the term 'age:' must be a column name"),
        ({}, {"covariates": ["within(age:z)"]}, r"the term 'within\(age:z\)' is not understood"),
        ({}, {"covariates": ["within(within(age))"]}, "is not understood"),
        ({}, {"covariates": ["age:1"]}, "is not understood; write a column, a product such as 'x:w'"),
        ({}, {"covariates": ["w:x"], "moderators": {"w": "a"}}, "has 'x', x, m, y or cluster of this model"),
        (
            {},
            {"covariates": ["age:site"], "reference": {"site": "A"}},
            "the covariate 'age:site' multiplies the categorical column 'site'",
        ),
        # random
        ({}, {"random": "some"}, r"random='some' is not known; .* a dict such as \{'m': \['1', 'x'\]"),
        ({}, {"random": ["x"]}, "random must be 'all', 'none' or a dict from outcome to columns"),
        ({}, {"random": {"x": ["1"]}}, r"random has the key 'x'; the outcomes of this model are \['m', 'y'\]"),
        ({}, {"random": {"m": "x"}}, r"random\['m'\] must be a list of column names"),
        ({}, {"random": {"m": ["age"]}}, r"random\['m'\] has 'age', which is not a predictor of 'm'; choose from"),
        ({}, {"random": {"m": ["x", "x"]}}, r"random\['m'\] names 'x' more than once"),
        ({}, {"random": {"m": ["x"]}, "center": "cluster"}, r"choose from \['1', 'within\(x\)', 'between\(x\)'\]"),
    ],
)  # fmt: skip
def test_contradictions(roles, options, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.Mediation(**ROLES | roles, **options)


def test_effects_need_distinct_names():
    """The route through p and q, and the one through p_q."""
    with pytest.raises(jm.SpecError, match="two effects would be called 'indirect_p_q'; rename a mediator"):
        jm.Mediation(**ROLES | {"m": ["p", "q", "p_q"]}, serial=True)


def test_categories_come_from_data():
    model = jm.Mediation(**ROLES, covariates=["site"], reference={"site": "A"})
    with pytest.raises(jm.SpecError, match="the categories of 'site' are only known from data"):
        model.system()
    with pytest.raises(jm.DataError, match=r"reference\['site'\]='A' is not among the categories .* \['B', 'C'\]"):
        model.system(DataFacts({"site": ("B", "C")}))
    with pytest.raises(jm.DataError, match="column 'site' has the single category 'A'; leave it out of the model"):
        model.system(DataFacts({"site": ("A",)}))


@pytest.mark.parametrize(
    ("equation", "message"),
    [
        ({"outcome": "m:x", "predictors": ["1"]}, "the outcome 'm:x' is a term of several columns"),
        ({"outcome": "m", "predictors": ["1", "x:m"]}, "both the outcome and a predictor"),
        ({"outcome": "m", "predictors": ["1", "x:w", "w:x"]}, "names 'w:x' more than once"),
        ({"outcome": "m", "predictors": ["1"], "level": 3}, "level=3 of 'm' is not known; 1 is the row, 2 the cluster"),
        ({"outcome": "m", "predictors": ["1"], "level": True}, "level=True of 'm' is not known"),
        ({"outcome": "m", "predictors": ["1"], "random": ["1"], "level": 2}, r"'m' belongs to the cluster \(level=2\)"),
    ],
)
def test_equations_refuse(equation, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.Equation(**equation)


@pytest.mark.parametrize(
    ("residuals", "message"),
    [
        ("m1", r"residuals must be a list of groups of outcomes such as \[\['m1', 'm2'\]\]; got 'm1'"),
        ([["m1", "q"]], "residuals names 'q'; the outcomes of this system are"),
        ([["m1", "m2"], ["m2", "y"]], "residuals names 'm2' in two groups; give each outcome once"),
        ([["m1", "y"]], "residuals of 'y' and 'm1' cannot be correlated: 'm1' is a predictor of 'y'"),
        ([["m1", "z"]], r"residuals of \['m1', 'z'\] cannot be correlated within rows: their levels differ"),
    ],
)
def test_residual_groups(residuals, message):
    equations = [jm.Equation(name, ["1", "x"]) for name in ("m1", "m2")]
    equations += [jm.Equation("y", ["1", "m1"]), jm.Equation("z", ["1"], level=2)]
    with pytest.raises(jm.SpecError, match=message):
        jm.System(equations, "id", residuals=residuals)


# Data that refuse ----------------------------------------------------------------------------------------------------

SMALL = {"random": {"m1": ["1"], "y": ["1"]}}
EXTENDED = {"x": "x", "m": "m1", "y": "y", "cluster": "id"}


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (jm.Mediation("x", "m1", "mc", "id"), jm.DataError, "the outcome 'mc' does not vary within clusters"),
        (jm.Mediation("xc", "m1", "mc", "id"), jm.DataError, "the outcome 'mc' does not vary within clusters"),
        (jm.Mediation("xc", "mc", "w", "id"), jm.DataError, "the outcome 'w' does not vary within clusters"),
        (jm.Mediation("x", "mc", "yc", "id"), jm.DataError, r"a 1-2-1 design"),
        (jm.Mediation("x", ["m1", "mc"], "y", "id"), jm.DataError, r"a 1-2-1 design"),
        (jm.Mediation("xc", "mc", "yc", "id", covariates=["age"]), jm.DataError, r"use 'between\(age\)'"),
        (
            jm.Mediation(**EXTENDED, covariates=["site"]),
            jm.DataError,
            r"'site' must be numeric.*categorical x, covariate or moderator name .* reference=\{'site': \.\.\.\}",
        ),
        (jm.Mediation(**EXTENDED, covariates=["site"], reference={"site": "D"}), jm.DataError, r"\['A', 'B', 'C'\]"),
        (jm.Mediation(**EXTENDED, covariates=["w", "nothing"]), jm.DataError, "there is no column 'nothing'"),
        (jm.Mediation(**EXTENDED, covariates=["age", "age10"]), jm.DataError, "'age10' is collinear with"),
        (
            jm.System([jm.Equation("m1", ["1", "x"], level=2)], "id"),
            jm.DataError,
            r"the equation of 'm1' has one row per cluster .* but 'x' varies .* use 'between\(x\)' or level=1",
        ),
        (
            jm.System([jm.Equation("mc", ["1", "xc"], ["1"])], "id"),
            jm.DataError,
            "'mc' does not vary within any cluster, .* give a cluster-level outcome an Equation with level=2",
        ),
    ],
)  # fmt: skip
def test_data_refuse(extended, model, error, message):
    with pytest.raises(error, match=message):
        jm.fit(extended, model)


def test_categories_of_data_that_are_none(extended):
    model = jm.Mediation(**EXTENDED, covariates=["g"], reference={"g": "A"})
    with pytest.raises(jm.DataError, match="column 'g' has no values: it is missing in every row"):
        jm.fit(extended.assign(g=None), model)
    with pytest.raises(jm.DataError, match="the categorical column 'g' has more than 100 categories"):
        jm.fit(extended.assign(g=np.arange(768)), model)
    with pytest.raises(jm.DataError, match="column 'g' has the single category 'A'"):
        jm.fit(extended.assign(g="A"), model)


def test_missing_values_can_be_refused(extended):
    model = jm.Mediation("x", "m1_miss", "y_miss", "id")
    with pytest.raises(jm.DataError, match=r"\{'m1_miss': 60, 'y_miss': 86\}, and missing='raise' allows none"):
        jm.fit(extended, model, missing="raise")
    holes = extended.assign(id=extended["id"].mask(extended.index == 3))
    with pytest.raises(jm.DataError, match=r"\{'id': 1\}, and missing='raise'"):
        jm.fit(holes, jm.Mediation(**EXTENDED), missing="raise")
    with pytest.raises(jm.SpecError, match=r"missing='drop' is not known; choose one of \['available', 'listwise'"):
        jm.fit(extended, model, missing="drop")


# Fits ----------------------------------------------------------------------------------------------------------------

AB = {"m1": ["1", "x"], "y": ["1", "m1"]}
FITTED = {
    "moderated": jm.Mediation("x", "m1", "y", "id", random=AB, moderators={"w": ["a"]}),
    "categorical": jm.Mediation(
        "x", "m1", "y", "id", random=AB, moderators={"site": "b", "tx": "a"}, reference={"site": "B"}
    ),
    "centred": jm.Mediation(
        "x", "m1", "y", "id", random={"m1": ["1", "within(x)"], "y": ["1", "within(m1)"]}, center="cluster"
    ),
    "parallel": jm.Mediation("x", ["m1", "m2"], "y", "id", random={"m1": ["1", "x"], "m2": ["1", "x"], "y": ["1"]}),
    "serial": jm.Mediation(
        "x", ["m1", "m2"], "y", "id", serial=True, random={"m1": ["1", "x"], "m2": ["1", "m1"], "y": ["1", "m2"]}
    ),
    "211": jm.Mediation("tx", "mt", "yt", "id"),
    "221": jm.Mediation("xc", "mc", "yc", "id"),
    "mixed": jm.Mediation("xc", ["mc", "mt"], "yc", "id", random={"mt": ["1"], "yc": ["1"]}),
}


@pytest.fixture(scope="module")
def fits(extended):
    """Fits by name, each made once; a design must be warned of."""
    known: dict[str, jm.Fit] = {}

    def get(name: str) -> jm.Fit:
        if name not in known and name in ("211", "221", "mixed"):
            with pytest.warns(jm.DesignWarning) as caught:
                known[name] = jm.fit(extended, FITTED[name])
            assert [str(warning.message) for warning in caught] == list(known[name].notes)
        elif name not in known:
            known[name] = jm.fit(extended, FITTED[name])
            assert known[name].notes == ()
        assert known[name].converged
        return known[name]

    return get


def test_211(fits):
    """The slope of a cluster's treatment cannot vary; that of the mediator within clusters may."""
    fit = fits("211")
    assert fit.system.random_labels == ("mt~1", "yt~1", "yt~within(mt)")
    assert [e.level for e in fit.system.equations] == [1, 1]
    assert len(fit.notes) == 1
    assert "'tx' does not vary within clusters" in fit.notes[0]
    table = fit.effects()
    indirect = fit.params["mt~tx"] * fit.params["yt~between(mt)"]
    assert table.loc["indirect", "estimate"] == pytest.approx(indirect, rel=1e-12)
    assert list(fit.ranef().columns[-4:]) == ["a", "a_se", "b_within", "b_within_se"]
    assert fit.ranef()["a"].nunique() == 1
    with pytest.raises(jm.FitError, match="no effect of this model varies between clusters"):
        fit.heterogeneity()


def test_221(fits, extended):
    """A row per cluster for the mediator."""
    fit = fits("221")
    assert fit.system.random_labels == ("yc~1",)
    assert [e.level for e in fit.system.equations] == [2, 1]
    assert fit.sample_summary.used == (90, 768)
    assert fit.nobs == 858
    assert len(fit.notes) == 2
    heterogeneity = fit.heterogeneity()
    assert heterogeneity.loc["sd_indirect"].tolist() == [0, 0, 0, 0]
    assert heterogeneity.loc["share_indirect_positive", "estimate"] == 1


def test_parallel_with_one_mediator_of_the_cluster(fits):
    fit = fits("mixed")
    assert [e.level for e in fit.system.equations] == [2, 1, 1]
    assert fit.system.residuals == ()
    assert fit.sample_summary.used == (90, 768, 768)
    assert {"indirect_mc", "indirect_mt", "indirect", "total"} <= set(fit.effects().index)


def test_notes_are_of_what_was_asked_for(extended):
    """Without a random slope of tx nothing is fixed against the user's word; with one it is, and said."""
    asked = {"yt": ["1", "mt"]}
    fit = jm.fit(extended, jm.Mediation("tx", "mt", "yt", "id", random=asked | {"mt": ["1"]}, center="none"))
    assert fit.notes == ()
    with pytest.warns(
        jm.DesignWarning, match="'tx' does not vary .* its slope cannot vary between clusters and is fixed"
    ):
        other = jm.fit(
            extended, jm.Mediation("tx", "mt", "yt", "id", random=asked | {"mt": ["1", "tx"]}, center="none")
        )
    assert other.system == fit.system


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("moderated", ["indirect, w = 0.1166", "total, w = 2.003", "index_w", "moderators: w: a"]),
        ("categorical", ["indirect, site = A, tx = 0", "index_tx, site = C", "m1~x:tx", "y~m1:site[A]"]),
        ("centred", ["indirect_within", "indirect_between", "contextual_indirect", "within: deviations"]),
        ("parallel", ["a_m1", "indirect_m2", "indirect_m1 - indirect_m2", "cov(residual m1,m2)", "x -> m1, m2 -> y"]),
        ("serial", ["d_m1_m2", "indirect_m1_m2", "cov(a_m1, d_m1_m2)", "x -> m1 -> m2 -> y", "d_m1_m2: m1 -> m2"]),
        ("211", ["Note: 'tx' does not vary within clusters", "b_between", "within: deviations"]),
        ("221", ["mc: 90, yc: 768", "Note: 'mc' does not vary within clusters"]),
        ("mixed", ["indirect_mc", "mc: 90, mt: 768, yc: 768"]),
    ],
)
def test_summaries(fits, name, shown):
    """Every effect and every coefficient is in the text and in the HTML, which is well formed."""
    fit = fits(name)
    text, html = fit.summary(), fit._repr_html_()
    plain = Text()
    plain.feed(html)
    assert plain.depth == 0
    for part in (*shown, *fit.params.index, *fit.system.random_labels):
        assert part in text
    assert str(fit) == text
    for part in (*fit.params.index, *(str(effect) for effect in fit.effects().index.get_level_values(0))):
        assert part in plain.text
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", text.lower())
    assert max(len(line) for line in text.splitlines()) <= 120
    for note in fit.notes:
        assert note[:60] in " ".join(text.split())


class Text(HTMLParser):
    """Text of an HTML fragment, and how many elements are left open."""

    def __init__(self):
        super().__init__()
        self.text, self.depth = "", 0

    def handle_starttag(self, tag, attrs):
        self.depth += tag not in ("br", "hr", "img")

    def handle_endtag(self, tag):
        self.depth -= 1

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", FITTED)
def test_json(fits, name):
    """Valid JSON without NaN; effects under their names, with the moderators as columns."""
    fit = fits(name)

    def refuse(constant):
        raise AssertionError(constant)

    plain = json.loads(fit.to_json(), parse_constant=refuse)
    effects = plain["effects"]["joint"]
    if FITTED[name].moderators:
        assert [row["effect"] for row in effects] == list(fit.effects().index.get_level_values(0))
        assert set(dict(FITTED[name].moderators)) <= set(effects[0])
    else:
        assert list(effects) == list(fit.effects().index)
    assert ("bauer" in plain["effects"]) == FITTED[name].is_simple(fit.facts)
    assert plain["notes"] == list(fit.notes)
    assert from_dict(plain["model"]) == FITTED[name]


@pytest.mark.parametrize("name", FITTED)
def test_saved_fits(fits, tmp_path, name):
    """Everything comes back: numbers to the last bit, as JSON keeps all digits."""
    fit = fits(name)
    fit.save(tmp_path / "fit.jm")
    again = jm.load(tmp_path / "fit.jm", verify=True)
    assert again.spec == fit.spec
    assert again.system == fit.system
    assert again.notes == fit.notes
    assert again.labels == fit.labels
    at = {"moderated": {"w": [-1, 0, 1]}, "categorical": {"site": ["C", "A"]}}.get(name)
    pd.testing.assert_frame_equal(again.effects(), fit.effects())
    pd.testing.assert_frame_equal(again.effects(at=at), fit.effects(at=at))
    if at:
        pd.testing.assert_frame_equal(again.effects(at=at, difference=True), fit.effects(at=at, difference=True))
    if name not in ("211", "mixed"):  # of effects between clusters only
        pd.testing.assert_frame_equal(again.heterogeneity(at=at), fit.heterogeneity(at=at))
    pd.testing.assert_frame_equal(again.ranef(), fit.ranef())
    pd.testing.assert_frame_equal(again.residual_cov, fit.residual_cov)
    assert again.summary() == fit.summary()
    assert again.to_json() == fit.to_json()


# Asking for effects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": [0]}, r"at=\[0\] must be a dict from moderator to values"),
        ({"at": {"v": [1]}}, r"at has the key 'v'; the moderators of this model are \['w'\]"),
        ({"at": {"w": []}}, r"at\['w'\] is empty; give at least one value"),
        ({"at": {"w": "low"}}, r"at\['w'\] has 'low'; give finite numbers"),
        ({"at": {"w": [np.nan]}}, r"at\['w'\] has nan; give finite numbers"),
        ({"at": {"w": np.inf}}, r"at\['w'\] has inf; give finite numbers"),
        ({"at": {"w": ["high"]}}, r"at\['w'\] has 'high'; give finite numbers"),
        ({"at": {"w": None}}, r"at\['w'\] has None; give finite numbers"),
        ({"at": {"w": [0, 1, 0.0]}}, r"at\['w'\]=\[0, 1, 0.0\] names a value twice"),
        ({"difference": 1}, "difference=1 must be True or False"),
        ({"difference": True, "at": {"w": 0}}, "difference=True .* two values"),
        (
            {"covariance": "sandwich"},
            r"covariance='sandwich' is not known; choose one of \['joint', 'bauer', 'robust'\]",
        ),
        ({"covariance": "bauer"}, "covariance='bauer' stands for the formulas of .* use covariance='joint'"),
        ({"level": 1}, "level=1 is not a confidence level"),
    ],
)
def test_effects_that_cannot_be_shown(fits, options, message):
    with pytest.raises(jm.SpecError, match=message):
        fits("moderated").effects(**options)


def test_effects_of_categories_that_are_not_there(fits):
    with pytest.raises(jm.SpecError, match=r"at\['site'\] has 'D'; the categories of 'site' are \['A', 'B', 'C'\]"):
        fits("categorical").effects(at={"site": ["A", "D"]})


def test_effects_without_moderators(fits):
    with pytest.raises(jm.SpecError, match="this model has no moderators, so effects do not depend on values of any"):
        fits("parallel").effects(at={"w": [1]})
    with pytest.raises(jm.SpecError, match="difference=True: this model has no moderators"):
        fits("parallel").effects(difference=True)
    for name in ("parallel", "centred", "serial"):
        with pytest.raises(jm.SpecError, match="for one mediator without moderators or centring"):
            fits(name).summary(covariance="bauer")


def test_effects_of_a_system(extended):
    fit = jm.fit(extended, jm.System(jm.Equation("y", ["1", "x"], ["1"]), "id"))
    for ask in (fit.effects, fit.heterogeneity):
        with pytest.raises(jm.FitError, match=r"effects are defined for a jaxmed\.Mediation"):
            ask()


def test_heterogeneity_of_a_predictor_without_deviations(extended):
    model = jm.Mediation("xc", "mc", "yc", "id", center="cluster")
    with pytest.warns(jm.DesignWarning, match="no within effects"):
        fit = jm.fit(extended, model)
    with pytest.raises(jm.FitError, match="no effect of this model varies between clusters"):
        fit.heterogeneity()


def test_order_of_effects(fits):
    """Paths, their covariances, specific effects, sums, contrasts."""
    assert list(fits("serial").effects().index)[:6] == ["a_m1", "a_m2", "d_m1_m2", "b_m1", "b_m2", "c_prime"]
    assert list(fits("parallel").effects().index) == [
        "a_m1",
        "a_m2",
        "b_m1",
        "b_m2",
        "c_prime",
        "cov_ab_m1",
        "cov_ab_m2",
        "indirect_m1",
        "indirect_m2",
        "indirect",
        "total",
        "indirect_m1 - indirect_m2",
    ]
