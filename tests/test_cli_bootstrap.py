"""jaxmed bootstrap and jaxmed merge: saved fits, job files, the array script of the documentation, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import jaxmed as jm

EXAMPLE = Path(jm.__file__).parent / "datasets" / "example.csv"
DOCS = Path(__file__).parents[1] / "docs" / "intervals.md"
ROLES = ("--x", "x", "--m", "m", "--y", "y", "--cluster", "id")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    path = tmp_path_factory.mktemp("fit") / "fit.jm"
    fit.save(path)
    return fit, path


def test_a_saved_fit(run, saved, tmp_path):
    """The JSON's numbers are those of Python; a second call finds all replicates in the folder."""
    fit, path = saved
    arguments = ("bootstrap", "--fit", path, "--n", 100, "--seed", 4, "--out", tmp_path / "parts", "--kind", "basic")
    code, out, _ = run(*arguments, "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert (found["replicates"], found["method"], found["kind"], found["gaps"]) == (100, "parametric", "basic", [])
    expected = jm.bootstrap(fit, 100, seed=4).intervals("basic")
    table = pd.DataFrame(found["intervals"]).set_index("effect")
    pd.testing.assert_frame_equal(table, expected, check_names=False, rtol=1e-14)
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    code, again, _ = run(*arguments)
    assert code == 0
    assert "100 replicates, parametric bootstrap, seed 4: basic intervals" in again
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}


def test_data_for_methods_that_need_rows(run, saved, tmp_path):
    _, path = saved
    code, out, _ = run("bootstrap", EXAMPLE, "--fit", path, "--n", 20, "--seed", 1, "--method", "two_stage")
    assert code == 0
    assert "20 replicates, two_stage bootstrap" in out


def test_merge(run, saved, tmp_path):
    """Gaps: exit code 1 and their numbers; then whole; bca with the fit; one file of all."""
    fit, path = saved
    folder = tmp_path / "parts"
    jm.bootstrap(fit, 600, seed=4, shard=(0, 3), out=folder)
    jm.bootstrap(fit, 600, seed=4, shard=(2, 3), out=folder)
    code, _, err = run("merge", folder)
    assert code == 1
    assert "256 of 600 replicates are missing: 256 to 511" in err
    code, out, _ = run("bootstrap", "--fit", path, "--n", 600, "--seed", 4, "--out", folder, "--shard", "1/3")
    assert code == 0
    assert "shard 1 of 3: 256 replicates" in out
    whole = tmp_path / "all.parquet"
    code, out, _ = run("merge", folder, "--kind", "bca", "--fit", path, "--out", whole)
    assert code == 0
    assert "600 replicates" in out
    pd.testing.assert_frame_equal(jm.load_replicates(whole).table, jm.bootstrap(fit, 600, seed=4).table)
    code, _, err = run("merge", folder, whole, "--quiet")
    assert code == 0
    assert "600 replicates were there twice" in err


def block(language: str, start: str) -> str:
    """A code block of the documentation."""
    found = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return next(text for text in found if text.startswith(start))


@pytest.mark.skipif(shutil.which("bash") is None, reason="the array script needs bash")
def test_the_array_script_of_the_documentation(saved, tmp_path):
    """Its job file and script as plain processes with Slurm's variables: the same bits as one call in this process."""
    fit, _ = saved
    shutil.copy(EXAMPLE, tmp_path / "data.csv")
    (tmp_path / "job.toml").write_text(block("toml", "# job.toml").replace("n = 10000", "n = 600"))
    (tmp_path / "array.sh").write_text(block("bash", "#!/bin/bash"))
    beside = tmp_path / "bin"
    beside.mkdir()
    (beside / "jaxmed").write_text(f'#!/bin/bash\nexec "{sys.executable}" -m jaxmed "$@"\n')
    (beside / "jaxmed").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{beside}:{os.environ['PATH']}",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "SLURM_JOB_ID": "1",
        "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_ARRAY_TASK_MIN": "0",
    }
    for part in range(2):
        own = environment | {"SLURM_ARRAY_TASK_ID": str(part)}
        done = subprocess.run(
            ["bash", "array.sh"], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"shard {part} of 2" in done.stdout
    found = jm.load_replicates(tmp_path / "replicates")
    assert found.gaps == ()
    assert found.duplicates == 0
    pd.testing.assert_frame_equal(found.table, jm.bootstrap(fit, 600, seed=1).table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", 1), "give --n"),
        (("--n", 10), "give --seed"),
        (("--n", 10, "--seed", 1, "--shard", "0/2"), "--shard needs --out"),
        (("--n", 10, "--seed", 1, "--shard", "2/2"), "parts are counted from 0"),
        (("--n", 0, "--seed", 1), "n=0 must be a whole number"),
        (("--n", 10, "--seed", 1, "--method", "jackknife"), "jackknife"),
        (("--n", 10, "--seed", 1, "--level", 2), "level=2"),
        (("--n", 10, "--seed", 1, "--x", "x"), "the saved fit says the whole model"),
        (("--n", 10, "--seed", 1, "--method", "residual"), "pass the data too"),
    ],
)
def test_refusals(run, saved, arguments, message):
    code, _, err = run("bootstrap", "--fit", saved[1], *arguments)
    assert code in (1, 2)
    assert message in err


def test_a_model_or_a_fit(run):
    code, _, err = run("bootstrap", EXAMPLE, "--n", 10, "--seed", 1)
    assert code == 2
    assert "which columns are x, m, y, cluster" in err


def test_nothing_to_merge(run, tmp_path):
    code, _, err = run("merge", tmp_path)
    assert code == 2
    assert "there are no replicates in" in err


def test_a_flat_fit_is_noted_in_one_line(run, tmp_path):
    jm.datasets.load_example().to_csv(tmp_path / "data.csv", index=False)
    columns = ["--x", "x", "--m", "m", "--y", "y", "--cluster", "id", "--center", "cluster"]
    columns += ["--intercepts", "correlated"]
    code, out, err = run("bootstrap", tmp_path / "data.csv", *columns, "--n", 16, "--seed", 1)
    assert code == 0
    assert "indirect_within" in out
    notes = [line for line in err.splitlines() if "replicates say nothing of what the fit does not know" in line]
    assert [note.startswith("jaxmed: note: ") for note in notes] == [True]
    assert "Warning" not in err
