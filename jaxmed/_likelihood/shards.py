"""Very many clusters: the two passes of the likelihood over shards, on all cores, devices and hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmed._likelihood.derivatives import Evaluation, FullEvaluation, assemble, assemble_full, second_pass
from jaxmed._likelihood.executor import Array, Engine, executed, map_arrays
from jaxmed._likelihood.layout import Layout
from jaxmed._likelihood.likelihood import BLOCK, Data, make_data, make_numpy_data, marginal_blocks, profile
from jaxmed._likelihood.processes import ALONE, Hosts
from jaxmed._support import current_sizes
from jaxmed._support.runtime import float64, n_workers, pool

LEAST = 4  # shards, if there are as many blocks
GPU_BLOCK, GPU_SHARD = 1 << 13, 1 << 16  # where thousands of threads wait for work


@dataclass(frozen=True)
class Shards:
    """Clusters in parts of one size, spread over the local devices.

    Attributes
    ----------
    parts : tuple of Data
        Of this process's clusters.
    n_rows : ndarray, shape (n_sets,)
        Rows of each set of equations, of all processes.
    hosts : Hosts
        The processes whose sums are added.
    engine : {"numpy", "jax"}
        With NumPy there is one part.
    """

    parts: tuple[Data, ...]
    n_rows: NDArray[np.float64]
    hosts: Hosts = ALONE
    engine: Engine = "jax"


def make_shards(
    table: NDArray[np.float64],
    n_rows: tuple[int, ...],
    hosts: Hosts = ALONE,
    devices: Sequence[Any] | None = None,
    engine: Engine = "jax",
) -> Shards:
    """Cut a table of moments, shape (rows, clusters), into shards of the same shape.

    Sums are added shard by shard in their order, whatever the number of cores and devices.
    """
    if engine == "numpy":
        return Shards((make_numpy_data(table, n_rows),), np.asarray(n_rows, dtype=np.float64), hosts, engine)
    return _make_shards(table, n_rows, hosts, devices)


@float64  # JAX arrays made outside the scope would be float32
def _make_shards(
    table: NDArray[np.float64], n_rows: tuple[int, ...], hosts: Hosts, devices: Sequence[Any] | None
) -> Shards:
    import jax

    devices = jax.local_devices() if devices is None else devices
    block, size = (BLOCK, current_sizes().shard_clusters) if devices[0].platform == "cpu" else (GPU_BLOCK, GPU_SHARD)
    blocks = max(1, -(-table.shape[1] // block))
    each = block * -(-blocks // max(LEAST, -(-blocks * block // size)))  # even, so that no core waits long
    parts = [
        jax.device_put(
            _padded(make_data(table[:, first : first + each], n_rows, block), size), devices[k % len(devices)]
        )
        for k, first in enumerate(range(0, blocks * block, each))
    ]
    return Shards(tuple(parts), np.asarray(n_rows, dtype=np.float64), hosts)


def _padded(data: Data, clusters: int) -> Data:
    """A part padded to the size of the largest."""
    blocks, rows, block = np.shape(data.table)
    if blocks == clusters // block:
        return data
    table = np.zeros((clusters // block, rows, block))
    table[:blocks] = data.table
    return data._replace(table=table)


def evaluate_shards(layout: Layout, root: Array, tau: Array, shards: Shards) -> Evaluation:
    """:func:`jaxmed._likelihood.derivatives.evaluate` over all shards of all processes."""
    point = np.asarray(root), np.asarray(tau)
    first = _over_shards(shards, partial(_first_pass, shards.engine, layout, *point))
    _, beta_cov, contrast = _profile(shards.engine, layout, first, point[1], shards.n_rows)
    second = _over_shards(shards, partial(_second_pass, shards.engine, layout, *point, beta_cov, contrast))
    return _assemble(shards.engine, layout, point[1], shards.n_rows, first, second)


def full_evaluation(
    layout: Layout, root: Array, tau: Array, beta: NDArray[np.float64], shards: Shards
) -> FullEvaluation:
    """:class:`jaxmed._likelihood.derivatives.FullEvaluation` at any fixed effects, over all shards of all processes."""
    point = np.asarray(root), np.asarray(tau)
    first = _over_shards(shards, partial(_first_pass, shards.engine, layout, *point))
    _, beta_cov, _ = _profile(shards.engine, layout, first, point[1], shards.n_rows)
    second = _over_shards(shards, partial(_second_pass, shards.engine, layout, *point, beta_cov, np.append(-beta, 1.0)))
    return _assemble_full(shards.engine, layout, point[1], shards.n_rows, beta, first, second)


def value_shards(layout: Layout, root: Array, tau: Array, shards: Shards) -> float:
    """The negative log likelihood f over all shards of all processes."""
    return float(profile_shards(layout, root, tau, shards)[0])


def profile_shards(layout: Layout, root: Array, tau: Array, shards: Shards) -> tuple[Array, Array, Array]:
    """:func:`jaxmed._likelihood.likelihood.profile` over all shards of all processes: value, Cov(beta), contrast."""
    point = np.asarray(root), np.asarray(tau)
    first = _over_shards(shards, partial(_first_pass, shards.engine, layout, *point))
    return _profile(shards.engine, layout, first, point[1], shards.n_rows)


def _over_shards(shards: Shards, run: Callable[[Data], Any]) -> Any:
    """Sum what a pass returns for every shard, in threads: one for each core or device."""
    found = list(map(run, shards.parts) if len(shards.parts) == 1 else pool(n_workers()).map(run, shards.parts))
    return shards.hosts.add(reduce(partial(map_arrays, np.add), found))


@executed
def _first_pass(layout: Layout, root: Array, tau: Array, data: Data) -> tuple[Array, Array]:
    return marginal_blocks(layout, root, tau, data)


@executed
def _profile(layout: Layout, first: tuple[Array, Array], tau: Array, n_rows: Array) -> tuple[Array, Array, Array]:
    return profile(layout, first[0][0], first[1], tau, n_rows)


@executed
def _second_pass(
    layout: Layout, root: Array, tau: Array, beta_cov: Array, contrast: Array, data: Data
) -> tuple[Array, ...]:
    return second_pass(layout, root, tau, data, beta_cov, contrast)


_assemble = executed(assemble)
_assemble_full = executed(assemble_full)
