"""The documentation: its Python blocks print what stands below them, and its site builds without a warning.

The blocks of a page run in order in one namespace, in an empty folder. A ```text block right after a ```python block is
what that block prints. Rule of comparison: the same words and numbers, white space aside, and no tolerance: pages print
few digits, and results agree far beyond them between machines. A line of three dots stands for any lines. A comment
``<!-- not run: reason -->`` above a block leaves it out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import jaxmed as jm

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """Python code of a page, its first line there, and what it is said to print (None: not said)."""

    line: int
    code: str
    printed: str | None


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page that run."""
    found = list(FENCE.finditer(text))
    kept = []
    for at, block in enumerate(found):
        if block["language"] != "python" or (block["mark"] or "").startswith("not run: "):
            continue
        printed = None
        if at + 1 < len(found) and found[at + 1]["language"] == "text":
            between = text[block.end() : found[at + 1].start()]
            printed = None if between.strip() else found[at + 1]["text"]
        kept.append(Block(text.count("\n", 0, block.start("text")) + 1, block["text"], printed))
    return kept


def agree(said: str, printed: str) -> bool:
    parts = re.split(r"^\.\.\.$", said, flags=re.M)
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in parts)
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def prepare(text: str, folder: Path) -> None:
    """Files that a page takes for granted."""
    if "ml_sim.dta" not in text:
        return
    try:
        data = jm.datasets.load_bpg2006(download=False)
    except jm.DataError as error:
        pytest.skip(f"the worked example's data: {error}")
    data.to_stata(folder / "ml_sim.dta", write_index=False)


def test_blocks_and_their_rule():
    page = "```python\n1\n```\n\n```text\na\n```\n<!-- not run: x -->\n```python\n2\n```\n"
    page += "```python\n3\n```\nso\n```text\nb\n```\n"
    assert blocks(page) == [Block(2, "1\n", "a\n"), Block(13, "3\n", None)]
    assert agree("a  1.0\n...\nb\n", "a 1.0\nmore\nb\n")
    assert not agree("a 1.0\n", "a 1.1\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    if not found:
        pytest.skip("no Python on this page")
    prepare(text, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    wrong = []
    for block in found:
        out = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        with contextlib.redirect_stdout(out):
            exec(code, names)
        if block.printed is not None and not agree(block.printed, out.getvalue()):
            wrong.append(f"{page.name}, line {block.line}, says\n{block.printed}but prints\n{out.getvalue()}")
    assert not wrong, "\n".join(wrong)


def test_reference_names_everything():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {name.rsplit(".", 1)[-1] for name in re.findall(r"^::: (\S+)$", text, re.M)}
    assert set(jm.__all__) - {"__version__"} <= listed


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason="the site needs mkdocs: pip install 'jaxmed[docs]'",
)
def test_site(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
