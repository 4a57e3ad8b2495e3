"""Multilevel mediation analysis on JAX: exact likelihood, exact derivatives, joint standard errors."""

from __future__ import annotations

from jaxmed import datasets, plots
from jaxmed._data.description import Description, describe, stack
from jaxmed._data.moments_file import load_moments, save_moments
from jaxmed._data.reader import read_moments
from jaxmed._model.mediation import Mediation
from jaxmed._model.system import Equation, System
from jaxmed._report.document import report
from jaxmed._results.comparison import compare
from jaxmed._results.fitting import fit
from jaxmed._results.local_optima import optima
from jaxmed._results.moderation import johnson_neyman
from jaxmed._results.result import Fit
from jaxmed._results.saved_fit import load
from jaxmed._results.within_between import Conflation, conflation
from jaxmed._simulation.bootstrapping import bootstrap
from jaxmed._simulation.population import Population
from jaxmed._simulation.power_result import Power, load_power
from jaxmed._simulation.power_study import power
from jaxmed._simulation.replicates import Replicates, load_replicates
from jaxmed._simulation.simulation import simulate
from jaxmed._support.errors import (
    ConvergenceWarning,
    DataError,
    DesignWarning,
    FitError,
    JaxmedError,
    SpecError,
    Status,
)
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
