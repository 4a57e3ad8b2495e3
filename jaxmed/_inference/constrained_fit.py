"""Constrained refits: the best fit at which a parameter or an effect has a given value (docs/intervals.md, Profile).

A constrained refit is Newton's method on the Lagrangian F - lambda (g - c) in local coordinates: beta, entries of a
pivoted root R of G = RR', in which a singular G is an interior point, and the residual coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmed._inference import effects
from jaxmed._likelihood import (
    Array,
    Layout,
    Scale,
    Shards,
    block_diagonal,
    free_entries,
    full_evaluation,
    in_log_sds,
    jacobian,
    log_sds_to_variances,
    lower,
    precisions,
    put,
    root_chain,
    triangular,
)
from jaxmed._support import Floats

STEPS = 60  # of a constrained refit
SOLVED = 1e-11  # log likelihood left to gain along the constraint, and the squared miss of it in standard errors
FLAT = 1e-8  # curvature at which a direction counts as flat, relative to the largest
SADDLE = 1e-5  # curvature below minus which it is a saddle
LONGEST = 4.0  # step, in standard errors of coordinates


class Point(NamedTuple):
    """Parameters in local coordinates, as :class:`jaxmed._likelihood.newton.Candidate`, with beta."""

    beta: Floats
    root: Array
    order: Array
    log_sds: Array


class Solved(NamedTuple):
    """A refit with g = ``at``: the minimum F(c), its slope dF/dc, and where it is."""

    at: float
    value: float
    slope: float
    point: Point


class _Local(NamedTuple):
    """F and g around a point, and the Newton step of their Lagrangian in local coordinates.

    ``gain`` is the log likelihood left to gain along the constraint, ``miss`` is g - c and ``multiplier`` is dF/dg
    (``ahead`` after the step), in units of g's standard error; ``drop`` is the slope of F along the step, ``curvature``
    the least along the constraint in coordinates of unit curvature, and ``grip`` how much g moves with these.
    """

    value: float
    miss: float
    multiplier: float
    ahead: float
    step: Floats
    drop: float
    gain: float
    curvature: float
    grip: float
    noise: float


class Profiled(NamedTuple):
    """One quantity g of one fit.

    Attributes
    ----------
    layout, shards, scale
        The model, its data, and the way to the user's scale.
    quantity : callable
        User's values, shape (p + n,) -> g, its gradient and Hessian in them.
    estimate, unit : float
        Of g; the unit is its standard error, or a guess where that is zero.
    is_variance : bool
        Then g > 0, and zeta is followed along its root, where it is smooth.
    best : Solved
        The fit itself.
    """

    layout: Layout
    shards: Shards
    scale: Scale
    quantity: Callable[[Floats], tuple[float, Floats, Floats]]
    estimate: float
    unit: float
    is_variance: bool
    best: Solved


# Coordinates ---------------------------------------------------------------------------------------------------------


def moved(
    layout: Layout, root: Array, order: Array, log_sds: Array, step: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """A step from a point: root and order, pivoted again, residual coordinates, tau, and (free G, variances)."""
    n_free = len(layout.free)
    there = put(np.zeros_like(root), order, lower(layout, step[:n_free]))
    root, order = triangular(layout, root + there, pivot=True)
    log_sds = log_sds + step[n_free:]
    variances = np.concatenate([free_entries(layout, root @ root.T), log_sds_to_variances(layout, log_sds)])
    return root, order, log_sds, precisions(layout, log_sds), variances


def _pulled_back(
    layout: Layout,
    root: Array,
    order: Array,
    log_sds: Array,
    of_f: tuple[Array, Array],
    of_g: tuple[Array, Array],
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Gradient and Hessian of F, given in (beta, G, tau), and of g, in (beta, G, variances), in local coordinates."""
    p, n_free = layout.n_fixed, len(layout.free)
    in_tau, bend_f = root_chain(layout, root, order, log_sds, of_f[0][p:])
    # g is given in variances: the part of G by the same chain, the residual's by its own.
    padded = np.concatenate([of_g[0][p : p + n_free], np.zeros(len(layout.pieces))])
    in_g, bend_g = root_chain(layout, root, order, log_sds, padded)
    in_variances = in_log_sds(layout, log_sds)
    bend = jacobian(lambda at: of_g[0][p + n_free :] @ in_log_sds(layout, at), log_sds)
    in_own = block_diagonal(in_g[:n_free, :n_free], in_variances)
    bend_g = block_diagonal(bend_g[:n_free, :n_free], bend)

    def pull(given: tuple[Array, Array], slope: Array, curvature: Array) -> tuple[Array, Array]:
        whole = block_diagonal(np.eye(p), slope)
        hessian = whole.T @ given[1] @ whole + block_diagonal(np.zeros((p, p)), curvature)
        return given[0] @ whole, hessian

    return pull(of_f, in_tau, bend_f), pull(of_g, in_own, bend_g)


def effect_derivatives(
    plan: effects.EffectIndex, values: Floats, weights: tuple[Floats, ...], row: Floats, unit: Floats
) -> tuple[Floats, Floats, Floats]:
    """A weighted sum of effects, its gradient and Hessian in all parameters; ``unit`` is of their size."""
    value, slope = effects.linear_combinations_and_jacobian(plan, values, weights, row[None])
    return value[0], slope[0], effects.second_derivatives(plan, values, weights, row[None], unit)[0]


# The constrained refit -----------------------------------------------------------------------------------------------


def look(problem: Profiled, point: Point, step: Floats, at: float) -> tuple[Point, _Local]:
    """The point a step away, with the next step from there."""
    layout, scale = problem.layout, problem.scale
    p = layout.n_fixed
    beta = point.beta + step[:p]
    root, order, log_sds, tau, variances = moved(layout, point.root, point.order, point.log_sds, step[p:])
    point = Point(beta, root, order, log_sds)
    full = full_evaluation(layout, root, tau, beta, problem.shards)
    offset = np.concatenate([scale.offset, np.zeros(layout.n_theta)])
    g, slope, bend = problem.quantity(scale.matrix @ np.concatenate([beta, variances]) + offset)
    of_g = slope @ scale.matrix / problem.unit, scale.matrix.T @ bend @ scale.matrix / problem.unit
    (f_1, f_2), (g_1, g_2) = _pulled_back(layout, root, order, log_sds, (full.gradient, full.hessian), of_g)
    miss, value = (g - at) / problem.unit, float(full.value)
    if not (np.isfinite(value) and np.isfinite(miss) and np.all(np.isfinite(f_2)) and np.all(np.isfinite(g_2))):
        return point, _Local(np.inf, np.inf, np.nan, np.nan, 0 * step, np.nan, np.inf, np.nan, 0.0, 0.0)
    diagonal = np.abs(np.diag(f_2))
    size = 1 / np.sqrt(np.maximum(diagonal, FLAT * diagonal.max()))
    f_1, g_1, f_2, g_2 = f_1 * size, g_1 * size, f_2 * size * size[:, None], g_2 * size * size[:, None]
    grip = float(np.linalg.norm(g_1))
    if grip == 0:
        return point, _Local(value, miss, 0.0, 0.0, 0 * step, 0.0, np.inf, 0.0, 0.0, 0.0)
    multiplier = float(f_1 @ g_1) / grip**2
    lagrangian = f_2 - multiplier * g_2
    frame = np.linalg.qr(g_1[:, None], mode="complete")[0]
    onto, along = -miss * g_1 / grip**2, frame[:, 1:]
    curvature, axes = np.linalg.eigh(along.T @ lagrangian @ along)
    axes, steep = along @ axes, np.maximum(np.abs(curvature), FLAT)
    gain = float(np.sum((axes.T @ f_1) ** 2 / steep)) / 2
    moves = -(axes.T @ (f_1 + lagrangian @ onto)) / steep
    # A saddle, as where a variance of zero should grow, has no gradient to leave it by.
    saddle = curvature < -SADDLE
    moves[saddle] = np.where(moves[saddle] < 0, -1, 1) * np.maximum(np.abs(moves[saddle]), 0.1)
    move = onto + axes @ moves
    ahead = multiplier + float(g_1 @ (lagrangian @ move)) / grip**2
    move *= min(1.0, LONGEST / np.linalg.norm(move)) if np.any(move) else 1.0
    noise = 16 * np.finfo(float).eps * float(full.magnitude)
    least = float(curvature[0]) if len(curvature) else 1.0
    return point, _Local(value, miss, multiplier, ahead, move * size, float(f_1 @ move), gain, least, grip, noise)


def solve(problem: Profiled, at: float, start: Point) -> Solved | None:
    """The minimum of F where g = ``at``, by sequential quadratic programming; None if it was not found."""
    point, local = look(problem, start, np.zeros(problem.layout.n_fixed + problem.layout.n_theta), at)
    penalty = 0.0
    for _ in range(STEPS):
        left = local.gain + local.miss**2
        if left < SOLVED and abs(local.multiplier * local.miss) < SOLVED and local.curvature > -SADDLE:
            return Solved(at, local.value, local.multiplier / problem.unit, point)
        if not np.isfinite(left):
            return None
        # F + penalty |g - c| falls along the step; or what is left to do may fall, so that the bend of the constraint
        # does not shorten the last steps.
        penalty = max(penalty, 1.5 * abs(local.multiplier), 1.5 * abs(local.ahead))
        drop = min(local.drop - penalty * abs(local.miss), 0.0)
        share, merit = 1.0, local.value + penalty * abs(local.miss)
        while True:
            there, new = look(problem, point, share * local.step, at)
            fallen = new.value + penalty * abs(new.miss) <= merit + 1e-4 * share * drop + local.noise
            if fallen or (new.gain + new.miss**2 < left / 4 and new.curvature > -SADDLE):
                break
            share /= 3
            if share < 1e-6:
                return None
        point, local = there, new
    return None
