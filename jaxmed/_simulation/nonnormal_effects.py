"""Effects of populations whose random effects are not normal: what higher cumulants add to products of slopes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import factorial

import numpy as np

from jaxmed._inference import Targets
from jaxmed._model import System
from jaxmed._support import Floats, lower_root


def cumulant(shape: str, order: int) -> float:
    """The cumulant of order 3 or more of one of the independent numbers behind random effects, of variance 1.

    (n - 1)! of the exponential distribution; of t with 5 degrees of freedom 0 and 6, and none of order 5 and more.
    """
    if shape == "skewed":
        return float(factorial(order - 1))
    return {3: 0.0, 4: 6.0}.get(order, np.nan)


def higher_terms(targets: Targets, values: Floats, system: System, covariance: Floats, shape: str) -> Floats:
    """What effects are more than those of normal random effects with the same covariance, shape (effects,).

    Random effects are u = L w with independent w. The mean of a product of slopes is the sum over the partitions of
    its factors of products of joint cumulants: m of one slope, sum_r L_ar L_br of two, and of three
    k_3 sum_r L_ar L_br L_cr, so that E[a_j d_j b_j] has this term more, and so on (McCullagh 1987, ch. 2).

    Parameters
    ----------
    targets : Targets
    values : ndarray, shape (p + n,)
        Parameters of the population.
    system : System
    covariance : ndarray, shape (q, q)
        G = LL', L lower triangular.
    shape : str
        Of the random effects, see :class:`jaxmed.Population`.
    """
    plan, at_label = targets.plan, {label: k for k, label in enumerate(system.labels)}
    rows = zip(system.random_labels, lower_root(covariance), strict=True)
    root, nothing = {at_label[label]: row for label, row in rows}, np.zeros(len(covariance))
    found = []
    for point in range(len(targets.weights[0])):
        weights = [own[point] for own in targets.weights]
        mean = [float(values[list(at)] @ w) for at, w in zip(plan.paths, weights, strict=True)]
        loads = [
            np.sum([one * root.get(k, nothing) for k, one in zip(at, w, strict=True)], axis=0)
            for at, w in zip(plan.paths, weights, strict=True)
        ]
        for terms, is_covariance in plan.rows:
            found.append(0.0 if is_covariance else sum(w * _more(route, mean, loads, shape) for w, route in terms))
    return np.asarray(targets.combination @ np.array(found))


def _more(route: Sequence[int], mean: Sequence[float], loads: Sequence[Floats], shape: str) -> float:
    """The sum over partitions in which some part has three factors or more."""
    total = 0.0
    for parts in partitions(list(route)):
        if max(map(len, parts)) < 3:
            continue
        term = 1.0
        for part in parts:
            if len(part) == 1:
                term *= mean[part[0]]
            else:
                along = float(np.sum(np.prod([loads[k] for k in part], axis=0)))
                # No number for a cumulant that does not exist matters where the slopes share nothing.
                term *= along * (1.0 if len(part) == 2 or not along else cumulant(shape, len(part)))
        total += term
    return total


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All ways to divide a list into parts."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for parts in partitions(rest):
        yield [[first], *parts]
        for k, part in enumerate(parts):
            yield [*parts[:k], [first, *part], *parts[k + 1 :]]
