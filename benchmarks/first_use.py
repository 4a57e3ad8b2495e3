"""Claim: nobody waits for a compiler. What a person meets first, in whole processes and in Python, beside peers.

    python benchmarks/first_use.py [--rounds 5]

Whole processes fit the model with five random effects to bundled-like data of 100, 1,000 and 10,000 clusters of 8 and
print it: median seconds, CPU seconds and peak memory, the programs in turn in every round. In Python: the first fit of
a process, first fits of other structures of models, and first bootstraps. The answer is checked beside the seconds:
log likelihoods of all programs must agree. Peers that are not installed are named and left out: R with nlme and lme4,
and mixedlm and statsmodels in this environment.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jaxmed as jm

PEERS = Path(__file__).parent / "peers"
JAXMED = [sys.executable, "-m", "jaxmed", "fit"]
ROLES = ["--x", "x", "--m", "m", "--y", "y", "--cluster", "id"]
SLOW = {("nlme", 10_000), ("lme4", 10_000), ("statsmodels", 1_000), ("statsmodels", 10_000)}  # a minute and more

IN_PYTHON = """
import time
start = time.perf_counter()
import jaxmed as jm
imported = time.perf_counter() - start
data, schools = jm.datasets.load_example(), jm.datasets.load_schools()
roles = dict(x="x", m="m", y="y", cluster="id")
pupil = dict(x="support", m="motivation", y="achievement", cluster="school")
import warnings
warnings.simplefilter("ignore")

def seconds(name, action):
    start = time.perf_counter()
    found = action()
    print(f"{name:44}{time.perf_counter() - start:8.3f}", flush=True)
    return found

print(f"{'import jaxmed':44}{imported:8.3f}")
fit = seconds("first fit, 100 clusters of 8", lambda: jm.fit(data, **roles))
seconds("effects", fit.effects)
seconds("the same from moments", lambda: jm.fit(fit.moments, fit.spec))
seconds("the same by ML", lambda: jm.fit(fit.moments, fit.spec, reml=False))
seconds("fewer random effects", lambda: jm.fit(data, **roles, random={"m": ["1"], "y": ["1", "m"]}))
seconds("diagonal covariance", lambda: jm.fit(data, **roles, covariance="diagonal"))
seconds("centred by cluster", lambda: jm.fit(data, **roles, center="cluster"))
seconds("moderated, 90 schools", lambda: jm.fit(schools, **pupil, moderators={"climate": ["a", "b"]}))
seconds("two mediators, 90 schools", lambda: jm.fit(schools, **pupil | {"m": ["motivation", "effort"]},
                                                    random={"achievement": ["1", "effort"]}))
seconds("profile intervals of all effects", lambda: fit.intervals("profile"))
seconds("exact influence, 100 refits", lambda: fit.influence(exact=True))
seconds("first bootstrap, 1,000 refits", lambda: jm.bootstrap(fit, 1000, seed=1))
seconds("next bootstrap, 1,000 refits", lambda: jm.bootstrap(fit, 1000, seed=2))
"""


def programs(path: Path) -> dict[str, list[str]]:
    """What there is to run, by name."""
    found = {"jaxmed": [*JAXMED, str(path), *ROLES]}
    if shutil.which("Rscript"):
        for name in ("nlme", "lme4"):
            found[name] = ["Rscript", str(PEERS / f"fit_{name}.R"), str(path), "no-derivatives", "1", "60"]
    for name in ("mixedlm", "statsmodels"):
        if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0:
            found[name] = [sys.executable, str(PEERS / f"fit_{name}.py"), str(path), "default", "1", "60"]
        else:
            print(f"{name} is not installed here and left out")
    return found


# A small process starts the program and reports on it: a child of this one would count this one's memory as its own.
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
print(json.dumps([done.returncode, wall, cpu, used.ru_maxrss / 1024, done.stdout]))
"""


def run(command: list[str]) -> tuple[float, float, float, float]:
    """Seconds, CPU seconds, peak MB and log likelihood of one process."""
    launched = [sys.executable, "-S", "-c", LAUNCHER, *command]
    status, *used, text = json.loads(subprocess.run(launched, capture_output=True, text=True, check=True).stdout)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    said = re.search(r"Log restricted-likelihood\s+(\S+)", text)
    return (*used, float(said[1]) if said else json.loads(text.splitlines()[-1])["loglik"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{'whole process':16}{'clusters':>10}{'seconds':>10}{'CPU s':>8}{'MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for clusters in (100, 1_000, 10_000):
            path = Path(folder) / f"{clusters}.csv"
            jm.simulate(clusters=clusters, size=8, seed=1).to_csv(path, index=False)
            commands = {name: of for name, of in programs(path).items() if (name, clusters) not in SLOW}
            seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in commands}
            for _ in range(rounds if clusters < 10_000 else 3):
                for name, command in commands.items():
                    seen[name].append(run(command))
            for name, found in seen.items():
                wall, cpu, memory, loglik = (statistics.median(one[k] for one in found) for k in range(4))
                print(f"{name:16}{clusters:>10}{wall:>10.2f}{cpu:>8.2f}{memory:>8.0f}", flush=True)
                if abs(loglik - statistics.median(one[3] for one in seen["jaxmed"])) > 0.01:
                    print(f"  its log likelihood is another: {loglik}")
    print(f"\n{'in Python':44}{'seconds':>8}")
    subprocess.run([sys.executable, "-c", IN_PYTHON], check=True)


if __name__ == "__main__":
    main()
