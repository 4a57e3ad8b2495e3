"""What a simulation study found: bias, standard errors, coverage, power by design, each with its Monte Carlo error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pandas as pd

from jaxmed._inference import check_level, plain_data
from jaxmed._simulation.study import OWN, Analysis, Design, Truth, columns_of, converged, limits_of, named
from jaxmed._support import (
    Count,
    DataError,
    Floats,
    SpecError,
    all_files,
    check_path,
    convert,
    damaged,
    escape_control,
    open_folder,
    read_table,
    shown,
    write_table,
)

FORMAT = 1
WHAT = "a power study"
MEASURES = (
    *("truth", "replications", "converged", "singular", "mean", "bias", "sd", "mean_se", "se_bias"),
    *("used", "coverage", "too_low", "too_high", "width", "power", "type_1_error"),
)


class AnalysisForm(TypedDict):
    """What is read back of an analysis."""

    intervals: list[str]
    level: float


class CellForm(TypedDict):
    """What a file says that it is of; NaN is null."""

    key: str
    design: dict[str, str | int | float]
    population: dict[str, Any]
    analysis: AnalysisForm
    labels: tuple[str, ...]
    truth: list[float | None]
    requested: Count


class Cell(NamedTuple):
    """The data sets of one design.

    Attributes
    ----------
    columns : dict
        The design, as in tables.
    about : dict
        What its files say.
    truth : Truth
    table : DataFrame
        A row a data set, see :meth:`jaxmed._simulation.study.Study.run`.
    """

    columns: dict[str, Any]
    about: dict[str, Any]
    truth: Truth
    table: pd.DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Power:
    """Results of a simulation study.

    Attributes
    ----------
    table : DataFrame
        A row for every design, effect and interval. Columns of the design (``clusters``, ``size``, numbers that vary),
        ``effect``, ``interval``, and then, most of them followed by their Monte Carlo standard error ``..._mcse``:

        ``truth``; ``replications``; ``converged`` and ``singular``, shares of the fits; of those that converged:
        ``mean``, ``bias``, ``sd`` of the estimates, ``mean_se`` (of the standard errors this interval rests on),
        ``se_bias`` = mean_se / sd - 1; ``used``, the share of fits that have this interval; of these: ``coverage``
        of the truth, ``too_low`` and ``too_high`` (the whole interval is below or above the truth), mean ``width``, and
        how often it excludes zero: ``power`` where the truth is not zero, ``type_1_error`` where it is.
    replications : DataFrame
        A row a data set: columns of the design (``a_true`` of a number that is estimated too), ``replication``,
        ``seed`` (with which :func:`jaxmed.simulate` draws the data set again), ``status``, ``n_iter``, ``singular``,
        estimates, standard errors, limits.
    needed : DataFrame or None
        With ``target``: the number of clusters at which the power is reached.
    """

    table: pd.DataFrame
    replications: pd.DataFrame
    needed: pd.DataFrame | None = None
    _cells: tuple[Cell, ...] = field(default=())

    @property
    def level(self) -> float:
        """Confidence level of the intervals."""
        return float(self._cells[0].about["analysis"]["level"])

    @property
    def notes(self) -> list[str]:
        """Designs of which no fit converged, a sentence each."""
        failed = [cell for cell in self._cells if len(cell.table) and converged(cell.table).empty]
        return [
            f"no fit of {len(cell.table)} data sets of the design ({named(cell.columns)}) converged: as a rule the "
            "model is then too rich for them; take more clusters, larger ones, or fewer random effects"
            for cell in failed
        ]

    def __repr__(self) -> str:
        designs = len(self._cells)
        return f"<{type(self).__name__}: {designs} designs, {len(self.replications)} data sets>"

    def __str__(self) -> str:
        return self.summary()

    def summary(self, effects: str | Sequence[str] | None = None) -> str:
        """The main columns as text, of all effects or some; :class:`jaxmed.SpecError` for others.

        Examples
        --------
        >>> import jaxmed as jm
        >>> study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1)
        >>> study.summary("indirect").split()[:5]
        ['clusters', 'size', 'effect', 'interval', 'truth']
        """
        known = list(dict.fromkeys(self.table["effect"]))
        names = known if effects is None else np.atleast_1d(np.asarray(effects, dtype=object)).tolist()
        unknown = [name for name in names if name not in known]
        if unknown:
            raise SpecError(f"effects has {unknown[0]!r}; this study reports {known}")
        chosen = self.table[self.table["effect"].isin(names)]
        design = list(chosen.columns[: chosen.columns.get_loc("effect")])
        measures = ["truth", "bias", "sd", "mean_se", "se_bias", "coverage", "coverage_mcse", "width"]
        measures += [
            "power",
            "power_mcse",
            "type_1_error",
            "type_1_error_mcse",
            "converged",
            "singular",
            "replications",
        ]
        lost = (chosen["sd"] > 0) & (chosen["used"] < chosen["converged"])
        measures += ["used"] if lost.any() else []  # else every data set that converged has its intervals
        shown = chosen[[*design, "effect", "interval", *measures]].dropna(axis=1, how="all")
        text = shown.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="")
        for note in self.notes:
            text += f"\n\nNote: {note}"
        if self.needed is not None:
            needed = self.needed.to_string(index=False, float_format=lambda value: f"{value:.3f}")
            text += f"\n\nNumber of clusters for the power asked for\n{needed}"
        return escape_control(text, "\n")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the study, ``table`` and ``needed`` as lists of rows.

        Examples
        --------
        >>> import jaxmed as jm
        >>> study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1)
        >>> study.to_dict()["table"][0]["clusters"]
        20
        """
        found: dict[str, Any] = {
            "analysis": self._cells[0].about["analysis"],
            "populations": [cell.about["population"] | {"design": cell.columns} for cell in self._cells],
            "table": plain_data(self.table.to_dict("records")),
        }
        if self.needed is not None:
            found["needed"] = plain_data(self.needed.to_dict("records"))
        return found

    def to_json(self) -> str:
        """JSON text of :meth:`to_dict`.

        Examples
        --------
        >>> import jaxmed as jm
        >>> study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1)
        >>> study.to_json().splitlines()[1]
        ' "analysis": {'
        """
        return escape_control(json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False), "\n")

    def save(self, folder: str | Path) -> None:
        """Write every design's data sets to a file of a folder, which :func:`jaxmed.load_power` reads.

        Raises
        ------
        SpecError
            ``folder`` is no path.
        FitError
            A file cannot be written.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> import jaxmed as jm
        >>> study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1)
        >>> with TemporaryDirectory() as folder:
        ...     study.save(folder)
        ...     jm.load_power(folder).table.equals(study.table)
        True
        """
        folder = check_path("folder", folder)
        open_folder(folder)
        for cell in self._cells:
            write_table(folder / f"{cell.about['key']}.parquet", cell.table, cell.about)


def about(design: Design, analysis: Analysis, truth: Truth, requested: int) -> dict[str, Any]:
    """What files of a design say that they are of."""
    return {
        "format": FORMAT,
        "kind": WHAT,
        "key": design.key,
        "design": design.columns,
        "population": design.population.to_dict(),
        "analysis": analysis.to_dict(),
        "labels": list(truth.labels),
        "truth": plain_data(truth.values.tolist()),
        "requested": requested,
    }


def no_cell(analysis: Analysis) -> Cell:
    """What a folder says of itself: a study, and no design of it."""
    about = {"format": FORMAT, "kind": WHAT, "key": "0" * 16, "design": {}, "population": {}, "requested": 0}
    about |= {"analysis": analysis.to_dict(), "labels": [], "truth": []}
    return Cell({}, about, Truth((), np.zeros(0)), pd.DataFrame({name: np.zeros(0, dtype=np.int64) for name in OWN}))


def make_power(cells: Sequence[Cell], needed: pd.DataFrame | None = None) -> Power:
    """Results of some designs."""
    cells = tuple(cells)
    names = list(dict.fromkeys(name for cell in cells for name in cell.columns))
    parts = [
        cell.table.assign(**{_beside(name, cell.table): value for name, value in cell.columns.items()})
        for cell in cells
    ]
    every = pd.concat(parts, ignore_index=True)
    first = [_beside(name, cells[0].table) for name in names]
    every = every[[*first, *(name for name in every.columns if name not in first)]]
    rows = [row for cell in cells for row in measures(cell)]
    mcse = ["bias", "sd", "se_bias", "coverage", "width", "power", "type_1_error", "converged", "singular"]
    order = [column for name in MEASURES for column in (name, *([f"{name}_mcse"] if name in mcse else []))]
    return Power(pd.DataFrame(rows)[[*names, "effect", "interval", *order]], every, needed, cells)


def _beside(name: str, table: pd.DataFrame) -> str:
    """Name of a column of the design beside estimates, one of which may be of the number that varies."""
    return f"{name}_true" if name in table.columns else name


def measures(cell: Cell) -> list[dict[str, Any]]:
    """Rows of the table of one design.

    Measures and Monte Carlo errors as in Morris, White & Crowther (2019, Statistics in Medicine 38:2074-2102), without
    assuming that estimates are normal.
    """
    analysis = cell.about["analysis"]
    level, table = check_level(analysis["level"]), cell.table
    n, used = len(table), converged(table)
    common = dict(cell.columns) | {"replications": n}
    common |= _share("converged", len(used), n) | _share("singular", int(used["singular"].sum()), len(used))
    rows = []
    for label, truth in zip(cell.truth.labels, cell.truth.values.tolist(), strict=True):
        estimate = used[label].to_numpy()
        sd, sd_error = _sd(estimate)
        mean = float(np.mean(estimate)) if len(estimate) else np.nan
        own = common | {"effect": label, "truth": truth, "mean": mean, "bias": mean - truth, "sd": sd}
        own |= {"bias_mcse": sd / np.sqrt(len(estimate)) if len(estimate) else np.nan, "sd_mcse": sd_error}
        for kind in analysis["intervals"]:
            lower, upper, error = limits_of(used, label, kind, level)
            rows.append(own | {"interval": kind} | _interval(lower, upper, truth, n) | _errors(error, estimate))
    return rows


def _share(name: str, count: int, of: int) -> dict[str, float]:
    share = count / of if of else np.nan
    return {name: share, f"{name}_mcse": float(np.sqrt(share * (1 - share) / of)) if of else np.nan}


def _sd(values: Floats) -> tuple[float, float]:
    """Standard deviation, and its standard error sd sqrt((kurtosis - 1) / 4n)."""
    if len(values) < 2:
        return np.nan, np.nan
    sd = float(np.std(values, ddof=1))
    return sd, sd * float(np.sqrt(max(_kurtosis(values) - 1, 0.0) / (4 * len(values))))


def _kurtosis(values: Floats) -> float:
    apart = values - values.mean()
    square = np.mean(apart**2)
    return float(np.mean(apart**4) / square**2) if square > 0 else np.nan


def _interval(lower: Floats, upper: Floats, truth: float, n: int) -> dict[str, Any]:
    """Coverage, misses, width and rejections of the intervals that there are."""
    there = np.isfinite(lower) & np.isfinite(upper) & (upper > lower)  # what is fixed has an interval of no width
    lower, upper = lower[there], upper[there]
    k = len(lower)
    found: dict[str, Any] = {"used": k / n if n else np.nan}
    known = truth == truth
    found |= _share("coverage", int(np.sum((lower <= truth) & (truth <= upper))), k if known else 0)
    for name, beside in (("too_low", upper < truth), ("too_high", lower > truth)):
        found[name] = float(np.mean(beside)) if k and known else np.nan
    width = upper - lower
    found["width"] = float(np.mean(width)) if k else np.nan
    found["width_mcse"] = float(np.std(width, ddof=1) / np.sqrt(k)) if k > 1 else np.nan
    excluded = int(np.sum((lower > 0) | (upper < 0)))
    found |= _share("power", excluded, k if known and truth != 0 else 0)
    return found | _share("type_1_error", excluded, k if truth == 0 else 0)


def _errors(error: Floats, estimate: Floats) -> dict[str, float]:
    """Mean standard error next to the sd of the estimates; its Monte Carlo error by the delta method."""
    there = np.isfinite(error)
    if there.sum() < 2:
        return {"mean_se": np.nan, "se_bias": np.nan, "se_bias_mcse": np.nan}
    error = error[there]
    mean, k = float(error.mean()), int(there.sum())
    sd, sd_error = _sd(estimate)
    if not sd > 0:
        return {"mean_se": mean, "se_bias": np.nan, "se_bias_mcse": np.nan}
    relative = np.sqrt(np.var(error, ddof=1) / (k * mean**2) + (sd_error / sd) ** 2)
    return {"mean_se": mean, "se_bias": mean / sd - 1, "se_bias_mcse": float(mean / sd * relative)}


# Files ---------------------------------------------------------------------------------------------------------------


def read_cell(path: Path) -> Cell:
    """The data sets of one file.

    Raises
    ------
    DataError
        No such file, or none of a power study.
    """
    table, said = read_table(path, WHAT)
    try:
        if said.get("kind") != WHAT or said.get("format") != FORMAT:
            raise ValueError(f"kind {said.get('kind')!r}, format {said.get('format')!r}")
        form = convert(said, CellForm)
        if not re.fullmatch("[0-9a-f]{16}", form["key"]):  # it becomes the name of a file
            raise ValueError(f"key {shown(form['key'])}")
        values = np.array([np.nan if value is None else value for value in form["truth"]], dtype=float)
        cell = Cell(form["design"], said, Truth(form["labels"], values), table)
        if len(set(cell.truth.labels)) < len(cell.truth.labels) or len(cell.truth.labels) != len(values):
            raise ValueError("labels and truth do not belong together")
        check_level(form["analysis"]["level"])
        wanted = columns_of(form["labels"], form["analysis"]["intervals"])
        wrong = [
            name
            for name in wanted
            if name not in table or table[name].dtype.kind not in ("ib" if name in OWN else "if")
        ]
        if wrong or len(set(table.columns)) < len(table.columns):
            raise ValueError(f"it has no column {wrong[0]!r} of numbers" if wrong else "a column is there twice")
    except (ValueError, AttributeError) as error:
        raise damaged(path, WHAT, error) from error
    return cell


def load_power(paths: str | Path | Iterable[str | Path]) -> Power:
    """Read the results of a simulation study from its folder, also while it runs.

    Parameters
    ----------
    paths : path or list of paths
        Folders that ``jaxmed.power(..., out=folder)`` filled, or files in them.

    Returns
    -------
    Power
        Data sets that several files hold are counted once.

    Raises
    ------
    DataError
        A file that cannot be read; results of different studies.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import jaxmed as jm
    >>> with TemporaryDirectory() as folder:
    ...     study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1, out=folder)
    ...     jm.load_power(folder).table.equals(study.table)
    True
    """
    by_design: dict[str, list[Cell]] = {}
    first: Cell | None = None
    for path in all_files(paths, "results of power studies"):
        cell = read_cell(path)
        first = first or cell
        refused = difference(first.about, cell.about)
        if refused:
            raise DataError(f"{str(path)!r} cannot be put together with the others: {refused}")
        if len(cell.table):
            by_design.setdefault(cell.about["key"], []).append(cell)
    if not by_design:
        raise DataError(f"there are no data sets of a power study in {str(paths)!r} yet")
    found = []
    for cells in by_design.values():
        table = pd.concat([cell.table for cell in cells]).sort_values("replication", ignore_index=True)
        found.append(cells[0]._replace(table=table[~table["replication"].duplicated()].reset_index(drop=True)))
    return make_power(sorted(found, key=lambda cell: [str(value).rjust(20) for value in cell.columns.values()]))


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What keeps two files from being of one study, in words; nothing if they may be."""
    for name, value in one["analysis"].items():
        if other["analysis"].get(name) != value:
            return f"they have different {name}, {value!r} and {other['analysis'].get(name)!r}"
    return ""
