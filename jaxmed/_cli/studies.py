"""The commands ``jaxmed simulate`` and ``jaxmed power``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmed._cli import jobs
from jaxmed._cli.options import Job, check_outputs, note
from jaxmed._cli.schedulers import find_shard
from jaxmed._model import Spec
from jaxmed._results import load
from jaxmed._simulation import Population, Power, check_size, power, simulate
from jaxmed._support import ConvergenceWarning, SpecError, write_text

SIMULATE_SETTINGS = ("population", "clusters", "size", "seed", "out", "fit")
POWER_SETTINGS = (
    *("population", "vary", "clusters", "size", "replications", "seed", "intervals", "level", "terms", "reml"),
    *("replicates", "method", "target", "effect", "shard", "out", "json", "quiet", "effects", "fit"),
)

Numbers = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A number of the population, over its defaults: a=0.3, icc_x=0.1, m~x~~y~m=0.05; again per number.",
    ),
]
FromFit = Annotated[
    Path | None,
    typer.Option("--fit", metavar="FIT", help="A saved fit (jaxmed fit --save FIT): its estimates are the population."),
]


def simulate_command(
    numbers: Numbers = None,
    fit: FromFit = None,
    clusters: Annotated[int | None, typer.Option(help="Number of clusters (default 100).")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Rows of a cluster (default 8): 8, poisson:8, uniform:4:12, negative_binomial:8:6 (mean and sd)."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same data.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="OUT", help="A .csv file; without it, stdout.")] = None,
    job: Job = None,
) -> None:
    """Draw data from a population of the model and write them as CSV.

    Without options the population is that of Bauer, Preacher & Gil (2006), in columns id, x, m, y.
    """
    given = {"fit": fit, "clusters": clusters, "size": _sizes(size, one=True), "seed": seed, "out": out}
    settings = jobs.settings_of("simulate", job, given, SIMULATE_SETTINGS)
    if settings.get("seed") is None:
        raise SpecError("give --seed: the seed of the random numbers")
    check_outputs(settings, "out")
    chosen = {name: settings[name] for name in ("clusters", "size", "seed") if settings.get(name) is not None}
    text = simulate(_population(settings, _numbers(numbers, one=True)), **chosen).to_csv(index=False)
    if settings.get("out") is None:
        typer.echo(text, nl=False)
    else:
        write_text(Path(settings["out"]), text)


def power_command(
    file: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="A job file (TOML); options given here win.")
    ] = None,
    numbers: Numbers = None,
    fit: FromFit = None,
    clusters: Annotated[
        str | None, typer.Option(metavar="J,J", help="Numbers of clusters: one, or several with commas.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Rows of a cluster: 8; 4,8,16; poisson:8; uniform:4:12."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary", metavar="NAME=V,V", help="A number that varies over designs: a=0.1,0.3; again per number."
        ),
    ] = None,
    replications: Annotated[int | None, typer.Option(help="Data sets of a design (default 1000).")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same table.")] = None,
    intervals: Annotated[
        list[str] | None,
        typer.Option("--intervals", help="delta, bauer, block, monte_carlo, profile, percentile, ...; again for more."),
    ] = None,
    level: Annotated[float | None, typer.Option(help="Confidence level of the intervals (default 0.95).")] = None,
    replicates: Annotated[int | None, typer.Option(help="Bootstrap replicates of a data set (default 500).")] = None,
    target: Annotated[
        float | None, typer.Option(help="Search the number of clusters that gives this power, such as 0.8.")
    ] = None,
    effect: Annotated[str | None, typer.Option(help="Effect of the search (default: indirect).")] = None,
    shard: Annotated[
        str | None, typer.Option(help="I/K: part I of K, from 0; auto, auto/K: as for jaxmed bootstrap.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder for the results; the same command goes on there."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the table as JSON (- for stdout).")
    ] = None,
    quiet: Annotated[bool | None, typer.Option("--quiet", help="Do not print the table.")] = None,
    job: Job = None,
) -> None:
    """Simulate studies over a grid of designs: bias, standard errors, coverage and power, with Monte Carlo errors.

    With --shard the results go to the --out FOLDER; the same command without it puts them together. Exit code 0: done;
    1: a search did not reach its target, or output could not be written; 2: bad input; 130: interrupted, what is done
    is in the folder.
    """
    given = {
        "fit": fit,
        "clusters": _counts(clusters),
        "size": _sizes(size, one=False),
        "vary": _numbers(vary, one=False) or None,
        "replications": replications,
        "seed": seed,
        "intervals": intervals,
        "level": level,
        "replicates": replicates,
        "target": target,
        "effect": effect,
        "shard": shard,
        "out": out,
        "json": json,
        "quiet": quiet,
    }
    if file is not None and job is not None:
        raise SpecError("two job files are given, JOB and --job; leave out one")
    settings = jobs.settings_of("power", file or job, given, POWER_SETTINGS)
    if settings.get("seed") is None:
        raise SpecError("give --seed: the seed of the random numbers")
    part = find_shard(str(settings.get("shard", "0/1")), os.environ)
    if part[1] > 1 and settings.get("out") is None:
        raise SpecError("--shard needs --out FOLDER, where the shards are put together")
    check_outputs(settings, "json")
    names = ("seed", "intervals", "level", "terms", "reml", "replicates", "method", "target", "effect", "out")
    options = {name: settings[name] for name in names if settings.get(name) is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # shown below
        study = power(
            _population(settings, _numbers(numbers, one=True)),
            _designs(settings),
            settings.get("replications", 1000),
            shard=part,
            **options,
        )
    if part[1] > 1:
        typer.echo(f"shard {part[0]} of {part[1]}: {len(study.replications)} data sets in {settings['out']}")
        for text in study.notes:
            note(text)
        return
    _show(study, settings)


def _show(study: Power, settings: Mapping[str, Any]) -> None:
    target = settings.get("json")
    if str(target) == "-" or settings.get("quiet"):
        for text in study.notes:
            note(text)
    if str(target) == "-":
        typer.echo(study.to_json())
        return
    if target is not None:
        write_text(Path(target), study.to_json() + "\n")
    if not settings.get("quiet"):
        typer.echo(study.summary(settings.get("effects")))


def _population(settings: Mapping[str, Any], numbers: Mapping[str, Any]) -> Population:
    """The population that settings describe: of a saved fit, standardised, or by numbers over the defaults."""
    said = dict(settings.get("population") or {})
    source = settings.get("fit") or said.pop("fit", None)
    said.pop("fit", None)
    model = _model(settings)
    said |= numbers
    if source is not None:
        if model is not None:
            raise SpecError("the saved fit says the whole model; leave out [model]")
        return Population.from_fit(load(source)).replace(**_own(said), numbers=said)
    if said.pop("standardized", False):
        if model is not None:
            raise SpecError("a standardized population has a model of its own; leave out [model]")
        absent = [name for name in ("a", "b") if name not in said]
        if absent:
            raise SpecError(f"a standardized population needs {absent[0]}, the standardised slope")
        return Population.standardized(**said)
    return Population(model, **_own(said), numbers=said)


def _own(said: dict[str, Any]) -> dict[str, Any]:
    """Options of a population that are no numbers, taken out."""
    return {name: said.pop(name) for name in ("cluster_level", "random_effects", "residuals") if name in said}


def _model(settings: Mapping[str, Any]) -> Spec | None:
    given = any(settings.get(name) is not None for name in jobs.SETTINGS)
    return jobs.model_of(settings) if given else None


def _designs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The grid: clusters, sizes and numbers that vary."""
    vary = settings.get("vary") or {}
    if not isinstance(vary, Mapping):
        raise SpecError(f"vary={vary!r} must be a table such as {{a = [0.1, 0.3]}}")
    return {name: settings[name] for name in ("clusters", "size") if settings.get(name) is not None} | dict(vary)


def _counts(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in jobs.split_names(text)]
    except ValueError as error:
        raise SpecError(f"--clusters {text!r} is not understood; write whole numbers, such as 25,50,100") from error


def _sizes(text: str | None, *, one: bool) -> Any:
    """``"4,8"`` -> [4, 8]; ``"poisson:8"`` -> {"poisson": 8}; for one design the single entry."""
    if text is None:
        return None
    found = [_size(part) for part in jobs.split_names(text)]
    if not found or (one and len(found) > 1):
        raise SpecError(f"--size {text!r}: give one size or distribution")
    return found[0] if one else found


def _size(text: str) -> Any:
    kind, *numbers = text.split(":")
    try:
        if not numbers:
            return check_size(int(kind))
        values = [int(number) if number.isdigit() else float(number) for number in numbers]
    except ValueError as error:
        raise SpecError(
            f"--size {text!r} is not understood; write 8, poisson:8, uniform:4:12 or negative_binomial:8:6"
        ) from error
    return check_size({kind: values if len(values) > 1 else values[0]})


def _numbers(options: Sequence[str] | None, *, one: bool) -> dict[str, Any]:
    """``["a=0.3"]`` -> {"a": 0.3}; of several numbers ``["a=0.1,0.3"]`` -> {"a": [0.1, 0.3]}."""
    found: dict[str, Any] = {}
    for text in options or ():
        name, sign, value = text.rpartition("=")
        values = [_number(part, text) for part in jobs.split_names(value)] if name else []
        if not sign or not values or (one and len(values) > 1):
            raise SpecError(f"{text!r} is not understood; write NAME=VALUE" + ("" if one else " or NAME=VALUE,VALUE"))
        if name in found:
            raise SpecError(f"{name!r} is given twice; give it once")
        found[name] = values[0] if one else values
    return found


def _number(part: str, text: str) -> float | str:
    try:
        return float(part)
    except ValueError as error:
        if part in ("normal", "skewed", "heavy_tailed"):
            return part
        raise SpecError(f"{text!r}: {part!r} is no number") from error
