"""Claim: a warm refit of the worked example takes under 10 ms; an evaluation costs about a microsecond a cluster.

    python benchmarks/refit.py

Prints compile and run time apart, medians, and the log likelihood beside the seconds. Uses the worked example's data
where JAXMED_DATA or the download cache has it, else the bundled example.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

import jaxmed as jm
from jaxmed import derivatives, likelihood
from jaxmed.design import make_design
from jaxmed.params import count_rows, make_layout, root_and_precision


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
    first, frame = seconds(lambda: jm.fit(data, spec), 30)
    fit = jm.fit(data, spec)
    _, moments = seconds(lambda: jm.fit(fit.moments, spec), 30)
    print(f"{name}: REML log likelihood {fit.loglik:.9f}, status {fit.status}, decrement {fit.decrement:.1e}")
    print(f"  first fit (compile and run)   {first:8.3f} s")
    print(f"  warm refit from a data frame  {1e3 * frame:8.2f} ms")
    print(f"  warm refit from moments       {1e3 * moments:8.2f} ms")

    # Maximum likelihood, whose optimum stays where it is when the clusters are repeated.
    fit = jm.fit(fit.moments, spec, reml=False)
    design = make_design(fit.system, fit.moments)
    layout = make_layout(design, False)
    for clusters in (100, 10_000, 100_000):
        copies = clusters // fit.n_clusters
        counts = tuple(copies * rows for rows in count_rows(layout, design))
        tiled = likelihood.make_data(np.tile(design.table, copies), counts)
        with jax.enable_x64(True):
            evaluate = jax.jit(functools.partial(derivatives.evaluate, layout))
            root, tau = root_and_precision(layout, jax.numpy.asarray(fit.theta))
            _, run = seconds(lambda: jax.block_until_ready(evaluate(root, tau, tiled)), 9)  # noqa: B023
            worst = float(np.max(np.abs(evaluate(root, tau, tiled).gradient))) / clusters
        print(
            f"  value, gradient and Hessian at {clusters:>7} clusters: {1e3 * run:8.2f} ms, "
            f"{1e6 * run / clusters:.2f} us a cluster (largest gradient per cluster {worst:.0e})"
        )


if __name__ == "__main__":
    main()
