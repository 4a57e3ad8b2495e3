"""Claim: at least 2,000 refits a second for 100 clusters of 8 on 2 cores, and 20 a second for 10,000 clusters.

    python benchmarks/bootstrap.py [--no-peers]

Five random effects, unstructured G, REML, methods `parametric` and `cluster`, each refit converged as a fit
does; the rate does not depend on the rows of a cluster (8 against 8,000), and is at least 500 times that of
lme4::bootMer and of glmmTMB's simulate and refit on the same model and data in the same run.

A call of jm.bootstrap is timed whole. The first one compiles, unless a data set of the same shape came before; the
median of the following ones, each with a seed of its own, is the rate. Beside it: the cores it got (CPU seconds by the
second: fewer than there are on a machine that others use), the share that converged, the mean number of Newton steps,
the largest gradient norm, and the standard deviation of the indirect effect over all replicates, also as a share of the
joint standard error of the fit. `residual` and `two_stage` make their data sets from rows and carry no claim.

The peers run in R, with two forked workers; timed is the bootstrap alone, without the fit it starts from. They do not
bootstrap the mediation model: random effects and residuals of the stacked response are drawn anew, but the old m stays
y's regressor. bootMer runs without lme4's convergence checks by derivatives and glmmTMB without standard errors, as is
fastest. lme4's refit (1.1-31) counts one fixed effect in REML where there are five: its estimates are slightly off.
Where lmer fits each simulated response anew it is faster than bootMer; that stands beside it, outside the claim.

Uses the worked example's data where JAXMED_DATA or the download cache has it, else the bundled example. A run with
all peers writes results/bootstrap.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peers import machine

import jaxmed as jm

HERE = Path(__file__).parent
SPEC = jm.Mediation(x="x", m="m", y="y", cluster="id")
RATE, RATE_MANY, TIMES, ALIKE = 2000, 20, 500, 0.9  # what is claimed
PEERS = {  # peer -> adapter, variant, refits of a round, whether the claim names it
    "lme4::bootMer": ("boot_lme4.R", "bootMer", 10, True),
    "glmmTMB": ("boot_glmmTMB.R", "default", 8, True),
    "lme4, fitted anew": ("boot_lme4.R", "lmer", 20, False),
}
ROUNDS = 3

Record = dict[str, Any]


def measure(name: str, data: pd.DataFrame, methods: dict[str, int], repeats: int) -> list[Record]:
    """Time the bootstrap of a fit by some methods, method -> replicates of a call."""
    fit = jm.fit(data, SPEC)
    error = float(fit.effects().loc["indirect", "se"])
    records = []
    for method, n in methods.items():
        seconds, busy, tables = [], [], []
        for seed in range(repeats + 1):
            start, cpu = time.perf_counter(), time.process_time()
            replicates = jm.bootstrap(fit, n, method, seed=seed, data=data)
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - cpu)
            tables.append(replicates.table)
        table = pd.concat(tables)
        converged = table[table["status"] == 0]
        record = {
            "data": name,
            "method": method,
            "refits": n,
            "seconds_first": seconds[0],
            "seconds": seconds[1:],
            "cores": sum(busy[1:]) / sum(seconds[1:]),
            "rate": n / statistics.median(seconds[1:]),
            "converged": len(converged) / len(table),
            "n_iter": float(table["n_iter"].mean()),
            "grad_norm": float(table["grad_norm"].max()),
            "se": error,
            "sd": float(converged["indirect"].std()),
            "replicates": len(table),
            "loglik": fit.loglik,
        }
        records.append(record)
        print(
            f"  {name:<21}{method:<12}{seconds[0]:8.2f} s{statistics.median(seconds[1:]):8.2f} s{n:6} "
            f"{record['rate']:9,.1f}/s{record['cores']:6.2f}{record['converged']:10.2%}"
            f"{record['n_iter']:6.1f}{record['grad_norm']:9.0e}{record['sd']:9.4f}{record['sd'] / error:7.3f}",
            flush=True,
        )
    return records


def measure_peer(peer: str, data: Path) -> Record:
    """Run a peer's bootstrap in a process of its own; its line with the rate, or what went wrong."""
    adapter, variant, refits, _ = PEERS[peer]
    command = ["Rscript", str(HERE / "peers" / adapter), str(data), variant, str(refits), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        print(f"  {peer:<20} failed: {said[-1]}", flush=True)
        return {"peer": peer, "failed": said[-1].replace(str(data), "DATA")}
    record: Record = {"peer": peer} | json.loads(lines[-1])
    record["rate"] = record["refits"] / statistics.median(record["seconds"])
    record["sd"] = float(np.std(record["indirect"], ddof=1))
    print(
        f"  {peer:<20}{record['version']:<8}{statistics.median(record['seconds']):8.2f} s{record['refits']:6} "
        f"{record['rate']:9.2f}/s{record['converged']:10.1%}{record['sd']:9.4f} of {len(record['indirect'])}"
        f"{record['loglik']:14.6f}",
        flush=True,
    )
    return record


def judged(what: str, found: float, claimed: float) -> Record:
    """A claim beside what was found, printed."""
    verdict = "holds" if found >= claimed else f"falls short, by {1 - found / claimed:.0%}"
    print(f"  {what:<62}{found:9,.2f} of {claimed:8,.1f}: {verdict}")
    return {"claim": what, "found": found, "claimed": claimed, "holds": found >= claimed}


def claims(records: list[Record], peers: list[Record]) -> list[Record]:
    """What is claimed, against what was measured."""
    rates = {(record["data"], record["method"]): record["rate"] for record in records}
    worked = records[0]["data"]
    found = []
    for method in ("parametric", "cluster"):
        found.append(judged(f"{method}, 100 clusters: refits a second", rates[worked, method], RATE))
        found.append(judged(f"{method}, 10,000 clusters: refits a second", rates["10,000 x 8", method], RATE_MANY))
        alike = rates["100 x 8,000", method] / rates["100 x 8", method]
        found.append(judged(f"{method}: rate at 8,000 rows a cluster over that at 8", alike, ALIKE))
    found.append(judged("share converged, least of all", min(record["converged"] for record in records), 0.999))
    for record in peers:
        if "failed" in record:
            continue
        peer, times = record["peer"], rates[worked, "parametric"] / record["rate"]
        if PEERS[peer][-1]:
            found.append(judged(f"parametric: times the rate of {peer}", times, TIMES))
        else:
            print(f"  {f'parametric: times the rate of {peer}':<62}{times:9,.2f}, not claimed")
    return found


def runnable() -> list[str]:
    """The peers that R has all packages of; says what is missing for the others."""
    there = machine.r_versions()
    needs = {peer: ("R", "jsonlite", "glmmTMB" if "glmmTMB" in peer else "lme4") for peer in PEERS}
    for package in dict.fromkeys(need for names in needs.values() for need in names):
        if package not in there:
            print(f"missing: {machine.remedy(package)}")
    return [peer for peer in PEERS if all(need in there for need in needs[peer])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peers", action="store_true", help="jaxmed alone; writes no results")
    arguments = parser.parse_args()
    wanted = [] if arguments.no_peers else runnable()
    try:
        data, name = jm.datasets.load_bpg2006(download=False), "bpg2006"
    except jm.DataError:
        data, name = jm.datasets.load_example(), "example"
    before = os.getloadavg()[0]
    print(f"load {before:.1f} before; {name} has 100 clusters of 8, the others are simulated")
    print(
        f"  {'data':<21}{'method':<12}{'first':>10}{'median':>10}{'n':>6}{'refits':>11}{'cores':>6}{'converged':>10}"
        f"{'steps':>6}{'gradient':>9}{'sd':>9}{'sd/se':>7}"
    )
    records = measure(name, data, {"parametric": 4096, "cluster": 4096, "residual": 1024, "two_stage": 1024}, 5)
    pair = {"parametric": 4096, "cluster": 4096}  # 16 batches of 256
    for size in (8, 8000):
        records += measure(f"100 x {size:,}", jm.simulate(clusters=100, size=size, seed=1), pair, 5)
    pair = {"parametric": 52, "cluster": 52}  # 2 batches of 26
    records += measure("10,000 x 8", jm.simulate(clusters=10_000, size=8, seed=1), pair, 3)
    peers = []
    if wanted:
        print(
            f"  {'peer':<20}{'version':<8}{'median':>10}{'n':>6}{'refits':>11}{'converged':>10}{'sd':>9}"
            f"{'log likelihood':>20} (jaxmed {records[0]['loglik']:.6f})"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.csv"
        data[["id", "x", "m", "y"]].to_csv(file, index=False)
        peers = [measure_peer(peer, file) for peer in wanted]
    found = claims(records, peers)
    after = os.getloadavg()[0]
    print(f"load {after:.1f} after")
    if len(peers) == len(PEERS):
        results = {
            "machine": machine.describe(),
            "date": datetime.date.today().isoformat(),
            "load": [before, after],
            "records": records,
            "peers": peers,
            "claims": found,
        }
        (HERE / "results" / "bootstrap.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
