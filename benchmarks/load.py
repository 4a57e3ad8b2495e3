"""Claim: time and memory grow in proportion to clusters, rows and replicates, and a long process does not grow at all.

    python benchmarks/load.py [NAME ...] [--json benchmarks/results/load.json]

Every measurement is a process of its own at three sizes or more, after a small run that compiles. It reports seconds
and seconds of all cores (which other work on the machine hardly changes), medians of three runs where these are short,
the memory in use before the work and its peak beyond that. Where growth is linear the last two columns, per unit, stay.

clusters    REML fit with all standard errors from moments of 10^5 to 10^7 clusters
rows        moments of a parquet file of 2 * 10^7 to 2 * 10^8 rows, a million clusters, sorted
replicates  10^4 to 10^5 parametric bootstrap replicates of the bundled example, written to a folder
text        10^5 to 10^6 clusters of 8 with text ids: read from parquet, fit, predictions, save, load
effects     REML fit of four mediators and a covariate, 15 random effects, at 10^4 to 10^5 clusters
jackknife   BCa intervals, which refit the model without each of 250 to 4,000 clusters

Then processes that do one thing many times, and report memory, memory maps, open files, compilations and entries of
jaxmed's own caches after each fifth:

fits        1,000 fits of ten models to data of 20 to 300 clusters
models      84 fits that take turns between fourteen models, more than programs are kept for
bootstraps  1,000 bootstraps of 8 replicates, of fits to data of 30, 60, 90 and 120 clusters in turn
cells       200 designs of a power study, two data sets each
reads       1,000 reads of csv, parquet, feather, dta and moments files
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from many_clusters import MILLION, memory, repeated
from peers.machine import describe
from pyarrow import parquet
from reading import make_parts

import jaxmed as jm

SPEC = jm.Mediation(x="x", m="m", y="y", cluster="id")
Action = Callable[[], Any]


# Growth: each makes its data, compiles, and returns what is timed ----------------------------------------------------


def clusters(n: int, folder: Path) -> Action:
    moments = jm.simulate(clusters=min(n, MILLION), size=8, seed=1, moments=True)
    if n > MILLION:
        moments = repeated(moments, n)
    jm.fit(jm.simulate(clusters=5000, size=8, seed=1), SPEC)
    return lambda: jm.fit(moments, SPEC)


def rows(n: int, folder: Path) -> Action:
    path = folder / "rows.parquet"
    parts = make_parts(n, MILLION, "sorted")
    first = next(parts)
    with parquet.ParquetWriter(path, first.schema) as writer:
        for part in itertools.chain([first], parts):
            writer.write_table(part)
    return lambda: jm.read_moments(path, SPEC)


def replicates(n: int, folder: Path) -> Action:
    fit = jm.fit(jm.datasets.load_example(), SPEC)
    jm.bootstrap(fit, 1000, seed=1)
    new = itertools.count()
    return lambda: jm.bootstrap(fit, n, seed=1, out=folder / f"{next(new)}").intervals("percentile")


def text(n: int, folder: Path) -> Action:
    def write(count: int) -> Path:
        data = jm.simulate(clusters=count, size=8, seed=1)
        data["id"] = "pupil-" + data["id"].astype(str).str.zfill(9)
        data.to_parquet(folder / f"{count}.parquet")
        return folder / f"{count}.parquet"

    def whole(path: Path) -> None:
        fit = jm.fit(path, SPEC)
        assert len(fit.ranef()) == fit.n_clusters
        fit.save(folder / "fit.jm")
        assert jm.load(folder / "fit.jm").loglik == fit.loglik

    whole(write(5000))
    path = write(n)
    return lambda: whole(path)


def effects(n: int, folder: Path) -> Action:
    names = [f"m{k}" for k in range(1, 5)]
    slopes = {name: ["1", "x"] for name in names} | {"y": ["1", *names, "x", "c"]}
    spec = jm.Mediation("x", names, "y", "id", random=slopes, covariates={"y": ["c"]})

    def drawn(count: int) -> Any:
        rng = np.random.default_rng(1)
        u = rng.normal(0, 0.3, (count, 15)).repeat(8, axis=0)
        data = pd.DataFrame({"id": np.arange(count).repeat(8)} | {name: rng.normal(size=8 * count) for name in "xc"})
        data["y"] = rng.normal(size=8 * count) + u[:, 0] + (0.2 + u[:, 1]) * data["x"] + u[:, 2] * data["c"]
        for k, name in enumerate(names):
            data[name] = rng.normal(size=8 * count) + u[:, 3 + k] + (0.3 + u[:, 7 + k]) * data["x"]
            data["y"] += (0.2 + u[:, 11 + k]) * data[name]
        return jm.read_moments(data, spec)

    jm.fit(drawn(5000), spec)
    moments = drawn(n)

    def fitted() -> None:
        fit = jm.fit(moments, spec)
        assert fit.converged
        assert len(fit.random_cov) == 15

    return fitted


def jackknife(n: int, folder: Path) -> Action:
    fit = jm.fit(jm.simulate(clusters=n, size=8, seed=1), SPEC)
    found = jm.bootstrap(fit, 200, seed=1)
    found.intervals("bca")

    def accelerate() -> None:
        jm.bootstrap(fit, 200, seed=1).intervals("bca")

    return accelerate


GROWTH: dict[str, tuple[Callable[[int, Path], Action], tuple[int, ...]]] = {
    "clusters": (clusters, (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)),
    "rows": (rows, (20_000_000, 60_000_000, 200_000_000)),
    "replicates": (replicates, (10_000, 30_000, 100_000)),
    "text": (text, (100_000, 300_000, 1_000_000)),
    "effects": (effects, (10_000, 30_000, 100_000)),
    "jackknife": (jackknife, (250, 500, 1000, 2000, 4000)),
}


def measured(name: str, size: int) -> dict[str, Any]:
    """One size in this process."""
    with tempfile.TemporaryDirectory() as folder:
        action = GROWTH[name][0](size, Path(folder))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the preparation
        before = memory("VmRSS")
        seconds, busy = [], []
        while len(seconds) < 3 and sum(seconds) < 20:
            start, cpu = time.perf_counter(), time.process_time()
            action()
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - cpu)
        peak = memory("VmHWM") - before
    took = {"seconds": statistics.median(seconds), "cpu_seconds": statistics.median(busy)}
    return {"size": size, **took, "before_gib": before, "beyond_gib": peak}


# A long process: each yields after every one of its actions ----------------------------------------------------------


def ten_models() -> list[tuple[jm.Mediation | jm.System, bool]]:
    """With whether by REML."""

    def model(**options: Any) -> jm.Mediation:
        return jm.Mediation("x", "m", "y", "id", **options)

    one = jm.System([jm.Equation("y", ["1", "m", "x"], random=["1", "m"])], "id")
    return [
        (SPEC, True),
        (SPEC, False),
        (model(covariance="block"), True),
        (model(covariance="diagonal"), False),
        (model(random={"m": ["1"], "y": ["1"]}), True),
        (model(random={"m": ["1", "x"], "y": ["1", "m"]}), True),
        (model(covariates=["c"]), True),
        (model(moderators={"c": ["a"]}), True),
        (model(center="cluster", covariance="block"), True),
        (one, True),
    ]


def drawn(k: int) -> pd.DataFrame:
    """A data set of 20 to 300 clusters of 4 to 9."""
    rng = np.random.default_rng(k)
    data = jm.simulate(clusters=int(rng.integers(20, 300)), size=int(rng.integers(4, 10)), seed=k)
    return data.assign(c=rng.normal(size=len(data)))


def fits() -> Iterator[None]:
    for k in range(1000):
        spec, reml = ten_models()[k % 10]
        fit = jm.fit(drawn(k), spec, reml=reml)
        if isinstance(spec, jm.Mediation):
            fit.effects()
        yield


def models() -> Iterator[None]:
    more = [jm.Mediation("x", "m", "y", "id", random={"m": m, "y": y}) for m in (["1"], ["x"]) for y in (["m"], ["x"])]
    for k in range(84):
        spec, reml = [*ten_models(), *((one, True) for one in more)][k % 14]
        jm.fit(drawn(k), spec, reml=reml)
        yield


def bootstraps() -> Iterator[None]:
    for k in range(1000):
        method = "cluster" if k % 2 else "parametric"
        fit = jm.fit(jm.simulate(clusters=30 + 30 * (k // 2 % 4), size=6, seed=k), SPEC)
        jm.bootstrap(fit, 8, method, seed=k)
        yield


def cells() -> Iterator[None]:
    for k in range(200):
        jm.power({"a": k / 200}, {"clusters": [20 + k % 10], "size": [4 + k % 5]}, 2, seed=k)
        yield


def reads() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        data, paths = drawn(1), [Path(folder) / f"data.{kind}" for kind in ("csv", "parquet", "feather", "dta")]
        data.to_csv(paths[0], index=False)
        data.to_parquet(paths[1])
        data.to_feather(paths[2])
        data.to_stata(paths[3], write_index=False)
        saved = Path(folder) / "data.moments"
        jm.save_moments(jm.read_moments(data, SPEC), saved)
        for k in range(1000):
            jm.load_moments(saved) if k % 5 == 4 else jm.read_moments(paths[k % 5], SPEC)
            yield


LEAKS: dict[str, Callable[[], Iterator[None]]] = {
    function.__name__: function for function in (fits, models, bootstraps, cells, reads)
}


def watched(name: str) -> Iterator[dict[str, Any]]:
    """Rows of one long process, after each fifth of its actions."""
    compiled = 0

    def count(event: str, *_: Any, **__: Any) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    start, every = time.perf_counter(), {"models": 14, "cells": 40}.get(name, 200)
    for done, _ in enumerate(LEAKS[name](), 1):
        if done % every == 0:
            gc.collect()
            own = [
                one
                for one in gc.get_objects()
                if isinstance(one, functools._lru_cache_wrapper) and one.__module__.startswith("jaxmed")
            ]
            yield {
                "done": done,
                "seconds": time.perf_counter() - start,
                "gib": memory("VmRSS"),
                "maps": len(Path("/proc/self/maps").read_text().splitlines()),
                "files": len(list(Path("/proc/self/fd").iterdir())),
                "compiled": compiled,
                "cached": sum(one.cache_info().currsize for one in own),
            }


def child(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *GROWTH, *LEAKS], metavar="NAME")
    parser.add_argument("--json", type=Path, help="results, added to those of other names")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.size or asked.watch:
        (name,) = asked.names
        for row in watched(name) if asked.watch else [measured(name, asked.size)]:
            print(json.dumps(row), flush=True)
        return
    for name in asked.names or [*GROWTH, *LEAKS]:
        if name in GROWTH:
            found = [row for size in GROWTH[name][1] for row in child(name, "--size", str(size))]
            for row in found:
                row["microseconds_each"] = row["seconds"] / row["size"] * 1e6
                row["bytes_each"] = row["beyond_gib"] / row["size"] * 2**30
        else:
            found = child(name, "--watch")
        print(f"{name}\n{pd.DataFrame(found).round(3).to_string(index=False)}\n", flush=True)
        if asked.json:
            known = json.loads(asked.json.read_text()) if asked.json.exists() else {}
            lines = [
                f'  "{key}": [\n' + ",\n".join(f"    {json.dumps(row)}" for row in table) + "\n  ]"
                for key, table in (known.get("results", {}) | {name: found}).items()
            ]
            asked.json.write_text(
                f'{{\n"machine": {json.dumps(describe())},\n"results": {{\n' + ",\n".join(lines) + "\n}\n}\n"
            )


if __name__ == "__main__":
    main()
