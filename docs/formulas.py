"""For MkDocs: formulas in TeX become MathML while the site is built, so that a page needs no script to show them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# As pymdownx.arithmatex leaves them: \(inline\) and \[on lines of their own\].
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with every page."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    own_line = found[1] == "div"
    formula = convert(html.unescape(found[2]).strip(), display="block" if own_line else "inline")
    return f'<div class="formula">{formula}</div>' if own_line else formula
