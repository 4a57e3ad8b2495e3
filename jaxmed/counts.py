"""Whole numbers and parts of a whole that callers give, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmed.errors import SpecError

LARGEST = 2**63 - 1


def check_count(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """A whole number within bounds.

    Raises
    ------
    SpecError
        It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        bounds = f"of at least {least} (and below 2**63)" if most == LARGEST else f"from {least} to {most}"
        raise SpecError(f"{name}={value!r} must be a whole number {bounds}")
    return int(value)


def check_shard(shard: Any) -> tuple[int, int]:
    """Part i of k parts, counted from 0.

    Raises
    ------
    SpecError
        It is something else.
    """
    ok = isinstance(shard, (tuple, list)) and len(shard) == 2
    if ok and all(isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in shard):
        part, parts = map(int, shard)
        if 0 <= part < parts:
            return part, parts
    raise SpecError(f"shard={shard!r} must be (i, k): part i of k parts, i from 0 to k - 1")
