"""Draw jaxmed/datasets/schools.csv: pupils in schools, from a known population (tests/reference/make_schools.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import jaxmed as jm
from jaxmed._simulation.simulation import rows

SCHOOLS = 90
SYSTEM = jm.System(
    [
        jm.Equation("morale", ["1", "training"], level=2),
        jm.Equation("motivation", ["1", "support", "climate", "support:climate", "training"], ["1", "support"]),
        jm.Equation("effort", ["1", "motivation", "support"], ["1", "support"]),
        jm.Equation(
            "achievement",
            ["1", "motivation", "effort", "support", "morale", "age", "sector[private]", "sector[church]"],
            ["1", "motivation"],
        ),
    ],
    cluster="school",
)
PARAMS = {
    "morale~1": 0.0,
    "morale~training": 0.8,
    "motivation~1": 0.2,
    "motivation~support": 0.5,
    "motivation~climate": 0.2,
    "motivation~support:climate": 0.2,
    "motivation~training": 0.3,
    "effort~1": 0.0,
    "effort~motivation": 0.3,
    "effort~support": 0.4,
    "achievement~1": -2.6,
    "achievement~motivation": 0.5,
    "achievement~effort": 0.3,
    "achievement~support": 0.2,
    "achievement~morale": 0.4,
    "achievement~age": 0.2,
    "achievement~sector[private]": 0.3,
    "achievement~sector[church]": 0.1,
}
RANDOM_SD = np.array([0.7, 0.35, 0.6, 0.35, 0.7, 0.35])
RANDOM_CORRELATION = np.eye(6)
RANDOM_CORRELATION[1, 5] = RANDOM_CORRELATION[5, 1] = 0.5
RESIDUAL_COV = np.diag([0.6, 1.0, 1.1, 0.9])


def draw(seed: int = 2) -> pd.DataFrame:
    """The data set."""
    rng = np.random.default_rng(seed)
    size = rng.integers(6, 17, SCHOOLS)
    school = np.repeat(np.arange(SCHOOLS), size)
    n = len(school)
    sector = rng.choice(["public", "private", "church"], SCHOOLS, p=[0.5, 0.3, 0.2])[school]
    exogenous = {
        "training": rng.integers(0, 2, SCHOOLS).astype(float)[school],
        "climate": rng.normal(0, 1, SCHOOLS).round(2)[school],
        "age": rng.integers(10, 17, n).astype(float),
        "support": (rng.normal(0, 0.7, SCHOOLS)[school] + rng.normal(0, 1, n)).round(2),
        "sector[private]": (sector == "private").astype(float),
        "sector[church]": (sector == "church").astype(float),
    }
    g = RANDOM_CORRELATION * np.outer(RANDOM_SD, RANDOM_SD)
    drawn = rows(SYSTEM, PARAMS, g, RESIDUAL_COV, exogenous, school, seed)
    table = pd.DataFrame({"school": school + 1, "sector": sector, **exogenous, **drawn}).round(3)
    table = table.astype({"training": int, "age": int})
    table.loc[rng.random(n) < 0.05, "achievement"] = np.nan
    columns = ["school", "sector", "training", "climate", "morale", "age", "support"]
    return table[[*columns, "motivation", "effort", "achievement"]]


if __name__ == "__main__":
    draw().to_csv(Path(jm.__file__).parent / "datasets" / "schools.csv", index=False)
