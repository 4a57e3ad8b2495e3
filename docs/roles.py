"""For mkdocstrings: docstrings name other objects as Sphinx does (:class:`System`); here these become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

import jaxmed

INTERNAL = re.compile(r"^_\w+\.\w+\.")  # a package and a module of jaxmed
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")
METHODS = ("Fit", "Replicates", "Power", "Population", "System")


def _target(name: str) -> str | None:
    """Where the reference describes an object, or None."""
    path = INTERNAL.sub("", name.removeprefix("jaxmed."))
    if path == "Estimates":
        return "jaxmed._inference.estimates.Estimates"
    head, _, member = path.partition(".")
    known = head in jaxmed.__all__ and (not member or (head in METHODS and not member.startswith(("_", "to_"))))
    return f"jaxmed.{path}" if known else None


def _link(found: re.Match[str], owner: str) -> str:
    target = _target(found[1]) or _target(f"{owner}.{found[1]}")
    return f"`{found[1]}`" if target is None else f"[`{found[1]}`][{target}]"


class Roles(griffe.Extension):
    """Rewrites the docstring of every object once it is loaded."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe for modules, classes, functions and attributes."""
        if obj.docstring is not None:
            owner = obj.name if obj.is_class else getattr(obj.parent, "name", "")
            owner = {"FitEffects": "Fit", "Estimates": "Fit", "Compilation": "Mediation"}.get(owner, owner)
            obj.docstring.value = ROLE.sub(lambda found: _link(found, owner), obj.docstring.value)
