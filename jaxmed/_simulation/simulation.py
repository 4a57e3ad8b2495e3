"""Data from a known population: rows of a system, drawn with JAX's counter-based keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, stdtrit

from jaxmed._data import Moments, outcome_values, read_moments
from jaxmed._model import System
from jaxmed._simulation.cluster_sizes import Size, check_size, draw_sizes
from jaxmed._simulation.population import Population, Shape, as_population
from jaxmed._support import Floats, check_count, check_flag, lower_root
from jaxmed._support.runtime import float64, jit_by_key

# Streams of random numbers: random effects are 0, residuals of equation e are 1 + e.
SIZES, COLUMNS = 1000, 1001
ROOM = 128  # drawn at least, so that programs for few numbers are shared


@float64
def _normals(seed: int, counts: Mapping[int, int]) -> dict[int, Floats]:
    """Standard normal numbers, so many of each stream; to rounding the same on every backend."""
    room = 1 << (max([ROOM, *counts.values()]) - 1).bit_length()
    drawn = np.asarray(_draws(room, np.uint64(seed), np.array(list(counts), dtype=np.uint32)))
    return {stream: part[:count] for (stream, count), part in zip(counts.items(), drawn, strict=True)}


@jit_by_key
def _draws(count: int, seed: Any, streams: Any) -> Any:
    """The first numbers of some streams: how many are drawn changes none of them."""
    import jax
    import jax.numpy as jnp

    with jax.threefry_partitionable(True):  # whatever the user's settings
        key = jax.random.key(seed, impl="threefry2x32")

        def draw(stream: Any) -> Any:
            return jax.random.normal(jax.random.fold_in(key, stream), (count,), dtype=jnp.float64)

        return jax.vmap(draw)(streams)


def shaped(normal: Floats, shape: str) -> Floats:
    """Standard normal numbers -> numbers of mean 0 and variance 1 of another distribution, in the same order.

    ``"skewed"``: exponential less one, skewness 2, excess kurtosis 6. ``"heavy_tailed"``: t with 5 degrees of freedom,
    divided by its sd, excess kurtosis 6.
    """
    if shape == "skewed":
        return -log_ndtr(-normal) - 1
    if shape == "heavy_tailed":
        return np.sign(normal) * -stdtrit(5, ndtr(-np.abs(normal))) / np.sqrt(5 / 3)
    return normal


def rows(
    system: System,
    params: Mapping[str, float],
    random_cov: Floats,
    residual_cov: Floats,
    exogenous: Mapping[str, Floats],
    cluster: NDArray[np.int64],
    seed: int,
    random_effects: str = "normal",
    residuals: Shape = "normal",
) -> dict[str, Floats]:
    """Draw the outcomes of a system, equation after equation, each from the outcomes drawn before it.

    Parameters
    ----------
    system : System
    params : mapping
        Fixed effects by label.
    random_cov : ndarray, shape (q, q)
        G, in the order of ``system.random_labels``; may be singular.
    residual_cov : ndarray, shape (E, E)
        Covariance of the residuals of a row, in the order of the equations.
    exogenous : mapping
        Columns that no equation draws, shape (n_rows,).
    cluster : ndarray of int, shape (n_rows,)
        Cluster index of every row, from 0.
    seed : int
    random_effects, residuals : {"normal", "skewed", "heavy_tailed"}
        Distributions, see :func:`shaped`: the lower root of the covariance times independent numbers of that
        distribution. (Eigenvectors would be the choice of the machine's linear algebra library.)

    Returns
    -------
    dict
        Outcome -> values, shape (n_rows,).
    """
    n_clusters = int(cluster.max()) + 1
    counts = {1 + e: n_clusters if equation.level == 2 else len(cluster) for e, equation in enumerate(system.equations)}
    normal = _normals(seed, {0: len(random_cov) * n_clusters} | counts)
    deviation = lower_root(random_cov) @ shaped(normal.pop(0).reshape(-1, n_clusters), random_effects)
    effects = dict(zip(system.random_labels, deviation, strict=True))
    noise = [own[cluster] if len(own) < len(cluster) else own for own in normal.values()]
    error = lower_root(residual_cov) @ shaped(np.stack(noise), residuals)
    columns: dict[str, Floats] = dict(exogenous)
    for e in system.order:
        equation = system.equations[e]
        columns[equation.outcome] = outcome_values(equation, params, effects, error[e], columns, cluster)
    return {outcome: columns[outcome] for outcome in system.outcomes}


def _exogenous(population: Population, cluster: NDArray[np.int64], n_clusters: int, seed: int) -> dict[str, Floats]:
    """The columns that no equation draws: a cluster's mean and a deviation from it, each normal."""
    names = population.columns
    counts = {COLUMNS + 2 * k + part: (n_clusters, len(cluster))[part] for k in range(len(names)) for part in (0, 1)}
    normal = list(_normals(seed, counts).values())
    between = np.reshape(normal[::2], (len(names), n_clusters))
    within = np.reshape(normal[1::2], (len(names), len(cluster)))
    value = (lower_root(population.between) @ between)[:, cluster] + lower_root(population.within) @ within
    found = {}
    for k, name in enumerate(names):
        if name in population.two_valued:
            low, high, share = population.two_valued[name]
            sd = np.sqrt(population.between[k, k] + population.within[k, k])
            found[name] = np.where(ndtr(-value[k] / sd) < share, high, low)
        else:
            found[name] = population.means[k] + value[k]
    return found


def draw(population: Population, clusters: int, size: Size, seed: int) -> tuple[dict[str, Floats], NDArray[np.int64]]:
    """All columns of a data set, shape (n_rows,), and the cluster index of every row."""
    uniform = np.zeros(clusters) if isinstance(size, int) else ndtr(_normals(seed, {SIZES: clusters})[SIZES])
    cluster = np.repeat(np.arange(clusters), draw_sizes(size, uniform))
    exogenous = _exogenous(population, cluster, clusters, seed)
    outcomes = rows(
        population.system,
        population.fixed,
        population.random_matrix,
        population.residual_matrix,
        exogenous,
        cluster,
        seed,
        population.random_effects,
        population.residuals,
    )
    return exogenous | outcomes, cluster


@overload
def simulate(
    population: Any = None, *, clusters: int | None = None, size: Any = None, seed: int, moments: Literal[False] = False
) -> pd.DataFrame: ...


@overload
def simulate(
    population: Any = None, *, clusters: int | None = None, size: Any = None, seed: int, moments: Literal[True]
) -> Moments: ...


def simulate(
    population: Any = None,
    *,
    clusters: int | None = None,
    size: Any = None,
    seed: int,
    moments: bool = False,
) -> pd.DataFrame | Moments:
    """Draw data from a population.

    Parameters
    ----------
    population : Population, Fit or dict, optional
        A :class:`jaxmed.Population`; a fit, whose estimates are taken as the truth; or numbers by name, ``{"a": 0.3}``,
        over the defaults of :class:`jaxmed.Population`. By default the population of Bauer, Preacher & Gil (2006).
    clusters : int, optional
        Number of clusters; by default the population's (100, or those of the fit).
    size : int, list or dict, optional
        Rows of a cluster; by default the population's (8, or those of the fit). A number for all clusters; a list of
        sizes, of which every cluster gets one by chance; or a distribution: ``{"uniform": [4, 12]}``,
        ``{"poisson": 8}`` or ``{"negative_binomial": [8, 6]}`` (mean and sd). The last two are of the rows beyond the
        first, so that every cluster has at least one and the mean is as given.
    seed : int
        Same seed, same data, to rounding on every machine. With more clusters all draws are others.
    moments : bool
        Return what a fit needs of the data, cross-products by cluster, instead of rows.

    Returns
    -------
    DataFrame or Moments
        Columns: the cluster id (from 1), what no equation draws (x, covariates, moderators), outcomes.

    Raises
    ------
    SpecError
        A count below 1, or no whole number; numbers that no population can have.

    Examples
    --------
    >>> import jaxmed as jm
    >>> jm.simulate(clusters=50, size=4, seed=1).shape
    (200, 4)
    >>> rows = jm.simulate({"a": 0.3, "icc_x": 0.1}, clusters=50, size={"poisson": 6}, seed=1)
    >>> list(rows.columns)
    ['id', 'x', 'm', 'y']
    """
    population = as_population(population)
    check_flag("moments", moments)
    clusters = population.clusters if clusters is None else check_count("clusters", clusters)
    size = population.size if size is None else check_size(size)
    columns, cluster = draw(population, clusters, size, check_count("seed", seed, 0))
    names = [*population.columns, *population.system.outcomes]
    found = pd.DataFrame({population.spec.cluster: cluster + 1, **{name: columns[name] for name in names}})
    return read_moments(found, population.spec) if moments else found
