"""The sub-command that writes a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmed._cli import jobs
from jaxmed._cli.options import At, Job, KindOption, Level
from jaxmed._report import report as write_report
from jaxmed._results import load
from jaxmed._simulation import load_replicates
from jaxmed._support import SpecError

SETTINGS = ("fit", "replicates", "out", "kind", "level", "at")


def report(
    fit: Annotated[Path | None, typer.Argument(metavar="FIT", help="A fit that `jaxmed fit --save FIT` saved.")] = None,
    replicates: Annotated[
        Path | None,
        typer.Option(
            "--replicates", metavar="FOLDER", help="Replicates of `jaxmed bootstrap`, a folder or a merged file."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="OUT", help="The .html file to write.")] = None,
    kind: KindOption = None,
    level: Level = None,
    at: At = None,
    job: Job = None,
) -> None:
    """Write one HTML file about a saved fit: question, data, effects, plots, a methods paragraph, how to repeat it.

    It needs no network and no scripts. Exit code 0: written; 1: it could not be written, or the replicates are of
    another fit; 2: bad input.
    """
    given: dict[str, Any] = {
        "fit": fit,
        "replicates": replicates,
        "out": out,
        "kind": kind,
        "level": level,
        "at": jobs.parse_values(at),
    }
    settings = jobs.settings_of("report", job, given, SETTINGS)
    if settings.get("fit") is None:
        raise SpecError("which fit? Give the path of a fit that `jaxmed fit DATA ... --save FIT` saved")
    if settings.get("out") is None:
        raise SpecError("which file is to be written? Give -o report.html")
    fitted = load(settings["fit"])
    saved = None if settings.get("replicates") is None else load_replicates(settings["replicates"])
    options = {name: settings[name] for name in ("kind", "level", "at") if settings.get(name) is not None}
    write_report(fitted, settings["out"], saved, **options)
