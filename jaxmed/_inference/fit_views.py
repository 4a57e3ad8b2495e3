"""What a fit holds, in groups: how the optimiser ended, and which data were used."""

from __future__ import annotations

from typing import NamedTuple


class Optimizer(NamedTuple):
    """How the optimiser ended.

    Attributes
    ----------
    status : int
        See :class:`jaxmed.Status`.
    message : str
        What it means, and what helps.
    n_iter : int
        Newton steps.
    grad_norm : float
        Norm of the scaled gradient at the estimates.
    decrement : float
        Newton decrement: about what one more step would gain in log likelihood.
    trace : tuple of (int, float, float)
        Stage, negative log likelihood and Newton decrement by iteration, on the working scale.
    """

    status: int
    message: str
    n_iter: int
    grad_norm: float
    decrement: float
    trace: tuple[tuple[int, float, float], ...]


class Sample(NamedTuple):
    """The data of a fit.

    Attributes
    ----------
    rows : int
        Rows read.
    used : dict of str to int
        Outcome -> rows that count in its equation (of an equation of level 2, clusters).
    dropped : int
        Rows that count in no equation.
    clusters : int
    cluster_sizes : (int, float, int)
        Smallest, mean and largest number of stacked rows per cluster.
    missing : dict of str to int
        Column -> missing values.
    filled : dict of str to int
        Column -> rows that were filled in with the value of their cluster.
    patterns : dict of str to int
        Columns observed together -> rows.
    """

    rows: int
    used: dict[str, int]
    dropped: int
    clusters: int
    cluster_sizes: tuple[int, float, int]
    missing: dict[str, int]
    filled: dict[str, int]
    patterns: dict[str, int]
