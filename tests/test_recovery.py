"""Recovery of known truth over 500 simulated data sets, for effects that no peer program reports."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm
from jaxmed._simulation.simulation import rows

pytestmark = pytest.mark.slow

SAMPLES, CLUSTERS, SIZE = 500, 120, 8
ROLES = {"x": "x", "y": "y", "cluster": "id"}


def design(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """x with variance 1 within and .5 between clusters, a cluster-level moderator w."""
    rng = np.random.default_rng([7, seed])
    cluster = np.repeat(np.arange(CLUSTERS), SIZE)
    x = rng.normal(0, np.sqrt(0.5), CLUSTERS)[cluster] + rng.normal(size=len(cluster))
    return {"x": x, "w": rng.normal(size=CLUSTERS)[cluster]}, cluster


def draw(system: jm.System, params: dict, g: np.ndarray, residual: np.ndarray, seed: int) -> pd.DataFrame:
    exogenous, cluster = design(seed)
    return pd.DataFrame({"id": cluster, **exogenous, **rows(system, params, g, residual, exogenous, cluster, seed)})


def covariance(labels: tuple[str, ...], sds: dict[str, float], correlations: dict[tuple[str, str], float]):
    matrix = np.eye(len(labels))
    for (one, other), value in correlations.items():
        i, j = labels.index(one), labels.index(other)
        matrix[i, j] = matrix[j, i] = value
    sd = np.array([sds[label] for label in labels])
    return matrix * np.outer(sd, sd)


def recover(spec: jm.Mediation, sample, truth: dict[str, float], report: str) -> None:
    """Bias within 3 Monte Carlo errors, coverage of the joint 95% interval within .93-.97, of every effect named."""
    estimates, covered = [], []
    for seed in range(SAMPLES):
        fit = jm.fit(sample(seed), spec)
        assert fit.converged
        table = fit.effects().loc[list(truth)]
        true = np.array(list(truth.values()))
        estimates.append(table["estimate"])
        covered.append((table["ci_lower"] <= true) & (true <= table["ci_upper"]))
    found, inside = pd.DataFrame(estimates), pd.DataFrame(covered)
    bias = (found.mean() - pd.Series(truth)) / (found.std() / np.sqrt(SAMPLES))
    summary = pd.DataFrame({"truth": truth, "mean": found.mean(), "mc_errors": bias, "coverage": inside.mean()})
    print(f"\n{report}\n{summary.round(3).to_string()}")
    assert np.all(np.abs(bias) < 3), summary
    assert inside.mean().between(0.93, 0.97).all(), summary


def test_serial_product_of_three_varying_slopes():
    """E[a d b] = adb + a cov(d, b) + d cov(a, b) + b cov(a, d)."""
    random = {"m1": ["1", "x"], "m2": ["1", "m1"], "y": ["1", "m2"]}
    spec = jm.Mediation(m=["m1", "m2"], serial=True, random=random, **ROLES)
    system = spec.system()
    params = {"m1~1": 0.1, "m1~x": 0.5, "m2~1": 0.0, "m2~m1": 0.5, "m2~x": 0.1, "y~1": 0.2, "y~m1": 0.2, "y~m2": 0.4}
    params["y~x"] = 0.1
    sds = dict(zip(system.random_labels, [0.6, 0.35, 0.6, 0.35, 0.6, 0.35], strict=True))
    correlations = {("m1~x", "m2~m1"): 0.4, ("m1~x", "y~m2"): 0.3, ("m2~m1", "y~m2"): -0.3}
    g = covariance(system.random_labels, sds, correlations)
    a, d, b, v = 0.5, 0.5, 0.4, 0.35**2
    chain = a * d * b + v * (a * -0.3 + d * 0.3 + b * 0.4)
    truth = {"indirect_m1_m2": chain, "indirect_m1": a * 0.2, "indirect_m2": 0.1 * b}
    truth["indirect"] = sum(truth.values())
    truth["total"] = truth["indirect"] + 0.1
    recover(spec, partial(draw, system, params, g, np.diag([0.8, 0.7, 0.9])), truth, "serial")


def test_parallel_with_correlated_residuals_and_missing_mediators():
    """One of five rows lacks m1, at random: its m2 still informs."""
    random = {"m1": ["1", "x"], "m2": ["1", "x"], "y": ["1", "m1"]}
    spec = jm.Mediation(m=["m1", "m2"], random=random, **ROLES)
    system = spec.system()
    params = {"m1~1": 0.1, "m1~x": 0.5, "m2~1": 0.0, "m2~x": 0.4, "y~1": 0.2, "y~m1": 0.4, "y~m2": 0.3, "y~x": 0.1}
    sds = dict(zip(system.random_labels, [0.6, 0.35, 0.6, 0.35, 0.6, 0.35], strict=True))
    g = covariance(system.random_labels, sds, {("m1~x", "y~m1"): 0.4, ("m1~x", "m2~x"): 0.3})
    residual = np.array([[0.8, 0.4, 0.0], [0.4, 0.7, 0.0], [0.0, 0.0, 0.9]])

    def sample(seed: int) -> pd.DataFrame:
        data = draw(system, params, g, residual, seed)
        return data.assign(m1=data["m1"].mask(np.random.default_rng([9, seed]).random(len(data)) < 0.2))

    truth = {"indirect_m1": 0.5 * 0.4 + 0.4 * 0.35**2, "indirect_m2": 0.4 * 0.3}
    truth["indirect"] = sum(truth.values())
    truth |= {
        "total": truth["indirect"] + 0.1,
        "indirect_m1 - indirect_m2": truth["indirect_m1"] - truth["indirect_m2"],
    }
    recover(spec, sample, truth, "parallel")


def test_index_of_moderated_mediation():
    """a moves with w by .2; the slope of the indirect effect in w is .2 b."""
    spec = jm.Mediation(m="m", moderators={"w": "a"}, **ROLES)
    system = spec.system()
    params = {"m~1": 0, "m~x": 0.5, "m~w": 0.3, "m~x:w": 0.2, "y~1": 0, "y~m": 0.4, "y~x": 0.2}
    labels = jm.fit(draw(system, params, np.zeros((6, 6)), np.eye(2), 0), spec).system.random_labels
    assert labels == ("m~1", "m~x", "y~1", "y~m", "y~x")
    at_level_1 = covariance(labels, dict(zip(labels, [0.6, 0.35, 0.6, 0.35, 0.3], strict=True)), {("m~x", "y~m"): 0.4})
    g = np.zeros((6, 6))
    keep = [system.random_labels.index(label) for label in labels]
    g[np.ix_(keep, keep)] = at_level_1

    def sample(seed: int) -> pd.DataFrame:
        return draw(system, params, g, np.diag([0.8, 0.9]), seed)

    estimates, covered = [], []
    for seed in range(SAMPLES):
        row = jm.fit(sample(seed), spec).effects(at={"w": 0}).loc["index_w"].iloc[0]
        estimates.append(row["estimate"])
        covered.append(row["ci_lower"] <= 0.08 <= row["ci_upper"])
    error = (np.mean(estimates) - 0.08) / (np.std(estimates) / np.sqrt(SAMPLES))
    print(f"\nindex of moderated mediation: {error:.2f} Monte Carlo errors, coverage {np.mean(covered):.3f}")
    assert abs(error) < 3
    assert 0.93 <= np.mean(covered) <= 0.97


def test_within_effects_and_the_pull_of_observed_means():
    """Within effects are recovered; the slope of an observed mean is pulled towards the within slope as documented.

    y moves by .5 with deviations of m and by 1 with the cluster's latent mean. With intraclass correlation r and n
    rows the observed mean's slope is .5 + .5 n r / (1 + (n - 1) r) (Luedtke et al. 2008), here r = .2 and n = 8.
    """
    system = jm.System([jm.Equation("y", ["1", "within(m)", "between(m)"], ["1"])], cluster="id")
    estimates = []
    for seed in range(SAMPLES):
        rng = np.random.default_rng([11, seed])
        cluster = np.repeat(np.arange(CLUSTERS), SIZE)
        latent = rng.normal(0, np.sqrt(0.2), CLUSTERS)[cluster]
        deviation = rng.normal(0, np.sqrt(0.8), len(cluster))
        noise = rng.normal(0, 0.4, CLUSTERS)[cluster] + rng.normal(size=len(cluster))
        data = pd.DataFrame({"id": cluster, "m": latent + deviation, "y": 0.5 * deviation + latent + noise})
        estimates.append(jm.fit(data, system).params)
    found = pd.DataFrame(estimates)
    pulled = 0.5 + 0.5 * SIZE * 0.2 / (1 + (SIZE - 1) * 0.2)
    truth = pd.Series({"y~within(m)": 0.5, "y~between(m)": pulled})
    error = (found.mean() - truth) / (found.std() / np.sqrt(SAMPLES))
    print(f"\nobserved means: {found.mean().round(4).to_dict()}, expected {truth.round(4).to_dict()}")
    assert np.all(np.abs(error[truth.index]) < 3)
