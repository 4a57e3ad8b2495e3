"""Single covariances of random effects at zero: System(zero=), and the random intercepts of split mediators.

Witnesses: glmmTMB and lme4 with the same zeros, a dense likelihood (tests/reference/zero), ``jax.hessian`` of the plain
likelihood.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import read_reference

import jaxmed as jm
from jaxmed._data.design import make_design
from jaxmed._data.totals import add_up
from jaxmed._likelihood import derivatives, likelihood
from jaxmed._likelihood.layout import count_rows, lower, make_layout, root_and_precision, theta_of, triangular
from jaxmed._support.runtime import float64

CASES = read_reference("zero/cases.json")
SPLIT = {"x": "x", "m": "m", "y": "y", "cluster": "id", "center": "cluster"}
STAR = [("m~1", "y~1")]


def data_of(case: dict) -> pd.DataFrame:
    if case["data"] == "example.csv":
        return jm.datasets.load_example()
    if case["data"] == "schools.csv":
        return jm.datasets.load_schools()
    folder = os.environ.get("JAXMED_DATA")
    if not folder or not (Path(folder) / case["data"]).exists():
        pytest.skip(f"{case['data']} is not in the folder that JAXMED_DATA names")
    return pd.read_csv(Path(folder) / case["data"])


def system_of(case: dict) -> jm.System:
    equations = [jm.Equation(e["outcome"], e["predictors"], e["random"]) for e in case["equations"]]
    return jm.System(equations, case["cluster"], residuals=case["residuals"], zero=case["zero"])


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_other_programs(name, reml):
    """Log likelihood to 1e-8, estimates to 1e-5 standard errors, joint errors to 1e-4: that of the optimum of each.

    The serial case is singular: there only lme4 and the dense likelihood are witnesses, to 1e-7.
    """
    case = CASES[name]
    known = read_reference(f"zero/{name}.json")["REML" if reml else "ML"]
    fit = jm.fit(data_of(case), system_of(case), reml=reml)
    assert fit.converged
    assert abs(fit.loglik - known["loglik"]) < 1e-7
    params = pd.Series(known["params"])
    assert np.all(np.abs(fit.params[params.index] - params) < 1e-4 * pd.Series(known["bse_block"]))
    labels = known["random_cov"]["labels"]
    g = pd.DataFrame(known["random_cov"]["values"], labels, labels)
    sd = np.sqrt(np.diag(g))
    assert np.all(np.abs(fit.random_cov.loc[labels, labels] - g).to_numpy() < 2e-4 * np.outer(sd, sd))
    for one, other in case["zero"]:
        assert fit.random_cov.loc[one, other] == 0.0
        assert np.isnan(fit.random_cov_se.loc[one, other])
    if known.get("bse_joint"):
        np.testing.assert_allclose(fit.bse[params.index], pd.Series(known["bse_joint"])[params.index], rtol=1e-5)


@pytest.mark.parametrize("reml", [True, False])
def test_derivatives(reml):
    """Value, gradient and Hessian of the closed form are those of automatic differentiation, at random points."""
    data = jm.datasets.load_example()
    system = jm.Mediation(**SPLIT, zero=STAR).system()
    design = make_design(system, jm.read_moments(data, system))
    layout = make_layout(design, reml)
    rows = likelihood.make_data(design.table, count_rows(layout, system, add_up(design)))
    rng = np.random.default_rng(0)

    @float64
    def both(theta):
        root, tau = root_and_precision(layout, jnp.asarray(theta))
        g = root @ root.T

        def plain(core):
            full = lower(layout, core[: len(layout.free)])
            matrix = full + full.T - jnp.diag(jnp.diagonal(full))
            return likelihood.negative_loglik(layout, jnp.linalg.cholesky(matrix), core[len(layout.free) :], rows)

        row, col = np.array(layout.free).T
        core = jnp.concatenate([g[row, col], tau])
        return derivatives.evaluate(layout, root, tau, rows), jax.grad(plain)(core), jax.hessian(plain)(core)

    for _ in range(3):
        theta = rng.normal(size=layout.n_theta) * 0.3
        theta[[k for k, (row, col) in enumerate(layout.free) if row == col]] += 1.0
        found, gradient, hessian = both(theta)
        np.testing.assert_allclose(found.gradient, gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
        np.testing.assert_allclose(found.hessian, hessian, rtol=1e-8, atol=1e-9 * np.abs(hessian).max())


def test_zero_of_the_root():
    """A zero of the root is a zero of G, whichever way the rows are ordered, and both ways back give the same G."""
    system = jm.Mediation("x", ["p", "q"], "y", "id", center="cluster", zero=[("p~1", "y~1"), ("q~1", "y~1")]).system()
    assert system.random_labels[:3] == ("y~1", "p~1", "q~1")
    names = list(system.columns)
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.normal(size=(300, len(names))), columns=names).assign(id=np.repeat(range(30), 10))
    layout = make_layout(make_design(system, jm.read_moments(frame, system)), True)
    entries = rng.normal(size=len(layout.free))
    for scale in (1.0, 0.0):  # with a random intercept that does not vary, too
        entries[0] *= scale
        root = float64(lower)(layout, entries)
        g = root @ root.T
        assert g[0, 1] == g[0, 2] == 0.0
        for pivot in (True, False):
            again, order = float64(triangular)(layout, root, pivot=pivot)
            np.testing.assert_allclose(again @ again.T, g, atol=1e-12)
            assert again[0, 1:].tolist() == [0.0] * (len(g) - 1)
            assert again[1, 0] == again[2, 0] == 0.0
            assert order[:3].tolist() == [0, 1, 2]
        theta = theta_of(layout, np.concatenate([[g[row, col] for row, col in layout.free], np.ones(3), [0.0]]))
        back = float64(lower)(layout, theta[: len(layout.free)])
        np.testing.assert_allclose(back @ back.T, g, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_small_and_singular_data(seed):
    """Few clusters, singular G: every fit ends with its certificate, no start finds a better one, zeros stay zero."""
    rng = np.random.default_rng(seed)
    clusters, size = [(12, 4), (25, 5), (8, 6)][seed % 3]
    ids = np.repeat(np.arange(clusters), size)
    effects = rng.normal(size=(clusters, 5)) * rng.choice([0.0, 0.3, 1.0], size=5)
    x = rng.normal(size=len(ids)) + rng.normal(size=clusters)[ids]
    m = effects[ids, 0] + (0.4 + effects[ids, 1]) * x + rng.normal(size=len(ids))
    y = effects[ids, 2] + (0.4 + effects[ids, 3]) * m + (0.2 + effects[ids, 4]) * x + rng.normal(size=len(ids))
    frame = pd.DataFrame({"id": ids, "x": x, "m": m, "y": y})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = jm.fit(frame, **SPLIT | {"zero": STAR})
        optima = jm.optima(fit, 10, seed=1)
    assert fit.converged
    assert optima["loglik"].iloc[0] - fit.loglik < 1e-5
    assert fit.random_cov.loc["m~1", "y~1"] == 0.0


def test_default_of_split_mediators():
    """Random intercepts are independent by default, as with these groups; one word or one pair says otherwise."""
    system = jm.Mediation(**SPLIT).system()
    assert system.covariance == (("m~1",), ("m~within(x)", "y~within(m)", "y~within(x)"), ("y~1",))
    assert jm.Mediation(**SPLIT, intercepts="independent").system() == system
    assert jm.Mediation(**SPLIT, intercepts="correlated").system().covariance == "unstructured"
    star = jm.Mediation(**SPLIT, zero=STAR).system()
    assert star.zero == (("m~1", "y~1"),)
    assert len(star.random_pairs) == 14
    several = jm.Mediation("x", ["p", "q"], "y", "id", center="cluster", random={"p": ["1"], "q": ["1"], "y": ["1"]})
    assert several.system().covariance == (("p~1", "q~1"), ("y~1",))
    serial = jm.Mediation(
        "x", ["p", "q"], "y", "id", serial=True, center="cluster", random={key: ["1"] for key in "pqy"}
    )
    assert serial.system().covariance == (("p~1",), ("q~1",), ("y~1",))
    plain = jm.Mediation("x", "m", "y", "id")
    assert plain.system().covariance == "unstructured"
    assert jm.Mediation("x", "m", "y", "id", intercepts="independent").system().covariance == (
        ("m~1",),
        ("m~x", "y~m", "y~x"),
        ("y~1",),
    )


def test_saved_and_computed_from(tmp_path):
    """What follows from a fit works with zeros: saving, intervals, predictions, bootstrap, comparison."""
    data = jm.datasets.load_example()
    fit = jm.fit(data, **SPLIT | {"zero": STAR})
    fit.save(tmp_path / "fit.jaxmed")
    again = jm.load(tmp_path / "fit.jaxmed", verify=True)
    assert again.random_cov.equals(fit.random_cov)
    assert again.spec == fit.spec
    assert list(fit.ranef().columns[:2]) == ["m~1", "m~1_se"]
    profile = fit.intervals("profile", terms=["indirect_within"])
    delta = fit.intervals(terms=["indirect_within"])
    assert np.all(np.abs(profile["ci_lower"] - delta["ci_lower"]) < 0.05)
    replicates = jm.bootstrap(fit, 8, seed=1)
    assert (replicates.table["status"] == 0).all()
    with pytest.warns(jm.ConvergenceWarning, match="or fit with intercepts='independent'"):  # flat: balanced clusters
        larger = jm.fit(data, **SPLIT | {"intercepts": "correlated"})
    test = jm.compare(fit, larger)
    assert test.df == 1
    assert fit.satterthwaite(terms=["m~within(x)"])["df"].iloc[0] > 10
    robust = fit.effects(covariance="robust")["se"] / fit.effects()["se"]
    assert robust.between(0.5, 2).all()


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ([("m~1", "q~1")], "zero names 'q~1', which is not a random effect of this model; choose from"),
        ([("m~1",)], r"zero has \('m~1',\); each entry must be a pair of labels of two random effects"),
        ([("m~1", "m~1")], "each entry must be a pair of labels of two random effects"),
        ("m~1", "zero must be a list of pairs of labels"),
        (
            [("m~1", "m~x"), ("y~1", "y~x")],
            r"zero leaves the covariances of 'm~1', 'y~1', 'm~x' and 'y~x' in a circle.* such as \('m~1', 'y~1'\)",
        ),
    ],
)
def test_refused(zero, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.Mediation("x", "m", "y", "id", zero=zero)
    if "circle" in message:  # the remedy
        assert jm.Mediation("x", "m", "y", "id", zero=[*zero, ("m~1", "y~1")]).system().zero


def test_published_diary():
    """The case that brought this about: a between effect of +8.42 (z = 14.5) on a scale from 1 to 5, and its mirror."""
    folder = os.environ.get("JAXMED_DATA")
    if not folder or not (Path(folder) / "aces_daily.csv").exists():
        pytest.skip("aces_daily.csv is not in the folder that JAXMED_DATA names")
    data = pd.read_csv(Path(folder) / "aces_daily.csv")
    roles = {"x": "STRESS", "m": "NegAff", "y": "PosAff", "cluster": "UserID", "center": "cluster"}
    effects = jm.fit(data, **roles).effects().round(3)
    assert effects.loc["b_between", ["estimate", "se"]].tolist() == [-0.167, 0.17]
    assert effects.loc["indirect_between", ["estimate", "se"]].tolist() == [-0.04, 0.04]
    means = data.groupby("UserID")[["STRESS", "NegAff", "PosAff"]].mean()
    design = np.column_stack([np.ones(len(means)), means["NegAff"], means["STRESS"]])
    by_hand = np.linalg.lstsq(design, means["PosAff"], rcond=None)[0][1]  # of means: unbalanced, so nearly the same
    assert abs(by_hand - effects.loc["b_between", "estimate"]) < 0.01
    with pytest.warns(jm.ConvergenceWarning, match="do not read these effects") as said:
        old = jm.fit(data, **roles, intercepts="correlated")
    text = str(said[0].message)
    assert "b_between, c_prime_between, indirect_between rest on the covariance of the random intercepts" in text
    assert "a second optimum lies 0.52 log likelihood units lower" in text
    assert "'NegAff~1' and 'PosAff~1' correlate -0.99" in text
    assert round(old.effects().loc["b_between", "estimate"], 1) == 8.4
