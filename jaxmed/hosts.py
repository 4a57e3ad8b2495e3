"""Several processes, each with its own clusters: only small sums travel between them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from jaxmed._runtime import float64

Tree = TypeVar("Tree")


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
        leaves, structure = jax.tree.flatten(sums)
        flat = np.concatenate([np.asarray(leaf, dtype=np.float64).ravel() for leaf in leaves])
        total = reduce(add, _gathered(flat))
        cuts = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
        return jax.tree.unflatten(
            structure, [part.reshape(np.shape(leaf)) for part, leaf in zip(np.split(total, cuts), leaves, strict=True)]
        )

    def first(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the first process has, on every process."""
        return array if self.count == 1 else _gathered(np.asarray(array))[0]

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
    """All processes of ``jax.distributed``; one where it was not started."""
    return Hosts(jax.process_count(), jax.process_index())


def _gathered(array: NDArray[Any]) -> list[NDArray[Any]]:
    """One array of the same shape from every process."""
    return list(_all_gather(array))


@float64
def _all_gather(array: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(multihost_utils.process_allgather(array))
