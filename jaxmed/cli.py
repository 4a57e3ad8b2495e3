"""The command line: one sub-command per task, results on stdout, errors on stderr in one line."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import pandas as pd
import typer

from jaxmed import __version__, datasets
from jaxmed._runtime import drop_loader_noise, use_compilation_cache
from jaxmed.describe import describe as describe_data
from jaxmed.describe import stack as stack_data
from jaxmed.errors import ConvergenceWarning, DataError, FitError, JaxmedError, SpecError
from jaxmed.fit import Fit
from jaxmed.fit import fit as fit_model
from jaxmed.spec import Mediation
from jaxmed.store import write_atomically

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


class StandardErrors(StrEnum):
    """Choices of --se."""

    JOINT = "joint"
    BAUER = "bauer"


class Covariance(StrEnum):
    """Choices of --covariance."""

    UNSTRUCTURED = "unstructured"
    DIAGONAL = "diagonal"
    BLOCK = "block"


DataPath = Annotated[
    Path, typer.Argument(metavar="DATA", help="A .csv, .parquet, .dta or .feather file, one row per observation.")
]
X = Annotated[str, typer.Option("--x", help="Column of the predictor.")]
M = Annotated[str, typer.Option("--m", help="Column of the mediator.")]
Y = Annotated[str, typer.Option("--y", help="Column of the outcome.")]
Cluster = Annotated[str, typer.Option("--cluster", help="Column that says which cluster a row belongs to.")]


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
    data: DataPath,
    x: X,
    m: M,
    y: Y,
    cluster: Cluster,
    ml: Annotated[
        bool, typer.Option("--ml", help="Maximum likelihood instead of restricted maximum likelihood (REML).")
    ] = False,
    se: Annotated[
        StandardErrors,
        typer.Option(help="joint: all parameters together (recommended). bauer: the formulas of Bauer et al. (2006)."),
    ] = StandardErrors.JOINT,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals, between 0 and 1.")] = 0.95,
    random: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Coefficients that vary between clusters: all (default), none, or per outcome, e.g. "
                "--random M=1,X --random Y=1,M with your column names; 1 is the intercept, and an outcome that is not "
                "named has none."
            )
        ),
    ] = None,
    covariance: Annotated[
        Covariance,
        typer.Option(help="Covariance of the random effects: free, variances only, or free within each equation."),
    ] = Covariance.UNSTRUCTURED,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write all results as JSON to this file (- for stdout)."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="OUT", help="Save the fit, to go on with jaxmed.load in Python.")
    ] = None,
    max_iter: Annotated[int, typer.Option(help="Newton iterations at the most.")] = 100,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the iteration log to stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the tables.")] = False,
) -> None:
    """Fit the 1-1-1 mediation model to a file and print effects, coefficients and variances.

    Rows with a missing y still inform the equation of m; rows with a missing x, m or cluster are left out, and how many
    is printed. Exit code 0: fitted; 1: no convergence, or output could not be written; 2: bad input.
    """
    if not 0 < level < 1:
        raise SpecError(f"level={level!r} is not a confidence level; give a number between 0 and 1, such as 0.95")
    spec = Mediation(x=x, m=m, y=y, cluster=cluster, random=_random(random), covariance=covariance.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = fit_model(data, spec, reml=not ml, max_iter=max_iter)
    if verbose:
        _log(fitted)
    if not quiet and json != Path("-"):
        typer.echo(fitted.summary(se.value, level))
    if json == Path("-"):
        typer.echo(fitted.to_json())
    elif json is not None:
        _write(json, fitted.to_json() + "\n")
    if save is not None:
        fitted.save(save)
    if not fitted.converged:
        raise FitError(fitted.message)


@app.command()
def describe(data: DataPath, x: X, m: M, y: Y, cluster: Cluster) -> None:
    """Counts, missing values, means, ranges, intraclass correlations, correlations and cluster sizes."""
    typer.echo(str(describe_data(data, Mediation(x=x, m=m, y=y, cluster=cluster))))


@app.command()
def stack(
    data: DataPath,
    x: X,
    m: M,
    y: Y,
    cluster: Cluster,
    out: Annotated[Path | None, typer.Option("--out", metavar="OUT", help="A .csv file; without it, stdout.")] = None,
) -> None:
    """Write the stacked long table (y on m, with indicators and products) as CSV, for teaching or another program."""
    text = stack_data(data, Mediation(x=x, m=m, y=y, cluster=cluster)).to_csv(index=False)
    if out is None:
        typer.echo(text, nl=False)
    else:
        _write(out, text)


def _random(options: Sequence[str] | None) -> str | dict[str, list[str]]:
    """``["M=1,X", "Y=1,M"]`` -> ``{"M": ["1", "X"], "Y": ["1", "M"]}``; "all" and "none" as they are."""
    if not options:
        return "all"
    if len(options) == 1 and options[0] in ("all", "none"):
        return options[0]
    chosen: dict[str, list[str]] = {}
    for option in options:
        outcome, sign, names = option.rpartition("=")
        if not sign or outcome in chosen:
            raise SpecError(
                f"--random {option!r} is not understood; write --random OUTCOME=1,COLUMN once per outcome, "
                "or all, or none"
            )
        chosen[outcome] = [name.strip() for name in names.split(",") if name.strip()]
    return chosen


def _log(fitted: Fit) -> None:
    """Iteration log in the manner of mixed-model programs, on stderr."""
    typer.echo("  iteration  stage    -log likelihood (working scale)  Newton decrement", err=True)
    for at, (stage, value, decrement) in enumerate(fitted.trace):
        name = "Newton" if stage else "L-BFGS"
        left = "" if pd.isna(decrement) else f"{decrement:.3e}"
        typer.echo(f"  {at:>9}  {name}  {value:>30.8f}  {left:>16}", err=True)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda stream: stream.write(text.encode()))


class _Interrupted(BaseException):
    """Ctrl-C, under a name that the option parser does not catch for itself."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted


def main() -> None:
    """Entry point: run a sub-command and turn every expected error into one line and an exit code."""
    drop_loader_noise()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except _Interrupted:
        _stop("interrupted; nothing was written", INTERRUPTED)
    except (DataError, SpecError) as error:
        _stop(str(error), BAD_INPUT)
    except JaxmedError as error:
        _stop(str(error), NO_FIT)
    except BrokenPipeError:  # the reader, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter tries to write the rest at its end
        _stop(f"the output could not be written: {error.strerror or error}", NO_FIT)


def _stop(message: str, code: int) -> None:
    print(f"jaxmed: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
