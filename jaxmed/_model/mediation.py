"""Mediation models: what they say about x, mediators and y, compiled into a system and the effects to report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jaxmed._model.choices import Center, Intercepts, Residuals, Structure
from jaxmed._model.compilation import Compilation
from jaxmed._model.data_facts import DataFacts
from jaxmed._model.mediation_options import (
    Pairs,
    check_covariates,
    check_moderators,
    check_random,
    check_reference,
    check_roles,
)
from jaxmed._model.system import Equation, System, check_covariance, check_zero, plain_covariance
from jaxmed._model.terms import INTERCEPT, columns, varies_within
from jaxmed._support import ArgumentTypeError, SpecError, check_choice, check_flag

Groups = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Mediation(Compilation):
    """A multilevel mediation model: x moves one or more mediators m, and they and x move y.

    With one mediator and nothing else, the 1-1-1 model of Bauer, Preacher & Gil (2006): ``m ~ 1 + x`` and
    ``y ~ 1 + m + x``, all five coefficients varying between clusters. The data adapt it, and ``fit.notes`` says how:

    - x does not vary within clusters, m does (2-1-1): x can move m only between clusters, so m is split into its
      cluster means and the deviations from them, and the indirect effect is the path between clusters.
    - Neither varies within clusters (2-2-1): the equation of m has one row per cluster and no random effects.
    - A mediator or y was centred by cluster beforehand: it has no random intercept.

    Parameters
    ----------
    x : str
        Column of the predictor; a categorical one needs an entry in ``reference``, and every other category is then
        compared with that one.
    m : str or list of str
        Column of the mediator; of several mediators, parallel unless ``serial``.
    y, cluster : str
        Columns of outcome and cluster id.
    random : "all", "none" or dict
        Coefficients that vary between clusters: ``{"m": ["1", "x"], "y": ["1", "m"]}`` with the names of your mediator
        and outcome columns as keys; an equation left out has none. "all" means the intercepts, the paths and their
        products with moderators that vary within clusters; covariates vary only when they are listed.
    covariance : {"unstructured", "diagonal", "block"} or list of lists of str
        Covariance of the random effects, see :class:`System`.
    covariates : list or dict, optional
        Further predictors, of every equation or by outcome: ``["age"]`` or ``{"m": ["age"], "y": ["age", "site"]}``.
        Terms such as ``"age:sex"`` and ``"between(age)"`` are allowed.
    moderators : str, list or dict, optional
        Columns that the paths depend on: ``{"w": ["a", "b"]}``; ``"w"`` and ``["w", "v"]`` mean all paths. A path is
        ``"a"`` (x to m), ``"b"`` (m to y), ``"c_prime"`` (x to y) or, between serial mediators, ``"d"``; with several
        mediators also one of them, ``"a_m1"``. The moderator enters the equation and multiplies the path.
    center : {"cluster", "none"}, optional
        ``"cluster"``: split x and the mediators into deviations from their cluster means and these means, each with a
        coefficient. ``"none"``: never. By default a mediator is split where x does not vary within clusters and the
        mediator does.
    serial : bool
        Mediators act on the later ones in the list: x -> m1 -> m2 -> y.
    reference : dict, optional
        Categorical columns among x, covariates and moderators and the category that the others are compared with:
        ``{"site": "A"}``. Label of a category's indicator: ``"y~site[B]"``.
    residuals : {"correlated", "independent"}
        Residuals of parallel mediators within rows.
    intercepts : {"independent", "correlated"}, optional
        Independent random intercepts covary neither with slopes nor with those of other outcomes (those of parallel
        mediators with each other). That is the default where mediators are split (``center="cluster"``, 2-1-1), unless
        ``covariance`` or ``zero`` say otherwise: what a covariance of the intercepts of m and y explains, the path
        between clusters explains too, so that both are weakly identified. Effects between clusters then
        depend on cluster means alone; with balanced clusters they are those of a regression of these means.
        Otherwise intercepts are correlated.
    zero : list of pairs of str, optional
        Single covariances of random effects that are held at zero: ``[("m~1", "y~1")]``.

    Raises
    ------
    SpecError
        Two roles share a column, or an option is not known or contradicts another.

    Examples
    --------
    >>> import jaxmed as jm
    >>> jm.Mediation(x="x", m="m", y="y", cluster="id").system().labels
    ('m~1', 'm~x', 'y~1', 'y~m', 'y~x')
    >>> jm.Mediation(x="x", m="m", y="y", cluster="id", moderators={"w": "b"}).system().labels
    ('m~1', 'm~x', 'y~1', 'y~m', 'y~x', 'y~w', 'y~m:w')
    """

    x: str
    m: str | tuple[str, ...]
    y: str
    cluster: str
    random: str | Pairs = "all"
    covariance: str | tuple[tuple[str, ...], ...] = "unstructured"
    covariates: Pairs = ()
    moderators: Pairs = ()
    center: Center | None = None
    serial: bool = False
    reference: tuple[tuple[str, str], ...] = ()
    residuals: Residuals = "correlated"
    intercepts: Intercepts | None = None
    zero: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        x: str,
        m: str | Sequence[str],
        y: str,
        cluster: str,
        random: str | Groups = "all",
        covariance: Structure | Iterable[Iterable[str]] = "unstructured",
        covariates: str | Iterable[str] | Groups | None = None,
        moderators: str | Iterable[str] | Mapping[str, str | Iterable[str]] | None = None,
        center: Center | None = None,
        serial: bool = False,
        reference: Mapping[str, Any] | None = None,
        residuals: Residuals = "correlated",
        intercepts: Intercepts | None = None,
        zero: Iterable[Iterable[str]] | None = None,
    ) -> None:
        mediators = tuple(m) if isinstance(m, (list, tuple)) else (m,)
        if not mediators:
            raise SpecError("m is an empty list; name at least one mediator")
        several = len(mediators) > 1
        named = {f"m[{k}]" if several else "m": name for k, name in enumerate(mediators)}
        roles = {"x": x, **named, "y": y, "cluster": cluster}
        check_roles(roles)
        if center is not None:
            check_choice("center", center, Center, " or leave it out")
        if check_flag("serial", serial) and not several:
            raise SpecError("serial=True needs at least two mediators, m=['m1', 'm2'], in the order in which they act")
        if intercepts is not None:
            check_choice("intercepts", intercepts, Intercepts, " or leave it out")
        columns_of_roles = tuple(roles.values())
        own = vars(self)  # the class is frozen: fields are set here and nowhere else
        own.update(
            x=x,
            m=mediators if several else mediators[0],
            y=y,
            cluster=cluster,
            covariance=check_covariance(covariance),
            center=center,
            serial=bool(serial),
            residuals=check_choice("residuals", residuals, Residuals),
            intercepts=intercepts,
            zero=check_zero(zero),
            reference=check_reference(reference, columns_of_roles, x),
        )
        kinds = {edge.name: edge.kind for edge in self.edges}
        own["moderators"] = check_moderators(moderators, kinds, columns_of_roles)
        outcomes = (*mediators, y)
        own["covariates"] = check_covariates(covariates, outcomes, columns_of_roles, self.categorical)
        used = [name for _, names in self.covariates for term in names for name in columns(term)]
        unused = [g for g, _ in self.reference if g not in (x, *used) and g not in dict(self.moderators)]
        if unused:
            raise SpecError(
                f"reference names {unused[0]!r}, which is neither x nor a covariate nor a moderator; add it there or "
                "leave it out"
            )
        names = [edge.name for edge in self.edges] + [name for name, _ in self._routes]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise SpecError(f"two effects would be called {double[0]!r}; rename a mediator")
        unknown = self._unknown_facts()
        chosen = check_random(random, self._predictors(unknown), x, self._is_known_later)
        is_all = not isinstance(chosen, str) and dict(chosen) == self._all_random(unknown, unknown)
        own["random"] = "all" if is_all and not self.moderators else chosen
        self._compile(unknown)

    # What the data changed

    def notes(self, facts: DataFacts) -> tuple[str, ...]:
        """What the data changed about the model, one sentence each."""
        found = []
        dropped = self._dropped(facts)
        only_between = self._only_between(facts)
        for name in (self.x, *self.mediators):
            own = set(self._columns(name, facts))
            if not own <= facts.cluster_level:
                continue
            said = []
            if name in self.mediators:
                said.append("its equation has one row per cluster and no random effects")
            if any(own & set(columns(term)) for _, term in dropped):
                said.append("its slope cannot vary between clusters and is fixed")
            if self.center == "cluster":
                said.append("it has no deviations from cluster means, so there are no within effects of it")
            if only_between and name == self.x:
                split = [m for m in self.mediators if "_within" in self._parts(m, facts)]
                names = " and ".join(map(repr, split))
                said.append(
                    f"it can move {names} only between clusters, so {names} {'is' if len(split) == 1 else 'are'} split "
                    "into cluster means and deviations from them, and the indirect effect is the path between clusters "
                    f"(center='none' fits one slope of {names} for both levels)"
                )
            if said:
                found.append(f"{name!r} does not vary within clusters: {'; '.join(said)}")
        found += self._notes_of_equal_means(facts, dropped)
        sources = {edge.source for edge in self.edges_in(facts)}
        for outcome, term in dropped:
            covariate = outcome not in facts.cluster_level and not sources & set(columns(term))
            if covariate and term != INTERCEPT and not varies_within(term, facts.cluster_level):
                found.append(f"{term!r} does not vary within clusters: its slope on {outcome!r} is fixed")
        return tuple(found)

    def _notes_of_equal_means(self, facts: DataFacts, dropped: list[tuple[str, str]]) -> list[str]:
        """What columns with the same mean in every cluster change."""
        split = self.is_split(facts)
        found = []
        for name in (self.x, *self.mediators, self.y):
            if not facts.equal_means.issuperset(self._columns(name, facts)):
                continue
            centred = (name, INTERCEPT) in dropped
            head = f"{name!r} has the same mean in every cluster"
            said = []
            if centred:
                head += ", as if it had been centred by cluster beforehand"
                said.append("it has no random intercept, which could only be an artefact")
            if split:
                said.append(
                    "it has no effects between clusters"
                    + (", and nothing has an effect between clusters on it" if centred else "")
                )
                said[-1] += "" if name == self.y else "; its cluster mean is left out"
            found += [f"{head}: {'; '.join(said)}"] if said else []
            found += [] if split else self._notes_of_mixtures(name, facts)
        return found

    def _notes_of_mixtures(self, outcome: str, facts: DataFacts) -> list[str]:
        """Predictors with cluster means of an outcome that has none: one slope for both is too small."""
        alike = facts.equal_means | facts.cluster_level
        sources = [e.source for e in self.edges_in(facts) if e.outcome == outcome and e.source not in alike]
        if outcome not in facts.equal_means or not sources:
            return []
        names = " and ".join(map(repr, sources))
        return [
            f"{names} {'differs' if len(sources) == 1 else 'differ'} between clusters, but {outcome!r} does not: the "
            f"slope on {outcome!r} is a mixture that is too small; use {outcome!r} as it was before it was centred, or "
            "center='cluster'"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which :func:`from_dict` makes an equal model."""
        plain: dict[str, Any] = {"kind": "mediation", "x": self.x, "m": self.m, "y": self.y, "cluster": self.cluster}
        plain["m"] = self.m if isinstance(self.m, str) else list(self.m)
        plain["random"] = self.random if isinstance(self.random, str) else _lists(self.random)
        plain |= {"covariance": plain_covariance(self.covariance), "covariates": _lists(self.covariates) or None}
        plain |= {"moderators": _lists(self.moderators) or None, "center": self.center, "serial": self.serial}
        plain |= {"reference": dict(self.reference) or None, "residuals": self.residuals}
        # Only where they are given: seeds of power studies come from the plain data of their populations.
        new = {"intercepts": self.intercepts, "zero": [list(pair) for pair in self.zero]}
        return plain | {name: value for name, value in new.items() if value}


MODEL = tuple(one.name for one in fields(Mediation))  # x, m, y, cluster and the options


def _lists(pairs: Pairs) -> dict[str, list[str]]:
    return {key: list(names) for key, names in pairs}


Spec = System | Mediation


def check_spec(spec: Any) -> None:
    """Refuse anything that is no specification."""
    if not isinstance(spec, (System, Mediation)):
        raise ArgumentTypeError(f"the model must be a jaxmed.Mediation or jaxmed.System; got {type(spec).__name__}")


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
    except SpecError:
        raise
    except (TypeError, KeyError) as error:
        raise SpecError(f"this saved {kind} is not complete ({error})") from error
    raise SpecError(f"a saved model of kind {kind!r} is not known to this version of jaxmed")
