"""What model is meant: equations, systems and mediation models, as names only (no data, no numbers)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxmed.errors import SpecError

INTERCEPT = "1"
COVARIANCES = ("unstructured", "diagonal", "block")


def _names(value: Any, what: str) -> tuple[str, ...]:
    """Check that ``value`` is a sequence of distinct column names and return it as a tuple."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise SpecError(f"{what} must be a list of column names such as ['1', 'x']; got {value!r}")
    names = tuple(value)
    for name in names:
        _name(name, f"every entry of {what}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SpecError(f"{what} names {repeated[0]!r} more than once; list each column once")
    return names


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise SpecError(
            f"{what} must be a column name (text); got {value!r} of type {type(value).__name__}. "
            "If the columns of your frame have other names, rename them first: data.columns = data.columns.astype(str)"
        )
    if value == "*" or (value.startswith("^") and value.endswith("$")):
        raise SpecError(f"{what} is {value!r}, which data frames read as a pattern; rename the column")
    return value


@dataclass(frozen=True)
class Equation:
    """One linear mixed equation ``outcome = predictors' (beta + u_j) + residual``.

    Parameters
    ----------
    outcome : str
        Column of the response.
    predictors : list of str
        Columns with a fixed effect; ``"1"`` is the intercept.
    random : list of str, optional
        The predictors whose coefficient varies between clusters; none by default.

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

    def __init__(self, outcome: str, predictors: Iterable[str], random: Iterable[str] = ()) -> None:
        _name(outcome, "the outcome of an equation")
        fixed = _names(predictors, f"the predictors of {outcome!r}")
        varying = _names(random, f"the random effects of {outcome!r}")
        if outcome == INTERCEPT:
            raise SpecError("'1' stands for the intercept and cannot be an outcome; rename the column")
        if not fixed:
            raise SpecError(f"the equation of {outcome!r} has no predictors; write ['1'] for an intercept alone")
        if outcome in fixed:
            raise SpecError(f"{outcome!r} is both the outcome and a predictor of the same equation; remove one")
        extra = [name for name in varying if name not in fixed]
        if extra:
            raise SpecError(
                f"{extra[0]!r} is random in the equation of {outcome!r} but not among its predictors {list(fixed)}; "
                "add it there: a random effect varies around a fixed one"
            )
        object.__setattr__(self, "outcome", outcome)
        object.__setattr__(self, "predictors", fixed)
        object.__setattr__(self, "random", tuple(name for name in fixed if name in varying))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels ``outcome~predictor`` of the fixed effects."""
        return tuple(f"{self.outcome}~{name}" for name in self.predictors)

    @property
    def random_labels(self) -> tuple[str, ...]:
        """Labels ``outcome~predictor`` of the random effects."""
        return tuple(f"{self.outcome}~{name}" for name in self.random)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that a row must have observed to count in this equation."""
        return (*(name for name in self.predictors if name != INTERCEPT), self.outcome)


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
    covariance : {"unstructured", "diagonal", "block"}
        Covariance of the random effects: free, no covariances, or free within each equation and none between.

    Raises
    ------
    SpecError
        Repeated outcomes, a circle among equations, an unknown covariance.

    Examples
    --------
    >>> import jaxmed as jm
    >>> system = jm.System([jm.Equation("y", ["1", "x"], random=["1", "x"])], cluster="id")
    >>> system.random_labels
    ('y~1', 'y~x')
    """

    equations: tuple[Equation, ...]
    cluster: str
    covariance: str = "unstructured"

    def __init__(self, equations: Iterable[Equation], cluster: str, covariance: str = "unstructured") -> None:
        if isinstance(equations, Equation):
            equations = (equations,)
        equations = tuple(equations) if isinstance(equations, Iterable) else ()
        if not equations or not all(isinstance(equation, Equation) for equation in equations):
            raise SpecError("a System needs a list with at least one Equation")
        _name(cluster, "cluster")
        if covariance not in COVARIANCES:
            raise SpecError(f"covariance={covariance!r} is not known; choose one of {list(COVARIANCES)}")
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
        object.__setattr__(self, "equations", equations)
        object.__setattr__(self, "cluster", cluster)
        object.__setattr__(self, "covariance", covariance)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Outcomes, one per equation."""
        return tuple(equation.outcome for equation in self.equations)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all fixed effects, equation by equation."""
        return tuple(label for equation in self.equations for label in equation.labels)

    @property
    def random_labels(self) -> tuple[str, ...]:
        """Labels of all random effects, equation by equation."""
        return tuple(label for equation in self.equations for label in equation.random_labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """Distinct data columns of the equations, in order of first appearance."""
        return tuple(dict.fromkeys(name for equation in self.equations for name in equation.columns))

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Columns that a row must have observed, per equation."""
        return tuple(equation.columns for equation in self.equations)

    @property
    def centred(self) -> frozenset[str]:
        """Columns from which a constant may be subtracted without changing the model.

        A shift of a predictor moves into the intercept, so the equation must have one; where the slope is random the
        intercept must be random too and free to covary with it. A shift of an outcome needs an intercept.
        """
        allowed = set(self.columns)
        for equation in self.equations:
            for name in equation.columns:
                intercept = INTERCEPT in equation.predictors
                absorbed = name not in equation.random or (
                    INTERCEPT in equation.random and self.covariance != "diagonal"
                )
                if not (intercept and absorbed):
                    allowed.discard(name)
        return frozenset(allowed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which :func:`from_dict` makes an equal system."""
        return {
            "kind": "system",
            "equations": [
                {"outcome": e.outcome, "predictors": list(e.predictors), "random": list(e.random)}
                for e in self.equations
            ],
            "cluster": self.cluster,
            "covariance": self.covariance,
        }


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


@dataclass(frozen=True)
class Mediation:
    """The 1-1-1 multilevel mediation model of Bauer, Preacher & Gil (2006): ``m ~ 1 + x`` and ``y ~ 1 + m + x``.

    Parameters
    ----------
    x, m, y, cluster : str
        Columns of predictor, mediator, outcome and cluster id.
    random : "all", "none" or dict
        Coefficients that vary between clusters: ``{"m": ["1", "x"], "y": ["1", "m"]}`` with the names of your mediator
        and outcome columns as keys; an equation left out has none.
    covariance : {"unstructured", "diagonal", "block"}
        Covariance of the random effects, see :class:`System`.
    covariates, moderators, center : None
        Not available yet; anything but None is refused.

    Raises
    ------
    SpecError
        Two roles share a column, or an option is not known.

    Examples
    --------
    >>> import jaxmed as jm
    >>> jm.Mediation(x="x", m="m", y="y", cluster="id").system().labels
    ('m~1', 'm~x', 'y~1', 'y~m', 'y~x')
    """

    x: str
    m: str
    y: str
    cluster: str
    random: str | tuple[tuple[str, tuple[str, ...]], ...] = "all"
    covariance: str = "unstructured"

    def __init__(
        self,
        x: str,
        m: str,
        y: str,
        cluster: str,
        random: str | Mapping[str, Iterable[str]] = "all",
        covariance: str = "unstructured",
        covariates: None = None,
        moderators: None = None,
        center: None = None,
    ) -> None:
        for option, value in {"covariates": covariates, "moderators": moderators, "center": center}.items():
            if value is not None:
                raise SpecError(f"{option}={value!r}: this version of jaxmed has no {option} yet; leave it out")
        roles = {"x": x, "m": m, "y": y, "cluster": cluster}
        for role, name in roles.items():
            _name(name, role)
            others = [other for other, column in roles.items() if column == name and other != role]
            if others:
                raise SpecError(
                    f"{role} and {others[0]} are the same column {name!r}; x, m, y and cluster must be four columns"
                )
        for role, name in roles.items():
            object.__setattr__(self, role, name)
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "random", self._random(random))
        self.system()

    def _random(self, random: str | Mapping[str, Iterable[str]]) -> str | tuple[tuple[str, tuple[str, ...]], ...]:
        if isinstance(random, str):
            if random not in ("all", "none"):
                raise SpecError(
                    f"random={random!r} is not known; use 'all', 'none' or a dict such as "
                    f"{{{self.m!r}: ['1', {self.x!r}], {self.y!r}: ['1', {self.m!r}]}}"
                )
            return random
        if not isinstance(random, Mapping):
            raise SpecError(f"random must be 'all', 'none' or a dict from outcome to columns; got {random!r}")
        unknown = [key for key in random if key not in (self.m, self.y)]
        if unknown:
            raise SpecError(f"random has the key {unknown[0]!r}; the outcomes of this model are {[self.m, self.y]}")
        chosen = []
        for outcome, predictors in self._predictors.items():
            names = _names(random.get(outcome, ()), f"random[{outcome!r}]")
            extra = [name for name in names if name not in predictors]
            if extra:
                raise SpecError(
                    f"random[{outcome!r}] has {extra[0]!r}, which is not a predictor of {outcome!r}; choose from "
                    f"{list(predictors)}"
                )
            chosen.append((outcome, tuple(name for name in predictors if name in names)))
        if tuple(chosen) == tuple(self._predictors.items()):
            return "all"
        return tuple(chosen) if any(names for _, names in chosen) else "none"

    @property
    def _predictors(self) -> dict[str, tuple[str, ...]]:
        return {self.m: (INTERCEPT, self.x), self.y: (INTERCEPT, self.m, self.x)}

    def system(self) -> System:
        """The two equations of this model."""
        predictors = self._predictors
        if self.random == "all":
            varying: Mapping[str, tuple[str, ...]] = predictors
        elif isinstance(self.random, str):
            varying = {}
        else:
            varying = dict(self.random)
        equations = [Equation(outcome, names, varying.get(outcome, ())) for outcome, names in predictors.items()]
        return System(equations, cluster=self.cluster, covariance=self.covariance)

    @property
    def paths(self) -> dict[str, str]:
        """Label of the fixed effect behind each path."""
        return {"a": f"{self.m}~{self.x}", "b": f"{self.y}~{self.m}", "c_prime": f"{self.y}~{self.x}"}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which :func:`from_dict` makes an equal model."""
        random = self.random if isinstance(self.random, str) else {key: list(names) for key, names in self.random}
        return {
            "kind": "mediation",
            "x": self.x,
            "m": self.m,
            "y": self.y,
            "cluster": self.cluster,
            "random": random,
            "covariance": self.covariance,
        }


Spec = System | Mediation


def system_of(spec: Spec) -> System:
    """The system behind any specification."""
    if isinstance(spec, System):
        return spec
    if isinstance(spec, Mediation):
        return spec.system()
    raise SpecError(f"the model must be a jaxmed.Mediation or jaxmed.System; got {type(spec).__name__}")


def from_dict(plain: Mapping[str, Any]) -> Spec:
    """Inverse of ``to_dict`` of either kind."""
    fields = dict(plain)
    kind = fields.pop("kind", None)
    try:
        if kind == "mediation":
            return Mediation(**fields)
        if kind == "system":
            equations = [Equation(**equation) for equation in fields.pop("equations")]
            return System(equations, **fields)
    except (TypeError, KeyError) as error:
        raise SpecError(f"this saved {kind} is not complete ({error})") from error
    raise SpecError(f"a saved model of kind {kind!r} is not known to this version of jaxmed")
