"""Cluster scores and the sandwich against dense matrices, other programs and a simulation."""

from __future__ import annotations

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE

import jaxmed as jm

FULL = jm.Mediation("x", "m", "y", "id")
TWO = jm.System(  # correlated residuals, whose rows have one of the two outcomes or both
    [
        jm.Equation("m1_miss", ["1", "x"], ["1"]),
        jm.Equation("m2", ["1", "x", "within(age)"], ["1"]),
        jm.Equation("y_miss", ["1", "m1_miss", "m2", "x"], ["1", "m1_miss"]),
    ],
    "id",
    covariance=[["m1_miss~1", "m2~1"], ["y_miss~1", "y_miss~m1_miss"]],
    residuals=[["m1_miss", "m2"]],
)
LEVEL_2 = jm.System(  # an equation with a row per cluster, and cluster means
    [
        jm.Equation("mc", ["1", "xc"], level=2),
        jm.Equation("yc", ["1", "mc", "xc", "within(x)", "between(x)"], ["1", "within(x)"]),
    ],
    "id",
)


@pytest.fixture(scope="module")
def near_zero() -> pd.DataFrame:
    """Unbalanced, some y missing, x near zero so that dense inverses keep their digits."""
    return pd.read_csv(REFERENCE / "unbalanced.csv").assign(x=lambda table: table["x"] - 51)


@pytest.fixture(scope="module")
def tables(near_zero, extended_table):
    return {"full": near_zero, "two": extended_table, "level 2": extended_table}


@pytest.fixture(scope="module")
def extended_table() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "extended.csv").assign(age=lambda table: table["age"] - 40)


CASES = [("full", FULL, False), ("full", FULL, True), ("two", TWO, True), ("level 2", LEVEL_2, False)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}, {'REML' if case[2] else 'ML'}")
def case(request, tables):
    name, spec, reml = request.param
    data = tables[name]
    return jm.fit(data, spec, reml=reml), dense.stack(data, spec.system() if spec is FULL else spec)


def split(fit: jm.Fit, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(free entries of G, residual variances and covariances) -> G, Sigma; complex allowed."""
    n, e = len(fit.free), len(fit.system.outcomes)
    pairs = [*((k, k) for k in range(e)), *fit.system.residual_pairs]
    return dense.symmetric(theta[:n], fit.free, len(fit.system.random_labels)), dense.symmetric(theta[n:], pairs, e)


def dense_scores(fit: jm.Fit, clusters: list[dense.Cluster]) -> np.ndarray:
    """Complex-step gradients of each cluster's log likelihood, under REML less tr(C X'V^-1X) / 2 at fixed C."""
    p = len(fit.params)
    g, sigma = split(fit, fit.values[p:])
    c = np.linalg.inv(dense.gls(clusters, g, sigma)[1])

    def term(cluster: dense.Cluster, values: np.ndarray):
        g, sigma = split(fit, values[p:])
        value = dense.loglik([cluster], g, sigma, False, values[:p])
        if fit.reml:
            v = dense.covariance(cluster, g, sigma)
            value = value - np.trace(c @ cluster.x.T @ np.linalg.solve(v, cluster.x)) / 2
        return value

    return np.array([dense.gradient(lambda at, one=one: term(one, at), fit.values) for one in clusters])


# Scores --------------------------------------------------------------------------------------------------------------


def test_scores_are_the_derivatives_of_each_clusters_term(case):
    """In units of the standard errors; 1e-7: dense solves against moments of up to 15 rows, x with mean 5 sd from 0."""
    fit, clusters = case
    assert fit.converged
    error = np.sqrt(np.diag(fit.joint))
    scores = fit.scores()
    assert list(scores.index) == [cluster.label for cluster in clusters]
    assert list(scores.columns) == list(fit.labels)
    np.testing.assert_allclose(scores.to_numpy() * error, dense_scores(fit, clusters) * error, atol=1e-7)


def test_scores_sum_to_zero_at_the_optimum(case):
    """ML, and REML with each cluster's share of log|X'V^-1X|: 1e-4 where the certificate leaves at most 1e-5."""
    fit, _ = case
    error = np.sqrt(np.diag(fit.joint))
    assert np.max(np.abs(fit.scores().sum() * error)) < 1e-4
    assert np.max(np.abs(fit.scores().to_numpy() * error)) > 0.1


def test_the_sandwich_is_its_formula(case):
    fit, _ = case
    scores, error = fit.scores().to_numpy(), np.sqrt(np.diag(fit.joint))
    expected = fit.joint @ scores.T @ scores @ fit.joint
    unit = np.outer(error, error)
    np.testing.assert_allclose(fit.robust_cov("CR0") / unit, expected / unit, atol=1e-8)
    factor = fit.n_clusters / (fit.n_clusters - 1)
    np.testing.assert_allclose(fit.cov_params("robust", full=True) / unit, factor * expected / unit, atol=1e-8)
    assert fit.cov_params("robust").shape == (len(fit.params),) * 2
