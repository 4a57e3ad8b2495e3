"""The marginal likelihood of a model as a function of arrays: value, derivatives, optimiser, shards."""

from __future__ import annotations

from jaxmed._likelihood.derivatives import Evaluation, evaluate, placed
from jaxmed._likelihood.distributed import agree, together
from jaxmed._likelihood.layout import (
    Layout,
    Scale,
    block_diagonal,
    chain,
    free_entries,
    log_precision,
    log_sds_to_variances,
    lower,
    precisions,
    root_and_precision,
    root_chain,
    rows_by_cluster,
    theta_of,
    triangular,
    variances_to_precisions,
)
from jaxmed._likelihood.likelihood import BLOCK, Data, eliminate, embed, make_data, place, weighted_sum
from jaxmed._likelihood.optimise import WARM_UP, Solution
from jaxmed._likelihood.problem import Problem, make_problem
from jaxmed._likelihood.processes import ALONE, Hosts, all_hosts
from jaxmed._likelihood.shards import GPU_BLOCK, Shards, full_evaluation, profile_shards, value_shards

__all__ = [
    "ALONE",
    "BLOCK",
    "GPU_BLOCK",
    "WARM_UP",
    "Data",
    "Evaluation",
    "Hosts",
    "Layout",
    "Problem",
    "Scale",
    "Shards",
    "Solution",
    "agree",
    "all_hosts",
    "block_diagonal",
    "chain",
    "eliminate",
    "embed",
    "evaluate",
    "free_entries",
    "full_evaluation",
    "log_precision",
    "log_sds_to_variances",
    "lower",
    "make_data",
    "make_problem",
    "place",
    "placed",
    "precisions",
    "profile_shards",
    "root_and_precision",
    "root_chain",
    "rows_by_cluster",
    "theta_of",
    "together",
    "triangular",
    "value_shards",
    "variances_to_precisions",
    "weighted_sum",
]
