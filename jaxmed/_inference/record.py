"""A fit as plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import pandas as pd

from jaxmed._data import SampleSummary
from jaxmed._inference.estimability import Estimable, Working
from jaxmed._model import DataFacts, from_dict
from jaxmed._support import Count, Floats, convert

FORMAT = 3
Number = float | None  # NaN is null


class WorkingForm(TypedDict):
    """:class:`Working` as plain data."""

    theta: list[Number]
    values: list[Number]
    joint: list[list[Number]]
    block: list[list[Number]]


class EstimableForm(TypedDict):
    """:class:`Estimable` as plain data."""

    joint: list[list[Number]]
    block: list[list[Number]]
    directions: list[list[Number]]
    changes: list[list[list[Number]]]


class FitForm(TypedDict):
    """What is read back of a fit; what may be absent is not in fits of earlier versions."""

    model: dict[str, Any]
    categories: dict[str, tuple[str, ...]]
    cluster_level: tuple[str, ...]
    equal_means: NotRequired[tuple[str, ...]]
    remarks: NotRequired[tuple[str, ...]]
    cautions: NotRequired[tuple[str, ...]]
    negative_icc: NotRequired[dict[str, float]]
    moderator_means: dict[str, float]
    moderator_values: dict[str, tuple[float | int | str, ...]]
    reml: bool
    values: list[Number]
    cov_joint: list[list[Number]]
    cov_block: list[list[Number]]
    working: WorkingForm
    estimable: NotRequired[EstimableForm | None]
    free: tuple[tuple[Count, Count], ...]
    loglik: Number
    null: tuple[Number, Count]
    null_pooled: tuple[Number, Count]
    rows: SampleSummary
    cluster_sizes: tuple[Count, float, Count]
    n_clusters: Count
    status: Count
    n_iter: Count
    grad_norm: Number
    decrement: Number
    singular: bool
    reduced_rank: bool
    largest_share: NotRequired[Number]
    trace: tuple[tuple[Count, Number, Number], ...]


def fields_from_dict(plain: Any) -> dict[str, Any]:
    """Constructor arguments of :class:`Estimates` from ``to_dict``; ValueError where it has another form."""
    version = convert(plain, dict[str, Any]).get("format")
    if version != FORMAT:
        raise ValueError(f"format {version!r}; this version of jaxmed reads {FORMAT}: fit the data again")
    form = convert(plain, FitForm)
    estimable = form.get("estimable")
    return {
        "spec": from_dict(form["model"]),
        "facts": DataFacts(
            form["categories"], frozenset(form["cluster_level"]), frozenset(form.get("equal_means", ()))
        ),
        "remarks": form.get("remarks", ()),
        "cautions": form.get("cautions", ()),
        "negative_icc": form.get("negative_icc", {}),
        "moderator_means": form["moderator_means"],
        "moderator_values": form["moderator_values"],
        "values": np.array(form["values"], dtype=float),
        "joint": np.array(form["cov_joint"], dtype=float),
        "block": np.array(form["cov_block"], dtype=float),
        "working": Working(**_arrays(form["working"])),
        "estimable": None if estimable is None else Estimable(**_arrays(estimable)),
        "free": form["free"],
        "null": (_number(form["null"][0]), form["null"][1]),
        "null_pooled": (_number(form["null_pooled"][0]), form["null_pooled"][1]),
        "sample_summary": form["rows"],
        "cluster_sizes": form["cluster_sizes"],
        "trace": tuple((stage, _number(value), _number(left)) for stage, value, left in form["trace"]),
        "loglik": _number(form["loglik"]),
        "grad_norm": _number(form["grad_norm"]),
        "decrement": _number(form["decrement"]),
        "largest_share": _number(form.get("largest_share")),
        "reml": form["reml"],
        "n_clusters": form["n_clusters"],
        "status": form["status"],
        "n_iter": form["n_iter"],
        "singular": form["singular"],
        "reduced_rank": form["reduced_rank"],
    }


def estimates_to_dict(fit: Any) -> dict[str, Any]:
    """:class:`jaxmed._inference.estimates.Estimates` as plain data under the public names."""
    plain = {
        "format": FORMAT,
        "model": fit.spec.to_dict(),
        "categories": {name: list(found) for name, found in fit.facts.categories.items()},
        "cluster_level": sorted(fit.facts.cluster_level),
        "equal_means": sorted(fit.facts.equal_means),
        "remarks": list(fit.remarks),
        "cautions": list(fit.cautions),
        "negative_icc": fit.negative_icc,
        "moderator_means": fit.moderator_means,
        "moderator_values": {name: list(found) for name, found in fit.moderator_values.items()},
        "notes": list(fit.notes),
        "reml": fit.reml,
        "loglik": fit.loglik,
        "aic": fit.aic,
        "bic": fit.bic,
        "nobs": fit.nobs,
        "n_clusters": fit.n_clusters,
        "cluster_sizes": list(fit.cluster_sizes),
        "params": fit.params.to_dict(),
        "bse": fit.bse.to_dict(),
        "bse_block": fit.standard_errors("block").to_dict(),
        "random_cov": frame_to_dict(fit.random_cov),
        "random_cov_se": frame_to_dict(fit.random_cov_se),
        "residual_var": fit.residual_var.to_dict(),
        "residual_var_se": fit.residual_var_se.to_dict(),
        "residual_cov": frame_to_dict(fit.residual_cov),
        "residual_cov_se": frame_to_dict(fit.residual_cov_se),
        "labels": list(fit.labels),
        "values": fit.values.tolist(),
        "cov_joint": fit.joint.tolist(),
        "cov_block": fit.block.tolist(),
        "working": arrays_to_dict(fit.working),
        "estimable": None if fit.estimable is None else arrays_to_dict(fit.estimable),
        "free": [list(pair) for pair in fit.free],
        "null": list(fit.null),
        "null_pooled": list(fit.null_pooled),
        "converged": fit.converged,
        "status": fit.status,
        "message": fit.message,
        "singular": fit.singular,
        "reduced_rank": fit.reduced_rank,
        "largest_share": fit.largest_share,
        "n_iter": fit.n_iter,
        "grad_norm": fit.grad_norm,
        "decrement": fit.decrement,
        "trace": [list(row) for row in fit.trace],
        "rows": asdict(fit.sample_summary),
    }
    return {key: plain_data(value) for key, value in plain.items()}


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


def _arrays(plain: Mapping[str, Any]) -> dict[str, Floats]:
    """Inverse of :func:`arrays_to_dict`."""
    return {name: np.array(values, dtype=float) for name, values in plain.items()}


def frame_to_dict(table: pd.DataFrame) -> dict[str, Any]:
    return {"labels": list(table.index), "values": table.to_numpy().tolist()}
