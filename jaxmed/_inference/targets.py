"""Which effects are asked of a fit, at which values of moderators, and how they follow from its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from jaxmed._inference import effects
from jaxmed._inference.estimates import Estimates
from jaxmed._model import DataFacts, Estimands, Spec, find_category
from jaxmed._support import FitError, Floats, SpecError, check_flag, is_number, one_or_more, root

Value = float | str
Point = dict[str, Value]


class Model(Protocol):
    """What the names of effects depend on: a fit, or a population."""

    @property
    def spec(self) -> Spec:
        """The specification."""

    @property
    def facts(self) -> DataFacts:
        """What the data say about it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all parameters."""

    @property
    def moderator_values(self) -> Mapping[str, tuple[Value, ...]]:
        """Values of the moderators at which effects are shown."""


class Targets(NamedTuple):
    """The rows of a table of effects as one function of all parameters: ``combination @ effects(points)``.

    Attributes
    ----------
    rows : Index
        Of the table: effects, or effects and moderators.
    names : tuple of str
        Effect of every row.
    plan : effects.EffectIndex
    weights : tuple of ndarray, each (points, coefficients)
        Weights of the coefficients of every path at the points.
    combination : ndarray, shape (rows, points * effects)
        Weights of the effects at the points, point by point.
    """

    rows: pd.Index[Any]
    names: tuple[str, ...]
    plan: effects.EffectIndex
    weights: tuple[Floats, ...]
    combination: Floats

    @property
    def labels(self) -> tuple[str, ...]:
        """Rows as text: ``"indirect"``, with moderators ``"indirect[climate=-1]"``."""
        if not isinstance(self.rows, pd.MultiIndex):
            return tuple(self.rows)
        names = self.rows.names[1:]
        shown = [
            [f"{name}={_text(value)}" for name, value in zip(names, at, strict=True) if value == value]
            for _, *at in self.rows
        ]
        return tuple(f"{name}[{','.join(at)}]" if at else name for name, at in zip(self.names, shown, strict=True))


class Quantities(NamedTuple):
    """All that a fit has intervals for: parameters, then effects (none of a system).

    Attributes
    ----------
    labels : tuple of str
    n_params : int
    values, errors : ndarray
        Estimates and joint standard errors, by label.
    targets : Targets or None
    """

    labels: tuple[str, ...]
    n_params: int
    values: Floats
    errors: Floats
    targets: Targets | None

    @property
    def units(self) -> Floats:
        """Steps as large as the parameters are, of no parameter zero, shape (parameters,)."""
        size = np.abs(self.values[: self.n_params]) + np.nan_to_num(self.errors[: self.n_params])
        return np.where(size > 0, size, 1.0)

    def positions(self, terms: str | Sequence[str]) -> list[int]:
        """Positions of some terms among the labels, see :func:`positions`."""
        return positions(terms, self.labels, self.n_params)

    def jacobian(self, values: Floats) -> Floats:
        """Derivatives of all of them in the parameters, at some values of these, shape (labels, parameters)."""
        slopes = np.eye(self.n_params)
        if self.targets is None:
            return slopes
        of = self.targets
        return np.vstack(
            [slopes, effects.linear_combinations_and_jacobian(of.plan, values, of.weights, of.combination)[1]]
        )

    def rows(self, at: Sequence[int]) -> pd.Index[Any]:
        """Index of a table of some of them: that of a table of effects if these are effects alone."""
        if self.targets is not None and min(at) >= self.n_params:
            return self.targets.rows[[k - self.n_params for k in at]]
        return pd.Index([self.labels[k] for k in at])


class Combination(NamedTuple):
    """A row of a table: a weighted sum of effects at some points.

    Attributes
    ----------
    name : str
        Effect.
    at : tuple
        Entries of the index, one per moderator.
    terms : tuple of (weight, point, row)
    """

    name: str
    at: tuple[Value, ...]
    terms: tuple[tuple[float, int, int], ...]


def make_targets(model: Model, at: Mapping[str, Any] | None = None, difference: bool = False) -> Targets:
    """The effects of a fit's model at values of its moderators, or their differences between these values.

    Raises
    ------
    FitError
        The model is not a mediation model.
    SpecError
        Moderators or values that the model does not have.
    """
    check_flag("difference", difference)
    estimands = estimands_of(model)
    moderators = list(estimands.moderators)
    if difference and not moderators:
        raise SpecError("difference=True: this model has no moderators between whose values effects could differ")
    points = moderator_points(model, at)
    if difference:
        combinations = _differences(estimands, points)
        if not combinations:
            raise SpecError(f"difference=True needs a moderator with at least two values; got {points}")
    else:
        indexed, points = _indices(model, estimands, points)
        combinations = [*_levels(estimands, points, len(points) - indexed.extra), *indexed.combinations]
    plan = effects.make_index(estimands, model.labels, estimands.rows)
    combination = np.zeros((len(combinations), len(points), len(estimands.rows)))
    for row, chosen in enumerate(combinations):
        for weight, point, k in chosen.terms:
            combination[row, point, k] += weight
    names = tuple(chosen.name for chosen in combinations)
    index: pd.Index[Any] = pd.Index(names)
    if moderators:
        index = pd.MultiIndex.from_tuples(
            [(chosen.name, *chosen.at) for chosen in combinations], names=["effect", *moderators]
        )
    weights = path_weights(model, estimands, points)
    return Targets(index, names, plan, weights, combination.reshape(len(combinations), -1))


def quantities(fit: Estimates, at: Mapping[str, Any] | None = None) -> Quantities:
    """Parameters and effects of a fit with their joint standard errors; effects at values of moderators."""
    errors = root(np.diag(fit.joint))
    if not fit.spec.has_effects:
        if at is not None:
            raise SpecError("at is of effects, and this fit of a System has none")
        return Quantities(fit.labels, len(fit.values), fit.values, errors, None)
    targets = make_targets(fit, at)
    value, slope = effects.linear_combinations_and_jacobian(
        targets.plan, fit.values, targets.weights, targets.combination
    )
    return Quantities(
        (*fit.labels, *targets.labels),
        len(fit.values),
        np.concatenate([fit.values, value]),
        np.concatenate([errors, fit.errors(slope)]),
        targets,
    )


def positions(terms: str | Sequence[str], labels: Sequence[str], n_params: int) -> list[int]:
    """Positions of "effects", "parameters", "all" or some names among labels, of which the first are parameters."""
    labels = list(labels)
    if isinstance(terms, str) and terms in ("effects", "parameters", "all"):
        first = n_params if terms == "effects" and n_params < len(labels) else 0  # a system has no effects
        return list(range(first, n_params if terms == "parameters" else len(labels)))
    chosen = one_or_more(terms)
    unknown = [name for name in chosen if not isinstance(name, str) or name not in labels]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise SpecError(f"terms={chosen!r}: choose 'effects', 'parameters', 'all' or some of {labels}, each once")
    return [labels.index(name) for name in chosen]


def estimands_of(model: Model) -> Estimands:
    """The effects of a fit's model; only a mediation model has some."""
    if not model.spec.has_effects:
        raise FitError(
            "effects are defined for a jaxmed.Mediation; this fit is of a System, whose coefficients are in params"
        )
    return model.spec.estimands(model.facts)


def moderator_points(model: Model, at: Mapping[str, Any] | None) -> list[Point]:
    """All combinations of the values of the moderators."""
    moderators = dict(model.spec.moderators)
    if at is None:
        at = {}
    if not isinstance(at, Mapping):
        raise SpecError(f"at={at!r} must be a dict from moderator to values, such as {{'w': [-1, 0, 1]}}")
    if at and not moderators:
        raise SpecError(f"at={dict(at)!r}: this model has no moderators, so effects do not depend on values of any")
    unknown = [name for name in at if name not in moderators]
    if unknown:
        raise SpecError(f"at has the key {unknown[0]!r}; the moderators of this model are {list(moderators)}")
    chosen = []
    for name in moderators:
        given = at.get(name, model.moderator_values[name])
        values = one_or_more(given)
        if not values:
            raise SpecError(f"at[{name!r}] is empty; give at least one value")
        chosen.append([_value(model, name, value) for value in values])
        if len(set(chosen[-1])) < len(values):
            raise SpecError(f"at[{name!r}]={values} names a value twice")
    return [dict(zip(moderators, values, strict=True)) for values in product(*chosen)]


def _value(model: Model, name: str, value: Any) -> Value:
    if name in model.facts.categories:
        category = find_category(value, model.facts.categories[name])
        if category is None:
            raise SpecError(
                f"at[{name!r}] has {value!r}; the categories of {name!r} are {list(model.facts.categories[name])}"
            )
        return category
    if not isinstance(value, (bool, np.bool_)) and not is_number(value):
        raise SpecError(f"at[{name!r}] has {value!r}; give finite numbers")
    return float(value)


def path_weights(model: Model, estimands: Estimands, points: list[Point]) -> tuple[Floats, ...]:
    """Weights of the coefficients at some points; a category is a row of indicators."""
    values = {}
    for name, columns in estimands.moderators.items():
        for column in columns:
            if name in model.facts.categories:
                chosen = [float(column == f"{name}[{point[name]}]") for point in points]
            else:
                chosen = [float(point[name]) for point in points]
            values[column] = np.array(chosen)
    return effects.make_weights(estimands, values)


def _levels(estimands: Estimands, points: list[Point], n: int) -> list[Combination]:
    """Every effect at the first n points."""
    return [
        Combination(row.name, tuple(point.values()), ((1.0, p, k),))
        for k, row in enumerate(estimands.rows)
        for p, point in enumerate(points[:n])
    ]


def _differences(estimands: Estimands, points: list[Point]) -> list[Combination]:
    """Every effect's difference between points that differ in one moderator."""
    found = []
    for k, row in enumerate(estimands.rows):
        for q, other in enumerate(points):
            for p, point in enumerate(points[:q]):
                moved = [name for name in point if point[name] != other[name]]
                if len(moved) == 1:
                    at = tuple(f"{_text(other[m])} vs {_text(point[m])}" if m in moved else point[m] for m in point)
                    found.append(Combination(row.name, at, ((1.0, q, k), (-1.0, p, k))))
    return found


def _text(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


class _Indices(NamedTuple):
    combinations: list[Combination]
    extra: int


def _indices(model: Model, estimands: Estimands, points: list[Point]) -> tuple[_Indices, list[Point]]:
    """Indices of moderated mediation, with the points they add: the slope of an indirect effect in one moderator.

    There is one where the effect is linear in the moderator, that is where it moves one path of each route at most.
    """
    every = list(points)
    combinations = []
    for name in estimands.moderators:
        if name in model.facts.categories:
            continue
        others = list(dict.fromkeys(tuple((k, v) for k, v in point.items() if k != name) for point in points))
        for k, row in enumerate(estimands.rows):
            if row.kind != "indirect" or estimands.degree(row, name) != 1:
                continue
            label = f"index_{name}{row.name.removeprefix('indirect')}"
            for other in others:
                at = tuple(dict(other).get(moderator, np.nan) for moderator in estimands.moderators)
                ends = [{m: dict(other).get(m, end) for m in estimands.moderators} for end in (1.0, 0.0)]
                combinations.append(Combination(label, at, ((1.0, len(every), k), (-1.0, len(every) + 1, k))))
                every += ends
    return _Indices(combinations, len(every) - len(points)), every
