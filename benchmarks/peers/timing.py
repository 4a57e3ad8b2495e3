"""What the Python adapters share: their arguments, the clock and the line they print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")

DATA, VARIANT = sys.argv[1], sys.argv[2]  # sys.argv[3:] are the most repeats, and the seconds to spend on them


def timed(action: Callable[[], Value]) -> tuple[float, Value]:
    """Wall-clock seconds of one call, and what it returned."""
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


def repeated(action: Callable[[], Value]) -> tuple[list[float], Value]:
    """Seconds of several calls: at least one, then as many as the time allows."""
    repeats, allowed = int(sys.argv[3]), float(sys.argv[4])
    second, value = timed(action)
    seconds = [second]
    while len(seconds) < repeats and sum(seconds) + seconds[-1] < allowed:
        second, value = timed(action)
        seconds.append(second)
    return seconds, value


def report(**answer: Any) -> None:
    """The adapter's one line of standard output."""
    print(json.dumps(answer))
