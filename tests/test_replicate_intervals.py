"""Intervals from replicates: the R package boot on the same replicates, Monte Carlo errors, and what is left out."""

from __future__ import annotations

import importlib
import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE, read_reference

import jaxmed as jm
from jaxmed._inference.limits import Limits, bias_corrected, quantile_limits, studentized
from jaxmed._simulation.replicates import Origin, Replicates

module = importlib.import_module("jaxmed._simulation.replicates")
KINDS = ("percentile", "basic", "bc", "bca", "studentized")
NAMES = ("slope", "square", "variance")


def made(draws: np.ndarray, errors: np.ndarray, estimate, se, names=NAMES) -> Replicates:
    """Replicates as if they had come from a fit of a System with these parameters."""
    n = len(draws)
    own = {"replicate": np.arange(n), "status": 0, "n_iter": 4, "grad_norm": 1e-9, "singular": False}
    table = pd.DataFrame(own | dict(zip(names, draws.T, strict=True)))
    table = table.assign(**{f"{name}_se": errors[:, k] for k, name in enumerate(names)})
    origin = Origin(
        method="cluster",
        seed=1,
        requested=n,
        model={},
        reml=True,
        loglik=0.0,
        n_clusters=100,
        rows=(100,),
        labels=tuple(names),
        n_params=len(names),
        values=np.array(estimate, dtype=float),
        errors=np.array(se, dtype=float),
        index={"names": [None], "rows": []},
    )
    return Replicates(table, origin)


@pytest.fixture(scope="module")
def inputs() -> dict:
    return json.loads((REFERENCE / "boot.input.json").read_text(encoding="utf-8"))


@pytest.fixture
def replicates(inputs) -> Replicates:
    table = pd.read_csv(REFERENCE / "boot.csv")
    errors = table[[f"{name}_se" for name in NAMES]].to_numpy()
    estimate, se = ([inputs[name][what] for name in NAMES] for what in ("estimate", "se"))
    return made(table[list(NAMES)].to_numpy(), errors, estimate, se)


# R -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_are_those_of_boot(replicates, inputs, monkeypatch, kind, level):
    """1e-9: the reference has 15 digits. boot was given influence values 99 (mean - value without a pair)."""
    expected = read_reference("boot.json")
    influence = np.column_stack([inputs[name]["influence"] for name in NAMES])
    monkeypatch.setattr(module, "without_each_cluster", lambda fit, origin: 3 - influence / 99)
    found = replicates.intervals(kind, level=level, fit=object())
    assert list(found.index) == list(NAMES)
    for name in NAMES:
        limits = found.loc[name, ["ci_lower", "ci_upper"]].to_numpy(dtype=float)
        np.testing.assert_allclose(limits, expected[name][f"{level:g}"][kind], rtol=1e-9)
    np.testing.assert_array_equal(found["se"], replicates.table[list(NAMES)].std())
    np.testing.assert_array_equal(found["estimate"], replicates.origin.values)
    assert (found[["ci_lower_mcse", "ci_upper_mcse"]] > 0).all(axis=None)


def test_kinds_differ(replicates, inputs):
    """The reference tells the kinds from each other: any two differ by a tenth of a standard error somewhere."""
    expected = read_reference("boot.json")
    for one in KINDS:
        for other in KINDS:
            apart = [
                np.abs(np.subtract(expected[name]["0.95"][one], expected[name]["0.95"][other])) / inputs[name]["se"]
                for name in NAMES
            ]
            assert one == other or np.max(apart) > 0.1


# Monte Carlo errors --------------------------------------------------------------------------------------------------


def limits_of(kind: str, draws: np.ndarray, errors: np.ndarray) -> Limits:
    if kind in ("percentile", "basic"):
        return quantile_limits(draws, 0.95, 0.2, reflected=kind == "basic")
    if kind == "studentized":
        return studentized(draws, errors, 0.95, 0.2, 1.1)
    return bias_corrected(draws, 0.95, 0.2, 0.05 if kind == "bca" else 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_monte_carlo_errors(kind):
    """Over 400 sets of 999 normal draws the limits' standard deviation is the mean error to 15% (its own is 3.5%)."""
    rng = np.random.default_rng(12)
    found = []
    for _ in range(400):
        draws, errors = rng.normal(size=999), np.sqrt(rng.chisquare(30, size=999) / 30)
        found.append(limits_of(kind, draws, errors)[:4])
    found = np.array(found)
    ratio = found[:, 2:].mean(axis=0) / found[:, :2].std(axis=0)
    assert np.all(np.abs(ratio - 1) < 0.15), ratio


def test_basic_limits_are_reflected():
    draws = np.random.default_rng(1).exponential(size=500)
    one, other = quantile_limits(draws, 0.9), quantile_limits(draws, 0.9, 0.7, reflected=True)
    assert (other.lower, other.upper) == (1.4 - one.upper, 1.4 - one.lower)
    assert (other.lower_mcse, other.upper_mcse) == (one.upper_mcse, one.lower_mcse)
    assert one.lower_mcse < one.upper_mcse  # the long tail is the less certain


def test_what_does_not_vary_has_no_width(replicates):
    """cov(a_j, b_j) of a model without it: estimate and replicates are zero."""
    table = replicates.table.assign(slope=0.0, slope_se=0.0)
    origin = replace(
        replicates.origin,
        values=np.array([0.0, *replicates.origin.values[1:]]),
        errors=np.array([0.0, *replicates.origin.errors[1:]]),
    )
    for kind in ("percentile", "basic", "bc", "studentized"):
        found = replace(replicates, table=table, origin=origin).intervals(kind, terms="slope").loc["slope"]
        assert (found[["se", "ci_lower", "ci_upper", "ci_lower_mcse", "ci_upper_mcse"]] == 0).all()
        assert np.isnan(found["z"])


def test_an_estimate_outside_all_replicates_has_no_bias_correction(replicates):
    origin = replace(replicates.origin, values=replicates.origin.values + 100)
    found = replace(replicates, origin=origin).intervals("bc")
    assert found[["ci_lower", "ci_upper", "ci_lower_mcse", "ci_upper_mcse"]].isna().all(axis=None)


def test_replicates_without_a_standard_error_do_not_count_as_studentized(replicates):
    """The same limits as without these rows, which are counted."""
    table = replicates.table.copy()
    table.loc[::10, "slope_se"] = np.nan
    with pytest.warns(jm.ConvergenceWarning, match="100 of 999 replicates have no standard error of slope"):
        found = replace(replicates, table=table).intervals("studentized", terms="slope")
    rest = replace(replicates, table=table[table["slope_se"].notna()]).intervals("studentized", terms="slope")
    limits = ["ci_lower", "ci_upper", "ci_lower_mcse", "ci_upper_mcse"]
    pd.testing.assert_frame_equal(found[limits], rest[limits], check_exact=True)


# Failures and refusals -----------------------------------------------------------------------------------------------


def test_failures_are_left_out_and_counted(replicates):
    table = replicates.table.copy()
    table.loc[[3, 500], "status"] = [jm.Status.STALLED, jm.Status.MAX_ITERATIONS] if hasattr(jm, "Status") else [2, 1]
    table.loc[3, list(NAMES)] = 1e6
    some = replace(replicates, table=table)
    with pytest.warns(
        jm.ConvergenceWarning, match=r"2 of 999 replicates did not converge and are left out; see failures"
    ):
        found = some.intervals()
    rest = replace(replicates, table=table.drop([3, 500])).intervals()
    pd.testing.assert_frame_equal(found, rest, check_exact=True)
    failures = some.failures()
    assert list(failures.columns) == ["replicate", "status", "n_iter", "grad_norm", "singular", "message"]
    assert failures["replicate"].tolist() == [3, 500]
    assert failures["message"].str.startswith("not converged: ").tolist() == [True, True]
    assert "no step improved the likelihood" in failures["message"].iloc[0]
    assert "2 not converged" in repr(some)
    assert some.to_dict()["failures"] == 2
    assert not len(replicates.failures())


@pytest.mark.parametrize("kind", ["percentile", "basic", "bc", "studentized"])
def test_too_few_replicates(replicates, kind):
    """38 replicates have no quantile 2.5%, 39 have the first one; percentile limits are then the outermost."""
    few = replace(replicates, table=replicates.table[:38])
    with pytest.warns(jm.ConvergenceWarning, match=r"38 replicates are too few for a limit of slope at level 0\.95"):
        found = few.intervals(kind, terms="slope").loc["slope"]
    if kind == "percentile":
        draws = few.table["slope"]
        assert (found["ci_lower"], found["ci_upper"]) == (draws.min(), draws.max())
    if kind != "bc":
        replace(replicates, table=replicates.table[:39]).intervals(kind, terms="slope")
    assert np.isfinite(found[["ci_lower", "ci_upper"]].astype(float)).all()


def test_refusals(replicates):
    with pytest.raises(jm.SpecError, match=r"kind='normal' is not known; choose one of \['percentile', 'basic', 'bc'"):
        replicates.intervals("normal")
    for terms in ("b", ["slope", "b"], []):
        with pytest.raises(jm.SpecError, match=r"slope"):
            replicates.intervals(terms=terms)
    for level in (0, 1, 95, True, "0.9"):
        with pytest.raises(jm.SpecError, match=r"is not a confidence level"):
            replicates.intervals(level=level)
    with pytest.raises(jm.FitError, match=r"pass the fit: replicates\.intervals\('bca', fit=fit\)"):
        replicates.intervals("bca")
    for n in (0, 1):
        with pytest.raises(jm.FitError, match=rf"{n} of {n} replicates converged; intervals need at least 2"):
            replace(replicates, table=replicates.table[:n]).intervals()


def test_terms(replicates):
    assert list(replicates.intervals(terms="parameters").index) == list(NAMES)
    assert list(replicates.intervals(terms="all").index) == list(NAMES)
    assert list(replicates.intervals(terms=["variance", "slope"]).index) == ["variance", "slope"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide, narrow = replicates.intervals(level=0.95), replicates.intervals(level=0.9)
    assert (wide["ci_lower"] < narrow["ci_lower"]).all()
    assert (wide["ci_upper"] > narrow["ci_upper"]).all()
