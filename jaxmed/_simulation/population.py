"""Populations that data are drawn from: a model with a number for everything in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxmed._data import Moments, two_valued, variance_components
from jaxmed._inference import Estimates, effects, make_targets
from jaxmed._model import INTERCEPT, DataFacts, Mediation, Spec, System, check_spec, check_terms
from jaxmed._simulation.cluster_sizes import Size, check_size
from jaxmed._simulation.default_values import default_values
from jaxmed._simulation.nonnormal_effects import higher_terms
from jaxmed._support import (
    ArgumentTypeError,
    Floats,
    SpecError,
    check_choice,
    check_count,
    escape_control,
    is_number,
    symmetric,
)

Shape = Literal["normal", "skewed", "heavy_tailed"]


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Population:
    """A model with true values for all its parameters, and the distribution of what no equation draws.

    Parameters
    ----------
    spec : Mediation or System, optional
        The model. By default the 1-1-1 model of columns x, m, y and id with all coefficients random.
    numbers : dict, optional
        Parameters by name, over the defaults below; names that are Python names may be given as keywords instead.
        Any parameter by its label: a fixed effect ``"m~x"``, a (co)variance of random effects ``"m~x~~m~x"``,
        ``"m~x~~y~m"``, a residual variance or covariance ``"m~~m"``. For a mediation model also by the names of
        effects: ``a``, ``b``, ``c_prime`` (with several mediators ``a_m1``), ``var_a``, ``cov_ab``; and for any outcome
        ``intercept_m``, ``intercept_var_m``, ``residual_var_m``. For a column that no equation draws: ``mean_x``,
        ``sd_x``, ``icc_x`` (share of the variance that is between clusters; 1 for a column of the cluster) and
        ``share_x``, with which the column takes the values 1, in this share of rows or clusters, and 0 (``icc_x`` is
        then that of a normal variable behind it).
    cluster_level : list of str
        Columns that do not vary within clusters, mediators too (2-2-1 designs).
    random_effects, residuals : {"normal", "skewed", "heavy_tailed"}
        Distributions of the independent numbers that random effects and residuals are sums of (the lower root of
        their covariance times these): normal, exponential (skewness 2, excess kurtosis 6) or t with 5 degrees of
        freedom (excess kurtosis 6), all with mean 0 and variance 1. Effects of two slopes, E(a_j b_j) = a b +
        cov(a_j, b_j), are the same whatever the distribution; those of longer routes are not.
    clusters, size
        What :func:`jaxmed.simulate` draws unless told otherwise.

    Notes
    -----
    Defaults are the population of Bauer, Preacher & Gil (2006) and its like: intercepts 0; a = b = .6, c' = .2 (paths
    between serial mediators .3), covariates, moderators and their products 0; variances of random intercepts .6
    (mediators) and .4 (y), of random a and b .16, of c' .04, of other slopes .16; cov(a_j, b_j) = .113 of the same
    mediator, other covariances 0; residual variances .65 (mediators) and .45 (y). In a System fixed effects and
    covariances are 0, variances .4 (intercepts), .16 (slopes) and .45 (residuals). Columns have mean 0, sd 1.414 and
    intraclass correlation .5: a cluster mean and a deviation from it of variance 1 each.

    Raises
    ------
    SpecError
        A name that the model does not have; a covariance matrix that is none.

    Examples
    --------
    >>> import jaxmed as jm
    >>> population = jm.Population(a=0.3, cov_ab=0.05, icc_x=0.2)
    >>> round(float(population.effects()["indirect"]), 3)
    0.23
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.Population.from_fit(fit).clusters
    100
    """

    spec: Spec
    facts: DataFacts
    values: Floats
    means: Floats
    between: Floats
    within: Floats
    two_valued: Mapping[str, tuple[float, float, float]]
    random_effects: str
    residuals: Shape
    clusters: int
    size: Size

    def __init__(
        self,
        spec: Spec | None = None,
        numbers: Mapping[str, float] | None = None,
        *,
        cluster_level: Iterable[str] = (),
        random_effects: str = "normal",
        residuals: Shape = "normal",
        clusters: int = 100,
        size: Any = 8,
        **named: float,
    ) -> None:
        spec = Mediation(x="x", m="m", y="y", cluster="id") if spec is None else spec
        check_spec(spec)
        if spec.categorical:
            raise SpecError(
                f"{spec.categorical[0]!r} is categorical, and a population has no categories; use columns of 0 and 1 "
                "(share_<column>=...) instead"
            )
        given = _named(numbers) | named
        listed = [cluster_level] if isinstance(cluster_level, str) else cluster_level
        level_2 = set(check_terms(listed, "cluster_level"))
        level_2 |= {
            name.removeprefix("icc_")
            for name, value in given.items()
            if name.startswith("icc_") and is_number(value) and value == 1
        }
        facts = DataFacts({}, frozenset(level_2))
        system = spec.system(facts)
        unknown = sorted(level_2 - set(system.columns))
        if unknown:
            raise SpecError(f"cluster_level names {unknown[0]!r}; the columns of the model are {list(system.columns)}")
        size, columns = check_size(size), _exogenous(system)
        on = np.array([name in level_2 for name in columns], dtype=float)
        vars(self).update(
            spec=spec,
            facts=facts,
            values=default_values(spec, system, facts),
            means=np.zeros(len(columns)),
            between=np.diag(1 + on),
            within=np.diag(1 - on),
            two_valued={},
            random_effects=random_effects,
            residuals=residuals,
            clusters=clusters,
            size=size,
        )
        self._set(given)
        self._check()

    # Other ways to make one ------------------------------------------------------------------------------------------

    @classmethod
    def from_fit(cls, fit: Estimates) -> Population:
        """The population that a fit estimates: its model, its estimates as truth, columns and cluster sizes like its.

        Columns that no equation draws are normal with the means, and the covariances between and within clusters
        (analysis of variance), that the data have; columns of two values keep these and their shares.

        Parameters
        ----------
        fit : Fit
            Not of estimates alone: its moments are used.

        Returns
        -------
        Population
            Numbers to ten digits.

        Raises
        ------
        SpecError
            Something else than a fit; the model has a categorical column.

        Examples
        --------
        >>> import jaxmed as jm
        >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
        >>> jm.Population.from_fit(fit).effects().round(3).to_dict()
        {'a': 0.652, 'b': 0.613, 'c_prime': 0.24, 'cov_ab': 0.158, 'indirect': 0.557, 'total': 0.797}
        """
        if not hasattr(fit, "moments"):
            raise ArgumentTypeError(
                f"Population.from_fit needs a Fit, as jaxmed.fit returns it; got {type(fit).__name__}"
            )
        if fit.spec.categorical:
            raise SpecError(
                f"the fit has a categorical column, {fit.spec.categorical[0]!r}; a population needs columns of "
                "numbers: fit indicators of 0 and 1 instead"
            )
        moments: Moments = fit.moments
        columns = _exogenous(fit.system)
        means, between, within = variance_components(moments, columns)
        sizes = sum(pattern.products[0] for pattern in moments.patterns)
        found = [int(size) for size in sizes if size > 0]
        population = cls.__new__(cls)
        shares = {name: tuple(map(_ten_digits, three)) for name, three in two_valued(moments, columns).items()}
        vars(population).update(
            spec=fit.spec,
            facts=fit.facts,
            values=_ten_digits(np.array(fit.values)),
            means=_ten_digits(means),
            between=_ten_digits(between),
            within=_ten_digits(within),
            two_valued=shares,
            random_effects="normal",
            residuals="normal",
            clusters=len(found),
            size=found[0] if len(set(found)) == 1 else found,
        )
        population._check()
        return population

    @classmethod
    def standardized(
        cls,
        a: float,
        b: float,
        c_prime: float = 0.0,
        *,
        sd_a: float = 0.2,
        sd_b: float = 0.2,
        sd_c_prime: float = 0.0,
        corr_ab: float = 0.0,
        icc_x: float = 0.2,
        icc_m: float = 0.2,
        icc_y: float = 0.2,
        **options: Any,
    ) -> Population:
        """A 1-1-1 population in standard deviations: x, m and y have variance one over all rows.

        Parameters
        ----------
        a, b, c_prime : float
            Average standardised slopes.
        sd_a, sd_b, sd_c_prime : float
            Standard deviations of the slopes between clusters; with 0 the slope is fixed, in the model too.
        corr_ab : float
            Correlation of a_j and b_j.
        icc_x : float
            Intraclass correlation of x.
        icc_m, icc_y : float
            Of m and y given their predictors: the random intercept's share of what they leave. With 0 there is no
            random intercept.
        options
            As for :class:`Population`.

        Returns
        -------
        Population

        Raises
        ------
        SpecError
            The slopes explain more than all of the variance.

        Notes
        -----
        With E[x] = 0, Var(a_j x) = a^2 + sd_a^2, and Var(b_j m + c'_j x) = E[b_j^2] v + E[(a_j b_j + c'_j)^2], v what
        x leaves of m, for normal slopes (E[a^2 b^2] = E[a^2] E[b^2] + 2 s^2 + 4ab s with s = cov(a_j, b_j)).

        Examples
        --------
        >>> import jaxmed as jm
        >>> population = jm.Population.standardized(a=0.3, b=0.3, c_prime=0.1)
        >>> rows = jm.simulate(population, clusters=2000, size=10, seed=1)
        >>> [round(float(rows[name].var()), 1) for name in ("x", "m", "y")]
        [1.0, 1.0, 1.0]
        """
        spreads = {"sd_a": sd_a, "sd_b": sd_b, "sd_c_prime": sd_c_prime}
        shares = {"icc_x": icc_x, "icc_m": icc_m, "icc_y": icc_y}
        slopes = {"a": a, "b": b, "c_prime": c_prime, "corr_ab": corr_ab}
        for name, number in (slopes | spreads | shares).items():
            if not is_number(number) or abs(number) > 1e6:
                raise SpecError(f"{name}={number!r} must be a number from -1e6 to 1e6")
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise SpecError(f"{name}={share!r} must be a share from 0 to below 1")
        for name, spread in spreads.items():
            if not spread >= 0:
                raise SpecError(f"{name}={spread!r} must not be negative")
        if not -1 <= corr_ab <= 1:
            raise SpecError(f"corr_ab={corr_ab!r} must lie between -1 and 1")
        cov_ab = corr_ab * sd_a * sd_b
        a_square, b_square = a**2 + sd_a**2, b**2 + sd_b**2
        m_left = 1 - a_square
        product_square = a_square * b_square + 2 * cov_ab**2 + 4 * a * b * cov_ab
        y_left = 1 - (b_square * m_left + product_square + 2 * (a * b + cov_ab) * c_prime + c_prime**2 + sd_c_prime**2)
        for outcome, left in (("m", m_left), ("y", y_left)):
            if not left > 0:
                raise SpecError(
                    f"with these slopes the predictors explain {1 - left:.3f} of a variance of {outcome} of one; make "
                    "them smaller"
                )
        varying = {
            "m": [name for name, sd in ((INTERCEPT, icc_m), ("x", sd_a)) if sd > 0],
            "y": [name for name, sd in ((INTERCEPT, icc_y), ("m", sd_b), ("x", sd_c_prime)) if sd > 0],
        }
        random: Any = {outcome: names for outcome, names in varying.items() if names} or "none"
        spec = Mediation(x="x", m="m", y="y", cluster="id", random=random)
        numbers = {"m~x": a, "y~m": b, "y~x": c_prime, "m~~m": (1 - icc_m) * m_left, "y~~y": (1 - icc_y) * y_left}
        numbers |= {"sd_x": 1.0, "icc_x": icc_x}
        variances = {"m~1": icc_m * m_left, "m~x": sd_a**2, "y~1": icc_y * y_left, "y~m": sd_b**2, "y~x": sd_c_prime**2}
        numbers |= {f"{label}~~{label}": value for label, value in variances.items() if value > 0}
        if sd_a > 0 and sd_b > 0:
            numbers["m~x~~y~m"] = cov_ab
        return cls(spec, numbers, **options)

    def replace(self, numbers: Mapping[str, float] | None = None, **named: Any) -> Population:
        """The same population with some other numbers, names as in :class:`Population`, or other distributions.

        Raises
        ------
        SpecError
            Unknown names, and numbers that no population has.

        Examples
        --------
        >>> import jaxmed as jm
        >>> jm.Population().replace(a=0.3).effects()[["a", "indirect"]].round(3).to_dict()
        {'a': 0.3, 'indirect': 0.293}
        """
        found = type(self).__new__(type(self))
        own = {name: named.pop(name) for name in ("random_effects", "residuals", "clusters", "size") if name in named}
        if "size" in own:
            own["size"] = check_size(own["size"])
        kept = {name: copy(getattr(self, name)) for name in self.__dataclass_fields__}
        vars(found).update(kept | own)
        found._set(_named(numbers) | named)
        found._check()
        return found

    # Numbers by name -------------------------------------------------------------------------------------------------

    def _set(self, numbers: Mapping[str, Any]) -> None:
        """Put numbers in their places, in the arrays as they are."""
        labels, columns = list(self.labels), list(self.columns)
        chosen: dict[tuple[str, str], str] = {}
        for name, value in numbers.items():
            if not is_number(value):
                raise SpecError(f"{name}={value!r} must be a finite number")
            kind, what = self._place(name)
            if (kind, what) in chosen:
                raise SpecError(f"{name!r} and {chosen[kind, what]!r} are the same; give one of them")
            chosen[kind, what] = name
            value = float(value)
            if kind == "parameter":
                self.values[labels.index(what)] = value
            elif kind == "mean":
                self.means[columns.index(what)] = value
            elif kind == "share":
                if not 0 < value < 1:
                    raise SpecError(f"{name}={value!r} must lie between 0 and 1")
                low, high, _ = self.two_valued.get(what, (0.0, 1.0, value))
                vars(self).update(two_valued={**self.two_valued, what: (low, high, value)})
            else:
                self._spread(name, kind, columns.index(what), value)
        for kind, what in chosen:
            if kind in ("mean", "sd") and what in self.two_valued:
                raise SpecError(f"{what!r} takes two values in shares (share_{what}); leave out {chosen[kind, what]!r}")

    def _spread(self, name: str, kind: str, k: int, value: float) -> None:
        """Another sd or intraclass correlation of a column; its correlations with others stay.

        Of a column of two values the intraclass correlation is that of the normal variable behind it.
        """
        total = self.between[k, k] + self.within[k, k]
        share = self.between[k, k] / total
        if kind == "sd":
            if not value > 0:
                raise SpecError(f"{name}={value!r} must be above 0")
            total = value**2
        else:
            if not 0 <= value <= 1:
                raise SpecError(f"{name}={value!r} is an intraclass correlation, from 0 to 1")
            if (value == 1) != (self.columns[k] in self.facts.cluster_level):
                raise SpecError(
                    f"{name}={value!r}: whether {self.columns[k]!r} varies within clusters is part of the model; make "
                    "another Population for it"
                )
            share = value
        for part, variance in ((self.between, total * share), (self.within, total * (1 - share))):
            old = part[k, k]
            factor = np.sqrt(variance / old) if old > 0 else 0.0
            part[k] *= factor
            part[:, k] *= factor
            part[k, k] = variance

    def _place(self, name: str) -> tuple[str, str]:
        """What a name stands for: a parameter's label, or a property of a column."""
        if name in self.labels:
            return "parameter", name
        one, sign, other = name.partition("~~")
        if sign and f"{other}~~{one}" in self.labels:
            return "parameter", f"{other}~~{one}"
        if name in self._aliases:
            return "parameter", self._aliases[name]
        for kind in ("mean", "sd", "icc", "share"):
            if name.startswith(f"{kind}_") and name.removeprefix(f"{kind}_") in self.columns:
                return kind, name.removeprefix(f"{kind}_")
        known = [*self.labels, *self._aliases, *(f"{kind}_{c}" for kind in ("mean", "sd", "icc") for c in self.columns)]
        if name in ("clusters", "size"):
            raise SpecError(
                f"{name!r} is no number of a population; it is an argument of its own, or one of the designs"
            )
        parts = [part for part in (f"{name}_within", f"{name}_between") if part in known]
        if len(parts) == 2:
            raise SpecError(f"the path {name!r} of this population is split; give {parts[0]!r} and {parts[1]!r}")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise SpecError(f"this population has no {name!r}; {hint}")

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """Short names of parameters -> their labels."""
        labels = self.labels
        found: dict[str, str] = {}
        for outcome in self.system.outcomes:
            found[f"intercept_{outcome}"] = f"{outcome}~1"
            found[f"intercept_var_{outcome}"] = f"{outcome}~1~~{outcome}~1"
            found[f"residual_var_{outcome}"] = f"{outcome}~~{outcome}"
        if self.spec.has_effects:
            paths, rows, _ = self.spec.estimands(self.facts)
            first = {name: path.pieces[0][0] for name, path in paths.items()}
            found |= first | {f"var_{name}": f"{label}~~{label}" for name, label in first.items()}
            for row in rows:
                if row.kind == "covariance":
                    one, other = (first[path] for path in row.terms[0][1])
                    found[row.name] = f"{one}~~{other}" if f"{one}~~{other}" in labels else f"{other}~~{one}"
        return {name: label for name, label in found.items() if label in labels}

    def _check(self) -> None:
        for name, shape in {"random_effects": self.random_effects, "residuals": self.residuals}.items():
            check_choice(name, shape, Shape)
        check_count("clusters", self.clusters)
        matrices = {"random effects": self.random_cov, "residuals": self.residual_cov}
        for what, matrix in matrices.items():
            negative = [label for label in matrix.index if matrix.loc[label, label] < 0]
            if negative:
                raise SpecError(
                    f"the variance of {negative[0]!r} is negative ({matrix.loc[negative[0], negative[0]]:g})"
                )
            if len(matrix) and np.linalg.eigvalsh(matrix)[0] < -1e-9 * max(float(np.trace(matrix)), 1e-300):
                raise SpecError(
                    f"the covariances of the {what} are larger than their variances allow (the matrix has a negative "
                    f"eigenvalue):\n{matrix.round(4).to_string()}"
                )
        none = [label for label in self.residual_cov.index if self.residual_cov.loc[label, label] <= 0]
        if none:
            raise SpecError(f"the residual variance of {none[0]!r} must be above 0")

    # What it says ----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.params.items())
        return escape_control(f"<{type(self).__name__} of {', '.join(self.system.outcomes)}: {shown}>")

    @cached_property
    def system(self) -> System:
        """The equations."""
        return self.spec.system(self.facts)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all parameters, see :attr:`jaxmed.System.parameter_labels`."""
        return self.system.parameter_labels

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that no equation draws."""
        return _exogenous(self.system)

    @cached_property
    def fixed(self) -> dict[str, float]:
        """Fixed effects by label."""
        return dict(zip(self.system.labels, self.values.tolist(), strict=False))

    @cached_property
    def random_matrix(self) -> Floats:
        """G, the covariance of the random effects, shape (q, q)."""
        first, pairs = len(self.system.labels), self.system.random_pairs
        return symmetric(len(self.system.random_labels), pairs, self.values[first : first + len(pairs)])

    @cached_property
    def residual_matrix(self) -> Floats:
        """Covariance of the residuals of a row, shape (E, E)."""
        n = len(self.system.outcomes)
        first = len(self.system.labels) + len(self.system.random_pairs)
        return symmetric(n, [*((e, e) for e in range(n)), *self.system.residual_pairs], self.values[first:])

    @property
    def params(self) -> pd.Series:
        """Fixed effects by label."""
        return pd.Series(self.fixed, name="value", dtype=float)

    @property
    def random_cov(self) -> pd.DataFrame:
        """:attr:`random_matrix` with labels."""
        return _labelled(self.random_matrix, self.system.random_labels)

    @property
    def residual_cov(self) -> pd.DataFrame:
        """:attr:`residual_matrix` with labels."""
        return _labelled(self.residual_matrix, self.system.outcomes)

    def effects(self, at: Mapping[str, Any] | None = None) -> pd.Series:
        """True effects by name, ``at`` values of moderators as in :meth:`jaxmed.Fit.effects`.

        Raises
        ------
        FitError
            The model is not a :class:`Mediation`.
        SpecError
            Moderators or values that the model does not have.

        Examples
        --------
        >>> import jaxmed as jm
        >>> jm.Population().effects()[["indirect", "total"]].round(3).to_dict()
        {'indirect': 0.473, 'total': 0.673}
        """
        targets = make_targets(self, at)
        found = effects.linear_combinations_at(targets.plan, self.values[None], targets.weights, targets.combination)[0]
        if self.random_effects != "normal":
            found = found + higher_terms(targets, self.values, self.system, self.random_matrix, self.random_effects)
        return pd.Series(found, index=targets.rows, name="value")

    @property
    def moderator_values(self) -> dict[str, tuple[float | str, ...]]:
        """Values at which effects are shown: mean and mean -+ sd, or the two values of a column that has two."""
        found: dict[str, tuple[float | str, ...]] = {}
        for name, _ in self.spec.moderators:
            k = self.columns.index(name)
            mean, sd = float(self.means[k]), float(np.sqrt(self.between[k, k] + self.within[k, k]))
            found[name] = self.two_valued[name][:2] if name in self.two_valued else (mean - sd, mean, mean + sd)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data: two populations with the same are the same."""
        return {
            "model": self.spec.to_dict(),
            "cluster_level": sorted(self.facts.cluster_level),
            "numbers": dict(zip(self.labels, self.values.tolist(), strict=True)),
            "columns": list(self.columns),
            "means": self.means.tolist(),
            "between": self.between.tolist(),
            "within": self.within.tolist(),
            "two_valued": {name: list(values) for name, values in self.two_valued.items()},
            "random_effects": self.random_effects,
            "residuals": self.residuals,
            "clusters": int(self.clusters),
            "size": self.size,
        }


def _named(numbers: Any) -> dict[str, Any]:
    """Numbers by name, as a dict of text."""
    if numbers is None:
        return {}
    if not isinstance(numbers, Mapping) or not all(isinstance(name, str) for name in numbers):
        raise SpecError(f"numbers={numbers!r} must be a dict from names to numbers, such as {{'y~m': 0.3}}")
    return dict(numbers)


def as_population(value: Any) -> Population:
    """A population from whatever stands for one: itself, a fit, numbers by name, or nothing.

    Raises
    ------
    SpecError
        Something else.
    """
    if isinstance(value, Population):
        return value
    if value is None or isinstance(value, Mapping):
        return Population(None, value)
    if isinstance(value, Estimates):
        return Population.from_fit(value)
    raise SpecError(
        f"a population is a jaxmed.Population, a fit or a dict of numbers by name; got {type(value).__name__}"
    )


def _ten_digits(values: Any) -> Any:
    """Numbers to ten digits, so that a fit is the same population on machines that differ in the last ones."""
    rounded = np.array([float(f"{value:.9e}") for value in np.ravel(values)]).reshape(np.shape(values))
    return rounded if rounded.ndim else float(rounded)


def _exogenous(system: System) -> tuple[str, ...]:
    return tuple(name for name in system.columns if name not in system.outcomes)


def _labelled(matrix: Floats, labels: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(matrix, index=list(labels), columns=list(labels))
