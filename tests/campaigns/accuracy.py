"""Claim: estimates, standard errors and log likelihood of hard data are right to six digits, or the fit says otherwise.

    python tests/campaigns/accuracy.py [NAME ...] [--seed 1]       all kinds of hard data, or some
    python tests/campaigns/accuracy.py starts [--starts 200]       one optimum from random starts, or several

The reference is the marginal likelihood of the rows in decimal arithmetic of 80 digits: V^-1 by Woodbury in G itself,
derivatives by differences with steps of 1e-25 standard errors (right to 20 digits and more), the optimum by Newton
steps from jaxmed's estimates, the joint covariance from its Hessian. Where the optimum in G is no covariance matrix
the Newton steps are taken among matrices of the rank that jaxmed found, and the gradient must not lead away from them.

For every kind of hard data and every degree of difficulty a line says the error of the log likelihood, the largest
error of an estimate in its standard errors, the largest relative error of a standard error and that of the joint
standard error of the indirect effect. A case fails if an error exceeds what ``LIMITS`` allows and the fit said nothing:
it converged, was not refused and did not warn that it is imprecise.

``starts`` asks :func:`jaxmed.optima` of some forty data sets; a fit that converged below the best optimum is a failure.
"""

from __future__ import annotations

import argparse
import decimal
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

import jaxmed as jm

SPEC = jm.Mediation("x", "m", "y", "id")
STEP = Decimal("1e-25")
LIMITS = {"loglik": 1e-5, "estimate": 1e-4, "se": 1e-4, "indirect_se": 1e-4}
Case = tuple[Any, ...]  # what, data, model and, where x is shifted, the same data without the shift
decimals = np.vectorize(lambda value: Decimal(float(value)), otypes=[object])  # exact
floats = np.vectorize(float, otypes=[float])


# The exact likelihood ------------------------------------------------------------------------------------------------


def eliminate(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solution (q, k, ...) of ``matrix`` (q, q, ...) by Gauss and Jordan, and the pivots (q, ...)."""
    whole = np.concatenate([matrix, right], axis=1)
    pivots = []
    for k in range(len(matrix)):
        pivots.append(np.copy(whole[k, k]))
        whole[k] = whole[k] / pivots[-1]
        for other in range(len(matrix)):
            if other != k:
                whole[other] = whole[other] - whole[other, k] * whole[k]
    return whole[:, len(matrix) :], np.array(pivots, dtype=object)


def inverse(matrix: np.ndarray) -> np.ndarray:
    return eliminate(matrix, decimals(np.eye(len(matrix))))[0]


class Exact:
    """The profiled negative log likelihood of a system of plain columns."""

    def __init__(self, data: pd.DataFrame, system: jm.System, reml: bool) -> None:
        data = data.sort_values(system.cluster, kind="stable")
        first = np.flatnonzero(np.diff(data[system.cluster], prepend=np.nan) != 0)
        self.system, self.reml, self.rows = system, reml, len(data)
        self.products = []  # by equation: [X y]'[X y] of each cluster
        for equation in system.equations:
            columns = [
                decimals(np.ones(len(data)) if name == "1" else data[name])
                for name in (*equation.predictors, equation.outcome)
            ]
            self.products.append(np.array([[np.add.reduceat(a * b, first) for a in columns] for b in columns]))

    def __call__(self, g: np.ndarray, variances: np.ndarray) -> tuple[Decimal, np.ndarray, np.ndarray]:
        """The negative log likelihood, beta and X'V^-1X."""
        p, q, clusters = len(self.system.labels), len(g), self.products[0].shape[2]
        zero = Decimal(0)
        total = np.full((p + 1, p + 1), zero, dtype=object)
        a, b = np.full((q, q, clusters), zero, dtype=object), np.full((q, p + 1, clusters), zero, dtype=object)
        at, of = 0, 0
        deviance = zero
        for equation, products, variance in zip(self.system.equations, self.products, variances, strict=True):
            k, own = len(equation.predictors), [equation.predictors.index(name) for name in equation.random]
            columns, effects = [*range(at, at + k), p], range(of, of + len(own))
            weighted = products / variance
            total[np.ix_(columns, columns)] += weighted.sum(axis=2)
            a[np.ix_(effects, effects)] = weighted[np.ix_(own, own)]
            b[np.ix_(effects, columns)] = weighted[own]
            deviance += self.rows * variance.ln()
            at, of = at + k, of + len(own)
        matrix = np.array([[(a[i] * g[:, j, None]).sum(axis=0) for j in range(q)] for i in range(q)])
        for k in range(q):
            matrix[k, k] += 1  # I + Z'R^-1Z G
        solved, pivots = eliminate(matrix, b)
        moved = np.array([(g[i, :, None, None] * solved).sum(axis=0) for i in range(q)])
        for i in range(p + 1):
            total[i] -= (b[:, i, None] * moved).sum(axis=(0, 2))
        information = total[:p, :p]
        beta, own = eliminate(information, total[:p, p:])
        beta = beta[:, 0]
        deviance += np.prod(pivots).ln() + total[p, p] - total[p, :p] @ beta
        degrees = len(self.products) * self.rows
        if self.reml:
            degrees -= p
            deviance += np.prod(own).ln()
        two_pi = Decimal("6.283185307179586476925286766559005768394338798750211641949889184615632812572417997256069651")
        return (deviance + degrees * two_pi.ln()) / 2, beta, information


def differences(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: np.ndarray) -> tuple[Any, ...]:
    """Values, Jacobian (values, n) and the Hessian of the first value."""
    moves = np.diag(step)
    base, n = function(at), len(at)
    one = [function(at + move) for move in moves]
    hessian = np.empty((n, n), dtype=object)
    for i in range(n):
        for j in range(i + 1):
            both = function(at + moves[i] + moves[j])[0]
            hessian[i, j] = hessian[j, i] = (both - one[i][0] - one[j][0] + base[0]) / step[i] / step[j]
    jacobian = (np.array(one).T - base[:, None]) / step
    jacobian[0] -= step * np.diag(hessian) / 2
    return base, jacobian, hessian


class Optimum:
    """The exact optimum next to a fit, with the joint covariance of (beta, free entries of G, residual variances)."""

    def __init__(self, exact: Exact, fit: jm.Fit) -> None:
        self.exact, self.free = exact, fit.free
        self.p, self.q = len(exact.system.labels), len(exact.system.random_labels)
        core = decimals(fit.values[self.p :])
        step = decimals(np.sqrt(np.abs(np.diag(fit.joint)[self.p :]))) * STEP
        found = self.newton(self.in_g, core, step) if np.all(step > 0) else None
        self.boundary = found is None or min(self.pivots_of(found[0])) <= 0
        if self.boundary:
            self.order, self.rank = pivoted(fit.random_cov.to_numpy())
            found = self.newton(self.in_root, self.root_of(fit), None)
        if found is None:
            raise ArithmeticError("no optimum near the estimates")
        at, base, jacobian, hessian = found
        beta, core = jacobian[1 : self.p + 1], jacobian[self.p + 1 :]
        self.away = 0.0
        if self.boundary:
            at = base[self.p + 1 :]
            size = np.abs(floats(at)).max()
            _, in_g, curved = differences(self.in_g, at, np.full(len(at), Decimal(size) * STEP))
            self.away = self.steepest(floats(base[self.p + 1 :]), floats(in_g[0]))
            if not fit.reduced_rank:  # the definition: the inverse Hessian in G
                beta, core, hessian = in_g[1 : self.p + 1], decimals(np.eye(len(at))), curved
        inner = inverse(hessian)
        self.values = base[1:]
        self.loglik = -base[0]
        cross = beta @ inner
        _, _, information = exact(*self.split(base[self.p + 1 :]))
        self.joint = np.block(
            [
                [inverse(information) + cross @ beta.T, cross @ core.T],
                [core @ cross.T, core @ inner @ core.T],
            ]
        )

    def split(self, core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """G and residual variances."""
        g = np.full((self.q, self.q), Decimal(0), dtype=object)
        for value, (row, col) in zip(core, self.free, strict=False):
            g[row, col] = g[col, row] = value
        return g, core[len(self.free) :]

    def in_g(self, core: np.ndarray) -> np.ndarray:
        """f, beta and the free entries of G and residual variances at these."""
        value, beta, _ = self.exact(*self.split(core))
        return np.array([value, *beta, *core], dtype=object)

    def in_root(self, at: np.ndarray) -> np.ndarray:
        """The same at entries of a root of G with ``rank`` columns, rows in pivoted order, and residual variances."""
        root = np.full((self.q, self.rank), Decimal(0), dtype=object)
        row, col = np.tril_indices(self.q, 0, self.rank)
        root[self.order[row], col] = at[: len(row)]
        g = root @ root.T if self.rank else np.full((self.q, self.q), Decimal(0), dtype=object)
        return self.in_g(np.array([*(g[entry] for entry in self.free), *at[len(row) :]], dtype=object))

    def root_of(self, fit: jm.Fit) -> np.ndarray:
        g = fit.random_cov.to_numpy()[np.ix_(self.order, self.order)]
        left, root = g.copy(), np.zeros((self.q, self.rank))
        for k in range(self.rank):
            root[k:, k] = left[k:, k] / np.sqrt(left[k, k])
            left -= np.outer(root[:, k], root[:, k])
        return decimals(np.concatenate([root[np.tril_indices(self.q, 0, self.rank)], fit.residual_var]))

    def newton(self, function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: np.ndarray | None) -> Any:
        """The point, with what :func:`differences` finds there; None without a minimum near."""
        try:
            for _ in range(12):
                now = np.full(len(at), np.max(np.abs(at)) * STEP, dtype=object) if step is None else step
                base, jacobian, hessian = differences(function, at, now)
                move, pivots = eliminate(hessian, -jacobian[0][:, None])
                if min(pivots) <= 0:
                    return None
                if -(jacobian[0] @ move[:, 0]) / 2 < Decimal("1e-36"):
                    return at, base, jacobian, hessian
                at = at + move[:, 0]
        except decimal.InvalidOperation:  # the logarithm of what is negative: away from all covariance matrices
            return None
        return None

    def pivots_of(self, core: np.ndarray) -> np.ndarray:
        g, _ = self.split(core)
        return eliminate(g, g)[1] if self.q else np.ones(1)

    def steepest(self, core: np.ndarray, gradient: np.ndarray) -> float:
        """The least derivative of f along v v' with v in the null space of G, unit curvature aside; 0 or more."""
        g, slope = np.zeros((self.q, self.q)), np.zeros((self.q, self.q))
        for value, change, (row, col) in zip(core, gradient, self.free, strict=False):
            g[row, col] = g[col, row] = value
            slope[row, col] = slope[col, row] = change / (1 + (row != col))
        null = np.linalg.eigh(g)[1][:, : self.q - self.rank]
        return float(np.linalg.eigvalsh(null.T @ slope @ null)[0])


def pivoted(g: np.ndarray) -> tuple[np.ndarray, int]:
    """Order of the rows of a pivoted root, and its rank; for columns of unit scale."""
    left, order = g.copy(), []
    for _ in range(len(g)):
        k = max(set(range(len(g))) - set(order), key=lambda k: left[k, k])
        if left[k, k] < 1e-9:
            break
        order.append(k)
        left -= np.outer(left[:, k], left[:, k]) / left[k, k]
    rest = [k for k in range(len(g)) if k not in order]
    return np.array([*order, *rest], dtype=int), len(order)


# Hard data -----------------------------------------------------------------------------------------------------------


def drawn(seed: int, sizes: Any = (8,) * 40, sd: Any = (0.6, 0.4, 0.6, 0.4, 0.4), last: Any = None) -> pd.DataFrame:
    """Rows of the 1-1-1 model with independent effects of m~1, m~x, y~1, y~m, y~x; ``last`` maps them to others."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(len(sizes), 5)) * sd
    u = u if last is None else last(u)
    at = np.repeat(np.arange(len(sizes)), sizes)
    x, e_m, e_y = rng.normal(size=(3, len(at)))
    m = u[at, 0] + (0.5 + u[at, 1]) * x + e_m
    return pd.DataFrame({"id": at, "x": x, "m": m, "y": u[at, 2] + (0.4 + u[at, 3]) * m + (0.2 + u[at, 4]) * x + e_y})


def on_target(make: Callable[[float], pd.DataFrame], spec: jm.Mediation, target: float, reml: bool) -> pd.DataFrame:
    """Data whose optimum has this smallest eigenvalue of the correlations: bisection between 0 (singular) and 1."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        g = fitted(make(middle), spec, reml).random_cov.to_numpy()
        unit = 1 / np.sqrt(np.maximum(np.diag(g), 1e-300))
        found = np.linalg.eigvalsh(g * unit * unit[:, None])[0]
        if abs(found / target - 1) < 0.5:
            break
        low, high = (middle, high) if found < target else (low, middle)
    return make(middle)


def collinear(seed: int, reml: bool) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    data = drawn(seed)
    noise = rng.normal(size=len(data))
    for sd in (1e-1, 1e-2, 1e-3, 1e-4, 5e-5, 2e-5, 1.2e-5, 1e-5, 1e-6):
        yield (
            f"sd of c given x {sd:.1e}",
            data.assign(c=data["x"] + sd * noise),
            jm.Mediation("x", "m", "y", "id", covariates=["c"]),
        )


def near_singular(seed: int, reml: bool) -> Iterator[Case]:
    def make(t: float) -> pd.DataFrame:
        return drawn(seed, last=lambda u: np.column_stack([u[:, :4], 0.4 * u[:, 1] - 0.5 * u[:, 3] + t * u[:, 4]]))

    for target in 10.0 ** -np.arange(2, 13, 2):
        yield f"eigenvalue {target:.0e}", on_target(make, SPEC, target, reml), SPEC
    yield "singular", make(0.0), SPEC


def correlated(seed: int, reml: bool) -> Iterator[Case]:
    spec = jm.Mediation("x", "m", "y", "id", random={"m": ["x"], "y": ["m"]})
    for sign in (1, -1):

        def make(t: float, sign: int = sign) -> pd.DataFrame:
            mixed = lambda u: np.column_stack([u[:, :3] * [0, 1, 0], sign * u[:, 1] + t * u[:, 3], 0 * u[:, 4]])  # noqa: E731
            return drawn(seed, last=mixed)

        for left in 10.0 ** -np.arange(1, 10, 2):
            yield f"correlation {sign:+} (1 - {left:.0e})", on_target(make, spec, left, reml), spec
        yield f"correlation {sign:+}", make(0.0), spec


def ratio(seed: int, reml: bool) -> Iterator[Case]:
    for power in (2, 4, 6, 8, 10):
        sd = 10.0 ** (power / 2)
        yield f"intercept of y 1e{power}", drawn(seed, sd=(0.6, 0.4, sd, 0.4, 0.4)), SPEC
    for power in (2, 4, 6, 7, 8, 10):
        sd = 10.0 ** (power / 2)
        yield f"slope of m 1e{power}", drawn(seed, sd=(0.6, 0.4, 0.6, sd, 0.4)), SPEC


def far(seed: int, reml: bool) -> Iterator[Case]:
    data = drawn(seed)
    for power in range(2, 12, 2):
        shifted = data.assign(x=data["x"] + 10.0**power)
        yield f"x + 1e{power} sds", shifted, SPEC, shifted.assign(x=shifted["x"] - 10.0**power)


def units(seed: int, reml: bool) -> Iterator[Case]:
    data = drawn(seed)
    for power in (-12, -6, 6, 12):
        scaled = data.assign(x=data["x"] * 10.0**power, m=data["m"] / 10.0**power, y=data["y"] * 10.0 ** (power / 2))
        yield f"x 1e{power}, m 1e{-power}, y 1e{power // 2}", scaled, SPEC


def single_rows(seed: int, reml: bool) -> Iterator[Case]:
    for one in (40, 400):
        yield f"{one} clusters of 1 beside 40 of 8", drawn(seed, (1,) * one + (8,) * 40), SPEC


def giant(seed: int, reml: bool) -> Iterator[Case]:
    for rows in (1_000, 10_000, 100_000):
        yield f"one of {rows} beside 40 of 8", drawn(seed, (rows,) + (8,) * 40), SPEC


def dyads(seed: int, reml: bool) -> Iterator[Case]:
    spec = jm.Mediation("x", "m", "y", "id", random={"m": ["1"], "y": ["1", "m"]})
    for clusters in (100, 1_000, 10_000):
        yield f"{clusters} of 2", drawn(seed, (2,) * clusters, sd=(1, 0, 1, 0.8, 0)), spec


def few(seed: int, reml: bool) -> Iterator[Case]:
    for clusters in (12, 8, 6):
        yield f"{clusters} of 20", drawn(seed, (20,) * clusters), SPEC


HARD: dict[str, Callable[[int, bool], Iterator[Case]]] = {
    one.__name__: one
    for one in (collinear, near_singular, correlated, ratio, far, units, single_rows, giant, dyads, few)
}


def fitted(data: pd.DataFrame, spec: jm.Mediation, reml: bool = True) -> jm.Fit:
    """Warnings are told from the fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.ConvergenceWarning)
        return jm.fit(data, spec, reml=reml)


def compared(
    reml: bool, data: pd.DataFrame, spec: jm.Mediation, plain: pd.DataFrame | None = None
) -> tuple[str, dict[str, float]]:
    """What the fit says, and its errors; with ``plain`` of what a shift of x leaves as it is."""
    try:
        fit = fitted(data, spec, reml)
    except jm.DataError as error:
        return f"refused: {error}", {}
    if not fit.converged:
        return fit.message, {}
    near = fit if plain is None else fitted(plain, spec, reml)
    best = Optimum(Exact(data if plain is None else plain, fit.system, reml), near)
    said = "converged" + (", singular" if fit.singular else "") + (", imprecise" if fit.imprecise else "")
    said += ", exactly singular" if best.boundary and not fit.singular else ""
    said += f", f falls by {best.away:.1e} beyond" if best.away < -1e-6 else ""
    error = floats([max(entry, Decimal(0)).sqrt() for entry in np.diag(best.joint)])
    known = (error > 0) & [plain is None or "~1" not in label for label in fit.labels]
    se = np.sqrt(np.diag(fit.joint))
    a, b = (fit.labels.index(label) for label in ("m~x", "y~m"))
    slope = np.zeros(len(error))
    slope[a], slope[b] = best.values[b], best.values[a]
    slope[[k for k, label in enumerate(fit.labels) if label in ("m~x~~y~m", "y~m~~m~x")]] = 1.0
    indirect = float((decimals(slope) @ best.joint @ decimals(slope)).sqrt())
    return said, {
        "loglik": abs(float(Decimal(fit.loglik) - best.loglik)),
        "estimate": float(np.max(np.abs(floats(decimals(fit.values) - best.values))[known] / error[known])),
        "se": float(np.max(np.abs(se[known] / error[known] - 1))),
        "indirect_se": abs(fit.effects().loc["indirect", "se"] / indirect - 1),
    }


def hard(names: list[str], seed: int) -> int:
    failures = 0
    for name in names:
        for reml in (True, False):
            for what, *case in HARD[name](seed, reml):
                said, errors = compared(reml, *case)
                failed = any(value > LIMITS[of] for of, value in errors.items()) and "imprecise" not in said
                failures += failed
                numbers = "  ".join(f"{of} {value:.0e}" for of, value in errors.items())
                verdict = "FAILED " if failed else ""
                print(f"{verdict}{name}, {'REML' if reml else 'ML'}, {what}: {numbers}  [{said}]", flush=True)
    return failures


# Random starts -------------------------------------------------------------------------------------------------------


def start_data(seed: int) -> Iterator[Case]:
    """Data sets of few clusters, with singular optima, centred with a free covariance of the intercepts, and others."""
    for k in range(6):
        yield f"6 of 8, no. {k}", drawn(seed + k, (8,) * 6), SPEC
    for k in range(6):
        yield f"12 of 4, no. {k}", drawn(seed + k, (4,) * 12), SPEC
    for k in range(6):
        yield f"singular, no. {k}", drawn(seed + k, last=lambda u: u * [1, 1, 1, 1, 0]), SPEC
    for k in range(6):
        yield f"centred, no. {k}", drawn(seed + k, (5,) * 30), jm.Mediation("x", "m", "y", "id", center="cluster")
    for name in ("near_singular", "ratio", "single_rows"):
        yield from ((f"{name}: {what}", data, spec) for what, data, spec in HARD[name](seed, True))


def starts(seed: int, count: int) -> int:
    """Fits that converged below the best optimum."""
    missed = several = 0
    for what, data, spec in start_data(seed):
        fit = fitted(data, spec)
        if not fit.converged:
            print(f"{what}: {fit.message.partition(';')[0]}", flush=True)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jm.ConvergenceWarning)
            table = jm.optima(fit, count, seed=seed)
        below = (fit.loglik - table["loglik"]).round(5).tolist()
        failed = below[0] < 0
        missed += failed
        several += len(table) > 1
        ends = ", ".join(f"{n} at {-gap + 0:+.5f}" for n, gap in zip(table["starts"], below, strict=True))
        print(
            f"{'FAILED ' if failed else ''}{what}: {fit.message.partition(':')[0]}; of {count + 1} starts, log "
            f"likelihood beside the fit's: {ends}; {count + 1 - table['starts'].sum()} not converged",
            flush=True,
        )
    print(f"{several} data sets with several optima")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*HARD], metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--starts", type=int, default=200)
    asked = parser.parse_args()
    decimal.getcontext().prec = 80
    if asked.names == ["starts"]:
        print(f"{starts(asked.seed, asked.starts)} failures")
    else:
        print(f"{hard(asked.names, asked.seed)} failures")


if __name__ == "__main__":
    main()
