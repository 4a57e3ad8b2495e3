"""Cluster-robust (sandwich) covariance of all parameters from the scores of the clusters."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxmed._inference.estimates import Estimates
from jaxmed._inference.scores import Scores
from jaxmed._support import Floats, check_choice

Correction = Literal["CR0", "CR1"]


def sandwich(fit: Estimates, scores: Scores, correction: Correction = "CR1") -> Floats:
    """B (sum_j s_j s_j') B on the user's scale, shape (p + n, p + n), with B the joint covariance.

    s_j are the scores of :func:`jaxmed._inference.scores.cluster_scores` (Huber 1967; White 1982; Liang & Zeger 1986).
    ``"CR1"`` multiplies it by J / (J - 1), J the number of clusters.
    """
    check_choice("correction", correction, Correction)
    values = scores.values
    if fit.singular:  # where a variance is held at zero its scores do not sum to zero
        values = values - values.mean(axis=1, keepdims=True)
    moved = scores.scale.matrix @ (fit.working.joint @ values)  # to first order, what each cluster changes
    clusters = moved.shape[1]
    factor = 1.0 if correction == "CR0" else clusters / max(clusters - 1, 1)
    return np.asarray(factor * (moved @ moved.T))
