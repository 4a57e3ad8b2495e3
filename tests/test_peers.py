"""The same models as nlme, glmmTMB and lme4 fitted them (tests/reference/README.md)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from compare import assert_same_fit, matrix
from conftest import REFERENCE, read_reference

import jaxmed as jm

AB = {"m": ["1", "x"], "y": ["1", "m"]}
MODELS = {
    "full": {},
    "ab_int": {"random": AB},
    "ab_int_diag": {"random": AB, "covariance": "diagonal"},
    "full_blocks": {"covariance": "block"},
}
METHODS = ["REML", "ML"]


def mediation(**options) -> jm.Mediation:
    return jm.Mediation("x", "m", "y", "id", **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_unbalanced_stacked_models(unbalanced, name, method):
    """The references' own score is below 3e-10; 1e-5 covers standard errors from R's numerical second derivatives."""
    fit = jm.fit(unbalanced, mediation(**MODELS[name]), reml=method == "REML")
    reference = read_reference("unbalanced.json")[name][method]
    assert_same_fit(fit, reference)
    assert not fit.singular
    best = max(reference["loglik_by_program"].values())
    assert fit.loglik >= best - 1e-8


def test_unbalanced_predictions(unbalanced):
    """1e-6 of the standard deviations of the random effects; R's agree with G Z'V^-1 (y - X beta) to 1e-13."""
    reference = read_reference("unbalanced_ranef.json")
    fit = jm.fit(unbalanced, mediation())
    found = fit.ranef().loc[reference["id"], reference["labels"]]
    sd = np.sqrt(np.diag(fit.random_cov.loc[reference["labels"], reference["labels"]]))
    np.testing.assert_allclose((found - np.array(reference["values"])) / sd, 0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_unbalanced_single_equation(unbalanced, method):
    model = jm.System([jm.Equation("y", ["1", "x"], random=["1", "x"])], cluster="id")
    fit = jm.fit(unbalanced, model, reml=method == "REML")
    reference = read_reference("unbalanced_single_equation.json")[method]
    assert_same_fit(fit, reference)
    ranef = reference["ranef"]
    found = fit.ranef().loc[ranef["id"]]
    sd = np.sqrt(np.diag(fit.random_cov))
    np.testing.assert_allclose((found[ranef["labels"]] - np.array(ranef["values"])) / sd, 0, atol=1e-6)
    # R's conditional covariance leaves out the uncertainty of beta: ours is larger, but not by much.
    conditional = np.sqrt(np.diagonal(np.array(ranef["conditional_cov"]), axis1=1, axis2=2))
    ratio = found[[f"{label}_se" for label in ranef["labels"]]].to_numpy() / conditional
    assert np.all(ratio > 1)
    assert np.median(ratio) < 1.2


@pytest.fixture(scope="module")
def singular_data() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "singular.csv")


@pytest.mark.parametrize("method", METHODS)
def test_singular_model(singular_data, method):
    """The boundary is reached, said and not called a failure; no peer finds a higher log likelihood.

    lme4's eight starts agree to 2e-11 in the log likelihood, which leaves sqrt(2 * 2e-11) = 6e-6 standard errors for
    its parameters; 1e-4 relative is allowed.
    """
    fit = jm.fit(singular_data, mediation(random=AB), reml=method == "REML")
    reference = read_reference("singular.json")[method]
    assert fit.singular
    assert "singular" in fit.message
    best = max(max(starts) for starts in reference["loglik_by_start"].values())
    assert fit.loglik >= best - 1e-6
    assert_same_fit(fit, reference, tolerance=1e-4)
    g = fit.random_cov.to_numpy()
    sd = np.sqrt(np.diag(g))
    assert np.linalg.eigvalsh(g / np.outer(sd, sd))[0] == pytest.approx(0, abs=1e-6)
    assert matrix(reference["random_cov"]).shape == g.shape
