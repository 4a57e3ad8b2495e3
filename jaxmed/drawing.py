"""What all plots share: colours, and axes to draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxmed.errors import FitError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARK, LIGHT, ACCENT = "#1b4965", "#bcd4e0", "#c8553d"  # apart in grey and to colour-blind eyes
SEVERAL = (DARK, ACCENT, "#62929e", "#e0a458", "#555555", "#9d4edd")
MARKERS = "osD^vP"


def axes(ax: Axes | None) -> Axes:
    """The axes given, or new ones.

    Raises
    ------
    FitError
        matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise FitError("plots need matplotlib; install it with: pip install 'jaxmed[plot]'") from error
    return plt.subplots(layout="constrained")[1]
