"""A likelihood to be evaluated: a design, its layout of parameters, and what the two determine, made when needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import Design, Moments, Totals, add_up, make_design
from jaxmed._likelihood.distributed import common_blocks, over_all, together
from jaxmed._likelihood.executor import Array, Engine, EngineChoice, executed
from jaxmed._likelihood.layout import Layout, Scale, count_rows, make_layout, make_scale, root_and_precision
from jaxmed._likelihood.likelihood import Data, data_for
from jaxmed._likelihood.processes import ALONE, Hosts
from jaxmed._likelihood.shards import Shards, make_shards
from jaxmed._model import System
from jaxmed._support import Floats

# Clusters times entries of [X y]'[X y] times random effects: NumPy takes 2 s for a fit, and JAX 8 s to compile one.
SMALL = 1e7


@dataclass(frozen=True, eq=False)
class Problem:
    """The likelihood of a system of equations given the moments of data.

    Attributes
    ----------
    design : Design
        Of the clusters of this process.
    layout : Layout
    hosts : Hosts
        The processes whose clusters count.
    known_rows : tuple of int, optional
        Rows that count in each equation, of all processes, where a fit has counted them.
    engine : {"numpy", "jax"}
        What executes the formulas.
    """

    design: Design
    layout: Layout
    hosts: Hosts = ALONE
    known_rows: tuple[int, ...] | None = None
    engine: Engine = "jax"

    @property
    def system(self) -> System:
        """The equations."""
        return self.design.system

    @cached_property
    def totals(self) -> Totals:
        """Sums over the clusters of all processes."""
        return over_all(add_up(self.design), self.hosts)

    @property
    def used(self) -> tuple[int, ...]:
        """Rows that count in each equation."""
        if self.known_rows is not None:
            return self.known_rows
        return tuple(sums.rows for sums in self.totals.equations)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each set of equations that rows are seen in."""
        return count_rows(self.layout, self.system, self.totals)

    @cached_property
    def scale(self) -> Scale:
        """From the working scale to the user's."""
        return make_scale(self.design, self.layout, self.used)

    def data(self) -> Data:
        """All clusters in one array; inside :func:`jaxmed._support.runtime.float64`, where JAX executes."""
        return data_for(self.engine, self.design.table, self.counts)

    def shards(self) -> Shards:
        """The clusters in parts, on the devices of this process."""
        return make_shards(self.design.table, self.counts, self.hosts, engine=self.engine)

    def root_and_precision(self, theta: Floats) -> tuple[Array, Array]:
        """The root of G and the residual precisions at the optimiser's parameters."""
        return _root_and_precision(self.engine, self.layout, theta)

    def part(self, clusters: slice | NDArray[np.int64]) -> Problem:
        """The problem of some clusters of this process."""
        return Problem(self.design.part(clusters), self.layout, engine=self.engine)


_root_and_precision = executed(root_and_precision)


def make_problem(
    system: System,
    moments: Moments,
    reml: bool,
    hosts: Hosts = ALONE,
    known_rows: tuple[int, ...] | None = None,
    engine: EngineChoice = "auto",
) -> Problem:
    """The problem of a system and the moments of this process; by default its size chooses the engine."""
    design = common_blocks(together(hosts, lambda: make_design(system, moments)), hosts)
    layout = make_layout(design, reml)
    work = design.n_clusters * (layout.n_fixed + 1) ** 2 * (layout.n_random + 1)
    small: Engine = "numpy" if hosts == ALONE and work <= SMALL else "jax"
    return Problem(design, layout, hosts, known_rows, small if engine == "auto" else engine)
