"""Bundled data is what our own simulator draws."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
from conftest import REFERENCE

import jaxmed as jm
from jaxmed import datasets


def test_schools_are_drawn_from_the_population_that_is_written_out(monkeypatch):
    """1e-3: the file is rounded to three decimals, and another machine may round the last one the other way."""
    monkeypatch.syspath_prepend(str(REFERENCE))
    import make_schools

    monkeypatch.delitem(sys.modules, "make_schools")
    pd.testing.assert_frame_equal(
        jm.datasets.load_schools(), make_schools.draw(), check_exact=False, rtol=0, atol=1.1e-3
    )


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """It is not said to be of another format."""

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pd, "read_stata", denied)
    with pytest.raises(jm.DataError, match=r"bpg.dta' cannot be read: Permission denied"):
        datasets._checked_file(tmp_path / "bpg.dta")
