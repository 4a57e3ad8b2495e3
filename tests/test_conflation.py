"""Within against between paths: effects of the centred model, ordinary least squares, and known truth."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE

import jaxmed as jm
from jaxmed._results.within_between import _apart

SMALL = jm.Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1"]}, covariance=[["m~1", "m~x"], ["y~1"]])


def simulated(contextual: float) -> pd.DataFrame:
    """80 clusters of 6; the cluster mean of x moves m by ``contextual`` more than deviations from it do."""
    rng = np.random.default_rng(8)
    cluster = np.repeat(np.arange(80), 6)
    x = rng.normal(size=80)[cluster] + rng.normal(size=480)
    mean = pd.Series(x).groupby(cluster).transform("mean").to_numpy()
    m = 0.5 * x + contextual * mean + 0.4 * rng.normal(size=80)[cluster] + rng.normal(size=480)
    y = 0.4 * m + 0.2 * x + 0.4 * rng.normal(size=80)[cluster] + rng.normal(size=480)
    return pd.DataFrame({"id": cluster, "x": x, "m": m, "y": y})


@pytest.fixture(scope="module")
def found():
    return jm.conflation(jm.fit(simulated(0.6), SMALL))


def test_the_model_with_cluster_means_nests_that_of_the_fit(found):
    """Coefficients of the means are between less within; the Wald test is theirs; random effects are as they were."""
    means = ["m~between(x)", "y~between(m)", "y~between(x)"]
    table = found.table
    np.testing.assert_allclose(table["estimate"], found.fit.params[means], rtol=1e-12)
    np.testing.assert_allclose(table["se"], found.fit.bse[means], rtol=1e-12)
    np.testing.assert_allclose(table["within"], found.fit.params[["m~x", "y~m", "y~x"]], rtol=1e-12)
    np.testing.assert_allclose(table["between"] - table["within"], table["estimate"], atol=1e-14)
    wald = found.fit.wald(means)
    assert (found.test.statistic, found.test.df) == (pytest.approx(wald.statistic, rel=1e-12), 3)
    assert found.fit.system.random_labels == ("m~1", "m~x", "y~1")
    assert "between = within: a, b, c_prime: chi2(3) = " in str(found)


def test_a_centred_fit_is_compared_as_it_is():
    """The contextual rows of its effects, and their joint test by hand."""
    centred = jm.fit(simulated(0.6), jm.Mediation("x", "m", "y", "id", random="none", center="cluster"))
    found = jm.conflation(centred)
    assert found.fit is centred
    contextual = centred.effects().loc[["contextual_a", "contextual_b", "contextual_c_prime"]]
    np.testing.assert_allclose(found.table[list(contextual.columns)], contextual, rtol=1e-8)
    labels = list(centred.params.index)
    contrast = np.zeros((3, len(labels)))
    for row, label in enumerate(["m~within(x)", "y~within(m)", "y~within(x)"]):
        contrast[row, labels.index(label)] = -1
        contrast[row, labels.index(label.replace("within", "between"))] = 1
    covariance = contrast @ centred.cov_params() @ contrast.T
    difference = found.table["estimate"].to_numpy()
    assert found.test.statistic == pytest.approx(difference @ np.linalg.solve(covariance, difference), rel=1e-10)


def test_it_finds_what_is_there_and_no_more(found):
    """.6 between clusters beyond the path within, known to some .1; without it the test has nothing to find."""
    assert abs(found.table.loc["a", "estimate"] - 0.6) < 3 * found.table.loc["a", "se"]
    assert found.table.loc["a", "p"] < 1e-4
    assert found.test.p < 1e-3
    none = jm.conflation(jm.fit(simulated(0.0), SMALL))
    assert none.test.p > 0.05
    robust = jm.conflation(jm.fit(simulated(0.0), SMALL), covariance="robust")
    assert robust.test.p > 0.05
    assert robust.test.statistic != none.test.statistic


@pytest.mark.parametrize(
    ("covariance", "expected"),
    [
        ("unstructured", [["m~1", "m~x", "y~m"], ["y~1"]]),
        ("block", "block"),
        ([["m~1", "y~1"], ["m~x", "y~m"]], [["m~1"], ["m~x", "y~m"], ["y~1"]]),
        ([["m~1", "m~x"], ["y~1", "y~m"]], [["m~1", "m~x"], ["y~1", "y~m"]]),
    ],
)
def test_intercepts(covariance, expected):
    """The intercept of y is apart from that of m, unless it is so already."""
    spec = jm.Mediation("x", "m", "y", "id", {"m": ["1", "x"], "y": ["1", "m"]}, covariance=covariance)
    assert _apart(SimpleNamespace(spec=spec, system=spec.system())) == expected


def test_without_random_effects_it_is_mundlaks_regression():
    """Least squares with cluster means beside the deviations, ML: rss / n. 1e-8: closed form on either side."""
    data = simulated(0.6)
    spec = jm.Mediation("x", "m", "y", "id", random="none")
    found = jm.conflation(jm.fit(data, spec, reml=False), covariance="block")
    mean = data.groupby("id")["x"].transform("mean")
    design = np.column_stack([np.ones(len(data)), data["x"] - mean, mean])
    beta, rss, *_ = np.linalg.lstsq(design, data["m"], rcond=None)
    covariance = rss[0] / len(data) * np.linalg.inv(design.T @ design)
    assert found.table.loc["a", "estimate"] == pytest.approx(beta[2] - beta[1], rel=1e-8)
    se = np.sqrt(np.array([0, -1, 1]) @ covariance @ np.array([0, -1, 1]))
    assert found.table.loc["a", "se"] == pytest.approx(se, rel=1e-8)


def test_missing_values_and_moderators():
    """Moments read for the uncentred model do not have the rows of cluster means: the data are asked for."""
    data = pd.read_csv(REFERENCE / "unbalanced.csv").assign(x=lambda table: table["x"] - 51)
    data["w"] = np.where(data["x"] > 0, 1.0, -1.0)
    spec = jm.Mediation("x", "m", "y", "id", random={"m": ["1"], "y": ["1"]}, moderators={"w": ["a"]})
    fit = jm.fit(data, spec)
    with pytest.raises(jm.DataError, match="fit from the data instead"):
        jm.conflation(fit)
    found = jm.conflation(fit, data)
    assert list(found.table.index) == ["a", "a:w", "b", "c_prime"]
    assert found.test.df == 4
    assert found.fit.nobs == fit.nobs


def test_too_few_clusters_are_said_of_the_fit_alone():
    """The model with cluster means has as few: a second warning named a line of jaxmed's own."""
    with pytest.warns(jm.ConvergenceWarning, match="5 clusters do not identify the covariance of 5 random effects"):
        fit = jm.fit(jm.simulate(clusters=5, size=30, seed=1), x="x", m="m", y="y", cluster="id")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jm.conflation(fit, intercepts="free").fit.too_few_clusters


def test_a_warning_of_the_model_with_cluster_means_names_it():
    """Three clusters, three cluster means: flat, in terms that the model of the user has not."""
    population = jm.Population(a=0.3, b=0.3, c_prime=0.2, cov_ab=0.05)
    data = jm.simulate(population, clusters=3, size=40, seed=1)
    fit = jm.fit(data, jm.Mediation("x", "m", "y", "id", covariance="diagonal"))
    with pytest.warns(jm.ConvergenceWarning, match="^of the model with cluster means: converged.*flat") as said:
        jm.conflation(fit)
    assert said[0].filename == __file__


def test_errors(found):
    with pytest.raises(jm.SpecError, match="conflation needs a Fit"):
        jm.conflation(3)
    with pytest.raises(
        jm.SpecError, match=r"covariance='bauer' is not known; choose one of \['joint', 'block', 'robust'\]"
    ):
        jm.conflation(found.fit, covariance="bauer")
    system = jm.fit(simulated(0), jm.System([jm.Equation("y", ["1", "x"], ["1"])], "id"))
    with pytest.raises(jm.SpecError, match="intercepts='no' is not known; choose 'apart' or 'free'"):
        jm.conflation(found.fit, intercepts="no")
    with pytest.raises(jm.FitError, match=r"those of a jaxmed.Mediation; this fit is of a System"):
        jm.conflation(system)
