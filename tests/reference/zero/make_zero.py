"""Fit the models of cases.json by a dense likelihood, compare with R.json, write a JSON file for each case.

    JAXMED_DATA=folder python make_zero.py [case ...]

NumPy, SciPy and pandas, nothing of jaxmed; run make_zero.R first. Data files are looked for in the folder JAXMED_DATA,
then in jaxmed/datasets.

For each cluster V_j = Z G Z' + R densely, with a row of X for each equation that a data row enters. The fixed effects
are profiled out (GLS). REML is Harville's without log|X'X|, ML - log|X'V^-1X| / 2 + p log(2 pi) / 2, as in glmmTMB and
lme4. G = L L' with the intercepts first, so that a zero covariance is a zero of L; the residual covariance within a
data row has a factor of the same kind. BFGS with the analytic gradient from several starts, then Newton steps. At a
singular G the last diagonal of L is 0; covariances that rest on a second derivative are then left out.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

FOLDER = Path(__file__).parent
N_STARTS = 6
LOG2PI = np.log(2 * np.pi)


def read_data(case):
    folders = [os.environ.get("JAXMED_DATA", ""), FOLDER.parents[2] / "jaxmed" / "datasets"]
    return pd.read_csv(next(path for path in (Path(f) / case["data"] for f in folders) if path.exists()))


def value_of(data, term, cluster):
    if term == "1":
        return np.ones(len(data))
    kind, column = term.rstrip(")").split("(")
    means = data.groupby(cluster)[column].transform("mean")
    return (means if kind == "between" else data[column] - means).to_numpy(float)


class Dense:
    """Log likelihood of a case, and its gradient, at parameters theta (free elements of the two factors)."""

    def __init__(self, case, reml):
        data, equations = read_data(case), case["equations"]
        self.reml = reml
        self.outcomes = [e["outcome"] for e in equations]
        self.fixed = [f"{e['outcome']}~{t}" for e in equations for t in e["predictors"]]
        own = [f"{e['outcome']}~{t}" for e in equations for t in e["random"]]
        self.random = sorted(own, key=lambda label: not label.endswith("~1"))  # intercepts first
        self.own = [self.random.index(label) for label in own]  # to the order of the equations
        pieces = []
        for k, e in enumerate(equations):
            X = np.zeros((len(data), len(self.fixed)))
            for term in e["predictors"]:
                X[:, self.fixed.index(f"{e['outcome']}~{term}")] = value_of(data, term, case["cluster"])
            z = data[e["outcome"]].to_numpy(float)
            keep = np.flatnonzero(np.isfinite(X).all(1) & np.isfinite(z))
            pieces.append((X[keep], z[keep], data[case["cluster"]].to_numpy()[keep], keep, np.full(len(keep), k)))
        X, z, cluster, row, which = (np.concatenate(part) for part in zip(*pieces, strict=True))
        Z = X[:, [self.fixed.index(label) for label in self.random]]
        self.clusters = []
        for j in np.unique(cluster):
            k = np.flatnonzero(cluster == j)
            pattern = np.eye(len(self.outcomes))[which[k]]  # V = Z G Z' + same row * (pattern S pattern')
            self.clusters.append((X[k], z[k], Z[k], pattern, row[k][:, None] == row[k][None, :]))
        self.n, self.p = X.shape
        free = np.tril(np.ones((len(self.random),) * 2, bool))
        for pair in case["zero"]:
            i, j = sorted((self.random.index(label) for label in pair), reverse=True)
            free[i, j] = False
        residual = np.eye(len(self.outcomes), dtype=bool)
        for pair in case["residuals"]:
            i, j = sorted((self.outcomes.index(label) for label in pair), reverse=True)
            residual[i, j] = True
        self.masks = free, residual
        self.size = int(free.sum() + residual.sum())

    def factors(self, theta):
        answer, at = [], 0
        for mask in self.masks:
            L = np.zeros(mask.shape)
            L[mask] = theta[at : at + mask.sum()]
            at += mask.sum()
            answer.append(L)
        return answer

    def covariances(self, theta):
        return [L @ L.T for L in self.factors(theta)]

    def evaluate(self, theta):
        """Log likelihood, gradient, fixed effects and their covariance given theta."""
        L, T = self.factors(theta)
        G, S = L @ L.T, T @ T.T
        XWX, XWz, zWz, logdet, kept = np.zeros((self.p, self.p)), np.zeros(self.p), 0.0, 0.0, []
        for X, z, Z, pattern, same in self.clusters:
            factor = cho_factor(Z @ G @ Z.T + same * (pattern @ S @ pattern.T), lower=True)
            W = cho_solve(factor, np.eye(len(z)))
            WX = W @ X
            XWX += X.T @ WX
            XWz += WX.T @ z
            logdet += 2 * np.log(np.diag(factor[0])).sum()
            kept.append((W, WX))
        unit = 1 / np.sqrt(np.diag(XWX))
        C = np.linalg.inv(XWX * np.outer(unit, unit)) * np.outer(unit, unit)
        beta = C @ XWz
        gG, gS = np.zeros(G.shape), np.zeros(S.shape)
        for (X, z, Z, pattern, same), (W, WX) in zip(self.clusters, kept, strict=True):
            r = z - X @ beta
            Wr = W @ r
            zWz += r @ Wr
            Q = np.outer(Wr, Wr) - W
            if self.reml:
                Q = Q + WX @ C @ WX.T
            gG += Z.T @ Q @ Z / 2
            gS += pattern.T @ (same * Q) @ pattern / 2
        loglik = -(self.n * LOG2PI + logdet + zWz) / 2
        if self.reml:
            loglik += (self.p * LOG2PI - np.linalg.slogdet(XWX)[1]) / 2
        gradient = []
        for g, factor, mask in zip((gG, gS), (L, T), self.masks, strict=True):
            gradient.append((2 * g @ factor)[mask])
        return loglik, np.concatenate(gradient), beta, C

    def negative(self, theta):
        try:
            loglik, gradient, _, _ = self.evaluate(theta)
        except (np.linalg.LinAlgError, ValueError):  # a step of the line search far too long
            return 1e10, np.zeros(self.size)
        return -loglik, -gradient

    def difference(self, f, theta, step=1e-3):
        """Derivative of f by theta, four-point central differences."""
        columns = []
        for e in np.eye(self.size):
            ahead, back, ahead2, back2 = (f(theta + h * step * e) for h in (1, -1, 2, -2))
            columns.append((8 * (ahead - back) - (ahead2 - back2)) / (12 * step))
        return np.array(columns).T

    def start(self, rng):
        """Variances of about a quarter (random effects) and a half (residuals) of each outcome's, times noise."""
        z, pattern = (np.concatenate([c[i] for c in self.clusters]) for i in (1, 3))
        spread = np.array([z[pattern[:, k] > 0].std() for k in range(len(self.outcomes))])
        sd = dict(zip(self.outcomes, spread, strict=True))
        L = np.where(self.masks[0], 0.1 * rng.standard_normal(self.masks[0].shape), 0)
        half = np.array([sd[label.split("~")[0]] / 2 for label in self.random])
        np.fill_diagonal(L, half * np.exp(0.5 * rng.standard_normal(len(half))))
        T = np.zeros(self.masks[1].shape)
        np.fill_diagonal(T, 0.7 * spread * np.exp(0.3 * rng.standard_normal(len(spread))))
        return np.concatenate([L[self.masks[0]], T[self.masks[1]]])

    def maximise(self):
        rng = np.random.default_rng(1)
        found = []
        options = {"gtol": 1e-6, "maxiter": 2000}
        for _ in range(N_STARTS):
            at = minimize(self.negative, self.start(rng), jac=True, method="BFGS", options=options)
            found.append((-at.fun, at.x))
        theta = max(found, key=lambda pair: pair[0])[1]
        for _ in range(8):
            H = self.difference(lambda t: self.evaluate(t)[1], theta)
            step = np.linalg.solve((H + H.T) / 2, -self.evaluate(theta)[1])
            theta = theta + step
            if np.abs(step).max() < 1e-10:
                break
        return theta, [loglik for loglik, _ in found]


def labelled(values, labels):
    return {"labels": labels, "values": values.tolist()}


def named(values, labels):
    return dict(zip(labels, values.tolist(), strict=True))


def between_path(case, beta, covariances, fixed):
    """Between effects of x on the first mediator and of that on the last outcome, and their product (delta method)."""
    first, last = case["equations"][0], case["equations"][-1]
    labels = first["outcome"] + "~" + first["predictors"][2], f"{last['outcome']}~between({first['outcome']})"
    at = [fixed.index(label) for label in labels]
    a, b = beta[at]
    rows = np.array([[1, 0], [0, 1], [b, a]])
    answer = {"a": float(a), "b": float(b), "ab": float(a * b)}
    for kind, C in covariances.items():
        se = np.sqrt(np.diag(rows @ C[np.ix_(at, at)] @ rows.T))
        answer |= named(se, [f"{name}_se_{kind}" for name in ("a", "b", "ab")])
    return answer


def fit(case, reml):
    model = Dense(case, reml)
    theta, starts = model.maximise()
    loglik, gradient, beta, C = model.evaluate(theta)
    own, q, k = np.ix_(model.own, model.own), len(model.random), len(model.outcomes)
    G, S = model.covariances(theta)
    assert all(G[model.random.index(i), model.random.index(j)] == 0 for i, j in case["zero"])
    both = model.difference(lambda t: np.concatenate(model.evaluate(t)[1:3]), theta)
    H = (both[: model.size] + both[: model.size].T) / 2
    V = np.linalg.inv(-H)  # of theta; D V D' is what it adds to the covariance of the fixed effects
    D = both[model.size :]
    joint = C + D @ V @ D.T
    J = model.difference(lambda t: np.concatenate([M.ravel() for M in model.covariances(t)]), theta)
    se = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", J, V, J), 0))
    G_se, S_se = se[: q * q].reshape(q, q), se[q * q :].reshape(k, k)
    random, fixed = [model.random[i] for i in model.own], model.fixed
    d = np.sqrt(np.diag(G))
    eigenvalue = float(np.linalg.eigvalsh(G / np.outer(d, d))[0])
    singular = eigenvalue < 1e-8
    answer = {
        "program": "dense",
        "version": f"NumPy {np.__version__}, SciPy {scipy.__version__}",
        "loglik": loglik,
        "nobs": model.n,
        "n_clusters": len(model.clusters),
        "reml": reml,
        "gradient": float(np.abs(gradient).max()),
        "params": named(beta, fixed),
        "bse_block": named(np.sqrt(np.diag(C)), fixed),
        "cov_params_block": labelled(C, fixed),
        "bse_joint": named(np.sqrt(np.diag(joint)), fixed),
        "cov_params_joint": labelled(joint, fixed),
        "random_cov": labelled(G[own], random),
        "random_cov_se": labelled(G_se[own], random),
        "residual_var": named(np.diag(S), model.outcomes),
        "residual_var_se": named(np.diag(S_se), model.outcomes),
    }
    for pair in case["residuals"]:
        at = np.ix_(*[[model.outcomes.index(o) for o in pair]] * 2)
        answer |= {"residual_cov": labelled(S[at], pair), "residual_cov_se": labelled(S_se[at], pair)}
    answer["between"] = between_path(case, beta, {"block": C, "joint": joint}, fixed)
    if singular:
        for key in ("bse_joint", "cov_params_joint", "random_cov_se", "residual_var_se"):
            del answer[key]
        answer["between"] = {key: v for key, v in answer["between"].items() if not key.endswith("joint")}
    answer["smallest_correlation_eigenvalue"] = eigenvalue
    answer["checks"] = {
        "loglik_below_best_by_start": [loglik - value for value in starts],
        "maximum": bool((np.linalg.eigvalsh(-H) > 0).all()),
        "newton_decrement": float(gradient @ V @ gradient / 2),
    }
    return answer


def disagreement(a, e):
    """Of another program (a) with the dense optimum (e)."""

    def between(key, scale):
        assert a[key]["labels"] == e[key]["labels"]
        apart = (np.array(a[key]["values"]) - np.array(e[key]["values"])) / np.outer(scale, scale)
        return float(np.abs(apart).max())

    def apart(key, scale):
        return float(np.abs([(a[key][k] - v) / scale[k] for k, v in e[key].items()]).max())

    se = list(e["bse_block"].values())
    found = {
        "loglik": a["loglik"] - e["loglik"],
        "params_in_se": apart("params", e["bse_block"]),
        "random_cov_relative": between("random_cov", np.sqrt(np.diag(e["random_cov"]["values"]))),
        "residual_relative": apart("residual_var", e["residual_var"]),
    }
    if "residual_cov" in e:
        found["residual_cov_relative"] = between("residual_cov", np.sqrt(np.diag(e["residual_cov"]["values"])))
    if "cov_params_block" in a:
        found["block_relative"] = between("cov_params_block", se)
    if "cov_params_joint" in a:
        found["joint_relative"] = between("cov_params_joint", list(e["bse_joint"].values()))
    if "gradient" in a:
        found["gradient"] = a["gradient"]
    return found


def main():
    cases = json.loads((FOLDER / "cases.json").read_text())
    programs = json.loads((FOLDER / "R.json").read_text())
    for name in sys.argv[1:] or cases:
        answer = {"model": cases[name]}
        for method in ("REML", "ML"):
            found = fit(cases[name], method == "REML")
            others = programs[name][method]
            found["loglik_by_program"] = {key: a["loglik"] for key, a in others.items()} | {"dense": found["loglik"]}
            found["checks"] |= {key: disagreement(a, found) for key, a in others.items()}
            answer[method] = found
            print(name, method, found["loglik"], json.dumps(found["between"]), json.dumps(found["checks"]), flush=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
