"""Files from strangers, by the thousand: every kind of file that jaxmed reads, damaged or forged.

Claim: such a file is read, or refused by one jaxmed error that names it. No error of a library passes through, nothing
is written outside the folder that the caller chose, and memory stays below a bound.

Drawn: a kind of file (saved fit, moments, replicates, power study, job files of five commands, csv, parquet, feather,
dta) and what is done to it: bytes flipped, cut, doubled or inserted; or, inside containers that stay valid (zip with
right checksums, parquet metadata, TOML), values of other types, huge and negative numbers, NaN, deep nesting, names
with paths, markup and control characters, keys that are missing or new; arrays that claim 10^12 entries, other types,
objects; members that are compressed zeros. Case k of a seed is always the same.

Judged: what opens the file also uses it (effects, intervals, tables, saving again to a folder). Fits and refits of job
files are replaced by stored results after their arguments are checked, since a forged job may ask for years of work;
and a job file says itself where its results go.

    python tests/campaigns/strangers.py --cases 5000 --seed 1
    python tests/campaigns/strangers.py --seed 1 --case 17      # one case again, with its traceback
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import jaxmed as jm
from jaxmed._cli import app
from jaxmed._refit import refitter

MODEL = jm.Mediation("x", "m", "y", "id", random={"m": ["1"], "y": ["1"]})
ROLES = '[model]\nx = "x"\nm = "m"\ny = "y"\ncluster = "id"\n'
JOBS = {
    "fit": f'{ROLES}random = {{m = ["1"], y = ["1"]}}\n[fit]\ndata = "rows.csv"\nlevel = 0.9\n'
    'json = "-"\nreml = true\n',
    "bootstrap": '[bootstrap]\nfit = "fit.jm"\nn = 64\nseed = 3\nkind = "percentile"\nbatch = 16\n',
    "power": "[population]\na = 0.3\nb = 0.3\n[power]\nclusters = [20, 30]\nsize = 5\nreplications = 64\nseed = 1\n"
    'intervals = ["delta"]\nlevel = 0.95\n',
    "simulate": "[population]\na = 0.3\nicc_x = 0.2\n[simulate]\nclusters = 20\nsize = 5\nseed = 1\n",
    "report": '[report]\nfit = "fit.jm"\nout = "out/report.html"\nlevel = 0.9\n',
}
DEEP = "nested deeply"
ELSEWHERE = Path("/tmp/stranger")
ODD: list[Any] = [
    *(None, True, "", "1", "../../stranger", str(ELSEWHERE), "a\nb", "\0", "<script>alert(1)</script>", "=1+1", "*"),
    *(
        "^x$",
        "\u202eabc",
        -1,
        0,
        10**12,
        2**63,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        0.5,
        [],
        {},
        [[]],
        ["x", "x"],
    ),
    *({"x": "x"}, [1, "x", None]),
]


def make_files(folder: Path) -> jm.Fit:
    """One good file of every kind."""
    data = jm.simulate(clusters=20, size=5, seed=1)
    data.to_csv(folder / "rows.csv", index=False)
    data.to_parquet(folder / "rows.parquet")
    data.to_feather(folder / "rows.feather")
    data.to_stata(folder / "rows.dta", write_index=False)
    fit = jm.fit(data, MODEL)
    fit.save(folder / "fit.jm")
    jm.save_moments(fit.moments, folder / "rows.moments")
    jm.bootstrap(fit, 64, seed=3, batch=16).save(folder / "replicates.parquet")
    jm.power({"a": 0.3, "b": 0.3}, {"clusters": 20, "size": 5}, 16, seed=1, model=MODEL).save(folder / "study")
    for name, text in JOBS.items():
        (folder / f"{name}.toml").write_text(text)
    next((folder / "study").iterdir()).rename(folder / "study.parquet")
    return fit


# Mutations -----------------------------------------------------------------------------------------------------------


def bytes_changed(content: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, doubled or inserted bytes."""
    changed = bytearray(content)
    at, length = rng.randrange(len(content)), rng.randrange(1, 64)
    way = rng.randrange(5)
    if way == 0:
        for _ in range(rng.randrange(1, 9)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif way == 1:
        del changed[at:]
    elif way == 2:
        del changed[at : at + length]
    elif way == 3:
        changed[at:at] = changed[at : at + length]
    else:
        changed[at:at] = rng.randbytes(length)
    return bytes(changed)


def plain_changed(value: Any, rng: random.Random) -> Any:
    """Plain data with one place changed, at any depth."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if keys and rng.random() < 0.85:
        key = rng.choice(keys)
        copy = value.copy()
        way = rng.randrange(8)
        if way == 0:
            del copy[key]
        elif way == 1 and isinstance(copy, dict):
            copy[str(rng.choice(ODD))] = copy.pop(key)
        elif way == 2 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = plain_changed(copy[key], rng)
        return copy
    if rng.random() < 0.1:
        return DEEP
    if type(value) in (int, float) and rng.random() < 0.5:
        return rng.choice([-value, value * 1000, value + 1, str(value), [value]])
    return rng.choice(ODD)


def dumped(value: Any) -> bytes:
    """JSON, with one place nested deeply where it says so."""
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


def zip_changed(content: bytes, rng: random.Random) -> bytes:
    """A valid zip of other JSON or other arrays."""
    with zipfile.ZipFile(io.BytesIO(content)) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    texts = [name for name in parts if name in ("fit.npy", "moments.npy")]
    name, compression = rng.choice(texts if rng.random() < 0.7 else list(parts)), zipfile.ZIP_STORED
    made = io.BytesIO()
    if name in texts:
        plain = json.loads(np.load(io.BytesIO(parts[name])).tobytes())
        np.save(made, np.frombuffer(dumped(plain_changed(plain, rng)), dtype=np.uint8))
    else:
        array = np.load(io.BytesIO(parts[name]))
        way = rng.randrange(6)
        if way == 0:
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": (10 ** rng.randrange(3, 13),)}
            np.lib.format.write_array_header_1_0(made, header)
        elif way == 1:
            np.save(made, array.astype(rng.choice(["f4", "i8", "U8", "c16", "?"])))
        elif way == 2:
            np.save(made, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
        elif way == 3:
            compression = zipfile.ZIP_DEFLATED
            np.save(made, np.zeros(4_000_000))
        elif way == 4:
            changed = array.copy()
            changed.flat[rng.randrange(changed.size)] = rng.choice(
                [0, -1] if changed.dtype.kind in "iu" else [np.nan, 1e308]
            )
            np.save(made, changed)
        else:
            np.save(made, array[:-1])
    parts[name] = made.getvalue()
    if rng.random() < 0.1:
        parts[rng.choice(["../../stranger", str(ELSEWHERE), "x" * 300])] = parts.pop(rng.choice(list(parts)))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as stored:
        for part, text in parts.items():
            stored.writestr(part, text)
    return target.getvalue()


def parquet_changed(content: bytes, rng: random.Random) -> bytes:
    """A valid parquet file that says something else of itself, or has other columns."""
    table = pq.read_table(io.BytesIO(content))
    about = (table.schema.metadata or {}).get(b"jaxmed")
    name = rng.choice(table.column_names)
    way = rng.randrange(6)
    if about and way < 3:
        plain = plain_changed(json.loads(about), rng)
        if "key" in plain and rng.random() < 0.05:
            plain["key"] = "../../stranger"
        table = table.replace_schema_metadata({b"jaxmed": dumped(plain)})
    elif way == 3:
        table = table.drop([name])
    elif way == 4:
        at, odd = table.column_names.index(name), rng.choice([None, "text", 10**18, -1, 1e308, float("nan"), [1], True])
        table = table.set_column(at, name, pa.array([odd] * len(table)))
    elif way == 5 and rng.random() < 0.2:
        table = pa.concat_tables([table.slice(0, 1)] * 1, promote_options="none").take(np.zeros(2_000_000, dtype=int))
    else:
        table = table.rename_columns(
            [rng.choice(["../../x", "", "<b>", name]) if c == name else c for c in table.column_names]
        )
    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


def toml_changed(content: bytes, rng: random.Random) -> bytes:
    """A job with one line that says something else."""
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].partition(" = ")[0]
    odd = rng.choice(ODD)
    words = str(odd).lower() if isinstance(odd, (bool, float)) else "[" * rng.choice([1, 3000]) if odd is None else None
    if words is None:
        words = json.dumps(odd).replace(": ", " = ").replace("null", '"null"')
    lines[at] = rng.choice([f"{name} = {words}", f"{name} = {words}", f"{words} = 1", f"[{name}.x]", "", lines[at] * 2])
    return "\n".join(lines).encode()


INSIDE = {".jm": zip_changed, ".moments": zip_changed, ".parquet": parquet_changed, ".toml": toml_changed}
FILES = [
    *("fit.jm", "rows.moments", "replicates.parquet", "study.parquet", "rows.csv", "rows.parquet", "rows.feather"),
    *("rows.dta", *(f"{name}.toml" for name in JOBS)),
]


# Use -----------------------------------------------------------------------------------------------------------------


def use(path: Path, fit: jm.Fit) -> None:
    """Open a file and do with it what people do."""
    if path.suffix == ".jm":
        found = jm.load(path)
        found.effects(), found.summary(), found.to_json(), found.wald(), found.lr_test()
        found.save(path.parent / "out" / "again.jm")
    elif path.name.startswith("replicates"):
        drawn = jm.load_replicates(path)
        drawn.intervals(), drawn.failures(), drawn.gaps, json.dumps(drawn.to_dict(), allow_nan=False)
        drawn.save(path.parent / "out" / "again.parquet")
    elif path.name.startswith("study"):
        study = jm.load_power(path)
        study.summary(), study.to_json()
        study.save(path.parent / "out" / "again")
    elif path.suffix == ".toml":
        run_job(path)
    else:
        moments = jm.load_moments(path) if path.suffix == ".moments" else jm.read_moments(path, MODEL)
        moments.for_columns("id", fit.moments.columns, moments.groups, moments.averaged)
        moments + moments
        jm.save_moments(moments, path.parent / "out" / "again.moments")


def run_job(path: Path) -> None:
    """The command of a job file; its error is raised."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            sys.argv = ["jaxmed", path.stem, "--job", str(path)]
            app.main()
    except SystemExit as stopped:
        text = said.getvalue()
        if stopped.code and not (text.startswith("jaxmed: error: ") and text.count("\n") == 1):
            raise AssertionError(f"exit code {stopped.code} without one line: {text[-200:]!r}") from None


def replace_long_work(fit: jm.Fit, folder: Path) -> None:
    """Stored results in place of what takes long, after everything that checks arguments."""
    study = jm.load_power(folder / "study.parquet")

    def read(data: Any, model: Any, **options: Any) -> jm.Fit:
        jm.read_moments(data, model, options.get("missing", "available"))
        return fit

    def refitted(self: Any, numbers: Any) -> Any:
        yield from ()

    app.fit_model = read  # type: ignore[assignment]
    app.use_compilation_cache = app.drop_loader_noise = lambda: None  # type: ignore[assignment]
    refitter.Refitter.run = refitted  # type: ignore[method-assign]
    importlib.import_module("jaxmed._simulation.power_study")._Work.run = lambda *_: study._cells
    importlib.import_module("jaxmed._cli.studies").simulate = lambda *_, **__: pd.DataFrame()
    importlib.import_module("jaxmed._cli.report").write_report = lambda *_, **__: None


def check(case: int, seed: int, good: Path, fit: jm.Fit, tell: bool) -> tuple[str, str, str]:
    """Kind of file, what became of it, and what went wrong, of one case."""
    rng = random.Random(f"{seed} {case}")
    name = FILES[case % len(FILES)]
    content = (good / name).read_bytes()
    change = INSIDE.get(Path(name).suffix)
    inside = change is not None and rng.random() < 0.7
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "deep" / "chosen"
        (folder / "out").mkdir(parents=True)
        for beside in ("fit.jm", "rows.csv"):
            os.link(good / beside, folder / beside)
        path = folder / name
        path.unlink(missing_ok=True)
        try:
            path.write_bytes(change(content, rng) if inside else bytes_changed(content, rng))  # type: ignore[misc]
        except (ValueError, TypeError, pa.ArrowException, OverflowError):
            return name, "not made", ""
        before = {found for found in Path(root).rglob("*") if folder / "out" not in found.parents}
        wrong, became = "", "read"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use(path, fit)
        except jm.JaxmedError as error:
            became = "refused"
            # What a column or the replicates lack is said of them.
            if name not in str(error) and not name.startswith("rows") and "replicates converged" not in str(error):
                wrong = f"does not name the file: {error}"
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
            if tell:
                traceback.print_exc()
        after = {found for found in Path(root).rglob("*") if folder / "out" not in found.parents}
        if path.suffix == ".toml":  # a job says itself where its results go
            after = {found for found in after if "stranger" not in found.name and folder not in found.parents}
            before = {found for found in before if folder not in found.parents}
        if after != before or (ELSEWHERE.exists() and path.suffix != ".toml"):
            wrong = f"wrote {sorted(map(str, after - before)) or ELSEWHERE}"
        ELSEWHERE.unlink(missing_ok=True)
    return name, became, wrong


def main() -> None:
    """Run the cases and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB that the process may grow to")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (int(given.memory + 8) << 30,) * 2)  # XLA reserves more than it uses
    counts: Counter[tuple[str, str]] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as root:
        fit = make_files(Path(root))
        replace_long_work(fit, Path(root))
        for case in range(given.cases) if given.case is None else [given.case]:
            name, became, wrong = check(case, given.seed, Path(root), fit, given.case is not None)
            counts[name, "failed" if wrong else became] += 1
            if wrong:
                failures += 1
                print(f"--seed {given.seed} --case {case}: {name}: {' '.join(wrong.split())[:200]}", flush=True)
    for name in FILES:
        print(f"{name:20}", {became: n for (of, became), n in sorted(counts.items()) if of == name})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{sum(counts.values())} cases, {failures} failures, peak of {peak:.2f} GiB in memory")
    sys.exit(bool(failures) or peak > given.memory)


if __name__ == "__main__":
    main()
