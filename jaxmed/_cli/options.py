"""Options that several sub-commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmed._data import Missing
from jaxmed._model import Center, Intercepts, Residuals, Structure
from jaxmed._simulation import IntervalKind
from jaxmed._support import check_folder_of, check_path, escape_control

DataPath = Annotated[
    Path | None,
    typer.Argument(metavar="DATA", help="A .csv, .parquet, .dta or .feather file, one row per observation."),
]
X = Annotated[str | None, typer.Option("--x", help="Column of the predictor.")]
M = Annotated[list[str] | None, typer.Option("--m", help="Column of the mediator; again for each further mediator.")]
Y = Annotated[str | None, typer.Option("--y", help="Column of the outcome.")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="Column that says which cluster a row belongs to.")]
Serial = Annotated[
    bool | None, typer.Option("--serial/--parallel", help="Mediators act on the later ones, or side by side (default).")
]
Covariates = Annotated[
    list[str] | None,
    typer.Option(
        "--covariate", help="Further predictors: AGE,SITE of every equation, or M=AGE of one, again per outcome."
    ),
]
Moderators = Annotated[
    list[str] | None,
    typer.Option("--moderator", help="A column that paths depend on: W (all paths) or W=a,b; again per moderator."),
]
Centered = Annotated[
    Center | None,
    typer.Option(
        "--center",
        help="cluster: split x and m into cluster means and deviations from them. none: never, not even m where x does "
        "not vary within clusters.",
    ),
]
InterceptsOption = Annotated[
    Intercepts | None,
    typer.Option(
        "--intercepts",
        help="Whether random intercepts covary with other random effects (default: independent where m is split).",
    ),
]
Zero = Annotated[
    list[str] | None,
    typer.Option(
        "--zero",
        metavar="LABEL,LABEL",
        help="A covariance of two random effects held at zero: M~1,Y~1; again for more.",
    ),
]
Reference = Annotated[
    list[str] | None,
    typer.Option(
        "--reference", help="A categorical column and the category to compare with: SITE=A; again per column."
    ),
]
Formulas = Annotated[
    list[str] | None,
    typer.Option(
        "--formula",
        help="Instead of --x, --m, --y: an equation such as 'y ~ m + x + (1 + m | id)'; again per equation.",
    ),
]
Random = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "Coefficients that vary between clusters: all (default), none, or per outcome, e.g. "
            "--random M=1,X --random Y=1,M with your column names; 1 is the intercept, and an outcome that is not "
            "named has none."
        )
    ),
]
CovarianceOption = Annotated[
    Structure | None,
    typer.Option("--covariance", help="Covariance of the random effects: free, variances only, or within equations."),
]
ResidualsOption = Annotated[
    Residuals | None,
    typer.Option("--residuals", help="Residuals of parallel mediators within rows (default: correlated)."),
]
ML = Annotated[bool | None, typer.Option("--ml/--reml", help="Maximum likelihood, or restricted (REML, the default).")]
MissingOption = Annotated[
    Missing | None,
    typer.Option(
        "--missing", help="Rows with missing values: count where complete (default), only if complete, or refuse."
    ),
]
Level = Annotated[float | None, typer.Option(help="Confidence level of the intervals (default 0.95).")]
At = Annotated[list[str] | None, typer.Option("--at", help="Values of a moderator to show effects at: W=-1,0,1.")]
KindOption = Annotated[
    IntervalKind | None, typer.Option("--kind", help="Intervals from the replicates (default: percentile).")
]
Job = Annotated[
    Path | None,
    typer.Option("--job", metavar="TOML", help="A job file with the options of this command; options given here win."),
]


def check_outputs(settings: Mapping[str, Any], *names: str) -> None:
    """:func:`check_folder_of` of the files that settings name."""
    for name in names:
        if settings.get(name) is not None:
            check_folder_of(check_path(name, settings[name]))


def note(text: str) -> None:
    """Say something beside the results, in a line of stderr."""
    typer.echo(f"jaxmed: note: {escape_control(text)}", err=True)
