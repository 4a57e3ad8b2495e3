"""Shared fixtures: the bundled data, the worked example's data where it is at hand, and the reference answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

REFERENCE = Path(__file__).parent / "reference"


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
    from jaxmed import cli

    # It points JAX at its cache folder and moves stderr, which would outlive the test in this process.
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(cli, "drop_loader_noise", lambda: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxmed", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return call
