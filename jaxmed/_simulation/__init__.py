"""Populations, the bootstrap and power studies."""

from __future__ import annotations

from jaxmed._simulation.bootstrapping import BootstrapMethod, bootstrap
from jaxmed._simulation.cluster_sizes import check_size
from jaxmed._simulation.population import Population
from jaxmed._simulation.power_result import Power, load_power
from jaxmed._simulation.power_study import power
from jaxmed._simulation.replicates import IntervalKind, Replicates, check_fit, load_replicates
from jaxmed._simulation.simulation import simulate

__all__ = [
    "BootstrapMethod",
    "IntervalKind",
    "Population",
    "Power",
    "Replicates",
    "bootstrap",
    "check_fit",
    "check_size",
    "load_power",
    "load_replicates",
    "power",
    "simulate",
]
