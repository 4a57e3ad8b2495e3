"""What long work says while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that long work keeps up to date and removes at its end; silent where stderr is no terminal."""
    shown = False

    def say(text: str) -> None:
        nonlocal shown
        if sys.stderr is not None and sys.stderr.isatty():
            shown = True
            sys.stderr.write(f"\r\033[K{title}: {text}")
            sys.stderr.flush()

    try:
        yield say
    finally:
        if shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """:func:`progress` of work in equal pieces: how many are done, how many a second, how long the rest will take."""
    done, start = 0, time.monotonic()
    with progress(title) as say:

        def advance(pieces: int) -> None:
            nonlocal done
            done += pieces
            rate = done / max(time.monotonic() - start, 1e-9)
            say(f"{done} of {total}, {rate:.3g} a second, {duration((total - done) / rate)} to go")

        yield advance


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
