"""Write the simulated data sets that make_reference.R fits.

    python make_data.py [folder]

NumPy only. Values are rounded before they are written, so the files are the data: nothing depends on more digits
than they show.
"""

import sys
from pathlib import Path

import numpy as np

UNBALANCED_SEED = 6
SINGULAR_SEED = 1


def unbalanced(seed=UNBALANCED_SEED):
    """Rows (id, x, m, y) of the 1-1-1 model: x far from zero, unequal clusters, some y missing, rows shuffled.

    Coefficients and random effects, in the order m~1, m~x, y~1, y~m, y~x, are stated at x = 50 and m = 20; residual sd
    is 2 for m and 3 for y. Intercepts and slopes are correlated enough that the model with uncorrelated random
    effects, at x = 0 and m = 0, has an interior optimum too.
    """
    rng = np.random.default_rng(seed)
    beta = np.array([20.0, 0.30, 24.0, 0.50, 0.20])
    sd = np.array([5.0, 0.25, 5.0, 0.30, 0.25])
    corr = np.eye(5)
    for i, j, r in [(0, 1, 0.4), (0, 2, 0.3), (1, 3, 0.5), (1, 4, -0.2), (2, 3, 0.4), (2, 4, 0.1)]:
        corr[i, j] = corr[j, i] = r
    root = np.linalg.cholesky(corr * np.outer(sd, sd))

    rows = []
    for j in range(60):
        n = rng.integers(3, 16)
        m0, a, y0, b, c = beta + root @ rng.standard_normal(5)
        x = np.round(50 + 4 * rng.standard_normal() + 9.2 * rng.standard_normal(n), 2)
        m = np.round(m0 + a * (x - 50) + 2.0 * rng.standard_normal(n), 4)
        y = np.round(y0 + b * (m - 20) + c * (x - 50) + 3.0 * rng.standard_normal(n), 4)
        missing = rng.random(n) < 0.08
        rows += [(f"s{j + 1:02d}", f"{x[k]:.2f}", f"{m[k]:.4f}", "" if missing[k] else f"{y[k]:.4f}") for k in range(n)]
    return [rows[k] for k in rng.permutation(len(rows))]


def singular(seed=SINGULAR_SEED):
    """Rows of a 1-1-1 model whose path b is the same in every cluster; residual sd 1.2 for m and 0.8 for y."""
    rng = np.random.default_rng(seed)
    rows = []
    for j in range(40):
        m0, y0 = 0.7 * rng.standard_normal(2)
        a = 0.6 + 0.4 * rng.standard_normal()
        x = np.round(rng.standard_normal(6), 4)
        m = np.round(m0 + a * x + 1.2 * rng.standard_normal(6), 4)
        y = np.round(y0 + 0.5 * m + 0.2 * x + 0.8 * rng.standard_normal(6), 4)
        rows += [(str(j + 1), f"{x[k]:.4f}", f"{m[k]:.4f}", f"{y[k]:.4f}") for k in range(6)]
    return rows


def write(path, rows):
    lines = [",".join(("id", "x", "m", "y")), *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    write(folder / "unbalanced.csv", unbalanced())
    write(folder / "singular.csv", singular())
