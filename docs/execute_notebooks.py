"""Execute the notebooks: every .py becomes the .ipynb beside it, with its output, for readers of the repository.

    python docs/execute_notebooks.py [NAME ...]     execute all of them, or some
    python docs/execute_notebooks.py --check        exit status 1 where an .ipynb has other cells than its .py

The sources are the .py files; what is in an .ipynb is written by this command alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(HERE.glob("*.py"))


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """What a notebook says, without what it printed."""
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells if cell.source.strip()]


def execute(source: Path) -> None:
    """Run a notebook in a fresh kernel, in its own folder, and write it with its output."""
    from nbclient import NotebookClient

    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(HERE)}}).execute()
    for k, cell in enumerate(notebook.cells):  # nothing of this machine or of this run
        cell.id = f"cell-{k}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if not (one.output_type == "stream" and one.name == "stderr")]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def in_step(source: Path) -> bool:
    """Whether the .ipynb has the cells of its .py."""
    made = source.with_suffix(".ipynb")
    return made.exists() and cells(nbformat.read(made, as_version=4)) == cells(jupytext.read(source))


if __name__ == "__main__":
    names = sys.argv[1:]
    if names == ["--check"]:
        stale = [source.name for source in SOURCES if not in_step(source)]
        sys.exit(f"run python docs/execute_notebooks.py {' '.join(stale)}" if stale else 0)
    for source in SOURCES:
        if not names or source.name in names or source.stem in names:
            print(source.name, flush=True)
            execute(source)
