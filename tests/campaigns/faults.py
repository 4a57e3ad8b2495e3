"""Campaign: jobs that are killed, and folders, disks and files that fail.

Claims: a job that ends in the middle, wherever that is, goes on to final tables equal to the bit to those of a job
that was left alone, and leaves no half-written file under a final name; a file that was truncated or in which a bit was
flipped is refused by name, or its content is what it was; a full disk, a folder that cannot be written to and a second
job in the same folder end in one line of text, and the first job's results are whole.

``kill``: jobs (bootstrap, power, a fit from a long csv file that saves moments, the fit and JSON) get SIGKILL after a
time drawn uniformly over the time of an undisturbed job, again and again until one comes through, with ``--kills`` in
all. ``damage``: every file of the undisturbed jobs is truncated at ``--cuts`` lengths and has ``--flips`` bits
flipped, one at a time. ``disk``: every writer on a full file system (tmpfs, needs root), then again with space.
``together``: two jobs at once on one folder, the same and different ones. ``odd``: no HOME and no such user,
caches that cannot be written, closed streams, file times in the past and future.

    JAX_COMPILATION_CACHE_DIR=FOLDER python tests/campaigns/faults.py [kill damage disk together odd] --seed 1

A failure is a line with the part and its case; ``--seed`` repeats it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

import jaxmed as jm
from jaxmed._cli import app
from jaxmed._support import checkpoints

EXAMPLE = Path(jm.__file__).parent / "datasets" / "example.csv"
ROLES = ("--x", "x", "--m", "m", "--y", "y", "--cluster", "id")
LIMIT = 300  # seconds of any job
FORK = multiprocessing.get_context("forkserver")  # children have imported jaxmed, and JAX has not started in them
READERS = {".jm": jm.load, ".moments": jm.load_moments, ".parquet": None}


def call(arguments: list[str], log: str) -> None:
    """Run the program in a child process; every batch is written at once, so that kills meet many writes."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    checkpoints.EVERY = 0.0
    sys.argv = ["jaxmed", *arguments]
    app.main()


class Jobs:
    """The jobs of a campaign in a folder, and what they give when left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fit, self.rows = folder / "fit.jm", folder / "rows.csv"
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        pd.concat([pd.read_csv(EXAMPLE)] * 2500).to_csv(self.rows, index=False)
        self.run("fit", str(EXAMPLE), *ROLES, "--quiet", "--save", str(self.fit))
        self.alone, self.seconds = {}, {}
        for name in ("bootstrap", "power", "read"):
            self.run(*self.arguments(name, folder / "warm" / name))  # compiles
            out, start = folder / "alone" / name, time.monotonic()
            code, text = self.run(*self.arguments(name, out))
            assert code == 0, text
            self.alone[name], self.seconds[name] = self.result(name, out), time.monotonic() - start

    def arguments(self, name: str, out: Path) -> list[str]:
        """Of a job that writes to a folder."""
        out.mkdir(parents=True, exist_ok=True)
        json = ["--quiet", "--json", str(out / "table.json")]
        if name == "bootstrap":
            options = ("--n", "480", "--batch", "32", "--seed", "1", "--out", str(out / "parts"))
            return ["bootstrap", "--fit", str(self.fit), *options, *json]
        if name == "power":
            options = ("--clusters", "20,21,22,23,24", "--size", "5", "--replications", "300", "--seed", "1")
            return ["power", *options, "--out", str(out / "parts"), *json]
        return [
            *("fit", str(self.rows), *ROLES, *json),
            *("--moments", str(out / "rows.moments"), "--save", str(out / "rows.jm")),
        ]

    def start(self, *arguments: str) -> multiprocessing.Process:
        """A job in the background."""
        log = self.folder / f"log{random.getrandbits(48):x}"
        process = FORK.Process(target=call, args=(list(map(str, arguments)), str(log)))
        process.log = log
        process.start()
        return process

    def end(self, process: multiprocessing.Process) -> tuple[int | None, str]:
        """Exit code and output; a job that takes too long has none."""
        process.join(LIMIT)
        code = process.exitcode
        if code is None:
            process.kill()
        text = process.log.read_text() if process.log.exists() else ""
        process.log.unlink(missing_ok=True)
        return code, text

    def run(self, *arguments: str) -> tuple[int | None, str]:
        """Exit code and output of a job."""
        return self.end(self.start(*arguments))

    def result(self, name: str, out: Path) -> dict[str, bytes]:
        """What must not change: the table of what is in the folder, and files under their final names."""
        found = {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}
        hidden = [path for path in found if path.startswith(".")]
        found = {path: content for path, content in found.items() if path not in hidden}
        if name == "bootstrap":
            found["parts"] = jm.load_replicates(out / "parts").table.to_csv().encode()
        if name == "power":
            found["parts"] = jm.load_power(out / "parts").replications.to_csv().encode()
        return found

    def check(self, part: str, case: str, problem: str) -> None:
        """Count a case, and keep it if there is a problem."""
        self.counts[part] = self.counts.get(part, 0) + 1
        if problem:
            self.failures.append(f"{part} {case}: {problem}")
            print("FAILED", self.failures[-1], flush=True)

    def check_final(self, part: str, case: str, name: str, out: Path) -> None:
        """Run a job to its end and compare."""
        code, text = self.run(*self.arguments(name, out))
        same = code == 0 and self.result(name, out) == self.alone[name]
        self.check(part, case, "" if same else f"exit code {code}, {text[-300:]!r}, or another table")


def kill(jobs: Jobs, rng: random.Random, options: argparse.Namespace) -> None:
    """SIGKILL at random moments, until a job comes through."""
    killed = chains = 0
    while killed < options.kills:
        name = ("bootstrap", "power", "read")[chains % 3]
        out = jobs.folder / "kill" / str(chains)
        print(f"kill: {killed} kills in {chains} chains of jobs", flush=True)
        for _ in range(4):
            process = jobs.start(*jobs.arguments(name, out))
            process.join(rng.uniform(0, jobs.seconds[name]))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            jobs.end(process)
            if name == "read":
                whole = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}
                half = [path for path, content in whole.items() if jobs.alone[name][path] != content]
                jobs.check("kill", f"{name} {chains}", f"half-written {half}" if half else "")
        jobs.check_final("kill", f"{name} {chains}", name, out)
        shutil.rmtree(out)
        chains += 1
    print(f"kill: {killed} kills in {chains} chains of jobs", flush=True)


def damage(jobs: Jobs, rng: random.Random, options: argparse.Namespace) -> None:
    """Truncated files, and files with one bit flipped."""
    alone = jobs.folder / "alone"
    for path in sorted(alone.rglob("*.*")):
        if path.suffix not in READERS:
            continue
        content = path.read_bytes()
        study = path.parents[1].name
        load = READERS[path.suffix] or {"bootstrap": jm.load_replicates, "power": jm.load_power}[study]
        cuts = [
            0,
            1,
            4,
            8,
            len(content) - 8,
            len(content) - 1,
            *(rng.randrange(len(content)) for _ in range(options.cuts)),
        ]
        flips = [rng.randrange(8 * len(content)) for _ in range(options.flips)]
        expected = facts(load(path)) if path.stem not in ("study",) else None
        for kind, at in [("cut", cut) for cut in cuts] + [("flip", flip) for flip in flips]:
            changed = bytearray(content[:at] if kind == "cut" else content)
            if kind == "flip":
                changed[at // 8] ^= 1 << at % 8
            path.write_bytes(changed)
            problem = ""
            try:
                if facts(load(path)) != expected:
                    problem = "another result, and no error"
            except jm.DataError as error:
                problem = "" if path.name in str(error) or path.stem == "study" else f"no file name in {error}"
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            jobs.check("damage", f"{path.relative_to(alone)} {kind} {at}", problem)
        path.write_bytes(content)


def facts(found: object) -> str:
    """All that a file holds, as text."""
    if isinstance(found, jm.Fit):
        return found.to_json() + facts(found.moments)
    if isinstance(found, jm.Replicates):
        return repr(found.to_dict()) + found.table.to_csv()
    if isinstance(found, jm.Power):
        return found.to_json() + found.replications.to_csv()
    arrays = [found.shift, found.scale, found.clusters, *(pattern.products for pattern in found.patterns)]
    return repr([found.columns, found.sample_summary]) + "".join(array.tobytes().hex() for array in arrays)


def disk(jobs: Jobs, rng: random.Random, options: argparse.Namespace) -> None:
    """Every writer on a full disk, and again when there is space."""
    place = jobs.folder / "disk"
    for size in ("8k", "64k", "128k"):
        for name in ("bootstrap", "power", "read"):
            place.mkdir(exist_ok=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                print("disk: left out, a file system cannot be mounted")
                return
            try:
                code, text = jobs.run(*jobs.arguments(name, place))
                told = code == 1 and "No space left" in text and "Traceback" not in text
                told |= code == 0 and jobs.result(name, place) == jobs.alone[name]  # there was space enough
                jobs.check("disk", f"{name} {size}", "" if told else f"exit code {code}, {text[-300:]!r}")
                subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
                jobs.check_final("disk", f"{name} {size} again", name, place)
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
                code, text = jobs.run(*jobs.arguments(name, place))
                told = code in (1, 2) and "Traceback" not in text and str(place) in text
                jobs.check("disk", f"{name} read-only", "" if told else f"exit code {code}, {text[-300:]!r}")
            finally:
                subprocess.run(["umount", str(place)], check=True)
    draws = jobs.folder / "draws"
    jobs.run(*jobs.arguments("bootstrap", draws))
    writers = {
        "report": ["report", str(jobs.fit), "--out", str(place / "a.html")],
        "merge": ["merge", str(draws / "parts"), "--out", str(place / "a.parquet")],
        "simulate": ["simulate", "--clusters", "400", "--size", "10", "--seed", "1", "--out", str(place / "a.csv")],
        "stack": ["stack", str(EXAMPLE), *ROLES, "--out", str(place / "a.csv")],
    }
    for name, arguments in writers.items():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)], check=True)
        try:
            code, text = jobs.run(*arguments)
            told = (
                code in (1, 2) and "No space left" in text and "Traceback" not in text and not list(place.glob("a.*"))
            )
            jobs.check("disk", name, "" if told else f"exit code {code}, {text[-300:]!r}, {list(place.iterdir())}")
        finally:
            subprocess.run(["umount", str(place)], check=True)


def together(jobs: Jobs, rng: random.Random, options: argparse.Namespace) -> None:
    """Two jobs at once on one folder."""
    for name in ("bootstrap", "power") * options.pairs:
        out = jobs.folder / "together"
        arguments = jobs.arguments(name, out)
        both = [jobs.start(*arguments) for _ in range(2)]
        codes = [jobs.end(process)[0] for process in both]
        same = codes == [0, 0] and jobs.result(name, out) == jobs.alone[name]
        jobs.check("together", f"{name} same", "" if same else f"exit codes {codes}, or another table")
        shutil.rmtree(out)
        arguments = jobs.arguments(name, out)
        other = [*arguments, "--seed", "2", "--json", str(out / "other.json")]
        both = [jobs.start(*arguments), jobs.start(*other)]
        ended = [jobs.end(process) for process in both]
        codes = sorted(code for code, _ in ended)
        told = any("choose another folder" in text for _, text in ended)
        load = jm.load_replicates if name == "bootstrap" else jm.load_power
        problem = "" if codes == [0, 2] and told else f"exit codes {codes}, {[text[-200:] for _, text in ended]}"
        try:
            load(out / "parts")
        except jm.JaxmedError as error:
            problem = str(error)
        jobs.check("together", f"{name} different", problem)
        shutil.rmtree(out)


def odd(jobs: Jobs, rng: random.Random, options: argparse.Namespace) -> None:
    """Environments and streams that are not as they should be; clocks that went elsewhere."""
    simple = ["bootstrap", "--fit", str(jobs.fit), "--n", "64", "--batch", "32", "--seed", "1"]
    refused = jobs.folder / "refused"
    refused.write_text("a file, not a folder")
    cases = {
        "no HOME, no user": ("unset HOME JAX_COMPILATION_CACHE_DIR; setpriv --reuid 54321 --clear-groups {}", 0),
        "cache is a file": (f"XDG_CACHE_HOME={refused} JAX_COMPILATION_CACHE_DIR= {{}}", 0),
        "JAX cache is a file": (f"JAX_COMPILATION_CACHE_DIR={refused} {{}}", 0),
        "no TMPDIR": ("TMPDIR=/nowhere {}", 0),
        "stdout is full": ("{} > /dev/full", 1),
        "stdout is closed": ("{} >&-", 0),
        "stderr is closed": ("{} 2>&-", 0),
        "all closed": ("{} <&- >&- 2>&-", 0),
        "head": ("{} | head -1", 0),
    }
    for case, (line, wanted) in cases.items():
        place = jobs.folder / "odd"
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
        program = f"{sys.executable} -m jaxmed {' '.join(simple)}"
        shell = ["bash", "-c", line.format(program)]
        done = subprocess.run(shell, cwd=place, capture_output=True, text=True, timeout=LIMIT, check=False)
        left = [path.name for path in place.iterdir()]
        told = done.returncode == wanted and "Traceback" not in done.stderr and not left
        jobs.check("odd", case, "" if told else f"exit code {done.returncode}, {left}, {done.stderr[-400:]!r}")
    for name, shift in ((name, shift) for name in ("bootstrap", "power") for shift in (-3e9, 3e9)):
        out = jobs.folder / "clock"
        shutil.copytree(jobs.folder / "alone" / name, out)
        files = sorted((out / "parts").iterdir())
        files[len(files) // 2].unlink()
        for path in files:
            if path.exists():
                os.utime(path, (max(time.time() + shift, 0),) * 2)
        jobs.check_final("odd", f"{name} file times {shift:g} s", name, out)
        shutil.rmtree(out)


PARTS = {part.__name__: part for part in (kill, damage, disk, together, odd)}


def main() -> None:
    """Run parts of the campaign and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", default=[], help=", ".join(PARTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--flips", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    FORK.set_forkserver_preload(["jaxmed._cli.app"])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # for the user who has no name
        jobs = Jobs(Path(folder))
        print("seconds of a job left alone:", {name: round(took, 1) for name, took in jobs.seconds.items()}, flush=True)
        for part in options.parts or PARTS:
            PARTS[part](jobs, random.Random(f"{options.seed} {part}"), options)
        for part, count in jobs.counts.items():
            wrong = sum(text.startswith(f"{part} ") for text in jobs.failures)
            print(f"{part}: {count} cases, {wrong} failures")
    sys.exit(bool(jobs.failures))


if __name__ == "__main__":
    main()
