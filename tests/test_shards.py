"""Very many clusters: shards, devices, processes and compiled programs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import FOUR_DEVICES

import jaxmed as jm
from jaxmed._data import moments_file
from jaxmed._data.design import make_design
from jaxmed._data.reader import read_moments
from jaxmed._data.totals import add_up
from jaxmed._likelihood import derivatives, likelihood, shards
from jaxmed._likelihood.layout import count_rows, make_layout, root_and_precision

fitting = importlib.import_module("jaxmed._results.optimum")
SIMPLE = jm.Mediation(x="x", m="m", y="y", cluster="id")
SMALL = jm.Mediation(x="x", m="m", y="y", cluster="id", random={"m": ["1", "x"], "y": ["1"]})  # sooner compiled
SCHOOLS = {
    "moderated": jm.Mediation(
        x="support",
        m="motivation",
        y="achievement",
        cluster="school",
        moderators={"climate": ["a"]},
        random={"motivation": ["1", "support"], "achievement": ["1"]},
    ),
    "centred": jm.Mediation(
        x="support", m="motivation", y="achievement", cluster="school", random="none", center="cluster"
    ),
}


def example() -> pd.DataFrame:
    """300 clusters of 4 with missing values."""
    data = jm.simulate(clusters=300, size=4, seed=12)
    data.loc[::11, "m"] = np.nan
    data.loc[::17, "y"] = np.nan
    return data


def assert_same_fit(found: jm.Fit, expected: jm.Fit, tolerance: float = 1e-10) -> None:
    """Estimates in standard errors, covariances relative to variances: 1e-10 leaves room for the order of sums."""
    assert found.converged
    assert found.loglik == pytest.approx(expected.loglik, rel=1e-12)
    sd = np.sqrt(np.diag(expected.joint))
    np.testing.assert_allclose((found.values - expected.values) / sd, 0, atol=tolerance * 100)
    np.testing.assert_allclose(found.joint / np.outer(sd, sd), expected.joint / np.outer(sd, sd), atol=tolerance * 100)
    assert (found.nobs, found.n_clusters, found.cluster_sizes) == (
        expected.nobs,
        expected.n_clusters,
        expected.cluster_sizes,
    )
    assert found.sample_summary == expected.sample_summary
    assert found.null == pytest.approx(expected.null)


# Shards --------------------------------------------------------------------------------------------------------------


def test_shards_add_up_to_the_whole(shrink):
    """1e-12: the same terms in another order."""
    shrink(shard_clusters=likelihood.BLOCK)
    moments = read_moments(example(), SIMPLE)
    design = make_design(SIMPLE.system(), moments)
    layout = make_layout(design, True)
    counts = count_rows(layout, design.system, add_up(design))
    with jax.enable_x64(True):
        theta = jax.numpy.asarray(np.linspace(0.2, 0.6, layout.n_theta))
        root, tau = root_and_precision(layout, theta)
        parts = shards.make_shards(design.table, counts)
        assert [int(part.n_blocks) for part in parts.parts] == [1, 1, 1]
        assert len({part.table.shape for part in parts.parts}) == 1
        found = shards.evaluate_shards(layout, root, tau, parts)
        value = shards.value_shards(layout, root, tau, parts)
        expected = jax.jit(derivatives.evaluate, static_argnums=0)(
            layout, root, tau, likelihood.make_data(design.table, counts)
        )
    for name in derivatives.Evaluation._fields:
        own = np.asarray(getattr(expected, name))
        np.testing.assert_allclose(getattr(found, name), own, rtol=0, atol=1e-12 * np.abs(own).max())
    assert value == found.value


@pytest.mark.parametrize("reml", [True, False])
def test_a_fit_in_shards_equals_the_fit_in_one(shrink, reml):
    data = example()
    expected = jm.fit(data, SIMPLE, reml=reml, engine="jax")
    shrink(sample_clusters=64, shard_clusters=likelihood.BLOCK)
    found = jm.fit(data, SIMPLE, reml=reml, engine="jax")
    assert all(stage == 1 for stage, _, _ in found.trace)  # it started at the optimum of a sample
    assert_same_fit(found, expected)


@pytest.mark.parametrize("name", SCHOOLS)
def test_other_models_in_shards(shrink, name):
    data = jm.datasets.load_schools()
    expected = jm.fit(data, SCHOOLS[name], engine="jax")
    shrink(sample_clusters=4, shard_clusters=likelihood.BLOCK)
    found = jm.fit(data, SCHOOLS[name], engine="jax")
    assert_same_fit(found, expected)
    assert found.moderator_values == expected.moderator_values


def test_a_sample_that_cannot_be_fitted_is_passed_over(shrink):
    """The sample sees one value of x only; the fit starts elsewhere and ends where it would have."""
    data = jm.simulate(clusters=256, size=6, seed=3)
    picked = data["id"].isin(data["id"].unique()[::4])
    data.loc[picked, "x"] = 1.0
    data.loc[picked, "m"] = np.where(np.arange(picked.sum()) % 2, 1.0, -1.0)
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id", random={"m": ["1"], "y": ["1"]})
    expected = jm.fit(data, spec, engine="jax")
    shrink(sample_clusters=64)
    assert_same_fit(jm.fit(data, spec, engine="jax"), expected)


def test_clusters_without_rows_that_count_are_not_sampled(shrink):
    """Their x is in the means of clusters, but they have no row of either equation."""
    data = jm.simulate(clusters=200, size=5, seed=3)
    data.loc[data["id"] % 4 == 1, "m"] = np.nan
    spec = jm.System(
        [jm.Equation("m", ["1", "within(x)"], ["1"]), jm.Equation("y", ["1", "m", "between(x)"], ["1"])], "id"
    )
    expected = jm.fit(data, spec, engine="jax")
    shrink(sample_clusters=50)
    found = jm.fit(data, spec, engine="jax")
    assert found.n_clusters == 150
    assert_same_fit(found, expected)


def test_a_sample_that_leads_astray_is_left(monkeypatch, shrink):
    """From a start with NaN the iteration cannot go on; the rough start is tried then."""
    data = example()
    expected = jm.fit(data, SMALL, engine="jax")
    shrink(sample_clusters=64)
    monkeypatch.setattr(fitting, "_sampled", lambda problem, *_: np.full(problem.layout.n_theta, np.nan))
    assert_same_fit(jm.fit(data, SMALL, engine="jax"), expected)


def test_predictions_do_not_depend_on_how_clusters_are_cut(shrink):
    fit = jm.fit(jm.datasets.load_schools(), SCHOOLS["moderated"])
    expected = fit.ranef()
    shrink(shard_clusters=7)
    pd.testing.assert_frame_equal(fit.ranef(), expected, rtol=1e-12)


# Compiled programs ---------------------------------------------------------------------------------------------------


def test_other_data_of_similar_size_compile_nothing(shrink):
    """Also in shards, where the first data set compiles for all sizes."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    data = {n: jm.simulate(clusters=n, size=3 + n % 5, seed=2) for n in (60, 61, 90, 128, 260, 9000)}  # compiles, too
    jm.fit(data[60], SIMPLE, reml=False, engine="jax").effects()
    compiled.clear()
    for clusters in (61, 90, 128):
        jm.fit(data[clusters], SIMPLE, reml=False, engine="jax").effects()
    assert not compiled
    shrink(sample_clusters=64)
    jm.fit(data[260], SIMPLE, reml=False, engine="jax")
    assert compiled  # the passes over shards: the listener hears
    compiled.clear()
    jm.fit(data[9000], SIMPLE, reml=False, engine="jax")
    assert not compiled


# Devices and processes -----------------------------------------------------------------------------------------------

SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import json, numpy as np, jax, jaxmed as jm
from jaxmed._support import block_sizes
from test_shards import SCHOOLS, SMALL, example
few = block_sizes(shard_clusters=128, sample_clusters=64)
few.__enter__()

def show(fit):
    print(json.dumps({{"values": fit.values.tolist(), "joint": fit.joint.tolist(), "loglik": fit.loglik,
                      "n": [fit.nobs, fit.n_clusters], "sizes": fit.cluster_sizes, "converged": fit.converged,
                      "ranef": fit.ranef().index.tolist(), "status": fit.status,
                      "values_of_moderators": fit.moderator_values}}))
"""


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", **extra}


def start(code: str, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SETUP + code],
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=240)
    finally:
        process.kill()


def assert_same_numbers(found: dict, expected: jm.Fit) -> None:
    assert found["converged"]
    assert found["loglik"] == pytest.approx(expected.loglik, rel=1e-12)
    sd = np.sqrt(np.diag(expected.joint))
    np.testing.assert_allclose((np.array(found["values"]) - expected.values) / sd, 0, atol=1e-8)
    np.testing.assert_allclose(
        np.array(found["joint"]) / np.outer(sd, sd), expected.joint / np.outer(sd, sd), atol=1e-8
    )
    assert found["n"] == [expected.nobs, expected.n_clusters]
    assert tuple(found["sizes"]) == expected.cluster_sizes


def test_four_devices_equal_one():
    code = """
import importlib
from jaxmed._likelihood import shards
parts = []
make = shards.make_shards
def made(*args, **kwargs):
    found = make(*args, **kwargs)
    parts.extend(found.parts)
    return found
importlib.import_module("jaxmed._likelihood.problem").make_shards = made
show(jm.fit(example(), SMALL, engine="jax"))
used = {device for part in parts for device in part.table.devices()}
assert len(parts) == 3 and len(used) == 3, used
"""
    out, err = finish(start(code, XLA_FLAGS=FOUR_DEVICES))
    assert out, err
    assert_same_numbers(json.loads(out), jm.fit(example(), SMALL))
    assert not err, err


def two_processes(code: str) -> list[tuple[str, str]]:
    """Run code in two processes of ``jax.distributed`` on the loopback; ``rank`` is the number of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join = f"jax.distributed.initialize('127.0.0.1:{port}', 2, {{rank}})\nrank = {{rank}}\n"
    running = [start(join.format(rank=rank) + code) for rank in range(2)]
    found = [finish(process) for process in running]
    return [
        ("".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]")), err) for out, err in found
    ]


def test_two_processes_equal_one():
    """Each has its own clusters, with patterns of missing values that the other has not, and its own scale."""
    code = """
data = example()
data.loc[data["id"] <= 90, "y"] = data["y"].fillna(0.5)
own = data[(data["id"] <= 90) == (rank == 0)]
show(jm.fit(own, SMALL, distributed=True))
schools = jm.datasets.load_schools()
first = schools["school"].isin(sorted(schools["school"].unique())[::3])
show(jm.fit(schools[first == (rank == 0)], SCHOOLS["moderated"], distributed=True))
schools["z"] = np.arange(len(schools)) % 7 + 3.0 * first
model = jm.Mediation(x="support", m="motivation", y="achievement", cluster="school", moderators={"z": ["b"]},
                     random={"motivation": ["1"], "achievement": ["1", "motivation"]})
fit = jm.fit(schools[first == (rank == 0)], model, distributed=True)
print(json.dumps([fit.moderator_means["z"], fit.ranef()["b"].to_dict()]))
"""
    outputs = two_processes(code)
    data = example()
    data.loc[data["id"] <= 90, "y"] = data["y"].fillna(0.5)
    expected = jm.fit(data, SMALL)
    moderated = jm.fit(jm.datasets.load_schools(), SCHOOLS["moderated"])
    found = []
    for out, err in outputs:
        assert out.count("\n") == 3, err
        found.append([json.loads(line) for line in out.splitlines()])
        assert_same_numbers(found[-1][0], expected)
        assert_same_numbers(found[-1][1], moderated)
        shown = found[-1][1]["values_of_moderators"]["climate"]
        np.testing.assert_allclose(shown, moderated.moderator_values["climate"], rtol=1e-12)
    schools = jm.datasets.load_schools()
    schools["z"] = np.arange(len(schools)) % 7 + 3.0 * schools["school"].isin(sorted(schools["school"].unique())[::3])
    spec = jm.Mediation(
        x="support",
        m="motivation",
        y="achievement",
        cluster="school",
        moderators={"z": ["b"]},
        random={"motivation": ["1"], "achievement": ["1", "motivation"]},
    )
    whole = jm.fit(schools, spec)
    slopes = whole.ranef()["b"]
    for own in found:
        assert own[2][0] == pytest.approx(whole.moments.spread("z")[0], rel=1e-12)
        np.testing.assert_allclose(list(own[2][1].values()), slopes[[int(c) for c in own[2][1]]], rtol=1e-8)
    assert [found[0][k]["values"] for k in range(2)] == [found[1][k]["values"] for k in range(2)]
    assert found[0][0]["ranef"] == list(range(1, 91))
    assert found[1][0]["ranef"] == list(range(91, 301))


def test_processes_that_do_not_fit_together_say_so():
    """All of them, and none waits for another that has failed."""
    code = """
data = jm.simulate(clusters=40, size=4, seed=2)
def attempt(own, spec=SMALL):
    try:
        jm.fit(own, spec, distributed=True)
    except jm.DataError as error:
        print(error)
    else:
        print("fitted")
attempt(data.iloc[rank::2])
attempt(data.drop(columns="m") if rank else data[data["id"] < 20])
attempt(data[(data["id"] < 20) == (rank == 0)].astype({"id": str if rank else int}))
labels = data.assign(g=np.where(data.index % 2, "a", "b" if rank else "c"))
attempt(labels[(data["id"] < 20) == (rank == 0)],
        jm.Mediation(x="x", m="m", y="y", cluster="id", covariates=["g"], reference={"g": "a"}))
constant = data.assign(x=1.0 + rank * (data["id"] < 20), m=data["y"])
attempt(constant[(data["id"] < 20) == (rank == 0)])
attempt(data[(data["id"] < 20) == (rank == 0)], jm.Mediation(x="x", m="m", y="y", cluster="id",
        random={"m": ["1"], "y": ["1", "m"]} if rank else "none"))
attempt(data[data["id"].between(10 * rank, 25 + 15 * rank)].astype({"id": "int32" if rank else "int64"}))
"""
    for rank, (out, err) in enumerate(two_processes(code)):
        lines = out.splitlines()
        assert len(lines) == 7, err
        assert "all rows of a cluster must be in one process" in lines[0]
        assert "there is no column 'm'" in lines[1]
        assert ("process 1 of 2 failed" in lines[1]) == (rank == 0)
        assert "the type of the cluster ids must be the same in all processes" in lines[2]
        assert "the columns must be the same in all processes" in lines[3]
        assert "'x' is constant" in lines[4]
        assert "the model and its options must be the same in all processes" in lines[5]
        assert "all rows of a cluster must be in one process" in lines[6]


def test_one_process_that_fits_alone(monkeypatch):
    """``distributed=True`` without ``jax.distributed`` is an ordinary fit, unless a launcher started more."""
    data = jm.datasets.load_example()
    assert jm.fit(data, SIMPLE, distributed=True).loglik == jm.fit(data, SIMPLE).loglik
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(jm.FitError, match=r"\(SLURM_STEP_NUM_TASKS=4\) that have not joined: call jax.distributed"):
        jm.fit(data, SIMPLE, distributed=True)
    with pytest.raises(jm.SpecError, match="distributed='yes' must be True or False"):
        jm.fit(data, SIMPLE, distributed="yes")


# Moments in files ----------------------------------------------------------------------------------------------------


def test_moments_of_another_version_or_shape_are_refused(tmp_path, monkeypatch):
    moments = read_moments(jm.datasets.load_example(), SIMPLE)
    short = dataclasses.replace(moments, clusters=moments.clusters[:-1])
    jm.save_moments(short, tmp_path / "short.moments")
    with pytest.raises(
        jm.DataError, match=r"short\.moments' is not a file of moments that jaxmed saved, or is damaged"
    ):
        jm.load_moments(tmp_path / "short.moments")
    monkeypatch.setattr(moments_file, "FORMAT", 99)
    jm.save_moments(moments, tmp_path / "new.MOMENTS")
    monkeypatch.undo()
    with pytest.raises(jm.DataError, match="format 99, and this version of jaxmed reads 1"):
        jm.fit(tmp_path / "new.MOMENTS", SIMPLE)
    with pytest.raises(jm.DataError, match="cannot be read: Is a directory"):
        jm.load_moments(tmp_path)


def test_wrong_arguments_for_moments_are_named(tmp_path):
    moments = read_moments(jm.datasets.load_example(), SIMPLE)
    with pytest.raises(jm.DataError, match=r"got PosixPath first; give it the moments of jaxmed\.read_moments"):
        jm.save_moments(tmp_path / "a.moments", moments)
    with pytest.raises(TypeError):
        moments + 1
    np.testing.assert_array_equal(sum([moments]).table, moments.table)


def test_missing_values_of_columns_outside_the_model_do_not_count():
    data = jm.datasets.load_example()
    data["z"] = np.where(np.arange(len(data)) % 5, 1.0, np.nan) * np.arange(len(data))
    wide = jm.System([jm.Equation("m", ["1", "x"]), jm.Equation("y", ["1", "m"]), jm.Equation("z", ["1", "x"])], "id")
    narrow = jm.System([jm.Equation("m", ["1", "x"]), jm.Equation("y", ["1", "m"])], "id")
    moments = read_moments(data, wide)
    assert jm.fit(moments, narrow, missing="raise").loglik == pytest.approx(jm.fit(data, narrow).loglik, rel=1e-12)
    with pytest.raises(jm.DataError, match="'z': 160"):
        jm.fit(moments, wide, missing="raise")
