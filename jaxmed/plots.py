"""Pictures of results. Every function draws on ``ax``, or on axes of its own, and returns them; needs matplotlib."""

from __future__ import annotations

from jaxmed.cluster_plots import caterpillar, cluster_effects, cluster_lines, influence, quantiles, slopes
from jaxmed.drawing import ACCENT, DARK, LIGHT
from jaxmed.moderation_plots import conditional
from jaxmed.path_diagram import path_diagram
from jaxmed.replicate_plots import convergence, replicates
from jaxmed.study_plots import coverage, power

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
