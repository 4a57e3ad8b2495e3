"""What model is meant: equations and systems of equations, as names only (no data, no numbers)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any, ClassVar

import numpy as np

from jaxmed._model import terms
from jaxmed._model.choices import Structure
from jaxmed._model.data_facts import DataFacts
from jaxmed._model.estimands import Edge, Estimands
from jaxmed._model.formulas import common_cluster, parse
from jaxmed._model.terms import INTERCEPT, check_name, check_terms
from jaxmed._support import SpecError, check_choice, check_list, one_or_more


@dataclass(frozen=True)
class Equation:
    """One linear mixed equation ``outcome = predictors' (beta + u_j) + residual``.

    Parameters
    ----------
    outcome : str
        Column of the response.
    predictors : list of str
        Terms with a fixed effect: ``"1"`` is the intercept, ``"x"`` a column, ``"x:w"`` a product, ``"within(x)"`` the
        deviation from the cluster's mean and ``"between(x)"`` that mean, ``"g[B]"`` the indicator of category B of g.
    random : list of str, optional
        The predictors whose coefficient varies between clusters; none by default.
    level : {1, 2}
        2: the outcome belongs to the cluster, and the equation has one row per cluster.

    Raises
    ------
    SpecError
        A name that is not text, repeated or contradictory.

    Examples
    --------
    >>> import jaxmed as jm
    >>> jm.Equation("y", ["1", "x"], random=["1", "x"]).labels
    ('y~1', 'y~x')
    """

    outcome: str
    predictors: tuple[str, ...]
    random: tuple[str, ...] = ()
    level: int = 1

    def __init__(self, outcome: str, predictors: Iterable[str], random: Iterable[str] = (), level: int = 1) -> None:
        check_name(outcome, "the outcome of an equation")
        fixed = check_terms(predictors, f"the predictors of {outcome!r}")
        varying = check_terms(random, f"the random effects of {outcome!r}")
        if outcome == INTERCEPT:
            raise SpecError("'1' stands for the intercept and cannot be an outcome; rename the column")
        if terms.factors(outcome) != (terms.Factor(outcome),):
            raise SpecError(f"the outcome {outcome!r} is a term of several columns; make it a column of the data first")
        if not fixed:
            raise SpecError(f"the equation of {outcome!r} has no predictors; write ['1'] for an intercept alone")
        if any(outcome in terms.columns(name) for name in fixed):
            raise SpecError(f"{outcome!r} is both the outcome and a predictor of the same equation; remove one")
        extra = [name for name in varying if name not in fixed]
        if extra:
            raise SpecError(
                f"{extra[0]!r} is random in the equation of {outcome!r} but not among its predictors {list(fixed)}; "
                "add it there: a random effect varies around a fixed one"
            )
        if isinstance(level, bool) or not isinstance(level, (int, np.integer)) or level not in (1, 2):
            raise SpecError(f"level={level!r} of {outcome!r} is not known; 1 is the row, 2 the cluster")
        if level == 2 and varying:
            raise SpecError(
                f"{outcome!r} belongs to the cluster (level=2): with one row per cluster its effects cannot vary "
                "between clusters; leave out random"
            )
        random = tuple(name for name in fixed if name in varying)
        vars(self).update(outcome=outcome, predictors=fixed, random=random, level=int(level))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels ``outcome~predictor`` of the fixed effects."""
        return tuple(f"{self.outcome}~{name}" for name in self.predictors)

    @cached_property
    def random_labels(self) -> tuple[str, ...]:
        """Labels ``outcome~predictor`` of the random effects."""
        return tuple(f"{self.outcome}~{name}" for name in self.random)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Data columns that a row must have observed to count in this equation."""
        used = (column for name in self.predictors for column in terms.columns(name))
        return (*dict.fromkeys(used), self.outcome)


@dataclass(frozen=True)
class System:
    """Mixed equations over the same clusters, their random effects jointly normal: y = X beta + Z u + e.

    Parameters
    ----------
    equations : list of Equation
        An outcome may be a predictor of another equation as long as no circle arises; the product of the equations'
        densities is then the joint likelihood.
    cluster : str
        Column of the cluster id.
    covariance : {"unstructured", "diagonal", "block"} or list of lists of str
        Covariance of the random effects: free, no covariances, free within each equation and none between, or free
        within each of the groups of labels listed, ``[["m~1"], ["y~1"], ["m~x", "y~m"]]``.
    residuals : list of lists of str, optional
        Groups of outcomes whose residuals are correlated within rows; none by default.
    zero : list of pairs of str, optional
        Single covariances of random effects that are held at zero, ``[("m~1", "y~1")]``; all others are as
        ``covariance`` says. Zeros that share no effect, such as ("m~1", "y~m") and ("m~x", "y~1"), leave a circle of
        covariances and need one more.

    Raises
    ------
    SpecError
        Repeated outcomes, a circle among equations, an unknown covariance, outcomes that cannot share residuals, zeros
        that leave a circle of covariances.

    Examples
    --------
    >>> import jaxmed as jm
    >>> system = jm.System([jm.Equation("y", ["1", "x"], random=["1", "x"])], cluster="id")
    >>> system.random_labels
    ('y~1', 'y~x')
    """

    equations: tuple[Equation, ...]
    cluster: str
    covariance: str | tuple[tuple[str, ...], ...] = "unstructured"
    residuals: tuple[tuple[str, ...], ...] = ()
    zero: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        equations: Iterable[Equation],
        cluster: str,
        covariance: Structure | Iterable[Iterable[str]] = "unstructured",
        residuals: Iterable[Iterable[str]] = (),
        zero: Iterable[Iterable[str]] | None = None,
    ) -> None:
        if isinstance(equations, Equation):
            equations = (equations,)
        given = equations
        equations = tuple(check_list("equations", equations, "such as [Equation('y', ['1', 'x'])]"))
        if not equations or not all(isinstance(equation, Equation) for equation in equations):
            raise SpecError(f"a System needs a list with at least one Equation; got equations={given!r}")
        check_name(cluster, "cluster")
        covariance = check_covariance(covariance)
        outcomes = [equation.outcome for equation in equations]
        for outcome in outcomes:
            if outcomes.count(outcome) > 1:
                raise SpecError(f"{outcome!r} is the outcome of two equations; each outcome has one")
        labels = [label for equation in equations for label in equation.labels]
        for label in labels:
            if labels.count(label) > 1:
                raise SpecError(f"two coefficients would be called {label!r}; rename a column that has '~' in its name")
        _check_triangular(equations)
        for equation in equations:
            if cluster in equation.columns:
                raise SpecError(
                    f"{cluster!r} is the cluster id and also a variable in the equation of {equation.outcome!r}; "
                    "use different columns"
                )
        groups = _residual_groups(residuals, equations)
        own = vars(self)
        own.update(equations=equations, cluster=cluster, covariance=covariance, residuals=groups)
        labels_of_random = self._labels_in_order
        if not isinstance(covariance, str):
            _check_partition(covariance, labels_of_random)
        own["zero"] = check_zero(zero, labels_of_random)
        _ = self.random_labels  # refuses zeros that leave a circle

    @classmethod
    def from_formulas(
        cls,
        formulas: Iterable[str],
        cluster: str | None = None,
        covariance: Structure | Iterable[Iterable[str]] = "unstructured",
        residuals: Iterable[Iterable[str]] = (),
        zero: Iterable[Iterable[str]] | None = None,
    ) -> System:
        """A system from formulas in the convention of lme4 and brms.

        Columns, their products (``x:w``, ``x*w``), ``within(x)`` and ``between(x)``; nothing is evaluated. Random
        effects of all formulas covary unless ``covariance`` says otherwise.

        Parameters
        ----------
        formulas : list of str
        cluster : str, optional
            Column of the cluster id; by default the one that the formulas name.
        covariance, residuals, zero
            As for :class:`System`.

        Returns
        -------
        System

        Raises
        ------
        SpecError
            A formula that cannot be read, functions of columns, several clusters.

        Examples
        --------
        >>> import jaxmed as jm
        >>> system = jm.System.from_formulas(["m ~ x + (1 + x | id)", "y ~ m + x + (1 + m + x | id)"])
        >>> system == jm.Mediation(x="x", m="m", y="y", cluster="id").system()
        True
        """
        formulas = one_or_more(formulas)
        parsed = [parse(formula) for formula in formulas]
        named = [found[3] for found in parsed] + [cluster]
        equations = [Equation(outcome, predictors, random) for outcome, predictors, random, _ in parsed]
        return cls(equations, common_cluster(formulas, named), covariance, residuals, zero)

    @cached_property
    def outcomes(self) -> tuple[str, ...]:
        """Outcomes, one per equation."""
        return tuple(equation.outcome for equation in self.equations)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels of all fixed effects, equation by equation."""
        return tuple(label for equation in self.equations for label in equation.labels)

    @cached_property
    def random_labels(self) -> tuple[str, ...]:
        """Labels of all random effects, equation by equation.

        With ``zero`` those with fewer covariances come first: then an entry of the lower-triangular root of G is zero
        exactly where that of G is.
        """
        if not self.zero:
            return self._labels_in_order
        return _elimination_order(self._labels_in_order, self._linked)

    @cached_property
    def _labels_in_order(self) -> tuple[str, ...]:
        return tuple(label for equation in self.equations for label in equation.random_labels)

    @cached_property
    def _linked(self) -> frozenset[frozenset[str]]:
        """Pairs of random effects that covary freely."""
        labels = self._labels_in_order
        owner = {label: e for e, equation in enumerate(self.equations) for label in equation.random_labels}
        if isinstance(self.covariance, str):
            every = {"unstructured": dict.fromkeys(labels, 0), "block": owner}
            group = every.get(self.covariance, {label: k for k, label in enumerate(labels)})
        else:
            group = {label: k for k, names in enumerate(self.covariance) for label in names}
        pairs = {frozenset(pair) for pair in combinations(labels, 2) if group[pair[0]] == group[pair[1]]}
        return frozenset(pairs - {frozenset(pair) for pair in self.zero})

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Distinct data columns of the equations, in order of first appearance."""
        return tuple(dict.fromkeys(name for equation in self.equations for name in equation.columns))

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Columns that a row must have observed, per equation."""
        return tuple(equation.columns for equation in self.equations)

    @cached_property
    def categorical(self) -> tuple[str, ...]:
        """Columns whose categories only the data can tell: none, since a system names its indicators."""
        return ()

    @cached_property
    def terms(self) -> tuple[str, ...]:
        """Distinct terms and outcomes of the equations, without the intercept."""
        every = (name for equation in self.equations for name in (*equation.predictors, equation.outcome))
        return tuple(name for name in dict.fromkeys(every) if name != INTERCEPT)

    @cached_property
    def random_pairs(self) -> tuple[tuple[int, int], ...]:
        """Free entries (row >= column) of the covariance of the random effects, row by row."""
        labels = self.random_labels
        return tuple(
            (a, b)
            for a in range(len(labels))
            for b in range(a + 1)
            if a == b or frozenset((labels[a], labels[b])) in self._linked
        )

    @cached_property
    def residual_groups(self) -> tuple[tuple[int, ...], ...]:
        """Equations by shared residuals, every equation once."""
        at = {name: e for e, name in enumerate(self.outcomes)}
        groups = [tuple(at[name] for name in group) for group in self.residuals]
        shared = {e for group in groups for e in group}
        return tuple(sorted([*groups, *((e,) for e in at.values() if e not in shared)]))

    @cached_property
    def residual_pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of equations (e > f) with correlated residuals."""
        return tuple((f, e) for group in self.residual_groups for e, f in combinations(group, 2))

    @cached_property
    def parameter_labels(self) -> tuple[str, ...]:
        """Labels of all parameters: fixed effects; (co)variances of random effects, then of residuals.

        A covariance is ``"m~x~~y~m"``, a variance ``"m~x~~m~x"``, a residual variance ``"m~~m"``.
        """
        random, outcomes = self.random_labels, self.outcomes
        return (
            *self.labels,
            *(f"{random[col]}~~{random[row]}" for row, col in self.random_pairs),
            *(f"{outcome}~~{outcome}" for outcome in outcomes),
            *(f"{outcomes[col]}~~{outcomes[row]}" for row, col in self.residual_pairs),
        )

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Equations in an order in which every outcome comes before its use as a predictor."""
        waiting = list(range(len(self.equations)))
        found: list[int] = []
        while waiting:
            ahead = {self.outcomes[e] for e in waiting}
            ready = [e for e in waiting if not ahead & set(self.equations[e].columns[:-1])]
            found += ready
            waiting = [e for e in waiting if e not in ready]
        return tuple(found)

    @cached_property
    def averaged(self) -> tuple[str, ...]:
        """Columns whose cluster mean is taken, over all rows in which they are observed."""
        found = (factor.column for name in self.terms for factor in terms.factors(name) if factor.part)
        return tuple(dict.fromkeys(found))

    @cached_property
    def row_products(self) -> tuple[tuple[str, ...], ...]:
        """Products of columns, row by row, that the terms may need."""
        return tuple(sorted({found for name in self.terms for found in terms.row_products(name)}))

    @cached_property
    def centred(self) -> frozenset[str]:
        """Terms from which a constant may be subtracted without changing the model.

        A shift of a predictor moves into the intercept, so the equation must have one; where the slope is random the
        intercept must be random too and free to covary with it. A shift of an outcome needs an intercept.
        """
        allowed = set(self.terms)
        free = {frozenset((self.random_labels[a], self.random_labels[b])) for a, b in self.random_pairs}
        for equation in self.equations:
            at = f"{equation.outcome}~{INTERCEPT}"
            for name in (*equation.predictors, equation.outcome):
                if name == INTERCEPT:
                    continue
                label = f"{equation.outcome}~{name}"
                # What covaries with the slope must be free to covary with the intercept that takes up the shift.
                beside = {other for pair in free if label in pair for other in pair}
                absorbed = name not in equation.random or all(frozenset((at, other)) in free for other in beside)
                if not (INTERCEPT in equation.predictors and absorbed):
                    allowed.discard(name)
        return frozenset(allowed)

    # What a mediation model has and a system does not, so that nothing else asks which of the two it holds ------------

    has_effects: ClassVar[bool] = False
    serial: ClassVar[bool] = False
    center: ClassVar[str | None] = None
    sources: ClassVar[tuple[str, ...]] = ()
    mediators: ClassVar[tuple[str, ...]] = ()
    moderators: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()
    edges: ClassVar[tuple[Edge, ...]] = ()

    def system(self, facts: DataFacts | None = None) -> System:
        """The equations: this system, whatever the data."""
        return self

    def edges_in(self, facts: DataFacts) -> tuple[Edge, ...]:
        """No paths."""
        return ()

    def contrasts(self, facts: DataFacts) -> tuple[str, ...]:
        """No categories of x."""
        return ()

    def estimands(self, facts: DataFacts) -> Estimands:
        """No effects."""
        return Estimands({}, (), {})

    def free_intercepts(self, facts: DataFacts) -> list[tuple[str, str]]:
        """No effects that rest on a covariance of random intercepts."""
        return []

    def resting_on_intercepts(self, facts: DataFacts) -> list[str]:
        """No effects."""
        return []

    def is_simple(self, facts: DataFacts) -> bool:
        """It is not the model of Bauer, Preacher & Gil (2006)."""
        return False

    def is_split(self, facts: DataFacts) -> bool:
        """No mediator is split."""
        return False

    def notes(self, facts: DataFacts) -> tuple[str, ...]:
        """Data change nothing about it."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which :func:`from_dict` makes an equal system."""
        plain = {
            "kind": "system",
            "equations": [
                {"outcome": e.outcome, "predictors": list(e.predictors), "random": list(e.random), "level": e.level}
                for e in self.equations
            ],
            "cluster": self.cluster,
            "covariance": plain_covariance(self.covariance),
            "residuals": [list(group) for group in self.residuals],
        }
        return plain | ({"zero": [list(pair) for pair in self.zero]} if self.zero else {})


def _check_triangular(equations: tuple[Equation, ...]) -> None:
    """Refuse circles such as m on y and y on m: the stacked densities would not be a likelihood."""
    waiting = {equation.outcome: set(equation.columns[:-1]) for equation in equations}
    while waiting:
        ready = [outcome for outcome, needs in waiting.items() if not needs & waiting.keys()]
        if not ready:
            raise SpecError(
                f"the equations of {sorted(waiting)} predict each other in a circle; remove one of the paths"
            )
        for outcome in ready:
            del waiting[outcome]


def _residual_groups(groups: Iterable[Iterable[str]], equations: tuple[Equation, ...]) -> tuple[tuple[str, ...], ...]:
    """Check groups of outcomes with correlated residuals, and put their outcomes in the order of the equations."""
    chosen = check_list("residuals", groups, "of groups of outcomes such as [['m1', 'm2']]")
    of = {equation.outcome: equation for equation in equations}
    result: list[tuple[str, ...]] = []
    seen: set[str] = set()
    for group in chosen:
        names = check_terms(group, "a group of residuals")
        unknown = [name for name in names if name not in of]
        if unknown:
            raise SpecError(f"residuals names {unknown[0]!r}; the outcomes of this system are {list(of)}")
        if seen & set(names):
            raise SpecError(f"residuals names {sorted(seen & set(names))[0]!r} in two groups; give each outcome once")
        if len({of[name].level for name in names}) > 1:
            raise SpecError(f"residuals of {list(names)} cannot be correlated within rows: their levels differ")
        for name in names:
            ahead = [other for other in names if other in of[name].columns[:-1]]
            if ahead:
                raise SpecError(
                    f"residuals of {name!r} and {ahead[0]!r} cannot be correlated: {ahead[0]!r} is a predictor of "
                    f"{name!r}, and the two paths would not be identified separately"
                )
        seen |= set(names)
        if len(names) > 1:
            result.append(tuple(name for name in of if name in names))
    return tuple(result)


def check_covariance(value: Any) -> str | tuple[tuple[str, ...], ...]:
    """A known structure, or groups of labels of random effects."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        example = "[['m~1'], ['y~1'], ['m~x', 'y~m']]"
        also = f" or list groups of labels of random effects that may covary, such as {example}"
        return check_choice("covariance", value, Structure, also)
    listed = check_list("covariance", value, "such as [['m~1'], ['y~1']]")
    groups = tuple(tuple(group) if isinstance(group, (list, tuple)) else (group,) for group in listed)
    names = [name for group in groups for name in group]
    for name in names:
        if not isinstance(name, str):
            raise SpecError(f"covariance has {name!r}; list labels of random effects such as 'm~x'")
        if names.count(name) > 1:
            raise SpecError(f"covariance lists {name!r} twice; each random effect belongs to one group")
    return groups


def check_zero(value: Any, labels: tuple[str, ...] | None = None) -> tuple[tuple[str, str], ...]:
    """Pairs of labels of random effects, each once; of ``labels`` where these are known."""
    if value is None:
        return ()
    example = "of pairs of labels such as [('m~1', 'y~1')]"
    found: dict[frozenset[str], tuple[str, str]] = {}
    for given in check_list("zero", value, example):
        pair = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if len(pair) != 2 or not all(isinstance(label, str) for label in pair) or pair[0] == pair[1]:
            raise SpecError(
                f"zero has {given!r}; each entry must be a pair of labels of two random effects, such as ('m~1', 'y~1')"
            )
        unknown = [label for label in pair if labels is not None and label not in labels]
        if unknown:
            raise SpecError(
                f"zero names {unknown[0]!r}, which is not a random effect of this model; choose from "
                f"{list(labels or ())}"
            )
        found.setdefault(frozenset(pair), pair)
    return tuple(found.values())


def _elimination_order(labels: tuple[str, ...], linked: frozenset[frozenset[str]]) -> tuple[str, ...]:
    """Random effects in an order in which the lower-triangular root of G is zero where G is, those with fewer first.

    That is a perfect elimination order of the graph of the covariances (Rose 1970): what covaries with an effect, of
    those after it, covaries with each other. There is one if the graph is chordal.
    """
    degree = {one: sum(one in pair for pair in linked) for one in labels}
    left: list[str] = list(labels)
    found: list[str] = []
    while left:
        beside = {one: [other for other in left if frozenset((one, other)) in linked] for one in left}
        ready = [one for one in left if all(frozenset(pair) in linked for pair in combinations(beside[one], 2))]
        if not ready:
            raise SpecError(_circle(left, linked))
        found.append(min(ready, key=lambda one: degree[one]))
        left.remove(found[-1])
    return tuple(found)


def _circle(labels: Sequence[str], linked: frozenset[frozenset[str]]) -> str:
    """What is said of zeros that leave a circle of covariances among some random effects."""
    apart = [pair for pair in combinations(labels, 2) if frozenset(pair) not in linked]
    for (one, other), (third, fourth) in combinations(apart, 2):
        around = product((one, other), (third, fourth))
        if not {one, other} & {third, fourth} and all(frozenset(pair) in linked for pair in around):
            break
    return (
        f"zero leaves the covariances of {one!r}, {third!r}, {other!r} and {fourth!r} in a circle, which no root of "
        f"the covariance matrix can hold at zero; hold one more of them at zero, such as ({one!r}, {third!r}), or list "
        "groups in covariance"
    )


def plain_covariance(value: str | tuple[tuple[str, ...], ...]) -> str | list[list[str]]:
    """For ``to_dict``."""
    return value if isinstance(value, str) else [list(group) for group in value]


def _check_partition(groups: tuple[tuple[str, ...], ...], labels: tuple[str, ...]) -> None:
    named = [name for group in groups for name in group]
    wrong = [name for name in named if name not in labels] or [name for name in labels if name not in named]
    if wrong:
        raise SpecError(
            f"covariance must list each random effect once; {wrong[0]!r} is "
            f"{'not one of' if wrong[0] in named else 'missing from its list of'} {list(labels)}"
        )
