"""Claim: 16 designs of 2,000 data sets, each fitted with both kinds of standard errors, in minutes on two cores.

    python benchmarks/power.py [--replications 2000] [--json benchmarks/results/power.json]

Bauer et al.'s population, 25 to 200 clusters of 4 to 32 rows. Prints seconds and data sets a second by number of
clusters (what still compiles then included; a first run of 8 data sets measures the rest of it), and checks the answer:
at 100 clusters of 8 the mean joint standard error of c' is within 4% of the standard deviation of the estimates, and
that of Bauer et al. about 10% below it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax

import jaxmed as jm

CLUSTERS, SIZES = (25, 50, 100, 200), (4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    for clusters in CLUSTERS:
        start = time.perf_counter()
        jm.power(None, {"clusters": clusters, "size": 8}, 8, seed=1)
        compiled = time.perf_counter()
        study = jm.power(None, {"clusters": clusters, "size": list(SIZES)}, asked.replications, seed=1)
        seconds = time.perf_counter() - compiled
        rate = len(study.replications) / seconds
        rows.append({"clusters": clusters, "compile": compiled - start, "seconds": seconds, "rate": rate})
        print(f"{clusters} clusters: compile {compiled - start:.1f} s, {seconds:.1f} s, {rate:.0f} data sets a second")
        if clusters == 100:
            table = study.table.query("size == 8 and effect == 'c_prime'").set_index("interval")
            bias, error = table["se_bias"], table["se_bias_mcse"]
            print(f"  c' at 100 x 8: {bias.round(4).to_dict()}, Monte Carlo error {error.iloc[0]:.4f}")
            print(f"  coverage {table['coverage'].round(4).to_dict()}")
            assert abs(bias["delta"]) < 0.04
            assert abs(bias["bauer"] + 0.10) < 0.04
    total = sum(row["compile"] + row["seconds"] for row in rows)
    print(f"in all {total:.0f} s for {len(CLUSTERS) * len(SIZES)} designs of {asked.replications}")
    if asked.json:
        plain = {"jax": jax.__version__, "replications": asked.replications, "total": total, "rows": rows}
        asked.json.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
