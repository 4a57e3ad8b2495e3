"""Intervals of a fit that need no refits: delta and Monte Carlo, of effects and parameters."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmed as jm


@pytest.fixture(scope="module")
def fit():
    return jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")


def test_delta_is_the_table_of_effects(fit):
    for se in ("joint", "bauer"):
        assert fit.intervals(covariance=se, level=0.9).equals(fit.effects(se, level=0.9))
    assert fit.intervals(covariance="bauer", terms=["total", "a"]).equals(fit.effects("bauer").loc[["total", "a"]])


def test_delta_of_parameters(fit):
    """Standard errors are those of bse, random_cov_se and the block covariance."""
    table = fit.intervals(terms="parameters")
    assert tuple(table.index) == fit.labels
    np.testing.assert_allclose(table["se"][list(fit.bse.index)], fit.bse, rtol=1e-14)
    assert table.loc["m~x~~y~m", "se"] == pytest.approx(fit.random_cov_se.loc["m~x", "y~m"], rel=1e-14)
    block = fit.intervals(covariance="block", terms=list(fit.params.index))
    np.testing.assert_allclose(block["se"], fit.standard_errors("block"), rtol=1e-14)
    np.testing.assert_allclose(table["ci_upper"] - table["estimate"], 1.959963984540054 * table["se"], rtol=1e-12)


def test_monte_carlo_of_normal_quantities_is_the_delta_interval(fit):
    """A parameter is normal itself: limits agree with delta within 4.5 Monte Carlo errors (46 limits)."""
    found = fit.intervals("monte_carlo", seed=1, terms="parameters", draws=200_000)
    wald = fit.intervals(terms="parameters")
    for limit in ("ci_lower", "ci_upper"):
        assert np.all(np.abs(found[limit] - wald[limit]) < 4.5 * found[f"{limit}_mcse"])


def test_monte_carlo_of_the_indirect_effect(fit):
    """Against an own simulation of ab + cov_ab from the joint covariance with another generator (6 errors of both)."""
    labels = ["m~x", "y~m", "m~x~~y~m"]
    at = [fit.labels.index(label) for label in labels]
    rng = np.random.default_rng(5)
    n = 400_000
    for se, covariance in {"joint": fit.joint, "block": fit.block, "independent": np.diag(np.diag(fit.block))}.items():
        a, b, cov = rng.multivariate_normal(fit.values[at], covariance[np.ix_(at, at)], n).T
        expected = np.quantile(a * b + cov, [0.025, 0.975])
        row = fit.intervals("monte_carlo", seed=2, covariance=se, draws=n).loc["indirect"]
        assert abs(row["ci_lower"] - expected[0]) < 6 * row["ci_lower_mcse"]
        assert abs(row["ci_upper"] - expected[1]) < 6 * row["ci_upper_mcse"]
        assert row["se"] == pytest.approx(np.std(a * b + cov), rel=0.01)


def test_seeds(fit):
    assert fit.intervals("monte_carlo", seed=1).equals(fit.intervals("monte_carlo", seed=1))
    assert not fit.intervals("monte_carlo", seed=1).equals(fit.intervals("monte_carlo", seed=2))


def test_moderated_effects_keep_their_index():
    spec = jm.Mediation("support", "motivation", "achievement", "school", moderators={"climate": ["a"]})
    fit = jm.fit(jm.datasets.load_schools(), spec)
    at = {"climate": [-1, 1]}
    found = fit.intervals("monte_carlo", seed=1, at=at)
    assert found.index.equals(fit.effects(at=at).index)
    np.testing.assert_allclose(found["estimate"], fit.effects(at=at)["estimate"])
    assert fit.intervals(terms=["indirect[climate=-1]"], at=at).index.tolist() == [("indirect", -1.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "bootstrap"}, "method='bootstrap' is not known"),
        ({"method": "monte_carlo"}, "give a seed"),
        ({"method": "monte_carlo", "seed": -1}, "seed=-1 must be a whole number"),
        ({"method": "monte_carlo", "seed": 1, "draws": 10}, "draws=10 must be"),
        (
            {"method": "monte_carlo", "seed": 1, "covariance": "bauer"},
            "method='monte_carlo': covariance='bauer' is not known",
        ),
        (
            {"method": "profile", "covariance": "block"},
            "method='profile': covariance='block' is not known; .*'joint'",
        ),
        ({"covariance": "bauer", "terms": "all"}, "covariance='bauer' is of effects"),
        ({"terms": ["ab"]}, "choose 'effects', 'parameters', 'all' or some of"),
        ({"terms": ["a", "a"]}, "each once"),
        ({"level": 95}, "level=95 is not a confidence level"),
    ],
)
def test_refusals(fit, arguments, message):
    with pytest.raises(jm.SpecError, match=message):
        fit.intervals(**arguments)


def test_a_system_has_parameters_only(fit):
    system = jm.System([jm.Equation("y", ["1", "x"], random=["1"])], cluster="id")
    found = jm.fit(jm.datasets.load_example(), system)
    assert tuple(found.intervals("monte_carlo", seed=1).index) == found.labels
    with pytest.raises(jm.SpecError, match="at is of effects"):
        found.intervals(at={"w": [1]})
