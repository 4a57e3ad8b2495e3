"""Specifications: names, groups, circles, equality, and which columns may be shifted."""

from __future__ import annotations

from itertools import chain, combinations, product

import numpy as np
import pytest

import jaxmed as jm
from jaxmed._model.data_facts import DataFacts
from jaxmed._model.estimands import Path
from jaxmed._model.mediation import check_spec, from_dict

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}


def subsets(names):
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


# Names ---------------------------------------------------------------------------------------------------------------


def test_labels_follow_the_order_of_the_predictors_also_for_random_effects():
    equation = jm.Equation("y", ["1", "m", "x"], random=["x", "1"])
    assert equation.labels == ("y~1", "y~m", "y~x")
    assert equation.random_labels == ("y~1", "y~x")
    assert equation.columns == ("m", "x", "y")


def test_mediation_is_two_equations_with_everything_random():
    system = jm.Mediation(x="stress", m="sleep", y="mood", cluster="person").system()
    assert system.outcomes == ("sleep", "mood")
    assert system.labels == ("sleep~1", "sleep~stress", "mood~1", "mood~sleep", "mood~stress")
    assert system.random_labels == system.labels
    assert system.columns == ("stress", "sleep", "mood")
    assert system.groups == (("stress", "sleep"), ("sleep", "stress", "mood"))
    assert system.cluster == "person"


def test_mediation_paths_name_labels_of_the_system():
    model = jm.Mediation(x="p", m="q", y="r", cluster="id")
    paths = model.estimands(DataFacts()).paths
    assert paths == {name: Path(((label, ()),)) for name, label in {"a": "q~p", "b": "r~q", "c_prime": "r~p"}.items()}
    assert {label for path in paths.values() for label, _ in path.pieces} <= set(model.system().labels)


@pytest.mark.parametrize(
    ("random", "labels"),
    [
        ("all", ("m~1", "m~x", "y~1", "y~m", "y~x")),
        ("none", ()),
        ({"m": ["x"]}, ("m~x",)),
        ({"y": ["m", "1"], "m": ["1"]}, ("m~1", "y~1", "y~m")),
        ({}, ()),
    ],
)
def test_mediation_random(random, labels):
    assert jm.Mediation(**ROLES, random=random).system().random_labels == labels


def test_labels_are_distinct_or_refused():
    equations = [jm.Equation("a", ["1", "b~c"]), jm.Equation("a~b", ["1", "c"])]
    try:
        labels = jm.System(equations, cluster="id").labels
    except jm.SpecError:
        return
    assert len(set(labels)) == len(labels)


# Equality and plain data ---------------------------------------------------------------------------------------------

MODELS = [
    jm.Mediation(**ROLES),
    jm.Mediation(**ROLES, random="none", covariance="diagonal"),
    jm.Mediation(**ROLES, random={"m": ["1", "x"], "y": ["m"]}, covariance="block"),
    jm.System([jm.Equation("y", ["x"])], cluster="id"),
    jm.System([jm.Equation("m", ["1", "x"], ["x"]), jm.Equation("y", ["m"], ["m"])], "id", "diagonal"),
    jm.System([jm.Equation("m", ["1", "x"], ["x"]), jm.Equation("y", ["m"], ["m"])], "id", [["y~m"], ["m~x"]]),
    jm.System([jm.Equation("m", ["1", "x"]), jm.Equation("y", ["x"])], "id", residuals=[["y", "m"]]),
    jm.System([jm.Equation("m", ["1", "x"], level=2), jm.Equation("y", ["m", "m:x", "between(x)"])], "id"),
]


@pytest.mark.parametrize("model", MODELS)
def test_plain_data_round_trip(model):
    again = from_dict(model.to_dict())
    assert again == model
    assert hash(again) == hash(model)
    assert type(again) is type(model)


def test_models_that_differ_are_unequal_and_usable_as_keys():
    assert len({model: at for at, model in enumerate(MODELS)}) == len(MODELS)
    assert jm.Equation("y", ["1", "x"], ["1"]) != jm.Equation("y", ["1", "x"], ["x"])
    assert jm.Equation("y", ["1", "x"], ["1"]) == jm.Equation("y", ("1", "x"), random=("1",))


def test_the_order_of_random_columns_does_not_matter_for_equality():
    one, other = (jm.Mediation(**ROLES, random={"m": names}) for names in (["1", "x"], ["x", "1"]))
    assert one.system() == other.system()
    assert one == other


def test_models_cannot_be_changed():
    with pytest.raises(AttributeError):
        MODELS[0].x = "other"
    with pytest.raises(AttributeError):
        jm.Equation("y", ["1"]).outcome = "z"


@pytest.mark.parametrize("plain", [{}, {"kind": "path"}])
def test_unknown_kind_is_refused(plain):
    with pytest.raises(jm.SpecError, match="is not known to this version"):
        from_dict(plain)


@pytest.mark.parametrize("value", ["y ~ x", None, jm.Mediation, 3])
def test_only_models_are_models(value):
    with pytest.raises(jm.SpecError, match=r"must be a jaxmed\.Mediation or jaxmed\.System"):
        check_spec(value)


# Contradictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("y", []), "has no predictors"),
        (("y", "x"), "must be a list of column names"),
        (("y", 3), "must be a list of column names"),
        (("y", ["1", "x", "x"]), "names 'x' more than once"),
        (("y", ["1", "y"]), "both the outcome and a predictor"),
        (("1", ["x"]), "stands for the intercept"),
        (("", ["x"]), "must be a column name"),
        ((0, ["x"]), "must be a column name"),
        (("y", ["1", 2]), "got 2 of type int"),
        (("y", ["1", "x"], ["z"]), "'z' is random .* not (among its|a) predictor"),
        (("y", ["x"], ["1"]), "'1' is random .* not (among its|a) predictor"),
        (("y", ["1"], "1"), "must be a list of column names"),
    ],
)
def test_equation_refuses(arguments, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.Equation(*arguments)


def equations(*pairs):
    return [jm.Equation(outcome, predictors.split()) for outcome, predictors in pairs]


@pytest.mark.parametrize(
    "pairs",
    [
        [("m", "1 y"), ("y", "1 m")],
        [("p", "r"), ("q", "p"), ("r", "q")],
        [("s", "1 p"), ("p", "r"), ("q", "p"), ("r", "q"), ("t", "1")],
    ],
)
def test_circles_are_refused(pairs):
    with pytest.raises(jm.SpecError, match="predict each other in a circle"):
        jm.System(equations(*pairs), cluster="id")


def test_chains_in_any_order_are_accepted():
    chain_ = equations(("r", "1 q p"), ("p", "1"), ("q", "1 p"))
    assert jm.System(chain_, cluster="id").outcomes == ("r", "p", "q")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jm.System([], "id"), "at least one Equation"),
        (lambda: jm.System(["y ~ x"], "id"), "at least one Equation"),
        (lambda: jm.System(equations(("y", "1"), ("y", "x")), "id"), "outcome of two equations"),
        (lambda: jm.System(equations(("y", "1 id")), "id"), "cluster id and also a variable"),
        (lambda: jm.System(equations(("y", "1")), "y"), "cluster id and also a variable"),
        (lambda: jm.System(equations(("y", "1")), None), "cluster must be a column name"),
        (lambda: jm.System(equations(("y", "1")), "id", "free"), "covariance='free' is not known"),
        (lambda: jm.Mediation(x="x", m="1", y="y", cluster="id"), "m='1' is a term, not a column"),
        (lambda: jm.Mediation(x="x", m="m", y="y", cluster="y"), "y and cluster are the same column 'y'"),
        (lambda: jm.Mediation(**ROLES, random={"m": ["m"]}), "not (among its|a) predictor"),
        (lambda: jm.Mediation(**ROLES, random={"m": "x"}), "must be a list of column names"),
    ],
)
def test_contradictions_are_refused(make, message):
    with pytest.raises(jm.SpecError, match=message):
        make()


@pytest.mark.parametrize("value", [None, 3])
def test_system_of_no_list_is_refused(value):
    with pytest.raises(jm.SpecError, match=rf"equations must be a list such as \[Equation.*got {value}"):
        jm.System(value, cluster="id")


def test_one_equation_needs_no_list():
    assert jm.System(jm.Equation("y", ["1"]), "id") == jm.System([jm.Equation("y", ["1"])], "id")


# Centring ------------------------------------------------------------------------------------------------------------
# The oracle asks, with numbers, whether the mean space and the family of covariance matrices stay the same when a
# constant is taken off one column: nothing in it knows about intercepts.


def design(equation, columns, rows):
    names = [*equation.predictors]
    return np.column_stack([np.ones(rows) if name == "1" else columns[name] for name in names])


def spaces(system, columns, rows):
    """Basis of the stacked mean space, and of the span of the covariance matrices of two clusters side by side."""
    total = rows * len(system.equations)
    means, effects = [], []
    for e, equation in enumerate(system.equations):
        block = np.zeros((total, len(equation.predictors)))
        block[e * rows : (e + 1) * rows] = design(equation, columns, rows)
        means.append(block)
        effects += [(e, block[:, equation.predictors.index(name)]) for name in equation.random]
    half = np.arange(total) % rows < rows // 2
    same_cluster = half[:, None] == half
    family = [np.diag((np.arange(total) // rows == e).astype(float)).ravel() for e in range(len(system.equations))]
    for k, (one, z) in enumerate(effects):
        for at, (other, w) in enumerate(effects[: k + 1]):
            if isinstance(system.covariance, str):
                free = {"unstructured": True, "block": one == other, "diagonal": at == k}[system.covariance]
            else:
                free = any({system.random_labels[k], system.random_labels[at]} <= set(g) for g in system.covariance)
            if free:
                family.append(((np.outer(z, w) + np.outer(w, z)) * same_cluster).ravel())
    return np.column_stack(means), np.column_stack(family)


def rank(matrix):
    return np.linalg.matrix_rank(matrix, tol=1e-8)


def same_span(one, other):
    return rank(one) == rank(other) == rank(np.column_stack([one, other]))


def shift_is_harmless(system, name, rows=14):
    rng = np.random.default_rng(1)
    columns = {name: rng.normal(size=rows) for name in system.terms}  # a product is a column like any other
    moved = columns | {name: columns[name] - 0.7}
    (mean, family), (mean_moved, family_moved) = (spaces(system, values, rows) for values in (columns, moved))
    move = np.concatenate([np.full(rows, 0.7 * (equation.outcome == name)) for equation in system.equations])
    return (
        same_span(mean, mean_moved)
        and same_span(family, family_moved)
        and rank(np.column_stack([mean, move])) == rank(mean)
    )


@pytest.mark.parametrize("covariance", ["unstructured", "diagonal", "block"])
@pytest.mark.parametrize("predictors", [("1", "x"), ("x",), ("1", "x", "w"), ("x", "w")])
def test_centred_in_one_equation(predictors, covariance):
    for random in subsets(predictors):
        system = jm.System([jm.Equation("y", predictors, random)], "id", covariance)
        expected = {name for name in system.columns if shift_is_harmless(system, name)}
        assert system.centred == expected, (predictors, random, covariance)


@pytest.mark.parametrize("covariance", ["unstructured", "diagonal", "block"])
def test_centred_in_two_equations(covariance):
    """m is an outcome in one equation and a predictor in the other; both must take the shift."""
    for m_names, y_names in product([("1", "x"), ("x",)], [("1", "m", "x"), ("m", "x")]):
        for m_random, y_random in product(subsets(m_names), subsets(y_names)):
            equations_ = [jm.Equation("m", m_names, m_random), jm.Equation("y", y_names, y_random)]
            system = jm.System(equations_, "id", covariance)
            expected = {name for name in system.columns if shift_is_harmless(system, name)}
            assert system.centred == expected, (m_names, m_random, y_names, y_random, covariance)


@pytest.mark.parametrize("split", [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 1, 2, 0]])
@pytest.mark.parametrize("x", ["x", "x:w", "within(x)"])
def test_centred_with_groups_of_random_effects(split, x):
    labels = ["m~1", f"m~{x}", "y~1", "y~m"]
    groups = [[label for label, own in zip(labels, split, strict=True) if own == k] for k in sorted(set(split))]
    equations_ = [jm.Equation("m", ["1", x], ["1", x]), jm.Equation("y", ["1", "m", x], ["1", "m"])]
    system = jm.System(equations_, "id", groups)
    assert system.centred == {name for name in system.terms if shift_is_harmless(system, name)}


@pytest.mark.parametrize(
    ("predictors", "random", "covariance", "centred"),
    [
        (["1", "x"], [], "unstructured", {"x", "y"}),
        (["1", "x"], ["1", "x"], "unstructured", {"x", "y"}),
        (["1", "x"], ["1", "x"], "diagonal", {"y"}),
        (["1", "x"], ["1"], "diagonal", {"x", "y"}),
        (["1", "x"], ["x"], "unstructured", {"y"}),
        (["x"], [], "unstructured", set()),
        (["x"], ["x"], "block", set()),
    ],
)
def test_centred_by_hand(predictors, random, covariance, centred):
    assert jm.System([jm.Equation("y", predictors, random)], "id", covariance).centred == centred
