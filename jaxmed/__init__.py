"""Multilevel mediation analysis on JAX: exact likelihood, exact derivatives, joint standard errors."""

from __future__ import annotations

from jaxmed import datasets, plots
from jaxmed._data import Description, describe, load_moments, read_moments, save_moments, stack
from jaxmed._model import Equation, Mediation, System
from jaxmed._report import report
from jaxmed._results import Conflation, Fit, compare, conflation, fit, johnson_neyman, load, optima
from jaxmed._simulation import Population, Power, Replicates, bootstrap, load_power, load_replicates, power, simulate
from jaxmed._support import ConvergenceWarning, DataError, DesignWarning, FitError, JaxmedError, SpecError, Status
from jaxmed._version import __version__

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
