"""Claim: a refit of the worked example takes 15 ms by NumPy, and 3 ms by a program that JAX compiles in seconds.

    python benchmarks/refit.py

Prints the first fit apart, medians from moments and from a data frame, and the log likelihood beside the
seconds. Uses the worked example's data where JAXMED_DATA or the download cache has it, else the bundled example.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

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
    for engine in ("numpy", "jax"):
        fit = jm.fit(data, spec)
        first, frame = seconds(partial(jm.fit, data, spec, engine=engine), 100)
        _, moments = seconds(partial(jm.fit, fit.moments, spec, engine=engine), 100)
        again = jm.fit(fit.moments, spec, engine=engine)
        print(f"{name}, {engine}: REML log likelihood {again.loglik:.9f}, decrement {again.decrement:.1e}")
        print(f"  first fit                     {first:8.3f} s")
        print(f"  warm refit from a data frame  {1e3 * frame:8.2f} ms")
        print(f"  warm refit from moments       {1e3 * moments:8.2f} ms")


if __name__ == "__main__":
    main()
