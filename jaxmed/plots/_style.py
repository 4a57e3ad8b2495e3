"""What the plots share: axes, colours that stay apart in grey, densities, ellipses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmed._support import ArgumentTypeError, FitError, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARK, LIGHT, ACCENT = "#1b4965", "#bcd4e0", "#c8553d"  # apart in grey and to colour-blind eyes
MIDDLE, GREY = "#7d9db0", "#555555"
SEVERAL = (DARK, ACCENT, "#62929e", "#e0a458", GREY, "#9d4edd")
MARKERS = "osD^vP"
MOST = 300  # clusters drawn one by one; of more, so many evenly picked


def make_axes(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """The axes given, or axes of their own; without matplotlib a :class:`jaxmed.FitError` says how to get it."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise FitError("plots need matplotlib; install it with: pip install 'jaxmed[plot]'") from error
    return plt.subplots(layout="constrained", figsize=size)[1]


def check_shown(name: str, value: Any, kind: type, where: str) -> None:
    """Refuse to draw something else (:class:`jaxmed.SpecError`)."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{name} must be {where}; got {type(value).__name__}")


def main_effect(names: Iterable[Any]) -> str:
    """The first indirect effect, or the first of all."""
    known = list(names)
    return str(next((name for name in known if str(name).startswith("indirect")), known[0]))


def plain(text: object) -> str:
    """Text as it is: a dollar sign in the name of a column begins no formula."""
    return str(text).replace("$", r"\$")


def words(effect: str) -> str:
    """The name of an effect in words.

    Examples
    --------
    >>> words("indirect_m1"), words("total")
    ('indirect effect (m1)', 'total effect')
    """
    kind, _, rest = effect.partition("_")
    return f"{kind} effect ({rest})" if rest else f"{kind} effect"


def broken(text: str) -> str:
    """A long label in two lines, the second of which begins with its parenthesis."""
    return text.replace(" (", "\n(", 1) if len(text) > 30 else text


def thin(count: int, most: int = MOST) -> Any:
    """Positions of at most ``most`` of ``count`` things, evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def legend(ax: Axes, **options: Any) -> None:
    """A legend on a white ground, so that what lies under it does not disturb."""
    ax.legend(**{"framealpha": 0.9, "edgecolor": "none", "fontsize": "small"} | options)


def headroom(ax: Axes, factor: float) -> None:
    """Room above what is drawn, for a legend."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + factor * (high - low))


def bins(draws: Any) -> int:
    """Bins of the width of Freedman & Diaconis (1981), 10 to 80 of them."""
    spread = np.subtract(*np.quantile(draws, [0.75, 0.25]))
    if spread <= 0:
        return 10
    width = 2 * spread / len(draws) ** (1 / 3)
    return int(np.clip((draws.max() - draws.min()) / width, 10, 80))


def ellipse(mean: Floats, covariance: Floats, level: float) -> Floats:
    """Contour that holds a share ``level`` of a bivariate normal distribution, shape (2, points).

    The radius is the root of the chi-squared quantile with two degrees of freedom, -2 log(1 - level).

    Examples
    --------
    >>> import numpy as np
    >>> found = ellipse(np.zeros(2), np.eye(2), 0.95)
    >>> np.unique(np.hypot(*found).round(3)).tolist()
    [2.448]
    """
    angle = np.linspace(0, 2 * np.pi, 181)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors * np.sqrt(np.maximum(values, 0.0))
    return mean[:, None] + np.sqrt(-2 * np.log(1 - level)) * axes @ np.stack([np.cos(angle), np.sin(angle)])
