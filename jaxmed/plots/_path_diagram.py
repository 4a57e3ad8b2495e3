"""The path diagram of a mediation model, with estimates and intervals on its arrows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmed._inference import estimands_of
from jaxmed._model import Edge, Mediation
from jaxmed._results import Fit, decimals, middle, rounded
from jaxmed.plots._style import DARK, GREY, LIGHT, check_shown, make_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
HALF = (0.13, 0.1)  # of a box, in the units of the diagram
WRAP = 12  # letters of a name in a line of a box


def path_diagram(fit: Fit, level: float = 0.95, at: Mapping[str, Any] | None = None, *, ax: Axes | None = None) -> Axes:
    """Boxes and arrows with path estimates and their intervals; a dot marks a path that varies between clusters.

    Moderators stand in dashed boxes and point to the paths that they move; such paths are shown at one value of them.

    Parameters
    ----------
    fit : Fit
        Of a :class:`jaxmed.Mediation`.
    level : float
    at : dict, optional
        One value of each moderator; by default the mean, or the first value.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    FitError
        The model is not a mediation model; matplotlib is not installed.
    SpecError
        Moderators or values that the model does not have.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> [text.get_text() for text in jm.plots.path_diagram(fit).texts][:3]
    ['x', 'm', 'y']
    """
    check_shown("fit", fit, Fit, "what jaxmed.fit returns")
    estimands = estimands_of(fit)
    spec: Any = fit.spec
    values = {**middle(fit), **(at or {})}
    table = fit.effects(level=level, at=values or None)
    if isinstance(table.index, pd.MultiIndex):
        table = table[~table.index.get_level_values(0).duplicated()].droplevel(list(range(1, table.index.nlevels)))
    places = _places(spec)
    ax = make_axes(ax, (6.0, 4.0))
    ax.set_axis_off()
    for name, place in places.items():
        _box(ax, name, place)
    middles = {}
    every = spec.edges_in(fit.facts)
    for edge in spec.edges:
        own = [one for one in every if one.name == edge.name]
        parts = [one.path(part) for one in own for part in ("", "_within", "_between") if one.path(part) in table.index]
        labels = [label for part in parts for label, _ in estimands.paths[part].pieces]
        varies = any(label in fit.system.random_labels for label in labels)
        text = "\n".join(_label(_short(part), table.loc[part]) for part in parts)
        middles[edge.name] = _arrow(ax, spec, edge, places, text, varies)
    foot = _moderators(ax, spec, places, middles)
    lines = _notes(fit, table, values)
    note = ax.text(0.5, foot - 0.16, "\n".join(lines), ha="center", va="top", fontsize="small", color="black")
    note.set_in_layout(False)  # a long line must not press the diagram together
    heights = [y for _, y in places.values()]
    ax.set(xlim=(-0.2, 1.2), ylim=(foot - 0.18 - 0.085 * len(lines), max(heights) + HALF[1] + 0.06))
    return ax


def _places(spec: Mediation) -> dict[str, Point]:
    """Centres of the boxes: x left, y right, serial mediators in a row above, parallel ones above and below."""
    mediators = spec.mediators
    count = len(mediators)
    if count == 1:
        between = [(0.5, 0.8)]
    elif spec.serial:
        between = [(float(h), 0.95) for h in np.linspace(0.13, 0.87, count)]
    else:
        above = [(0.5, 0.75 * (k + 1)) for k in range(-(-count // 2))][::-1]
        below = [(0.5, -0.75 * (k + 1)) for k in range(count // 2)]
        between = [*above, *below]
    return {spec.x: (0.0, 0.0), **dict(zip(mediators, between, strict=True)), spec.y: (1.0, 0.0)}


def _wrapped(name: str) -> str:
    """A long name over at most two lines."""
    text = name if len(name) <= WRAP else f"{name[:WRAP]}\n{name[WRAP : 2 * WRAP]}"
    return plain(text if len(name) <= 2 * WRAP else f"{text[:-1]}…")


def _box(ax: Axes, name: str, place: Point, dashed: bool = False) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (w, h) = place, HALF
    ax.add_patch(
        FancyBboxPatch(
            (x - w + 0.02, y - h + 0.02),
            2 * w - 0.04,
            2 * h - 0.04,
            boxstyle="round,pad=0.02",
            facecolor="white" if dashed else LIGHT,
            edgecolor=GREY if dashed else DARK,
            linestyle="--" if dashed else "-",
            linewidth=1.2,
        )
    )
    size = "medium" if len(name) <= 7 else "small"
    ax.text(x, y, _wrapped(name), ha="center", va="center", fontsize=size, color="black")


def _rim(centre: Point, towards: Point) -> Point:
    """Where the straight line from the centre of a box towards a point leaves the box."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    shares = [half / abs(d) for half, d in zip(HALF, (dx, dy), strict=True) if d]
    share = min([*shares, 1.0])
    return centre[0] + share * dx, centre[1] + share * dy


def _arrow(ax: Axes, spec: Mediation, edge: Edge, places: dict[str, Point], text: str, varies: bool) -> Point:
    """An arrow with its label; returns where the label stands."""
    from matplotlib.patches import FancyArrowPatch

    source, target = places[edge.source], places[edge.outcome]
    bow = _bow(spec, edge)
    start, end = (_rim(source, target), _rim(target, source)) if not bow else _top(source, target)
    style: Any = {"arrowstyle": "-|>", "mutation_scale": 13, "color": DARK, "linewidth": 1.4}
    ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={-bow}", shrinkA=0, shrinkB=2, **style))
    # arc3 is a quadratic curve, whose control point lies off the middle of the straight line.
    dx, dy = end[0] - start[0], end[1] - start[1]
    control = (start[0] + dx / 2 - bow * dy, start[1] + dy / 2 + bow * dx)

    def along(share: float) -> Point:
        weights = (1 - share) ** 2, 2 * share * (1 - share), share**2
        x, y = (sum(w * p[k] for w, p in zip(weights, (start, control, end), strict=True)) for k in (0, 1))
        return x, y

    at = along(_share(spec, edge))
    if varies:
        ax.plot(*along(0.1), marker="o", markersize=5, color=DARK, linestyle="none")
    ax.text(
        *at,
        plain(text),
        ha="center",
        va="center",
        fontsize="small",
        color="black",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )
    return at


def _bow(spec: Mediation, edge: Edge) -> float:
    """Bend of an arrow: one between mediators that are not neighbours passes over those between them."""
    if edge.kind != "d":
        return 0.0
    order = spec.mediators
    apart = order.index(edge.outcome) - order.index(edge.source)
    return 0.0 if apart == 1 else 0.25 + 0.1 * apart


def _top(source: Point, target: Point) -> tuple[Point, Point]:
    return (source[0], source[1] + HALF[1]), (target[0], target[1] + HALF[1])


def _share(spec: Mediation, edge: Edge) -> float:
    """Where along its arrow a label stands, so that labels of crossing arrows keep apart."""
    if not spec.serial or edge.kind not in ("a", "b"):
        return 0.5
    order = spec.mediators
    rank = order.index(edge.outcome if edge.kind == "a" else edge.source) / (len(order) - 1)
    return 0.5 - 0.2 * rank if edge.kind == "a" else 0.7 - 0.2 * rank


def _label(path: str, row: pd.Series, between: str = "\n") -> str:
    """Estimate and interval, with the second digit of the standard error as the last."""
    digits = decimals([row["se"]], 2)
    estimate, low, high = (rounded(row[name], digits) for name in ("estimate", "ci_lower", "ci_upper"))
    return f"{path} = {estimate}{between}[{low}, {high}]" if low else f"{path} = {estimate}"


def _short(path: str) -> str:
    """``a_m1`` stands on the arrow to m1, so that a is enough; ``c_prime`` is written c'."""
    kind = "c′" if path.startswith("c_prime") else path[0]
    path, bracket, contrast = path.partition("[")
    part = next((part for part in ("within", "between") if path.endswith(f"_{part}")), "")
    return (f"{kind} {part}" if part else kind) + bracket + contrast


def _moderators(ax: Axes, spec: Mediation, places: dict[str, Point], middles: dict[str, Point]) -> float:
    """Dashed boxes of the moderators with dashed arrows to the paths they move; returns where the diagram ends."""
    from matplotlib.patches import FancyArrowPatch

    lowest = min(y for _, y in places.values()) - HALF[1]
    highest = max(y for _, y in places.values())
    kinds = {edge.name: edge.kind for edge in spec.edges}
    taken = dict.fromkeys(("left", "right", "below"), 0)
    foot = lowest
    for name, paths in spec.moderators:
        moved = {kinds[path] for path in paths}
        side = "left" if moved == {"a"} else "right" if moved == {"b"} else "below"
        if spec.serial:
            side = "below"
        k = taken[side]
        taken[side] += 1
        if side == "below":
            place = (0.5 + (0.0, -0.33, 0.33)[k % 3], lowest - 0.35 - 0.3 * (k // 3))
        else:
            place = (0.0 if side == "left" else 1.0, highest - 0.26 * k)
        _box(ax, name, place, dashed=True)
        foot = min(foot, place[1] - HALF[1])
        for path in paths:
            x, y = middles[path]
            across, up = place[0] - x, place[1] - y
            share = min([*(half / abs(d) for half, d in zip((0.12, 0.09), (across, up), strict=True) if d), 0.9])
            patch: Any = {"arrowstyle": "-|>", "mutation_scale": 10, "color": GREY, "linestyle": "--", "shrinkA": 0}
            ax.add_patch(FancyArrowPatch(_rim(place, (x, y)), (x + share * across, y + share * up), **patch))
    return foot


def _notes(fit: Fit, table: pd.DataFrame, values: dict[str, Any]) -> list[str]:
    """What stands below the diagram: the effects, and at which values of moderators."""
    shown = [name for name in table.index if name.startswith(("cov_ab", "indirect", "total")) and " - " not in name]
    kept = [name for name in shown if name.startswith(("indirect", "total"))] if len(shown) > 4 else shown
    lines = [plain(_label(name, table.loc[name], " ")) for name in kept]
    if values:
        given = ", ".join(f"{name} = {v if isinstance(v, str) else f'{v:.3g}'}" for name, v in values.items())
        lines.insert(0, plain(f"at {given}:"))
    if len(fit.system.random_labels):
        lines.append("● varies between clusters")
    return lines
