"""Adapter for jaxmed: a REML fit with full inference by compiled programs, from a pandas frame or from
the moments of an earlier fit.

`seconds_import` and `seconds_first` are this fresh process's: the first fit compiles, and is from the data frame in
both variants. `seconds_fit` are the fits after it.
"""

from __future__ import annotations

import time

start = time.perf_counter()
import jaxmed as jm  # noqa: E402

seconds_import = time.perf_counter() - start

from pyarrow import csv  # noqa: E402
from timing import DATA, VARIANT, repeated, report, timed  # noqa: E402


def main() -> None:
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
    seconds_read, data = timed(lambda: csv.read_csv(DATA).to_pandas())
    seconds_first, first = timed(lambda: jm.fit(data, spec, engine="jax"))
    source = {"frame": data, "moments": first.moments}[VARIANT]
    seconds_fit, fit = repeated(lambda: jm.fit(source, spec, engine="jax"))
    report(
        version=jm.__version__,
        clusters=fit.n_clusters,
        loglik=fit.loglik,
        converged=bool(fit.converged),
        message=fit.message,
        seconds_import=seconds_import,
        seconds_read=seconds_read,
        seconds_first=seconds_first,
        seconds_fit=seconds_fit,
    )


if __name__ == "__main__":
    main()
