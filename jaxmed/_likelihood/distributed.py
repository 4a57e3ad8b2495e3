"""What processes must agree on before they fit a model together, each with its own clusters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import reduce
from operator import add
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from jaxmed._data import Design, Moments, SampleSummary, Totals, totals_from_dict
from jaxmed._likelihood.processes import Hosts
from jaxmed._support import DataError, convert

Result = TypeVar("Result")

SKETCH = 10_000  # clusters by which processes find out that they share some
AGREED = {
    "request": "the model and its options",
    "cluster": "the cluster column",
    "kind": "the type of the cluster ids",
    "columns": "the columns",
    "groups": "the columns that a row must have",
    "averaged": "the columns with cluster means",
    "categories": "the categories",
    "constants": "the columns that do not vary within clusters",
    "cluster_level": "the columns of the clusters (of which some cluster has several rows)",
    "row_products": "the products of columns",
}


def together(hosts: Hosts, action: Callable[[], Result]) -> Result:
    """Run an action on every process; where it fails on one, all of them say so, instead of waiting for it.

    Raises
    ------
    DataError
        On another process the action failed; its message is passed on.
    """
    if hosts.count == 1:
        return action()
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    said = hosts.gather("" if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for process, text in enumerate(said):
        if text:
            raise DataError(f"process {process} of {hosts.count} failed: {text}")
    return result


def agree(moments: Moments, hosts: Hosts, request: Mapping[str, Any]) -> tuple[Moments, SampleSummary]:
    """The moments of this process on the working scale of the first one, and the sample summary of all processes.

    ``request`` is what the processes were asked for, as plain data: the model and how to fit it.

    Raises
    ------
    DataError
        The processes fit different models, read different columns or categories, or have clusters in common. Of very
        many clusters those with the smallest hashes are compared.
    """
    if hosts.count == 1:
        return moments, moments.sample_summary
    clusters = moments.clusters
    wide = {"i": "int64", "u": "uint64", "f": "float64", "M": "datetime64[us]"}.get(clusters.dtype.kind)
    hashes = pd.util.hash_array(clusters if wide is None else clusters.astype(np.dtype(wide)))
    least = np.argsort(hashes)[:SKETCH]
    header: dict[str, Any] = {
        "request": dict(request),
        "cluster": moments.cluster,
        "kind": moments.clusters.dtype.kind,
        "columns": moments.columns,
        "groups": moments.groups,
        "averaged": moments.averaged,
        "categories": moments.categories,
        "constants": sorted(moments.constants),
        "cluster_level": sorted(moments.cluster_level),
        "row_products": moments.row_products,
        "unit": [moments.shift.tolist(), moments.scale.tolist()],
        "intake": asdict(moments.sample_summary),
        "sketch": {f"{key:x}": str(label) for key, label in zip(hashes[least], moments.clusters[least], strict=True)},
    }
    headers = hosts.gather(header)
    seen: dict[str, int] = {}
    for process, other in enumerate(headers):
        for key, what in AGREED.items():
            if other[key] != headers[0][key]:
                raise DataError(
                    f"{what} must be the same in all processes, but process 0 has {headers[0][key]} and process "
                    f"{process} has {other[key]}"
                )
        for hashed, label in other["sketch"].items():
            if hashed in seen:
                raise DataError(
                    f"the rows of cluster {label} are in process {seen[hashed]} and in process {process}; all rows of "
                    "a cluster must be in one process"
                )
            seen[hashed] = process
    shift, scale = (np.array(unit) for unit in headers[0]["unit"])
    return moments.rescaled(shift, scale), reduce(add, (convert(other["intake"], SampleSummary) for other in headers))


def common_blocks(design: Design, hosts: Hosts) -> Design:
    """The design with the patterns of missing values of all processes."""
    if hosts.count == 1:
        return design
    found = hosts.gather([block.equations for block in design.blocks])
    return design.with_blocks({tuple(equations) for process in found for equations in process})


def over_all(totals: Totals, hosts: Hosts) -> Totals:
    """Sums over the clusters of all processes, in the order of processes."""
    if hosts.count == 1:
        return totals
    return reduce(add, (totals_from_dict(plain) for plain in hosts.gather(totals.to_dict())))
