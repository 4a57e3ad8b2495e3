"""Many fits of one model in one compiled program."""

from __future__ import annotations

from jaxmed._refit.refitter import (
    Fitted,
    Refits,
    Refitter,
    batch_size,
    fitted,
    given_rows,
    leave_one_out,
    make_refitter,
    with_size,
)
from jaxmed._refit.sample_rows import Rows, RowsNeededError, design_of, read_rows

__all__ = [
    "Fitted",
    "Refits",
    "Refitter",
    "Rows",
    "RowsNeededError",
    "batch_size",
    "design_of",
    "fitted",
    "given_rows",
    "leave_one_out",
    "make_refitter",
    "read_rows",
    "with_size",
]
