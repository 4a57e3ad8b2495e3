"""The notebooks run from top to bottom, as scripts, from the folder they are in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
# Not "python -W error::jaxmed.ConvergenceWarning": Python reads that before it knows where jaxmed is, and ignores it.
RUN = """
import runpy, sys, warnings, jaxmed
warnings.simplefilter("error", jaxmed.ConvergenceWarning)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook):
    done = subprocess.run(
        [sys.executable, "-c", RUN, notebook.name],
        cwd=FOLDER,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_there_are_notebooks():
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        text = notebook.read_text(encoding="utf-8")
        assert text.startswith("# ---\n# jupyter:")
        assert "# %% [markdown]" in text
