"""Influence of clusters against refits of the data without them, and the one-step formula against dense matrices."""

from __future__ import annotations

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE

import jaxmed as jm
from jaxmed._results.influence import cook, one_step

SMALL = jm.Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1", "m"]})


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    """60 unbalanced clusters, some y missing, x near zero so that dense inverses keep their digits."""
    return pd.read_csv(REFERENCE / "unbalanced.csv").assign(x=lambda table: table["x"] - 51)


@pytest.fixture(scope="module", params=["reml", "ml"])
def fit(data, request) -> jm.Fit:
    found = jm.fit(data, SMALL, reml=request.param == "reml")
    assert found.converged
    assert not found.singular
    return found


def test_exact_influence_is_the_fit_without_the_cluster(fit, data):
    """1e-4 of a standard error: both fits stop within 1.5e-6 of their optimum, differences of rounding included."""
    table = fit.influence(exact=True)
    effects = fit.effects()
    assert list(table.index) == sorted(data["id"].unique())
    assert list(table.columns) == [*effects.index, "cook", "cook_all"]
    worst = [table["cook"].idxmax(), table["cook_all"].idxmax(), table.index[7]]
    for label in worst:
        without = jm.fit(data[data["id"] != label], SMALL, reml=fit.reml)
        change = (effects["estimate"] - without.effects()["estimate"]) / effects["se"]
        np.testing.assert_allclose(table.loc[label, effects.index] / effects["se"], change, atol=1e-4)
        moved = fit.values - without.values
        p = len(fit.params)
        c = moved[:p] @ np.linalg.solve(fit.joint[:p, :p], moved[:p]) / p
        assert table.loc[label, "cook"] == pytest.approx(c, abs=1e-5)
        c = moved @ np.linalg.solve(fit.joint, moved) / len(moved)
        assert table.loc[label, "cook_all"] == pytest.approx(c, abs=1e-5)


def test_one_step_is_close_to_the_refit(fit):
    """Changes of up to half a standard error are found to within .06 of one, and on average to within .01."""
    exact, near = (fit.influence(exact, standardized=True) for exact in (True, False))
    effects = list(fit.effects().index)
    apart = (near - exact)[effects].abs()
    assert exact[effects].abs().max().max() > 0.25
    assert apart.max().max() < 0.06
    assert np.sqrt((apart**2).mean()).max() < 0.01
    assert near["cook"].rank().corr(exact["cook"].rank()) > 0.98
    assert near["cook_all"].rank().corr(exact["cook_all"].rank()) > 0.95


def test_one_step_is_its_formula(fit, data):
    """B d(gradient)/d(weight of a cluster), from dense matrices, and beta exact at given variance parameters.

    The likelihood of weighted clusters, sum_j w_j l_j - log|sum_j w_j X_j'V_j^-1X_j| / 2 (REML), by complex steps in
    the parameters and central differences over 1e-4 in the weight, which err by 1e-8.
    """
    clusters, p, n_free = dense.stack(data, SMALL.system()), 5, len(fit.free)

    def split(theta):
        return dense.symmetric(theta[:n_free], fit.free, 4), theta[n_free:]

    def information(cluster, theta):
        return cluster.x.T @ np.linalg.solve(dense.covariance(cluster, *split(theta)), cluster.x)

    def gradient(at, weight):
        def value(values):
            total = weight * dense.loglik([clusters[at]], *split(values[p:]), False, values[:p])
            if fit.reml:
                s = sum(information(one, values[p:]) for one in clusters)
                s = s + (weight - 1) * information(clusters[at], values[p:])
                total = total - dense._logdet(s) / 2
            return total

        return dense.gradient(value, fit.values)

    moved = one_step(fit, fit._scores) @ fit._scores.scale.matrix.T
    error, c = np.sqrt(np.diag(fit.joint)), fit.block[:p, :p]
    for at in (0, 31):
        score = (gradient(at, 1 + 1e-4) - gradient(at, 1 - 1e-4)) / 2e-4
        expected = fit.joint @ score
        without = np.linalg.inv(np.linalg.inv(c) - information(clusters[at], fit.values[p:]))
        expected[:p] += (without - c) @ score[:p]
        np.testing.assert_allclose(moved[at] / error, expected / error, atol=1e-6)


def test_moderators_and_cluster_means(extended):
    """Effects at values of a moderator, by one step and by refit; within, between and contextual ones."""
    random = {"m1": ["1", "within(x)"], "y": ["1"]}
    spec = jm.Mediation("x", "m1", "y", "id", random=random, moderators={"w": ["a"]}, center="cluster")
    found = jm.fit(extended, spec)
    near, exact = (found.influence(which, standardized=True, at={"w": [0, 1]}) for which in (False, True))
    assert "indirect_within[w=1]" in near.columns
    assert list(near.columns) == list(exact.columns)
    names = ["indirect_within[w=0]", "indirect_within[w=1]", "contextual_total[w=0]", "index_w_within"]
    assert (near[names] - exact[names]).abs().max().max() < 0.1
    assert exact[names].abs().max().min() > 0.15


def test_a_system_shows_its_fixed_effects_and_a_standardized_table(data):
    system = jm.System([jm.Equation("y", ["1", "x"], ["1"])], "id")
    found = jm.fit(data, system)
    table, unit = found.influence(), found.influence(standardized=True)
    assert list(table.columns) == ["y~1", "y~x", "cook", "cook_all"]
    np.testing.assert_allclose(table[["y~1", "y~x"]] / found.bse, unit[["y~1", "y~x"]], rtol=1e-12)
    with pytest.raises(jm.SpecError, match="exact='yes' must be True or False"):
        found.influence("yes")


def test_a_cluster_that_alone_shows_a_coefficient_is_nan():
    """Without the only cluster of its category a coefficient is not identified, by one step and by refit."""
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"id": np.repeat(np.arange(20), 5), "x": rng.normal(size=100)})
    data["alone"] = (data["id"] == 3).astype(float)
    data["y"] = data["x"] + rng.normal(size=20)[data["id"]] + rng.normal(size=100)
    found = jm.fit(data, jm.System([jm.Equation("y", ["1", "x", "alone"], ["1"])], "id"))
    near = found.influence()
    assert near.loc[3].isna().all()
    assert near.drop(index=3).notna().all().all()
    with pytest.warns(jm.ConvergenceWarning, match="1 of 20 refits without a cluster did not converge"):
        exact = found.influence(exact=True)
    assert exact.loc[3].isna().all()


def test_cook_within_the_range_of_a_singular_covariance():
    """Cov of rank one: the distance along it."""
    covariance = np.outer([1.0, 2.0], [1.0, 2.0])
    np.testing.assert_allclose(cook(np.array([[1.0, 2.0], [0.5, 1.0]]), covariance), [1.0, 0.25])


def test_a_cluster_without_finite_information_is_nan(fit):
    """And no warning of NumPy, as on 14 rows of Arrow types."""
    information = np.array(fit._scores.information)
    information[:, :, 3] = np.nan
    moved = one_step(fit, fit._scores._replace(information=information))
    expected = one_step(fit, fit._scores)
    assert np.all(np.isnan(moved[3]))
    others = np.arange(len(moved)) != 3
    np.testing.assert_array_equal(moved[others], expected[others])
