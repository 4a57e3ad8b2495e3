"""Write extended.csv, the simulated data set that make_extended.R fits.

    python make_extended.py [folder]

NumPy only, fixed seed. Numbers are written with repr, so that the file holds exactly the simulated doubles.
Groups of columns have truths of their own; see `simulate`. Random effects are u, residuals e.
"""

import sys
from pathlib import Path

import numpy as np

SEED = 24
N_CLUSTERS = 90
COLUMNS = (
    "id", "x", "w", "v", "age", "age10", "site", "tx", "m1", "m2", "y", "mt", "yt", "xc", "mc", "yc", "mv", "yv",
    "y_miss", "m1_miss",
)  # fmt: skip
SITE_EFFECT = {"A": 0.0, "B": 0.4, "C": -0.3}


def root(sd, correlations=()):
    """Cholesky factor of the covariance with these standard deviations; correlations are (i, j, r)."""
    corr = np.eye(len(sd))
    for i, j, r in correlations:
        corr[i, j] = corr[j, i] = r
    return np.linalg.cholesky(corr * np.outer(sd, sd))


# m1: 1, x; m2: 1, x, m1; y: 1, m1, m2, age10
ROOT = root(
    np.array([0.7, 0.5, 0.7, 0.45, 0.4, 0.9, 0.4, 0.4, 0.6]),
    [(0, 1, 0.3), (0, 2, 0.3), (1, 6, 0.4), (3, 7, 0.3), (0, 5, 0.2), (5, 6, 0.2), (1, 3, 0.2)],
)
ROOT_V = root(np.array([0.7, 0.5, 0.45, 0.7, 0.4]), [(0, 1, 0.3), (1, 4, 0.4), (0, 3, 0.2)])  # mv: 1, x, x:v; yv: 1, mv
ROOT_T = root(np.array([0.6, 0.6, 0.4]), [(0, 1, 0.3), (1, 2, 0.3)])  # mt: 1; yt: 1, mt
ROOT_E = root(np.array([1.2, 1.0]), [(0, 1, 0.4)])  # residuals of m1 and m2


def simulate(seed=SEED):
    """Rows as tuples in the order of COLUMNS: 90 clusters of 5 to 12 rows, shuffled; None is missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for j in range(N_CLUSTERS):
        n = int(rng.integers(5, 13))
        w = 1 + rng.standard_normal()
        site = "ABC"[rng.integers(3)]
        tx = int(rng.integers(2))

        x = 0.5 + 0.7 * rng.standard_normal() + rng.standard_normal(n)
        v = 0.5 + rng.standard_normal(n)
        age = 40 + 4 * rng.standard_normal() + 9 * rng.standard_normal(n)
        age10 = (age - 40) / 10

        u = ROOT @ rng.standard_normal(9)
        e = rng.standard_normal((n, 2)) @ ROOT_E.T
        m1 = 0.5 + u[0] + (0.4 + 0.3 * w + u[1]) * x + 0.3 * w + 0.2 * age10 + SITE_EFFECT[site] + e[:, 0]
        m2 = -0.2 + u[2] + (0.3 + u[3]) * x + (0.3 + u[4]) * m1 + e[:, 1]
        y = 1 + u[5] + (0.4 + 0.25 * w + u[6]) * m1 + (0.4 + u[7]) * m2 + 0.2 * x + 0.2 * w + (0.3 + u[8]) * age10
        y = y + SITE_EFFECT[site] / 2 + 1.1 * rng.standard_normal(n)

        u = ROOT_T @ rng.standard_normal(3)
        mt = 0.2 + 0.6 * tx + u[0] + rng.standard_normal(n)
        yt = 0.1 + u[1] + (0.5 + u[2]) * mt + 0.2 * tx + 0.8 * rng.standard_normal(n)

        xc = rng.standard_normal()
        mc = 0.3 + 0.5 * xc + rng.standard_normal()
        yc = 0.2 + 0.6 * rng.standard_normal() + 0.4 * mc + 0.2 * xc + rng.standard_normal(n)

        u = ROOT_V @ rng.standard_normal(5)
        mv = 0.3 + u[0] + (0.4 + u[1]) * x + 0.2 * v + (0.3 + u[2]) * x * v + 0.9 * rng.standard_normal(n)
        yv = 0.2 + u[3] + (0.5 + u[4]) * mv + 0.2 * x + 0.15 * v + rng.standard_normal(n)

        no_y = rng.random(n) < 0.12
        no_m1 = rng.random(n) < np.where(no_y, 0.25, 0.055)
        rows += [
            (f"c{j + 1:02d}", x[k], w, v[k], age[k], age10[k], site, tx, m1[k], m2[k], y[k], mt[k], yt[k], xc, mc,
             yc[k], mv[k], yv[k], None if no_y[k] else y[k], None if no_m1[k] else m1[k])
            for k in range(n)
        ]  # fmt: skip
    return [rows[k] for k in rng.permutation(len(rows))]


def text(value):
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    lines = [",".join(COLUMNS), *(",".join(text(value) for value in row) for row in simulate())]
    (folder / "extended.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
