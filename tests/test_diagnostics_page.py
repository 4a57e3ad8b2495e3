"""The page on diagnostics prints what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "diagnostics.md"


@pytest.mark.slow
def test_examples_of_the_page(capsys):
    """Its Python blocks in their order; numbers are rounded to three decimals, four in the last."""
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            exec(text, names)
            printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
        else:
            assert printed == text.rstrip("\n")
