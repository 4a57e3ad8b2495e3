"""Multilevel mediation analysis on JAX: exact likelihood, exact derivatives, joint standard errors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxmed import datasets
from jaxmed._data import Description, describe, load_moments, read_moments, save_moments, stack
from jaxmed._model import Equation, Mediation, System
from jaxmed._results import Conflation, Fit, compare, conflation, fit, johnson_neyman, load, optima
from jaxmed._support import ConvergenceWarning, DataError, DesignWarning, FitError, JaxmedError, SpecError, Status
from jaxmed._version import __version__

if TYPE_CHECKING:
    from jaxmed import plots
    from jaxmed._report import report
    from jaxmed._simulation import (
        Population,
        Power,
        Replicates,
        bootstrap,
        load_power,
        load_replicates,
        power,
        simulate,
    )

# What a fit does not need is imported when it is first used.
LATER = {
    "_report": ("report",),
    "_simulation": (
        *("Population", "Power", "Replicates", "bootstrap", "load_power", "load_replicates", "power", "simulate"),
    ),
}


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("jaxmed.plots")
    for package, names in LATER.items():
        if name in names:
            globals()[name] = getattr(import_module(f"jaxmed.{package}"), name)
            return globals()[name]
    raise AttributeError(f"module 'jaxmed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Conflation",
    "ConvergenceWarning",
    "DataError",
    "Description",
    "DesignWarning",
    "Equation",
    "Fit",
    "FitError",
    "JaxmedError",
    "Mediation",
    "Population",
    "Power",
    "Replicates",
    "SpecError",
    "Status",
    "System",
    "__version__",
    "bootstrap",
    "compare",
    "conflation",
    "datasets",
    "describe",
    "fit",
    "johnson_neyman",
    "load",
    "load_moments",
    "load_power",
    "load_replicates",
    "optima",
    "plots",
    "power",
    "read_moments",
    "report",
    "save_moments",
    "simulate",
    "stack",
]
