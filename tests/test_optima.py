"""Random starts: one optimum where there is one, and the others where there are several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm

MODEL = jm.Mediation("x", "m", "y", "id")


def drawn(seed: int, clusters: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(clusters, 5)) * [0.6, 0.4, 0.6, 0.4, 0.4]
    at = np.repeat(np.arange(clusters), 8)
    x, e_m, e_y = rng.normal(size=(3, len(at)))
    m = u[at, 0] + (0.5 + u[at, 1]) * x + e_m
    return pd.DataFrame({"id": at, "x": x, "m": m, "y": u[at, 2] + (0.4 + u[at, 3]) * m + (0.2 + u[at, 4]) * x + e_y})


def test_one_optimum(unbalanced):
    fit = jm.fit(unbalanced, MODEL)
    table = jm.optima(fit, 20, seed=1)
    assert table["starts"].tolist() == [21]
    assert table["loglik"].tolist() == pytest.approx([fit.loglik], rel=1e-12)
    error = np.sqrt(np.diag(fit.joint))
    np.testing.assert_allclose((table.loc[0, list(fit.labels)].astype(float) - fit.values) / error, 0, atol=1e-5)


def test_several_optima_are_said():
    """Six clusters with two optima 0.137 apart, the fit at the better one."""
    fit = jm.fit(drawn(4, 6), MODEL)
    table = jm.optima(fit, 20, seed=1)
    assert table["loglik"].iloc[0] == pytest.approx(fit.loglik, abs=1e-8)
    np.testing.assert_allclose(table["loglik"].diff()[1:], -0.13684, atol=1e-4)
    assert table["starts"].sum() == 21
    assert table["starts"].min() > 1


def test_a_better_optimum_is_a_warning():
    """Whatever is more than rounding above the fit is told; here the fit is set half a unit below its optimum."""
    fit = jm.fit(drawn(4, 6), MODEL)
    with pytest.warns(jm.ConvergenceWarning, match="several and the model is too rich"):
        jm.optima(replace(fit, loglik=fit.loglik - 0.5), 5, seed=1)


def test_counts_are_checked(unbalanced):
    fit = jm.fit(unbalanced, MODEL)
    with pytest.raises(jm.SpecError, match="starts=0 must be a whole number of at least 1"):
        jm.optima(fit, 0, seed=1)
    with pytest.raises(jm.SpecError, match="seed"):
        jm.optima(fit, 5, seed=-1)


def test_what_has_no_optimum_is_refused(unbalanced):
    with pytest.raises(jm.SpecError, match="optima needs a Fit"):
        jm.optima("fit", seed=1)
    with pytest.raises(jm.FitError, match="ended in no optimum that others could be compared with"):
        jm.optima(replace(jm.fit(unbalanced, MODEL), status=1), seed=1)
