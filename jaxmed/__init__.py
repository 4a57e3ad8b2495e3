"""Multilevel mediation analysis on JAX: exact likelihood, exact derivatives, joint standard errors."""

from __future__ import annotations

from jaxmed import datasets, plots
from jaxmed._version import __version__
from jaxmed.bootstrap import bootstrap
from jaxmed.compare import compare
from jaxmed.conflation import Conflation, conflation
from jaxmed.describe import Description, describe, stack
from jaxmed.errors import ConvergenceWarning, DataError, DesignWarning, FitError, JaxmedError, SpecError, Status
from jaxmed.fit import Fit, fit, load
from jaxmed.frame import read_moments
from jaxmed.mediation import Mediation
from jaxmed.moderation import johnson_neyman
from jaxmed.optima import optima
from jaxmed.population import Population
from jaxmed.power import power
from jaxmed.power_tables import Power, load_power
from jaxmed.replicates import Replicates, load_replicates
from jaxmed.report import report
from jaxmed.simulate import simulate
from jaxmed.spec import Equation, System
from jaxmed.store import load_moments, save_moments

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
