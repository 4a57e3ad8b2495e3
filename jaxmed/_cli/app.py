"""The command line: one sub-command per task, results on stdout, errors on stderr in one line."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import pandas as pd
import typer

from jaxmed import __version__, datasets
from jaxmed._cli import jobs, studies
from jaxmed._cli.options import (
    ML,
    At,
    Centered,
    Cluster,
    CovarianceOption,
    Covariates,
    DataPath,
    Formulas,
    InterceptsOption,
    Job,
    KindOption,
    Level,
    M,
    MissingOption,
    Moderators,
    Random,
    Reference,
    ResidualsOption,
    Serial,
    X,
    Y,
    Zero,
    check_outputs,
    note,
)
from jaxmed._cli.report import report
from jaxmed._cli.schedulers import find_shard
from jaxmed._data import describe as describe_data
from jaxmed._data import is_moments, save_moments
from jaxmed._data import stack as stack_data
from jaxmed._inference import EffectCovariance, check_level, plain_data
from jaxmed._model import Spec
from jaxmed._results import Fit, load
from jaxmed._results import fit as fit_model
from jaxmed._simulation import BootstrapMethod, IntervalKind, Replicates, bootstrap, load_replicates
from jaxmed._support import (
    ConvergenceWarning,
    DataError,
    DesignWarning,
    FitError,
    JaxmedError,
    SpecError,
    check_choice,
    escape_control,
    write_text,
)
from jaxmed._support.runtime import drop_loader_noise, finish_threads, use_compilation_cache

BAD_INPUT, NO_FIT, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Multilevel mediation: x moves a mediator m, m moves y, observed within clusters, with effects that vary "
        "between clusters. Start with `jaxmed demo`, then `jaxmed fit DATA --x X --m M --y Y --cluster ID`."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxmed {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    use_compilation_cache()


app.command("simulate")(studies.simulate_command)
app.command("power")(studies.power_command)


@app.command()
def demo() -> None:
    """Fit the bundled example data and say what to do next."""
    typer.echo(
        "Simulated data: 100 clusters of 8 rows, columns id, x, m, y. In the population the average indirect effect\n"
        "is ab + cov(a_j, b_j) = .6 x .6 + .113 = .473 and the average total effect .673.\n"
    )
    fit = fit_model(datasets.load_example(), x="x", m="m", y="y", cluster="id")
    typer.echo(fit.summary())
    typer.echo(
        "Your data next:   jaxmed fit DATA.csv --x X --m M --y Y --cluster ID\n"
        "See it first:     jaxmed describe DATA.csv --x X --m M --y Y --cluster ID\n"
        "In Python:        import jaxmed as jm; jm.fit('DATA.csv', x='X', m='M', y='Y', cluster='ID').effects()"
    )


@app.command()
def fit(
    data: DataPath = None,
    x: X = None,
    m: M = None,
    y: Y = None,
    cluster: Cluster = None,
    serial: Serial = None,
    covariates: Covariates = None,
    moderators: Moderators = None,
    center: Centered = None,
    reference: Reference = None,
    random: Random = None,
    covariance: CovarianceOption = None,
    residuals: ResidualsOption = None,
    intercepts: InterceptsOption = None,
    zero: Zero = None,
    formulas: Formulas = None,
    ml: ML = None,
    missing: MissingOption = None,
    se: Annotated[
        EffectCovariance | None,
        typer.Option(
            help="joint: all parameters together (default, unless rows of a cluster are less alike than others). "
            "bauer: the formulas of Bauer et al. (2006). robust: cluster-robust (sandwich)."
        ),
    ] = None,
    level: Level = None,
    at: At = None,
    difference: Annotated[
        bool | None, typer.Option("--difference", help="Also print differences of effects between these values.")
    ] = None,
    heterogeneity: Annotated[
        bool | None, typer.Option("--heterogeneity", help="Also print how effects vary between clusters.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write all results as JSON to this file (- for stdout)."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="OUT", help="Save the fit, to go on with jaxmed.load in Python.")
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Save what was read, to a .moments file that stands for DATA in later fits."),
    ] = None,
    max_iter: Annotated[int | None, typer.Option(help="Newton iterations at the most (default 100).")] = None,
    verbose: Annotated[bool | None, typer.Option("--verbose", help="Print the iteration log to stderr.")] = None,
    quiet: Annotated[bool | None, typer.Option("--quiet", help="Do not print the tables.")] = None,
    job: Job = None,
) -> None:
    """Fit a mediation model to a file and print effects, coefficients and variances.

    Rows with a missing y still inform the equation of m; how many rows count where, and how many are left out, is
    printed. Exit code 0: fitted; 1: no convergence, or output could not be written; 2: bad input.
    """
    given = _given(locals())
    given["random"] = _random(random)
    given["at"] = jobs.parse_values(at)
    given["reml"] = None if ml is None else not ml
    settings = jobs.settings_of("fit", job, given, FIT_SETTINGS)
    level, se = check_level(settings.get("level", 0.95)), settings.get("se")
    if se is not None:
        check_choice("se", se, EffectCovariance)
    shown = {name: settings[name] for name in ("at", "difference", "heterogeneity") if settings.get(name)}
    model = jobs.model_of(settings)
    if shown and not model.has_effects:
        raise SpecError(f"{next(iter(shown))} is of effects, and formulas have none; give x, m, y and cluster instead")
    moments = settings.get("moments")
    if moments is not None and not is_moments(moments):
        raise SpecError(f"--moments {str(moments)!r}: the name of a file of moments must end in .moments")
    check_outputs(settings, "json", "save", "moments")
    fitted = _fit(settings, model)
    if moments is not None:
        save_moments(fitted.moments, moments)
    json, save = settings.get("json"), settings.get("save")
    if settings.get("verbose"):
        _log(fitted)
    if not settings.get("quiet") and str(json) != "-":
        typer.echo(fitted.summary(se, level, **shown))
    if json is not None:
        text = fitted.to_json(**shown, robust=se == "robust")
        if str(json) == "-":
            typer.echo(text)
        else:
            write_text(Path(json), text + "\n")
    if save is not None:
        fitted.save(save)
    if not fitted.converged:
        raise FitError(fitted.message)


@app.command()
def describe(
    data: DataPath = None,
    x: X = None,
    m: M = None,
    y: Y = None,
    cluster: Cluster = None,
    serial: Serial = None,
    covariates: Covariates = None,
    moderators: Moderators = None,
    center: Centered = None,
    reference: Reference = None,
    formulas: Formulas = None,
    job: Job = None,
) -> None:
    """Counts, missing values, means, ranges, intraclass correlations, correlations and cluster sizes."""
    settings = jobs.settings_of("describe", job, _given(locals()), ("data",))
    typer.echo(str(describe_data(_data(settings), jobs.model_of(settings))))


@app.command()
def stack(
    data: DataPath = None,
    x: X = None,
    m: M = None,
    y: Y = None,
    cluster: Cluster = None,
    serial: Serial = None,
    covariates: Covariates = None,
    moderators: Moderators = None,
    center: Centered = None,
    reference: Reference = None,
    formulas: Formulas = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="OUT", help="A .csv file; without it, stdout.")] = None,
    job: Job = None,
) -> None:
    """Write the stacked long table (y on m, with indicators and products) as CSV, for teaching or another program."""
    settings = jobs.settings_of("stack", job, _given(locals()), ("data", "out"))
    check_outputs(settings, "out")
    text = stack_data(_data(settings), jobs.model_of(settings)).to_csv(index=False)
    if settings.get("out") is None:
        typer.echo(text, nl=False)
    else:
        write_text(Path(settings["out"]), text)


@app.command("bootstrap")
def bootstrap_command(
    data: DataPath = None,
    x: X = None,
    m: M = None,
    y: Y = None,
    cluster: Cluster = None,
    serial: Serial = None,
    covariates: Covariates = None,
    moderators: Moderators = None,
    center: Centered = None,
    reference: Reference = None,
    random: Random = None,
    covariance: CovarianceOption = None,
    residuals: ResidualsOption = None,
    intercepts: InterceptsOption = None,
    zero: Zero = None,
    formulas: Formulas = None,
    ml: ML = None,
    missing: MissingOption = None,
    max_iter: Annotated[
        int | None, typer.Option(help="Newton iterations of the fit at the most (default 100).")
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option("--fit", metavar="FIT", help="A saved fit (jaxmed fit --save FIT), instead of a model's options."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Replicates in all, of all shards together.")] = None,
    method: Annotated[
        BootstrapMethod | None,
        typer.Option(help="How data sets are made (default: parametric). residual and two_stage need DATA."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same draws.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/K: part I of K, from 0. auto: from Slurm or Grid Engine; auto/K: from Kubernetes, PBS, LSF."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder for the replicates; the same command goes on there."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Replicates that are computed together (default: up to 256).")
    ] = None,
    at: At = None,
    kind: KindOption = None,
    level: Level = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the intervals as JSON (- for stdout).")
    ] = None,
    quiet: Annotated[bool | None, typer.Option("--quiet", help="Do not print the intervals.")] = None,
    job: Job = None,
) -> None:
    """Bootstrap a fit: refit the model to data sets made from it, by the thousand, in shards that can stop and go on.

    With --shard the replicates go to the --out FOLDER and `jaxmed merge FOLDER` puts the shards together. Exit code 0:
    done; 1: the fit did not converge, or output could not be written; 2: bad input; 130: interrupted, what is done is
    in the folder.
    """
    given = _given(locals())
    given["random"] = _random(random)
    given["at"] = jobs.parse_values(at)
    given["reml"] = None if ml is None else not ml
    settings = jobs.settings_of("bootstrap", job, given, BOOTSTRAP_SETTINGS)
    absent = [name for name in ("n", "seed") if settings.get(name) is None]
    if absent:
        meaning = "--n is the number of replicates, --seed that of their draws"
        raise SpecError(f"give --{' and --'.join(absent)} ({meaning})")
    kind, level = settings.get("kind", "percentile"), check_level(settings.get("level", 0.95))
    check_choice("kind", kind, IntervalKind)
    part = find_shard(str(settings.get("shard", "0/1")), os.environ)
    if part[1] > 1 and settings.get("out") is None:
        raise SpecError("--shard needs --out FOLDER, where the shards are put together")
    check_outputs(settings, "json")
    if settings.get("fit") is not None:
        extra = [name for name in (*jobs.SETTINGS, "reml", "missing", "max_iter") if settings.get(name) is not None]
        if extra:
            raise SpecError(f"the saved fit says the whole model; leave out {extra[0]!r}")
        fitted = load(settings["fit"])
    else:
        fitted = _fit(settings, jobs.model_of(settings))
    options = {name: settings[name] for name in ("method", "out", "batch", "at") if settings.get(name) is not None}
    rows = settings.get("data")
    if rows is not None and not is_moments(rows):
        options["data"] = Path(rows)
    with _notes():
        replicates = bootstrap(fitted, settings["n"], seed=settings["seed"], shard=part, **options)
    if part[1] > 1:
        typer.echo(f"shard {part[0]} of {part[1]}: {len(replicates)} replicates in {settings['out']}")
        return
    _show(replicates, kind, level, fitted, settings.get("json"), bool(settings.get("quiet")))


@app.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Folders and files of replicates.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write all replicates to one parquet file.")
    ] = None,
    kind: KindOption = None,
    level: Level = None,
    fit: Annotated[
        Path | None, typer.Option("--fit", metavar="FIT", help="The saved fit, which --kind bca needs.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the intervals as JSON (- for stdout).")
    ] = None,
    quiet: Annotated[bool | None, typer.Option("--quiet", help="Do not print the intervals.")] = None,
) -> None:
    """Put the shards of a bootstrap together, say what is missing or there twice, and print intervals.

    Refuses replicates of different models, data or seeds. Exit code 0: all replicates are there; 1: some are missing.
    """
    check_outputs({"out": out, "json": json}, "out", "json")
    replicates = load_replicates(paths)
    if out is not None:
        replicates.save(out)
    if replicates.duplicates:
        typer.echo(f"{replicates.duplicates} replicates were there twice and count once", err=True)
    if len(replicates):
        fitted = None if fit is None else load(fit)
        chosen: IntervalKind = "percentile" if kind is None else kind
        _show(replicates, chosen, check_level(0.95 if level is None else level), fitted, json, bool(quiet))
    if replicates.gaps:
        missing = ", ".join(
            f"{first}" if first == last else f"{first} to {last}" for first, last in replicates.gaps[:5]
        )
        more = f" and {len(replicates.gaps) - 5} more gaps" if len(replicates.gaps) > 5 else ""
        count = sum(last - first + 1 for first, last in replicates.gaps)
        raise FitError(
            f"{count} of {replicates.origin.requested} replicates are missing: {missing}{more}; run the shards that "
            "are not done again, they go on where they stopped"
        )


app.command()(report)


@contextmanager
def _notes() -> Iterator[None]:
    """Say warnings of jaxmed's as one line each."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        yield
    for warning in said:
        note(str(warning.message))


def _show(
    replicates: Replicates, kind: IntervalKind, level: float, fitted: Fit | None, json: Path | None, quiet: bool
) -> None:
    """Intervals from replicates, as a table or as JSON."""
    with _notes():
        table = replicates.intervals(kind, level, fit=fitted)
    if not quiet and str(json) != "-":
        typer.echo(
            f"{len(replicates)} replicates, {replicates.method} bootstrap, seed {replicates.seed}: {kind} intervals, "
            f"level {level:g}\n"
        )
        typer.echo(escape_control(table.to_string(float_format=lambda value: f"{value:.4f}"), "\n"))
    if json is not None:
        rows = plain_data(
            table.reset_index(names=table.index.names if table.index.nlevels > 1 else "effect").to_dict("records")
        )
        text = jobs.to_json(replicates.to_dict() | {"kind": kind, "level": level, "intervals": rows})
        typer.echo(text) if str(json) == "-" else write_text(Path(json), text + "\n")


def _fit(settings: Mapping[str, Any], model: Spec) -> Fit:
    """The fit that settings ask for."""
    options = {name: settings[name] for name in ("reml", "missing", "max_iter") if name in settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", DesignWarning)  # the summary says so too
        return fit_model(_data(settings), model, **options)


BOOTSTRAP_SETTINGS = (
    *("data", "reml", "missing", "max_iter", "fit", "n", "method", "seed", "shard", "out", "batch"),
    *("at", "kind", "level", "json", "quiet"),
)
FIT_SETTINGS = (
    *("data", "reml", "missing", "max_iter", "se", "level", "at", "difference", "heterogeneity"),
    *("json", "save", "moments", "verbose", "quiet"),
)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line as settings, lists of names taken apart."""
    given = dict(options)
    given["m"] = given["m"][0] if given.get("m") and len(given["m"]) == 1 else given.get("m") or None
    given["covariates"] = jobs.parse_lists(given["covariates"], "--covariate", keys="OUTCOME")
    given["formulas"] = given["formulas"] or None
    given["moderators"] = _moderators(given["moderators"])
    given["reference"] = _reference(given["reference"])
    given["zero"] = [jobs.split_names(text) for text in given.get("zero") or ()] or None
    return given


def _data(settings: Mapping[str, Any]) -> Path:
    if settings.get("data") is None:
        raise SpecError("which data? Give the path of a .csv, .parquet, .dta, .feather or .moments file")
    return Path(settings["data"])


def _moderators(options: Sequence[str] | None) -> dict[str, list[str]] | list[str] | None:
    """``["w=a,b", "v=c_prime"]`` or ``["w", "v"]``."""
    named = [text for text in options or () if "=" in text]
    if named and len(named) < len(options or ()):
        bare = next(text for text in options or () if "=" not in text)
        raise SpecError(f"--moderator {bare!r}: name its paths too, as with {named[0]!r}, e.g. {bare}=a,b,c_prime")
    return jobs.parse_lists(options, "--moderator", keys="MODERATOR")


def _reference(options: Sequence[str] | None) -> dict[str, str] | None:
    """``["site=A"]`` -> ``{"site": "A"}``."""
    pairs = [text.partition("=") for text in options or ()]
    wrong = [name for name, sign, category in pairs if not (name and sign and category)]
    if wrong:
        raise SpecError(f"--reference {wrong[0]!r} is not understood; write --reference COLUMN=CATEGORY")
    names = [name for name, _, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SpecError(f"--reference names {twice[0]!r} twice; each column has one category to compare with")
    return {name: category for name, _, category in pairs} or None


def _random(options: Sequence[str] | None) -> str | dict[str, list[str]] | None:
    """``["M=1,X", "Y=1,M"]`` -> ``{"M": ["1", "X"], "Y": ["1", "M"]}``; "all" and "none" as they are."""
    if options and len(options) == 1 and options[0] in ("all", "none"):
        return options[0]
    chosen = jobs.parse_lists(options, "--random", keys="OUTCOME")
    if isinstance(chosen, list):
        raise SpecError(
            f"--random {(options or [''])[0]!r} is not understood; write --random OUTCOME=1,COLUMN once per outcome, "
            "or all, or none"
        )
    return chosen


def _log(fitted: Fit) -> None:
    """Iteration log in the manner of mixed-model programs, on stderr."""
    typer.echo("  iteration  stage    -log likelihood (working scale)  Newton decrement", err=True)
    for at, (stage, value, decrement) in enumerate(fitted.trace):
        name = "Newton" if stage else "L-BFGS"
        left = "" if pd.isna(decrement) else f"{decrement:.3e}"
        typer.echo(f"  {at:>9}  {name}  {value:>30.8f}  {left:>16}", err=True)


class _Interrupted(BaseException):
    """Ctrl-C, under a name that the option parser does not catch for itself."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted


def _open_streams() -> None:
    """Open streams that were closed, to nowhere: else a result file gets their number, and native code writes to it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C, and SIGTERM by which schedulers end a job, interrupt the work; the caller's handlers come back."""
    earlier = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            if handler is not None:  # None: it was not set from Python, and cannot be
                signal.signal(number, handler)


def main() -> None:
    """Entry point: run a sub-command and turn every expected error into one line and an exit code."""
    _open_streams()
    drop_loader_noise()
    with _signals():
        _run()


def _run() -> None:
    try:
        app()
    except _Interrupted as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one while threads end would be a crash
        _say(f"interrupted; {'; '.join(getattr(error, '__notes__', ['nothing was written']))}")
        finish_threads()
        sys.exit(INTERRUPTED)
    except (DataError, SpecError) as error:
        _stop(str(error), BAD_INPUT)
    except JaxmedError as error:
        _stop(str(error), NO_FIT)
    except MemoryError as error:
        _stop(f"there is not enough memory for this ({error})", NO_FIT)
    except BrokenPipeError:  # the reader, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter tries to write the rest at its end
        _stop(f"the output could not be written: {error.strerror or error}", NO_FIT)


def _say(message: str) -> None:
    print(f"jaxmed: error: {escape_control(' '.join(message.split()))}", file=sys.stderr, flush=True)


def _stop(message: str, code: int) -> None:
    _say(message)
    sys.exit(code)
