"""Profile-likelihood intervals: derivatives, lme4's limits, an independent minimiser, closed forms and invariance."""

from __future__ import annotations

import dense
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE, read_reference
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri
from test_likelihood import Case, run

import jaxmed as jm
from jaxmed import ConvergenceWarning, Equation, Mediation, System
from jaxmed._inference import profile
from jaxmed._inference.profile import profile_curve, profile_intervals
from jaxmed._likelihood import derivatives, likelihood
from jaxmed._support.errors import FitError, SpecError

Z = float(ndtri(0.975))
LIMITS = ["ci_lower", "ci_upper"]


def intervals(fit, labels, level=0.95, **more):
    return profile_intervals(fit, fit.moments, labels, level, **more)


def curve(fit, label, values=None):
    return profile_curve(fit, fit.moments, label, values)


@pytest.fixture(scope="module")
def few():
    """25 clusters of 6."""
    return jm.simulate(clusters=25, size=6, seed=3)


@pytest.fixture(scope="module")
def chain(few):
    """A 1-1-1 model of them with random intercepts and the random paths a and b, REML."""
    random = {"m": ["1", "x"], "y": ["1", "m"]}
    return jm.fit(few, Mediation(x="x", m="m", y="y", cluster="id", random=random))


@pytest.fixture(scope="module")
def regression(few):
    """Two regressions without random effects, ML."""
    return jm.fit(few, Mediation(x="x", m="m", y="y", cluster="id", random="none"), reml=False)


# Derivatives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "reml"), [("diagonal", False), ("correlated residuals", True)])
def test_full_evaluation_against_dense_matrices(name, reml):
    """F, gradient and Hessian in (beta, G, tau) off the GLS estimate; the oracle's differences err by some 1e-8."""
    case = Case(name, reml)
    layout, (root, tau), data = case.layout, case.point, case.packed
    p = layout.n_fixed
    estimate, _ = dense.gls(case.working, *case.split(case.core))
    beta = estimate + 0.3 * np.random.default_rng(1).normal(size=p)

    def evaluate(root, tau, beta, data):
        first = likelihood.marginal_blocks(layout, root, tau, data)
        _, beta_cov, _ = likelihood.profile(layout, first[0][0], first[1], tau, data.n_rows)
        contrast = jnp.append(-beta, 1.0)
        second = derivatives.second_pass(layout, root, tau, data, beta_cov, contrast)
        return derivatives.assemble_full(layout, tau, data.n_rows, beta, first, second)

    def loss(point):
        return -dense.loglik(case.working, *case.split(point[p:]), reml, point[:p])

    found = run(evaluate, root, tau, beta, data)
    point = np.concatenate([beta, case.core])
    assert found.value == pytest.approx(loss(point), rel=1e-12)
    np.testing.assert_allclose(found.gradient, dense.gradient(loss, point), rtol=1e-9, atol=1e-8)
    hessian = dense.hessian(loss, point, np.full(len(point), 1e-5))
    unit = np.sqrt(np.abs(np.diag(hessian)))
    np.testing.assert_allclose(found.hessian / np.outer(unit, unit), hessian / np.outer(unit, unit), atol=1e-7)


# lme4 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "predictor"), [("unbalanced", "x"), ("bound", "m")])
def test_limits_of_one_equation_are_those_of_lme4(name, predictor, unbalanced):
    """profile() and confint() of lme4, ML (tests/reference/profile_lme4.R), to 2e-7 of an interval's width.

    lme4 reads its limits off a spline. In ``bound`` the random slope is almost without variance, and G is singular:
    its lower limit is 0 in both.
    """
    expected = read_reference("profile_lme4.json")[name]
    if name == "unbalanced":
        data = unbalanced.assign(x=(unbalanced["x"] - 50) / 10)
    else:
        data = pd.read_csv(REFERENCE / "singular.csv")
    terms = ["1", predictor]
    fit = jm.fit(data, System([Equation("y", terms, terms)], "id"), reml=False)
    assert fit.loglik == pytest.approx(expected["loglik"], abs=1e-7)
    assert fit.singular == (name == "bound")
    labels = {
        "(Intercept)": "y~1",
        predictor: f"y~{predictor}",
        "sd_(Intercept)|id": "y~1~~y~1",
        f"sd_{predictor}|id": f"y~{predictor}~~y~{predictor}",
        "sigma": "y~~y",
    }
    table = intervals(fit, list(labels.values()))
    for theirs, ours in labels.items():
        found = table.loc[ours, LIMITS].to_numpy(dtype=float)
        found = np.sqrt(found) if theirs.startswith("s") else found
        limits = np.array([expected["lower"][theirs], expected["upper"][theirs]])
        np.testing.assert_allclose(found, limits, rtol=0, atol=2e-7 * np.ptp(limits), err_msg=ours)


# An independent minimiser --------------------------------------------------------------------------------------------


def restricted_loss(few, c=None):
    """-> F of (b, m~1, y~1, c', a, root of G, log residual sds) from dense matrices; with ``c``, a from indirect = c.

    All clusters have six rows, so they are one batch of matrices.
    """
    frame = few.sort_values("id", kind="stable")
    x, m, y = (frame[name].to_numpy().reshape(25, 6) for name in ("x", "m", "y"))
    one, zero = np.ones_like(x), np.zeros_like(x)
    design = np.concatenate(
        [np.stack([one, x, zero, zero, zero], axis=2), np.stack([zero, zero, one, m, x], axis=2)], axis=1
    )
    random, response = design[:, :, :4], np.concatenate([m, y], axis=1)
    below = np.tril_indices(4)

    def loss(free):
        b, m_1, y_1, c_prime, a = free[:5]
        root = np.zeros((4, 4))
        root[below] = free[5:15]
        g = root @ root.T
        if c is not None:
            a = (c - g[1, 3]) / b
        beta = np.array([m_1, a, y_1, b, c_prime])
        sigma = np.repeat(np.exp(2 * free[15:]), 6)
        v = random @ g @ random.swapaxes(1, 2) + np.diag(sigma)
        residual = response - design @ beta
        solved = np.linalg.solve(v, np.concatenate([design, residual[:, :, None]], axis=2))
        information = np.einsum("jki,jkl->il", design, solved[:, :, :5])
        deviance = np.linalg.slogdet(v)[1].sum() + np.sum(residual * solved[:, :, 5])
        deviance += np.linalg.slogdet(information)[1] + (residual.size - 5) * np.log(2 * np.pi)
        return deviance / 2

    return loss


def start_of(fit):
    values, root = fit.params, np.linalg.cholesky(fit.random_cov.to_numpy())
    fixed = [values[label] for label in ("y~m", "m~1", "y~1", "y~x", "m~x")]
    return np.concatenate([fixed, root[np.tril_indices(4)], np.log(fit.residual_var) / 2])


def zeta_of(few, fit, c, tries):
    """|zeta(c)|; a quasi-Newton search with difference gradients needs a second try to be sharp."""
    loss, point = restricted_loss(few, c), start_of(fit)
    for _ in range(tries):
        point = minimize(loss, point, method="BFGS", options={"gtol": 1e-5, "maxiter": 300}).x
    return np.sqrt(2 * (loss(point) + fit.loglik))


def test_indirect_limits_against_an_independent_minimiser(few, chain):
    """At the limits of ab + cov_ab a quasi-Newton search over dense matrices, a eliminated, finds the same F."""
    assert -restricted_loss(few)(start_of(chain)) == pytest.approx(chain.loglik, abs=1e-10)
    row = intervals(chain, ["indirect"]).loc["indirect"]
    assert zeta_of(few, chain, 0.0, 2) == pytest.approx(row["z"], abs=1e-6)
    limits = row[LIMITS]
    for side, limit in zip((-1, 1), limits, strict=True):
        assert zeta_of(few, chain, limit, 2) == pytest.approx(Z, abs=1e-6)
        assert zeta_of(few, chain, limit - side * 0.02, 1) < Z < zeta_of(few, chain, limit + side * 0.02, 1)


def test_curve_and_interval_agree(chain):
    """zeta at the limits is -+ z, at the estimate zero; it rises throughout; loglik falls by zeta^2 / 2."""
    table = intervals(chain, ["indirect", "a"], 0.9)
    z = float(ndtri(0.95))
    limits = table.loc["indirect", LIMITS].to_numpy()
    at = curve(chain, "indirect", [limits[0], table.loc["indirect", "estimate"], limits[1]])
    np.testing.assert_allclose(at["zeta"], [-z, 0, z], atol=1e-6)
    whole = curve(chain, "indirect")
    assert whole.shape == (21, 3)
    assert np.all(np.diff(whole["zeta"]) > 0)
    np.testing.assert_allclose(chain.loglik - whole["loglik"], whole["zeta"] ** 2 / 2, atol=1e-8)
    one = curve(chain, "a", [0.0])
    assert table.loc["a", "z"] == pytest.approx(-one["zeta"][0], abs=1e-8)
    assert list(table.columns) == list(chain.effects().columns)
    pd.testing.assert_frame_equal(table[["estimate", "se"]], chain.effects().loc[["indirect", "a"], ["estimate", "se"]])


# Closed forms and invariance -----------------------------------------------------------------------------------------


def test_linear_regression_has_limits_in_closed_form(regression, few):
    """Without random effects, ML: 2 (F(c) - Fhat) = n log(1 + (c - b)^2 / (C_kk RSS)); of sigma^2, a function of it."""
    x = np.column_stack([np.ones(len(few)), few["x"]])
    beta, (rss,), *_ = np.linalg.lstsq(x, few["m"].to_numpy(), rcond=None)
    n, cov = len(few), np.linalg.inv(x.T @ x)
    half = np.sqrt(np.diag(cov) * rss * np.expm1(Z**2 / n))
    table = intervals(regression, ["m~1", "m~x", "m~~m"])
    np.testing.assert_allclose(table["ci_lower"].iloc[:2], beta - half, rtol=1e-7)
    np.testing.assert_allclose(table["ci_upper"].iloc[:2], beta + half, rtol=1e-7)
    z = np.sign(beta) * np.sqrt(n * np.log1p(beta**2 / (np.diag(cov) * rss)))
    np.testing.assert_allclose(table["z"].iloc[:2], z, rtol=1e-7)
    np.testing.assert_allclose(table["p"].iloc[:2], 2 * ndtr(-np.abs(z)), rtol=1e-6)
    assert table.loc["m~~m", ["z", "p"]].isna().all()
    ratio = table.loc["m~~m", LIMITS].to_numpy(dtype=float) / (rss / n)
    np.testing.assert_allclose(n * (np.log(ratio) + 1 / ratio - 1), Z**2, rtol=1e-6)


def test_limits_move_with_the_units_of_columns(few, chain):
    """x in thousandths and shifted, m in hundreds, y in millions: the same limits in other units."""
    labels = ["indirect", "cov_ab", "b", "m~x~~m~x", "y~~y"]
    there = few.assign(x=7 + few["x"] * 1e3, m=few["m"] * 1e-2, y=few["y"] * 1e6)
    other = jm.fit(there, chain.spec)
    unit = np.array([1e6 / 1e3, 1e6 / 1e3, 1e6 / 1e-2, (1e-2 / 1e3) ** 2, 1e12])
    ours, theirs = intervals(chain, labels), intervals(other, labels)
    width = ours["ci_upper"] - ours["ci_lower"]
    for name in LIMITS:
        assert np.all(np.abs(theirs[name] / unit - ours[name]) < 1e-6 * width)


# Special cases -------------------------------------------------------------------------------------------------------


def test_an_effect_that_is_fixed_has_its_limits_there(regression):
    table = intervals(regression, ["cov_ab"])
    assert table.loc["cov_ab", ["estimate", "se", *LIMITS]].tolist() == [0, 0, 0, 0]
    with pytest.raises(SpecError, match="'cov_ab' is fixed in this model"):
        curve(regression, "cov_ab")


def test_errors(chain, few):
    with pytest.raises(SpecError, match=r"'nothing' is no parameter or effect of this fit; choose from \['m~1'"):
        intervals(chain, ["nothing"])
    with pytest.raises(SpecError, match="level=2"):
        intervals(chain, ["a"], 2)
    with pytest.raises(SpecError, match="give finite numbers, of a variance positive ones"):
        curve(chain, "y~~y", [-1.0])
    part = jm.read_moments(few[few["id"] < 10], chain.spec)
    with pytest.raises(FitError, match="9 of the 25 clusters"):
        profile_intervals(chain, part, ["a"], 0.95)


def test_a_limit_that_is_not_found_is_nan_and_said(chain, monkeypatch):
    monkeypatch.setattr(profile, "solve", lambda *arguments: None)
    with pytest.warns(ConvergenceWarning, match="profile of 'a': a limit and z not found"):
        row = intervals(chain, ["a"]).loc["a"]
    assert np.all(np.isnan(row[["z", "p", *LIMITS]]))
    assert np.isfinite(row["se"])


@pytest.mark.slow
def test_coverage_of_the_indirect_effect():
    """500 data sets of 30 clusters of 6 of the population of Bauer et al.: 95% intervals cover .473, say 92 to 98%."""
    spec = Mediation(x="x", m="m", y="y", cluster="id", random={"m": ["1", "x"], "y": ["1", "m"]})
    inside = []
    for seed in range(500):
        fit = jm.fit(jm.simulate(clusters=30, size=6, seed=seed), spec)
        lower, upper = intervals(fit, ["indirect"]).loc["indirect", LIMITS]
        inside.append(lower < 0.473 < upper)
    assert 0.92 < np.mean(inside) < 0.98
