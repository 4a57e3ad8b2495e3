"""Likelihood-ratio tests of nested fits, and their reference distributions."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE
from scipy.stats import chi2

import jaxmed as jm

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
AB = {"m": ["1", "x"], "y": ["1", "m"]}


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return jm.datasets.load_example()


def system(random: list[str], **options) -> jm.System:
    return jm.System([jm.Equation("y", ["1", "x"], random=random)], cluster="id", **options)


def test_nlme_anova_and_the_mixture():
    """nlme's anova; the statistic is a difference of log likelihoods that agree to 1e-9."""
    data = pd.read_csv(REFERENCE / "extended.csv")
    reference = json.loads((REFERENCE / "extended.json").read_text())["compare"]
    found = jm.compare(jm.fit(data, system(["1"])), jm.fit(data, system(["1", "x"])))
    assert found.statistic == pytest.approx(reference["statistic"], abs=1e-6)
    assert found.df == reference["df"] == 2
    assert found.p == pytest.approx(reference["p_mixture"], rel=1e-5)
    assert "50:50 mixture of chi2(1) and chi2(2)" in found.hypothesis


def test_order_of_the_fits_does_not_matter(data):
    small, large = jm.fit(data, system(["1"])), jm.fit(data, system(["1", "x"]))
    assert jm.compare(large, small) == jm.compare(small, large)


def test_a_variance_alone_has_the_mixture_of_zero_and_one(data):
    small = jm.fit(data, system(["1"], covariance="diagonal"))
    large = jm.fit(data, system(["1", "x"], covariance="diagonal"))
    found = jm.compare(small, large)
    assert found.df == 1
    assert found.p == pytest.approx(chi2.sf(found.statistic, 1) / 2, rel=1e-12)


def test_a_variance_estimated_as_zero_has_p_one():
    """No variation of the slope at all: the statistic is zero, and so is the evidence."""
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(30), 6)
    x = rng.normal(size=180)
    # Slopes within clusters made exactly equal: no variance of the slope can be better than none.
    noise = rng.normal(size=(30, 6))
    inside = x.reshape(30, 6) - x.reshape(30, 6).mean(axis=1, keepdims=True)
    noise -= inside * ((noise * inside).sum(axis=1) / (inside**2).sum(axis=1))[:, None]
    data = pd.DataFrame({"id": cluster, "x": x, "y": 0.5 * x + noise.ravel()})
    small = jm.fit(data, system(["1"], covariance="diagonal"))
    large = jm.fit(data, system(["1", "x"], covariance="diagonal"))
    found = jm.compare(small, large)
    assert found.statistic == pytest.approx(0, abs=1e-6)
    assert found.p >= 0.5 - 1e-3


def test_covariances_and_fixed_effects_have_no_boundary(data):
    diagonal, free = jm.fit(data, system(["1", "x"], covariance="diagonal")), jm.fit(data, system(["1", "x"]))
    found = jm.compare(diagonal, free)
    assert (found.df, found.p) == (1, pytest.approx(chi2.sf(found.statistic, 1), rel=1e-12))
    short = jm.System([jm.Equation("y", ["1"], random=["1"])], cluster="id")
    found = jm.compare(jm.fit(data, short, reml=False), jm.fit(data, system(["1"]), reml=False))
    assert (found.df, found.p) == (1, pytest.approx(chi2.sf(found.statistic, 1), rel=1e-12))
    assert found.hypothesis == "y~x = 0; chi2(1)"


def test_several_variances_are_tested_conservatively(data):
    found = jm.compare(jm.fit(data, jm.Mediation(**ROLES, random={"m": ["1"], "y": ["1"]})), jm.fit(data, **ROLES))
    assert found.df == 15 - 3
    assert found.p == pytest.approx(chi2.sf(found.statistic, 12), rel=1e-12)
    assert "conservative: 3 variances" in found.hypothesis


def test_partition_is_nested_in_unstructured(data):
    part = jm.Mediation(**ROLES, random=AB, covariance=[["m~1"], ["y~1"], ["m~x", "y~m"]])
    found = jm.compare(jm.fit(data, part), jm.fit(data, jm.Mediation(**ROLES, random=AB)))
    assert found.df == 5
    assert "boundary" not in found.hypothesis


def unconverged(data: pd.DataFrame) -> jm.Fit:
    with pytest.warns(jm.ConvergenceWarning):
        return jm.fit(data, system(["1", "x"]), max_iter=1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (unconverged, "one of the fits did not converge"),
        (
            lambda data: jm.fit(data, system(["1"]), reml=False),
            "one fit is by REML and the other by maximum likelihood",
        ),
        (lambda data: jm.fit(data, **ROLES), r"the fits have different outcomes \(\['m'\]\)"),
        (lambda data: jm.fit(data[data["id"] > 3], system(["1"])), "the fits have different clusters"),
        (lambda data: jm.fit(data.iloc[1:], system(["1"])), "the fits use different rows"),
        (lambda data: jm.fit(data, system(["1", "x"])), "the fits are of the same model"),
        (lambda data: jm.fit(data.assign(y=1.3 * data["y"]), system(["1"])), "the fits are of different data: 'y' has"),
        (
            lambda data: jm.fit(data, jm.System([jm.Equation("y", ["1", "m"], ["1"])], "id")),
            "restricted likelihoods of models with different fixed effects do not compare, nor do their aic and bic",
        ),
        (
            lambda data: jm.fit(data, jm.System([jm.Equation("y", ["1"], ["1"])], "id")),
            "restricted likelihoods of models with different fixed effects do not compare, nor do",
        ),
    ],
)
def test_refusals(data, other, message):
    fit = jm.fit(data, system(["1", "x"]))
    with pytest.raises(jm.FitError, match=message):
        jm.compare(fit, other(data))


def test_a_variance_is_not_its_fixed_effect(data):
    """m~x and its variance m~x~~m~x are different parameters, and the hypothesis names them."""
    small = jm.Mediation(**ROLES, random={"m": ["1"], "y": ["1"]}, covariance="diagonal")
    large = jm.Mediation(**ROLES, random={"m": ["1", "x"], "y": ["1"]}, covariance="diagonal")
    found = jm.compare(jm.fit(data, small), jm.fit(data, large))
    assert found.hypothesis.startswith("m~x~~m~x = 0; 50:50 mixture of chi2(0) and chi2(1)")
    other = jm.System([jm.Equation("m", ["1"], ["1"]), jm.Equation("y", ["1", "m", "x"], ["1", "m"])], "id", "block")
    with pytest.raises(jm.FitError, match="the fits are not nested"):
        jm.compare(jm.fit(data, large, reml=False), jm.fit(data, other, reml=False))


def test_models_that_are_not_nested():
    """By maximum likelihood their aic and bic compare, by restricted likelihood nothing does."""
    data = jm.datasets.load_example()
    one, other = (
        jm.fit(data, jm.System([jm.Equation("y", ["1", name], ["1"])], "id"), reml=False) for name in ("x", "m")
    )
    with pytest.raises(jm.FitError, match=r"not nested: .* compare their aic or bic instead"):
        jm.compare(one, other)
