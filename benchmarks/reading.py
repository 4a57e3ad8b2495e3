"""Claim: reading takes at most twice the time of the engine's bare group-by with the same ten sums; a file, no memory.

    python benchmarks/reading.py                                   50 million rows, 250,000 clusters
    python benchmarks/reading.py --rows 48e6 --clusters 6e6        small clusters
    python benchmarks/reading.py --engines duckdb --order shuffled
    python benchmarks/reading.py --engines "" --file-rows 200e6 --clusters 1e6 --order shuffled

Every engine sums its own data by id: rows, x, m, y and their six products. The same data then become moments (checks,
two passes, products around a shift), in turns with the bare group-by; medians. The moments, on the raw scale again,
must be these sums. A parquet file of ``--file-rows`` is written to a temporary folder chunk by chunk and read by a
process of its own, which reports its peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

import jaxmed as jm
from jaxmed._data.reader import read

SYSTEM = jm.Mediation(x="x", m="m", y="y", cluster="id").system()
NAMES = SYSTEM.columns
PAIRS = list(combinations_with_replacement(NAMES, 2))
PART = 1 << 20


def make_parts(rows: int, clusters: int, order: str) -> Iterator[pa.Table]:
    rng = np.random.default_rng(1)
    for at in range(0, rows, PART):
        n = min(PART, rows - at)
        ids = np.arange(at, at + n) * clusters // rows if order == "sorted" else rng.integers(0, clusters, n)
        x = rng.normal(size=n)
        m = 1 + 0.5 * x + rng.normal(size=n)
        yield pa.table({"id": ids, "x": x, "m": m, "y": 0.3 * m + 0.2 * x + rng.normal(size=n)})


def in_polars(table: pa.Table) -> tuple[Any, Callable[[], Any]]:
    import polars as pl

    frame = pl.from_arrow(table).lazy()
    products = [(pl.col(a) * pl.col(b)).alias(f"{a}{b}") for a, b in PAIRS]
    sums = [pl.len(), *(pl.col(name).sum() for name in (*NAMES, *(a + b for a, b in PAIRS)))]
    query = frame.with_columns(products).group_by("id").agg(sums)
    return frame, lambda: query.collect(engine="streaming").to_arrow()


def in_polars_eager(table: pa.Table) -> tuple[Any, Callable[[], Any]]:
    frame, bare = in_polars(table)
    return frame.collect(), bare


def in_duckdb(table: pa.Table) -> tuple[Any, Callable[[], Any]]:
    import duckdb

    duckdb.register("arrow_rows", table)
    duckdb.sql("create or replace table rows as select * from arrow_rows")
    duckdb.unregister("arrow_rows")
    frame = duckdb.table("rows")
    sums = ", ".join([f"sum({name}) as {name}" for name in NAMES] + [f"sum({a} * {b}) as {a}{b}" for a, b in PAIRS])
    return frame, lambda: frame.aggregate(f"id, count(*) as len, {sums}", "id").to_arrow_table()


def in_pandas(table: pa.Table) -> tuple[Any, Callable[[], Any]]:
    frame = table.to_pandas()

    def bare() -> Any:
        products = {a + b: frame[a] * frame[b] for a, b in PAIRS}
        grouped = frame.assign(len=1.0, **products).groupby("id", sort=False).sum()
        return pa.Table.from_pandas(grouped.reset_index())

    return frame, bare


ENGINES = {"polars": in_polars, "polars eager": in_polars_eager, "duckdb": in_duckdb, "pandas": in_pandas}


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = action()
    return time.perf_counter() - start, found


def same_sums(moments: jm.moments.Moments, bare: pa.Table) -> float:
    """Largest difference, relative to the largest sum of its kind."""
    (pattern,) = moments.rescaled(np.zeros(len(NAMES)), np.ones(len(NAMES))).patterns
    order = np.argsort(bare["id"].to_numpy())
    at = dict(zip(["len", *NAMES, *(a + b for a, b in PAIRS)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], strict=True))
    worst = 0.0
    for name, row in at.items():
        expected = bare[name].to_numpy()[order]
        worst = max(worst, float(np.max(np.abs(pattern.products[row] - expected)) / np.max(np.abs(expected))))
    return worst


def compare(engine: str, rows: int, clusters: int, order: str, repeats: int) -> None:
    table = pa.concat_tables(make_parts(rows, clusters, order))
    frame, bare = ENGINES[engine](table)
    del table
    times: list[tuple[float, float]] = []
    difference = np.nan
    for _ in range(repeats):
        alone, sums = seconds(bare)
        reading, moments = seconds(lambda: read(frame, SYSTEM))
        times.append((alone, reading))
        difference = same_sums(moments, sums)
    alone, reading = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(one / other for one, other in times)
    print(
        f"  {engine:12}  bare {alone:6.2f} s   jaxmed {reading:6.2f} s   {ratio:4.2f} of the bare speed"
        f"   largest difference {difference:.0e}"
    )


def peak() -> float:
    """GiB that this process has held at most (Linux: not what its parent held, which ``ru_maxrss`` remembers)."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def read_file(path: Path) -> None:
    before = peak()
    took, moments = seconds(lambda: read(path, SYSTEM))
    total = sum(pattern.products[0].sum() for pattern in moments.patterns)
    print(
        f"  {path.name}: {path.stat().st_size / 2**30:.1f} GiB, {total:,.0f} rows, {moments.n_clusters:,} clusters: "
        f"{took:.1f} s, peak memory {peak():.2f} GiB ({before:.2f} before reading)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=50e6)
    parser.add_argument("--clusters", type=float, default=250e3)
    parser.add_argument("--order", choices=["sorted", "shuffled"], default="sorted")
    parser.add_argument("--engines", default=",".join(name for name in ENGINES if name != "pandas"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--file-rows", type=float, default=0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_file(options.read)
        return
    rows, clusters = int(options.rows), int(options.clusters)
    engines = [name.strip() for name in options.engines.split(",") if name.strip()]
    if engines:
        print(f"{rows:,} rows, {clusters:,} clusters, {options.order}; {options.repeats} repeats", flush=True)
    for engine in engines:
        compare(engine, rows, clusters, options.order, options.repeats)
    if options.file_rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            parts = make_parts(int(options.file_rows), clusters, options.order)
            first = next(parts)
            with parquet.ParquetWriter(path, first.schema) as writer:
                writer.write_table(first)
                for part in parts:
                    writer.write_table(part)
            subprocess.run([sys.executable, __file__, "--read", str(path)], check=True)


if __name__ == "__main__":
    main()
