"""Shared fixtures: the bundled data, the worked example's data where it is at hand, and the reference answers."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

REFERENCE = Path(__file__).parent / "reference"
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def compile_quickly() -> None:
    """Have XLA compile in less than half the time, to slower programs, in this process and those it starts.

    Most of the time of the tests is compilation. ``XLA_FLAGS=`` (empty) tests what users run. XLA ends a process that
    gives it a flag it does not know, so another process tries them first.
    """
    if "XLA_FLAGS" in os.environ:
        return
    flags = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE}
    tried = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=flags, capture_output=True)
    os.environ["XLA_FLAGS"] = "" if tried.returncode else QUICK_TO_COMPILE


def compile_once() -> None:
    """Share compiled programs among the processes of one run of the tests, in a folder that goes with it.

    Workers and the programs that tests start compile much the same: of five files a sixth of the CPU time
    went to doing so again.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="jaxmed-tests-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}


compile_quickly()
compile_once()
# Tracing makes objects by the million, and a tenth of the time went to looking for those that are garbage.
gc.set_threshold(200_000, 50, 50)
FOUR_DEVICES = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"


def read_reference(name: str) -> dict:
    """A reference file of tests/reference as plain data."""
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def bpg2006() -> pd.DataFrame:
    """The worked example's data: from JAXMED_DATA, else from the download cache, else the test is skipped."""
    from jaxmed import DataError
    from jaxmed.datasets import load_bpg2006

    try:
        return load_bpg2006(download=False)
    except DataError as error:
        pytest.skip(f"the worked example's data is not here ({error})")


@pytest.fixture(scope="session")
def unbalanced() -> pd.DataFrame:
    """60 text-id clusters of 3 to 15 rows, x far from zero, some y missing (tests/reference/README.md)."""
    return pd.read_csv(REFERENCE / "unbalanced.csv")


@pytest.fixture(scope="session")
def extended() -> pd.DataFrame:
    """90 text-id clusters of 5 to 12 rows with covariates, moderators and several mediators (tests/reference)."""
    return pd.read_csv(REFERENCE / "extended.csv")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the program in this process: exit code, stdout, stderr."""
    from jaxmed._cli import app

    # It points JAX at its cache folder and moves stderr, which would outlive the test in this process.
    monkeypatch.setattr(app, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(app, "drop_loader_noise", lambda: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxmed", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            app.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return call


@pytest.fixture
def shrink():
    """Read and compute little at a time until the test ends: ``shrink(parquet_rows=7)``, see ``BlockSizes``."""
    from jaxmed._support import block_sizes

    with ExitStack() as stack:
        yield lambda **sizes: stack.enter_context(block_sizes(**sizes))
