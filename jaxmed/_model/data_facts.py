"""What the compilation of a model has to know of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataFacts:
    """What the compilation of a model has to know of the data.

    Attributes
    ----------
    categories : mapping
        Categorical column -> its categories.
    cluster_level : frozenset of str
        Columns that do not vary within any cluster.
    equal_means : frozenset of str
        Columns with the same mean in every cluster.
    unknown : bool
        Data have not been read: which columns vary within clusters is open, and categories may be, too.
    """

    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cluster_level: frozenset[str] = frozenset()
    equal_means: frozenset[str] = frozenset()
    unknown: bool = False
