"""Errors that jaxmed raises, and the status codes a fit carries."""

from __future__ import annotations

import sys
import warnings
from enum import IntEnum
from pathlib import Path

LONGEST = 1400  # characters of a message
PACKAGE = Path(__file__).parents[1]


class JaxmedError(Exception):
    """Base of every error that jaxmed raises on purpose; what a long message quotes is cut in the middle."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_cut(message))


class SpecError(JaxmedError, ValueError):
    """The model asked for contradicts itself: unknown option, repeated name, circular equations."""


class DataError(JaxmedError, ValueError):
    """The data cannot be read or cannot answer the model: missing column, text, too few clusters, collinearity."""


class FitError(JaxmedError, RuntimeError):
    """The computation asked for is not available from this fit."""


class ArgumentTypeError(SpecError, TypeError):
    """An argument has a type that it cannot have."""


class DataTypeError(DataError, TypeError):
    """Data are of a type that cannot be read."""


class WriteError(FitError, OSError):
    """A file cannot be written; ``errno`` and ``filename`` as of the system's error."""

    def __str__(self) -> str:
        return str(self.args[0])


class DesignWarning(UserWarning):
    """The data do not identify the whole model: some coefficients were fixed, and the fit went on."""


class ConvergenceWarning(UserWarning):
    """The fit did not converge, or its numbers have few correct digits, no standard errors or too few clusters."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line that called jaxmed, however deep in it the reason was found."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def is_own(error: BaseException) -> bool:
    """Whether an error of a kind that data cannot cause was raised by a line of jaxmed: a mistake in it.

    A function of another package that is written in C leaves no line of its own, so that the kind of error counts too.
    """
    own = isinstance(error, (AssertionError, AttributeError, LookupError, NameError))
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return own and last is not None and Path(last.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def _cut(message: str) -> str:
    """The message, of which one quoted value may take most: begin and end say what it is and what helps."""
    half = (LONGEST - 7) // 2
    return message if len(message) <= LONGEST else f"{message[:half]} [...] {message[-half:]}"


class Status(IntEnum):
    """How the optimiser ended. Integers survive ``vmap``; messages say what happened and what helps.

    Examples
    --------
    >>> Status(0).message
    'converged: Newton decrement below tolerance and Hessian positive definite'
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    STALLED = 2
    NOT_FINITE = 3

    @property
    def message(self) -> str:
        """One sentence for people."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged: Newton decrement below tolerance and Hessian positive definite",
    Status.MAX_ITERATIONS: (
        "not converged: the iteration limit was reached; raise max_iter if you lowered it, else the model is probably "
        "too rich for the data: try fewer random effects or covariance='diagonal'"
    ),
    Status.STALLED: (
        "not converged: no step improved the likelihood although the gradient is not zero; the likelihood is flat or "
        "not identified here, try fewer random effects"
    ),
    Status.NOT_FINITE: (
        "not converged: the likelihood is not finite at the starting values; check for extreme values in the data"
    ),
}
