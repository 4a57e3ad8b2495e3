"""Covariances, effects, tests and predictions against the full Hessian, formulas by hand and Henderson's equations."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE
from scipy.stats import chi2, norm

import jaxmed as jm
from jaxmed._data import moments_file
from jaxmed._inference import effects
from jaxmed._inference.estimability import delta
from jaxmed._inference.limits import critical_value, limits_on_scale, normal_table
from jaxmed._inference.singularity import is_singular
from jaxmed._likelihood.layout import Layout
from jaxmed._model.data_facts import DataFacts

FULL = jm.Mediation("x", "m", "y", "id")


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    """Unbalanced, some y missing, x near zero so that dense inverses keep their digits."""
    return pd.read_csv(REFERENCE / "unbalanced.csv").assign(x=lambda table: table["x"] - 51)


@pytest.fixture(scope="module")
def ml(data) -> jm.Fit:
    return jm.fit(data, FULL, reml=False)


@pytest.fixture(scope="module")
def reml(data) -> jm.Fit:
    return jm.fit(data, FULL)


@pytest.fixture(scope="module")
def clusters(data) -> list[dense.Cluster]:
    return dense.stack(data, FULL.system())


def entry(fit: jm.Fit, *labels: str) -> list[int]:
    return [fit.labels.index(label) for label in labels]


# Covariances ---------------------------------------------------------------------------------------------------------


def test_ml_joint_covariance_inverts_the_full_hessian(ml, clusters):
    """Hessian of the unprofiled log likelihood in (beta, G, sigma^2); differences over 1e-4 se err by some 1e-8."""
    p, n_free = 5, len(ml.free)

    def loss(values):
        g = dense.symmetric(values[p : p + n_free], ml.free, 5)
        return -dense.loglik(clusters, g, values[p + n_free :], False, values[:p])

    error = np.sqrt(np.diag(ml.joint))
    # At the maximum: the decrement g'H^-1g/2 below 1e-10 means a gradient below 1e-5 in units of 1 / se.
    assert np.max(np.abs(dense.gradient(loss, ml.values) * error)) < 1e-5
    hessian = dense.hessian(loss, ml.values, 1e-4 * error)
    correlation = np.linalg.inv(hessian * np.outer(error, error))
    np.testing.assert_allclose(correlation, ml.joint / np.outer(error, error), atol=1e-6)


def test_reml_joint_covariance_follows_its_definition(reml, clusters):
    """joint = [C + D V D', D V; V D', V] with V from the restricted likelihood and D = d beta / d (G, sigma^2)."""
    n_free = len(reml.free)

    def split(theta):
        return dense.symmetric(theta[:n_free], reml.free, 5), theta[n_free:]

    theta, error = reml.values[5:], np.sqrt(np.diag(reml.joint))
    hessian = dense.hessian(lambda t: -dense.loglik(clusters, *split(t), True), theta, 1e-4 * error[5:])
    v = np.linalg.inv(hessian)
    c = np.linalg.inv(dense.gls(clusters, *split(theta))[1])
    d = dense.gradient(lambda t: dense.gls(clusters, *split(t))[0], theta)
    expected = np.block([[c + d @ v @ d.T, d @ v], [v @ d.T, v]])
    np.testing.assert_allclose((reml.joint - expected) / np.outer(error, error), 0, atol=1e-6)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_block_covariance_is_that_of_gls(method, clusters, request):
    """1e-8: one inversion of a well-scaled 5 x 5 matrix on either side."""
    fit = request.getfixturevalue(method)
    beta, information = dense.gls(clusters, fit.random_cov.to_numpy(), fit.residual_var.to_numpy())
    covariance = fit.cov_params("block").to_numpy()
    np.testing.assert_allclose(covariance @ information, np.eye(5), atol=1e-8)
    np.testing.assert_allclose((fit.params - beta) / np.sqrt(np.diag(covariance)), 0, atol=1e-8)
    assert not fit.block[:5, 5:].any()
    np.testing.assert_allclose(fit.block[5:, 5:], fit.joint[5:, 5:], rtol=1e-12)  # carried to the scale apart


def test_joint_standard_errors_are_the_larger(reml):
    """C + D V D' exceeds C, strictly for the equation whose regressor is itself an outcome."""
    excess = reml.standard_errors("joint") - reml.standard_errors("block")
    assert (excess > 0).all()
    assert excess["y~m"] > 0.05 * reml.bse["y~m"]


def test_accessors_show_the_same_numbers(reml):
    labels = list(reml.system.random_labels)
    full = reml.cov_params("joint", full=True)
    assert reml.random_cov_se.loc["m~x", "y~m"] == np.sqrt(full.loc["m~x~~y~m", "m~x~~y~m"])
    assert reml.random_cov_se.loc["y~m", "m~x"] == reml.random_cov_se.loc["m~x", "y~m"]
    assert reml.residual_var_se["y"] == np.sqrt(full.loc["y~~y", "y~~y"])
    assert list(reml.random_cov.index) == labels
    assert reml.aic == -2 * reml.loglik + 2 * 22
    assert reml.bic == pytest.approx(-2 * reml.loglik + 22 * np.log(526 + 489), rel=1e-15)


# Correlated residuals and cluster-level equations ---------------------------------------------------------------------

TWO = jm.System(
    [
        jm.Equation("m", ["1", "x"], ["1"]),
        jm.Equation("w", ["1", "x"], ["1"]),
        jm.Equation("y", ["1", "m", "w", "x"], ["1", "m"]),
    ],
    "id",
    covariance=[["m~1", "w~1"], ["y~1", "y~m"]],
    residuals=[["m", "w"]],
)


@pytest.fixture(scope="module")
def two(data) -> pd.DataFrame:
    """A second mediator, its residuals correlated with those of the first; rows with either of the two alone."""
    rng = np.random.default_rng(12)
    cluster = rng.normal(0, 0.5, len(data))[data["id"].astype("category").cat.codes]
    w = 0.4 * data["x"] + 0.5 * data["m"] + cluster + rng.normal(size=len(data))
    data = data.assign(w=w, y=data["y"] + 0.3 * w)
    data.loc[rng.random(len(data)) < 0.1, "m"] = np.nan
    data.loc[rng.random(len(data)) < 0.1, "w"] = np.nan
    return data


@pytest.fixture(scope="module", params=["ml", "reml"])
def fit_two(two, request) -> jm.Fit:
    fit = jm.fit(two, TWO, reml=request.param == "reml")
    assert fit.converged
    assert not fit.singular
    return fit


def split_two(values):
    """(free entries of G, residual variances, residual covariance) -> G, Sigma."""
    assert TWO.random_pairs == ((0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3))
    return dense.symmetric(values[:6], TWO.random_pairs, 4), dense.symmetric(
        values[6:], ((0, 0), (1, 1), (2, 2), (1, 0)), 3
    )


def test_joint_covariance_with_correlated_residuals(fit_two, two):
    """ML: the inverse Hessian in (beta, G, Sigma); REML: its definition. Differences over 3e-5 se err by some 1e-7."""
    clusters, p = dense.stack(two, TWO), 8
    values, error = fit_two.values, np.sqrt(np.diag(fit_two.joint))
    assert fit_two.loglik == pytest.approx(dense.loglik(clusters, *split_two(values[p:]), fit_two.reml), rel=1e-9)
    if fit_two.reml:
        v = np.linalg.inv(
            dense.hessian(lambda t: -dense.loglik(clusters, *split_two(t), True), values[p:], 3e-5 * error[p:])
        )
        c = np.linalg.inv(dense.gls(clusters, *split_two(values[p:]))[1])
        d = dense.gradient(lambda t: dense.gls(clusters, *split_two(t))[0], values[p:])
        expected = np.block([[c + d @ v @ d.T, d @ v], [v @ d.T, v]])
    else:

        def loss(values):
            return -dense.loglik(clusters, *split_two(values[p:]), False, values[:p])

        assert np.max(np.abs(dense.gradient(loss, values) * error)) < 1e-5
        expected = np.linalg.inv(dense.hessian(loss, values, 3e-5 * error))
    np.testing.assert_allclose((fit_two.joint - expected) / np.outer(error, error), 0, atol=1e-6)


def test_predictions_with_correlated_residuals(fit_two, two):
    """As below, against dense predictions and Henderson's equations."""
    clusters = dense.stack(two, TWO)
    g, sigma = split_two(fit_two.values[8:])
    table, labels = fit_two.ranef(), list(TWO.random_labels)
    assert list(table.index) == [c.label for c in clusters]
    blups = dense.blups(clusters, g, sigma, fit_two.params.to_numpy())
    np.testing.assert_allclose((table[labels] - blups) / np.sqrt(np.diag(g)), 0, atol=1e-8)
    expected = np.sqrt(np.diag(dense.henderson(clusters, g, sigma))[8:]).reshape(-1, 4)
    np.testing.assert_allclose(table[[f"{label}_se" for label in labels]], expected, rtol=1e-7)


def test_tests_with_correlated_residuals(fit_two, two):
    """Against ordinary regressions: the residual covariance and six of G are what the model has more of."""
    test = fit_two.lr_test()
    assert test.df == 7
    clusters = dense.stack(two, TWO)
    each = [
        jm.fit(two, jm.System([jm.Equation(e.outcome, e.predictors)], "id"), reml=fit_two.reml) for e in TWO.equations
    ]
    sigma = np.concatenate([fit.residual_var for fit in each])
    assert fit_two.null == (pytest.approx(sum(fit.loglik for fit in each), rel=1e-10), 3)
    assert fit_two.null[0] == pytest.approx(dense.loglik(clusters, np.zeros((4, 4)), sigma, fit_two.reml), rel=1e-10)


@pytest.mark.parametrize("reml", [False, True])
def test_correlated_residuals_alone_are_multivariate_regression(data, reml):
    """The same predictors and no random effects: least squares, and Sigma = E'E / (n, or n - k), in closed form."""
    data = data.dropna()
    outcomes = ["m", "y"]
    system = jm.System([jm.Equation(name, ["1", "x"]) for name in outcomes], "id", residuals=[outcomes])
    fit = jm.fit(data, system, reml=reml)
    x = np.column_stack([np.ones(len(data)), data["x"]])
    beta = np.linalg.lstsq(x, data[outcomes].to_numpy(), rcond=None)[0]
    error = data[outcomes].to_numpy() - x @ beta
    sigma = error.T @ error / (len(data) - 2 * reml)
    np.testing.assert_allclose(fit.params, beta.T.ravel(), rtol=1e-9)
    np.testing.assert_allclose(fit.values[4:], sigma[[0, 1, 1], [0, 1, 0]], rtol=1e-6)  # decrement 1e-10 at the most
    np.testing.assert_allclose(fit.block[:4, :4], np.kron(sigma, np.linalg.inv(x.T @ x)), rtol=1e-6)
    expected = np.kron(sigma, sigma) / (len(data) - 2 * reml)  # of a Wishart matrix: s_ik s_jl + s_il s_jk
    at = [(0, 0), (1, 1), (1, 0)]
    wishart = [[expected[2 * i + j, 2 * k + m] + expected[2 * i + j, 2 * m + k] for k, m in at] for i, j in at]
    np.testing.assert_allclose(fit.joint[4:, 4:], wishart, rtol=1e-6)


@pytest.mark.parametrize("reml", [False, True])
def test_an_equation_of_the_cluster_is_least_squares_over_clusters(data, reml):
    """Its own likelihood and nothing else: y's equation gives what it gives alone."""
    means = data.groupby("id")["x"].transform("mean")
    noise = np.random.default_rng(3).normal(size=data["id"].nunique())
    data = data.assign(c=0.5 * means + noise[data["id"].astype("category").cat.codes])
    data.loc[data["id"] == data["id"].iloc[0], "c"] = np.nan
    upper = jm.Equation("c", ["1", "between(x)"], level=2)
    lower = jm.Equation("y", ["1", "c", "x"], ["1", "x"])
    fit = jm.fit(data, jm.System([upper, lower], "id"), reml=reml)
    alone = jm.fit(data, jm.System([lower], "id"), reml=reml)
    np.testing.assert_allclose(fit.params[2:], alone.params, rtol=1e-7)
    np.testing.assert_allclose(fit.bse[2:], alone.bse, rtol=1e-6)
    one = data.assign(mean=means).dropna(subset="c").groupby("id")[["c", "mean"]].first()
    n = len(one)
    assert fit.system.equations[0].level == 2
    assert fit.sample_summary.used == (n, alone.sample_summary.used[0])
    x = np.column_stack([np.ones(n), one["mean"]])
    beta, (rss,), _, _ = np.linalg.lstsq(x, one["c"].to_numpy(), rcond=None)
    sigma2 = rss / (n - 2 * reml)
    np.testing.assert_allclose(fit.params[:2], beta, rtol=1e-8)
    assert fit.residual_var["c"] == pytest.approx(sigma2, rel=1e-7)
    np.testing.assert_allclose(fit.bse[:2], np.sqrt(sigma2 * np.diag(np.linalg.inv(x.T @ x))), rtol=1e-7)
    own = -((n - 2 * reml) * (np.log(2 * np.pi * sigma2) + 1) + reml * np.linalg.slogdet(x.T @ x)[1]) / 2
    assert fit.loglik == pytest.approx(own + alone.loglik, rel=1e-9)


# Effects -------------------------------------------------------------------------------------------------------------


def test_effects_by_hand(reml):
    """First-order delta method on the joint covariance, written out; same numbers, so rounding only (1e-12)."""
    a, b, c, s = entry(reml, "m~x", "y~m", "y~x", "m~x~~y~m")
    value, v = reml.values, reml.joint
    indirect = value[a] * value[b] + value[s]
    variance = value[b] ** 2 * v[a, a] + value[a] ** 2 * v[b, b] + v[s, s] + 2 * value[a] * value[b] * v[a, b]
    variance += 2 * value[b] * v[a, s] + 2 * value[a] * v[b, s]
    total = variance + v[c, c] + 2 * (value[b] * v[a, c] + value[a] * v[b, c] + v[s, c])
    table = reml.effects()
    assert table.loc["indirect", "estimate"] == pytest.approx(indirect, rel=1e-12)
    assert table.loc["indirect", "se"] == pytest.approx(np.sqrt(variance), rel=1e-12)
    assert table.loc["total", "estimate"] == pytest.approx(indirect + value[c], rel=1e-12)
    assert table.loc["total", "se"] == pytest.approx(np.sqrt(total), rel=1e-12)
    for row, at in {"a": a, "b": b, "c_prime": c, "cov_ab": s}.items():
        assert table.loc[row, "estimate"] == pytest.approx(value[at], rel=1e-12)
        assert table.loc[row, "se"] == pytest.approx(np.sqrt(v[at, at]), rel=1e-12)


def test_bauer_by_hand(reml):
    """Bauer, Preacher & Gil (2006): second-order terms, no covariance with cov_ab, block covariance."""
    a, b, c, s = entry(reml, "m~x", "y~m", "y~x", "m~x~~y~m")
    value, v = reml.values, reml.block
    variance = value[b] ** 2 * v[a, a] + value[a] ** 2 * v[b, b] + v[a, a] * v[b, b]
    variance += 2 * value[a] * value[b] * v[a, b] + v[a, b] ** 2 + v[s, s]
    total = variance + v[c, c] + 2 * value[b] * v[a, c] + 2 * value[a] * v[b, c]
    table = reml.effects("bauer")
    assert table.loc["indirect", "se"] == pytest.approx(np.sqrt(variance), rel=1e-12)
    assert table.loc["total", "se"] == pytest.approx(np.sqrt(total), rel=1e-12)
    estimate, se = table.loc["indirect", ["estimate", "se"]]
    assert table.loc["indirect", "ci_upper"] == pytest.approx(estimate + 1.96 * se, rel=1e-12)
    wide = reml.effects("bauer", level=0.99).loc["indirect", "ci_lower"]
    assert wide == pytest.approx(estimate - norm.ppf(0.995) * se, rel=1e-12)


@pytest.mark.parametrize("se", ["joint", "bauer"])
def test_effects_without_a_covariance_of_slopes(se):
    """A fixed slope, or covariance="diagonal": cov_ab is zero and known, and only a and b make the indirect effect."""
    estimands = FULL.estimands(DataFacts())
    plan = effects.make_index(estimands, ["m~1", "m~x", "y~1", "y~m", "y~x", "m~~m"], estimands.rows)
    values = np.array([9.0, 0.5, 9.0, -2.0, 0.7, 9.0])
    root = np.random.default_rng(3).normal(size=(6, 6))
    v = root @ root.T / 50
    (estimate,), (slope,) = effects.value_and_jacobian(
        effects.effects, plan, values, effects.make_weights(estimands, {})
    )
    names = [row.name for row in estimands.rows]
    assert names == ["a", "b", "c_prime", "cov_ab", "indirect", "total"]
    error = delta(slope, v) if se == "joint" else effects.bauer(plan, names, slope, v)
    assert estimate == pytest.approx([0.5, -2.0, 0.7, 0.0, -1.0, -0.3])
    assert error[3] == 0
    indirect = 4 * v[1, 1] + 0.25 * v[3, 3] - 2 * v[1, 3]
    extra = v[1, 1] * v[3, 3] + v[1, 3] ** 2 if se == "bauer" else 0.0
    assert error[4] == pytest.approx(np.sqrt(indirect + extra), rel=1e-12)
    total = indirect + extra + v[4, 4] - 4 * v[1, 4] + v[3, 4]
    assert error[5] == pytest.approx(np.sqrt(total), rel=1e-12)


def test_fixed_direct_path_keeps_the_covariance_of_a_and_b(data):
    fit = jm.fit(data, jm.Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1", "m"]}))
    table = fit.effects()
    assert table.loc["cov_ab", "estimate"] == fit.random_cov.loc["m~x", "y~m"]
    assert table.loc["cov_ab", "se"] == pytest.approx(fit.random_cov_se.loc["m~x", "y~m"], rel=1e-12)
    assert table.loc["c_prime", "se"] == pytest.approx(fit.bse["y~x"], rel=1e-12)


# Singularity ---------------------------------------------------------------------------------------------------------

# Two equations; random: both coefficients of the first, the first of the second.
LAYOUT = Layout(
    sizes=(2, 2),
    random=(0, 1, 2),
    free=tuple(zip(*map(list, np.tril_indices(3)), strict=True)),
    pairs=(),
    seen=((0,), (1,)),
    pieces=(),
    reml=True,
)


@pytest.mark.parametrize(
    ("root", "log_sd", "mean_square", "singular"),
    [
        (np.diag([1.0, 0.5, 0.2]), (0, 0), (1, 1, 1), False),
        (np.diag([1.0, 0.0, 0.2]), (0, 0), (1, 1, 1), True),  # a variance of zero
        ([[1, 0, 0], [0.5, 0, 0], [0, 0, 1]], (0, 0), (1, 1, 1), True),  # a correlation of one
        ([[1, 0, 0], [-0.5, 1e-5, 0], [0, 0, 1]], (0, 0), (1, 1, 1), True),  # minus one, nearly
        ([[1, 0, 0], [0.9, 0.2, 0], [0, 0, 1]], (0, 0), (1, 1, 1), False),  # .976
        ([[1, 0, 0], [0.6, 0.8, 0], [0.6, 0.8, 0]], (0, 0), (1, 1, 1), True),  # u3 = u2
        (np.diag([1.0, 1e-6, 1.0]), (0, 0), (1, 1, 1), True),  # next to nothing in the outcome
        (np.diag([1.0, 1e-6, 1.0]), (0, 0), (1, 1e12, 1), False),  # the same slope on a column a million times larger
        (np.diag([1e-6, 1e-6, 1.0]), (np.log(1e-6), 0), (1, 1, 1), False),  # the same next to a small residual
        (np.diag([1.0, 1.0, 1e-6]), (np.log(1e-6), 0), (1, 1, 1), True),  # the other equation's residual is not its own
    ],
)
def test_is_singular(root, log_sd, mean_square, singular):
    theta = np.array([*np.asarray(root, dtype=float)[np.tril_indices(3)], *log_sd])
    assert is_singular(LAYOUT, theta, np.array(mean_square, dtype=float)) is singular


def test_without_random_effects_nothing_is_singular():
    layout = Layout(sizes=(2,), random=(), free=(), pairs=(), seen=((0,),), pieces=(), reml=False)
    assert is_singular(layout, np.zeros(1), np.zeros(0)) is False


# Tests ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_null_models_are_least_squares(clusters, method, request):
    """Ordinary regressions on the stacked rows, with their (restricted) likelihoods written out; 1e-10 is rounding."""
    fit = request.getfixturevalue(method)
    x, y, equation = (np.concatenate([getattr(c, name) for c in clusters]) for name in ("x", "y", "equation"))

    def least_squares(x, y):
        beta, (rss,), rank, _ = np.linalg.lstsq(x, y, rcond=None)
        assert rank == len(beta)
        degrees = len(y) - fit.reml * rank
        logdet = np.linalg.slogdet(x.T @ x)[1] if fit.reml else 0.0
        return rss / degrees, -(degrees * np.log(2 * np.pi * rss / degrees) + degrees + logdet) / 2

    own = [(equation == 0, [0, 1]), (equation == 1, [2, 3, 4])]
    sigma2, each = zip(*(least_squares(x[rows][:, at], y[rows]) for rows, at in own), strict=True)
    assert fit.null == (pytest.approx(sum(each), rel=1e-10), 2)
    assert fit.null[0] == pytest.approx(dense.loglik(clusters, np.zeros((5, 5)), np.array(sigma2), fit.reml), rel=1e-10)
    # One residual variance for all: the same coefficients, the sums of squares together.
    assert fit.null_pooled == (pytest.approx(least_squares(x, y)[1], rel=1e-10), 1)


def test_lr_test_by_hand(ml):
    for null, reference, df in (("separate", ml.null, 15), ("pooled", ml.null_pooled, 16)):
        test = ml.lr_test(null)
        assert test.statistic == 2 * (ml.loglik - reference[0])
        assert test.df == df
        assert test.p == pytest.approx(chi2.sf(test.statistic, df), rel=1e-10)


@pytest.mark.parametrize("kind", ["joint", "block"])
def test_wald_by_hand(ml, kind):
    covariance = ml.cov_params(kind).to_numpy()
    test = ml.wald(covariance=kind)
    assert test.statistic == pytest.approx(ml.params @ np.linalg.inv(covariance) @ ml.params, rel=1e-9)
    assert test.df == 5
    one = ml.wald(["y~x"], covariance=kind)
    z = ml.params["y~x"] / ml.standard_errors(kind)["y~x"]
    assert one.statistic == pytest.approx(z**2, rel=1e-12)
    assert one.p == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)


# Limits --------------------------------------------------------------------------------------------------------------


def test_variance_limits_by_hand():
    lower, upper = limits_on_scale(np.array([2.0, 0.0]), np.array([0.5, 0.1]), 1.96, "log")
    assert (lower[0], upper[0]) == pytest.approx((2 * np.exp(-0.49), 2 * np.exp(0.49)), rel=1e-15)
    assert np.isnan(upper[1])  # a variance of zero has no log scale


def test_normal_table_by_hand():
    table = normal_table(["one", "held"], np.array([1.0, 0.0]), np.array([0.4, 0.0]), critical_value(0.9))
    expected = [1.0, 0.4, 2.5, 2 * norm.sf(2.5), 1 - 0.4 * norm.ppf(0.95), 1 + 0.4 * norm.ppf(0.95)]
    assert table.loc["one"].to_numpy() == pytest.approx(expected, rel=1e-12)
    assert table.loc["held", ["z", "p"]].isna().all()
    assert table.loc["held", ["ci_lower", "ci_upper"]].tolist() == [0, 0]


# Predictions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predicted(reml, clusters):
    """Predictions beside the dense ones and Henderson's prediction-error covariance of (beta, u_j) by cluster."""
    g, sigma2 = reml.random_cov.to_numpy(), reml.residual_var.to_numpy()
    error = dense.henderson(clusters, g, sigma2)
    blocks = [[*range(5), *range(5 + 5 * j, 10 + 5 * j)] for j in range(len(clusters))]
    return SimpleNamespace(
        table=reml.ranef(),
        blups=dense.blups(clusters, g, sigma2, reml.params.to_numpy()),
        error=np.array([error[np.ix_(at, at)] for at in blocks]),
    )


def test_predictions_equal_dense(predicted, reml, clusters):
    """1e-8 of the random effects' standard deviations."""
    labels = list(reml.system.random_labels)
    assert list(predicted.table.index) == [c.label for c in clusters]
    sd = np.sqrt(np.diag(reml.random_cov))
    np.testing.assert_allclose((predicted.table[labels] - predicted.blups) / sd, 0, atol=1e-8)


def test_prediction_errors_equal_hendersons(predicted, reml):
    """1e-7: a 305 x 305 inverse."""
    labels = [f"{label}_se" for label in reml.system.random_labels]
    expected = np.sqrt(np.diagonal(predicted.error, axis1=1, axis2=2)[:, 5:])
    np.testing.assert_allclose(predicted.table[labels], expected, rtol=1e-7)


def test_paths_of_clusters_equal_hendersons(predicted, reml):
    a, b = (list(reml.system.labels).index(label) for label in ("m~x", "y~m"))
    pick = np.zeros((2, 10))
    pick[0, [a, 5 + a]] = pick[1, [b, 5 + b]] = 1  # a_j = a + u_j,a: all five coefficients are random
    v = pick @ predicted.error @ pick.T
    table = predicted.table
    np.testing.assert_allclose(table["a"], reml.params["m~x"] + table["m~x"], rtol=1e-12)
    np.testing.assert_allclose(table["b"], reml.params["y~m"] + table["y~m"], rtol=1e-12)
    np.testing.assert_allclose(table["a_se"], np.sqrt(v[:, 0, 0]), rtol=1e-7)
    np.testing.assert_allclose(table["b_se"], np.sqrt(v[:, 1, 1]), rtol=1e-7)
    np.testing.assert_allclose(table["ab"], table["a"] * table["b"] + v[:, 0, 1], rtol=1e-7)
    product = table["a"] ** 2 * v[:, 1, 1] + table["b"] ** 2 * v[:, 0, 0] + 2 * table["a"] * table["b"] * v[:, 0, 1]
    product += v[:, 0, 0] * v[:, 1, 1] + v[:, 0, 1] ** 2
    np.testing.assert_allclose(table["ab_se"], np.sqrt(product), rtol=1e-7)


def test_predictions_reproduce_the_estimates(predicted, reml):
    """At the REML optimum the deviations add up to zero and G = mean(u_j u_j' + Var(u_j - prediction)) exactly.

    1e-6 because the optimiser stops at a Newton decrement of 1e-10 at the latest. The mean of a_j b_j is the average
    indirect effect up to the sampling covariance of a and b, which is small next to its standard error.
    """
    labels = list(reml.system.random_labels)
    u = predicted.table[labels].to_numpy()
    sd = np.sqrt(np.diag(reml.random_cov))
    np.testing.assert_allclose(u.mean(axis=0) / sd, 0, atol=1e-8)
    second = (u[:, :, None] * u[:, None, :] + predicted.error[:, 5:, 5:]).mean(axis=0)
    np.testing.assert_allclose((second - reml.random_cov) / np.outer(sd, sd), 0, atol=1e-6)
    indirect = reml.effects().loc["indirect"]
    assert predicted.table["ab"].mean() == pytest.approx(indirect["estimate"], abs=0.1 * indirect["se"])


@pytest.mark.filterwarnings("ignore::jaxmed.DesignWarning")
def test_a_flat_maximum_is_said_and_leaves_block_errors():
    """REML of an x that tells two clusters apart: their intercepts then say nothing of a variance between clusters.

    Covariance of the fixed effects given G against generalised least squares with dense matrices. The slope of m has
    the error that it has without random intercepts, which fixed effects take up.
    """
    rng = np.random.default_rng(6)
    ids = np.repeat([0, 1], 20)
    x = ids * 1.0
    m = x + rng.normal(size=(2, 40)).sum(axis=0)
    data = pd.DataFrame({"id": ids, "x": x, "m": m, "y": m + rng.normal(size=40)})
    with pytest.warns(jm.ConvergenceWarning, match="not identified: the likelihood is flat in"):
        fit = jm.fit(data, jm.Mediation("x", "m", "y", "id", center="none"))
    assert fit.converged
    assert fit.flat
    assert fit.bse.index[fit.bse.isna()].tolist() == ["m~1", "m~x", "y~1", "y~x"]
    less = jm.fit(data, jm.Mediation("x", "m", "y", "id", random={"m": [], "y": ["m"]}, center="none"))
    assert fit.bse["y~m"] == pytest.approx(less.bse["y~m"], rel=1e-6)
    sigma = np.array([fit.residual_var["m"], fit.residual_var["y"]])
    _, information = dense.gls(dense.stack(data, fit.system), fit.random_cov.to_numpy(), sigma)
    np.testing.assert_allclose(fit.cov_params("block"), np.linalg.inv(information), rtol=1e-6, atol=1e-9)
    table = fit.effects(covariance="bauer")
    assert np.all(np.isfinite(table.loc[["a", "b", "c_prime"], "se"]))
    assert table.loc["a", "se"] == pytest.approx(np.sqrt(np.linalg.inv(information)[1, 1]), rel=1e-6)


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
@pytest.mark.parametrize("apart", [1, 3, 10])
def test_an_error_that_rests_on_a_variance_the_data_do_not_tell_is_none(apart):
    """Two clusters that x tells apart: their restricted likelihood is the same for any variance between them.

    The optimum it started from decided: the error of x was .65, .26 or .25, by how far apart the clusters are.
    """
    rng = np.random.default_rng(0)
    ids = np.repeat([0, 1], 20)
    data = pd.DataFrame({"id": ids, "x": ids * 1.0, "y": apart * ids + rng.normal(size=40)})
    model = jm.System([jm.Equation("y", ["1", "x"], ["1"])], "id")
    fit = jm.fit(data, model)
    assert fit.unknown == ["y~1", "y~x", "var(y~1)"]
    assert fit.bse.isna().all()
    assert fit.residual_var_se["y"] == pytest.approx(fit.residual_var["y"] * np.sqrt(2 / 38), rel=1e-6)
    assert jm.fit(data, model, reml=False).bse.notna().all()


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
@pytest.mark.parametrize(("clusters", "few"), [(2, True), (4, True), (30, False)])
def test_clusters_too_few_for_the_random_effects_are_counted(clusters, few):
    """So many clusters, less their mean, span a covariance of fewer dimensions."""
    rng = np.random.default_rng(0)
    at = np.repeat(np.arange(clusters), 20)
    u = rng.normal(size=(clusters, 5))[at].T
    x, m, y = rng.normal(size=(3, len(at)))
    m += u[0] + u[1] * x
    data = pd.DataFrame({"id": at, "x": x, "m": m, "y": y + u[2] + u[3] * m + u[4] * x})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit = jm.fit(data, FULL)
    assert [str(one.message) for one in said] == ([fit.message] if few else [])
    assert fit.too_few_clusters == few
    assert fit.singular == few
    assert (f"{clusters} clusters do not identify the covariance of 5 random effects" in fit.message) == few
    assert len(fit.message) < 1000
    apart = jm.fit(data, jm.Mediation("x", "m", "y", "id", covariance="diagonal"))
    assert "do not identify" not in apart.message
    block = jm.fit(data, jm.Mediation("x", "m", "y", "id", covariance="block"))
    assert block.too_few_clusters == (clusters == 2)  # y's three covary
    assert ("2 clusters do not identify the covariance of 3 random effects" in block.message) == (clusters == 2)


def balanced(seed: int) -> tuple[pd.DataFrame, jm.Mediation]:
    """30 clusters of 6 rows, and a model with the cluster means of m: its maximum is flat."""
    rng = np.random.default_rng(seed)
    at = np.repeat(np.arange(30), 6)
    u = rng.normal(size=(30, 3))[at].T
    x, e_m, e_y = rng.normal(size=(3, 180))
    m = u[0] + (0.5 + 0.6 * u[1]) * x + e_m
    data = pd.DataFrame({"id": at, "x": x, "m": m, "y": u[2] + 0.4 * m + 0.2 * x + e_y})
    random = {"m": ["1", "within(x)"], "y": ["1"]}
    model = jm.Mediation("x", "m", "y", "id", center="cluster", random=random, intercepts="correlated")
    return data, model


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(6))
def test_a_flat_direction_takes_the_errors_of_what_it_moves_and_no_others(seed):
    """Balanced data and cluster means of m: cov(m~1, y~1) and the effect of the means are one to the likelihood.

    It was flat or not by the sign of rounding, with standard errors of a million. The others against the generalised
    inverse of a Hessian of dense matrices by complex steps, whose differences err by 1e-5 or so.
    """
    data, model = balanced(seed)
    fit = jm.fit(data, model)
    assert fit.converged
    assert fit.flat
    unknown = [label for label, variance in zip(fit.labels, np.diag(fit.joint), strict=True) if np.isnan(variance)]
    assert {"y~between(m)", "m~1~~y~1"} <= set(unknown)
    assert len(fit.unknown) == len(unknown)
    assert f"not identified: the likelihood is flat in {', '.join(fit.unknown)}, or" in fit.message
    assert "or fit with intercepts='independent'" in fit.message
    assert {"y~between(m)", "cov(m~1,y~1)", "var(y~1)"} <= set(fit.unknown)
    known = ["a_within", "b_within", "indirect_within", "total_within", "a_between", "total_between"]
    assert fit.effects().loc[known, "se"].notna().all()
    assert fit.effects().loc[["b_between", "indirect_between"], "se"].isna().all()
    assert np.all(np.isfinite(fit.standard_errors("block")))

    clusters, p, n_free = dense.stack(data, fit.system), len(fit.params), len(fit.free)
    split = lambda theta: (dense.symmetric(theta[:n_free], fit.free, 3), theta[n_free:])  # noqa: E731
    theta = fit.values[p:]
    hessian = dense.hessian(lambda at: -dense.loglik(clusters, *split(at), True), theta, np.full(len(theta), 1e-4))
    v = np.linalg.pinv(hessian, rcond=1e-5)
    d = dense.gradient(lambda at: dense.gls(clusters, *split(at))[0], theta)
    joint = np.block([[np.linalg.inv(dense.gls(clusters, *split(theta))[1]) + d @ v @ d.T, d @ v], [v @ d.T, v]])
    known = ~np.isnan(np.diag(fit.joint))
    assert known.sum() >= 8
    unit = np.sqrt(np.diag(joint)[known])
    found = fit.joint[np.ix_(known, known)]
    np.testing.assert_allclose(
        found / np.outer(unit, unit), joint[np.ix_(known, known)] / np.outer(unit, unit), atol=1e-4
    )


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
def test_a_sum_that_no_flat_direction_moves_has_its_error_though_its_parts_have_none():
    """Without the cluster means of m the same model has one parameter less, and the total effect is a coefficient.

    Under ML the two are the same model of balanced data: log likelihoods agree to 1e-9, estimates and errors to 1e-6
    (optimisers stop at a decrement of 1e-10).
    """
    data, model = balanced(0)
    fit = jm.fit(data, model, reml=False)
    assert fit.flat
    m, y = fit.system.equations
    less = jm.Equation("y", tuple(name for name in y.predictors if name != "between(m)"), y.random)
    other = jm.fit(data, jm.System([m, less], "id"), reml=False)
    assert not other.flat
    assert other.loglik == pytest.approx(fit.loglik, abs=1e-8)
    for kind in ("joint", "robust"):
        found = fit.effects(covariance=kind).loc[["a_between", "total_between", "contextual_total"]]
        labels = list(other.labels)
        slopes = np.zeros((3, len(labels)))
        slopes[0, labels.index("m~between(x)")] = slopes[1:, labels.index("y~between(x)")] = 1
        b, a, c = (labels.index(name) for name in ("y~within(m)", "m~within(x)", "y~within(x)"))
        slopes[2, [b, a, c]] = -other.values[a], -other.values[b], -1
        expected = [*(slopes @ other.values)[:2], other.values[labels.index("y~between(x)")] - total_within(other)]
        np.testing.assert_allclose(found["estimate"], expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found["se"], other.errors(slopes, kind), rtol=1e-6)


def total_within(fit: jm.Fit) -> float:
    return fit.params["m~within(x)"] * fit.params["y~within(m)"] + fit.params["y~within(x)"]


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(6))
def test_a_flat_direction_along_one_covariance_is_seen(seed):
    """Random intercepts alone: cov(m~1, y~1) is estimated about zero, and its own curvature was the sign of rounding.

    Half of these fits had standard errors of a million, the others none at all. 1e-8 against the same model without
    the cluster means of m.
    """
    data, _ = balanced(seed)
    random = {"m": ["1"], "y": ["1"]}
    model = jm.Mediation("x", "m", "y", "id", center="cluster", random=random, intercepts="correlated")
    fit = jm.fit(data, model, reml=False)
    assert fit.flat
    assert {"y~between(m)", "cov(m~1,y~1)"} <= set(fit.unknown)
    m, y = fit.system.equations
    less = jm.Equation("y", tuple(name for name in y.predictors if name != "between(m)"), y.random)
    other = jm.fit(data, jm.System([m, less], "id"), reml=False)
    found = fit.effects()["se"]
    assert found["total_between"] == pytest.approx(other.bse["y~between(x)"], rel=1e-8)
    known = fit.bse.notna()
    assert known.sum() == 5  # m~1, m~within(x), m~between(x), y~within(m), y~within(x)
    exact, quick = fit.influence(exact=True), fit.influence()
    assert np.corrcoef(exact["cook_all"], quick["cook_all"])[0, 1] > 0.95
    assert exact["cook_all"].max() < 1
    for name in ("m~within(x)", "m~between(x)", "y~within(m)", "y~within(x)"):
        assert fit.bse[name] == pytest.approx(other.bse[name], rel=1e-8)


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(3))
def test_at_a_singular_fit_flatness_is_that_of_the_root(seed):
    """Of two clusters the Hessian in G is flat where no covariance of rank one goes: 20 of 22 errors were NaN.

    The profile of a is a parabola of the curvature that its error says, to 20% as far as .7 of it.
    """
    rng = np.random.default_rng(seed)
    at = np.repeat([0, 1], 20)
    u = rng.normal(size=(2, 3))[at].T
    x = rng.normal(size=40)
    m = u[0] + (0.5 + 0.6 * u[1]) * x + rng.normal(size=40)
    fit = jm.fit(pd.DataFrame({"id": at, "x": x, "m": m, "y": u[2] + 0.4 * m + 0.2 * x + rng.normal(size=40)}), FULL)
    assert fit.singular
    assert not fit.flat
    error = fit.bse["m~x"]
    curve = fit.profile("m~x")
    near = curve[np.abs(curve["zeta"]).between(1e-6, 0.7)]
    assert len(near) >= 2
    np.testing.assert_allclose((near["value"] - fit.params["m~x"]) / error, near["zeta"], rtol=0.2)


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
def test_errors_of_what_is_known_are_those_of_a_maximum():
    """Newton steps to a flat maximum: the curvature along its flat line is -1.6e-2, after one more step -2.8e-5.

    The first point is no maximum and has no errors. The second errs by less than it would show: log likelihood to 1e-6,
    errors to 1e-3, by the converged fit. Its errors were all NaN, by a threshold that converged fits came near.
    """
    data, model = balanced(0)
    early, late, fit = (jm.fit(data, model, max_iter=steps) for steps in (2, 3, 100))
    assert (early.converged, late.converged, fit.converged) == (False, False, True)
    assert np.isnan(np.diag(early.joint)).all()
    assert late.loglik == pytest.approx(fit.loglik, abs=1e-6)
    known = ["a_within", "b_within", "indirect_within", "total_within", "a_between"]
    assert late.effects().loc[known, "se"].to_numpy() == pytest.approx(fit.effects().loc[known, "se"], rel=1e-3)


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
def test_files_of_flat_fits_are_checked_and_old_ones_show_less(tmp_path):
    """A file from before directions were kept has errors by parameters; one whose directions are damaged is refused."""
    fit = jm.fit(*balanced(0))
    plain = fit.to_dict()

    def changed(estimable):
        moments_file.write(tmp_path / "fit.jaxmed", plain | {"estimable": estimable}, fit.moments)
        return tmp_path / "fit.jaxmed"

    old = jm.load(changed(None))
    assert old.flat
    for kind in ("joint", "robust"):
        found = old.effects(covariance=kind)["se"]
        assert found[["a_within", "a_between", "total_within"]].notna().all()
        assert found[["b_between", "total_between"]].isna().all()
    n = len(fit.labels)
    for wrong in ([[None]] * n, [[]] * n, [[1.0]], "x", 1):
        with pytest.raises(jm.DataError, match="is not a fit that jaxmed saved"):
            jm.load(changed(plain["estimable"] | {"directions": wrong}))


def test_errors_of_functions_of_the_parameters(reml):
    """A list of derivatives, one function or many; b + c' by hand."""
    joint, n = reml.joint, len(reml.labels)
    sum_of_two = [0, 0, 0, 1, 1, *[0] * (n - 5)]
    expected = np.sqrt(joint[3, 3] + joint[4, 4] + 2 * joint[3, 4])
    assert reml.errors(sum_of_two) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(reml.errors([sum_of_two, np.eye(n)[0]]), [expected, reml.bse["m~1"]], rtol=1e-12)
    for wrong in ([1.0, 2.0], "x", None, [[1.0], [1.0, 2.0]]):
        with pytest.raises(jm.SpecError, match="one column for each of the 22 parameters"):
            reml.errors(wrong)


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning")
def test_a_flat_fit_has_intervals_of_what_it_knows_and_comes_back_from_its_file(tmp_path):
    """Monte Carlo errors against first-order ones, 5%; products of draws of what is not known are not shown."""
    fit = jm.fit(*balanced(0))
    drawn = fit.intervals("monte_carlo", seed=1)
    at = ["a_within", "b_within", "total_within", "a_between"]
    np.testing.assert_allclose(drawn.loc[at, "se"], fit.effects().loc[at, "se"], rtol=0.05)
    assert drawn.loc[["b_between", "total_between"], ["se", "ci_lower", "ci_upper"]].isna().all(axis=None)
    test = fit.wald(["y~within(m)", "y~between(m)"])
    assert (np.isnan(test.statistic), np.isnan(test.p), test.df) == (True, True, 2)
    assert test.hypothesis == "y~within(m), y~between(m) = 0 (no standard error of y~between(m): read fit.message)"
    assert fit.wald(["y~within(m)"]).p < 0.05
    table = jm.conflation(fit).table
    assert table.loc["a", "se"] == pytest.approx(fit.effects().loc["contextual_a", "se"], rel=1e-9)
    assert np.isnan(table.loc["b", "se"])
    fit.save(tmp_path / "flat.jaxmed")
    again = jm.load(tmp_path / "flat.jaxmed", verify=True)
    assert again.to_dict() == fit.to_dict()
    pd.testing.assert_frame_equal(again.effects(covariance="robust"), fit.effects(covariance="robust"))


def test_delta_errors_are_nan_only_where_an_effect_depends_on_one():
    """Two of three sums touch the NaN; the third is sqrt(g'Cg) by hand."""
    covariance = np.array([[4.0, 1.0, np.nan], [1.0, 9.0, np.nan], [np.nan, np.nan, np.nan]])
    slopes = np.array([[2.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    np.testing.assert_array_equal(delta(slopes, covariance), [np.sqrt(16 + 4 + 9), np.nan, np.nan])
