"""Claim: a million clusters of 8 rows are read, fitted and given all standard errors in well under a minute.

    python benchmarks/many_clusters.py [CLUSTERS]

Prints the seconds of each part, the peak memory and the error of the indirect effect in its standard errors.
"""

from __future__ import annotations

import resource
import sys
import time

import jaxmed as jm


def main() -> None:
    clusters = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    data = jm.simulate(clusters=clusters, size=8, seed=1)
    spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    fit = jm.fit(data, spec)
    first = time.perf_counter()
    again = jm.fit(fit.moments, spec)
    second = time.perf_counter()
    fit.ranef()
    third = time.perf_counter()
    jm.fit(data, spec)
    fourth = time.perf_counter()
    effects = fit.effects()
    error = (effects.loc["indirect", "estimate"] - 0.473) / effects.loc["indirect", "se"]
    assert fit.converged
    assert fit.loglik == again.loglik
    print(f"{clusters} clusters, {len(data)} rows; indirect is {error:+.2f} standard errors from the truth")
    print(f"  first fit (compile, read, run)  {first - start:7.2f} s")
    print(f"  fit from a data frame, warm     {fourth - third:7.2f} s")
    print(f"  fit from moments, warm          {second - first:7.2f} s")
    print(f"  predictions by cluster          {third - second:7.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  memory: {before:.2f} GiB with the data, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
