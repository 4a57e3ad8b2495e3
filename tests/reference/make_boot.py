"""Write boot.csv and boot.input.json: 999 bootstrap replicates of three statistics, in NumPy.

The statistics are of 100 pairs drawn with a fixed seed and resampled with replacement: a slope, its square and the
variance of the residuals, skewed and biased enough that the kinds of intervals differ.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
NAMES = ("slope", "square", "variance")


def statistics(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The three statistics and rough standard errors."""
    n = len(x)
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred)
    left = y - y.mean() - slope * centred
    variance = left @ left / n
    error = np.sqrt(variance / (centred @ centred))
    spread = np.sqrt((np.mean(left**4) - variance**2) / n)
    return np.array([slope, slope**2, variance]), np.array([error, 2 * abs(slope) * error, spread])


def main() -> None:
    rng = np.random.default_rng(20060)
    x = rng.normal(size=100)
    y = 0.3 * x + rng.exponential(size=100)
    values, errors = statistics(x, y)
    rows = []
    for _ in range(999):
        chosen = rng.integers(0, 100, 100)
        rows.append(np.concatenate(statistics(x[chosen], y[chosen])))
    columns = [*NAMES, *(f"{name}_se" for name in NAMES)]
    pd.DataFrame(rows, columns=columns).to_csv(HERE / "boot.csv", index=False, float_format="%.17g")
    inside = ~np.eye(100, dtype=bool)
    left = np.stack([statistics(x[keep], y[keep])[0] for keep in inside])
    influence = 99 * (left.mean(axis=0) - left)
    plain = {
        name: {"estimate": values[k], "se": errors[k], "influence": influence[:, k].tolist()}
        for k, name in enumerate(NAMES)
    }
    (HERE / "boot.input.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
