"""Simulation studies: coverage and power over a grid of designs, in shards that can stop and go on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from jaxmed._inference import check_level
from jaxmed._model import Spec, check_spec
from jaxmed._refit import batch_size
from jaxmed._simulation.bootstrapping import BootstrapMethod
from jaxmed._simulation.cluster_sizes import check_size
from jaxmed._simulation.population import Population, Shape, as_population
from jaxmed._simulation.power_result import Cell, Power, about, difference, make_power, no_cell, read_cell
from jaxmed._simulation.study import FEW, Analysis, Design, Study, check_intervals, digest
from jaxmed._support import (
    ConvergenceWarning,
    DataError,
    FitError,
    Ledger,
    SpecError,
    as_folder,
    check_choice,
    check_count,
    check_flag,
    check_shard,
    claim,
    counted,
    interrupted,
    one_or_more,
    open_folder,
    warn_caller,
)

MOST = 10_000_000  # data sets of a design
LARGEST = 100_000  # clusters, to which a search goes
ROUNDS = 8  # of a search
BETWEEN = 25  # clusters at which a search begins, and four times as many


def power(
    population: Any = None,
    designs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    replications: int = 1000,
    *,
    seed: int,
    intervals: str | Iterable[str] | None = None,
    level: float = 0.95,
    terms: str | Sequence[str] = "effects",
    model: Spec | None = None,
    reml: bool = True,
    replicates: int = 500,
    method: BootstrapMethod = "parametric",
    target: float | None = None,
    effect: str = "indirect",
    shard: tuple[int, int] = (0, 1),
    out: str | Path | None = None,
) -> Power:
    """Draw data sets from a population by the thousand, fit each, and report bias, coverage and power by design.

    A data set depends on the seed, its design and its number alone: shards, interruptions and what else is in the grid
    do not change it, and a larger grid or more replications add to what is there.

    Parameters
    ----------
    population : Population, Fit or dict, optional
        As for :func:`jaxmed.simulate`.
    designs : dict or list of dict, optional
        What varies: ``clusters``, ``size`` (each as in :func:`jaxmed.simulate`; of sizes give a list of numbers or
        distributions), any number of the population by name (``a``, ``icc_x``, ``"m~x~~y~m"``), ``random_effects`` and
        ``residuals``. A dict of lists is a grid of all combinations; a list of dicts names every design.
    replications : int
        Data sets of a design, of all shards together.
    seed : int
        Same seed, same table.
    intervals : str or list of str, optional
        ``"delta"``, ``"bauer"`` (or ``"block"``, of any model), ``"monte_carlo"`` (1,000 draws), which cost next to
        nothing; ``"robust"`` (delta intervals with cluster-robust standard errors), which is cheap; ``"profile"``,
        ``"percentile"``, ``"basic"``, ``"bc"``, ``"bca"``, ``"studentized"``, which refit every data set many times.
        By default ``"delta"`` and ``"bauer"``.
    level : float
        Of the intervals; tests are at 1 - ``level``.
    terms : "effects", "parameters", "all" or list of str
        What to report on.
    model : Mediation or System, optional
        The model to fit, where it is not the population's. What the population does not have has no truth.
    reml : bool
    replicates : int
        Bootstrap replicates for each data set.
    method : str
        Of the bootstrap, as in :func:`jaxmed.bootstrap`.
    target : float, optional
        Search the number of clusters at which the first of the intervals has this power for ``effect``; ``clusters``
        are then not part of the designs.
    effect : str
        Of the search.
    shard : (int, int)
        ``(i, k)`` computes part i = 0..k - 1 of k parts of the data sets. Not for a search.
    out : path, optional
        Folder to write to while the work goes on; the same call goes on from what is there. When all shards are done,
        the call without ``shard`` computes nothing and returns the whole; so does :func:`jaxmed.load_power`.

    Returns
    -------
    Power

    Warns
    -----
    ConvergenceWarning
        No fit of a design converged.

    Raises
    ------
    SpecError
        Something is not known or contradicts itself; a design that cannot answer the model.
    DataError
        ``out`` holds another study, or damaged files.
    FitError
        ``out`` cannot be written; a search does not reach its target.

    Notes
    -----
    Fits that do not converge are counted and left out. The search fits Phi^-1(power) = u + v sqrt(clusters) to the
    designs it has tried, and tries the number at which this line reaches the target, until that is one it has tried.

    Examples
    --------
    >>> import jaxmed as jm
    >>> study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20, 40]}, 64, seed=1)
    >>> study.table.query("effect == 'indirect'")[["clusters", "interval"]].values.tolist()
    [[20, 'delta'], [20, 'bauer'], [40, 'delta'], [40, 'bauer']]
    """
    base = as_population(population)
    replications = check_count("replications", replications, 1, MOST)
    part = check_shard(shard)
    if model is not None:
        check_spec(model)
    if not isinstance(terms, Iterable):
        raise SpecError(f"terms={terms!r} must be 'effects', 'parameters', 'all' or a list of names")
    analysis = Analysis(
        seed=check_count("seed", seed, 0),
        intervals=check_intervals(intervals, base.spec if model is None else model, base.facts),
        level=check_level(level),
        terms=terms if isinstance(terms, str) else tuple(one_or_more(terms)),
        model=model,
        reml=check_flag("reml", reml),
        replicates=check_count("replicates", replicates, 2, MOST),
        method=check_choice("method", method, BootstrapMethod),
        base=digest({name: value for name, value in base.to_dict().items() if name not in ("clusters", "size")}),
    )
    grid = make_designs(base, designs)
    work = _Work(analysis, replications, as_folder(out))
    if target is not None:
        if part != (0, 1):
            raise SpecError("a search for a target goes step by step and has no shards; leave out one of them")
        return _search(work, grid, designs, target, effect)
    found = make_power(work.run(grid, part))
    for note in found.notes:
        warn_caller(note, ConvergenceWarning)
    return found


# Designs -------------------------------------------------------------------------------------------------------------


def make_designs(base: Population, designs: Any) -> list[Design]:
    """The designs of a grid, in its order."""
    designs = {} if designs is None else designs
    points: list[Any]
    if isinstance(designs, Mapping):
        lists = {name: _several(name, value) for name, value in designs.items()}
        points = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    elif isinstance(designs, Sequence) and not isinstance(designs, str) and designs:
        points = list(designs)
    else:
        points = [designs]
    wrong = [point for point in points if not isinstance(point, Mapping)]
    if wrong:
        raise SpecError(
            f"designs={designs!r} must be a dict such as {{'clusters': [25, 50], 'size': [4, 8]}}, or a list of dicts"
        )
    found = [_design(base, point) for point in points]
    keys = [design.key for design in found]
    twice = [design for design in found if keys.count(design.key) > 1]
    if twice:
        raise SpecError(f"the design ({twice[0]}) is there twice; name each once")
    return found


def _several(name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, (list, tuple, np.ndarray, range)):
        return [value]
    if not len(value):
        raise SpecError(f"designs: {name!r} has no values; give at least one")
    return list(value)


def _design(base: Population, point: Mapping[str, Any]) -> Design:
    rest = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in point.items()}
    clusters = check_count("clusters", rest.pop("clusters", base.clusters), 2, 10_000_000)
    size = check_size(rest.pop("size", base.size))
    varied = dict(rest)
    shapes = {name: rest.pop(name) for name in ("random_effects", "residuals") if name in rest}
    for name, shape in shapes.items():
        check_choice(name, shape, Shape)
    for given in rest:
        meant = difflib.get_close_matches(given, ("clusters", "size"), n=1, cutoff=0.8)
        if meant:
            raise SpecError(f"the designs have {given!r}; did you mean {meant[0]!r}?")
    population = base.replace(rest, **shapes, clusters=clusters, size=size)
    return Design(population, clusters, size, varied)


# Work ----------------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """Data sets ``first`` to ``last`` - 1 of a design."""

    design: Design
    first: int
    last: int


class _Work:
    """Runs designs, and keeps what is done."""

    def __init__(self, analysis: Analysis, replications: int, folder: Path | None) -> None:
        self._analysis, self._replications, self._folder = analysis, replications, folder
        self._kept: dict[str, list[Cell]] = {}
        if folder is None:
            return
        for path in open_folder(folder):
            self._keep(path)
        own, nothing = folder / "study.parquet", no_cell(analysis)
        claim(own, nothing.table, nothing.about)
        self._keep(own)

    def _keep(self, path: Path) -> None:
        """Read a file, which must be of the same study."""
        cell = read_cell(path)
        refused = difference(cell.about | {"analysis": self._analysis.to_dict()}, cell.about)
        if refused:
            raise DataError(f"{str(path.parent)!r} holds another study: {refused}; choose another folder")
        self._kept.setdefault(cell.about["key"], []).append(cell)

    def run(self, designs: Sequence[Design], part: tuple[int, int] = (0, 1)) -> list[Cell]:
        """The data sets of some designs, or of a part of them all."""
        tasks = list(_tasks(designs, self._replications, self._analysis, part))
        if not tasks:
            raise SpecError(f"shard={part}: there are fewer batches of data sets than parts, and this part has none")
        ledgers = [self._ledger(task) for task in tasks]
        found: list[Cell] = []
        try:
            with counted("power study", sum(len(ledger.wanted) for ledger in ledgers)) as advance:
                for task, ledger in zip(tasks, ledgers, strict=True):
                    self._one(task.design, ledger, advance, found)
        except BaseException as error:
            if not isinstance(error, Exception):
                asked, done = sum(ledger.asked for ledger in ledgers), sum(ledger.done for ledger in ledgers)
                error.add_note(interrupted(done, asked, "data sets", self._folder))
                error.power = make_power(found) if found else None  # type: ignore[attr-defined]
            raise
        return found

    def _ledger(self, task: Task) -> Ledger:
        known = (cell.table for cell in self._kept.get(task.design.key, []))
        return Ledger("replication", task.first, task.last, known, self._folder, task.design.key, {})

    def _one(self, design: Design, ledger: Ledger, advance: Callable[[int], None], cells: list[Cell]) -> None:
        """Run one design and add it to what is found, as far as it came."""
        if ledger.wanted:
            study = Study(design, self._analysis)
            truth, ledger.about = study.truth, about(design, self._analysis, study.truth, self._replications)
        else:
            earlier = self._kept[design.key][0]
            truth, ledger.about = earlier.truth, earlier.about | {"design": design.columns}
        try:
            for table in study.run(ledger.wanted) if ledger.wanted else ():
                ledger.add(table)
                advance(len(table))
        finally:
            ledger.flush()
            if ledger.done:
                cells.append(Cell(design.columns, ledger.about, truth, ledger.table(pd.DataFrame())))
                self._kept.setdefault(design.key, []).append(cells[-1])


def _tasks(designs: Sequence[Design], replications: int, analysis: Analysis, part: tuple[int, int]) -> Iterator[Task]:
    """Part i of k parts of the work, in whole batches, contiguous over the designs."""
    sizes = [FEW if analysis.refitted else batch_size(design.clusters) for design in designs]
    batches = [-(-replications // size) for size in sizes]
    total = sum(batches)
    first, last = (total * k // part[1] for k in (part[0], part[0] + 1))
    begin = 0
    for design, size, count in zip(designs, sizes, batches, strict=True):
        low, high = max(first - begin, 0), min(last - begin, count)
        if low < high:
            yield Task(design, low * size, min(high * size, replications))
        begin += count


# Search --------------------------------------------------------------------------------------------------------------


def _search(work: _Work, grid: Sequence[Design], designs: Any, target: float, effect: str) -> Power:
    """For every design the number of clusters that reaches the target."""
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < 1:
        raise SpecError(f"target={target!r} is not a power; give a number between 0 and 1, such as 0.8")
    points = [designs] if isinstance(designs, Mapping) else list(designs or [])
    if any("clusters" in point for point in points):
        raise SpecError("target searches the number of clusters; leave 'clusters' out of the designs")
    cells: list[Cell] = []
    rows: list[dict[str, Any]] = []
    for design in grid:
        tried, row = _search_one(work, design, float(target), effect)
        cells += tried
        rows.append(row)
    return make_power(cells, pd.DataFrame(rows))


def _search_one(work: _Work, design: Design, target: float, effect: str) -> tuple[list[Cell], dict[str, Any]]:
    known: dict[int, Cell] = {}
    powers: dict[int, tuple[float, float]] = {}

    def try_(clusters: int) -> None:
        at = Design(design.population.replace(clusters=clusters), clusters, design.size, design.varied)
        (known[clusters],) = work.run([at])
        table = make_power([known[clusters]]).table
        if effect not in set(table["effect"]):
            raise SpecError(f"effect={effect!r} is not reported; choose one of {list(dict.fromkeys(table['effect']))}")
        row = table[table["effect"] == effect].iloc[0]
        if row["truth"] == 0:
            raise SpecError(f"{effect} is zero in this population, so that no number of clusters gives it power")
        if not np.isfinite(row["power"]):
            raise SpecError(f"{effect} has no power here: the population does not have it, or no fit has its interval")
        powers[clusters] = float(row["power"]), row["replications"] * row["used"]

    for clusters in (BETWEEN, 4 * BETWEEN):
        try_(clusters)
    for _ in range(ROUNDS):
        line = _line(powers)
        following = _reached(line, target)
        if following in known:
            break
        if following > LARGEST:
            raise FitError(
                f"{effect}: a power of {target:g} is not reached with {LARGEST:,} clusters in the design ({design}); "
                "the effect is too small"
            )
        try_(following)
    else:
        line, following = _line(powers), min(known, key=lambda clusters: abs(powers[clusters][0] - target))
    row = make_power([known[following]]).table.query("effect == @effect").iloc[0]
    low, high = (_reached(line, float(ndtr(ndtri(target) + z * line.error(target)))) for z in (-1.96, 1.96))
    found = {name: value for name, value in design.columns.items() if name != "clusters"}
    found |= {"effect": effect, "interval": row["interval"], "target": target, "clusters": following}
    found |= {"clusters_lower": low, "clusters_upper": high, "power": row["power"], "power_mcse": row["power_mcse"]}
    return [known[clusters] for clusters in sorted(known)], found


class _Line(NamedTuple):
    """Phi^-1(power) = start + slope sqrt(clusters), with the covariance of both."""

    start: float
    slope: float
    covariance: Any

    def error(self, target: float) -> float:
        """Standard error of the line where it reaches a target."""
        at = np.array([1.0, (ndtri(target) - self.start) / self.slope])
        return float(np.sqrt(at @ self.covariance @ at))


def _line(powers: Mapping[int, tuple[float, float]]) -> _Line:
    """Probit regression of rejections on sqrt(clusters), by least squares with binomial weights; a little shrunken."""
    root = np.sqrt(np.array(list(powers), dtype=float))
    share = np.array([(power * n + 0.5) / (n + 1) for power, n in powers.values()])
    n = np.array([n for _, n in powers.values()])
    z = ndtri(share)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    weight = n * density**2 / (share * (1 - share))
    x = np.stack([np.ones_like(root), root], axis=1)
    inner = np.linalg.inv(x.T @ (x * weight[:, None]))
    start, slope = inner @ (x.T @ (weight * z))
    return _Line(float(start), float(max(slope, 1e-3)), inner)


def _reached(line: _Line, target: float) -> int:
    """Least number of clusters, at least 4, at which the line reaches a target."""
    root = max((ndtri(target) - line.start) / line.slope, 2.0)
    return int(np.ceil(min(root, 1e6) ** 2 - 1e-9))
