"""Campaign: fits side by side, in processes, under settings of the user's, and interrupted.

Claims: whatever runs beside a fit (other fits, bootstraps, intervals and reads in 8 threads, other processes), whatever
JAX setting the user has or changes meanwhile, and whatever was interrupted before it, gives the bits of a process that
did nothing else; nothing hangs.

``threads``: rounds of 32 mixed tasks in 8 threads while a ninth switches settings of JAX. ``processes``: 4 at once, by
spawn, forkserver and fork, forked before JAX started (the same bits) and after (one error, no hang). ``settings``: one
fit under each setting, and inside a function that JAX traces. ``interrupt``: ``--interrupts`` KeyboardInterrupts at
times drawn over the time of a task, then the same task again; handlers of signals stay the user's. ``deadlock``:
``--runs`` fresh processes on two cores, each fits in threads and bootstraps in shards under a limit in time.

    JAX_COMPILATION_CACHE_DIR=FOLDER python tests/campaigns/concurrency.py [threads ...] --seed 1
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

import jaxmed as jm

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
LIMIT = 240  # seconds of a process
SETTINGS = {
    "jax_enable_x64": (True, False),
    "jax_default_matmul_precision": ("bfloat16", None),
    "jax_debug_nans": (True, False),
    "jax_numpy_rank_promotion": ("raise", "allow"),
    "jax_numpy_dtype_promotion": ("strict", "standard"),
}


@functools.cache
def example():
    """The bundled data and a fit to them."""
    data = jm.datasets.load_example()
    return data, jm.fit(data, **ROLES)


def fit() -> str:
    return jm.fit(example()[0], **ROLES).to_json()


def bootstrap() -> str:
    return jm.bootstrap(example()[1], 64, seed=1, batch=32).table.to_csv()


def intervals() -> str:
    return example()[1].intervals("monte_carlo", seed=1).to_csv()


def read() -> str:
    data, _ = example()
    moments = jm.read_moments(data, jm.Mediation(**ROLES))
    return hashlib.sha256(b"".join(pattern.products.tobytes() for pattern in moments.patterns)).hexdigest()


def power() -> str:
    return jm.power({"a": 0.3}, {"clusters": [20]}, 32, seed=1).replications.to_csv()


TASKS = {task.__name__: task for task in (fit, bootstrap, intervals, read)}


def digest(name: str) -> str:
    """What a task gives, in short."""
    return hashlib.sha256((TASKS | {"power": power})[name]().encode()).hexdigest()


def send(name: str, end) -> None:
    """A task in a process: its digest, or the error."""
    try:
        end.send(digest(name))
    except Exception as error:
        end.send(f"{type(error).__name__}: {error}")


class Cases:
    """Counts of cases and failures, by part."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}

    def check(self, part: str, case: str, found: object, wanted: object) -> None:
        """Count a case; print one that failed."""
        count = self.counts.setdefault(part, [0, 0])
        count[0] += 1
        if found != wanted:
            count[1] += 1
            print(f"FAILED {part} {case}: {str(found)[:300]}", flush=True)


def threads(cases: Cases, rng: random.Random, options: argparse.Namespace) -> None:
    """Mixed tasks in 8 threads, while settings change."""
    alone = {name: digest(name) for name in TASKS}
    stop = threading.Event()

    def switch() -> None:
        while not stop.wait(0.01):
            name = rng.choice(list(SETTINGS))
            jax.config.update(name, rng.choice(SETTINGS[name]))

    switching = threading.Thread(target=switch)
    switching.start()
    with ThreadPoolExecutor(8) as pool:
        for turn in range(options.rounds):
            names = [rng.choice(list(TASKS)) for _ in range(32)]
            for name, found in zip(names, pool.map(digest, names), strict=True):
                cases.check("threads", f"{turn} {name}", found, alone[name])
    stop.set()
    switching.join()
    for name, (_, usual) in SETTINGS.items():
        jax.config.update(name, usual)


def settings(cases: Cases, rng: random.Random, options: argparse.Namespace) -> None:
    """Each setting by itself, before and after; inside a trace."""
    alone = {name: digest(name) for name in TASKS}
    for setting, (value, usual) in SETTINGS.items():
        for name in TASKS:
            jax.config.update(setting, value)
            try:
                found = digest(name)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            finally:
                kept = getattr(jax.config, setting)
                jax.config.update(setting, usual)
            cases.check("settings", f"{setting}={value} {name}", (found, kept), (alone[name], value))
    for trace in (jax.jit, jax.vmap, jax.grad):
        for name in TASKS:
            found = []

            def function(value, name=name, found=found):
                found.append(digest(name))
                return value * 2

            try:
                trace(function)(jax.numpy.ones(2) if trace is jax.vmap else 1.0)
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"]
            cases.check("settings", f"{trace.__name__} around {name}", found, [alone[name]])


def gathered(context, names: list[str]) -> list[str]:
    """What tasks give, each in a process of its own, side by side; "hang" where one does not end."""
    ends, processes = [], []
    for name in names:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=send, args=(name, there))
        process.start()
        ends.append(here)
        processes.append(process)
    found = [end.recv() if end.poll(LIMIT) else "hang" for end in ends]
    for process in processes:
        process.kill()
        process.join()
    return found


def processes(cases: Cases, rng: random.Random, options: argparse.Namespace) -> None:
    """Four processes at once, started in every way; to be run before JAX starts here."""
    names = list(TASKS)
    found = {
        way: gathered(multiprocessing.get_context(way), names) for way in ("fork", "spawn", "forkserver")
    }  # forked first: JAX has not started
    alone = [digest(name) for name in names]
    for way, digests in found.items():
        for name, one, wanted in zip(names, digests, alone, strict=True):
            cases.check("processes", f"{way} {name}", one, wanted)
    for name, one in zip(names, gathered(multiprocessing.get_context("fork"), names), strict=True):
        told = one if name == "read" else one.startswith("FitError: this process was forked")
        cases.check("processes", f"fork after JAX started, {name}", told, alone[3] if name == "read" else True)


def interrupt(cases: Cases, rng: random.Random, options: argparse.Namespace) -> None:
    """KeyboardInterrupt at any time, and then the same task."""
    names = [*TASKS, "power"]
    alone, seconds = {}, {}
    for name in names:
        digest(name)
        start = time.monotonic()
        alone[name] = digest(name)
        seconds[name] = time.monotonic() - start
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    heard = 0
    for turn in range(options.interrupts):
        name = names[turn % len(names)]
        try:
            signal.setitimer(signal.ITIMER_REAL, max(rng.uniform(0, seconds[name]), 1e-4))
            digest(name)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            heard += 1
        found = digest(name)
        kept = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        cases.check("interrupt", f"{turn} {name}", (found, kept), (alone[name], before))
    signal.signal(signal.SIGALRM, handler)
    print(f"interrupt: {heard} of {options.interrupts} arrived while the task ran", flush=True)


def stress(end) -> None:
    """Fits in threads beside shards of a bootstrap, on two cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with ThreadPoolExecutor(4) as pool, tempfile.TemporaryDirectory() as folder:
        fits = [pool.submit(fit) for _ in range(8)]
        shards = [
            pool.submit(jm.bootstrap, example()[1], 128, seed=1, batch=32, shard=(k, 2), out=Path(folder))
            for k in range(2)
        ]
        same = {job.result() for job in fits}
        end.send((len(same), sum(len(job.result()) for job in shards)))


def deadlock(cases: Cases, rng: random.Random, options: argparse.Namespace) -> None:
    """Fresh processes under a limit in time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jaxmed"])
    longest = 0.0
    for turn in range(options.runs):
        start = time.monotonic()
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=stress, args=(there,))
        process.start()
        there.close()
        try:
            found = here.recv() if here.poll(LIMIT) else "hang"
        except EOFError:
            found = "the process ended without a result"
        process.kill()
        process.join()
        longest = max(longest, time.monotonic() - start)
        cases.check("deadlock", str(turn), found, (1, 128))
    print(f"deadlock: the longest of {options.runs} runs took {longest:.0f} s", flush=True)


PARTS = {part.__name__: part for part in (processes, threads, settings, interrupt, deadlock)}


def main() -> None:
    """Run parts of the campaign and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--interrupts", type=int, default=200)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    cases = Cases()
    for part in options.parts or PARTS:
        PARTS[part](cases, random.Random(f"{options.seed} {part}"), options)
    for part, (count, wrong) in cases.counts.items():
        print(f"{part}: {count} cases, {wrong} failures")
    sys.exit(any(wrong for _, wrong in cases.counts.values()))


if __name__ == "__main__":
    main()
