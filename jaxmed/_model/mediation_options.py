"""Options of a mediation model, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from jaxmed._model.terms import INTERCEPT, Factor, canonical, category_text, check_name, check_terms, columns, factors
from jaxmed._support import SpecError, one_or_more

Pairs: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]


def check_roles(roles: Mapping[str, str]) -> None:
    """x, m, y and cluster are different columns."""
    for role, name in roles.items():
        check_name(name, role)
    for role, name in roles.items():
        if factors(name) != (Factor(name),):
            raise SpecError(f"{role}={name!r} is a term, not a column; make it a column of the data first")
        others = [other for other, column in roles.items() if column == name and other != role]
        if others:
            raise SpecError(
                f"{role} and {others[0]} are the same column {name!r}; x, m, y and cluster must be different columns"
            )


def check_reference(reference: Any, roles: tuple[str, ...], x: str) -> tuple[tuple[str, str], ...]:
    """Categorical columns and the category of each to compare with; of the roles only x may be categorical."""
    if reference is None:
        return ()
    if not isinstance(reference, Mapping):
        raise SpecError(f"reference must be a dict such as {{'site': 'A'}}; got {reference!r}")
    for name, category in reference.items():
        check_name(name, "every key of reference")
        if "[" in name:
            raise SpecError(f"the categorical column {name!r} has a bracket in its name; rename it")
        if isinstance(category, (list, dict, tuple)) or category is None:
            raise SpecError(f"reference[{name!r}] must be one category; got {category!r}")
        if name in roles and name != x:
            raise SpecError(
                f"reference names {name!r}, but of x, m, y and cluster only x may be categorical: mediators and "
                "outcome must be numeric, and the cluster id may be text as it is"
            )
    return tuple((name, category_text(category)) for name, category in reference.items())


def check_moderators(moderators: Any, kinds: Mapping[str, str], roles: tuple[str, ...]) -> Pairs:
    """Moderators and the paths that each moves; ``kinds`` are the paths there are, and of what kind each is."""
    if moderators is None:
        return ()
    if isinstance(moderators, str):
        moderators = [moderators]
    if not isinstance(moderators, Mapping):
        moderators = dict.fromkeys(check_terms(moderators, "moderators"), tuple(kinds))
    chosen = []
    for name, paths in moderators.items():
        check_name(name, "every moderator")
        if factors(name) != (Factor(name),):
            raise SpecError(
                f"the moderator {name!r} is not a single column; make a product or a cluster mean a column first"
            )
        if name in roles:
            raise SpecError(
                f"{name!r} is x, m, y or cluster of this model and cannot moderate its paths; write such a model "
                "as a jaxmed.System with products such as 'm:x'"
            )
        wanted = one_or_more(paths)
        unknown = [path for path in wanted if not isinstance(path, str) or path not in {*kinds, *kinds.values()}]
        if unknown or not wanted:
            choices = list(dict.fromkeys((*kinds.values(), *kinds)))
            raise SpecError(f"moderators[{name!r}]={paths!r}: choose paths from {choices}")
        chosen.append((name, tuple(path for path, kind in kinds.items() if path in wanted or kind in wanted)))
    return tuple(chosen)


def check_covariates(
    covariates: Any, outcomes: tuple[str, ...], roles: tuple[str, ...], categorical: tuple[str, ...]
) -> Pairs:
    """Outcomes and the covariates of each."""
    if covariates is None:
        return ()
    if isinstance(covariates, str):
        covariates = [covariates]
    if not isinstance(covariates, Mapping):
        names = check_terms(covariates, "covariates")
        covariates = dict.fromkeys(outcomes, names)
    unknown = [key for key in covariates if key not in outcomes]
    if unknown:
        raise SpecError(f"covariates has the key {unknown[0]!r}; the outcomes of this model are {list(outcomes)}")
    chosen = []
    for outcome in outcomes:
        given = covariates.get(outcome, ())
        names = check_terms([given] if isinstance(given, str) else given, f"covariates[{outcome!r}]")
        for name in names:
            taken = [c for c in columns(name) if c in roles]
            if name == INTERCEPT or taken:
                what = "the intercept" if name == INTERCEPT else f"{taken[0]!r}, x, m, y or cluster of this model"
                raise SpecError(
                    f"covariates[{outcome!r}] has {what}; list other columns only, or write the model as a "
                    "jaxmed.System"
                )
            coded = [c for c in columns(name) if c in categorical]
            if coded and factors(name) != (Factor(name),):
                raise SpecError(
                    f"the covariate {name!r} multiplies the categorical column {coded[0]!r}; code it as numbers first"
                )
        if names:
            chosen.append((outcome, names))
    return tuple(chosen)


def check_random(
    random: Any, predictors: Mapping[str, tuple[str, ...]], x: str, is_known_later: Callable[[str], bool]
) -> str | Pairs:
    """Outcomes and the random effects of each, in the order of its predictors; or "all" or "none".

    ``is_known_later`` is true of terms that only the data can confirm, such as the indicator of a category.
    """
    outcomes = tuple(predictors)
    example = f"{{{outcomes[0]!r}: ['1', {x!r}], {outcomes[-1]!r}: ['1', {outcomes[0]!r}]}}"
    if isinstance(random, str):
        if random not in ("all", "none"):
            raise SpecError(f"random={random!r} is not known; use 'all', 'none' or a dict such as {example}")
        return random
    if not isinstance(random, Mapping):
        raise SpecError(f"random must be 'all', 'none' or a dict from outcome to columns; got {random!r}")
    unknown = [key for key in random if key not in outcomes]
    if unknown:
        raise SpecError(f"random has the key {unknown[0]!r}; the outcomes of this model are {list(outcomes)}")
    chosen = []
    for outcome in outcomes:
        spelled = {canonical(name): name for name in predictors[outcome]}
        given = check_terms(random.get(outcome, ()), f"random[{outcome!r}]")
        names = tuple(spelled.get(canonical(name), name) for name in given)
        extra = [name for name in names if name not in predictors[outcome] and not is_known_later(name)]
        if extra:
            raise SpecError(
                f"random[{outcome!r}] has {extra[0]!r}, which is not a predictor of {outcome!r}; choose from "
                f"{list(predictors[outcome])}"
            )
        known = tuple(name for name in predictors[outcome] if name in names)
        chosen.append((outcome, (*known, *(name for name in names if name not in known))))
    return tuple(chosen) if any(names for _, names in chosen) else "none"
