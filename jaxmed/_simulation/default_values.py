"""Default values of the parameters of a population."""

from __future__ import annotations

import numpy as np

from jaxmed._model import INTERCEPT, DataFacts, Spec, System
from jaxmed._support import Floats

PATHS = {"a": 0.6, "b": 0.6, "c_prime": 0.2, "d": 0.3}
SLOPE_VARIANCES = {"a": 0.16, "b": 0.16, "c_prime": 0.04, "d": 0.16}
COVARIANCE_AB = 0.113


def default_values(spec: Spec, system: System, facts: DataFacts) -> Floats:
    """Default values of all parameters, see :class:`Population`."""
    numbers = dict.fromkeys(system.parameter_labels, 0.0)
    kinds: dict[str, str] = {}
    last = system.outcomes[-1] if spec.has_effects else None
    if spec.has_effects:
        paths, rows, _ = spec.estimands(facts)
        for edge in spec.edges_in(facts):
            for name, path in paths.items():
                if name in map(edge.path, ("", "_within", "_between")):
                    kinds[path.pieces[0][0]] = edge.kind
        for row in rows:
            if row.kind == "covariance" and row.name.startswith("cov_ab"):
                one, other = (paths[path].pieces[0][0] for path in row.terms[0][1])
                for label in (f"{one}~~{other}", f"{other}~~{one}"):
                    if label in numbers:
                        numbers[label] = COVARIANCE_AB
    numbers |= {label: PATHS[kind] for label, kind in kinds.items()}
    for label in system.random_labels:
        outcome, _, term = label.partition("~")
        intercept = 0.6 if last is not None and outcome != last else 0.4
        numbers[f"{label}~~{label}"] = (
            intercept if term == INTERCEPT else SLOPE_VARIANCES.get(kinds.get(label, ""), 0.16)
        )
    for outcome in system.outcomes:
        numbers[f"{outcome}~~{outcome}"] = 0.65 if last is not None and outcome != last else 0.45
    return np.array(list(numbers.values()))
