"""Several processes, each with its own clusters: only small sums travel between them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxmed._likelihood.executor import map_arrays
from jaxmed._support import FitError
from jaxmed._support.runtime import float64

Tree = TypeVar("Tree")

LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # where launchers say how many processes they started


@dataclass(frozen=True)
class Hosts:
    """The processes of ``jax.distributed`` that share a fit.

    Attributes
    ----------
    count : int
    index : int
        Of this process.
    """

    count: int = 1
    index: int = 0

    def add(self, sums: Tree) -> Tree:
        """Sum trees of float arrays over all processes, in their order: every process gets the same bits."""
        if self.count == 1:
            return sums
        import jax

        leaves, structure = jax.tree.flatten(sums)
        flat = np.concatenate([np.asarray(leaf, dtype=np.float64).ravel() for leaf in leaves])
        total = reduce(add, _gathered(flat))
        cuts = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
        return jax.tree.unflatten(
            structure, [part.reshape(np.shape(leaf)) for part, leaf in zip(np.split(total, cuts), leaves, strict=True)]
        )

    def first(self, tree: Tree) -> Tree:
        """What the first process has, on every process: a tree of arrays."""
        return tree if self.count == 1 else map_arrays(lambda leaf: _gathered(np.asarray(leaf))[0], tree)

    def gather(self, plain: Any) -> list[Any]:
        """Plain data (JSON) of all processes, in their order."""
        if self.count == 1:
            return [plain]
        text = np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8)
        lengths = [int(length[0]) for length in _gathered(np.array([len(text)], dtype=np.int64))]
        padded = np.zeros(max(lengths), dtype=np.uint8)
        padded[: len(text)] = text
        return [json.loads(part[:length].tobytes()) for part, length in zip(_gathered(padded), lengths, strict=True)]


ALONE = Hosts()


def all_hosts() -> Hosts:
    """All processes of ``jax.distributed``; one where it was not started.

    Raises
    ------
    FitError
        A launcher started several processes, but they have not joined.
    """
    import jax

    if jax.process_count() == 1:
        for variable in LAUNCHED:
            if os.environ.get(variable, "1").isdigit() and int(os.environ.get(variable, "1")) > 1:
                raise FitError(
                    f"distributed=True in one of several processes ({variable}={os.environ[variable]}) that have not "
                    "joined: call jax.distributed.initialize() first"
                )
    return Hosts(jax.process_count(), jax.process_index())


def _gathered(array: NDArray[Any]) -> list[NDArray[Any]]:
    """One array of the same shape from every process."""
    return list(_all_gather(array))


@float64
def _all_gather(array: NDArray[Any]) -> NDArray[Any]:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array))
