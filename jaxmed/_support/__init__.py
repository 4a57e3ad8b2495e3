"""What everything else stands on: errors, validation of arguments, text, files, arrays, the JAX runtime."""

from __future__ import annotations

from jaxmed._support.arrays import Floats, lower_root, packed_index, packed_rows, root, symmetric, upper
from jaxmed._support.atomic_files import check_folder_of, write_atomically, write_text
from jaxmed._support.checkpoints import (
    Ledger,
    all_files,
    as_folder,
    check_equal,
    claim,
    damaged,
    interrupted,
    open_folder,
    read_table,
    write_table,
)
from jaxmed._support.errors import (
    ConvergenceWarning,
    DataError,
    DesignWarning,
    FitError,
    JaxmedError,
    SpecError,
    Status,
)
from jaxmed._support.progress_line import counted, progress
from jaxmed._support.text import check_form, parse, shown, visible
from jaxmed._support.validation import (
    check_choice,
    check_count,
    check_flag,
    check_list,
    check_path,
    check_shard,
    is_number,
    one_or_more,
)

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "DesignWarning",
    "FitError",
    "Floats",
    "JaxmedError",
    "Ledger",
    "SpecError",
    "Status",
    "all_files",
    "as_folder",
    "check_choice",
    "check_count",
    "check_equal",
    "check_flag",
    "check_folder_of",
    "check_form",
    "check_list",
    "check_path",
    "check_shard",
    "claim",
    "counted",
    "damaged",
    "interrupted",
    "is_number",
    "lower_root",
    "one_or_more",
    "open_folder",
    "packed_index",
    "packed_rows",
    "parse",
    "progress",
    "read_table",
    "root",
    "shown",
    "symmetric",
    "upper",
    "visible",
    "write_atomically",
    "write_table",
    "write_text",
]
