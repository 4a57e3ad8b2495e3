"""Sizes of clusters: a number for all, a list to choose from, or a distribution."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, pdtr

from jaxmed._support import Floats, SpecError

Size: TypeAlias = int | list[int] | dict[str, Any]
LARGEST = 10_000_000
TAIL = 1e-12  # probability beyond which a distribution of sizes is cut off
ALLOWED = (
    "a whole number of rows of at least 1, a list of such numbers, {'uniform': [least, most]}, {'poisson': mean} or "
    "{'negative_binomial': [mean, sd]} with the mean above 1"
)


def check_size(size: Any) -> Size:
    """Sizes as plain data.

    Raises
    ------
    SpecError
        They are something else.
    """
    wrong = SpecError(f"size={size!r} is not understood; give {ALLOWED}")
    if isinstance(size, np.ndarray):
        size = size.tolist()
    if _is_count(size):
        return int(size)
    if isinstance(size, (list, tuple)):
        if not len(size) or not all(map(_is_count, size)):
            raise wrong
        return [int(one) for one in size]
    if not isinstance(size, dict) or len(size) != 1:
        raise wrong
    (kind, numbers), *_ = size.items()
    numbers = list(numbers) if isinstance(numbers, (list, tuple, np.ndarray)) else [numbers]
    numbers = [one.item() if isinstance(one, np.generic) else one for one in numbers]
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) and one == one for one in numbers):
        raise wrong
    if kind == "uniform" and len(numbers) == 2 and all(map(_is_count, numbers)) and numbers[0] <= numbers[1]:
        return {kind: [int(one) for one in numbers]}
    if kind == "poisson" and len(numbers) == 1 and 1 < numbers[0] <= LARGEST:
        return {kind: float(numbers[0])}
    if kind == "negative_binomial" and len(numbers) == 2 and 1 < numbers[0] <= LARGEST:
        if not np.sqrt(numbers[0] - 1) < numbers[1] <= LARGEST:
            raise SpecError(
                f"size={size!r}: the sd of a negative binomial is above that of a Poisson distribution, "
                f"{np.sqrt(numbers[0] - 1):.4g} here (of the rows beyond the first); use 'poisson' or 'uniform'"
            )
        if numbers[0] + 12 * numbers[1] + 40 * numbers[1] ** 2 / numbers[0] > LARGEST:
            raise SpecError(f"size={size!r} spreads over more than {LARGEST:,} sizes; take a smaller sd")
        return {kind: [float(one) for one in numbers]}
    raise wrong


def draw_sizes(size: Size, uniform: Floats) -> NDArray[np.int64]:
    """Size of every cluster, from as many uniform numbers."""
    if isinstance(size, int):
        return np.full(len(uniform), size)
    if isinstance(size, list):
        return np.array(size)[np.minimum((uniform * len(size)).astype(np.int64), len(size) - 1)]
    (kind, numbers), *_ = size.items()
    if kind == "uniform":
        least, most = numbers
        return least + np.minimum((uniform * (most - least + 1)).astype(np.int64), most - least)
    mean, sd = (numbers, np.sqrt(numbers - 1)) if kind == "poisson" else numbers
    counts = np.arange(int(mean + 12 * sd + 40 * max(sd**2 / mean, 1.0)))
    if kind == "poisson":
        below = pdtr(counts, mean - 1)
    else:
        # Of variance m + m^2 / r at mean m: P(K <= k) = I(r / (r + m); r, k + 1).
        r = (mean - 1) ** 2 / (sd**2 - (mean - 1))
        below = betainc(r, counts + 1.0, r / (r + mean - 1))
    return 1 + np.searchsorted(below, np.minimum(uniform, 1 - TAIL))


def size_text(size: Size) -> int | str:
    """Sizes for a table: the number, or the distribution in short."""
    if isinstance(size, int):
        return size
    if isinstance(size, list):
        return f"{min(size)}-{max(size)} (list of {len(size)})"
    (kind, numbers), *_ = size.items()
    shown = numbers if isinstance(numbers, list) else [numbers]
    return f"{kind}({', '.join(f'{one:g}' for one in shown)})"


def _is_count(value: Any) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and 1 <= value <= LARGEST
