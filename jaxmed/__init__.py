"""Multilevel mediation analysis on JAX: exact likelihood, exact derivatives, joint standard errors."""

from __future__ import annotations

from jaxmed.errors import ConvergenceWarning, DataError, FitError, JaxmedError, SpecError, Status
from jaxmed.fit import Fit, fit, load
from jaxmed.spec import Equation, Mediation, System

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "Equation",
    "Fit",
    "FitError",
    "JaxmedError",
    "Mediation",
    "SpecError",
    "Status",
    "System",
    "fit",
    "load",
]
