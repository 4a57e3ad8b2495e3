"""The bootstrap: what a replicate is, that it depends on seed and number alone, and what is refused."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import FOUR_DEVICES

import jaxmed as jm
from jaxmed._data.design import make_design
from jaxmed._likelihood import likelihood, optimise
from jaxmed._refit import sample_moments, sample_rows
from jaxmed._refit.program import seed_key
from jaxmed._refit.refitter import Refitter, _population, fitted, given_rows
from jaxmed._results.optimum import solve_from
from jaxmed._simulation.replicates import make_origin, read_replicates, without_each_cluster
from jaxmed._support import stream
from jaxmed._support.checkpoints import read_table, write_table

module = importlib.import_module("jaxmed._support.checkpoints")
bootstrapping = importlib.import_module("jaxmed._simulation.bootstrapping")

SMALL = jm.Mediation("x", "m", "y", "id", random={"m": ["1"], "y": ["1"]})
REFIT = 2e-6  # standard errors: a refit stops at a Newton decrement of 1e-12, sqrt(2e-12) = 1.4e-6 from the optimum


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    """25 clusters of 2 to 9 rows with text ids, some m and y missing, and one cluster in which all of y is."""
    rows = jm.simulate(clusters=25, size=9, seed=5)
    rows = rows[rows.groupby("id").cumcount() < 2 + rows["id"] * 7 % 8].reset_index(drop=True)
    rows.loc[::7, "y"] = np.nan
    rows.loc[3::11, "m"] = np.nan
    rows.loc[rows["id"] == 6, "y"] = np.nan
    return rows.assign(id="c" + rows["id"].astype(str))


@pytest.fixture(scope="module")
def fit(data) -> jm.Fit:
    return jm.fit(data, SMALL)


@pytest.fixture(scope="module")
def whole(fit) -> jm.Replicates:
    """96 parametric replicates in batches of 16."""
    return jm.bootstrap(fit, 96, seed=3, batch=16)


def assert_same_estimates(found, expected, se, tolerance: float = REFIT) -> None:
    """In standard errors."""
    apart = (np.asarray(found, dtype=float) - np.asarray(expected)) / np.asarray(se)
    np.testing.assert_allclose(apart, 0, atol=tolerance)


def errors_of(fit: jm.Fit) -> np.ndarray:
    return np.sqrt(np.diag(fit.joint))


def params_of(replicates: jm.Replicates) -> np.ndarray:
    return replicates.table[list(replicates.origin.labels[: replicates.origin.n_params])].to_numpy()


# What a replicate is -------------------------------------------------------------------------------------------------


def test_a_cluster_replicate_is_the_fit_of_those_clusters(fit, data):
    """Clusters drawn twice are two clusters; the draw is repeated with the same calls, the fit is an ordinary one."""
    replicates = jm.bootstrap(fit, 40, "cluster", seed=9, batch=16)
    parts = dict(tuple(data.groupby("id")))
    labels = fit.moments.clusters
    with jax.enable_x64(True), jax.threefry_partitionable(True):
        seed = jax.random.wrap_key_data(seed_key(9), impl="threefry2x32")
        for number in (0, 7, 39):
            chosen = np.asarray(
                jax.random.randint(jax.random.fold_in(seed, np.uint32(number)), (len(labels),), 0, len(labels))
            )
            assert len(set(chosen)) < len(labels)
            frame = pd.concat([parts[labels[k]].assign(id=place) for place, k in enumerate(chosen)])
            expected = jm.fit(frame, SMALL)
            row = replicates.table.iloc[number]
            assert_same_estimates(params_of(replicates)[number], expected.values, errors_of(fit))
            own = row[[f"{label}_se" for label in fit.labels]]
            assert_same_estimates(own, errors_of(expected), errors_of(fit), 1e-5)
            effects = expected.effects()
            free = effects["se"] > 0
            assert_same_estimates(row[effects.index[free]], effects["estimate"][free], effects["se"][free])
            assert row["singular"] == expected.singular


def test_a_refit_without_a_cluster_is_the_fit_without_it(fit, data):
    origin, _ = make_origin(fit, "parametric", 0, 1, None)
    left = without_each_cluster(fit, origin)
    assert left.shape == (fit.n_clusters, len(origin.labels))
    for k in (0, 11, 24):
        expected = jm.fit(data[data["id"] != fit.moments.clusters[k]], SMALL)
        assert_same_estimates(left[k, : len(expected.values)], expected.values, errors_of(fit))


def test_a_parametric_replicate_is_the_optimum_of_its_table(fit, whole):
    """The table as it is drawn outside the program, solved as a fit is: L-BFGS from a rough start, then Newton."""
    _, targets = make_origin(fit, "parametric", 3, 96, None)
    base = fitted(fit, fit.moments, targets)
    plan, known = sample_moments.make_draw_plan(base.problem.design, fit.moments)
    scale = base.problem.scale
    people = _population(base)
    counts = np.asarray(base.problem.counts)
    offset = np.concatenate([scale.offset, np.zeros(base.problem.layout.n_theta)])
    start = optimise.starting_values(base.problem.layout, fit.system, base.problem.totals)
    for number in (0, 50):
        with jax.enable_x64(True), jax.threefry_partitionable(True):
            key = jax.random.fold_in(jax.random.wrap_key_data(seed_key(3), impl="threefry2x32"), np.uint32(number))
            draw = jax.jit(sample_moments.draw, static_argnums=(0, 1))
            table = np.asarray(draw(base.problem.layout, plan, known, people, key))
        data = likelihood.make_data(table, counts)
        solution, found = solve_from("jax", base.problem.layout, data, start, 100, optimise.WARM_UP)
        assert solution.status == 0
        expected = scale.matrix @ found.values + offset
        assert_same_estimates(params_of(whole)[number], expected, errors_of(fit))


def test_replicates_scatter_around_the_fit(fit):
    """Means of 500 within 5 Monte Carlo errors, standard deviations within 20% (3% Monte Carlo error; 25 clusters)."""
    replicates = jm.bootstrap(fit, 500, seed=1, batch=16)
    found = params_of(replicates)[:, : len(fit.params)]
    np.testing.assert_allclose(
        found.mean(axis=0), fit.params, rtol=0, atol=5 * (found.std(axis=0) / np.sqrt(500)).max()
    )
    np.testing.assert_allclose(found.std(axis=0), fit.bse, rtol=0.2)


# Seed and number alone -----------------------------------------------------------------------------------------------


def test_shards_are_parts_of_the_whole(fit, whole):
    """To the last bit."""
    parts = [jm.bootstrap(fit, 96, seed=3, batch=16, shard=(k, 3)).table for k in range(3)]
    assert [len(part) for part in parts] == [32, 32, 32]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole.table, check_exact=True)
    parts = [jm.bootstrap(fit, 96, seed=3, batch=16, shard=(k, 8)).table for k in range(8)]  # more shards than batches
    assert min(len(part) for part in parts) == 0
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole.table, check_exact=True)


def test_more_replicates_in_the_same_folder(fit, whole, tmp_path):
    """20 and then 96, which cuts a batch in two: the same bits as 96 at once, and only what is missing is computed."""
    first = jm.bootstrap(fit, 20, seed=3, batch=16, out=tmp_path)
    assert first.gaps == ()
    again = jm.bootstrap(fit, 96, seed=3, batch=16, out=tmp_path)
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    parts = ["replicates-0000000000-0000000019.parquet", "replicates-0000000020-0000000095.parquet"]
    assert names == [*parts, "replicates.parquet"]
    fewer = jm.bootstrap(fit, 20, seed=3, batch=16, out=tmp_path)
    pd.testing.assert_frame_equal(fewer.table, first.table, check_exact=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_other_batches(fit, whole):
    """Draws are the same, and so estimates to what a refit leaves to gain; in fact to rounding, 1e-8."""
    found = jm.bootstrap(fit, 40, seed=3, batch=37)
    assert_same_estimates(params_of(found), params_of(whole)[:40], errors_of(fit), 1e-8)


def test_seeds_differ(fit, whole):
    other = jm.bootstrap(fit, 96, seed=4, batch=16)
    apart = np.abs(params_of(other) - params_of(whole)) / errors_of(fit)
    assert apart.min(axis=1).max() > 1e-3
    assert np.abs(np.corrcoef(other.table["indirect"], whole.table["indirect"])[0, 1]) < 0.45  # 4 / sqrt(96)
    for seed in (2**63 - 1, np.int64(7)):
        assert jm.bootstrap(fit, 2, seed=seed, batch=16).seed == seed


@pytest.mark.parametrize("method", ["residual", "two_stage"])
def test_methods_with_rows_go_by_seed_and_number(fit, data, method):
    """Of the same rows in the same order."""
    found = jm.bootstrap(fit, 40, method, seed=3, batch=16, data=data)
    part = jm.bootstrap(fit, 40, method, seed=3, batch=16, data=data, shard=(1, 3))
    pd.testing.assert_frame_equal(part.table, found.table[16:32].reset_index(drop=True), check_exact=True)
    other = jm.bootstrap(fit, 40, method, seed=4, batch=16, data=data)
    assert not np.any(other.table["y~m"] == found.table["y~m"])


CHILD = """
import importlib, sys, time
import jaxmed as jm
module = importlib.import_module("jaxmed._support.checkpoints")
bootstrapping = importlib.import_module("jaxmed._simulation.bootstrapping")
module.EVERY = 0.0
write = module.write_table
def slowly(*args):
    write(*args)
    time.sleep(float(sys.argv[3]))
module.write_table = slowly
jm.bootstrap(jm.load(sys.argv[1]), 96, seed=3, batch=16 if len(sys.argv) < 5 else int(sys.argv[4]), out=sys.argv[2])
"""


def child(*arguments, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_and_resumed(fit, whole, tmp_path):
    """SIGKILL after the second of six files, which may cut a third one short; what remains is computed later."""
    fit.save(tmp_path / "fit.jaxmed")
    out = tmp_path / "out"
    process = child(tmp_path / "fit.jaxmed", out, 0.5)
    try:
        for _ in range(1200):
            if process.poll() is not None or len(list(out.glob("replicates-*"))) >= 2:
                break
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    finally:
        process.kill()
        process.communicate()
    done = jm.load_replicates(out)
    assert 32 <= len(done) < 96
    assert done.gaps == ((len(done), 95),)
    found = jm.bootstrap(fit, 96, seed=3, batch=16, out=out)
    pd.testing.assert_frame_equal(found.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(jm.load_replicates(out).table, whole.table, check_exact=True)


def test_four_devices_equal_one(fit, whole, tmp_path):
    """To the last bit; batches go to the devices in turn."""
    fit.save(tmp_path / "fit.jaxmed")
    process = child(tmp_path / "fit.jaxmed", tmp_path / "out", 0, XLA_FLAGS=FOUR_DEVICES)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert not out + err
    pd.testing.assert_frame_equal(jm.load_replicates(tmp_path / "out").table, whole.table, check_exact=True)


def test_interrupted_and_resumed(fit, whole, tmp_path, monkeypatch):
    """Ctrl-C, as a real signal after three batches: what is done is in the folder, or comes with the exception."""
    run = Refitter.run

    def interrupted(self, numbers):
        for count, found in enumerate(run(self, numbers), start=1):
            yield found
            if count == 3:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Refitter, "run", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test of the command line may have left its own
    with pytest.raises(KeyboardInterrupt) as stopped:
        jm.bootstrap(fit, 96, seed=3, batch=16, out=tmp_path)
    assert stopped.value.__notes__ == [
        f"48 of 96 replicates are done and kept in {str(tmp_path)!r}; the same call goes on from there"
    ]
    with pytest.raises(KeyboardInterrupt) as stopped:
        jm.bootstrap(fit, 96, seed=3, batch=16)
    assert stopped.value.__notes__ == ["48 of 96 replicates are done; with out=FOLDER they would be kept"]
    pd.testing.assert_frame_equal(stopped.value.replicates.table, whole.table[:48], check_exact=True)
    monkeypatch.undo()
    assert len(jm.load_replicates(tmp_path)) == 48
    found = jm.bootstrap(fit, 96, seed=3, batch=16, out=tmp_path)
    pd.testing.assert_frame_equal(found.table, whole.table, check_exact=True)


# Other models --------------------------------------------------------------------------------------------------------


def test_centred_and_moderated_effects_at_values(data):
    """Unbalanced, with missing values: the index of ``fit.effects``, its estimates, and effects as the labels say."""
    w = pd.Series(np.random.default_rng(2).normal(size=25), index=sorted(data["id"].unique()))
    rows = data.assign(w=data["id"].map(w))
    random = {"m": ["1"], "y": ["1"]}
    fit = jm.fit(rows, jm.Mediation("x", "m", "y", "id", random=random, moderators={"w": ["a"]}, center="cluster"))
    at = {"w": [-0.5, 1]}
    replicates = jm.bootstrap(fit, 64, "cluster", seed=1, at=at)
    assert not len(replicates.failures())
    expected, found = fit.effects(at=at), replicates.intervals(level=0.9)
    pd.testing.assert_index_equal(found.index, expected.index)
    np.testing.assert_array_equal(found["estimate"], expected["estimate"])
    table = replicates.table
    slope = table["m~within(x)"] - 0.5 * table["m~within(x):w"]
    np.testing.assert_allclose(table["indirect_within[w=-0.5]"], slope * table["y~within(m)"], rtol=1e-12)
    chosen = ["indirect_within[w=1]", "y~within(m)"]
    assert list(replicates.intervals(level=0.9, terms=chosen).index) == chosen
    with pytest.raises(jm.SpecError, match="v"):
        jm.bootstrap(fit, 64, seed=1, at={"v": [0]})


def test_a_single_equation(data):
    """Parameters and no effects; sd of 200 replicates within 30% of the standard error."""
    fit = jm.fit(data, jm.System([jm.Equation("y", ["1", "x"], ["1"])], "id"))
    found = jm.bootstrap(fit, 200, seed=2).intervals()
    assert list(found.index) == list(fit.labels)
    assert 0.7 < found.loc["y~x", "se"] / fit.bse["y~x"] < 1.3
    with pytest.raises(jm.SpecError, match="this fit of a System has none"):
        jm.bootstrap(fit, 200, seed=2, at={"w": [0]})


# The worked example --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked(bpg2006) -> jm.Fit:
    return jm.fit(bpg2006, x="x", m="m", y="y", cluster="id")


def assert_joint_errors(fit: jm.Fit, n: int, tolerance: float) -> None:
    replicates = jm.bootstrap(fit, n, seed=6)
    assert len(replicates.failures()) <= 0.001 * n
    expected = fit.effects()["se"]
    for name in ("indirect", "total", "c_prime"):
        ratio = replicates.table[name].std() / expected[name]
        print(f"sd of {n} parametric replicates / joint standard error, {name}: {ratio:.4f}")
        assert abs(ratio - 1) < tolerance


def test_worked_example(worked):
    """Within 15% of joint standard errors: 2.2% Monte Carlo error, and the asymptotics of the errors."""
    assert_joint_errors(worked, 1000, 0.15)


@pytest.mark.slow
def test_worked_example_at_length(worked):
    """Within 6%, with 10,000 replicates: 0.7% Monte Carlo error."""
    assert_joint_errors(worked, 10_000, 0.06)


def kept_fixed(data: pd.DataFrame, worked: jm.Fit) -> jm.Fit:
    """The same model with m, as y's regressor, a column of its own that no equation draws."""
    system = jm.System(
        [jm.Equation("m", ["1", "x"], ["1", "x"]), jm.Equation("y", ["1", "m0", "x"], ["1", "m0", "x"])], "id"
    )
    fit = jm.fit(data.assign(m0=data["m"]), system)
    np.testing.assert_allclose((fit.values - worked.values) / errors_of(worked), 0, atol=1e-5)
    return fit


def sd_with_error(draws: pd.Series) -> tuple[float, float]:
    """Standard deviation and its Monte Carlo error, sd sqrt((kurtosis - 1) / 4n)."""
    return float(draws.std()), float(draws.std() * np.sqrt((draws.kurt() + 2) / (4 * len(draws))))


@pytest.mark.slow
def test_m_kept_fixed_is_another_bootstrap(bpg2006, worked):
    """What stands in for the bootstrap elsewhere: m* is drawn for the equation of m, but y* from the observed m.

    Then y* is regressed on the observed m, so that nothing of the draw of m reaches the equation of y, as if m came
    from outside. Its replicates are those of a system in which y's regressor is a copy of m that no equation draws.
    On the worked example c' has a standard deviation of .0417 in the generative bootstrap and .0368 with m kept fixed,
    8 Monte Carlo errors of 4,000 replicates of each (the joint standard error is .0424), and b of .0493 and .0466; a,
    cov(a_j, b_j), the indirect and the total effect do not differ by more than 3.
    """
    n = 4000
    generative = jm.bootstrap(worked, n, seed=2).table
    fixed = jm.bootstrap(kept_fixed(bpg2006, worked), n, seed=2).table
    assert (fixed["status"] == 0).mean() > 0.999
    covariance = next(name for name in fixed if name in ("m~x~~y~m0", "y~m0~~m~x"))
    fixed = fixed.assign(
        a=fixed["m~x"],
        b=fixed["y~m0"],
        c_prime=fixed["y~x"],
        cov_ab=fixed[covariance],
        indirect=fixed["m~x"] * fixed["y~m0"] + fixed[covariance],
    )
    fixed["total"] = fixed["indirect"] + fixed["c_prime"]
    apart = {}
    for name in ("a", "b", "c_prime", "cov_ab", "indirect", "total"):
        (one, error), (other, other_error) = sd_with_error(generative[name]), sd_with_error(fixed[name])
        apart[name] = (other - one) / np.hypot(error, other_error)
        print(f"{name}: sd {one:.5f} generative, {other:.5f} with m kept fixed, {apart[name]:.1f} Monte Carlo errors")
    assert abs(apart["a"]) < 4  # the equation of m is the same
    assert apart["c_prime"] < -5


# With rows -----------------------------------------------------------------------------------------------------------


def test_reflated_effects_and_residuals(fit, data):
    """Covariance exactly G, variances exactly those of the model, mean zero: 1e-10 relative."""
    rows = sample_rows.read_rows(data, fit, fit.moments)
    predicted = fit.ranef().reindex(fit.moments.clusters)[list(fit.system.random_labels)].to_numpy().T
    pool = sample_rows.reflated(rows, fit, predicted)
    np.testing.assert_allclose(pool.effects.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.cov(pool.effects, ddof=0), fit.random_cov, rtol=1e-10)
    for group, own in pool.errors:
        np.testing.assert_allclose(own.mean(axis=1), 0, atol=1e-12)
        np.testing.assert_allclose(own.var(axis=1), fit.residual_var.to_numpy()[list(group)], rtol=1e-10)
    assert [own.shape[1] for _, own in pool.errors] == [fit.sample_summary.used[0], fit.sample_summary.used[1]]


def test_residual_replicates(fit, data):
    """Unbalanced clusters and missing values; sd of 400 replicates within 25% of the joint standard errors.

    3.5% is Monte Carlo error, the rest the difference between the effects of 25 clusters and normal ones.
    """
    replicates = jm.bootstrap(fit, 400, "residual", seed=3, batch=16, data=data)
    assert len(replicates.failures()) <= 1
    ratio = replicates.table[list(fit.params.index)].std() / fit.bse
    assert np.all(np.abs(ratio - 1) < 0.25), ratio


def test_two_stage_replicates(fit, data):
    """Unbalanced clusters and missing values; sd of 400 from .85 to 1.6 times those of whole clusters.

    The scatter of rows within clusters comes on top. The model's own standard errors are no witness here: it leaves out
    the random slopes that the data have.
    """
    replicates = jm.bootstrap(fit, 400, "two_stage", seed=3, batch=16, data=data)
    assert len(replicates.failures()) <= 1
    names = list(fit.params.index)
    ratio = replicates.table[names].std() / jm.bootstrap(fit, 400, "cluster", seed=3, batch=16).table[names].std()
    assert np.all((ratio > 0.85) & (ratio < 1.6)), ratio


def test_two_stages_draw_clusters_and_rows_within_them(fit, data):
    rows = sample_rows.read_rows(data, fit, fit.moments)
    columns, cluster = sample_rows.two_stage(rows, stream(1, 0))
    sizes = np.bincount(rows.cluster)
    seen = set()
    for k in np.unique(cluster):
        x = columns["x"][cluster == k]
        source = {int(rows.cluster[rows.columns["x"] == value][0]) for value in x}
        assert len(source) == 1
        assert len(x) == sizes[next(iter(source))]
        seen |= source
    assert len(np.unique(cluster)) == len(sizes)
    assert len(seen) < len(sizes)  # some twice
    again = sample_rows.design_of(rows, rows.columns, rows.cluster, make_design(fit.system, fit.moments))
    origin, targets = make_origin(fit, "two_stage", 1, 1, None)
    assert origin.method == "two_stage"
    base = fitted(fit, fit.moments, targets)
    table, counts = given_rows(base, again)
    np.testing.assert_allclose(table, base.problem.design.table, rtol=0, atol=1e-12 * np.abs(table).max())
    np.testing.assert_array_equal(counts, base.problem.counts)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "wild"}, r"method='wild' is not known; choose one of \['parametric', 'cluster', 'residual'"),
        ({"n": 0}, r"n=0 must be a whole number from 1"),
        ({"n": 10.0}, r"n=10\.0 must be a whole number"),
        ({"n": True}, r"n=True must be a whole number"),
        ({"n": 2**32 + 1}, r"n=4294967297 must be a whole number"),
        ({"seed": -1}, r"seed=-1 must be a whole number of at least 0"),
        ({"seed": None}, r"seed=None must be a whole number"),
        ({"seed": 2**63}, r"seed=9223372036854775808 must be a whole number"),
        ({"shard": (3, 3)}, r"shard=\(3, 3\) must be \(i, k\): part i of k parts, i from 0 to k - 1"),
        ({"shard": (-1, 3)}, r"shard=\(-1, 3\) must be"),
        ({"shard": 2}, r"shard=2 must be"),
        ({"shard": (0.0, 2)}, r"shard=\(0\.0, 2\) must be"),
        ({"shard": (False, 2)}, r"shard=\(False, 2\) must be"),
        ({"batch": 0}, r"batch=0 must be a whole number from 1"),
        ({"at": {"w": [1]}}, r"w"),
    ],
)
def test_arguments(fit, given, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.bootstrap(fit, **{"n": 10, "seed": 1} | given)


def test_seed_is_required(fit):
    with pytest.raises(TypeError, match="seed"):
        jm.bootstrap(fit, 10)


def test_what_is_no_fit(fit, data):
    with pytest.raises(jm.SpecError, match=r"needs a Fit, as jaxmed\.fit returns it; got DataFrame"):
        jm.bootstrap(data, 10, seed=1)
    with pytest.raises(jm.FitError, match=r"no starting point for a bootstrap: not converged: the iteration limit"):
        jm.bootstrap(replace(fit, status=1), 10, seed=1)


def test_data_of_another_fit(fit, data):
    for method in ("residual", "two_stage"):
        with pytest.raises(jm.FitError, match=rf"method='{method}' needs the rows of the data; pass the data too"):
            jm.bootstrap(fit, 10, method, seed=1)
    with pytest.raises(jm.DataError, match=r"not those of the fit: their sums differ"):
        jm.bootstrap(fit, 10, "residual", seed=1, data=data.assign(x=data["x"] + 0.01))
    with pytest.raises(jm.DataError, match=r"not those of the fit: their sums differ"):
        jm.bootstrap(fit, 10, "residual", seed=1, data=data[:-5])
    with pytest.raises(jm.DataError, match=r"have the cluster 'new', which the fit has not"):
        jm.bootstrap(fit, 10, "residual", seed=1, data=data.replace({"id": {"c3": "new"}}))


@pytest.fixture
def folder(fit, tmp_path) -> Path:
    """A folder with 32 replicates of seed 3."""
    jm.bootstrap(fit, 32, seed=3, batch=16, out=tmp_path / "kept")
    return tmp_path / "kept"


def test_folders_of_something_else(fit, data, folder):
    """Nothing is computed or written."""
    before = sorted(folder.iterdir())
    for given, why in (
        ({"seed": 4}, "different seeds, 3 and 4"),
        ({"method": "cluster"}, "different methods, 'parametric' and 'cluster'"),
    ):
        with pytest.raises(jm.DataError, match=rf"holds other replicates: they have {why}; choose another folder"):
            jm.bootstrap(fit, 32, **{"seed": 3, "batch": 16, "out": folder} | given)
    other = data.copy()
    other.loc[10, "y"] += 0.5
    with pytest.raises(jm.DataError, match=r"of different data: the estimates of the fits differ"):
        jm.bootstrap(jm.fit(other, SMALL), 32, seed=3, out=folder)
    with pytest.raises(jm.DataError, match=r"of different data: 25 clusters, rows .*, and 24 clusters, rows"):
        jm.bootstrap(jm.fit(data[data["id"] != "c1"], SMALL), 32, seed=3, out=folder)
    with pytest.raises(jm.DataError, match=r"they are of different methods of estimation \(REML and ML\)"):
        jm.bootstrap(replace(fit, reml=False), 32, seed=3, out=folder)
    spec = jm.Mediation("z", "m", "y", "id", random={"m": ["1"], "y": ["1"]})
    with pytest.raises(jm.DataError, match=r"they are of different models"):
        jm.bootstrap(jm.fit(data.rename(columns={"x": "z"}), spec), 32, seed=3, out=folder)
    assert sorted(folder.iterdir()) == before


def test_damaged_files(fit, folder):
    path = next(folder.iterdir())
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PAR1 and so on"):
        path.write_bytes(damaged)
        for attempt in (
            lambda: jm.bootstrap(fit, 32, seed=3, batch=16, out=folder),
            lambda: jm.load_replicates(folder),
        ):
            with pytest.raises(
                jm.DataError, match=r"is damaged \(.*\); delete it, and what was in it is computed again"
            ):
                attempt()
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(jm.DataError, match="no replicates in it"):
        jm.load_replicates(path)
    path.unlink()
    assert len(jm.bootstrap(fit, 32, seed=3, batch=16, out=folder)) == 32


def test_folders_that_cannot_be_written(fit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(jm.FitError, match=r"file' cannot be made: File exists"):
        jm.bootstrap(fit, 4, seed=1, batch=16, out=tmp_path / "file")
    with pytest.raises(jm.FitError, match=r"cannot be made: Not a directory"):
        jm.bootstrap(fit, 4, seed=1, batch=16, out=tmp_path / "file" / "below")
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(jm.FitError, match=r"closed' cannot be written to; choose another"):
        jm.bootstrap(fit, 4, seed=1, batch=16, out=tmp_path / "closed")


# Files ---------------------------------------------------------------------------------------------------------------


def test_round_trip(whole, tmp_path):
    whole.save(tmp_path / "all.parquet")
    found = jm.load_replicates(tmp_path / "all.parquet")
    pd.testing.assert_frame_equal(found.table, whole.table, check_exact=True)
    assert found.origin.to_dict() == whole.origin.to_dict()
    pd.testing.assert_frame_equal(found.intervals(level=0.9), whole.intervals(level=0.9), check_exact=True)
    plain = found.to_dict()
    assert (plain["replicates"], plain["failures"], plain["gaps"], plain["duplicates"]) == (96, 0, [], 0)
    assert repr(found) == "<Replicates: 96 of 96, parametric bootstrap, seed 3, 0 not converged>"


def test_gaps_and_duplicates(fit, whole, tmp_path):
    """Shards 0 and 2 of 3, and then one of them in two folders."""
    for k in (0, 2):
        jm.bootstrap(fit, 96, seed=3, batch=16, shard=(k, 3), out=tmp_path / str(k))
    found = jm.load_replicates([tmp_path / "2", tmp_path / "0"])
    assert found.gaps == ((32, 63),)
    assert (found.duplicates, len(found), found.origin.requested) == (0, 64, 96)
    whole.save(tmp_path / "all.parquet")
    found = jm.load_replicates([tmp_path / "0", tmp_path / "all.parquet"])
    assert (found.gaps, found.duplicates) == ((), 32)
    pd.testing.assert_frame_equal(found.table, whole.table, check_exact=True)
    table = whole.table.copy()
    table.loc[5, "indirect"] += 1e-3
    replace(whole, table=table).save(tmp_path / "wrong.parquet")
    with pytest.raises(jm.DataError, match=r"replicate 5 has two different results in these files"):
        jm.load_replicates([tmp_path / "all.parquet", tmp_path / "wrong.parquet"])
    found = jm.load_replicates(tmp_path / "0")
    assert found.gaps == ((32, 95),)


def test_mixtures_are_refused(whole, tmp_path):
    whole.save(tmp_path / "all.parquet")
    origin = whole.origin
    shifted = origin.values + 1e-3
    others = {
        "different seeds, 3 and 8": replace(origin, seed=8),
        "different methods, 'parametric' and 'cluster'": replace(origin, method="cluster"),
        "different models": replace(origin, model=origin.model | {"x": "z"}),
        r"different methods of estimation \(REML and ML\)": replace(origin, reml=False),
        "different data: the estimates of the fits differ": replace(origin, values=shifted),
        "different data: 25 clusters, rows .*, and 26 clusters, rows": replace(origin, n_clusters=26),
        "different effects": replace(origin, index=origin.index | {"names": ["effect"]}),
    }
    for why, other in others.items():
        replace(whole, origin=other).save(tmp_path / "other.parquet")
        with pytest.raises(jm.DataError, match=rf"cannot be put together: they .*{why}"):
            jm.load_replicates([tmp_path / "all.parquet", tmp_path / "other.parquet"])


def test_nothing_to_load(tmp_path):
    for paths in (tmp_path, [tmp_path]):
        with pytest.raises(jm.DataError, match="there are no replicates in "):
            jm.load_replicates(paths)
    with pytest.raises(jm.DataError, match=r"there are no replicates in paths=\[\]"):
        jm.load_replicates([])
    with pytest.raises(jm.DataError, match=r"there is no file .*absent\.parquet"):
        jm.load_replicates(tmp_path / "absent.parquet")


def test_another_format_is_refused(whole, tmp_path):
    whole.save(tmp_path / "all.parquet")
    table, about = read_table(tmp_path / "all.parquet", "replicates")
    write_table(tmp_path / "new.parquet", table, about | {"format": 9})
    with pytest.raises(jm.DataError, match="format 9; this version of jaxmed reads 1"):
        read_replicates(tmp_path / "new.parquet")


def test_a_flipped_bit_is_refused(folder):
    """Parquet would hand out the changed number."""
    path = next(folder.glob("replicates-*"))
    content = path.read_bytes()
    number = jm.load_replicates(path).table["grad_norm"].to_numpy()[:1].tobytes()
    at = content.index(number)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(jm.DataError, match=rf"{path.name}.*is damaged \(its checksum is another\); delete it"):
        jm.load_replicates(folder)


def test_of_two_jobs_that_begin_at_once_one_is_refused(fit, folder, monkeypatch):
    """The second looked into the folder before the first one had written anything."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(bootstrapping, "open_folder", lambda folder: [])
    with pytest.raises(
        jm.DataError, match=r"holds other replicates: they have different seeds, 3 and 4; choose another"
    ):
        jm.bootstrap(fit, 32, seed=4, batch=16, out=folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_interruption_right_after_a_file_was_written_counts_no_row_twice(tmp_path, monkeypatch):
    write = module.write_table

    def interrupted(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_table", interrupted)
    kept = module.Ledger("number", 0, 2, (), tmp_path, "rows", {})
    kept.add(pd.DataFrame({"number": [0, 1]}))
    with pytest.raises(KeyboardInterrupt):
        kept.flush()
    monkeypatch.undo()
    kept.flush()
    assert kept.done == 2
    assert len(list(tmp_path.iterdir())) == 1
