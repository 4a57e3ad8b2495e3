"""How much is read or computed at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of what is read or computed at a time; results depend on them by rounding alone.

    Attributes
    ----------
    csv_bytes : int
        Of a csv file that are read at a time, and over the first of which column types are inferred.
    parquet_rows : int
        Of a parquet file that are read at a time.
    frame_rows : int
        Of a frame in memory that are looked at at a time; what was read of fewer is kept.
    cache_rows : int
        Whose products stay in the processor's cache.
    remark_rows : int
        Up to which rows are compared one by one, for remarks on odd data.
    waiting_clusters : int
        Of chunks that wait to be added up, at the least.
    totals_clusters : int
        Whose sums are added at a time, so that what is in between stays in the processor's cache.
    sample_clusters : int
        At whose optimum a fit to four times as many starts.
    shard_clusters : int
        That one program goes over on a CPU, at the most.
    """

    csv_bytes: int = 1 << 22
    parquet_rows: int = 1 << 20
    frame_rows: int = 1 << 20
    cache_rows: int = 1 << 14
    remark_rows: int = 1 << 20
    waiting_clusters: int = 1 << 20
    totals_clusters: int = 1 << 14
    sample_clusters: int = 1 << 10
    shard_clusters: int = 1 << 13


_current: ContextVar[BlockSizes] = ContextVar("block_sizes", default=BlockSizes())  # noqa: B039, frozen


def current_sizes() -> BlockSizes:
    """The sizes in force."""
    return _current.get()


@contextmanager
def block_sizes(**changes: int) -> Iterator[None]:
    """Other sizes for what is called inside.

    Examples
    --------
    >>> with block_sizes(csv_bytes=1000):
    ...     current_sizes().csv_bytes
    1000
    """
    token = _current.set(replace(_current.get(), **changes))
    try:
        yield
    finally:
        _current.reset(token)
