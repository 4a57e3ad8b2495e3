"""Names and positions of a system's parameters: theta <-> coefficients, G and residual variances, and their scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from jaxmed._data import Design, Totals
from jaxmed._likelihood import linalg
from jaxmed._likelihood.executor import Array, for_loop, jacobian, module_of, put, traced_once
from jaxmed._model import INTERCEPT, System
from jaxmed._support import Floats, lower_root, symmetric

Nested = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Piece:
    """One entry of the residual precision and the cross-products that it weighs.

    Attributes
    ----------
    seen : int
        Index of the set of equations that are observed in these rows, in :attr:`Layout.seen`.
    first, second : int
        Equations e <= f.
    rows : nested tuples of int, (term, d_e, d_f)
        Rows of the table whose sum over terms is the cross-product of ``[X_e y_e]`` and ``[X_f y_f]``.
    """

    seen: int
    first: int
    second: int
    rows: Nested


@dataclass(frozen=True)
class Layout:
    """Where everything sits in the arrays of one system; hashable, so that compiled programs are shared by it.

    Fixed effects are stacked equation by equation: p in all, of which q vary between clusters, in E equations.
    Residuals of a row are independent between equations except for some pairs. Rows are sorted by which of the
    equations that share residuals they are observed in: a set S of equations has the residual covariance Sigma_SS, and
    its precision Sigma_SS^-1 weighs the cross-products over these rows, entry by entry.

    Attributes
    ----------
    sizes : tuple of int
        Predictors per equation.
    random : tuple of int
        For each random effect, the position of its column among the p fixed effects (ascending).
    free : tuple of (int, int)
        The free entries (row >= column) of G, row by row.
    pairs : tuple of (int, int)
        Pairs of equations (e > f) with correlated residuals.
    seen : tuple of tuple of int
        The sets S; with no pairs these are the single equations in their order.
    pieces : tuple of Piece
        Entries of the precisions of all sets, tau in what follows; with no pairs one per equation, 1 / sigma_e^2.
    reml : bool
        Restricted likelihood.
    """

    sizes: tuple[int, ...]
    random: tuple[int, ...]
    free: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[int, int], ...]
    seen: tuple[tuple[int, ...], ...]
    pieces: tuple[Piece, ...]
    reml: bool

    @cached_property
    def n_equations(self) -> int:
        """Number of equations, E."""
        return len(self.sizes)

    @cached_property
    def n_fixed(self) -> int:
        """Number of fixed effects, p."""
        return sum(self.sizes)

    @cached_property
    def n_random(self) -> int:
        """Number of random effects, q."""
        return len(self.random)

    @cached_property
    def n_theta(self) -> int:
        """Number of variance parameters: free entries of G, residual variances and covariances."""
        return len(self.free) + self.n_residual

    @cached_property
    def n_residual(self) -> int:
        """Number of residual variances and covariances."""
        return self.n_equations + len(self.pairs)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First fixed effect of each equation."""
        return tuple(int(start) for start in np.cumsum((0, *self.sizes[:-1])))

    @cached_property
    def free_index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the free entries of G."""
        row, col = np.array(self.free, dtype=int).reshape(-1, 2).T
        return row, col

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Random effects that may covary, if only by way of others: G is zero outside these blocks."""
        first = list(range(self.n_random))
        for row, col in self.free:
            low, high = sorted((first[row], first[col]))
            first = [low if at == high else at for at in first]
        return tuple(tuple(k for k in range(self.n_random) if first[k] == at) for at in sorted(set(first)))

    def leading(self, block: tuple[int, ...]) -> int:
        """Random effects at the head of a block whose place among its rows matters, since the root has zeros there.

        All others covary with every one before them, so that they may change places.
        """
        known = set(self.free)
        partial = [k for k in range(len(block)) if any((block[k], block[at]) not in known for at in range(k))]
        return partial[-1] + 1 if partial else 0

    def allowed(self, block: tuple[int, ...]) -> Floats:
        """1 where a root of a block of G may have an entry, 0 where the zeros of G forbid it, shape (size, size)."""
        mask = np.ones((len(block), len(block)))
        for row in range(self.leading(block)):
            mask[row] = [col <= row and (block[row], block[col]) in self.free for col in range(len(block))]
        return mask

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """Equation of each random effect."""
        return tuple(int(e) for e in np.searchsorted(np.cumsum(self.sizes), self.random, side="right"))

    def random_of(self, equation: int) -> list[int]:
        """Positions among the q random effects of those of one equation."""
        return [k for k, owner in enumerate(self.owners) if owner == equation]


def make_layout(design: Design, reml: bool) -> Layout:
    """Layout of a system over its data."""
    system = design.system
    labels = system.labels
    random = tuple(labels.index(label) for label in system.random_labels)
    groups = system.residual_groups
    seen: list[tuple[int, ...]] = []
    pieces: list[Piece] = []
    for group in groups:
        found = {tuple(e for e in group if e in block.equations) for block in design.blocks}
        for equations in sorted(found - {()}):
            for e in equations:
                for f in equations[equations.index(e) :]:
                    rows = design.rows(e, f, frozenset(group), frozenset(equations))
                    nested = tuple(tuple(tuple(int(at) for at in row) for row in term) for term in rows)
                    pieces.append(Piece(len(seen), e, f, nested))
            seen.append(equations)
    sizes = tuple(len(equation.predictors) for equation in system.equations)
    return Layout(sizes, random, system.random_pairs, system.residual_pairs, tuple(seen), tuple(pieces), reml)


def count_rows(layout: Layout, system: System, totals: Totals) -> tuple[int, ...]:
    """Rows of each set of equations in ``layout.seen``."""
    counts = []
    for equations in layout.seen:
        group = next(set(group) for group in system.residual_groups if set(equations) <= set(group))
        inside = [rows for found, rows in totals.blocks.items() if group & set(found) == set(equations)]
        counts.append(sum(inside))
    return tuple(counts)


def rows_by_cluster(layout: Layout, design: Design) -> Floats:
    """Rows of each set of equations in ``layout.seen`` by cluster, shape (n_sets, J)."""
    found = np.zeros((len(layout.seen), design.n_clusters))
    for s, equations in enumerate(layout.seen):
        group = next(set(group) for group in design.system.residual_groups if set(equations) <= set(group))
        for block in design.blocks:
            if group & set(block.equations) == set(equations):
                found[s] += block.products[0]
    return found


# Residual covariance -------------------------------------------------------------------------------------------------


def log_sds_to_variances(layout: Layout, log_sds: Array) -> Array:
    """The optimiser's residual coordinates -> residual variances by equation, and then covariances by pair.

    The coordinates are log standard deviations by equation and, by pair, entries t of the rows (t_1, ..., t_k, 1) that,
    made unit vectors, are a root of the residual correlations: any numbers will do.
    """
    xp, n = module_of(log_sds), layout.n_equations
    if not layout.pairs:
        return xp.exp(log_sds[:n]) ** 2
    row, col = _pairs(layout)
    unit, deviations = _unit_rows(layout, log_sds)
    covariance = (unit @ unit.T) * deviations[:, None] * deviations
    return xp.concatenate([xp.diagonal(covariance), covariance[row, col]])


def _pairs(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    row, col = np.array(layout.pairs, dtype=int).reshape(-1, 2).T
    return row, col


def _unit_rows(layout: Layout, log_sds: Array) -> tuple[Array, Array]:
    """A root of the residual correlations with rows of length one, and the standard deviations."""
    xp, n = module_of(log_sds), layout.n_equations
    rows = put(xp.eye(n, dtype=log_sds.dtype), _pairs(layout), log_sds[n:])
    return rows / xp.sqrt(xp.sum(rows**2, axis=1))[:, None], xp.exp(log_sds[:n])


def in_log_sds(layout: Layout, log_sds: Array) -> Array:
    """Jacobian of :func:`log_sds_to_variances`, shape (n_residual, n_residual).

    With unit rows r_e of length l_e before, Sigma_ef = s_e s_f r_e'r_f: d r_e / dt = (e_k - r_e r_ek) / l_e for the
    entry t of row e in column k.
    """
    xp, n = module_of(log_sds), layout.n_equations
    if not layout.pairs:
        return xp.diag(2 * xp.exp(log_sds) ** 2)
    row, col = _pairs(layout)
    unit, deviations = _unit_rows(layout, log_sds)
    covariance = (unit @ unit.T) * deviations[:, None] * deviations
    first, second = np.concatenate([np.arange(n), row]), np.concatenate([np.arange(n), col])
    # d Sigma_ef / d log s_g = (1 if g = e) + (1 if g = f) times Sigma_ef.
    counts = (np.arange(n) == first[:, None]) * 1.0 + (np.arange(n) == second[:, None])
    in_deviations = covariance[first, second][:, None] * counts
    # The diagonal entry of a row is its deviation times 1 / l_e, so l_e = 1 / r_ee.
    length = 1 / xp.diagonal(unit)
    moved = (xp.eye(n, dtype=log_sds.dtype)[col] - unit[row] * unit[row, col][:, None]) / length[row][:, None]
    moved = moved * deviations[row][:, None]  # of row e of the root of Sigma, one for each entry t
    root = unit * deviations[:, None]
    own = (first[:, None] == row) * (root[second] @ moved.T) + (second[:, None] == row) * (root[first] @ moved.T)
    return xp.concatenate([in_deviations, own], axis=1)


def variances_to_precisions(layout: Layout, variances: Array) -> Array:
    """Residual variances and covariances -> tau, the entries of the precisions of all sets, shape (n_pieces,)."""
    xp = module_of(variances)
    if not layout.pairs:
        return 1 / variances
    parts = []
    for precision in _precision_matrices(layout, variances):
        k = len(precision)
        parts += [precision[i, j] for i in range(k) for j in range(i, k)]
    return xp.stack(parts)


def _precision_matrices(layout: Layout, variances: Array) -> list[Array]:
    """Sigma_SS^-1 of every set S."""
    xp, n = module_of(variances), layout.n_equations
    row, col = _pairs(layout)
    covariance = put(xp.diag(variances[:n]), (row, col), variances[n:])
    covariance = put(covariance, (col, row), variances[n:])
    found = []
    for equations in layout.seen:
        at = np.array(equations)
        half, _ = linalg.half_solve(covariance[np.ix_(at, at)], xp.eye(len(at), dtype=variances.dtype))
        found.append(half.T @ half)
    return found


def precision_chain(layout: Layout, variances: Array, gradient: Array) -> tuple[Array, Array]:
    """Jacobian of tau in the residual variances and covariances, and sum_c gradient_c times the Hessian of tau_c.

    With T = Sigma_SS^-1 and symmetric E_a = d Sigma / d v_a: dT = -T E_a T, d2T = T E_a T E_b T + T E_b T E_a T.
    """
    xp, n = module_of(variances), layout.n_residual
    if not layout.pairs:
        return xp.diag(-1 / variances**2), xp.diag(2 * gradient / variances**3)
    units = np.zeros((n, layout.n_equations, layout.n_equations))
    row, col = _pairs(layout)
    at_diagonal, at_pairs = np.arange(layout.n_equations), np.arange(layout.n_equations, n)
    units[at_diagonal, at_diagonal, at_diagonal] = 1.0
    units[at_pairs, row, col] = units[at_pairs, col, row] = 1.0
    slopes, bend, first = [], xp.zeros((n, n), variances.dtype), 0
    for equations, precision in zip(layout.seen, _precision_matrices(layout, variances), strict=True):
        at, k = np.array(equations), len(equations)
        moved = precision @ units[:, at][:, :, at]  # T E_a
        upper = np.triu_indices(k)
        slopes.append(-(moved @ precision)[:, upper[0], upper[1]].T)
        entries = gradient[first : first + len(upper[0])]
        weight = put(xp.zeros((k, k), variances.dtype), upper, entries)
        weight = (weight + weight.T) / 2
        # tr(Gamma (T E_a T E_b T + T E_b T E_a T)), Gamma symmetric with the gradient in its entries.
        bend = bend + 2 * xp.einsum("aij,bji->ab", moved, moved @ (precision @ weight))
        first += len(upper[0])
    return xp.concatenate(slopes), (bend + bend.T) / 2


def precisions(layout: Layout, log_sds: Array) -> Array:
    """The optimiser's residual coordinates -> tau."""
    return variances_to_precisions(layout, log_sds_to_variances(layout, log_sds))


def log_precision(layout: Layout, tau: Array, n_rows: Array) -> Array:
    """sum_S n_S log|Sigma_SS^-1|, from the entries of the precisions."""
    xp = module_of(tau, n_rows)
    if not layout.pairs:
        return xp.sum(n_rows * xp.log(tau))
    total = xp.zeros((), tau.dtype)
    for s, (_, matrix) in enumerate(_matrices_of(layout, tau)):
        nothing = xp.zeros((len(matrix), 0), tau.dtype)
        total = total + n_rows[s] * linalg.half_solve(matrix, nothing)[1]
    return total


def _matrices_of(layout: Layout, tau: Array) -> Iterator[tuple[slice, Array]]:
    """The places of every precision among tau, and the matrix."""
    xp, at = module_of(tau), 0
    for equations in layout.seen:
        row, col = np.triu_indices(len(equations))
        own = slice(at, at + len(row))
        upper = put(xp.zeros((len(equations),) * 2, tau.dtype), (row, col), tau[own])
        yield own, put(upper, (col, row), tau[own])
        at += len(row)


def log_precision_slopes(layout: Layout, tau: Array) -> Array:
    """Derivatives of log|Sigma_SS^-1| of every set S in tau, shape (n_sets, n_pieces)."""
    xp = module_of(tau)
    if not layout.pairs:
        return xp.diag(1 / tau)
    found = xp.zeros((len(layout.seen), len(layout.pieces)), tau.dtype)
    for s, (own, matrix) in enumerate(_matrices_of(layout, tau)):
        row, col = np.triu_indices(len(matrix))
        # d log|T| = tr(T^-1 dT), in which an entry off the diagonal stands twice.
        found = put(found, (s, own), linalg.inverse(matrix)[row, col] * np.where(row == col, 1.0, 2.0))
    return found


def log_precision_curvature(layout: Layout, tau: Array, n_rows: Array) -> Array:
    """Hessian of :func:`log_precision` in tau: -n_S tr(T^-1 E_c T^-1 E_d) for entries c, d of one precision T."""
    xp = module_of(tau, n_rows)
    if not layout.pairs:
        return xp.diag(-n_rows / tau**2)
    found = xp.zeros((len(layout.pieces),) * 2, tau.dtype)
    for s, (own, matrix) in enumerate(_matrices_of(layout, tau)):
        row, col = np.triu_indices(len(matrix))
        units = np.zeros((len(row), len(matrix), len(matrix)))
        units[np.arange(len(row)), row, col] = units[np.arange(len(row)), col, row] = 1.0
        moved = linalg.inverse(matrix) @ units
        found = put(found, (own, own), -n_rows[s] * xp.einsum("cij,dji->cd", moved, moved))
    return found


# Covariance of the random effects ------------------------------------------------------------------------------------


def lower(layout: Layout, entries: Array) -> Array:
    """Free entries -> ``(q, q)`` lower-triangular matrix with zeros elsewhere."""
    row, col = layout.free_index
    return put(module_of(entries).zeros((layout.n_random, layout.n_random), entries.dtype), (row, col), entries)


def free_entries(layout: Layout, matrix: Array) -> Array:
    """Symmetric or lower-triangular ``(q, q)`` matrix -> its free entries."""
    row, col = layout.free_index
    return matrix[row, col]


@partial(traced_once, static=1)
def root_and_precision(layout: Layout, theta: Array) -> tuple[Array, Array]:
    """Optimiser's parameters -> root L of G = LL', ``(q, q)``, and residual precisions tau, ``(n_pieces,)``.

    theta holds the free entries of L and then the residual coordinates (:func:`log_sds_to_variances`). L is free, so a
    singular G is an interior point.
    """
    n_free = len(layout.free)
    return lower(layout, theta[:n_free]), precisions(layout, theta[n_free:])


@partial(traced_once, static=1)
def root_chain(layout: Layout, root: Array, order: Array, log_sds: Array, gradient: Array) -> tuple[Array, Array]:
    """Derivatives of the core parameters (free entries of G = RR', tau) in the root and the residual coordinates.

    Parameters
    ----------
    root : Array, shape (q, q)
    order : Array, shape (q,)
        The free entry (i, k) of a step is added to entry (order[i], k) of the root.
    log_sds : Array, shape (n_residual,)
    gradient : Array, shape (n_core,)
        Of some function f in the core parameters.

    Returns
    -------
    jacobian : Array, shape (n_core, n)
        Core parameters by coordinates: dG = e_i R_k' + R_k e_i' for entry (i, k), dtau by :func:`precisions`.
    curvature : Array, shape (n, n)
        sum_c (df/dcore_c) d2core_c: the part of the Hessian that is due to the map.
    """
    xp, n_free = module_of(root, gradient), len(layout.free)
    row, col = layout.free_index
    moved = xp.eye(layout.n_random)[order[row]][:, :, None] * root[:, col].T[:, None, :]
    moved = moved + moved.swapaxes(1, 2)
    weight = lower(layout, gradient[:n_free])
    weight = weight + weight.T
    in_g = weight[order[row][:, None], order[row]] * (col[:, None] == col)
    in_tau, bend = precision_chain(layout, log_sds_to_variances(layout, log_sds), gradient[n_free:])
    slope = in_log_sds(layout, log_sds)
    bend = slope.T @ bend @ slope + jacobian(lambda at: (gradient[n_free:] @ in_tau) @ in_log_sds(layout, at), log_sds)
    return block_diagonal(moved[:, row, col].T, in_tau @ slope), block_diagonal(in_g, bend)


def block_diagonal(one: Array, other: Array) -> Array:
    """Two matrices along the diagonal of a larger one."""
    xp = module_of(one, other)
    corners = xp.zeros((one.shape[0], other.shape[1])), xp.zeros((other.shape[0], one.shape[1]))
    return linalg.quarters(one, corners[0], corners[1], other)


def triangular(layout: Layout, root: Array, *, pivot: bool) -> tuple[Array, Array]:
    """Rotate a root of G (G = RR' stays) so that its rows are triangular, block by block of G.

    Modified Gram-Schmidt on the rows. With ``pivot`` the row with the largest remainder comes first, after those rows
    whose place matters (:meth:`Layout.leading`); returns the root and the order of its rows.
    """
    xp = module_of(root)
    result, order = xp.zeros_like(root), xp.arange(layout.n_random)
    for block in layout.blocks:
        at = np.array(block)
        head = layout.leading(block)
        own, chosen = _triangular(root[np.ix_(at, at)], pivot=pivot, head=head)
        if head:
            own = own * layout.allowed(block)  # zero but for rounding
        result = put(result, np.ix_(at, at), own)
        order = put(order, at, xp.asarray(at)[chosen])
    return result, order


@traced_once
def _triangular(root: Array, *, pivot: bool, head: int) -> tuple[Array, Array]:
    """:func:`triangular` of one block, a loop: unrolled it would cost half a second of compilation wherever it is."""
    xp, size = module_of(root), len(root)

    def step(k: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        rest, left, columns, order = state
        squares = xp.where(left, xp.sum(rest**2, axis=1), -1.0)
        row = xp.argmax(squares) if pivot else k
        if pivot and head:
            row = xp.where(k < head, k, row)
        norm = xp.sqrt(xp.maximum(squares[row], 0.0))
        direction = rest[row] / xp.where(norm > 0, norm, 1.0)
        column = xp.where(left, xp.sum(rest * direction, axis=1), 0.0)
        left = left & (xp.arange(size) != row)
        rest = xp.where(left[:, None], rest - column[:, None] * direction, 0.0)
        return rest, left, put(columns, (slice(None), k), column), put(order, k, row)

    state = (root, xp.ones(size, dtype=bool), xp.zeros_like(root), xp.arange(size))
    _, _, columns, order = for_loop(size, step, state)
    return columns, order


@dataclass(frozen=True)
class Scale:
    """The affine map from estimates on working terms to the user's scale.

    Working terms are ``(value - shift) / scale``. With u = value: beta = ``linear`` beta* + ``offset``,
    G = A G* A' for the random part A of ``linear``, sigma_ef = s_e s_f sigma_ef*. Written for the vector
    (beta, free entries of G, residual variances and covariances): user = ``matrix`` working + (offset, 0).

    Attributes
    ----------
    linear : ndarray, shape (p, p)
    offset : ndarray, shape (p,)
    matrix : ndarray, shape (p + n_theta, p + n_theta)
    loglik : float
        What to add to the working log likelihood to get the user's.
    """

    linear: Floats
    offset: Floats
    matrix: Floats
    loglik: float

    def carried(self, values: Floats) -> Floats:
        """Estimates on the user's scale, of some on the working scale, shape (..., p + n)."""
        found = values @ self.matrix.T
        found[..., : len(self.offset)] += self.offset
        return found


def make_scale(design: Design, layout: Layout, used: Sequence[int]) -> Scale:
    """Scale of a system's estimates over its data, with ``used`` rows per equation.

    Exact, also for REML, whose constant depends on X.
    """
    system, shift, scale = design.system, design.shift, design.scale
    p, n_free = layout.n_fixed, len(layout.free)
    linear, offset = np.zeros((p, p)), np.zeros(p)
    loglik = 0.0
    for e, equation in enumerate(system.equations):
        first = layout.starts[e]
        at = {name: first + k for k, name in enumerate(equation.predictors)}
        unit = scale[equation.outcome]
        for name, k in at.items():
            linear[k, k] = unit / scale.get(name, 1.0)
            if name != INTERCEPT and shift[name] != 0:
                linear[at[INTERCEPT], k] = -linear[k, k] * shift[name]
        if shift[equation.outcome] != 0:
            offset[at[INTERCEPT]] = shift[equation.outcome]
        loglik -= used[e] * np.log(unit)
    if layout.reml:
        loglik += np.sum(np.log(np.diagonal(linear)))
    block = linear[np.ix_(layout.random, layout.random)]
    matrix = np.zeros((p + layout.n_theta, p + layout.n_theta))
    matrix[:p, :p] = linear
    for k, pair in enumerate(layout.free):
        moved = block @ symmetric(layout.n_random, [pair], 1.0) @ block.T
        matrix[p : p + n_free, p + k] = [moved[i, j] for i, j in layout.free]
    units = [scale[outcome] for outcome in system.outcomes]
    products = [*(unit**2 for unit in units), *(units[e] * units[f] for e, f in layout.pairs)]
    matrix[p + n_free :, p + n_free :] = np.diag(products)
    return Scale(linear, offset, matrix, float(loglik))


def theta_of(layout: Layout, values: Floats) -> Floats:
    """The optimiser's parameters of some (free entries of G, residual variances, residual covariances), shape (n,).

    Inverse of :func:`lower` and :func:`log_sds_to_variances`; G may be singular, and all are on the working scale.
    """
    n_free, n = len(layout.free), layout.n_equations
    root = lower_root(symmetric(layout.n_random, layout.free, values[:n_free]))
    variances = values[n_free : n_free + n]
    correlations = np.eye(n)
    for value, (row, col) in zip(values[n_free + n :], layout.pairs, strict=True):
        correlations[row, col] = correlations[col, row] = value / np.sqrt(variances[row] * variances[col])
    unit = lower_root(correlations)
    entries = [root[row, col] for row, col in layout.free]
    return np.array([*entries, *np.log(variances) / 2, *(unit[row, col] / unit[row, row] for row, col in layout.pairs)])
