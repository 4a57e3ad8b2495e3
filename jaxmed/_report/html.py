"""HTML from templates and from Python: text is escaped unless it is markup already."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from markupsafe import Markup, escape

from jaxmed._support import escape_control


def _visible(value: Any) -> Any:
    """Text whose control characters are shown by their numbers; markup as it is."""
    return value if isinstance(value, Markup) else escape_control(str(value), "\n\t")


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not loaded by `import jaxmed`

    return Environment(
        loader=PackageLoader("jaxmed._report"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> Markup:
    """A file of ``templates``, filled in; values that are no markup are escaped."""
    return Markup(_templates().get_template(template).render(values))


def element(tag: str, *children: str, **attributes: str | int) -> Markup:
    """An element; children that are no markup and all attributes are escaped.

    An underscore in the name of an attribute stands for a dash, one at its end for nothing.

    Examples
    --------
    >>> print(element("a", "R & D", href="#x", aria_label='"quoted"'))
    <a href="#x" aria-label="&#34;quoted&#34;">R &amp; D</a>
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_visible(value))}"' for name, value in attributes.items()
    )
    return Markup(f"<{tag}{given}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Markup:
    """Parts one after the other, escaped where they are no markup."""
    return Markup("").join(map(_visible, parts))


def table(
    name: str, caption: str, heads: list[str], rows: list[list[str]], stubs: int = 1, note: str | None = None
) -> Markup:
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
    return render("table.html", name=name, caption=caption, heads=heads, rows=rows, stubs=stubs, note=note)


def figure(svg: Markup, caption: str, wide: bool = False) -> Markup:
    """A picture with its caption."""
    return element("figure", svg, element("figcaption", caption), **{"class": "wide"} if wide else {})


def page(title: str, header: Markup, sections: list[tuple[str, str, Markup]], footer: Markup) -> str:
    """A whole document: sections are their id, title and content; contents and a skip link come by themselves."""
    return render("page.html", title=title, header=header, sections=sections, footer=footer)
