"""Fitting a model, and everything that one fit can be asked."""

from __future__ import annotations

from jaxmed._results.comparison import compare
from jaxmed._results.fit_effects import check_is_fit
from jaxmed._results.fitting import fit
from jaxmed._results.interval_tables import draw_all
from jaxmed._results.local_optima import optima
from jaxmed._results.moderation import conditional_effects, johnson_neyman, middle, numeric_moderators
from jaxmed._results.result import Fit
from jaxmed._results.saved_fit import load
from jaxmed._results.slopes_by_cluster import (
    Route,
    average_product,
    cluster_slopes,
    density,
    find_route,
    product_density,
    varying_routes,
)
from jaxmed._results.summary import SE_NOTES, legend
from jaxmed._results.tables import decimals, p_value, rounded
from jaxmed._results.within_between import Conflation, conflation

__all__ = [
    "SE_NOTES",
    "Conflation",
    "Fit",
    "Route",
    "average_product",
    "check_is_fit",
    "cluster_slopes",
    "compare",
    "conditional_effects",
    "conflation",
    "decimals",
    "density",
    "draw_all",
    "find_route",
    "fit",
    "johnson_neyman",
    "legend",
    "load",
    "middle",
    "numeric_moderators",
    "optima",
    "p_value",
    "product_density",
    "rounded",
    "varying_routes",
]
