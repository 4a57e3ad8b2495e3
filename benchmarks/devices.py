"""Claim: a fit in shards over all devices equals the fit on one device to 1e-10, and is faster.

    python benchmarks/devices.py [CLUSTERS]
    XLA_FLAGS=--xla_force_host_platform_device_count=4 python benchmarks/devices.py      # without GPUs: four on the CPU

Times the whole fit from moments, then value, gradient and Hessian over 1, 2, ... of the local devices (GPUs where JAX
sees them), with the largest difference from one device. Last, what blocks in single precision with sums in double would
do: how far, in standard errors, the Newton step at the optimum would move the variances. That must stay far below one
standard error before single precision is worth its speed; jaxmed itself computes in double precision throughout.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

import jaxmed as jm
from jaxmed._data.design import make_design
from jaxmed._data.totals import add_up
from jaxmed._likelihood import shards
from jaxmed._likelihood.layout import count_rows, make_layout, root_and_precision


def median(action: Callable[[], object], repeats: int = 7) -> tuple[float, float]:
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
    clusters = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
    moments = jm.read_moments(jm.simulate(clusters=clusters, size=8, seed=1), spec)
    first, again = median(lambda: jm.fit(moments, spec, engine="jax"), 3)
    fit = jm.fit(moments, spec, engine="jax")
    devices = jax.local_devices()
    print(f"{clusters} clusters, {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    print(f"fit from moments: {first:.2f} s with compilation, {again:.3f} s again; log likelihood {fit.loglik:.6f}")

    design = make_design(fit.system, moments)
    layout = make_layout(design, True)
    counts = count_rows(layout, design.system, add_up(design))
    with jax.enable_x64(True):
        point = [np.asarray(part) for part in root_and_precision(layout, jax.numpy.asarray(fit.working.theta))]
        reference = None
        for count in sorted({1, 2, 4, len(devices)}):
            if count > len(devices):
                continue
            parts = shards.make_shards(design.table, counts, devices=devices[:count])
            first, again = median(lambda: shards.evaluate_shards(layout, *point, parts))  # noqa: B023
            found = shards.evaluate_shards(layout, *point, parts)
            reference = reference or found
            worst = np.max(np.abs(found.hessian - reference.hessian)) / np.max(np.abs(reference.hessian))
            assert worst < 1e-10, worst
            print(
                f"{count} device(s): {first:.2f} s first, {1e3 * again:.2f} ms again, "
                f"{1e6 * again / clusters:.3f} us a cluster; Hessian differs by {worst:.0e}"
            )

        parts = shards.make_shards(design.table, counts)
        single = shards.Shards(
            tuple(part._replace(table=part.table.astype(np.float32)) for part in parts.parts), parts.n_rows
        )
        low = [part.astype(np.float32) for part in point]
        _, again = median(lambda: shards.evaluate_shards(layout, *low, single))
        found = shards.evaluate_shards(layout, *low, single)
        slope = np.linalg.inv(reference.hessian)
        off = slope @ (found.gradient - reference.gradient) / np.sqrt(np.diag(slope))
        print(
            f"single precision: {1e6 * again / clusters:.3f} us a cluster; f differs by "
            f"{found.value - reference.value:.1e}, variances would move by {np.max(np.abs(off)):.1e} standard errors"
        )


if __name__ == "__main__":
    main()
