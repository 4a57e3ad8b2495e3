"""How a mediation model becomes a system of equations: its paths, terms and random effects, given facts of the data."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations, pairwise, product
from typing import ClassVar

from jaxmed._model.data_facts import DataFacts
from jaxmed._model.estimands import BOTH, ONLY_BETWEEN, SPLIT, Edge, Estimands, Path, effect_rows
from jaxmed._model.mediation_options import (
    Pairs,
)
from jaxmed._model.system import Equation, System
from jaxmed._model.terms import INTERCEPT, columns, factors, find_category, varies_within
from jaxmed._support import DataError, SpecError

Listed = tuple[tuple[str, ...], ...]


class Compilation:
    """The compilation of :class:`jaxmed.Mediation`, whose fields these are."""

    x: str
    m: str | tuple[str, ...]
    y: str
    cluster: str
    random: str | Pairs
    covariance: str | Listed
    covariates: Pairs
    moderators: Pairs
    center: str | None
    serial: bool
    reference: tuple[tuple[str, str], ...]
    residuals: str
    intercepts: str | None
    zero: tuple[tuple[str, str], ...]

    has_effects: ClassVar[bool] = True

    def _is_known_later(self, term: str) -> bool:
        """Whether only the data can say if a term is a predictor: of a category, or of a part of a mediator."""
        coded = tuple(f"{name}[" for name in self.categorical)
        of_category = any(
            column in self.categorical or (coded and column.startswith(coded)) for column in columns(term)
        )
        parts = {f.column for f in factors(term) if f.part == "within"}
        return of_category or (self.center is None and bool(parts & set(self.mediators)))

    # What the model says ---------------------------------------------------------------------------------------------

    @property
    def mediators(self) -> tuple[str, ...]:
        """Mediators, in the order given."""
        return (self.m,) if isinstance(self.m, str) else self.m

    @property
    def sources(self) -> tuple[str, ...]:
        """What paths start from: x and the mediators."""
        return (self.x, *self.mediators)

    def is_simple(self, facts: DataFacts) -> bool:
        """Whether this is the model of Bauer, Preacher & Gil (2006): one x and mediator, no moderators, no centring."""
        plain = len(self.mediators) == 1 and not self.moderators and not self.is_split(facts)
        return plain and len(self._columns(self.x, facts)) == 1

    def is_split(self, facts: DataFacts) -> bool:
        """Whether mediators are split into cluster means and deviations from them."""
        return self.center == "cluster" or self._only_between(facts)

    def _only_between(self, facts: DataFacts) -> bool:
        """Whether x does not vary within clusters and a mediator does (2-1-1), and the mediator is split for it."""
        varying = [m for m in self.mediators if m not in facts.cluster_level]
        return self.center is None and bool(varying) and set(self._columns(self.x, facts)) <= facts.cluster_level

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Paths of the model, to the mediators, among them, and to y: one from x, whatever its categories."""
        several = len(self.mediators) > 1
        found = [Edge("a", f"a_{m}" if several else "a", self.x, m) for m in self.mediators]
        if self.serial:
            found += [Edge("d", f"d_{one}_{other}", one, other) for one, other in combinations(self.mediators, 2)]
        found += [Edge("b", f"b_{m}" if several else "b", m, self.y) for m in self.mediators]
        return (*found, Edge("c_prime", "c_prime", self.x, self.y))

    def edges_in(self, facts: DataFacts) -> tuple[Edge, ...]:
        """Paths of the model with one from x for each of its categories but the reference."""
        contrasts = self._columns(self.x, facts)
        found: list[Edge] = []
        for edge in self.edges:
            if edge.source != self.x:
                found.append(edge)
                continue
            for column in contrasts:
                contrast = column.removeprefix(self.x) if len(contrasts) > 1 else ""
                found.append(edge._replace(source=column, contrast=contrast))
        return tuple(found)

    def contrasts(self, facts: DataFacts) -> tuple[str, ...]:
        """Categories of x that are compared with another, where there are several; none of a numeric x."""
        columns = self._columns(self.x, facts)
        return tuple(name.removeprefix(f"{self.x}[")[:-1] for name in columns) if len(columns) > 1 else ()

    @property
    def _routes(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Ways from x to y through mediators: the name of the effect and the paths along the way."""
        if len(self.mediators) == 1:
            return (("indirect", ("a", "b")),)
        found = []
        for length in range(1, len(self.mediators) + 1 if self.serial else 2):
            for chain in combinations(self.mediators, length):
                inner = (f"d_{one}_{other}" for one, other in pairwise(chain))
                found.append((f"indirect_{'_'.join(chain)}", (f"a_{chain[0]}", *inner, f"b_{chain[-1]}")))
        return tuple(found)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data but the cluster id; of a categorical column the indicator of an unknown category."""
        return self._compile(self._unknown_facts()).columns

    @property
    def categorical(self) -> tuple[str, ...]:
        """Columns to be coded as indicators of their categories."""
        return tuple(name for name, _ in self.reference)

    def _unknown_facts(self) -> DataFacts:
        """Facts before any data."""
        return DataFacts({name: (category, "...") for name, category in self.reference}, unknown=True)

    def _columns(self, name: str, facts: DataFacts) -> tuple[str, ...]:
        """A covariate or moderator as columns: itself, or the indicators of its categories but the reference."""
        reference = dict(self.reference)
        if name not in reference:
            return (name,)
        categories = facts.categories[name]
        compared = find_category(reference[name], categories)
        if compared is None:
            raise DataError(
                f"reference[{name!r}]={reference[name]!r} is not among the categories of column {name!r}: "
                f"{list(categories)}"
            )
        if len(categories) < 2:
            raise DataError(f"column {name!r} has the single category {categories[0]!r}; leave it out of the model")
        return tuple(f"{name}[{category}]" for category in categories if category != compared)

    def _parts(self, source: str, facts: DataFacts) -> dict[str, str]:
        """Terms of a source by suffix of the path: itself, or its deviation and its cluster mean."""
        if not self.is_split(facts) or (self.center is None and source in facts.cluster_level):
            return {"": source}
        parts = {"_within": f"within({source})", "_between": f"between({source})"}
        if source in facts.cluster_level:
            del parts["_within"]
        if source in facts.equal_means:
            del parts["_between"]
        return parts

    def _parts_of(self, edge: Edge, facts: DataFacts) -> dict[str, str]:
        """Parts of a path: none between clusters to an outcome whose cluster means are all the same."""
        parts = self._parts(edge.source, facts)
        alike = edge.outcome in facts.equal_means and len(parts) > 1
        return {part: term for part, term in parts.items() if not (alike and part == "_between")}

    def _pieces(self, edge: Edge, suffix: str, facts: DataFacts) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Terms of one path, or of one part of it: the source, and its products with moderators."""
        term = self._parts(edge.source, facts)[suffix]
        by = [w for name, paths in self.moderators if edge.name in paths for w in self._columns(name, facts)]
        return ((term, ()), *((f"{term}:{w}", (w,)) for w in by))

    def _path_terms(self, outcome: str, facts: DataFacts) -> list[tuple[str, tuple[str, ...]]]:
        """Terms of all paths to an outcome, with what multiplies each: mediators before x."""
        edges = [edge for edge in self.edges_in(facts) if edge.outcome == outcome]
        edges.sort(key=lambda edge: edge.source not in self.mediators)
        return [
            piece for edge in edges for part in self._parts_of(edge, facts) for piece in self._pieces(edge, part, facts)
        ]

    def _predictors(self, facts: DataFacts) -> dict[str, tuple[str, ...]]:
        """Predictors by outcome: intercept, paths (mediators before x), moderators, products, covariates."""
        found = {}
        for outcome in (*self.mediators, self.y):
            names = {edge.name for edge in self.edges if edge.outcome == outcome}
            mains = [c for name, on in self.moderators if names & set(on) for c in self._columns(name, facts)]
            pieces = self._path_terms(outcome, facts)
            paths = [term for term, by in pieces if not by]
            products = [term for term, by in pieces if by]
            own = dict(self.covariates).get(outcome, ())
            others = [column for name in own for column in self._columns(name, facts)]
            found[outcome] = tuple(dict.fromkeys((INTERCEPT, *paths, *mains, *products, *others)))
        return found

    def _all_random(self, facts: DataFacts, shown: DataFacts) -> dict[str, tuple[str, ...]]:
        """What ``random="all"`` means: intercepts, and paths and products whose every factor varies in clusters.

        Of a model that ``facts`` adapt, as far as other facts, ``shown``, let coefficients vary.
        """
        found = {}
        for outcome, predictors in self._predictors(facts).items():
            varying = [
                term
                for term, _ in self._path_terms(outcome, facts)
                if all(f.part != "between" and f.column not in shown.cluster_level for f in factors(term))
            ]
            if outcome not in shown.equal_means:
                varying.append(INTERCEPT)
            chosen = tuple(name for name in predictors if name in varying)
            found[outcome] = () if outcome in shown.cluster_level else chosen
        return found

    # Compiling -------------------------------------------------------------------------------------------------------

    def system(self, facts: DataFacts | None = None) -> System:
        """The equations of this model; ``facts`` of the data adapt them (2-1-1 and 2-2-1 designs, categories).

        Parameters
        ----------
        facts : DataFacts, optional
            What data said of the model: the categories of columns, and the columns that do not vary within clusters.

        Returns
        -------
        System

        Raises
        ------
        SpecError
            A categorical column, and no facts to name its categories.
        DataError
            A design that this model cannot answer, such as a mediator of the cluster between x and y of the row.

        Examples
        --------
        >>> import jaxmed as jm
        >>> jm.Mediation(x="x", m="m", y="y", cluster="id").system().labels
        ('m~1', 'm~x', 'y~1', 'y~m', 'y~x')
        """
        if facts is None:
            if self.reference:
                raise SpecError(
                    f"the categories of {self.categorical[0]!r} are only known from data; fit the model and see "
                    "fit.system"
                )
            facts = DataFacts()
        return self._compile(facts)

    def _compile(self, facts: DataFacts) -> System:
        predictors = self._predictors(facts)
        self._check_design(predictors, facts)
        varying = self._varying(facts)
        equations = [
            Equation(outcome, names, varying[outcome], 2 if outcome in facts.cluster_level else 1)
            for outcome, names in predictors.items()
        ]
        groups = []
        if self.residuals == "correlated" and not self.serial:
            for level in (1, 2):
                group = [e.outcome for e in equations[:-1] if e.level == level]
                groups += [group] if len(group) > 1 else []
        dropped = {f"{outcome}~{name}" for outcome, name in self._dropped(facts)}
        covariance = self.covariance
        zero = [
            pair for one, other in self.zero for pair in product(self._labels(one, facts), self._labels(other, facts))
        ]
        if not isinstance(covariance, str):
            named = (tuple(own for label in group for own in self._labels(label, facts)) for group in covariance)
            covariance = tuple(tuple(label for label in group if label not in dropped) for group in named)
        if facts.unknown and self.reference:  # which labels there are is not known yet
            covariance = covariance if isinstance(covariance, str) else "unstructured"
            dropped |= {label for pair in zero for label in pair if "[" in label}
        if self._are_independent(facts):
            covariance = self._apart(covariance, equations)
        zero = [pair for pair in zero if not dropped & set(pair)]
        return System(equations, cluster=self.cluster, covariance=covariance, residuals=groups, zero=zero)

    def _are_independent(self, facts: DataFacts) -> bool:
        """Whether random intercepts are independent of each other and of slopes; see ``intercepts``."""
        if self.intercepts is None:
            return self.is_split(facts) and self.covariance == "unstructured" and not self.zero
        return self.intercepts == "independent"

    def _apart(self, covariance: str | Listed, equations: list[Equation]) -> str | Listed:
        """A covariance with random intercepts in groups of their own, those of parallel mediators in one."""
        if covariance == "diagonal":
            return covariance
        every = [(e.outcome, label) for e in equations for label in e.random_labels]
        if isinstance(covariance, str):
            own = [e.random_labels for e in equations]
            listed = own if covariance == "block" else [tuple(label for _, label in every)]
        else:
            listed = list(covariance)
        owner = {label: outcome for outcome, label in every}

        def part(label: str) -> str:
            outcome = owner.get(label, "")
            if label != f"{outcome}~{INTERCEPT}":
                return "slopes"
            return "mediators" if outcome in self.mediators and not self.serial else outcome

        found: list[tuple[str, ...]] = []
        for group in listed:
            kinds = dict.fromkeys(map(part, group))
            found += [tuple(label for label in group if part(label) == kind) for kind in kinds]
        return tuple(group for group in found if group) or "unstructured"

    def free_intercepts(self, facts: DataFacts) -> list[tuple[str, str]]:
        """Pairs of random intercepts, of a split mediator and of an outcome that it moves, that covary freely."""
        free = {frozenset(pair) for pair in self._linked(facts)}
        found = []
        for edge in self.edges:
            if edge.source in self.mediators and "_between" in self._parts(edge.source, facts):
                pair = (f"{edge.source}~{INTERCEPT}", f"{edge.outcome}~{INTERCEPT}")
                found += [pair] if frozenset(pair) in free else []
        return found

    def _linked(self, facts: DataFacts) -> list[tuple[str, str]]:
        system = self.system(facts)
        return [(system.random_labels[a], system.random_labels[b]) for a, b in system.random_pairs if a != b]

    def resting_on_intercepts(self, facts: DataFacts) -> list[str]:
        """Effects that change with the covariances of :meth:`free_intercepts`."""
        moved = {outcome.partition("~")[0] for _, outcome in self.free_intercepts(facts)}
        paths = {edge.path(part) for edge in self.edges_in(facts) for part in ("", "_between") if edge.outcome in moved}
        rows = self.estimands(facts).rows
        return [
            row.name
            for row in rows
            if row.suffix == "_between"
            and row.kind in ("path", "indirect")
            and any(path in paths for _, way in row.terms for path in way)
        ]

    def _term(self, term: str, facts: DataFacts) -> str:
        """A term with a random slope as the equations have it: of a mediator that is split, the deviation."""
        if self.center is not None or not self.is_split(facts):
            return term
        split = [m for m in self.mediators if "_within" in self._parts(m, facts)]
        return ":".join(
            f"within({f.column})"
            if not f.part and f.column in split
            else f"{f.part}({f.column})"
            if f.part
            else f.column
            for f in factors(term)
        )

    def _labels(self, label: str, facts: DataFacts) -> tuple[str, ...]:
        """Labels of the random effects that one stands for: those of all categories; of a split mediator, its part."""
        outcome, sign, term = label.partition("~")
        if outcome not in (*self.mediators, self.y) or term in ("", INTERCEPT):
            return (label,)
        if facts.unknown and self.center is None:  # whether it is split only the data will say
            for mediator in self.mediators:
                term = term.replace(f"within({mediator})", mediator)
        return tuple(f"{outcome}{sign}{self._term(name, facts)}" for name in self._columns_if_known(term, facts))

    def _requested(self, facts: DataFacts) -> dict[str, tuple[str, ...]]:
        """Random effects asked for, by outcome, wherever the data could show them."""
        if self.random == "all":
            return self._all_random(facts, DataFacts(facts.categories))
        chosen = {} if isinstance(self.random, str) else dict(self.random)
        found = {}
        for outcome in (*self.mediators, self.y):
            names = [column for name in chosen.get(outcome, ()) for column in self._columns_if_known(name, facts)]
            found[outcome] = tuple(name if name == INTERCEPT else self._term(name, facts) for name in names)
        return found

    def _columns_if_known(self, name: str, facts: DataFacts) -> tuple[str, ...]:
        """The indicators of a categorical column; any other term as it is."""
        return self._columns(name, facts) if name in self.categorical else (name,)

    def _varying(self, facts: DataFacts) -> dict[str, tuple[str, ...]]:
        """Random effects by outcome: those asked for but of slopes that cannot vary, given the data."""
        if self.random == "all":
            return self._all_random(facts, facts)
        found = {}
        for outcome, names in self._requested(facts).items():
            own = [
                name
                for name in names
                if (outcome not in facts.equal_means if name == INTERCEPT else varies_within(name, facts.cluster_level))
            ]
            if facts.unknown:
                predictors = self._predictors(facts)[outcome]
                own = [name for name in own if name in predictors or not self._is_known_later(name)]
            found[outcome] = () if outcome in facts.cluster_level else tuple(own)
        return found

    def _dropped(self, facts: DataFacts) -> list[tuple[str, str]]:
        """Random effects asked for that the data do not identify: outcome and term."""
        varying = self._varying(facts)
        asked = self._requested(facts).items()
        return [(outcome, name) for outcome, names in asked for name in names if name not in varying[outcome]]

    def _check_design(self, predictors: dict[str, tuple[str, ...]], facts: DataFacts) -> None:
        """Refuse designs in which something of the row would have to move something of the cluster."""
        fixed = facts.cluster_level
        if self.y in fixed:
            raise DataError(
                f"the outcome {self.y!r} does not vary within clusters (an x-m-2 design): with observed variables its "
                "equation cannot use what varies within clusters. Take cluster means of x and m and fit one row per "
                "cluster with ordinary regression, or use multilevel structural equation modelling, which treats "
                "cluster means as latent"
            )
        x = self._columns(self.x, facts)
        centred = [m for m in self.mediators if m in facts.equal_means]
        if centred and set(x) <= fixed:
            raise DataError(
                f"{self.x!r} does not vary within clusters and {centred[0]!r} has the same mean in every cluster, as "
                f"if it had been centred by cluster beforehand: {self.x!r} cannot move it. Use {centred[0]!r} as it "
                "was before it was centred"
            )
        for edge in self.edges_in(facts):
            if edge.outcome in fixed and edge.source not in fixed:
                raise DataError(
                    f"{edge.outcome!r} does not vary within clusters but {edge.source!r} does (a 1-2-1 design): what "
                    f"varies within clusters cannot move it. Use the cluster means of {edge.source!r} as the "
                    "predictor (a 2-2-1 design)"
                )
        for outcome, names in predictors.items():
            rows = [name for name in names if varies_within(name, fixed)] if outcome in fixed else []
            if rows:
                raise DataError(
                    f"{outcome!r} does not vary within clusters, so its equation has one row per cluster, but "
                    f"{rows[0]!r} varies within clusters; use 'between({rows[0]})' or leave it out of the equation of "
                    f"{outcome!r}"
                )

    def estimands(self, facts: DataFacts) -> Estimands:
        """The effects to report, in order."""
        paths: dict[str, Path] = {}
        edges = self.edges_in(facts)
        for edge in edges:
            for part in self._parts_of(edge, facts):
                pieces = self._pieces(edge, part, facts)
                paths[edge.path(part)] = Path(tuple((f"{edge.outcome}~{term}", by) for term, by in pieces))
        levels = ONLY_BETWEEN if self._only_between(facts) else SPLIT if self.center == "cluster" else BOTH
        rows = effect_rows(edges, dict(self._routes), paths, levels)
        return Estimands(paths, rows, {name: self._columns(name, facts) for name, _ in self.moderators})
