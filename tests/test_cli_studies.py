"""``jaxmed simulate`` and ``jaxmed power``, from the command line and from job files."""

from __future__ import annotations

import io
import json
import re

import pandas as pd
import pytest
from typer.testing import CliRunner

import jaxmed as jm
from jaxmed._cli.app import app

JOB = """
[population]
a = 0.3
random_effects = "skewed"

[power]
clusters = [20, 30]
size = [4, {poisson = 4}]
replications = 40
seed = 2
intervals = ["delta"]
out = "study"
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(message, *arguments):
    result = call(*arguments)
    assert isinstance(result.exception, jm.SpecError), result.output
    assert re.search(message, str(result.exception)), result.exception


def test_simulate_prints_the_rows(tmp_path):
    result = call(
        "simulate", "--clusters", 5, "--size", "poisson:3", "--seed", 4, "--set", "a=0.3", "--set", "icc_x=0.1"
    )
    assert result.exit_code == 0
    expected = jm.simulate({"a": 0.3, "icc_x": 0.1}, clusters=5, size={"poisson": 3}, seed=4)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(result.stdout)), expected)
    assert call("simulate", "--seed", 4, "--out", tmp_path / "rows.csv").exit_code == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rows.csv"), jm.simulate(seed=4))


def test_simulate_from_a_fit_and_a_model(tmp_path):
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    fit.save(tmp_path / "fit.jaxmed")
    result = call("simulate", "--fit", tmp_path / "fit.jaxmed", "--seed", 1)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(result.stdout)), jm.simulate(fit, seed=1))
    (tmp_path / "job.toml").write_text(
        "[model]\nx = 'dose'\nm = 'mood'\ny = 'sleep'\ncluster = 'who'\n"
        "[population]\n'sleep~mood' = 0.1\nvar_a = 0.2\n"
        "[simulate]\nclusters = 3\nsize = [2, 4]\nseed = 1\nout = 'o.csv'\n"
    )
    assert call("simulate", "--job", tmp_path / "job.toml").exit_code == 0
    assert list(pd.read_csv(tmp_path / "o.csv")) == ["who", "dose", "mood", "sleep"]


def test_power_from_a_job_file_in_shards(tmp_path):
    """Two shards, then the whole from their folder, equal to the call in Python."""
    (tmp_path / "job.toml").write_text(JOB)
    for part in range(2):
        result = call("power", tmp_path / "job.toml", "--shard", f"{part}/2")
        assert result.exit_code == 0
        assert re.search(rf"shard {part} of 2: 80 data sets in .*study", result.stdout)
    result = call("power", tmp_path / "job.toml", "--json", "-")
    population = jm.Population(a=0.3, random_effects="skewed")
    expected = jm.power(
        population, {"clusters": [20, 30], "size": [4, {"poisson": 4}]}, 40, seed=2, intervals=["delta"]
    )
    assert json.loads(result.stdout)["table"] == json.loads(expected.to_json())["table"]


def test_power_from_options(tmp_path):
    out = tmp_path / "power.json"
    result = call(
        "power", "--clusters", "10,20", "--size", 4, "--vary", "a=0.1,0.5", "--replications", 16, "--seed", 1,
        "--intervals", "delta", "--intervals", "block", "--json", out,
    )  # fmt: skip
    assert result.exit_code == 0
    assert "coverage_mcse" in result.stdout
    table = pd.DataFrame(json.loads(out.read_text())["table"])
    assert table[["clusters", "a"]].drop_duplicates().to_numpy().tolist() == [
        [10, 0.1],
        [10, 0.5],
        [20, 0.1],
        [20, 0.5],
    ]
    assert set(table["interval"]) == {"delta", "block"}


def test_standardised_and_searched(tmp_path):
    (tmp_path / "job.toml").write_text(
        "[population]\nstandardized = true\na = 0.4\nb = 0.4\nsd_a = 0\nsd_b = 0\n"
        "[power]\nsize = 5\nreplications = 100\nseed = 1\ntarget = 0.8\neffects = 'indirect'\n"
    )
    result = call("power", tmp_path / "job.toml")
    assert result.exit_code == 0
    assert "Number of clusters for the power asked for" in result.stdout
    assert " c_prime " not in result.stdout


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("give --seed", ["power", "--clusters", "20"]),
        ("give --seed", ["simulate"]),
        ("--shard needs --out FOLDER", ["power", "--seed", "1", "--shard", "0/2"]),
        ("--clusters 'many' is not understood", ["power", "--seed", "1", "--clusters", "many"]),
        ("--size 'odd' is not understood; write 8, poisson:8", ["power", "--seed", "1", "--size", "odd"]),
        ("--size '4,8': give one size", ["simulate", "--seed", "1", "--size", "4,8"]),
        ("'a' is not understood; write NAME=VALUE", ["simulate", "--seed", "1", "--set", "a"]),
        ("'big' is no number", ["simulate", "--seed", "1", "--set", "a=big"]),
        ("'a' is given twice", ["simulate", "--seed", "1", "--set", "a=1", "--set", "a=2"]),
        ("this population has no 'q'", ["simulate", "--seed", "1", "--set", "q=1"]),
        ("'size' is no number of a population", ["simulate", "--seed", "1", "--set", "size=8"]),
        ("the job file .* cannot be read", ["power", "nowhere.toml"]),
    ],
)
def test_bad_options(message, arguments):
    fails(message, *arguments)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("a standardized population needs b", "[population]\nstandardized = true\na = 0.1\n[power]\nseed = 1"),
        ("has a model of its own", "[model]\nx='x'\nm='m'\ny='y'\ncluster='id'\n[population]\nstandardized = true\n"
         "a = 0.1\nb = 0.1\n[power]\nseed = 1"),
        ("vary=3 must be a table", "[power]\nseed = 1\nvary = 3"),
        ("has 'seeds' in .power.; did you mean 'seed'", "[power]\nseeds = 1"),
    ],
)  # fmt: skip
def test_bad_job_files(tmp_path, message, text):
    (tmp_path / "job.toml").write_text(text)
    fails(message, "power", tmp_path / "job.toml")
