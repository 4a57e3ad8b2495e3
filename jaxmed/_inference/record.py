"""A fit as plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmed._data import SAMPLE_FORM, later_fields, sample_from_dict
from jaxmed._inference.estimability import Estimable, Working
from jaxmed._model import DataFacts, from_dict
from jaxmed._support import Floats, check_form

FORMAT = 3
FORM = {  # of what is read back; NaN is None
    "format": int,
    "model": dict,
    "categories": {str: [str]},
    "cluster_level": [str],
    "equal_means": [str],
    "remarks": [str],
    "cautions": [str],
    "negative_icc": {str: float},
    "moderator_means": {str: float},
    "moderator_values": {str: [float | str]},
    "reml": bool,
    "values": [float | None],
    "cov_joint": [[float | None]],
    "cov_block": [[float | None]],
    "working": {str: list},
    "estimable": dict | None,
    "free": [(int, int)],
    "loglik": float | None,
    "null": (float | None, int),
    "null_pooled": (float | None, int),
    "rows": SAMPLE_FORM,
    "cluster_sizes": (int, float, int),
    "n_clusters": int,
    "status": int,
    "n_iter": int,
    "grad_norm": float | None,
    "decrement": float | None,
    "singular": bool,
    "reduced_rank": bool,
    "largest_share": float | None,
    "trace": [(int, float | None, float | None)],
}


def fields_from_dict(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of :class:`Estimates` from ``to_dict``; ValueError where it has another form."""
    check_form(plain, dict)
    if plain.get("format") != FORMAT:
        raise ValueError(f"format {plain.get('format')!r}; this version of jaxmed reads {FORMAT}: fit the data again")
    # Not in fits of earlier versions.
    absent: dict[str, Any] = {"equal_means": [], "remarks": [], "cautions": [], "negative_icc": {}}
    plain = {"largest_share": None, "estimable": None, **absent, **plain}
    plain["rows"] = later_fields(plain.get("rows"))
    check_form(plain, FORM)
    return {
        "spec": from_dict(plain["model"]),
        "facts": DataFacts(
            {name: tuple(found) for name, found in plain["categories"].items()},
            frozenset(plain["cluster_level"]),
            frozenset(plain["equal_means"]),
        ),
        "remarks": tuple(plain["remarks"]),
        "cautions": tuple(plain["cautions"]),
        "negative_icc": plain["negative_icc"],
        "moderator_means": plain["moderator_means"],
        "moderator_values": {name: tuple(found) for name, found in plain["moderator_values"].items()},
        "values": np.array(plain["values"], dtype=float),
        "joint": np.array(plain["cov_joint"], dtype=float),
        "block": np.array(plain["cov_block"], dtype=float),
        "working": Working(**_read_arrays(plain["working"], {"theta": 1, "values": 1, "joint": 2, "block": 2})),
        "estimable": _estimable(plain["estimable"]),
        "free": tuple((row, col) for row, col in plain["free"]),
        "null": (_number(plain["null"][0]), plain["null"][1]),
        "null_pooled": (_number(plain["null_pooled"][0]), plain["null_pooled"][1]),
        "intake": sample_from_dict(plain["rows"]),
        "cluster_sizes": tuple(plain["cluster_sizes"]),
        "trace": tuple((stage, _number(value), _number(left)) for stage, value, left in plain["trace"]),
        **{name: _number(plain[name]) for name in ("loglik", "grad_norm", "decrement", "largest_share")},
        **{name: plain[name] for name in ("reml", "n_clusters", "status", "n_iter", "singular", "reduced_rank")},
    }


def plain_data(value: Any) -> Any:
    """NaN and infinities -> None, through lists and dicts, for JSON."""
    if isinstance(value, dict):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def arrays_to_dict(part: NamedTuple) -> dict[str, Any]:
    return {name: array.tolist() for name, array in part._asdict().items()}


def _read_arrays(plain: Mapping[str, Any], dimensions: Mapping[str, int]) -> dict[str, Floats]:
    """Arrays of so many dimensions by name, from :func:`arrays_to_dict`."""
    forms: list[Any] = [float | None]
    for _ in range(max(dimensions.values())):
        forms.append([forms[-1]])
    check_form(plain, {name: forms[n] for name, n in dimensions.items()})
    return {name: np.array(plain[name], dtype=float) for name in dimensions}


def _estimable(plain: Mapping[str, Any] | None) -> Estimable | None:
    dimensions = {"joint": 2, "block": 2, "directions": 2, "changes": 3}
    return None if plain is None else Estimable(**_read_arrays(plain, dimensions))


def frame_to_dict(table: pd.DataFrame) -> dict[str, Any]:
    return {"labels": list(table.index), "values": table.to_numpy().tolist()}
