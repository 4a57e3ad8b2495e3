"""Pictures of results. Every function draws on ``ax``, or on axes of its own, and returns them; needs matplotlib."""

from __future__ import annotations

from jaxmed.plots._clusters import caterpillar, cluster_effects, cluster_lines, influence, quantiles, slopes
from jaxmed.plots._moderation import conditional
from jaxmed.plots._path_diagram import path_diagram
from jaxmed.plots._replicates import convergence, replicates
from jaxmed.plots._studies import coverage, power
from jaxmed.plots._style import ACCENT, DARK, LIGHT

__all__ = [
    "ACCENT",
    "DARK",
    "LIGHT",
    "caterpillar",
    "cluster_effects",
    "cluster_lines",
    "conditional",
    "convergence",
    "coverage",
    "influence",
    "path_diagram",
    "power",
    "quantiles",
    "replicates",
    "slopes",
]
