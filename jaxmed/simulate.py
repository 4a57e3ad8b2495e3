"""Data from a known population: rows of a system, drawn with JAX's counter-based keys."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jaxmed._runtime import float64
from jaxmed.design import term_values
from jaxmed.errors import SpecError
from jaxmed.mediation import Mediation
from jaxmed.moments import Floats
from jaxmed.spec import System


@float64
def _normal(seed: int, stream: int, shape: tuple[int, ...]) -> Floats:
    """Standard normal draws of one stream; to rounding the same on every backend."""
    with jax.threefry_partitionable(True):  # whatever the user's settings
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)
        return jax.random.normal(key, shape, dtype=jnp.float64)  # type: ignore[return-value]


def rows(
    system: System,
    params: Mapping[str, float],
    random_cov: Floats,
    residual_cov: Floats,
    exogenous: Mapping[str, Floats],
    cluster: NDArray[np.int64],
    seed: int,
) -> dict[str, Floats]:
    """Draw the outcomes of a system, equation after equation, each from the outcomes drawn before it.

    Parameters
    ----------
    system : System
        With its equations in an order in which every outcome comes before its use as a predictor.
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

    Returns
    -------
    dict
        Outcome -> values, shape (n_rows,).
    """
    n_clusters = int(cluster.max()) + 1
    value, vector = np.linalg.eigh(np.asarray(random_cov, dtype=float))
    root = vector * np.sqrt(np.maximum(value, 0))
    deviation = dict(zip(system.random_labels, root @ _normal(seed, 0, (len(root), n_clusters)), strict=True))
    columns: dict[str, Floats] = dict(exogenous)
    noise = [
        _normal(seed, stream, (n_clusters,))[cluster] if e.level == 2 else _normal(seed, stream, (len(cluster),))
        for stream, e in enumerate(system.equations, start=1)
    ]
    residual = np.linalg.cholesky(np.asarray(residual_cov, dtype=float)) @ np.stack(noise)
    for equation, error in zip(system.equations, residual, strict=True):
        mean = np.zeros(len(cluster))
        for name, label in zip(equation.predictors, equation.labels, strict=True):
            slope = params[label] + (deviation[label][cluster] if label in deviation else 0.0)
            mean = mean + slope * term_values(name, columns, cluster)
        columns[equation.outcome] = mean + error
    return {outcome: columns[outcome] for outcome in system.outcomes}


def simulate(*, clusters: int = 100, size: int = 8, seed: int) -> pd.DataFrame:
    """Draw 1-1-1 data from the population of Bauer, Preacher & Gil (2006); columns id, x, m, y.

    a = b = .6, c' = .2, intercepts 0; random effects (m~1, m~x, y~1, y~m, y~x) with variances (.6, .16, .4, .16, .04),
    cov(a_j, b_j) = .113 and no other covariance; residual variances .65 (m) and .45 (y). x is the sum of a standard
    normal cluster mean and a standard normal deviation.

    Parameters
    ----------
    clusters, size : int
        Number of clusters, rows in each.
    seed : int
        Same seed, same data, to rounding on every machine.

    Raises
    ------
    SpecError
        A count below 1, or no whole number.

    Examples
    --------
    >>> import jaxmed as jm
    >>> jm.simulate(clusters=50, size=4, seed=1).shape
    (200, 4)
    """
    for name, count in {"clusters": clusters, "size": size, "seed": seed}.items():
        least = 0 if name == "seed" else 1
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not least <= count < 2**63:
            raise SpecError(f"{name}={count!r} must be a whole number of at least {least} and below 2**63")
    system = Mediation(x="x", m="m", y="y", cluster="id").system()
    g = np.diag([0.6, 0.16, 0.4, 0.16, 0.04])
    g[1, 3] = g[3, 1] = 0.113
    cluster = np.repeat(np.arange(clusters), size)
    x = _normal(seed, 1001, (clusters,))[cluster] + _normal(seed, 1002, (clusters * size,))
    fixed = {"m~1": 0.0, "m~x": 0.6, "y~1": 0.0, "y~m": 0.6, "y~x": 0.2}
    drawn = rows(system, fixed, g, np.diag([0.65, 0.45]), {"x": x}, cluster, int(seed))
    return pd.DataFrame({"id": cluster + 1, "x": x, **drawn})
