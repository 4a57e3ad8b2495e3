"""Bootstrap replicates: a table that saves, restores and adds up, and the intervals it gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd

from jaxmed._inference import (
    Targets,
    bias_corrected,
    check_level,
    draws_table,
    effects,
    plain_data,
    positions,
    quantile_limits,
    quantities,
    studentized,
)
from jaxmed._refit import Refits, fitted, leave_one_out
from jaxmed._support import (
    ConvergenceWarning,
    Count,
    DataError,
    FitError,
    Floats,
    Status,
    all_files,
    check_choice,
    check_equal,
    check_path,
    convert,
    damaged,
    read_table,
    warn_caller,
    write_table,
)

FORMAT = 1
IntervalKind = Literal["percentile", "basic", "bc", "bca", "studentized"]
OWN = ("replicate", "status", "n_iter", "grad_norm", "singular")
SAME = 1e-6  # standard errors: estimates this close are of the same fit
EQUAL = 1e-6  # standard errors: replicates this close are the same


class IndexForm(TypedDict):
    """The index of a table of effects as plain data."""

    names: list[str | None]
    rows: list[list[str | int | float | None]]


class OriginForm(TypedDict):
    """What a file says that its replicates are of; NaN is null."""

    method: str
    seed: Count
    requested: Count
    model: dict[str, Any]
    reml: bool
    loglik: float | None
    n_clusters: Count
    rows: tuple[Count, ...]
    labels: tuple[str, ...]
    n_params: Count
    values: list[float | None]
    errors: list[float | None]
    index: IndexForm


@dataclass(frozen=True, eq=False)
class Origin:
    """What replicates are of; two sets of replicates belong together if theirs agree.

    Attributes
    ----------
    method : str
    seed : int
    requested : int
        Replicates that were asked for, 0 to ``requested`` - 1.
    model : dict
        The specification as plain data.
    reml : bool
    loglik : float
    n_clusters : int
    rows : tuple of int
        Rows used per equation.
    labels : tuple of str
        Parameters, then effects.
    n_params : int
        How many of them are parameters.
    values, errors : ndarray
        Estimates and joint standard errors of the fit, by label.
    index : dict
        Index of the table of effects: ``names`` and ``rows``.
    """

    method: str
    seed: int
    requested: int
    model: dict[str, Any]
    reml: bool
    loglik: float
    n_clusters: int
    rows: tuple[int, ...]
    labels: tuple[str, ...]
    n_params: int
    values: Floats
    errors: Floats
    index: dict[str, Any]

    @property
    def effect_index(self) -> pd.Index[Any]:
        """Index of the table of effects."""
        names, rows = self.index["names"], self.index["rows"]
        if len(names) == 1:
            return pd.Index([row[0] for row in rows])
        kept = [tuple(np.nan if value is None else value for value in row) for row in rows]
        return pd.MultiIndex.from_tuples(kept, names=names)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain |= {"values": self.values.tolist(), "errors": self.errors.tolist(), "format": FORMAT}
        return {name: plain_data(value) for name, value in plain.items()}

    def difference(self, other: Origin) -> str:
        """What keeps the replicates of another origin from being added, in words; nothing if they can be."""
        for name, what in {"model": "models", "reml": "methods of estimation (REML and ML)"}.items():
            if getattr(self, name) != getattr(other, name):
                return f"they are of different {what}"
        for name in ("method", "seed"):
            if getattr(self, name) != getattr(other, name):
                return f"they have different {name}s, {getattr(self, name)!r} and {getattr(other, name)!r}"
        if self.labels != other.labels or json.dumps(self.index) != json.dumps(other.index):
            return "they have different effects (at other values of moderators)"
        if (self.n_clusters, self.rows) != (other.n_clusters, other.rows):
            ours, others = (f"{one.n_clusters} clusters, rows {', '.join(map(str, one.rows))}" for one in (self, other))
            return f"they are of different data: {ours}, and {others}"
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = np.abs(self.values - other.values) / np.where(self.errors > 0, self.errors, 1.0)
        if np.nanmax(apart, initial=0.0) > SAME:
            return "they are of different data: the estimates of the fits differ"
        return ""


def origin_from_dict(plain: Mapping[str, Any]) -> Origin:
    """Inverse of :meth:`Origin.to_dict`."""
    if plain.get("format") != FORMAT:
        raise ValueError(f"format {plain.get('format')!r}; this version of jaxmed reads {FORMAT}")
    form = convert(plain, OriginForm)
    labels, names, rows = form["labels"], form["index"]["names"], form["index"]["rows"]
    if not len(set(labels)) == len(labels) == len(form["values"]) == len(form["errors"]):
        raise ValueError("labels, values and errors do not belong together")
    if len(rows) != len(labels) - form["n_params"] or not names or any(len(row) != len(names) for row in rows):
        raise ValueError("index and labels do not belong together")
    fields: dict[str, Any] = dict(form)
    return Origin(**fields | {name: np.array(fields[name], dtype=float) for name in ("values", "errors")})


@dataclass(frozen=True, eq=False, repr=False)
class Replicates:
    """Bootstrap replicates of a fit.

    Attributes
    ----------
    table : DataFrame
        A row a replicate: ``replicate`` (its number), ``status`` (a :class:`jaxmed.Status`), ``n_iter``, ``grad_norm``,
        ``singular``, every parameter by its label, every effect by its name (``"indirect[w=1]"`` at values of
        moderators), and their joint standard errors, ``"m~x_se"``.
    origin : Origin
        What they are replicates of.
    duplicates : int
        Replicates that files held twice, and that were counted once.
    """

    table: pd.DataFrame
    origin: Origin
    duplicates: int = 0
    fit: Any = field(default=None)
    _acceleration: dict[str, Floats] = field(default_factory=dict)  # of the fit, once it is known

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        failed = len(self.failures())
        return (
            f"<{type(self).__name__}: {len(self)} of {self.origin.requested}, {self.origin.method} bootstrap, seed "
            f"{self.origin.seed}, {failed} not converged>"
        )

    @property
    def method(self) -> str:
        """How data sets were made."""
        return self.origin.method

    @property
    def seed(self) -> int:
        """Seed of the draws."""
        return self.origin.seed

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """First and last number of every run of replicates that were asked for and are not here."""
        numbers = self.table["replicate"].to_numpy()
        edges = np.concatenate([[-1], numbers[numbers < self.origin.requested], [self.origin.requested]])
        return tuple((int(edges[k]) + 1, int(edges[k + 1]) - 1) for k in np.flatnonzero(np.diff(edges) > 1))

    def failures(self) -> pd.DataFrame:
        """Replicates that did not converge, with the status in words; intervals leave them out.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> len(jm.bootstrap(fit, 32, seed=1).failures())
        0
        """
        failed = self.table[self.table["status"] != Status.CONVERGED]
        return failed[list(OWN)].assign(message=[Status(code).message for code in failed["status"]])

    # Intervals -------------------------------------------------------------------------------------------------------

    def intervals(
        self,
        kind: IntervalKind = "percentile",
        level: float = 0.95,
        terms: str | Sequence[str] = "effects",
        fit: Any = None,
    ) -> pd.DataFrame:
        """Bootstrap intervals (Davison & Hinkley 1997, chapter 5), each limit with its Monte Carlo error.

        Parameters
        ----------
        kind : {"percentile", "basic", "bc", "bca", "studentized"}
            Quantiles of the replicates; reflected at the estimate; corrected for median bias; also for acceleration,
            from refits without each cluster in turn; or quantiles of (replicate - estimate) / its joint standard error,
            times the standard error of the fit. docs/intervals.md says which to trust.
        level : float
        terms : "effects", "parameters", "all" or list of str
            Effects, parameters, or names of either.
        fit : Fit, optional
            For ``"bca"`` of replicates that were read from files: the fit they are of.

        Returns
        -------
        DataFrame
            Columns ``estimate, se, z, p, ci_lower, ci_upper``, with ``se`` the standard deviation of the replicates and
            z and p from it, then ``ci_lower_mcse, ci_upper_mcse``, the Monte Carlo standard errors of the limits. NaN
            of what is not identified (``fit.flat``). Index as that of :meth:`jaxmed.Fit.effects`.

        Raises
        ------
        SpecError
            An unknown kind, level or term.
        FitError
            Fewer than two replicates converged; no fit at hand for ``"bca"``.

        Warns
        -----
        ConvergenceWarning
            Some replicates did not converge and are left out; or a limit lies beyond the outermost replicate.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> replicates = jm.bootstrap(fit, 200, seed=1)
        >>> list(replicates.intervals().index)
        ['a', 'b', 'c_prime', 'cov_ab', 'indirect', 'total']
        """
        check_choice("kind", kind, IntervalKind)
        level = check_level(level)
        at = positions(terms, self.origin.labels, self.origin.n_params)
        used = self.table[self.table["status"] == Status.CONVERGED]
        left_out = len(self) - len(used)
        if len(used) < 2:
            raise FitError(
                f"{len(used)} of {len(self)} replicates converged; intervals need at least 2, and hundreds to be of use"
            )
        if left_out:
            warn_caller(
                f"{left_out} of {len(self)} replicates did not converge and are left out; see failures()",
                ConvergenceWarning,
            )
        labels = [self.origin.labels[k] for k in at]
        draws = used[labels].to_numpy(copy=True)
        estimate, error = self.origin.values[at], self.origin.errors[at]
        if np.isfinite(self.origin.errors[: self.origin.n_params]).any():
            draws[:, np.isnan(error)] = np.nan  # of a flat maximum: replicates end anywhere on it
        if kind in ("percentile", "basic"):
            limits = [
                quantile_limits(draws[:, k], level, estimate[k], reflected=kind == "basic") for k in range(len(at))
            ]
        elif kind == "studentized":
            errors = used[[f"{label}_se" for label in labels]].to_numpy()
            limits = [studentized(draws[:, k], errors[:, k], level, estimate[k], error[k]) for k in range(len(at))]
            without = {
                label: n
                for label, n in zip(labels, (~(errors > 0)).sum(axis=0).tolist(), strict=True)
                if 0 < n < len(used)
            }
            if without:
                warn_caller(
                    f"{max(without.values())} of {len(used)} replicates have no standard error of "
                    f"{max(without, key=lambda label: without[label])} and do not count in its studentized limits",
                    ConvergenceWarning,
                )
        else:
            acceleration = self._accelerations(fit)[at] if kind == "bca" else np.zeros(len(at))
            limits = [bias_corrected(draws[:, k], level, estimate[k], acceleration[k]) for k in range(len(at))]
        beyond = [label for label, found in zip(labels, limits, strict=True) if found.beyond]
        if beyond:
            warn_caller(
                f"{len(used)} replicates are too few for a limit of {', '.join(beyond)} at level {level:g}: it is the "
                "outermost replicate; draw more",
                ConvergenceWarning,
            )
        table = draws_table(labels, estimate, draws.std(axis=0, ddof=1), limits)
        table.index = self._index(at)
        return table

    def _index(self, at: Sequence[int]) -> pd.Index[Any]:
        if min(at) >= self.origin.n_params:
            return self.origin.effect_index[[k - self.origin.n_params for k in at]]
        return pd.Index([self.origin.labels[k] for k in at])

    def _accelerations(self, fit: Any) -> Floats:
        """Sum d^3 / (6 (sum d^2)^(3/2)), d the mean less the estimates without each cluster (Efron 1987)."""
        fit = self.fit if fit is None else fit
        if fit is None:
            raise FitError(
                "kind='bca' refits the model without each cluster, and replicates from files have no data; pass the "
                "fit: replicates.intervals('bca', fit=fit)"
            )
        if "known" not in self._acceleration:
            left = without_each_cluster(fit, self.origin)
            apart = left.mean(axis=0) - left
            square, cube = np.sum(apart**2, axis=0), np.sum(apart**3, axis=0)
            self._acceleration["known"] = np.divide(cube, 6 * square**1.5, out=np.zeros_like(cube), where=square > 0)
        return self._acceleration["known"]

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the replicates to one parquet file, all or nothing; :func:`jaxmed.load_replicates` reads it.

        Raises
        ------
        SpecError
            ``path`` is none.
        FitError
            The file cannot be written.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> with TemporaryDirectory() as folder:
        ...     jm.bootstrap(fit, 32, seed=1).save(f"{folder}/replicates.parquet")
        ...     len(jm.load_replicates(f"{folder}/replicates.parquet"))
        32
        """
        write_table(check_path("path", path), self.table, self.origin.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What they are and how many there are, as plain data.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> jm.bootstrap(fit, 32, seed=1).to_dict()["replicates"]
        32
        """
        return self.origin.to_dict() | {
            "replicates": len(self),
            "failures": len(self.failures()),
            "singular": int(self.table["singular"].sum()),
            "gaps": [list(gap) for gap in self.gaps],
            "duplicates": self.duplicates,
        }


def make_origin(
    fit: Any, method: str, seed: int, requested: int, at: Mapping[str, Any] | None
) -> tuple[Origin, Targets | None]:
    """The origin of replicates to come, and the effects that they have (none for a system)."""
    known = quantities(fit, at)
    index: dict[str, Any] = {"names": [None], "rows": []}
    if known.targets is not None:
        of = known.targets.rows
        rows = [[row] if isinstance(row, str) else [None if v != v else v for v in row] for row in of]
        index = {"names": list(of.names), "rows": rows}
    origin = Origin(
        method=method,
        seed=seed,
        requested=requested,
        model=fit.spec.to_dict(),
        reml=fit.reml,
        loglik=fit.loglik,
        n_clusters=fit.n_clusters,
        rows=tuple(fit.sample_summary.used),
        labels=known.labels,
        n_params=known.n_params,
        values=known.values,
        errors=known.errors,
        index=index,
    )
    return origin, known.targets


def make_table(parts: Iterable[Refits], origin: Origin) -> pd.DataFrame:
    """Replicates as a table."""
    parts = list(parts)
    labels = [*origin.labels, *(f"{label}_se" for label in origin.labels)]
    own: dict[str, Any] = {
        "replicate": (np.int64, "numbers"),
        "status": (np.int64, "status"),
        "n_iter": (np.int64, "n_iter"),
        "grad_norm": (np.float64, "grad_norm"),
        "singular": (np.bool_, "singular"),
    }
    columns = {
        name: np.concatenate([np.zeros(0, dtype), *(getattr(part, source) for part in parts)]).astype(dtype)
        for name, (dtype, source) in own.items()
    }
    several = [np.hstack([part.values, part.effects, part.errors, part.effect_errors]) for part in parts]
    numbers = np.concatenate([np.zeros((0, len(labels))), *several])
    return pd.concat([pd.DataFrame(columns), pd.DataFrame(numbers, columns=labels)], axis=1)


def without_each_cluster(fit: Any, origin: Origin) -> Floats:
    """Parameters and effects of exact refits without each cluster in turn, shape (J, labels).

    Warns
    -----
    ConvergenceWarning
        Some of them did not converge, and are left out.
    """
    targets = check_fit(fit, origin)
    base = fitted(fit, fit.moments, targets)
    values, converged = leave_one_out(base)
    failed = int(np.sum(~converged))
    if failed:
        warn_caller(
            f"{failed} of {len(values)} refits without a cluster did not converge and are left out of the acceleration",
            ConvergenceWarning,
        )
    values = base.problem.scale.carried(values[converged])
    if targets is None:
        return values
    found = effects.linear_combinations_at(targets.plan, values, targets.weights, targets.combination)
    return np.hstack([values, found])


def check_fit(fit: Any, origin: Origin) -> Targets | None:
    """Refuse a fit that replicates are not of; else the effects that they have (none for a system)."""
    own, targets = make_origin(fit, origin.method, origin.seed, origin.requested, _at_of(origin))
    refused = own.difference(origin)
    if refused:
        raise FitError(f"this fit is not the one of these replicates: {refused}")
    return targets


def _at_of(origin: Origin) -> dict[str, list[Any]] | None:
    """The values of moderators at which effects were computed."""
    names = origin.index["names"][1:]
    if not names:
        return None
    rows = [row[1:] for row in origin.index["rows"] if None not in row]
    return {name: list(dict.fromkeys(row[k] for row in rows)) for k, name in enumerate(names)}


# Files ---------------------------------------------------------------------------------------------------------------


def read_replicates(path: Path) -> tuple[pd.DataFrame, Origin]:
    """A table of replicates, and what they are of.

    Raises
    ------
    DataError
        No such file, or none that holds replicates.
    """
    table, about = read_table(path, "replicates")
    try:
        origin = origin_from_dict(about)
        if not table.dtypes.equals(make_table([], origin).dtypes):
            raise ValueError("its columns are others")
        if not table["status"].isin(list(Status)).all() or (table["replicate"] < 0).any():
            raise ValueError("it has numbers or statuses that there are not")
    except (ValueError, AttributeError) as error:
        raise damaged(path, "replicates", error) from error
    return table, origin


def load_replicates(paths: str | Path | Iterable[str | Path]) -> Replicates:
    """Read replicates from files and folders, and put them together.

    Parameters
    ----------
    paths : path or list of paths
        Files that :meth:`Replicates.save` wrote, or folders that ``jaxmed.bootstrap(..., out=folder)`` filled.

    Returns
    -------
    Replicates
        Sorted by number; ``gaps`` and ``duplicates`` say what is missing and what was there twice.

    Raises
    ------
    DataError
        A file that cannot be read; replicates of different models, data or seeds; one replicate with two results.

    Examples
    --------
    >>> import tempfile
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part in range(2):
    ...         _ = jm.bootstrap(fit, 100, seed=1, shard=(part, 2), out=folder)
    ...     len(jm.load_replicates(folder))
    100
    """
    files = all_files(paths, "replicates")
    tables, origins = zip(*map(read_replicates, files), strict=True)
    for path, origin in zip(files, origins, strict=True):
        refused = origins[0].difference(origin)
        if refused:
            raise DataError(f"{str(files[0])!r} and {str(path)!r} cannot be put together: {refused}")
    table = pd.concat(tables, ignore_index=True).sort_values("replicate", kind="stable", ignore_index=True)
    twice = table["replicate"].duplicated()
    if twice.any():
        check_equal(table, "replicate", origins[0].labels, origins[0].errors, "bootstrap", EQUAL)
    requested = max(origin.requested for origin in origins)
    table = table[~twice].reset_index(drop=True)
    return Replicates(table, replace(origins[0], requested=requested), int(twice.sum()))
