"""The effects of a mediation model, by name: which paths, along which routes from x to y."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple, TypeAlias

Terms: TypeAlias = tuple[tuple[float, tuple[str, ...]], ...]


class Path(NamedTuple):
    """A slope that may depend on moderators: the sum of coefficients, each times a product of moderators.

    Attributes
    ----------
    pieces : tuple of (str, tuple of str)
        Label of a fixed effect, and the columns that multiply it.
    """

    pieces: tuple[tuple[str, tuple[str, ...]], ...]


class Row(NamedTuple):
    """One effect: a weighted sum of expected products of paths, or the covariance of two paths.

    Attributes
    ----------
    name : str
    terms : tuple of (weight, paths)
    kind : {"path", "covariance", "indirect", "total", "contrast", "contextual"}
    suffix : {"", "_within", "_between"}
        Which part of x and the mediators it is of.
    """

    name: str
    terms: Terms
    kind: str
    suffix: str = ""


class Estimands(NamedTuple):
    """The effects of a model by name.

    Attributes
    ----------
    paths : dict of str to Path
    rows : tuple of Row
    moderators : dict of str to tuple of str
        Moderator -> its columns: itself, or the indicators of its categories but the reference.
    """

    paths: dict[str, Path]
    rows: tuple[Row, ...]
    moderators: dict[str, tuple[str, ...]]

    def degree(self, row: Row, moderator: str) -> int:
        """The highest power of a moderator in an effect; 0 where the effect does not depend on it."""
        columns = set(self.moderators[moderator])

        def moved(path: str) -> bool:
            return any(columns & set(by) for _, by in self.paths[path].pieces)

        return max(sum(moved(path) for path in route) for _, route in row.terms)


class Edge(NamedTuple):
    """A path of the model from ``source`` to ``outcome``.

    Attributes
    ----------
    kind : {"a", "b", "c_prime", "d"}
    name : str
        As in effects, ``"a_m1"``.
    source, outcome : str
        Columns.
    contrast : str
        ``"[B]"`` where the source is the indicator of category B, one of several of x; otherwise empty.
    """

    kind: str
    name: str
    source: str
    outcome: str
    contrast: str = ""

    def path(self, part: str = "") -> str:
        """Name of the path, or of its part within or between clusters."""
        return f"{self.name}{part}{self.contrast}"


class Level(NamedTuple):
    """Where effects run: within clusters, between them, or both at once.

    Attributes
    ----------
    suffix : str
        Of the names of indirect and total effects.
    part : {"", "_within", "_between"}
        Part of every path that they run along; of a path that is not split, the whole.
    listed : tuple of str
        Parts of paths that are rows of the table.
    """

    suffix: str
    part: str
    listed: tuple[str, ...]


BOTH = (Level("", "", ("",)),)
SPLIT = (Level("_within", "_within", ("_within",)), Level("_between", "_between", ("_between",)))
ONLY_BETWEEN = (Level("", "_between", ("", "_within", "_between")),)


def effect_rows(
    edges: tuple[Edge, ...],
    routes: Mapping[str, tuple[str, ...]],
    present: Mapping[str, Path],
    levels: tuple[Level, ...],
) -> tuple[Row, ...]:
    """Rows of the table of effects.

    Parameters
    ----------
    edges : tuple of Edge
    routes : mapping
        Name of an indirect effect -> the names of the edges along its way from x to y.
    present : mapping
        Paths that there are, by name.
    levels : tuple of Level
        ``BOTH``, ``SPLIT`` where sources are split, ``ONLY_BETWEEN`` where x varies between clusters alone.
    """
    rows: list[Row] = []
    sums: dict[str, Terms] = {}
    known = {(edge.name, edge.contrast): edge for edge in edges}
    contrasts = tuple(dict.fromkeys(edge.contrast for edge in edges if edge.kind in ("a", "c_prime")))

    def along(name: str, part: str, contrast: str) -> str:
        edge = known.get((name, contrast)) or known[name, ""]
        return edge.path(part) if edge.path(part) in present else edge.path()

    for level in levels:
        for edge in edges:
            rows += [
                Row(edge.path(part), ((1.0, (edge.path(part),)),), "path", part)
                for part in level.listed
                if edge.path(part) in present
            ]
        for contrast in contrasts:
            ways = {
                f"{name}{level.suffix}{contrast}": tuple(along(edge, level.part, contrast) for edge in way)
                for name, way in routes.items()
            }
            ways = {name: way for name, way in ways.items() if all(path in present for path in way)}
            end = f"{level.suffix}{contrast}"
            if level.part != "_between":  # the paths between clusters do not vary
                for one, other in dict.fromkeys(pair for way in ways.values() for pair in combinations(way, 2)):
                    rows.append(
                        Row(_covariance_name(one, other, end), ((1.0, (one, other)),), "covariance", level.part)
                    )
            if len(ways) > 1:
                rows += [Row(name, ((1.0, way),), "indirect", level.part) for name, way in ways.items()]
            if ways:
                sums[f"indirect{end}"] = tuple((1.0, way) for way in ways.values())
                rows.append(Row(f"indirect{end}", sums[f"indirect{end}"], "indirect", level.part))
            direct = along("c_prime", level.part, contrast)
            if ways and direct in present:
                sums[f"total{end}"] = (*sums[f"indirect{end}"], (1.0, (direct,)))
                rows.append(Row(f"total{end}", sums[f"total{end}"], "total", level.part))
            if len(ways) > 1:
                rows += [
                    Row(f"{one} - {other}", ((1.0, first), (-1.0, second)), "contrast", level.part)
                    for (one, first), (other, second) in combinations(ways.items(), 2)
                ]
    return (*rows, *_contextual(edges, present, sums, contrasts))


def _covariance_name(one: str, other: str, end: str) -> str:
    """``cov_ab``; with several mediators ``cov_ab_m1`` and, unless they are a and b of one, ``cov(a_m1, d_m1_m2)``."""
    part, _, contrast = end.partition("[")
    contrast = f"[{contrast}" if contrast else ""
    one, other = (name.removesuffix(contrast).removesuffix(part) for name in (one, other))
    ends = one.removeprefix("a"), other.removeprefix("b")
    return (f"cov_ab{ends[0]}" if ends[0] == ends[1] else f"cov({one}, {other})") + contrast


def _contextual(
    edges: tuple[Edge, ...], present: Mapping[str, Path], sums: Mapping[str, Terms], contrasts: tuple[str, ...]
) -> list[Row]:
    """Between minus within, of every path and of the indirect and total effects."""
    split = [(edge.path(), edge.path("_within"), edge.path("_between")) for edge in edges]
    rows = [
        Row(f"contextual_{name}", ((1.0, (between,)), (-1.0, (within,))), "contextual")
        for name, within, between in split
        if within in present and between in present
    ]
    for name in ("indirect", "total"):
        for contrast in contrasts:
            within, between = f"{name}_within{contrast}", f"{name}_between{contrast}"
            if within in sums and between in sums:
                minus = tuple((-weight, way) for weight, way in sums[within])
                rows.append(Row(f"contextual_{name}{contrast}", (*sums[between], *minus), "contextual"))
    return rows
