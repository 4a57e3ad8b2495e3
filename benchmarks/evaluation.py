"""Claim: value, gradient and Hessian cost at most 0.6 us a cluster at 100,000 clusters, and the same from 10^4 to 10^6.

    python benchmarks/evaluation.py

The 1-1-1 model with five random effects, float64, the clusters of a simulated sample repeated. Prints the cost on one
core and in shards on all cores, checks the Hessian against that of the sample, and sets the arithmetic (counted by the
compiler) and the bytes read beside the machine's own peaks, measured in the same run: a large matrix product, a large
copy.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

import jaxmed as jm
from jaxmed._data.design import make_design
from jaxmed._data.totals import add_up
from jaxmed._likelihood import derivatives, likelihood, shards
from jaxmed._likelihood.layout import count_rows, make_layout, root_and_precision


def median(action: Callable[[], object], repeats: int = 9) -> float:
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peaks() -> tuple[float, float]:
    """Floating-point operations a second of a product of two 3000 x 3000 matrices, bytes a second of a copy."""
    left = np.random.default_rng(1).normal(size=(3000, 3000))
    flops = 2 * 3000**3 / median(lambda: left @ left, 5)
    source = np.ones(1 << 26)
    target = np.empty_like(source)
    return flops, 2 * source.nbytes / median(lambda: np.copyto(target, source), 5)


def main() -> None:
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
    fit = jm.fit(jm.simulate(clusters=1000, size=8, seed=3), spec, reml=False)
    design = make_design(fit.system, fit.moments)
    totals = add_up(design)
    layout = make_layout(design, False)
    once = np.array(count_rows(layout, design.system, totals))
    with jax.enable_x64(True):
        point = [np.asarray(part) for part in root_and_precision(layout, jax.numpy.asarray(fit.working.theta))]
        evaluate = jax.jit(functools.partial(derivatives.evaluate, layout))
        expected = np.asarray(evaluate(*point, likelihood.make_data(design.table, tuple(once))).hessian)
        print(f"1-1-1, q = 5, ML; {len(os.sched_getaffinity(0))} cores; us a cluster (median of 9)")
        print(f"{'clusters':>10}  {'one core':>9}  {'shards, all cores':>17}  largest difference of the Hessian")
        costs = {}
        for clusters in (10_000, 100_000, 1_000_000):
            copies = clusters // 1000
            table = np.tile(design.table, copies)
            whole = jax.device_put(likelihood.make_data(table, tuple(copies * once)))
            parts = shards.make_shards(table, tuple(copies * once))
            one = median(lambda: jax.block_until_ready(evaluate(*point, whole)))  # noqa: B023
            every = median(lambda: shards.evaluate_shards(layout, *point, parts))  # noqa: B023
            found = [evaluate(*point, whole).hessian, shards.evaluate_shards(layout, *point, parts).hessian]
            worst = max(np.max(np.abs(np.asarray(h) / copies - expected)) for h in found) / np.max(np.abs(expected))
            assert worst < 1e-9, worst
            costs[clusters] = every / clusters
            print(
                f"{clusters:>10}  {1e6 * one / clusters:9.3f}  {1e6 * every / clusters:17.3f}  {worst:.0e} (relative)"
            )
        ends = costs[1_000_000] / costs[10_000]
        print(f"per cluster, 10^6 against 10^4: {ends:.2f}, against 10^5: {costs[1_000_000] / costs[100_000]:.2f}")

        # The compiler counts a loop's body once: with one block, that is the arithmetic of one block.
        block = likelihood.make_data(design.table[:, : likelihood.BLOCK], tuple(once))
        _, beta_cov, contrast = likelihood.profile(layout, *first_sums(layout, point, block), point[1], block.n_rows)
        passes = {
            "first pass": jax.jit(functools.partial(likelihood.marginal_blocks, layout)).lower(*point, block),
            "second pass": jax.jit(functools.partial(derivatives.second_pass, layout)).lower(
                *point, block, beta_cov, contrast
            ),
        }
        flops = {
            name: lowered.compile().cost_analysis()["flops"] / likelihood.BLOCK for name, lowered in passes.items()
        }
    most, copied = peaks()
    rate = sum(flops.values()) / costs[100_000]
    read = 2 * 8 * len(design.table) / costs[100_000]
    print(f"operations a cluster: {', '.join(f'{name} {count:.0f}' for name, count in flops.items())}")
    print(f"{rate / 1e9:.1f} Gflop/s reached, {most / 1e9:.0f} in a matrix product: {100 * rate / most:.0f}%")
    print(f"{read / 1e9:.2f} GB/s of moments read, {copied / 1e9:.1f} in a copy: {100 * read / copied:.1f}%")


def first_sums(layout: object, point: list[np.ndarray], block: likelihood.Data) -> tuple[jax.Array, jax.Array]:
    total, logdet = jax.jit(functools.partial(likelihood.marginal_blocks, layout))(*point, block)
    return total[0], logdet


if __name__ == "__main__":
    main()
