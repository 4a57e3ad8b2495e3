"""Claim: a warm refit of the worked example takes 3 ms from moments and under 12 ms from a data frame.

    python benchmarks/refit.py

Prints compile and run time apart, medians, and the log likelihood beside the seconds. Uses the worked example's data
where JAXMED_DATA or the download cache has it, else the bundled example.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jaxmed as jm


def seconds(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Time of the first call, and the median of the following ones."""
    start = time.perf_counter()
    action()
    first = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return first, statistics.median(times)


def main() -> None:
    try:
        data, name = jm.datasets.load_bpg2006(download=False), "bpg2006"
    except jm.DataError:
        data, name = jm.datasets.load_example(), "example"
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
    first, frame = seconds(lambda: jm.fit(data, spec), 100)
    fit = jm.fit(data, spec)
    _, moments = seconds(lambda: jm.fit(fit.moments, spec), 100)
    print(f"{name}: REML log likelihood {fit.loglik:.9f}, status {fit.status}, decrement {fit.decrement:.1e}")
    print(f"  first fit (compile and run)   {first:8.3f} s")
    print(f"  warm refit from a data frame  {1e3 * frame:8.2f} ms")
    print(f"  warm refit from moments       {1e3 * moments:8.2f} ms")


if __name__ == "__main__":
    main()
