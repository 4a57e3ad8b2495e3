"""From data to sums of products: readers, moments, the design of a model and whether data identify it."""

from __future__ import annotations

from jaxmed._data.column_distributions import two_valued, variance_components
from jaxmed._data.description import Description, describe, describe_moments, stack
from jaxmed._data.design import Block, Design, make_design, outcome_values
from jaxmed._data.identification import check_identified
from jaxmed._data.moments import LARGEST, Moments, Pattern, SampleSummary
from jaxmed._data.moments_file import is_moments, load_moments, save_moments
from jaxmed._data.reader import Missing, check_complete, equation_groups, read_facts, read_moments
from jaxmed._data.source import no_ids
from jaxmed._data.totals import Totals, add_up, packed_products, totals_from_dict

__all__ = [
    "LARGEST",
    "Block",
    "Description",
    "Design",
    "Missing",
    "Moments",
    "Pattern",
    "SampleSummary",
    "Totals",
    "add_up",
    "check_complete",
    "check_identified",
    "describe",
    "describe_moments",
    "equation_groups",
    "is_moments",
    "load_moments",
    "make_design",
    "no_ids",
    "outcome_values",
    "packed_products",
    "read_facts",
    "read_moments",
    "save_moments",
    "stack",
    "totals_from_dict",
    "two_valued",
    "variance_components",
]
