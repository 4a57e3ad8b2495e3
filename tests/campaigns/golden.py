"""The numbers of about 20 models, byte for byte: those of an earlier commit against those of the working tree.

    python tests/campaigns/golden.py COMMIT [--only NAME ...] [--within TOLERANCE]

Both run on this machine, one after the other, since the last bits differ between processors. Every kind of model of
docs/models.md is fitted, by ML and REML, with singular and flat maxima and missing values; of each the whole
``fit.to_json()``, effects and intervals are compared, and of some bootstrap replicates and a small power study.
Exit status 1 if any of it differs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TOP = Path(__file__).parents[2]
REPLICATES = 64


def models(jm: Any) -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """Name, data, model and options."""
    import numpy as np

    one, school = jm.datasets.load_example(), jm.datasets.load_schools()
    roles = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
    pupil = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
    two = {**pupil, "m": ["motivation", "effort"]}
    slopes = {"motivation": ["1", "support"], "effort": ["1", "support"], "achievement": ["1", "motivation"]}
    chain = {"motivation": ["1", "support"], "effort": ["1", "motivation"], "achievement": ["1", "effort"]}
    holes = one.copy()
    rng = np.random.default_rng(1)
    for name in ("x", "m", "y"):
        holes.loc[rng.random(len(holes)) < 0.1, name] = np.nan
    few = one[one["id"] <= one["id"].unique()[7]]
    centred = one.copy()
    centred[["x", "m", "y"]] -= one.groupby("id")[["x", "m", "y"]].transform("mean")

    yield "1-1-1", one, jm.Mediation(**roles), {}
    yield "1-1-1 ML", one, jm.Mediation(**roles), {"reml": False}
    yield "diagonal", one, jm.Mediation(**roles, covariance="diagonal"), {}
    yield "block", one, jm.Mediation(**roles, covariance="block"), {"reml": False}
    yield "few random", one, jm.Mediation(**roles, random={"m": ["1", "x"], "y": ["1", "m"]}), {"reml": False}
    yield "no random", one, jm.Mediation(**roles, random="none"), {}
    yield "zero", one, jm.Mediation(**roles, zero=[("m~1", "y~1")]), {}
    yield "missing", holes, jm.Mediation(**roles), {}
    yield "missing listwise", holes, jm.Mediation(**roles), {"missing": "listwise"}
    yield "few clusters", few, jm.Mediation(**roles), {}
    yield "centred beforehand", centred, jm.Mediation(**roles), {}
    yield "schools", school, jm.Mediation(**pupil), {}
    yield "within and between", school, jm.Mediation(**pupil, center="cluster"), {}
    yield "correlated intercepts", school, jm.Mediation(**pupil, center="cluster", intercepts="correlated"), {}
    covariates = {"motivation": ["training"], "achievement": ["age", "sector"]}
    yield "covariates", school, jm.Mediation(**pupil, covariates=covariates, reference={"sector": "public"}), {}
    yield "moderator", school, jm.Mediation(**pupil, moderators={"climate": ["a", "b"]}), {"reml": False}
    yield "categories as moderator", school, jm.Mediation(**pupil, moderators={"sector": ["a"]}), {}
    yield "parallel", school, jm.Mediation(**two, random=slopes), {}
    yield "serial", school, jm.Mediation(**two, serial=True, random=chain), {}
    yield "2-1-1", school, jm.Mediation(**{**pupil, "x": "training"}), {}
    yield "2-2-1", school, jm.Mediation(x="training", m="morale", y="achievement", cluster="school"), {}
    yield "one equation", one, jm.System([jm.Equation("y", ["1", "x"], random=["1", "x"])], cluster="id"), {}
    flat = [jm.Equation("m", ["1", "x"], random=["1", "x"]), jm.Equation("y", ["1", "m", "x"], random=["1", "m", "x"])]
    yield "pairs of rows", one.groupby("id").head(3), jm.System(flat, "id", covariance="diagonal"), {"reml": False}


BOOTSTRAPPED = {
    "1-1-1": ["parametric", "cluster", "residual", "two_stage"],
    "moderator": ["cluster"],
    "parallel": ["parametric"],
}
PROFILED = ("1-1-1", "within and between")


def numbers(jm: Any, only: list[str] | None) -> Iterator[tuple[str, str]]:
    """What is compared: name and text."""
    for name, data, spec, options in models(jm):
        if only and name not in only:
            continue
        print(name, file=sys.stderr, flush=True)
        try:
            fit = jm.fit(data, spec, **options)
        except jm.JaxmedError as error:
            yield name, f"{type(error).__name__}: {error}"
            continue
        yield f"{name}: json", fit.to_json()
        yield f"{name}: notes", "\n".join([fit.message, *fit.notes])
        if not isinstance(spec, jm.Mediation):
            continue
        yield f"{name}: effects", fit.effects(se="joint").to_csv()
        for method in ["delta", "monte_carlo", *(["profile"] if name in PROFILED else [])]:
            seed = {"seed": 1} if method == "monte_carlo" else {}
            yield f"{name}: {method}", fit.intervals(method, **seed).to_csv()
        for method in BOOTSTRAPPED.get(name, []):
            rows = {} if method == "cluster" else {"data": data}
            yield f"{name}: {method} bootstrap", jm.bootstrap(fit, REPLICATES, method, seed=1, **rows).table.to_csv()
    if not only:
        study = jm.power(designs={"clusters": [20, 40], "size": [5]}, replications=32, seed=1)
        yield "power", study.to_json()


def write(folder: Path, only: list[str] | None) -> None:
    """Write every text to a file of its own."""
    import jaxmed as jm

    warnings.simplefilter("ignore")
    print(Path(jm.__file__).parent, file=sys.stderr)
    for name, text in numbers(jm, only):
        (folder / f"{name.replace(': ', ' - ')}.txt").write_text(text)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
HOW = ("n_iter", "grad_norm", "decrement", "trace")  # of the way to the optimum, not of the optimum


def apart(one: bytes, other: bytes) -> float:
    """Largest difference of the numbers in two texts, relative to what is above 1e-3; infinite if words differ."""
    texts = [text.decode() for text in (one, other)]
    if texts[0].startswith("{"):
        plain = [json.loads(text) for text in texts]
        texts = [json.dumps({key: value for key, value in of.items() if key not in HOW}) for of in plain]
    elif texts[0].startswith("replicate,"):
        tables = [pd.read_csv(io.StringIO(text)).drop(columns=list(HOW[:2])) for text in texts]
        texts = [table.to_csv() for table in tables]
    if NUMBER.sub("#", texts[0]) != NUMBER.sub("#", texts[1]):
        return float("inf")
    first, second = (np.array(NUMBER.findall(text), dtype=float) for text in texts)
    return float(np.max(np.abs(first - second) / np.maximum(np.abs(first), 1e-3), initial=0.0))


def compare(commit: str, only: list[str] | None, within: float) -> int:
    """Run both and compare; how many texts differ by more than ``within``."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        before = work / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", before, commit], cwd=TOP, check=True)
        try:
            for name, tree in (("before", before), ("after", TOP)):
                (work / name).mkdir()
                command = [sys.executable, __file__, "--write", work / name, *(["--only", *only] if only else [])]
                subprocess.run(command, cwd=work, env=os.environ | {"PYTHONPATH": str(tree)}, check=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=TOP, check=True)
        texts = [{p.name: p.read_bytes() for p in (work / name).iterdir()} for name in ("before", "after")]
        names = texts[0].keys() | texts[1].keys()
        differing = sorted(name for name in names if texts[0].get(name) != texts[1].get(name))
        if within:
            sizes = {name: apart(texts[0].get(name, b""), texts[1].get(name, b"")) for name in differing}
            largest = max((size for size in sizes.values() if size <= within), default=0.0)
            print(f"{len(differing)} texts are not the same bytes; largest difference within {within:g}: {largest:.1e}")
            differing = [name for name in differing if sizes[name] > within]
        for name in differing:
            print(f"DIFFERS {name}")
            lines = [text.get(name, b"").decode().splitlines() for text in texts]
            for one, other in [pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]][:3]:
                print(f"  - {one[:200]}\n  + {other[:200]}")
        print(f"{len(texts[0])} texts of {commit}, {len(texts[1])} of the working tree, {len(differing)} differ")
        return len(differing)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--within", type=float, default=0.0, help="relative difference of numbers that counts as none")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.only)
    else:
        sys.exit(compare(arguments.commit, arguments.only, arguments.within) > 0)
