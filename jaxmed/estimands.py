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


class Edge(NamedTuple):
    """A path of the model from ``source`` to ``outcome``: ``kind`` a, b, c_prime or d, ``name`` as in effects."""

    kind: str
    name: str
    source: str
    outcome: str


def effect_rows(
    edges: tuple[Edge, ...],
    routes: Mapping[str, tuple[str, ...]],
    present: Mapping[str, Path],
    suffixes: tuple[str, ...],
) -> tuple[Row, ...]:
    """Rows of the table of effects.

    Parameters
    ----------
    edges : tuple of Edge
    routes : mapping
        Name of an indirect effect -> the edges along its way from x to y.
    present : mapping
        Paths that there are, by edge and suffix.
    suffixes : tuple of str
        ``("",)``, or ``("_within", "_between")`` where sources are split.
    """
    rows: list[Row] = []
    sums: dict[str, Terms] = {}
    for suffix in suffixes:
        names = [edge.name + suffix for edge in edges if edge.name + suffix in present]
        along = {name + suffix: tuple(edge + suffix for edge in way) for name, way in routes.items()}
        along = {name: way for name, way in along.items() if all(path in present for path in way)}
        rows += [Row(name, ((1.0, (name,)),), "path", suffix) for name in names]
        if suffix != "_between":  # the paths between clusters do not vary
            for one, other in dict.fromkeys(pair for way in along.values() for pair in combinations(way, 2)):
                name = _covariance_name(one.removesuffix(suffix), other.removesuffix(suffix))
                rows.append(Row(name, ((1.0, (one, other)),), "covariance", suffix))
        if len(along) > 1:
            rows += [Row(name, ((1.0, way),), "indirect", suffix) for name, way in along.items()]
        if along:
            sums[f"indirect{suffix}"] = tuple((1.0, way) for way in along.values())
            rows.append(Row(f"indirect{suffix}", sums[f"indirect{suffix}"], "indirect", suffix))
        if along and f"c_prime{suffix}" in present:
            sums[f"total{suffix}"] = (*sums[f"indirect{suffix}"], (1.0, (f"c_prime{suffix}",)))
            rows.append(Row(f"total{suffix}", sums[f"total{suffix}"], "total", suffix))
        if len(along) > 1:
            rows += [
                Row(f"{one} - {other}", ((1.0, first), (-1.0, second)), "contrast", suffix)
                for (one, first), (other, second) in combinations(along.items(), 2)
            ]
    return (*rows, *_contextual(edges, present, sums))


def _covariance_name(one: str, other: str) -> str:
    """``cov_ab``; with several mediators ``cov_ab_m1`` and, unless they are a and b of one, ``cov(a_m1, d_m1_m2)``."""
    ends = one.removeprefix("a"), other.removeprefix("b")
    return f"cov_ab{ends[0]}" if ends[0] == ends[1] else f"cov({one}, {other})"


def _contextual(edges: tuple[Edge, ...], present: Mapping[str, Path], sums: Mapping[str, Terms]) -> list[Row]:
    """Between minus within, of every path and of the indirect and total effects."""
    split = [(edge.name, f"{edge.name}_within", f"{edge.name}_between") for edge in edges]
    rows = [
        Row(f"contextual_{name}", ((1.0, (between,)), (-1.0, (within,))), "contextual")
        for name, within, between in split
        if within in present and between in present
    ]
    for name in ("indirect", "total"):
        if f"{name}_within" in sums and f"{name}_between" in sums:
            minus = tuple((-weight, way) for weight, way in sums[f"{name}_within"])
            rows.append(Row(f"contextual_{name}", (*sums[f"{name}_between"], *minus), "contextual"))
    return rows
