"""Claim: which intervals of the indirect effect cover the truth at the population of Bauer, Preacher & Gil (2006).

    python benchmarks/coverage.py [--clusters 25 100] [--size 8] [--samples 500] [--replicates 499]

For each number of clusters: data sets from the population, a REML fit with five random effects to each, and every
interval of 95%: delta (joint, bauer), Monte Carlo, and percentile, basic, bc, bca and studentized from one parametric
bootstrap. Prints the share of intervals that hold the truth, misses on either side, the median width, and the seconds.
The Monte Carlo error of a coverage of .95 from 500 data sets is .010. Data sets whose fit did not converge are counted
and left out.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import jaxmed as jm

TRUTH = pd.Series({"a": 0.6, "b": 0.6, "c_prime": 0.2, "cov_ab": 0.113, "indirect": 0.473, "total": 0.673})
SHOWN = ("c_prime", "indirect", "total")
KINDS = ("percentile", "basic", "bc", "bca", "studentized")


def intervals(fit: jm.Fit, replicates: int, seed: int) -> dict[str, pd.DataFrame]:
    """All intervals of one fit."""
    found = {
        "delta joint": fit.effects(),
        "delta bauer": fit.effects("bauer"),
        "monte_carlo": fit.intervals("monte_carlo", seed=seed),
    }
    drawn = jm.bootstrap(fit, replicates, seed=seed)
    return found | {kind: drawn.intervals(kind) for kind in KINDS}


def study(clusters: int, size: int, samples: int, replicates: int) -> tuple[pd.DataFrame, int]:
    """Coverage, misses and widths by interval and effect; the number of fits that did not converge."""
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
    low: dict[str, list[pd.Series]] = {}
    high: dict[str, list[pd.Series]] = {}
    failed = 0
    for seed in range(samples):
        fit = jm.fit(jm.simulate(clusters=clusters, size=size, seed=seed), spec)
        if not fit.converged:
            failed += 1
            continue
        for name, table in intervals(fit, replicates, seed).items():
            low.setdefault(name, []).append(table["ci_lower"])
            high.setdefault(name, []).append(table["ci_upper"])
    rows = []
    for name in low:
        lower, upper = (pd.DataFrame(part).reset_index(drop=True) for part in (low[name], high[name]))
        for effect in SHOWN:
            above, below = lower[effect] > TRUTH[effect], upper[effect] < TRUTH[effect]
            rows.append(
                {
                    "clusters": clusters,
                    "interval": name,
                    "effect": effect,
                    "coverage": float(1 - (above | below).mean()),
                    "too_high": float(above.mean()),
                    "too_low": float(below.mean()),
                    "width": float(np.median(upper[effect] - lower[effect])),
                }
            )
    return pd.DataFrame(rows), failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, nargs="+", default=[25, 100])
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--replicates", type=int, default=499)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", jm.ConvergenceWarning)
    parts = []
    for clusters in asked.clusters:
        start = time.perf_counter()
        table, failed = study(clusters, asked.size, asked.samples, asked.replicates)
        seconds = time.perf_counter() - start
        parts.append(table)
        print(
            f"{clusters} clusters of {asked.size}: {asked.samples} data sets, {failed} not converged, {seconds:.0f} s"
        )
        print(
            table.set_index(["interval", "effect"])[["coverage", "too_high", "too_low", "width"]].round(3).to_string()
        )
    if asked.json:
        asked.json.write_text(json.dumps(pd.concat(parts).to_dict("records"), indent=1) + "\n")


if __name__ == "__main__":
    main()
