"""HTML from Python: text is escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable

from jaxmed._support import escape_control

VOID = ("meta", "br", "hr")


class Html(str):
    """Text that is markup, so that it is not escaped again."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | int | None) -> Html:
    """An element; children that are no :class:`Html` and all attributes are escaped.

    An underscore in the name of an attribute stands for a dash, one at its end for nothing; ``None`` leaves it out.

    Examples
    --------
    >>> element("a", "R & D", href="#x", aria_label='"quoted"')
    '<a href="#x" aria-label="&quot;quoted&quot;">R &amp; D</a>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>" if tag in VOID else f"<{tag}{given}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after the other, escaped where they are no markup."""
    return Html("".join(part if isinstance(part, Html) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    return html.escape(escape_control(text, "\n\t"))


def table(
    name: str, caption: str, heads: list[str], rows: list[list[str]], stubs: int = 1, note: str | None = None
) -> Html:
    """A table in a box that scrolls by itself where the page is narrow.

    Parameters
    ----------
    name : str
        Its id.
    caption : str
    heads : list of str
    rows : list of list of str
        Cells; the first ``stubs`` of each row say what the row is of.
    stubs : int
    note : str, optional
        Stands below.
    """
    top = [
        element("th", head, scope="col", class_=None if k < stubs else "number") if head else element("td")
        for k, head in enumerate(heads)
    ]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:stubs]),
            *(element("td", cell, class_="number") for cell in row[stubs:]),
        )
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption, id=f"{name}-caption"),
        element("thead", element("tr", *top)),
        element("tbody", *body),
        id=name,
    )
    # A region that scrolls must be reachable by the keyboard.
    box = element("div", whole, class_="scroll", role="region", tabindex=0, aria_labelledby=f"{name}-caption")
    return join([box, element("p", note, class_="note")]) if note else box


def figure(svg: Html, caption: str, wide: bool = False) -> Html:
    """A picture with its caption."""
    return element("figure", svg, element("figcaption", caption), class_="wide" if wide else None)


def page(title: str, header: Html, sections: list[tuple[str, str, Html]], footer: Html) -> str:
    """A whole document: sections are their id, title and content; contents and a skip link come by themselves."""
    links = [element("li", element("a", name, href=f"#{at}")) for at, name, _ in sections]
    body = [
        element("section", element("h2", name, id=at), content, aria_labelledby=at) for at, name, content in sections
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    whole = element(
        "body",
        element("a", "Skip to the results", href="#main", class_="skip"),
        element("header", header),
        element("nav", element("ul", *links), aria_label="Contents"),
        element("main", *body, id="main", tabindex=-1),
        element("footer", footer),
    )
    return f"<!DOCTYPE html>\n{element('html', head, whole, lang='en')}\n"


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 68rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1.5rem 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 2px solid #1b4965; }
h3 { font-size: 1.08rem; margin: 1.75rem 0 .25rem; }
p, li { max-width: 46rem; }
a { color: #1b4965; }
a:focus-visible, .scroll:focus-visible { outline: 3px solid #c8553d; outline-offset: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .5rem; background: #fff; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 1rem 0 0; }
nav a { display: inline-block; padding: .2rem 0; }
.lead, .note, figcaption, footer { color: #4a4a4a; }
.note, figcaption, footer { font-size: .9rem; }
.key { border-left: 4px solid #1b4965; background: #f1f6f9; padding: .5rem 1rem; margin: 1rem 0; }
.warning { border-left: 4px solid #c8553d; background: #fdf3f0; padding: .5rem 1rem; margin: 1rem 0; }
.scroll { overflow-x: auto; margin: 1rem 0 .5rem; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .35rem; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; white-space: nowrap; font-weight: 400; }
thead > tr > * { font-weight: 600; border-bottom: 1.5px solid #1a1a1a; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 1.5px solid #1a1a1a; }
tbody tr:hover > * { background: #f1f6f9; }
.number { text-align: right; padding-left: .75rem; padding-right: .25rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 1rem 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 32rem; }
figure.wide svg { max-width: 36rem; }
.figures figure { margin: 0; }
pre { background: #f4f4f4; padding: .75rem; overflow-x: auto; font-size: .85rem; line-height: 1.4; }
@media (max-width: 38rem) {
  .key, .warning { padding: .25rem .5rem; }
  ul { padding-left: 1.25rem; }
  blockquote { margin: 1rem .25rem; }
  table { font-size: .85rem; }
  th, td { padding-right: .4rem; }
  .number { padding-left: .4rem; }
  tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; max-width: 11rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip { display: none; }
  h2, h3, caption { break-after: avoid; }
  figure, tr, .key, .warning { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
  table { font-size: 8.5pt; }
  th, td { white-space: normal; padding-right: .4rem; }
}
"""
