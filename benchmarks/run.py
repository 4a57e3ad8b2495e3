"""Claim: a full REML fit is 50 times faster than the fastest peer's at 100 clusters of 8, and 300 times from 10,000.

    python benchmarks/run.py [--sizes 100 1000 ...] [--peers jaxmed-moments lme4 ...] [--limit SECONDS] [--repeats N]
                             [--results DIR] [--resume] [--table-only]

Five random effects, unstructured G, a residual variance per outcome. Every peer reads the same simulated data in a
fresh process of its own (benchmarks/peers/, a file per program). Timed is the fit call alone, with the standard errors
it computes: the median of as many fits as go into 30 seconds, at most --repeats. jaxmed's import and its first fit,
which compiles, stand apart. Peak memory is the process's, with its libraries and the data it read.

Programs are used at the fastest of their settings that reach the optimum, lme4 also as it comes. Threads are what each
takes by itself: jaxmed all cores, R's programs one, statsmodels its BLAS's.

All log likelihoods are on one scale, constants included. A peer more than 0.01 below jaxmed is reported as stopped
short: optimisers end by rules of their own, and a hundredth moves no estimate by more than 0.14 standard errors. A peer
more than 0.001 above jaxmed fails the run, for then jaxmed is not at the maximum; what the convergence
criterion leaves
(1e-10) and rounding (1e-5 at a million clusters: 2^-53 of 2e7, times the root of 1.6e7 terms) are far smaller.

A fit that is predicted to take longer than --limit (growth as between the two last sizes, at least linear) or most of
the memory is not run, and a process is ended after 1.5 times the limit; both are recorded. Results are written after
every process, so that Ctrl-C keeps what is done. What is asked for again replaces the old results; with --resume only
what is not there yet is run. --table-only remakes table and plot.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import machine, table

HERE = Path(__file__).parent
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
SEED = 1
SPEND = 30.0  # seconds of repeated fits
MEMORY = 0.8  # of the machine's, that a process may be predicted to take
ADAPTERS = {  # peer -> adapter, variant, what it needs
    "jaxmed-moments": ("fit_jaxmed.py", "moments", ()),
    "jaxmed-frame": ("fit_jaxmed.py", "frame", ()),
    "lme4-no-derivatives": ("fit_lme4.R", "no-derivatives", ("R", "jsonlite", "lme4")),
    "lme4": ("fit_lme4.R", "default", ("R", "jsonlite", "lme4")),
    "glmmTMB": ("fit_glmmTMB.R", "default", ("R", "jsonlite", "glmmTMB")),
    "nlme": ("fit_nlme.R", "default", ("R", "jsonlite", "nlme")),
    "mixedlm": ("fit_mixedlm.py", "default", ("mixedlm",)),
    "statsmodels": ("fit_statsmodels.py", "default", ("statsmodels",)),
}

Record = dict[str, Any]


def predicted(records: list[Record], peer: str, clusters: int) -> float | None:
    """Seconds of a fit from those at smaller sizes: growth as between the last two, at least linear."""
    known = [r for r in records if r["peer"] == peer and r["clusters"] < clusters and "failed" not in r]
    points = [(r["clusters"], r.get("seconds_predicted") or statistics.median(r["seconds_fit"])) for r in known]
    if not points:
        return None
    (before, quick), (size, seconds) = sorted([(1, 0.0), *points])[-2:]
    power = math.log(seconds / quick) / math.log(size / before) if quick else 1.0
    return seconds * (clusters / size) ** max(power, 1.0)


def predicted_gib(records: list[Record], peer: str, clusters: int) -> float:
    """Peak memory of a process, on the straight line through those at the two last sizes; 0 if there are no two."""
    points = sorted(
        (r["clusters"], r["peak_rss_mib"] / 1024) for r in records if r["peer"] == peer and "seconds_fit" in r
    )
    points = [point for point in points if point[0] < clusters]
    if len(points) < 2:
        return 0.0
    (before, less), (size, more) = points[-2:]
    return more + (more - less) * (clusters - size) / (size - before)


def measure(peer: str, data: Path, repeats: int, limit: float) -> Record:
    """Run an adapter in a process of its own, for 1.5 times the limit at the most; its line, or what went wrong."""
    adapter, variant, _ = ADAPTERS[peer]
    program = [sys.executable] if adapter.endswith(".py") else ["Rscript"]
    command = [*program, str(HERE / "peers" / adapter), str(data), variant, str(repeats), str(min(SPEND, limit))]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    allowed = 1.5 * limit
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        killed, peak, code = wait(subprocess.Popen(command, stdout=out, stderr=err, env=environment), allowed)
        out.seek(0)
        err.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith("{")]
        said = err.read().strip().splitlines()
    if killed:
        return {"killed": f"after {allowed:.0f} s", "seconds_predicted": allowed, "peak_rss_mib": peak}
    if code or not lines:
        last = said[-1].replace(str(data), "DATA") if said else "it said nothing"
        return {"failed": f"exit code {code}: {last}", "peak_rss_mib": peak}
    return json.loads(lines[-1]) | {"peak_rss_mib": peak}


def wait(child: subprocess.Popen[str], allowed: float) -> tuple[bool, int, int]:
    """Wait for a process: whether it was ended for its time, its own peak memory (MiB), its exit code."""
    start, killed = time.monotonic(), False
    try:
        while not (waited := os.wait4(child.pid, os.WNOHANG))[0]:  # Popen.wait would drop the usage
            if not killed and time.monotonic() - start > allowed:
                child.kill()
                killed = True
            time.sleep(0.02)
    except KeyboardInterrupt:
        child.kill()
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(waited[1])
    return killed, round(waited[2].ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)), child.returncode


def shown(record: Record) -> str:
    """One line on a finished pair."""
    name = f"{record['clusters']:>9,}  {record['peer']:<20}"
    for word in ("skipped", "killed", "failed"):
        if word in record:
            return f"{name} {word}: {record[word]}"
    seconds = record["seconds_fit"]
    first = f", first {record['seconds_first']:.2f} s" if "seconds_first" in record else ""
    return (
        f"{name} {statistics.median(seconds):10.4f} s (of {len(seconds)}{first}), "
        f"log likelihood {record['loglik']:.4f}, {record['peak_rss_mib']} MiB"
    )


def save(results: Record, file: Path) -> None:
    """Write the results, all or nothing."""
    results["records"].sort(key=lambda r: (r["clusters"], list(ADAPTERS).index(r["peer"])))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(file)


def settled(record: Record, limit: float) -> bool:
    """Whether --resume leaves a record as it is: measured, or ended at a limit as high as this one."""
    return "seconds_fit" in record or ("killed" in record and record["seconds_predicted"] >= 1.5 * limit)


def run(arguments: argparse.Namespace, peers: list[str], results: Record, file: Path) -> None:
    """Measure every pair that is asked for, from the smallest size up."""
    records: list[Record] = results["records"]
    for clusters in sorted(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.csv"
            for peer in peers:
                old = [r for r in records if (r["peer"], r["clusters"]) == (peer, clusters)]
                if arguments.resume and old and settled(old[0], arguments.limit):
                    continue
                record: Record = {"peer": peer, "clusters": clusters, "date": datetime.date.today().isoformat()}
                expected, gib = predicted(records, peer, clusters), predicted_gib(records, peer, clusters)
                if expected is not None and expected > arguments.limit:
                    record |= {"skipped": f"predicted {expected:,.0f} s", "seconds_predicted": expected}
                elif expected is not None and gib > MEMORY * results["machine"]["memory_gib"]:
                    record |= {"skipped": f"predicted {gib:.0f} GiB", "seconds_predicted": expected}
                else:
                    if not data.exists():
                        writer = [sys.executable, str(HERE / "peers" / "data.py"), str(data), str(clusters), str(SEED)]
                        subprocess.run(writer, check=True)
                    record |= measure(peer, data, arguments.repeats, arguments.limit)
                records[:] = [r for r in records if r not in old] + [record]
                save(results, file)
                print(shown(record), flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="CLUSTERS")
    parser.add_argument("--peers", nargs="+", default=list(ADAPTERS), choices=ADAPTERS, metavar="PEER")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one fit (600)")
    parser.add_argument("--repeats", type=int, default=9, help="most fits of one process (9)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder (benchmarks/results)")
    parser.add_argument("--resume", action="store_true", help="keep what the folder has, measure the rest")
    parser.add_argument("--table-only", action="store_true", help="remake table and plot")
    arguments = parser.parse_args()
    if min(*arguments.sizes, arguments.repeats) < 1 or arguments.limit <= 0:
        parser.error("sizes and repeats are whole numbers of at least 1, and the limit is a positive number of seconds")
    return arguments


def runnable(peers: list[str], there: dict[str, str]) -> list[str]:
    """The peers whose programs are there; says what is missing for the others."""
    missing = {peer: [need for need in ADAPTERS[peer][2] if need not in there] for peer in peers}
    for package in dict.fromkeys(need for needs in missing.values() for need in needs):
        print(f"missing: {machine.remedy(package)}")
    print(f"peers: {', '.join(peer for peer in peers if not missing[peer])}")
    return [peer for peer in peers if not missing[peer]]


def main() -> None:
    arguments = options()
    file = arguments.results / "peers.json"
    results = json.loads(file.read_text()) if file.is_file() else {"records": []}
    interrupted = False
    if not arguments.table_only:
        here, old = machine.describe(), results.get("machine")
        if old and any(old[name] != here[name] for name in ("processor", "cores")):
            raise SystemExit(f"{file.name} is of another machine ({old['processor']}); name another --results")
        results = {"machine": here, "seed": SEED, "size": 8, "limit": arguments.limit, "records": results["records"]}
        arguments.results.mkdir(parents=True, exist_ok=True)
        try:
            run(arguments, runnable(arguments.peers, here["versions"]), results, file)
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted; what is done is kept, and --resume goes on from there", file=sys.stderr)
    if not results["records"]:
        raise SystemExit("there are no results yet")
    text, errors = table.write(results, arguments.results)
    print(text)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    raise SystemExit(130 if interrupted else 1 if errors else 0)


if __name__ == "__main__":
    main()
