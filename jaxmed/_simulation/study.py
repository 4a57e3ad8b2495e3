"""One design of a simulation study: numbered data sets from a population, fitted, with their intervals."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import pandas as pd

from jaxmed._inference import (
    Quantities,
    bauer_critical,
    critical_value,
    delta,
    effects,
    make_targets,
    positions,
    quantile_limits,
    quantities,
)
from jaxmed._likelihood import theta_of
from jaxmed._model import DataFacts, Spec
from jaxmed._refit import Fitted, Refits, Refitter, Rows, design_of, fitted, given_rows, make_refitter, with_size
from jaxmed._results import Fit, draw_all, fit
from jaxmed._simulation.bootstrapping import BootstrapMethod, bootstrap
from jaxmed._simulation.cluster_sizes import Size, size_text
from jaxmed._simulation.population import Population
from jaxmed._simulation.replicates import IntervalKind
from jaxmed._simulation.simulation import draw
from jaxmed._support import (
    ConvergenceWarning,
    DataError,
    DesignWarning,
    FitError,
    Floats,
    SpecError,
    Status,
    one_or_more,
    root,
)

WALD = ("delta", "bauer", "block")
KINDS: tuple[str, ...] = get_args(IntervalKind)
INTERVALS = (*WALD, "monte_carlo", "robust", "profile", *KINDS)
OWN = ("replication", "seed", "status", "n_iter", "singular")
DRAWS = 1000  # of a Monte Carlo interval
ZERO = 1e-14  # a true value that is less was meant to be zero: ab = -cov_ab
TRIES = 10  # data sets, none of which can be fitted, for a design to be refused
FEW = 16  # data sets of a batch whose intervals need further fits


@dataclass(frozen=True)
class Analysis:
    """What is done with every data set.

    Attributes
    ----------
    seed : int
    intervals : tuple of str
        Some of :data:`INTERVALS`.
    level : float
    terms : str or tuple of str
        Effects and parameters to report, as in :meth:`jaxmed.Fit.intervals`.
    model : Mediation or System or None
        The model that is fitted; by default that of the population.
    reml : bool
    replicates : int
        Of a bootstrap.
    method : str
        Of a bootstrap.
    base : str
        Name of the population that designs vary.
    """

    seed: int
    intervals: tuple[str, ...]
    level: float
    terms: str | tuple[str, ...]
    model: Spec | None
    reml: bool
    replicates: int
    method: BootstrapMethod
    base: str

    @property
    def refitted(self) -> tuple[str, ...]:
        """Intervals that need further fits of every data set."""
        return tuple(kind for kind in self.intervals if kind in ("robust", "profile", *KINDS))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "seed": self.seed,
            "intervals": list(self.intervals),
            "level": self.level,
            "terms": self.terms if isinstance(self.terms, str) else list(self.terms),
            "fitted": None if self.model is None else self.model.to_dict(),
            "reml": self.reml,
            "population": self.base,
            "replicates": self.replicates if set(self.intervals) & set(KINDS) else None,
            "method": self.method if set(self.intervals) & set(KINDS) else None,
        }


@dataclass(frozen=True, eq=False)
class Design:
    """A population, and how much of it is seen.

    Attributes
    ----------
    population : Population
    clusters : int
    size : Size
    varied : dict
        What distinguishes this design from others of a study, by name.
    """

    population: Population
    clusters: int
    size: Size
    varied: dict[str, Any]

    @cached_property
    def columns(self) -> dict[str, Any]:
        """Columns of this design in tables."""
        return {"clusters": self.clusters, "size": size_text(self.size)} | {
            name: value for name, value in self.varied.items() if name not in ("clusters", "size")
        }

    @cached_property
    def key(self) -> str:
        """A name that follows from the population, clusters and size alone."""
        return digest(self.population.to_dict() | {"clusters": self.clusters, "size": self.size})

    def seed_of(self, seed: int, number: int) -> int:
        """Seed of a data set: it follows from the seed of the study, this design and the number."""
        text = f"{seed} {self.key} {number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def frame(self, seed: int) -> pd.DataFrame:
        """The data set of a seed."""
        columns, cluster = draw(self.population, self.clusters, self.size, seed)
        return pd.DataFrame({self.population.spec.cluster: cluster} | columns)

    def __str__(self) -> str:
        return named(self.columns)


def named(columns: Mapping[str, Any]) -> str:
    """Columns of a design for a message."""
    return ", ".join(f"{name} {value}" for name, value in columns.items())


def digest(plain: dict[str, Any]) -> str:
    """A short name of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class Truth(NamedTuple):
    """What a study reports on.

    Attributes
    ----------
    labels : tuple of str
        Effects and parameters.
    values : ndarray
        In the population; NaN for what it does not have.
    """

    labels: tuple[str, ...]
    values: Floats


class Study:
    """One design, ready to be run: the model over a first data set, and a compiled program for all others.

    Raises
    ------
    SpecError
        The design cannot answer the model.
    """

    def __init__(self, design: Design, analysis: Analysis) -> None:
        self.design, self.analysis = design, analysis
        population = design.population
        self.model = population.spec if analysis.model is None else analysis.model
        simple = self.model.is_simple(population.facts)
        self._bauer = simple and "block" not in analysis.intervals
        pilot = self._pilot()
        known = quantities(pilot, self._at(pilot))
        self._chosen = positions(analysis.terms, known.labels, known.n_params)
        self._known = known
        labels = tuple(known.labels[k] for k in self._chosen)
        columns = columns_of(labels, analysis.intervals)
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise SpecError(f"two columns of the results would be called {twice[0]!r}; rename a column of the model")
        true = _true_values(population)
        self.truth = Truth(labels, np.array([true.get(label, np.nan) for label in labels]))
        base = fitted(pilot, pilot.moments, known.targets)
        self._refitter = self._make(base, np.array([true.get(label, np.nan) for label in pilot.labels]))

    def _pilot(self) -> Fit:
        """A fit to the first data set that can be fitted: it checks the design, and its units serve for all."""
        for number in range(TRIES):
            rows = self.design.frame(self.design.seed_of(self.analysis.seed, number))
            try:
                with _quiet():
                    pilot = fit(rows, self.model, reml=self.analysis.reml)
                break
            except DataError as error:
                if number == TRIES - 1:
                    raise SpecError(f"the design ({self.design}) cannot answer the model: {error}") from error
        expected = self.design.population.facts.cluster_level
        seen = pilot.facts.cluster_level
        if self.model.has_effects and seen - expected:
            raise SpecError(
                f"in the design ({self.design}) {min(seen - expected)!r} does not vary within clusters; use more rows "
                "per cluster"
            )
        return pilot

    def _at(self, pilot: Fit) -> dict[str, Any] | None:
        values = self.design.population.moderator_values
        of = dict(pilot.spec.moderators)
        return {name: list(values[name]) for name in of if name in values} or None

    def _make(self, base: Fitted, true: Floats) -> Refitter:
        """The program, started from the truth, over data sets padded so that designs share it."""
        refitter = make_refitter(base, "given", self.analysis.seed)
        layout, design = base.problem.layout, base.problem.design
        start = base.fit.working.theta
        if np.all(np.isfinite(true)):
            scale = base.problem.scale
            offset = np.concatenate([scale.offset, np.zeros(layout.n_theta)])
            start = theta_of(layout, np.linalg.solve(scale.matrix, true - offset)[layout.n_fixed :])
        clusters = roomy(design.n_clusters)
        numbers: dict[str, Any] = {"start": start}
        refitter = replace(
            refitter,
            program=refitter.program._replace(clusters=clusters, matrices=True),
            setting=refitter.setting._replace(**numbers),
            make=self._maker(base, clusters),
        )
        return with_size(refitter, FEW) if self.analysis.refitted else refitter

    def _maker(self, base: Fitted, clusters: int) -> Callable[[int], tuple[Floats, Floats]]:
        rows = Rows(base.fit.system, base.moments, {}, np.zeros(0, dtype=np.int64))

        def make(number: int) -> tuple[Floats, Floats]:
            seed = self.design.seed_of(self.analysis.seed, number)
            columns, cluster = draw(self.design.population, self.design.clusters, self.design.size, seed)
            table, counts = given_rows(base, design_of(rows, columns, cluster, base.problem.design))
            return np.pad(table, ((0, 0), (0, clusters - table.shape[1]))), counts

        return make

    def run(self, numbers: Sequence[int]) -> Iterator[pd.DataFrame]:
        """Fit numbered data sets and describe them, batch by batch: a row a data set.

        For every label the estimate, ``<label>_se`` (joint), ``<label>_se_block`` (of the model of Bauer et al., unless
        "block" is among the intervals, by their formulas) and the limits of other intervals.
        """
        for refits in self._refitter.run(numbers):
            yield self._described(refits)

    def _described(self, refits: Refits) -> pd.DataFrame:
        known, chosen = self._known, self._chosen
        seeds = [self.design.seed_of(self.analysis.seed, number) for number in refits.numbers.tolist()]
        own = [refits.numbers, seeds, refits.status, refits.n_iter, refits.singular]
        columns: dict[str, Any] = dict(zip(OWN, own, strict=True))
        values = np.hstack([refits.values, refits.effects])[:, chosen]
        joint = np.hstack([refits.errors, refits.effect_errors])[:, chosen]
        block = _block_errors(known, refits, bauer=self._bauer)[:, chosen]
        limits = {}
        if "monte_carlo" in self.analysis.intervals:
            limits["monte_carlo"] = np.stack([self._monte_carlo(refits, k, seeds[k]) for k in range(len(seeds))])
        if self.analysis.refitted:
            each = [self._refitted(seed) for seed in seeds]
            limits |= {kind: np.stack([one[kind] for one in each]) for kind in self.analysis.refitted}
        for k, label in enumerate(self.truth.labels):
            columns |= {label: values[:, k], f"{label}_se": joint[:, k], f"{label}_se_block": block[:, k]}
            for kind, found_limits in limits.items():
                columns |= {
                    f"{label}_{kind}_lower": found_limits[:, k, 0],
                    f"{label}_{kind}_upper": found_limits[:, k, 1],
                }
        return pd.DataFrame(columns)

    def _monte_carlo(self, refits: Refits, at: int, seed: int) -> Floats:
        """Monte Carlo limits of a data set, shape (labels, 2)."""
        drawn = draw_all(self._known, refits.values[at], refits.joint[at], seed, DRAWS)
        limits = [quantile_limits(column, self.analysis.level) for column in drawn[:, self._chosen].T]
        return np.array([[one.lower, one.upper] for one in limits])

    def _refitted(self, seed: int) -> dict[str, Floats]:
        """Limits that need further fits of a data set, each of shape (labels, 2); NaN where there are none."""
        analysis, labels = self.analysis, list(self.truth.labels)
        found = {kind: np.full((len(labels), 2), np.nan) for kind in analysis.refitted}
        with _quiet():
            rows = self.design.frame(seed)
            try:
                fitted_here = fit(rows, self.model, reml=analysis.reml)
            except DataError:  # a column may be constant in one data set of many; its fit is counted as not converged
                return found
            if not fitted_here.converged:
                return found
            at = self._at(fitted_here)
            replicates = None
            if set(analysis.refitted) & set(KINDS):
                replicates = bootstrap(fitted_here, analysis.replicates, analysis.method, seed=seed, at=at, data=rows)
            for kind in analysis.refitted:
                try:
                    if kind == "robust":
                        table = fitted_here.intervals("delta", analysis.level, covariance="robust", terms=labels, at=at)
                    elif replicates is None or kind == "profile":
                        table = fitted_here.intervals("profile", analysis.level, terms=labels, at=at)
                    else:
                        table = replicates.intervals(cast(IntervalKind, kind), analysis.level, labels)
                except FitError:
                    continue
                found[kind] = table[["ci_lower", "ci_upper"]].to_numpy()
        return found


def limits_of(table: pd.DataFrame, label: str, kind: str, level: float) -> tuple[Floats, Floats, Floats]:
    """Limits of an interval, and the standard errors it rests on (NaN where on none), by data set."""
    nothing = np.full(len(table), np.nan)
    if kind not in WALD:
        lower, upper = (table[f"{label}_{kind}_{side}"].to_numpy() for side in ("lower", "upper"))
        return lower, upper, (upper - lower) / (2 * critical_value(level)) if kind == "robust" else nothing
    error = table[f"{label}_se" if kind == "delta" else f"{label}_se_block"].to_numpy()
    critical = bauer_critical([label], level)[0] if kind == "bauer" else critical_value(level)
    estimate = table[label].to_numpy()
    return estimate - critical * error, estimate + critical * error, error


def columns_of(labels: Iterable[str], intervals: Iterable[str]) -> list[str]:
    """Columns of the table of a design that intervals of these kinds rest on."""
    ends = ["", "_se", "_se_block"]
    ends += [f"_{kind}_{side}" for kind in intervals if kind not in WALD for side in ("lower", "upper")]
    return [*OWN, *(f"{label}{end}" for label in labels for end in ends)]


def check_intervals(intervals: Any, model: Spec, facts: DataFacts) -> tuple[str, ...]:
    """Kinds of intervals, each once; by default delta intervals with both standard errors."""
    simple = model.is_simple(facts)
    if intervals is None:
        return ("delta", "bauer" if simple else "block")
    kinds = tuple(one_or_more(intervals))
    unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in INTERVALS]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise SpecError(f"intervals={list(kinds)!r}: choose some of {list(INTERVALS)}, each once")
    if "bauer" in kinds and not simple:
        raise SpecError(
            "intervals: 'bauer' are the formulas of Bauer, Preacher & Gil (2006) for one mediator without moderators "
            "or centring; use 'block' for its standard errors of other models"
        )
    if {"bauer", "block"} <= set(kinds):
        raise SpecError("intervals: 'bauer' and 'block' differ for products of effects only; choose one of them")
    return kinds


def roomy(clusters: int) -> int:
    """Clusters of a padded data set: a few sizes, at most a quarter more, so that compiled programs are shared."""
    step = max(8, 1 << max(clusters.bit_length() - 3, 0))
    return -(-clusters // step) * step


def _true_values(population: Population) -> dict[str, float]:
    """Parameters and effects of a population by label."""
    found = dict(zip(population.labels, population.values.tolist(), strict=True))
    if population.spec.has_effects:
        targets = make_targets(population)
        values = population.effects().to_numpy()
        found |= dict(zip(targets.labels, values.tolist(), strict=True))
    return {label: 0.0 if abs(value) < ZERO else value for label, value in found.items()}


def _block_errors(known: Quantities, refits: Refits, *, bauer: bool) -> Floats:
    """Standard errors of parameters and effects from the block covariances, shape (data sets, labels)."""
    diagonal = np.diagonal(refits.block, axis1=1, axis2=2)
    errors = root(diagonal)
    of = known.targets
    if of is None:
        return errors
    _, slope = effects.linear_combinations_and_jacobian(of.plan, refits.values, of.weights, of.combination)
    if bauer:
        return np.hstack([errors, effects.bauer(of.plan, of.names, slope, refits.block)])
    return np.hstack([errors, delta(slope, refits.block)])


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of single data sets: tables count what they are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", DesignWarning)
        yield


def converged(table: pd.DataFrame) -> pd.DataFrame:
    """Data sets whose fit converged."""
    return table[table["status"] == Status.CONVERGED]
