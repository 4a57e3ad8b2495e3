"""For mkdocstrings: docstrings name other objects as Sphinx does (:class:`System`); here these become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

import jaxmed

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")
# Functions that share their name with the module they are in; griffe finds the module under the short name.
OWN_MODULE = ("bootstrap", "compare", "describe", "fit", "power", "simulate")
METHODS = ("Fit", "Replicates", "Power", "Population", "System")


def _target(name: str) -> str | None:
    """Where the reference describes an object, or None."""
    path = name.removeprefix("jaxmed.").removeprefix("result.").removeprefix("errors.").removeprefix("fit.")
    if path == "Estimates":
        return "jaxmed.result.Estimates"
    if path in OWN_MODULE:
        return f"jaxmed.{path}.{path}"
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
            obj.docstring.value = ROLE.sub(lambda found: _link(found, owner), obj.docstring.value)
