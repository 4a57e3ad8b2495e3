"""Effects, heterogeneity and cluster predictions against formulas written out by hand, plain NumPy on public numbers.

The formulas are of complex numbers, so that their derivatives for standard errors come from complex steps
(tests/dense.py), without any of jaxmed.effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, permutations

import dense
import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import multivariate_normal, norm

import jaxmed as jm
from jaxmed._inference.effects import expected_product
from jaxmed._model.data_facts import DataFacts

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
TWO = ROLES | {"m": ["m1", "m2"]}
EXACT = 1e-10  # relative: the same polynomials in another order of operations


class Parameters:
    """All parameters at a point, by label."""

    def __init__(self, labels, values):
        self.at = dict(zip(labels, values, strict=True))

    def __getitem__(self, label: str):
        return self.at[label]

    def s(self, one: str, other: str):
        """Covariance of two random effects, 0 if one of them does not vary."""
        return self.at.get(f"{one}~~{other}", self.at.get(f"{other}~~{one}", 0.0))


Formula = Callable[[Parameters], complex]


def values_of(fit: jm.Fit) -> tuple[list[str], np.ndarray]:
    """Labels and values of all parameters, from the public tables."""
    labels = list(fit.cov_params(full=True).index)
    values = []
    for label in labels:
        one, covariance, other = label.partition("~~")
        if not covariance:
            values.append(fit.params[label])
        else:
            table = fit.random_cov if one in fit.random_cov.index else fit.residual_cov
            values.append(table.loc[one, other])
    return labels, np.array(values)


def evaluate(fit: jm.Fit, formula: Formula) -> tuple[float, float]:
    """A formula's value and its standard error from the joint covariance."""
    labels, values = values_of(fit)
    slope = dense.gradient(lambda at: formula(Parameters(labels, at)), values.astype(complex))
    covariance = fit.cov_params("joint", full=True).to_numpy()
    return float(np.real(formula(Parameters(labels, values)))), float(np.sqrt(slope @ covariance @ slope))


def keys(table: pd.DataFrame) -> list:
    """The index with None for NaN, which equals nothing."""
    if not isinstance(table.index, pd.MultiIndex):
        return list(table.index)
    return [tuple(None if part != part else part for part in key) for key in table.index]


def assert_effects(fit: jm.Fit, table: pd.DataFrame, formulas: Mapping[object, Formula], level: float = 0.95) -> None:
    """Every row of a table of effects, and no other."""
    assert list(table.columns) == ["estimate", "se", "z", "p", "ci_lower", "ci_upper"]
    found = dict(zip(keys(table), table.to_numpy(), strict=True))
    assert len(found) == len(table)
    assert set(found) == set(formulas)
    for key, formula in formulas.items():
        value, se = evaluate(fit, formula)
        half = norm.ppf(0.5 + level / 2) * se
        with np.errstate(divide="ignore", invalid="ignore"):
            z = value / se if se > 0 else np.nan
        expected = [value, se, z, 2 * norm.sf(abs(z)), value - half, value + half]
        np.testing.assert_allclose(found[key], expected, rtol=1e-9, atol=1e-12, err_msg=str(key))


@pytest.fixture(scope="module")
def base(extended) -> jm.Fit:
    """One small fit, to be given other models and other numbers."""
    return jm.fit(extended, jm.System(jm.Equation("y", ["1", "x"], ["1"]), "id"))


def made_up(base: jm.Fit, model: jm.Mediation, facts: DataFacts | None = None, seed: int = 0, **defaults) -> jm.Fit:
    """A fit with numbers out of the air: effects are functions of these numbers alone, whatever they are."""
    rng = np.random.default_rng(seed)
    facts = facts or DataFacts()
    system = model.system(facts)
    n_random, n_residual = len(system.random_labels), len(system.outcomes) + len(system.residual_pairs)
    root = rng.normal(size=(n_random, n_random)) * 0.5
    g = root @ root.T
    values = np.concatenate(
        [
            rng.normal(size=len(system.labels)),
            [g[pair] for pair in system.random_pairs],
            rng.uniform(0.5, 2, n_residual),
        ]
    )
    root = rng.normal(size=(len(values), len(values))) * 0.1
    return replace(
        base,
        spec=model,
        facts=facts,
        free=system.random_pairs,
        values=values,
        joint=root @ root.T,
        moderator_values={name: tuple(found) for name, found in defaults.items()},
    )


# One mediator --------------------------------------------------------------------------------------------------------


def product(p: Parameters, one: str, other: str):
    """E[a_j b_j] = ab + cov(a_j, b_j)."""
    return p[one] * p[other] + p.s(one, other)


def test_one_mediator(base):
    fit = made_up(base, jm.Mediation(**ROLES))
    formulas = {
        "a": lambda p: p["m~x"],
        "b": lambda p: p["y~m"],
        "c_prime": lambda p: p["y~x"],
        "cov_ab": lambda p: p.s("m~x", "y~m"),
        "indirect": lambda p: p["m~x"] * p["y~m"] + p.s("m~x", "y~m"),
        "total": lambda p: p["m~x"] * p["y~m"] + p.s("m~x", "y~m") + p["y~x"],
    }
    assert_effects(fit, fit.effects(), formulas)
    assert_effects(fit, fit.effects(level=0.8), formulas, level=0.8)
    assert list(fit.effects().index) == list(formulas)
    pd.testing.assert_frame_equal(fit.intervals(level=0.9), fit.effects(level=0.9))


def test_fixed_slopes_have_no_covariance(base):
    fit = made_up(base, jm.Mediation(**ROLES, random={"m": ["1"], "y": ["1", "m"]}))
    table = fit.effects()
    assert table.loc["cov_ab", ["estimate", "se"]].tolist() == [0, 0]
    assert np.isnan(table.loc["cov_ab", "z"])
    assert table.loc["indirect", "estimate"] == pytest.approx(fit.params["m~x"] * fit.params["y~m"], rel=EXACT)


def test_covariance_held_at_zero(base):
    fit = made_up(base, jm.Mediation(**ROLES, covariance=[["m~1", "y~1"], ["m~x", "y~x"], ["y~m"]]))
    assert fit.effects().loc["cov_ab", "estimate"] == 0
    assert fit.effects().loc["indirect", "estimate"] == pytest.approx(fit.params["m~x"] * fit.params["y~m"], rel=EXACT)


# Moderators ----------------------------------------------------------------------------------------------------------


def level1(v: float) -> dict[str, Formula]:
    """All paths moderated by v, with random products: each is a quadratic form in v."""

    def cov(p, first, second):
        (a0, a1), (b0, b1) = first, second
        return p.s(a0, b0) + v * (p.s(a0, b1) + p.s(a1, b0)) + v**2 * p.s(a1, b1)

    a, b, c = (("m~x", "m~x:v"), ("y~m", "y~m:v"), ("y~x", "y~x:v"))
    found = {
        "a": lambda p: p["m~x"] + p["m~x:v"] * v,
        "b": lambda p: p["y~m"] + p["y~m:v"] * v,
        "c_prime": lambda p: p["y~x"] + p["y~x:v"] * v,
        "cov_ab": lambda p: cov(p, a, b),
    }
    found["indirect"] = lambda p: found["a"](p) * found["b"](p) + cov(p, a, b)
    found["total"] = lambda p: found["indirect"](p) + found["c_prime"](p)
    # For the heterogeneity of effects:
    found["var_a"], found["var_b"] = (lambda p: cov(p, a, a)), (lambda p: cov(p, b, b))
    found["var_c"] = lambda p: cov(p, c, c)
    found["cov_ac"], found["cov_bc"] = (lambda p: cov(p, a, c)), (lambda p: cov(p, b, c))
    return found


SHOWN = ("a", "b", "c_prime", "cov_ab", "indirect", "total")


@pytest.fixture(scope="module")
def all_moderated(base) -> jm.Fit:
    model = jm.Mediation(**ROLES, moderators="v")
    assert model.moderators == (("v", ("a", "b", "c_prime")),)
    assert {"m~x:v", "y~m:v", "y~x:v"} <= set(model.system().random_labels)
    return made_up(base, model, v=(-1.0, 0.5, 2.0))


def test_level1_moderator_with_random_products(all_moderated):
    """No index of moderated mediation: the indirect effect is quadratic in v."""
    fit = all_moderated
    formulas = {(name, v): level1(v)[name] for v in (-1.0, 0.5, 2.0) for name in SHOWN}
    assert_effects(fit, fit.effects(), formulas)
    assert fit.effects().index.names == ["effect", "v"]
    formulas = {(name, v): level1(v)[name] for v in (-3.0, 0.25) for name in SHOWN}
    assert_effects(fit, fit.effects(at={"v": [-3, 0.25]}), formulas)
    single = fit.effects(at={"v": 0.25})
    assert_effects(fit, single, {(name, 0.25): level1(0.25)[name] for name in SHOWN})


def test_differences(all_moderated):
    """All pairs: the later value minus the earlier one."""
    formulas = {
        (name, f"{high:g} vs {low:g}"): lambda p, name=name, low=low, high=high: (
            level1(high)[name](p) - level1(low)[name](p)
        )
        for low, high in ((-1, 0), (-1, 2.5), (0, 2.5))
        for name in SHOWN
    }
    assert_effects(all_moderated, all_moderated.effects(at={"v": [-1, 0, 2.5]}, difference=True), formulas)


@pytest.mark.parametrize("moved", ["a", "b"])
def test_index_of_moderated_mediation(base, moved):
    """a alone: slope of E[a_j b_j | w] in w = a1 b + s(a1, b); b alone: a b1 + s(a, b1)."""
    model = jm.Mediation(**ROLES, moderators={"w": moved})
    fit = made_up(base, model, w=(0.0, 1.0))
    table = fit.effects(at={"w": [-2, 3]})
    first, second = ("m~x:w", "y~m") if moved == "a" else ("m~x", "y~m:w")
    value, se = evaluate(fit, lambda p: product(p, first, second))
    assert keys(table)[-1] == ("index_w", None)
    np.testing.assert_allclose(table.iloc[-1][["estimate", "se"]], [value, se], rtol=EXACT)
    slope = (table.loc[("indirect", 3.0), "estimate"] - table.loc[("indirect", -2.0), "estimate"]) / 5
    assert slope == pytest.approx(value, rel=1e-9)
    assert "index_w" not in fit.effects(difference=True).index.get_level_values("effect")


def test_level2_moderator_leaves_the_covariance_alone(base):
    """Products with a column of the clusters do not vary: cov_ab is that of the deviations at every w."""
    facts = DataFacts(cluster_level=frozenset({"w"}))
    fit = made_up(base, jm.Mediation(**ROLES, moderators={"w": ["a", "b"]}), facts, w=(-1.0, 1.0))
    formulas: dict[object, Formula] = {}
    for w in (-1.0, 1.0):
        one = {
            "a": lambda p, w=w: p["m~x"] + p["m~x:w"] * w,
            "b": lambda p, w=w: p["y~m"] + p["y~m:w"] * w,
            "c_prime": lambda p: p["y~x"],
            "cov_ab": lambda p: p.s("m~x", "y~m"),
            "indirect": lambda p, w=w: (p["m~x"] + p["m~x:w"] * w) * (p["y~m"] + p["y~m:w"] * w) + p.s("m~x", "y~m"),
        }
        one["total"] = lambda p, one=one: one["indirect"](p) + p["y~x"]
        formulas |= {(name, w): formula for name, formula in one.items()}
    assert_effects(fit, fit.effects(), formulas)


def test_index_of_a_total_effect_is_not_one(base):
    """c' alone moderated: the indirect effect does not depend on w, so there is no index; the total does."""
    fit = made_up(base, jm.Mediation(**ROLES, moderators={"w": "c_prime"}), w=(-1.0, 1.0))
    table = fit.effects()
    assert not any(str(name).startswith("index") for name in table.index.get_level_values(0))
    assert table.loc[("indirect", -1.0), "estimate"] == table.loc[("indirect", 1.0), "estimate"]
    moved = fit.effects(difference=True).loc[("total", "1 vs -1")]
    value, se = evaluate(fit, lambda p: 2 * p["y~x:w"])
    np.testing.assert_allclose(moved[["estimate", "se"]], [value, se], rtol=EXACT)
    still = fit.effects(difference=True).loc[("indirect", "1 vs -1")]
    assert still[["estimate", "se"]].tolist() == [0, 0]


SITE = DataFacts({"site": ("A", "B", "C")}, frozenset({"site[A]", "site[C]"}))


def test_categorical_moderator(base):
    """A category other than the reference adds its own coefficient to a and to b; no index without a slope."""
    model = jm.Mediation(**ROLES, moderators={"site": ["a", "b"]}, reference={"site": "B"})
    fit = made_up(base, model, SITE, site=("A", "B", "C"))
    a = {
        "A": lambda p: p["m~x"] + p["m~x:site[A]"],
        "B": lambda p: p["m~x"],
        "C": lambda p: p["m~x"] + p["m~x:site[C]"],
    }
    b = {
        "A": lambda p: p["y~m"] + p["y~m:site[A]"],
        "B": lambda p: p["y~m"],
        "C": lambda p: p["y~m"] + p["y~m:site[C]"],
    }

    def formulas(at: str) -> dict[str, Formula]:
        def indirect(p):
            return a[at](p) * b[at](p) + p.s("m~x", "y~m")

        return {
            "a": a[at],
            "b": b[at],
            "c_prime": lambda p: p["y~x"],
            "cov_ab": lambda p: p.s("m~x", "y~m"),
            "indirect": indirect,
            "total": lambda p: indirect(p) + p["y~x"],
        }

    every = {(name, at): formula for at in "ABC" for name, formula in formulas(at).items()}
    assert_effects(fit, fit.effects(), every)
    assert_effects(
        fit, fit.effects(at={"site": "C"}), {key: formula for key, formula in every.items() if key[1] == "C"}
    )
    pairs = {
        (name, f"{high} vs {low}"): lambda p, name=name, low=low, high=high: every[name, high](p) - every[name, low](p)
        for low, high in (("A", "B"), ("A", "C"), ("B", "C"))
        for name in SHOWN
    }
    assert_effects(fit, fit.effects(difference=True), pairs)


def test_categorical_moderator_with_random_products(base):
    """Where the category varies within clusters its products vary too: variances of the categories differ."""
    model = jm.Mediation(**ROLES, moderators={"g": "a"}, reference={"g": "n"})
    fit = made_up(base, model, DataFacts({"g": ("n", "y")}), g=("n", "y"))
    assert "m~x:g[y]" in fit.system.random_labels
    table = fit.effects()
    for at, parts in {"n": ["m~x"], "y": ["m~x", "m~x:g[y]"]}.items():
        value, se = evaluate(fit, lambda p, parts=parts: sum(product(p, part, "y~m") for part in parts))
        np.testing.assert_allclose(
            table.loc[("indirect", at), ["estimate", "se"]].astype(float), [value, se], rtol=EXACT
        )
        sd, sd_se = evaluate(
            fit,
            lambda p, parts=parts: np.sqrt(
                variance_of_product(
                    sum(p[k] for k in parts),
                    p["y~m"],
                    sum(p.s(k, m) for k in parts for m in parts),
                    p.s("y~m", "y~m"),
                    sum(p.s(k, "y~m") for k in parts),
                )
            ),
        )
        found = fit.heterogeneity().loc[("sd_indirect", at), ["estimate", "se"]]
        np.testing.assert_allclose(found.astype(float), [sd, sd_se], rtol=1e-9)


def two_moderators(w: float, v: float) -> dict[str, Formula]:
    """w (of the clusters) moves a, v (of the rows, random products) moves a and b."""

    def a(p):
        return p["m~x"] + p["m~x:w"] * w + p["m~x:v"] * v

    def b(p):
        return p["y~m"] + p["y~m:v"] * v

    def cov(p):
        return p.s("m~x", "y~m") + v * (p.s("m~x", "y~m:v") + p.s("m~x:v", "y~m")) + v**2 * p.s("m~x:v", "y~m:v")

    def indirect(p):
        return a(p) * b(p) + cov(p)

    return {
        "a": a,
        "b": b,
        "c_prime": lambda p: p["y~x"],
        "cov_ab": cov,
        "indirect": indirect,
        "total": lambda p: indirect(p) + p["y~x"],
    }


def test_several_moderators(base):
    """The index of w depends on v through b; v moves both paths, so it has none."""
    facts = DataFacts(cluster_level=frozenset({"w"}))
    model = jm.Mediation(**ROLES, moderators={"w": ["a"], "v": ["a", "b"]})
    fit = made_up(base, model, facts, w=(-1.0, 1.0), v=(0.0, 2.0))
    formulas: dict[object, Formula] = {
        (name, w, v): two_moderators(w, v)[name] for name in SHOWN for w in (-1.0, 1.0) for v in (0.0, 2.0)
    }
    for v in (0.0, 2.0):
        formulas["index_w", None, v] = lambda p, v=v: p["m~x:w"] * (p["y~m"] + p["y~m:v"] * v)
    assert_effects(fit, fit.effects(), formulas)
    assert fit.effects().index.names == ["effect", "w", "v"]
    # Moderators that are not named keep their default values.
    assert {key[1:] for key in keys(fit.effects(at={"v": [5]}))} == {(-1, 5), (1, 5), (None, 5)}
    moved = {}
    for name in SHOWN:
        for v in (0.0, 2.0):
            moved[name, "1 vs -1", v] = lambda p, name=name, v=v: (
                two_moderators(1.0, v)[name](p) - two_moderators(-1.0, v)[name](p)
            )
        for w in (-1.0, 1.0):
            moved[name, w, "2 vs 0"] = lambda p, name=name, w=w: (
                two_moderators(w, 2.0)[name](p) - two_moderators(w, 0.0)[name](p)
            )
    assert_effects(fit, fit.effects(difference=True), moved)


# Several mediators ---------------------------------------------------------------------------------------------------


def parallel(p: Parameters, names: tuple[str, ...]) -> dict[str, complex]:
    found = {}
    for m in names:
        found |= {f"a_{m}": p[f"{m}~x"], f"b_{m}": p[f"y~{m}"], f"cov_ab_{m}": p.s(f"{m}~x", f"y~{m}")}
        found[f"indirect_{m}"] = p[f"{m}~x"] * p[f"y~{m}"] + p.s(f"{m}~x", f"y~{m}")
    found["c_prime"] = p["y~x"]
    found["indirect"] = sum(found[f"indirect_{m}"] for m in names)
    found["total"] = found["indirect"] + p["y~x"]
    for one, other in combinations(names, 2):
        found[f"indirect_{one} - indirect_{other}"] = found[f"indirect_{one}"] - found[f"indirect_{other}"]
    return found


def by_name(function: Callable[..., dict], *arguments) -> dict[str, Formula]:
    """Formulas by name from a function that returns all values of its parameters."""

    class Anything(Parameters):
        def __init__(self):
            self.at = {}

        def __getitem__(self, label):
            return 0.0

    names = function(Anything(), *arguments)
    return {name: lambda p, name=name: function(p, *arguments)[name] for name in names}


@pytest.mark.parametrize("names", [("m1", "m2"), ("m1", "m2", "m3")])
@pytest.mark.parametrize("residuals", ["correlated", "independent"])
def test_parallel_mediators(base, names, residuals):
    """Specific, summed and total effects and all contrasts; residual covariances play no part in them."""
    fit = made_up(base, jm.Mediation(**ROLES | {"m": list(names)}, residuals=residuals))
    assert_effects(fit, fit.effects(), by_name(parallel, names))


def test_parallel_mediators_with_a_moderator(base):
    """a of one mediator moderated by w, random product: the indirect effect through the other does not move."""
    fit = made_up(base, jm.Mediation(**TWO, moderators={"w": "a_m1"}), w=(-1.0, 1.0))

    def at(p, w):
        b2 = p["m2~x"] * p["y~m2"] + p.s("m2~x", "y~m2")
        slope = p["m1~x:w"] * p["y~m1"] + p.s("m1~x:w", "y~m1")
        b1 = p["m1~x"] * p["y~m1"] + p.s("m1~x", "y~m1") + w * slope
        return {
            "a_m1": p["m1~x"] + w * p["m1~x:w"],
            "a_m2": p["m2~x"],
            "b_m1": p["y~m1"],
            "b_m2": p["y~m2"],
            "c_prime": p["y~x"],
            "cov_ab_m1": p.s("m1~x", "y~m1") + w * p.s("m1~x:w", "y~m1"),
            "cov_ab_m2": p.s("m2~x", "y~m2"),
            "indirect_m1": b1,
            "indirect_m2": b2,
            "indirect": b1 + b2,
            "total": b1 + b2 + p["y~x"],
            "indirect_m1 - indirect_m2": b1 - b2,
            "index": slope,
        }

    formulas: dict[object, Formula] = {}
    for w in (-1.0, 1.0):
        formulas |= {(name, w): formula for name, formula in by_name(at, w).items() if name != "index"}
    formulas["index_w_m1", None] = formulas["index_w", None] = by_name(at, 0.0)["index"]
    assert_effects(fit, fit.effects(), formulas)


def chain(p: Parameters, v: float | None = None) -> dict[str, complex]:
    """Two serial mediators; v, if any, moves d with a random product."""
    a1, a2, b1, b2 = "m1~x", "m2~x", "y~m1", "y~m2"
    d, a_d, d_b = p["m2~m1"], p.s(a1, "m2~m1"), p.s("m2~m1", b2)
    if v is not None:
        d, a_d, d_b = d + v * p["m2~m1:v"], a_d + v * p.s(a1, "m2~m1:v"), d_b + v * p.s("m2~m1:v", b2)
    found = {"a_m1": p[a1], "a_m2": p[a2], "d_m1_m2": d, "b_m1": p[b1], "b_m2": p[b2], "c_prime": p["y~x"]}
    found |= {"cov_ab_m1": p.s(a1, b1), "cov_ab_m2": p.s(a2, b2), "cov(a_m1, d_m1_m2)": a_d}
    found |= {"cov(a_m1, b_m2)": p.s(a1, b2), "cov(d_m1_m2, b_m2)": d_b}
    found["indirect_m1"], found["indirect_m2"] = product(p, a1, b1), product(p, a2, b2)
    found["indirect_m1_m2"] = p[a1] * d * p[b2] + p[a1] * d_b + d * p.s(a1, b2) + p[b2] * a_d
    found["indirect"] = found["indirect_m1"] + found["indirect_m2"] + found["indirect_m1_m2"]
    found["total"] = found["indirect"] + p["y~x"]
    for one, other in combinations(("m1", "m2", "m1_m2"), 2):
        found[f"indirect_{one} - indirect_{other}"] = found[f"indirect_{one}"] - found[f"indirect_{other}"]
    return found


def test_serial_mediators(base):
    """E[a_j d_j b_j] = adb + a s(d, b) + d s(a, b) + b s(a, d)."""
    fit = made_up(base, jm.Mediation(**TWO, serial=True))
    assert len(fit.system.random_labels) == 9
    assert_effects(fit, fit.effects(), by_name(chain))


def test_serial_mediators_with_a_moderated_middle(base):
    fit = made_up(base, jm.Mediation(**TWO, serial=True, moderators={"v": "d"}), v=(0.0, 1.5))
    assert "m2~m1:v" in fit.system.random_labels
    formulas: dict[object, Formula] = {}
    for v in (0.0, 1.5):
        formulas |= {(name, v): formula for name, formula in by_name(chain, v).items()}

    def index(p):
        d1 = "m2~m1:v"
        return (
            p["m1~x"] * p[d1] * p["y~m2"]
            + p["m1~x"] * p.s(d1, "y~m2")
            + p[d1] * p.s("m1~x", "y~m2")
            + p["y~m2"] * p.s("m1~x", d1)
        )

    formulas["index_v_m1_m2", None] = formulas["index_v", None] = index
    assert_effects(fit, fit.effects(), formulas)


def test_three_serial_mediators(base):
    """Seven routes; the longest is E of a product of four normals: Isserlis by enumeration."""
    fit = made_up(base, jm.Mediation(**ROLES | {"m": ["m1", "m2", "m3"]}, serial=True))
    routes = {
        "indirect_m1": ["m1~x", "y~m1"],
        "indirect_m2": ["m2~x", "y~m2"],
        "indirect_m3": ["m3~x", "y~m3"],
        "indirect_m1_m2": ["m1~x", "m2~m1", "y~m2"],
        "indirect_m1_m3": ["m1~x", "m3~m1", "y~m3"],
        "indirect_m2_m3": ["m2~x", "m3~m2", "y~m3"],
        "indirect_m1_m2_m3": ["m1~x", "m2~m1", "m3~m2", "y~m3"],
    }
    table = fit.effects()

    def along(p, labels):
        return enumerated([p[label] for label in labels], [[p.s(k, m) for m in labels] for k in labels])

    for name, labels in routes.items():
        expected = evaluate(fit, lambda p, labels=labels: along(p, labels))
        np.testing.assert_allclose(table.loc[name, ["estimate", "se"]], expected, rtol=1e-9)
    expected = evaluate(fit, lambda p: sum(along(p, labels) for labels in routes.values()) + p["y~x"])
    np.testing.assert_allclose(table.loc["total", ["estimate", "se"]], expected, rtol=1e-9)
    assert sum(" - " in name for name in table.index) == 21
    # The contrast of the longest with the shortest, as one for all.
    expected = evaluate(fit, lambda p: along(p, routes["indirect_m1"]) - along(p, routes["indirect_m1_m2_m3"]))
    np.testing.assert_allclose(table.loc["indirect_m1 - indirect_m1_m2_m3", ["estimate", "se"]], expected, rtol=1e-9)


# Within and between --------------------------------------------------------------------------------------------------


def centred(p: Parameters) -> dict[str, complex]:
    a, b, c = "m~{}(x)", "y~{}(m)", "y~{}(x)"
    found = {}
    for part in ("within", "between"):
        found |= {f"{name}_{part}": p[label.format(part)] for name, label in (("a", a), ("b", b), ("c_prime", c))}
    found["cov_ab"] = p.s("m~within(x)", "y~within(m)")
    found["indirect_within"] = found["a_within"] * found["b_within"] + found["cov_ab"]
    found["indirect_between"] = found["a_between"] * found["b_between"]
    for part in ("within", "between"):
        found[f"total_{part}"] = found[f"indirect_{part}"] + found[f"c_prime_{part}"]
    for name in ("a", "b", "c_prime", "indirect", "total"):
        found[f"contextual_{name}"] = found[f"{name}_between"] - found[f"{name}_within"]
    return found


def test_within_and_between_effects(base):
    fit = made_up(base, jm.Mediation(**ROLES, center="cluster"))
    assert fit.system.random_labels == ("m~1", "m~within(x)", "y~1", "y~within(m)", "y~within(x)")
    assert_effects(fit, fit.effects(), by_name(centred))


def test_within_and_between_effects_of_a_cluster_level_predictor(base):
    """2-1-1: x has no deviations, so there is a between indirect effect alone; b has both parts."""
    fit = made_up(base, jm.Mediation(**ROLES, center="cluster"), DataFacts(cluster_level=frozenset({"x"})))
    a, b, c = "m~between(x)", "y~between(m)", "y~between(x)"
    formulas = {
        "a_between": lambda p: p[a],
        "b_within": lambda p: p["y~within(m)"],
        "b_between": lambda p: p[b],
        "c_prime_between": lambda p: p[c],
        "indirect_between": lambda p: p[a] * p[b],
        "total_between": lambda p: p[a] * p[b] + p[c],
        "contextual_b": lambda p: p[b] - p["y~within(m)"],
    }
    assert_effects(fit, fit.effects(), formulas)


def test_within_and_between_effects_of_parallel_mediators_with_a_moderator(base):
    """w of the clusters moves a_m1, both of its parts."""
    facts = DataFacts(cluster_level=frozenset({"w"}))
    model = jm.Mediation(**TWO, center="cluster", moderators={"w": "a_m1"})
    fit = made_up(base, model, facts, w=(-1.0, 1.0))

    def at(p, w):
        found = {}
        for part in ("within", "between"):
            found[f"a_m1_{part}"] = p[f"m1~{part}(x)"] + w * p[f"m1~{part}(x):w"]
            found[f"a_m2_{part}"] = p[f"m2~{part}(x)"]
            for m in ("m1", "m2"):
                cov = p.s(f"{m}~{part}(x)", f"y~{part}({m})")
                found[f"b_{m}_{part}"] = p[f"y~{part}({m})"]
                found[f"indirect_{m}_{part}"] = found[f"a_{m}_{part}"] * found[f"b_{m}_{part}"] + cov
                if part == "within":
                    found[f"cov_ab_{m}"] = cov
            found[f"c_prime_{part}"] = p[f"y~{part}(x)"]
            found[f"indirect_{part}"] = found[f"indirect_m1_{part}"] + found[f"indirect_m2_{part}"]
            found[f"total_{part}"] = found[f"indirect_{part}"] + found[f"c_prime_{part}"]
            found[f"indirect_m1_{part} - indirect_m2_{part}"] = (
                found[f"indirect_m1_{part}"] - found[f"indirect_m2_{part}"]
            )
        for name in ("a_m1", "a_m2", "b_m1", "b_m2", "c_prime", "indirect", "total"):
            found[f"contextual_{name}"] = found[f"{name}_between"] - found[f"{name}_within"]
        return found

    formulas: dict[object, Formula] = {}
    for w in (-1.0, 1.0):
        formulas |= {(name, w): formula for name, formula in by_name(at, w).items()}
    for part in ("within", "between"):
        slope = lambda p, part=part: product(p, f"m1~{part}(x):w", f"y~{part}(m1)")  # noqa: E731
        formulas[f"index_w_m1_{part}", None] = formulas[f"index_w_{part}", None] = slope
    assert_effects(fit, fit.effects(), formulas)


# How effects vary between clusters -----------------------------------------------------------------------------------


def variance_of_product(a, b, s_aa, s_bb, s_ab):
    """Bauer, Preacher & Gil (2006), equation 6."""
    return b**2 * s_aa + a**2 * s_bb + s_aa * s_bb + 2 * a * b * s_ab + s_ab**2


def share_positive(a: float, b: float, s_aa: float, s_bb: float, s_ab: float) -> float:
    """P(a_j b_j > 0) by scipy; both positive, or both negative."""
    if s_aa == 0 or s_bb == 0:
        fixed, mean, sd = (a, b, np.sqrt(s_bb)) if s_aa == 0 else (b, a, np.sqrt(s_aa))
        return float(norm.cdf(np.sign(fixed) * mean / sd)) if sd > 0 else float(a * b > 0)
    covariance = np.array([[s_aa, s_ab], [s_ab, s_bb]])
    sides = (multivariate_normal.cdf([sign * a, sign * b], [0, 0], covariance) for sign in (1, -1))
    return float(sum(sides))


def finite_difference_se(fit: jm.Fit, function: Callable[[Parameters], float]) -> float:
    """Central differences of order h^4, error some 1e-16 + 1e-15/h = 1e-11 at h = 1e-4."""
    labels, values = values_of(fit)

    def moved(step):
        return function(Parameters(labels, values + step))

    steps = 1e-4 * np.eye(len(values))
    slope = [(8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / 12e-4 for h in steps]
    covariance = fit.cov_params("joint", full=True).to_numpy()
    return float(np.sqrt(slope @ covariance @ np.array(slope)))


def assert_sd(fit: jm.Fit, row: pd.Series, variance: Formula, level: float = 0.95) -> None:
    value, se = evaluate(fit, lambda p: np.sqrt(variance(p) + 0j))
    width = np.exp(norm.ppf(0.5 + level / 2) * se / value)
    np.testing.assert_allclose(row.astype(float), [value, se, value / width, value * width], rtol=1e-9)


def assert_share(fit: jm.Fit, row: pd.Series, slopes: Callable[[Parameters], tuple]) -> None:
    """1e-8, as exact as scipy's bivariate normal; 1e-6 of the standard error, from finite differences."""
    labels, values = values_of(fit)
    share = share_positive(*slopes(Parameters(labels, values)))
    assert row["estimate"] == pytest.approx(share, rel=0, abs=1e-8)
    se = finite_difference_se(fit, lambda p: share_positive(*slopes(p)))
    assert row["se"] == pytest.approx(se, rel=1e-6)
    share, se = row["estimate"], row["se"]
    width = norm.ppf(0.975) * se / (share * (1 - share))
    limits = expit(logit(share) - width), expit(logit(share) + width)
    np.testing.assert_allclose(row[["ci_lower", "ci_upper"]].astype(float), limits, rtol=1e-9)


def slopes_of(a: str, b: str) -> Callable[[Parameters], tuple]:
    return lambda p: (p[a], p[b], p.s(a, a), p.s(b, b), p.s(a, b))


@pytest.mark.parametrize("seed", range(6))
def test_heterogeneity_of_one_mediator(base, seed):
    fit = made_up(base, jm.Mediation(**ROLES), seed=seed)
    table = fit.heterogeneity()
    assert list(table.index) == ["sd_indirect", "sd_total", "share_indirect_positive"]
    assert list(table.columns) == ["estimate", "se", "ci_lower", "ci_upper"]
    slopes = slopes_of("m~x", "y~m")

    def total(p):
        c = "y~x"
        with_c = p["m~x"] * p.s("y~m", c) + p["y~m"] * p.s("m~x", c)  # cov(a_j b_j, c_j)
        return variance_of_product(*slopes(p)) + p.s(c, c) + 2 * with_c

    assert_sd(fit, table.loc["sd_indirect"], lambda p: variance_of_product(*slopes(p)))
    assert_sd(fit, table.loc["sd_total"], total)
    assert_share(fit, table.loc["share_indirect_positive"], slopes)
    assert_sd(fit, fit.heterogeneity(level=0.8).loc["sd_total"], total, level=0.8)


@pytest.mark.parametrize("correlation", [-0.999, -0.95, -0.5, 0, 0.3, 0.95, 0.999])
@pytest.mark.parametrize("means", [(0.1, -0.05), (0.3, 0.5), (-2.0, 1.0), (3.0, 3.0)])
def test_share_of_positive_effects(base, means, correlation):
    """Absolute 1e-8, as exact as scipy, up to correlations near one."""
    fit = made_up(base, jm.Mediation(**ROLES))
    values = pd.Series(fit.values, index=fit.labels)
    values["m~x"], values["y~m"] = means
    values["m~x~~m~x"], values["y~m~~y~m"], values["m~x~~y~m"] = 0.5, 2.0, correlation
    fit = replace(fit, values=values.to_numpy())
    expected = share_positive(*means, 0.5, 2.0, correlation)
    found = fit.heterogeneity().loc["share_indirect_positive", "estimate"]
    assert found == pytest.approx(expected, rel=0, abs=1e-8)


@pytest.mark.parametrize("means", [(0.1, -0.05), (0.5, 0.49), (-2.0, 1.0), (3.0, 3.0)])
def test_share_of_positive_effects_of_a_singular_fit(base, means):
    """Correlations of one, both slopes the same normal: 1e-6, the quadrature's worst case is a kink at its end."""
    a, b = means
    fit = made_up(base, jm.Mediation(**ROLES))
    values = pd.Series(fit.values, index=fit.labels)
    values["m~x"], values["y~m"], values["m~x~~m~x"], values["y~m~~y~m"] = a, b, 1.0, 1.0
    exact = {
        1.0: norm.cdf(min(a, b)) + norm.cdf(-max(a, b)),
        -1.0: max(0.0, norm.cdf(a) - norm.cdf(-b)) + max(0.0, norm.cdf(-a) - norm.cdf(b)),
    }
    for correlation, expected in exact.items():
        values["m~x~~y~m"] = correlation
        table = replace(fit, values=values.to_numpy().copy()).heterogeneity()
        assert table.loc["share_indirect_positive", "estimate"] == pytest.approx(expected, rel=0, abs=1e-6)


@pytest.mark.parametrize(
    "random", [{"m": ["1"], "y": ["1", "m"]}, {"m": ["1", "x"], "y": ["1"]}, {"m": ["x"], "y": ["x"]}]
)
@pytest.mark.parametrize("seed", range(4))
def test_heterogeneity_where_one_slope_is_fixed(base, random, seed):
    """A slope that does not vary has its sign in every cluster: the share is a univariate probability."""
    fit = made_up(base, jm.Mediation(**ROLES, random=random), seed=seed)
    table = fit.heterogeneity()
    slopes = slopes_of("m~x", "y~m")
    assert_sd(fit, table.loc["sd_indirect"], lambda p: variance_of_product(*slopes(p)))
    assert_share(fit, table.loc["share_indirect_positive"], slopes)


def test_heterogeneity_where_both_slopes_are_fixed(base):
    fit = made_up(base, jm.Mediation(**ROLES, random={"m": ["1"], "y": ["1", "x"]}))
    table = fit.heterogeneity()
    assert table.loc["sd_indirect"].tolist() == [0, 0, 0, 0]
    sign = float(fit.params["m~x"] * fit.params["y~m"] > 0)
    assert table.loc["share_indirect_positive"].tolist() == [sign, 0, sign, sign]
    assert_sd(fit, table.loc["sd_total"], lambda p: p.s("y~x", "y~x"))


def test_heterogeneity_with_a_moderator(all_moderated):
    """At every value of v; equation 6 in the slopes at that value."""
    table = all_moderated.heterogeneity(at={"v": [-1, 0.5]})
    assert table.index.names == ["effect", "v"]
    for v in (-1.0, 0.5):
        parts = level1(v)

        def slopes(p, parts=parts):
            return tuple(parts[name](p) for name in ("a", "b", "var_a", "var_b", "cov_ab"))

        def total(p, parts=parts, slopes=slopes):
            with_c = parts["a"](p) * parts["cov_bc"](p) + parts["b"](p) * parts["cov_ac"](p)
            return variance_of_product(*slopes(p)) + parts["var_c"](p) + 2 * with_c

        assert_sd(all_moderated, table.loc[("sd_indirect", v)], lambda p, s=slopes: variance_of_product(*s(p)))
        assert_sd(all_moderated, table.loc[("sd_total", v)], total)
        assert_share(all_moderated, table.loc[("share_indirect_positive", v)], slopes)


def covariance_of_products(p: Parameters, one: tuple[str, str], other: tuple[str, str]):
    """cov(X Y, Z W) of normals."""
    (x, y), (z, w) = one, other
    return (
        p[x] * p[z] * p.s(y, w)
        + p[x] * p[w] * p.s(y, z)
        + p[y] * p[z] * p.s(x, w)
        + p[y] * p[w] * p.s(x, z)
        + p.s(x, z) * p.s(y, w)
        + p.s(x, w) * p.s(y, z)
    )


def test_heterogeneity_of_parallel_mediators(base):
    """The sum of two products: their covariance counts; a share only for each route alone."""
    fit = made_up(base, jm.Mediation(**TWO))
    table = fit.heterogeneity()
    routes = {m: (f"{m}~x", f"y~{m}") for m in ("m1", "m2")}
    assert list(table.index) == [
        "sd_indirect_m1",
        "sd_indirect_m2",
        "sd_indirect",
        "sd_total",
        "share_indirect_m1_positive",
        "share_indirect_m2_positive",
    ]

    def indirect(p):
        return sum(covariance_of_products(p, one, other) for one in routes.values() for other in routes.values())

    def total(p):
        with_c = sum(p[a] * p.s(b, "y~x") + p[b] * p.s(a, "y~x") for a, b in routes.values())
        return indirect(p) + p.s("y~x", "y~x") + 2 * with_c

    for m, route in routes.items():
        slopes = slopes_of(*route)
        assert_sd(fit, table.loc[f"sd_indirect_{m}"], lambda p, s=slopes: variance_of_product(*s(p)))
        assert_share(fit, table.loc[f"share_indirect_{m}_positive"], slopes)
    assert_sd(fit, table.loc["sd_indirect"], indirect)
    assert_sd(fit, table.loc["sd_total"], total)


def test_heterogeneity_of_serial_mediators(base):
    """Var(a d b) = E[a^2 d^2 b^2] - E[a d b]^2 by enumeration of six factors; no share for three slopes."""
    fit = made_up(base, jm.Mediation(**TWO, serial=True))
    table = fit.heterogeneity()
    labels = ["m1~x", "m2~m1", "y~m2"]

    def moment(p, along):
        return enumerated([p[k] for k in along], [[p.s(k, m) for m in along] for k in along])

    assert_sd(fit, table.loc["sd_indirect_m1_m2"], lambda p: moment(p, labels * 2) - moment(p, labels) ** 2)
    shares = [name for name in table.index if name.startswith("share")]
    assert shares == ["share_indirect_m1_positive", "share_indirect_m2_positive"]


def test_heterogeneity_within_clusters(base):
    """Between effects are of the clusters and do not vary among them."""
    fit = made_up(base, jm.Mediation(**ROLES, center="cluster"))
    table = fit.heterogeneity()
    slopes = slopes_of("m~within(x)", "y~within(m)")
    assert list(table.index) == ["sd_indirect_within", "sd_total_within", "share_indirect_within_positive"]
    assert_sd(fit, table.loc["sd_indirect_within"], lambda p: variance_of_product(*slopes(p)))
    assert_share(fit, table.loc["share_indirect_within_positive"], slopes)


# Expected products ---------------------------------------------------------------------------------------------------


def matchings(positions: tuple[int, ...]) -> set[frozenset]:
    """All ways to put an even number of positions into pairs."""
    pairs = (zip(order[::2], order[1::2], strict=True) for order in permutations(positions))
    return {frozenset(frozenset(pair) for pair in found) for found in pairs}


def enumerated(mean, covariance):
    """E[X_1 ... X_n]: every choice of positions to be paired, every way to pair them, means for the rest."""
    n = len(mean)
    total = 0.0
    for size in range(0, n + 1, 2):
        for paired in combinations(range(n), size):
            rest = 1.0
            for k in set(range(n)) - set(paired):
                rest = rest * mean[k]
            for matching in matchings(paired):
                term = rest
                for pair in matching:
                    k, m = sorted(pair)
                    term = term * covariance[k][m]
                total = total + term
    return total


@pytest.mark.parametrize("along", [(), (2,), (0, 1), (1, 1), (0, 2, 3), (0, 1, 2, 3), (0, 0, 1, 1), (0, 1, 2, 0, 1, 2)])
def test_expected_products(along):
    rng = np.random.default_rng(3)
    mean, root = rng.normal(size=4), rng.normal(size=(4, 4))
    covariance = root @ root.T
    with jax.enable_x64(True):
        found = float(expected_product(jax.numpy.asarray(mean), jax.numpy.asarray(covariance), along))
    expected = enumerated(mean[list(along)], covariance[np.ix_(along, along)])
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_expected_products_by_simulation():
    """2 million draws; five standard errors of their mean."""
    rng = np.random.default_rng(8)
    mean, root = np.array([0.5, -0.3, 0.8]), rng.normal(size=(3, 3)) * 0.5
    draws = mean + rng.normal(size=(2_000_000, 3)) @ root.T
    for along in ((0, 1), (0, 1, 2), (0, 1, 0, 1)):
        products = np.prod(draws[:, along], axis=1)
        with jax.enable_x64(True):
            found = float(expected_product(jax.numpy.asarray(mean), jax.numpy.asarray(root @ root.T), along))
        assert abs(found - products.mean()) < 5 * products.std() / np.sqrt(len(products))


def test_heterogeneity_by_simulation(base):
    """The population that the table describes, drawn: 2 million clusters, five standard errors."""
    fit = made_up(base, jm.Mediation(**TWO, serial=True), seed=2)
    rng = np.random.default_rng(9)
    mean = fit.params[list(fit.random_cov.index)].to_numpy()
    draws = pd.DataFrame(
        rng.multivariate_normal(mean, fit.random_cov.to_numpy(), size=2_000_000), columns=fit.random_cov.index
    )
    long = draws["m1~x"] * draws["m2~m1"] * draws["y~m2"]
    indirect = long + draws["m1~x"] * draws["y~m1"] + draws["m2~x"] * draws["y~m2"]
    total = indirect + draws["y~x"]
    effects, table = fit.effects(), fit.heterogeneity()
    for name, drawn in {"indirect_m1_m2": long, "indirect": indirect, "total": total}.items():
        drawn = drawn.to_numpy()
        assert abs(drawn.mean() - effects.loc[name, "estimate"]) < 5 * drawn.std() / np.sqrt(len(drawn))
        # The variance of a mean square of such heavy tails, from the draws themselves.
        square = (drawn - drawn.mean()) ** 2
        assert abs(square.mean() - table.loc[f"sd_{name}", "estimate"] ** 2) < 5 * square.std() / np.sqrt(len(drawn))
    share = float(np.mean(draws["m1~x"] * draws["y~m1"] > 0))
    assert abs(share - table.loc["share_indirect_m1_positive", "estimate"]) < 5 * 0.5 / np.sqrt(len(draws))


# Real fits: default values of moderators, and predictions by cluster ------------------------------------------------

AB = {"m1": ["1", "x"], "y": ["1", "m1"]}
EXTENDED = {
    "level2": jm.Mediation("x", "m1", "y", "id", random=AB, moderators={"w": ["a", "b"]}),
    "level1": jm.Mediation(
        "x", "mv", "yv", "id", random={"mv": ["1", "x", "x:v"], "yv": ["1", "mv"]}, moderators={"v": ["a", "b"]}
    ),
    "categories": jm.Mediation(
        "x", "m1", "y", "id", random=AB, moderators={"site": "b", "tx": "a"}, reference={"site": "B"}
    ),
    "centred": jm.Mediation(
        "x", "m1_miss", "y_miss", "id", random={"m1_miss": ["1", "within(x)"], "y_miss": ["within(m1_miss)"]},
        center="cluster",
    ),
    "parallel": jm.Mediation(
        "x", ["m1", "m2_gaps"], "y", "id", random={"m1": ["x"], "m2_gaps": ["1", "x"], "y": ["1", "m1", "m2_gaps"]}
    ),
    "serial": jm.Mediation(
        "x", ["m1", "m2"], "y", "id", serial=True, random={"m1": ["1", "x"], "m2": ["1", "m1"], "y": ["1", "m2"]}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(extended) -> pd.DataFrame:
    """With a second mediator that is missing where m1 is not."""
    gaps = np.random.default_rng(3).random(len(extended)) < 0.1
    return extended.assign(m2_gaps=extended["m2"].mask(gaps))


@pytest.fixture(scope="module")
def fits(data) -> Callable[[str], jm.Fit]:
    """Fits by name, each made once."""
    known: dict[str, jm.Fit] = {}

    def get(name: str) -> jm.Fit:
        if name not in known:
            known[name] = jm.fit(data, EXTENDED[name])
            assert known[name].converged
            assert not known[name].singular
        return known[name]

    return get


def values_shown(fit: jm.Fit, moderator: str) -> list:
    return list(dict.fromkeys(value for value in fit.effects().index.get_level_values(moderator) if value == value))


def test_default_values_of_a_cluster_level_moderator(data, fits):
    """Mean and sd over clusters, each cluster once; 1e-12 for the map to the working scale and back."""
    w = data.groupby("id")["w"].first()
    expected = [w.mean() - w.std(), w.mean(), w.mean() + w.std()]
    np.testing.assert_allclose(values_shown(fits("level2"), "w"), expected, rtol=1e-12)


def test_default_values_of_a_row_level_moderator(data, fits):
    """Mean and sd over rows."""
    v = data["v"]
    np.testing.assert_allclose(
        values_shown(fits("level1"), "v"), [v.mean() - v.std(), v.mean(), v.mean() + v.std()], rtol=1e-12
    )


def test_default_values_of_binary_and_categorical_moderators(fits):
    fit = fits("categories")
    assert values_shown(fit, "site") == ["A", "B", "C"]
    assert values_shown(fit, "tx") == [0, 1]
    assert fit.effects().index.names == ["effect", "site", "tx"]


def test_effects_of_a_fit_with_a_cluster_level_moderator(fits):
    fit = fits("level2")

    def at(p, w):
        a, b = p["m1~x"] + w * p["m1~x:w"], p["y~m1"] + w * p["y~m1:w"]
        cov = p.s("m1~x", "y~m1")
        return {
            "a": a,
            "b": b,
            "c_prime": p["y~x"],
            "cov_ab": cov,
            "indirect": a * b + cov,
            "total": a * b + cov + p["y~x"],
        }

    formulas: dict[object, Formula] = {}
    for w in (-1.0, 0.0, 1.0):
        formulas |= {(name, w): formula for name, formula in by_name(at, w).items()}
    assert_effects(fit, fit.effects(at={"w": [-1, 0, 1]}), formulas)
    difference = fit.effects(at={"w": [-1, 0, 1]}, difference=True)
    for low, high in ((-1, 0), (-1, 1), (0, 1)):
        value, se = evaluate(fit, lambda p, low=low, high=high: at(p, high)["indirect"] - at(p, low)["indirect"])
        row = difference.loc[("indirect", f"{high} vs {low}")]
        np.testing.assert_allclose(row[["estimate", "se"]].astype(float), [value, se], rtol=1e-9)


def test_effects_of_a_fit_with_a_row_level_moderator(fits):
    """x:v varies between clusters, mv:v does not; index of v there is none, since v moves a and b."""
    fit = fits("level1")

    def at(p, v):
        a, b = p["mv~x"] + v * p["mv~x:v"], p["yv~mv"] + v * p["yv~mv:v"]
        cov = p.s("mv~x", "yv~mv") + v * p.s("mv~x:v", "yv~mv")
        return {
            "a": a,
            "b": b,
            "c_prime": p["yv~x"],
            "cov_ab": cov,
            "indirect": a * b + cov,
            "total": a * b + cov + p["yv~x"],
        }

    formulas: dict[object, Formula] = {}
    for v in (-0.5, 1.5):
        formulas |= {(name, v): formula for name, formula in by_name(at, v).items()}
    assert_effects(fit, fit.effects(at={"v": [-0.5, 1.5]}), formulas)


def test_effects_of_a_fit_with_binary_and_categorical_moderators(fits):
    """tx moves a and site moves b: an index of tx at every site."""
    fit = fits("categories")

    def a(p, tx):
        return p["m1~x"] + tx * p["m1~x:tx"]

    def b(p, site):
        return p["y~m1"] + (p[f"y~m1:site[{site}]"] if site != "B" else 0.0)

    table = fit.effects()
    cov = ("m1~x", "y~m1")
    for site in "ABC":
        for tx in (0.0, 1.0):
            expected = evaluate(fit, lambda p, site=site, tx=tx: a(p, tx) * b(p, site) + p.s(*cov))
            found = table.loc[("indirect", site, tx), ["estimate", "se"]].astype(float)
            np.testing.assert_allclose(found, expected, rtol=1e-9)
        expected = evaluate(fit, lambda p, site=site: p["m1~x:tx"] * b(p, site))
        rows = [at for at, key in enumerate(keys(table)) if key == ("index_tx", site, None)]
        assert len(rows) == 1
        np.testing.assert_allclose(table.iloc[rows[0]][["estimate", "se"]].astype(float), expected, rtol=1e-9)


# Predictions ---------------------------------------------------------------------------------------------------------

Slopes = dict[str, list[tuple[str, np.ndarray]]]


def assert_predictions(fit: jm.Fit, data: pd.DataFrame, slopes: Slopes, routes: dict[str, list[str]]) -> None:
    """Random effects, slopes and products along routes by cluster, from dense matrices.

    A slope is a sum of fixed effects plus deviations, each with a weight by cluster. The errors of prediction of fixed
    and random effects together have the covariance that Henderson's mixed-model equations give, and a product of
    jointly normal slopes has the mean and variance of Isserlis' theorem. 1e-7: a dense inverse of some hundred rows.
    """
    found = fit.ranef()
    clusters = dense.stack(data, fit.system)
    assert [cluster.label for cluster in clusters] == list(found.index)
    g, sigma = fit.random_cov.to_numpy(), fit.residual_cov.to_numpy()
    beta, labels, random = fit.params.to_numpy(), list(fit.params.index), list(fit.random_cov.index)
    u = dense.blups(clusters, g, sigma, beta)
    errors = dense.henderson(clusters, g, sigma)
    p, q = len(beta), len(g)
    expected = {}
    for k, label in enumerate(random):
        at = p + q * np.arange(len(clusters)) + k
        expected[label], expected[f"{label}_se"] = u[:, k], np.sqrt(np.diag(errors)[at])
    for name in [*slopes, *routes]:
        expected[name], expected[f"{name}_se"] = np.zeros((2, len(clusters)))
    for j in range(len(clusters)):
        mean, rows = {}, {}
        for name, pieces in slopes.items():
            mean[name], rows[name] = 0.0, np.zeros(len(errors))
            for label, weight in pieces:
                mean[name] += weight[j] * beta[labels.index(label)]
                rows[name][labels.index(label)] += weight[j]
                if label in random:
                    k = random.index(label)
                    mean[name] += weight[j] * u[j, k]
                    rows[name][p + q * j + k] += weight[j]
            expected[name][j] = mean[name]
            expected[f"{name}_se"][j] = np.sqrt(rows[name] @ errors @ rows[name])
        for name, along in routes.items():

            def moment(factors, mean=mean, rows=rows):
                covariance = [[rows[k] @ errors @ rows[m] for m in factors] for k in factors]
                return enumerated([mean[k] for k in factors], covariance)

            expected[name][j] = moment(along)
            expected[f"{name}_se"][j] = np.sqrt(moment(along * 2) - moment(along) ** 2)
    assert list(found.columns) == list(expected)
    for name, values in expected.items():
        unit = np.max(np.abs(values))
        np.testing.assert_allclose(found[name] / unit, values / unit, rtol=0, atol=1e-7, err_msg=name)


def ones(data: pd.DataFrame) -> np.ndarray:
    return np.ones(data["id"].nunique())


def test_predictions_with_a_cluster_level_moderator(data, fits):
    """a_j = a + a_w w_j + u_j, each cluster at its own w_j."""
    w, one = data.groupby("id")["w"].first().to_numpy(), ones(data)
    slopes = {"a": [("m1~x", one), ("m1~x:w", w)], "b": [("y~m1", one), ("y~m1:w", w)]}
    assert_predictions(fits("level2"), data, slopes, {"ab": ["a", "b"]})
    found, params = fits("level2").ranef(), fits("level2").params
    np.testing.assert_allclose(found["a"], params["m1~x"] + params["m1~x:w"] * w + found["m1~x"], rtol=1e-10)


def test_predictions_with_a_row_level_moderator(data, fits):
    """All clusters at the mean of v over rows."""
    one = ones(data)
    v = one * data["v"].mean()
    slopes = {"a": [("mv~x", one), ("mv~x:v", v)], "b": [("yv~mv", one), ("yv~mv:v", v)]}
    assert_predictions(fits("level1"), data, slopes, {"ab": ["a", "b"]})


def test_predictions_with_categorical_moderators(data, fits):
    """Each cluster at its own site and treatment."""
    first, one = data.groupby("id")[["site", "tx"]].first(), ones(data)
    site = {k: (first["site"] == k).to_numpy(float) for k in "AC"}
    slopes = {
        "a": [("m1~x", one), ("m1~x:tx", first["tx"].to_numpy(float))],
        "b": [("y~m1", one), ("y~m1:site[A]", site["A"]), ("y~m1:site[C]", site["C"])],
    }
    assert_predictions(fits("categories"), data, slopes, {"ab": ["a", "b"]})


def test_predictions_of_a_centred_model_with_missing_values(data, fits):
    """Slopes within clusters."""
    one = ones(data)
    slopes = {"a_within": [("m1_miss~within(x)", one)], "b_within": [("y_miss~within(m1_miss)", one)]}
    assert_predictions(fits("centred"), data, slopes, {"ab_within": ["a_within", "b_within"]})


def test_predictions_of_parallel_mediators_with_missing_values(data, fits):
    """Residuals of the two mediators covary in rows that have both."""
    one = ones(data)
    slopes = {f"a_{m}": [(f"{m}~x", one)] for m in ("m1", "m2_gaps")}
    slopes |= {f"b_{m}": [(f"y~{m}", one)] for m in ("m1", "m2_gaps")}
    assert_predictions(fits("parallel"), data, slopes, {f"ab_{m}": [f"a_{m}", f"b_{m}"] for m in ("m1", "m2_gaps")})


def test_predictions_of_serial_mediators(data, fits):
    one = ones(data)
    names = {"a_m1": "m1~x", "a_m2": "m2~x", "d_m1_m2": "m2~m1", "b_m1": "y~m1", "b_m2": "y~m2"}
    slopes = {name: [(label, one)] for name, label in names.items()}
    routes = {"ab_m1": ["a_m1", "b_m1"], "ab_m2": ["a_m2", "b_m2"], "ab_m1_m2": ["a_m1", "d_m1_m2", "b_m2"]}
    assert_predictions(fits("serial"), data, slopes, routes)


@pytest.mark.parametrize("name", ["post_between", "c_prime2", "indirect - x"])
def test_names_of_mediators_mean_nothing(base, name):
    """A mediator may be called as our effects are."""
    model = jm.Mediation("x", name, "y", "id")
    fit = made_up(base, model)
    assert list(fit.heterogeneity().index) == ["sd_indirect", "sd_total", "share_indirect_positive"]
    rows = [row.kind for row in model.estimands(DataFacts()).rows]
    assert rows == ["path", "path", "path", "covariance", "indirect", "total"]
    several = jm.Mediation("x", [name, "other"], "y", "id").estimands(DataFacts()).rows
    assert [row.kind for row in several][-5:] == ["indirect", "indirect", "indirect", "total", "contrast"]
