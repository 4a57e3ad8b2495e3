"""Satterthwaite's degrees of freedom against lmerTest, finite differences, and what they are by hand."""

from __future__ import annotations

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE, read_reference
from scipy.stats import t as student

import jaxmed as jm
from jaxmed._inference.satterthwaite import covariance_slopes

SLOPE = jm.System([jm.Equation("y", ["1", "x"], ["1", "x"])], "id")
LEVELS = jm.System([jm.Equation("y", ["1", "x", "tx", "w", "v"], ["1", "x"])], "id")
SMALL = jm.Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1", "m"]})


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    """Unbalanced, some y missing, x near zero so that dense inverses keep their digits."""
    return pd.read_csv(REFERENCE / "unbalanced.csv").assign(x=lambda table: table["x"] - 51)


@pytest.fixture(scope="module")
def fit(data) -> jm.Fit:
    return jm.fit(data, SMALL)


# Another program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), [("slope", "ML"), ("levels", "REML")])
def test_lmertest(name, method, unbalanced, extended):
    """df and p as lmerTest has them, and clubSandwich's robust covariance (diagnostics.R).

    lmerTest differentiates numerically at lme4's optimum: they agree to 1e-7, asked for is 1e-6 (p, far in the tails of
    t, 1e-5). clubSandwich takes the variance parameters as known: C (sum_j s_j s_j') C with the scores of the fixed
    effects, in units of the standard errors to 1e-7 (3e-8 seen, from lme4's optimum).
    """
    spec, data = (SLOPE, unbalanced.assign(x=(unbalanced["x"] - 50) / 10)) if name == "slope" else (LEVELS, extended)
    expected = read_reference("diagnostics.json")[name][method]
    found = jm.fit(data, spec, reml=method == "REML")
    assert found.loglik == pytest.approx(expected["loglik"], abs=1e-7)
    assert found.nobs == expected["rows"]
    table = found.satterthwaite("block", terms=list(found.params.index))
    np.testing.assert_allclose(table["se"], expected["se"], rtol=1e-6)
    np.testing.assert_allclose(table["df"], expected["df"], rtol=1e-6)
    np.testing.assert_allclose(table["p"], expected["p"], rtol=1e-5)

    c, scores = found.cov_params("block").to_numpy(), found.scores().to_numpy()[:, : len(found.params)]
    unit = np.sqrt(np.outer(np.diag(c), np.diag(c)))
    robust = c @ scores.T @ scores @ c
    np.testing.assert_allclose(robust / unit, expected["robust"]["CR0"] / unit, atol=1e-7)
    j = found.n_clusters
    np.testing.assert_allclose(j / (j - 1) * robust / unit, expected["robust"]["CR1"] / unit, atol=1e-7)


# Derivatives ---------------------------------------------------------------------------------------------------------


def user_slopes(fit):
    """Derivatives of the joint covariance on the user's scale."""
    found = covariance_slopes(fit, fit.moments, "joint")
    back = np.linalg.inv(found.matrix[5:, 5:])
    return np.einsum("ab,kbc,dc,kl->lad", found.matrix, found.slope, found.matrix, back, optimize=True)


def test_derivatives_of_the_joint_covariance(fit, data):
    """Against central differences, over 1e-3 standard errors, of the covariance of dense matrices by complex steps.

    Errors of differences of a numerical Hessian: some 1e-5 of the covariance in a step of one standard error.
    """
    clusters, p, n_free = dense.stack(data, SMALL.system()), 5, len(fit.free)
    values, error = fit.values, np.sqrt(np.diag(fit.joint))

    def split(theta):
        return dense.symmetric(theta[:n_free], fit.free, 4), theta[n_free:]

    def joint(theta):
        hessian = dense.hessian(lambda at: -dense.loglik(clusters, *split(at), True), theta, 1e-3 * error[p:])
        v = np.linalg.inv(hessian)
        c = np.linalg.inv(dense.gls(clusters, *split(theta))[1])
        d = dense.gradient(lambda at: dense.gls(clusters, *split(at))[0], theta)
        return np.block([[c + d @ v @ d.T, d @ v], [v @ d.T, v]])

    slope = user_slopes(fit)
    unit = np.outer(error, error)
    for k in (0, fit.labels.index("m~x~~y~m") - p, len(slope) - 1):
        step = np.zeros(len(slope))
        step[k] = 1e-3 * error[p + k]
        expected = (joint(values[p:] + step) - joint(values[p:] - step)) / 2e-3
        np.testing.assert_allclose(slope[k] * error[p + k] / unit, expected / unit, atol=1e-4)


def test_effects_follow_from_the_parameters(fit):
    """Var(V) of ab + cov_ab by hand: V = g'Cov g with g = (b, a, 1), differentiated as a product."""
    slopes = user_slopes(fit)
    a, b, cov = (fit.labels.index(label) for label in ("m~x", "y~m", "m~x~~y~m"))
    g = np.zeros(len(fit.labels))
    g[[a, b, cov]] = fit.params["y~m"], fit.params["m~x"], 1.0
    gradient = np.zeros(len(g))
    gradient[a], gradient[b] = 2 * (fit.joint @ g)[b], 2 * (fit.joint @ g)[a]
    gradient[5:] += np.array([g @ one @ g for one in slopes])
    variance = g @ fit.joint @ g
    table = fit.satterthwaite()
    assert table.loc["indirect", "df"] == pytest.approx(2 * variance**2 / (gradient @ fit.joint @ gradient), rel=1e-10)
    assert table.loc["a", "df"] == pytest.approx(table.loc["m~x", "df"], rel=1e-12)


def test_the_table(fit):
    table = fit.satterthwaite(level=0.9)
    effects = fit.effects()
    assert list(table.index) == [*fit.params.index, *effects.index]
    assert list(table.columns) == ["estimate", "se", "df", "t", "p", "ci_lower", "ci_upper"]
    np.testing.assert_allclose(table["se"], [*fit.bse, *effects["se"]], rtol=1e-10)
    np.testing.assert_allclose(table["p"], 2 * student.sf(np.abs(table["t"]), table["df"]), rtol=1e-8)
    half = student.ppf(0.95, table["df"]) * table["se"]
    np.testing.assert_allclose(table["ci_upper"] - table["estimate"], half, rtol=1e-8)
    assert (fit.satterthwaite(terms="effects").index == effects.index).all()


def test_errors(fit):
    with pytest.raises(jm.SpecError, match=r"covariance='robust' is not known; choose 'joint' or 'block'"):
        fit.satterthwaite("robust")
    with pytest.raises(jm.SpecError, match=r"terms=\['ab'\]: choose"):
        fit.satterthwaite(terms="ab")
    singular = jm.fit(pd.read_csv(REFERENCE / "singular.csv"), SMALL)
    with pytest.raises(jm.FitError, match="singular: the variance of an estimate has no derivative"):
        singular.satterthwaite()
