"""Whether the closed forms of a fit agree with automatic differentiation of the plain likelihood."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxmed._data import Moments
from jaxmed._inference import Estimates, problem_of
from jaxmed._likelihood import Problem, data_for, derivatives, likelihood, root_and_precision, root_chain
from jaxmed._support import FitError, Floats
from jaxmed._support.runtime import float64

MOST = 16.0  # digits of double precision


class Verification(NamedTuple):
    """Digits to which the closed forms of a fit agree with :func:`jax.grad` and :func:`jax.hessian`.

    Attributes
    ----------
    value : float
        Decimal digits of the log likelihood.
    gradient : float
        Of the gradient in all variance parameters, in units of their standard deviations: 10 digits mean that no entry
        differs by more than 1e-10 standard deviations.
    hessian : float
        Of the Hessian, scaled to a diagonal of ones.
    """

    value: float
    gradient: float
    hessian: float


def verify(fit: Estimates, moments: Moments) -> Verification:
    """Table of :meth:`jaxmed.Fit.verify`."""
    problem = problem_of(fit, moments)
    if problem.totals.clusters != fit.n_clusters:
        raise FitError("this fit holds only some of its clusters; verify a fit of all of them")
    theta = fit.working.theta
    plain = _by_autodiff(problem, theta)
    closed = _by_closed_forms(problem, theta)
    unit = 1 / np.sqrt(np.abs(np.diag(plain[2])))
    return Verification(
        _digits(abs(closed[0] - plain[0]) / (1 + abs(plain[0]))),
        _digits(np.max(np.abs(closed[1] - plain[1]) * unit, initial=0.0)),
        _digits(np.max(np.abs(closed[2] - plain[2]) * unit[:, None] * unit, initial=0.0)),
    )


def _digits(difference: Any) -> float:
    return MOST if difference == 0 else round(float(np.clip(-np.log10(difference), 0.0, MOST)), 1)


def _by_closed_forms(problem: Problem, theta: Floats) -> tuple[float, Floats, Floats]:
    """Value, gradient and Hessian in the optimiser's coordinates."""
    layout = problem.layout
    root, tau = root_and_precision(layout, theta)
    data = data_for("numpy", problem.design.table, problem.counts)
    with np.errstate(all="ignore"):
        found = derivatives.evaluate(layout, root, tau, data)
        slope, bend = root_chain(layout, root, np.arange(layout.n_random), theta[len(layout.free) :], found.gradient)
    return float(found.value), found.gradient @ slope, slope.T @ found.hessian @ slope + bend


@float64
def _by_autodiff(problem: Problem, theta: Floats) -> tuple[float, Floats, Floats]:
    """The same by :func:`jax.grad` and :func:`jax.hessian` of :func:`negative_loglik`, all clusters in one block."""
    import jax

    layout = problem.layout
    data = data_for("numpy", problem.design.table, problem.counts)

    def loss(theta: Any) -> Any:
        return likelihood.negative_loglik(layout, *root_and_precision(layout, theta), data)

    at = jax.numpy.asarray(theta)
    value, gradient = jax.jit(jax.value_and_grad(loss))(at)
    return float(value), np.asarray(gradient), np.asarray(jax.jit(jax.hessian(loss))(at))
