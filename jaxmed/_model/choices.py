"""Options of a model that are one of a few words."""

from __future__ import annotations

from typing import Literal

Structure = Literal["unstructured", "diagonal", "block"]
Center = Literal["cluster", "none"]
Residuals = Literal["correlated", "independent"]
Intercepts = Literal["independent", "correlated"]
