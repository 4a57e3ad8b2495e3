"""Streams of random numbers: one home for the keys, so that no two uses of a seed draw the same numbers."""

from __future__ import annotations

import numpy as np

MONTE_CARLO = 2**63  # draws of Monte Carlo intervals
STARTS = 2**63 + 1  # random starts of the optimiser; replicates and data sets have the numbers below 2**63


def stream(seed: int, number: int) -> np.random.Generator:
    """The generator of a numbered replicate or data set, or of one of the uses above."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
