"""Claim: which intervals to trust, and how many clusters they need, at the population of Bauer, Preacher & Gil (2006).

    python benchmarks/study.py OUT [--replications 2000] [--replicates 500] [--json benchmarks/results/study.json]

Four studies by ``jaxmed.power``, each in a folder of OUT from which the script goes on after an interruption:

grid        25, 50, 100, 200 clusters of 4, 8, 16, 32 rows, normal and skewed random effects: delta intervals with the
            joint standard errors and with those of Bauer et al., and Monte Carlo intervals
bootstrap   25 and 100 clusters of 8, the same two distributions: percentile, basic, BC, BCa and studentized intervals
            of the parametric bootstrap
robust      the same designs: delta intervals with cluster-robust standard errors
cluster     the same for the bootstrap of clusters: percentile, BC and studentized intervals; a quarter of the data sets

Prints the seconds of each and the table of the indirect effect and c', and writes all rows. The Monte Carlo error of a
coverage of .95 from 2,000 data sets is .005.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import pandas as pd

import jaxmed as jm

SEED = 2006
SHAPES = ["normal", "skewed"]


def run(out: Path, replications: int, replicates: int) -> dict[str, jm.Power]:
    """All studies."""
    common = {"seed": SEED, "replications": replications}
    grid = {"random_effects": SHAPES, "clusters": [25, 50, 100, 200], "size": [4, 8, 16, 32]}
    few = {"random_effects": SHAPES, "clusters": [25, 100], "size": [8]}
    work = {
        "grid": lambda folder: jm.power(None, grid, intervals=["delta", "bauer", "monte_carlo"], out=folder, **common),
        "bootstrap": lambda folder: jm.power(
            None,
            few,
            intervals=["percentile", "basic", "bc", "bca", "studentized"],
            replicates=replicates,
            out=folder,
            **common,
        ),
        "robust": lambda folder: jm.power(None, few, intervals="robust", out=folder, **common),
        "cluster": lambda folder: jm.power(
            None,
            few,
            intervals=["percentile", "bc", "studentized"],
            replicates=replicates,
            method="cluster",
            out=folder,
            seed=SEED,
            replications=replications // 4,
        ),
    }
    found = {}
    for name, study in work.items():
        start = time.perf_counter()
        found[name] = study(out / name)
        print(f"{name}: {len(found[name].replications)} data sets, {time.perf_counter() - start:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = run(asked.out, asked.replications, asked.replicates)
    table = pd.concat([study.table.assign(study=name) for name, study in found.items()], ignore_index=True)
    table["random_effects"] = table["random_effects"].fillna("normal")
    shown = table[table["effect"].isin(["c_prime", "indirect"])]
    columns = [
        "study",
        "random_effects",
        "clusters",
        "size",
        "effect",
        "interval",
        "se_bias",
        "coverage",
        "too_low",
        "too_high",
    ]
    print(shown[[*columns, "width", "power", "converged", "singular"]].round(3).to_string(index=False))
    if asked.json:
        rows = json.loads(table.to_json(orient="records", double_precision=6))
        plain = {"jax": jax.__version__, "seed": SEED, "replications": asked.replications, "rows": rows}
        plain["replicates"] = asked.replicates
        asked.json.write_text(json.dumps(plain, indent=None).replace("}, {", "},\n{") + "\n")


if __name__ == "__main__":
    main()
