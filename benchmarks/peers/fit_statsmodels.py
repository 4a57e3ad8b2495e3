"""Adapter for statsmodels: MixedLM on the stacked rows, with the worked example's device as a variance component.

Residuals of a MixedLM share one variance, so the mediator's rows get an effect each, with variance
sigma_m^2 - sigma_y^2: eight columns a cluster. Its design is the same matrix in every cluster and is built here,
outside the time. Of MixedLM's optimisers lbfgs is used, which took 0.6 of the default's time at 100 clusters and came
closer to the optimum.

Its restricted log likelihood needs no constant to be that of the other programs. With n rows, p fixed effects, V = s W
and q the generalised residual sum of squares under W, MixedLM.loglike adds up

    -1/2 [ log|W| + log|X'W^-1 X| + (n - p) (log q + log 2 pi - log(n - p) + 1) ]

and at s = q / (n - p), where log|W| = log|V| - n log s and log|X'W^-1 X| = log|X'V^-1 X| + p log s, this is

    -1/2 [ log|V| + log|X'V^-1 X| + q / s + (n - p) log 2 pi ].
"""

from __future__ import annotations

import warnings

import numpy as np
import statsmodels
from pyarrow import csv
from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMResults, VCSpec
from timing import DATA, repeated, report, timed


def stacked() -> dict[str, object]:
    """Arguments of MixedLM: in every cluster the mediator's rows, then the outcome's; columns sm, smx, sy, sym, syx."""
    data = csv.read_csv(DATA)
    clusters = len(np.unique(data["id"].to_numpy()))
    x, m, y = (data[name].to_numpy().reshape(clusters, -1) for name in ("x", "m", "y"))
    one, zero = np.ones_like(x), np.zeros_like(x)
    design = np.stack([np.hstack([one, zero]), np.hstack([x, zero]), *(np.hstack([zero, c]) for c in (one, m, x))], -1)
    design = design.reshape(-1, 5)
    size = x.shape[1]
    device = np.vstack([np.eye(size), np.zeros((size, size))])
    columns = [f"row {k}" for k in range(size)]
    return {
        "endog": np.hstack([m, y]).ravel(),
        "exog": design,
        "exog_re": design,
        "groups": np.repeat(np.arange(clusters), 2 * size),
        "exog_vc": VCSpec(["fid"], [[columns] * clusters], [[device] * clusters]),
    }


def fit(arguments: dict[str, object]) -> tuple[MixedLMResults, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = MixedLM(**arguments).fit(reml=True, method="lbfgs")
    return result, [str(warning.message).splitlines()[0] for warning in caught]


def main() -> None:
    seconds_read, arguments = timed(stacked)
    seconds_fit, (result, said) = repeated(lambda: fit(arguments))
    report(
        version=statsmodels.__version__,
        clusters=result.model.n_groups,
        loglik=float(result.llf),
        converged=bool(result.converged),
        message="; ".join(dict.fromkeys(said)),
        seconds_read=seconds_read,
        seconds_fit=seconds_fit,
    )


if __name__ == "__main__":
    main()
