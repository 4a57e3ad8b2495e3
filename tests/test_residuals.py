"""Residuals of clusters and rows against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE
from scipy.stats import chi2, norm

import jaxmed as jm
from jaxmed._results.residuals import normal_quantiles

SMALL = jm.Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1", "m"]})
LEVEL_2 = jm.System(
    [
        jm.Equation("mc", ["1", "xc"], level=2),
        jm.Equation("yc", ["1", "mc", "xc", "within(x)", "between(x)"], ["1", "within(x)"]),
    ],
    "id",
)


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    """Unbalanced, some y missing; a row without a cluster id, and a cluster of one row that lacks y."""
    table = pd.read_csv(REFERENCE / "unbalanced.csv").assign(x=lambda table: table["x"] - 51)
    single = table["id"] == table["id"].iloc[0]
    table = table[~single | (table.index == 0)].reset_index(drop=True)
    table.loc[0, "y"] = np.nan
    table.loc[5, "id"] = None
    return table


@pytest.fixture(scope="module")
def fit(data) -> jm.Fit:
    return jm.fit(data, SMALL)


def test_cluster_residuals(fit, data):
    """Var(u_j) = G Z'V^-1 (V - X C X') V^-1 Z G of the predictions, by dense matrices."""
    clusters = dense.stack(data[data["id"].notna()], SMALL.system())
    g, sigma = fit.random_cov.to_numpy(), fit.residual_var.to_numpy()
    c = np.linalg.inv(dense.gls(clusters, g, sigma)[1])
    u = dense.blups(clusters, g, sigma, fit.params.to_numpy())
    table = fit.cluster_residuals()
    labels = list(fit.system.random_labels)
    assert list(table.index) == [cluster.label for cluster in clusters]
    small = 0
    for j, cluster in enumerate(clusters):
        v = dense.covariance(cluster, g, sigma)
        half = np.linalg.solve(v, cluster.z) @ g
        variance = half.T @ (v - cluster.x @ c @ cluster.x.T) @ half
        rank = np.linalg.matrix_rank(variance, tol=1e-6, hermitian=True)
        distance = u[j] @ np.linalg.pinv(variance, rcond=1e-7, hermitian=True) @ u[j]
        row = table.iloc[j]
        assert row["df"] == rank
        small += rank < 4
        assert row["distance"] == pytest.approx(distance, rel=1e-5)
        assert row["p"] == pytest.approx(chi2.sf(distance, rank), rel=1e-4)
        known = np.diag(variance) > 1e-6
        expected = u[j][known] / np.sqrt(np.diag(variance)[known])
        np.testing.assert_allclose(row[labels][known], expected, rtol=1e-6)
    assert small
    # Under the model distances have mean df; 60 clusters, so that their mean is within 4 Monte Carlo errors.
    assert abs(table["distance"].sum() / table["df"].sum() - 1) < 4 * np.sqrt(2 / table["df"].sum())


def test_normal_quantiles():
    """Blom's, symmetric around zero, ties alike, NaN left out."""
    found = normal_quantiles(np.array([3.0, np.nan, 1.0, 2.0, 2.0]))
    np.testing.assert_allclose(found[[0, 2]], norm.ppf([3.625 / 4.25, 0.625 / 4.25]))
    assert np.isnan(found[1])
    assert found[3] == found[4] == pytest.approx(0, abs=1e-12)


def test_row_residuals(fit, data):
    """Stacked rows against dense y - X beta and y - X beta - Z u."""
    table = fit.residuals(data)
    assert len(table) == fit.nobs
    kept = data[data["id"].notna()]
    clusters = dense.stack(kept, SMALL.system())
    beta = fit.params.to_numpy()
    u = dense.blups(clusters, fit.random_cov.to_numpy(), fit.residual_var.to_numpy(), beta)
    original = np.flatnonzero(data["id"].notna())
    parts = []
    for j, cluster in enumerate(clusters):
        marginal = cluster.y - cluster.x @ beta
        parts.append(
            pd.DataFrame(
                {
                    "outcome": np.array(["m", "y"])[cluster.equation],
                    "id": cluster.label,
                    "row": original[cluster.row],
                    "observed": cluster.y,
                    "marginal": marginal,
                    "conditional": marginal - cluster.z @ u[j],
                }
            )
        )
    keys = ["outcome", "row"]
    expected = pd.concat(parts).sort_values(keys).reset_index(drop=True)
    found = table.sort_values(keys).reset_index(drop=True)
    assert (found["id"] == expected["id"]).all()
    assert (found["row"] == expected["row"]).all()
    for name in ("observed", "marginal", "conditional"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-8)
    np.testing.assert_allclose(found["fitted"] + found["conditional"], found["observed"], atol=1e-12)
    sd = np.sqrt(fit.residual_var[found["outcome"]].to_numpy())
    np.testing.assert_allclose(found["standardized"] * sd, found["conditional"], atol=1e-12)
    assert (
        data["y"].to_numpy()[table.query("outcome == 'y'")["row"]] == table.query("outcome == 'y'")["observed"]
    ).all()


def test_rows_of_a_cluster_level_equation(extended):
    fit = jm.fit(extended, LEVEL_2)
    table = fit.residuals(extended)
    assert len(table) == fit.nobs
    one = table[table["outcome"] == "mc"]
    assert (one["row"] == -1).all()
    assert one["id"].is_unique
    by_id = extended.groupby("id")[["mc", "xc"]].first().loc[one["id"]]
    expected = by_id["mc"] - fit.params["mc~1"] - fit.params["mc~xc"] * by_id["xc"]
    np.testing.assert_allclose(one["marginal"], expected, atol=1e-10)
    np.testing.assert_array_equal(one["marginal"], one["conditional"])
    assert one["marginal"].mean() == pytest.approx(0, abs=1e-9)


def test_errors(fit, data):
    with pytest.raises(jm.DataError, match="these data are not those of the fit"):
        fit.residuals(data.assign(y=data["y"] * 2))
    plain = jm.fit(data, jm.Mediation("x", "m", "y", "id", random="none"))
    with pytest.raises(jm.FitError, match="no random effects"):
        plain.cluster_residuals()
    rows = plain.residuals(data)
    np.testing.assert_array_equal(rows["marginal"], rows["conditional"])


def test_residuals_of_clusters_without_a_covariance_of_the_fixed_effects(fit):
    """As of a fit whose likelihood has no maximum."""
    without = replace(fit, working=fit.working._replace(block=np.full_like(fit.block, np.nan)))
    with pytest.raises(jm.FitError, match="covariance of the fixed effects is not available"):
        without.cluster_residuals()
