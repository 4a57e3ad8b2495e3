"""A fit against a reference answer (tests/reference), quantity by quantity."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from jaxmed import Fit


def matrix(table: dict) -> pd.DataFrame:
    """A reference's labelled matrix; null is NaN."""
    return pd.DataFrame(np.array(table["values"], dtype=float), index=table["labels"], columns=table["labels"])


def assert_same_matrix(found: pd.DataFrame, table: dict, tolerance: float) -> None:
    """Entries relative to sqrt(D_i D_j), D the reference's diagonal, so that entries near zero are judged fairly."""
    expected = matrix(table)
    found = found.loc[expected.index, expected.columns]
    diagonal = np.sqrt(np.diag(expected))
    difference = (found - expected).to_numpy() / np.outer(diagonal, diagonal)
    np.testing.assert_allclose(difference, 0, atol=tolerance)


def assert_same_fit(fit: Fit, reference: dict, *, loglik: float = 1e-6, tolerance: float = 1e-5) -> None:
    """Everything that a reference of either source holds.

    ``loglik`` is absolute. ``tolerance`` is relative: of fixed effects to their standard errors, of standard errors to
    themselves, of (co)variances to sqrt(G_ii G_jj).
    """
    assert fit.converged
    assert fit.loglik == pytest.approx(reference["loglik"], rel=0, abs=loglik)
    assert fit.nobs == reference["nobs"]
    assert fit.n_clusters == reference["n_clusters"]
    params = pd.Series(reference["params"])
    assert set(fit.params.index) == set(params.index)
    error = pd.Series(reference["bse_block"])
    np.testing.assert_allclose((fit.params - params) / error, 0, atol=tolerance)
    for kind in ("block", "joint"):
        if f"bse_{kind}" in reference:
            expected = pd.Series(reference[f"bse_{kind}"])
            np.testing.assert_allclose(fit.standard_errors(kind)[expected.index], expected, rtol=tolerance)
            assert_same_matrix(fit.cov_params(kind), reference[f"cov_params_{kind}"], tolerance)
    assert_same_matrix(fit.random_cov, reference["random_cov"], tolerance)
    residual = np.array(list(reference["residual_var"].values()))
    np.testing.assert_allclose(fit.residual_var, residual, rtol=tolerance)
    if "random_cov_se" in reference:
        expected = matrix(reference["random_cov_se"]).replace(0.0, np.nan)  # held at zero: NaN here, 0 or null there
        pd.testing.assert_frame_equal(
            fit.random_cov_se.loc[expected.index, expected.columns], expected, check_exact=False, rtol=tolerance
        )
        errors = np.array(list(reference["residual_var_se"].values()))
        np.testing.assert_allclose(fit.residual_var_se, errors, rtol=tolerance)
