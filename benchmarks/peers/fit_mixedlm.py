"""Adapter for mixedlm (Python and Rust, lme4's method): lmer with the device of fit_lme4.R, an effect of the data row.

Its optimiser and everything else are at their defaults.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import pandas as pd
from mixedlm import lmer
from timing import DATA, repeated, report, timed

FORMULA = "z ~ 0 + sm + smx + sy + sym + syx + (0 + sm + smx + sy + sym + syx | id) + (0 + sm | fid)"


def stacked() -> pd.DataFrame:
    data = pd.read_csv(DATA)
    row = data.index.astype(str)
    of_m = pd.DataFrame({"id": data["id"], "fid": row, "z": data["m"], "sm": 1.0, "smx": data["x"]})
    of_y = pd.DataFrame({"id": data["id"], "fid": row, "z": data["y"], "sy": 1.0, "sym": data["m"], "syx": data["x"]})
    both = pd.concat([of_m, of_y]).fillna(0.0).sort_values("id", kind="stable")
    return both.assign(id=both["id"].astype(str)).reset_index(drop=True)


def fit(data: pd.DataFrame) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = lmer(FORMULA, data)
    return result, [str(warning.message).splitlines()[0] for warning in caught]


def main() -> None:
    seconds_read, data = timed(stacked)
    seconds_fit, (result, said) = repeated(lambda: fit(data))
    loglik = result.logLik()
    report(
        version=version("mixedlm"),
        clusters=int(data["id"].nunique()),
        loglik=float(getattr(loglik, "value", loglik)),
        converged=bool(getattr(result, "converged", True)),
        message="; ".join(dict.fromkeys(said)),
        seconds_read=seconds_read,
        seconds_fit=seconds_fit,
    )


if __name__ == "__main__":
    main()
