"""Covariates, moderators, centring, designs and several mediators, as nlme, glmmTMB and lme4 fitted them.

Every model of tests/reference/extended.json, as a System of the stored terms and, where there is one, as the Mediation
that a user would write.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from compare import assert_same_fit, assert_same_matrix, matrix
from conftest import read_reference

import jaxmed as jm

REFERENCES = read_reference("extended.json")
NAMES = [name for name, entry in REFERENCES.items() if "model" in entry]

AB = {"m1": ["1", "x"], "y": ["1", "m1"]}
MISS = {"m1_miss": ["1", "x"], "y_miss": ["1", "m1_miss"]}
MEDIATIONS = {
    "covariates": jm.Mediation(
        "x", "m1", "y", "id", random=AB, covariates={"m1": ["age", "site"], "y": ["age"]}, reference={"site": "A"}
    ),
    "moderated_level2": jm.Mediation("x", "m1", "y", "id", random=AB, moderators={"w": ["a", "b"]}),
    "moderated_level1": jm.Mediation(
        "x",
        "mv",
        "yv",
        "id",
        random={"mv": ["1", "x"], "yv": ["1", "mv"]},
        moderators={"v": "a"},
        covariates={"yv": ["v"]},
    ),
    "within_between": jm.Mediation(
        "x",
        "m1",
        "y",
        "id",
        random={"m1": ["1", "within(x)"], "y": ["1", "within(m1)"]},
        center="cluster",
        intercepts="correlated",
    ),
    "within_between_missing": jm.Mediation(
        "x",
        "m1_miss",
        "y_miss",
        "id",
        random={"m1_miss": ["1", "within(x)"], "y_miss": ["1", "within(m1_miss)"]},
        center="cluster",
        intercepts="correlated",
    ),
    "design_211": jm.Mediation("tx", "mt", "yt", "id", center="none"),
    "design_221": jm.Mediation("xc", "mc", "yc", "id"),
    "parallel": jm.Mediation("x", ["m1", "m2"], "y", "id", random={"m1": ["1", "x"], "m2": ["1", "x"], "y": ["1"]}),
    "parallel_missing": jm.Mediation(
        "x", ["m1_miss", "m2"], "y", "id", random={"m1_miss": ["1", "x"], "m2": ["1", "x"], "y": ["1"]}
    ),
    "serial": jm.Mediation(
        "x", ["m1", "m2"], "y", "id", serial=True, random={"m1": ["1", "x"], "m2": ["1", "m1"], "y": ["1", "m2"]}
    ),
    "listwise": jm.Mediation("x", "m1_miss", "y_miss", "id", random=MISS),
    "available": jm.Mediation("x", "m1_miss", "y_miss", "id", random=MISS),
}

# Restricted and ordinary likelihood differ by one term, the same for every model, so each model is compiled for one of
# them and the other is left to the slow run.
ML_ONLY = {"moderated_level1_random", "available", "design_211", "parallel", "within_between"}
CASES = [
    pytest.param(
        name,
        method,
        marks=[] if (method == "ML") == (name in ML_ONLY) else [pytest.mark.slow],
        id=f"{name}-{method}",
    )
    for name in NAMES
    for method in ("REML", "ML")
]


def stored_system(model: dict) -> jm.System:
    equations = [jm.Equation(**equation) for equation in model["equations"]]
    return jm.System(equations, "id", model["covariance"], model.get("residuals", ()))


def assert_same_residuals(fit: jm.Fit, reference: dict) -> None:
    """The residual matrix and its errors; without shared residuals, zeros off its diagonal."""
    if "residual_cov" not in reference:
        np.testing.assert_array_equal(fit.residual_cov, np.diag(fit.residual_var))
        assert np.array_equal(fit.residual_cov_se.isna(), ~np.eye(len(fit.residual_var), dtype=bool))
        return
    assert_same_matrix(fit.residual_cov, reference["residual_cov"], 1e-5)
    expected = matrix(reference["residual_cov_se"]).replace(0.0, np.nan)
    found = fit.residual_cov_se.loc[expected.index, expected.columns]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_extended_models(extended, name, method):
    """1e-6 in the log likelihood and 1e-5 elsewhere.

    The references' own scaled gradient is below 2e-12 and their second derivatives are analytic, so that 1e-5, relative
    to standard errors, is generous; it is the tolerance of every comparison with R here.
    """
    rows = REFERENCES[name]["model"].get("rows") or "available"
    reference = REFERENCES[name][method]
    fits = [jm.fit(extended, stored_system(REFERENCES[name]["model"]), reml=method == "REML", missing=rows)]
    if name in MEDIATIONS:
        with pytest.warns(jm.DesignWarning) if name.startswith("design") else nullcontext():
            fits.append(jm.fit(extended, MEDIATIONS[name], reml=method == "REML", missing=rows))
        assert fits[1].system == fits[0].system
    for fit in fits:
        assert_same_fit(fit, reference)
        assert_same_residuals(fit, reference)
        assert not fit.singular
        assert fit.loglik >= max(reference["loglik_by_program"].values()) - 1e-8
        assert list(fit.params.index) == list(reference["params"])


def test_mediations_are_the_stored_systems():
    """No model of the references is left out by mistake: what Mediation cannot say has one equation."""
    single = {name for name in NAMES if len(REFERENCES[name]["model"]["equations"]) == 1}
    assert set(MEDIATIONS) == set(NAMES) - single


@pytest.mark.parametrize("random", ["1", "1,x"])
def test_models_of_the_comparison(extended, random):
    """The two models of the likelihood-ratio comparison, REML."""
    entry = REFERENCES["compare"]
    stored = entry["fits"][random]
    assert stored["model"]["equations"][0]["random"] == random.split(",")
    fit = jm.fit(extended, stored_system(stored["model"]))
    assert_same_fit(fit, stored["REML"])
    assert fit.loglik == pytest.approx(entry["loglik"][random], rel=0, abs=1e-6)
