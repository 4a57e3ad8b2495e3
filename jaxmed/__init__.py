"""Multilevel mediation analysis on JAX: exact likelihood, exact derivatives, joint standard errors."""

from __future__ import annotations

from jaxmed import datasets
from jaxmed._version import __version__
from jaxmed.describe import Description, describe, stack
from jaxmed.errors import ConvergenceWarning, DataError, FitError, JaxmedError, SpecError, Status
from jaxmed.fit import Fit, fit, load
from jaxmed.simulate import simulate
from jaxmed.spec import Equation, Mediation, System

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "Description",
    "Equation",
    "Fit",
    "FitError",
    "JaxmedError",
    "Mediation",
    "SpecError",
    "Status",
    "System",
    "__version__",
    "datasets",
    "describe",
    "fit",
    "load",
    "simulate",
    "stack",
]
