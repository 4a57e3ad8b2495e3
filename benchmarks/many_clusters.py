"""Claim: a million clusters of 8 are fitted in 5 s from moments, with at most 1 GiB beyond them; ten million fit too.

    python benchmarks/many_clusters.py [CLUSTERS]

REML with all standard errors. Prints the seconds of each part, the peak memory and the error of the indirect effect in
its standard errors. Above a million clusters the moments of a million are repeated.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import jaxmed as jm
from jaxmed._data.moments import Moments

MILLION = 1_000_000


def memory(name: str) -> float:
    """GiB: VmRSS now, VmHWM at the most so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def repeated(moments: Moments, clusters: int) -> Moments:
    """The moments of a million clusters as those of more."""
    copies = clusters // moments.n_clusters
    patterns = tuple(replace(p, products=np.tile(p.products, copies)) for p in moments.patterns)
    labels = np.arange(moments.n_clusters * copies)
    rows = copies * moments.sample_summary.rows
    sample_summary = replace(
        moments.sample_summary, rows=rows, used=tuple(copies * used for used in moments.sample_summary.used)
    )
    return replace(moments, clusters=labels, patterns=patterns, sample_summary=sample_summary)


def main() -> None:
    clusters = int(sys.argv[1]) if len(sys.argv) > 1 else MILLION
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
    data = jm.simulate(clusters=min(clusters, MILLION), size=8, seed=1)
    start = time.perf_counter()
    moments = jm.read_moments(data, spec)
    read = time.perf_counter() - start
    if clusters > MILLION:
        moments = repeated(moments, clusters)
    del data
    jm.fit(jm.simulate(clusters=5000, size=8, seed=1), spec)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.moments"
        jm.save_moments(moments, path)
        size = path.stat().st_size / 2**30
        del moments
        start = time.perf_counter()
        moments = jm.load_moments(path)
        loaded = time.perf_counter() - start
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of all this
    before = memory("VmRSS")
    start = time.perf_counter()
    fit = jm.fit(moments, spec)
    fitted = time.perf_counter() - start
    peak = memory("VmHWM")
    start = time.perf_counter()
    jm.fit(moments, spec)
    again = time.perf_counter() - start
    start = time.perf_counter()
    table = fit.ranef()
    predicted = time.perf_counter() - start
    effects = fit.effects()
    copies = np.sqrt(max(1, clusters // MILLION))  # repeated clusters tell nothing new
    error = (effects.loc["indirect", "estimate"] - 0.473) / effects.loc["indirect", "se"] / copies
    assert fit.converged
    assert len(table) == clusters == fit.n_clusters
    print(
        f"{clusters} clusters of 8; indirect is {error:+.2f} standard errors from the truth; {fit.n_iter} Newton steps"
    )
    print(f"  reading (of up to a million)   {read:7.2f} s")
    print(f"  loading moments, {size:5.2f} GiB     {loaded:7.2f} s")
    print(f"  fit from moments, compiled     {fitted:7.2f} s, again {again:.2f} s")
    print(f"  memory: {before:.2f} GiB before, peak {peak:.2f} GiB: {peak - before:.2f} GiB beyond the moments")
    print(f"  predictions by cluster         {predicted:7.2f} s; peak {memory('VmHWM'):.2f} GiB")


if __name__ == "__main__":
    main()
