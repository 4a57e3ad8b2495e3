"""NumPy and JAX execute the same formulas: fits and what follows from them agree."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm

pytestmark = [
    pytest.mark.filterwarnings("ignore::jaxmed.DesignWarning"),
    pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning"),
]
PUPIL = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
MODELS = {
    "1-1-1": ("example", jm.Mediation("x", "m", "y", "id"), {}),
    "ML": ("example", jm.Mediation("x", "m", "y", "id", random={"m": ["1"], "y": ["1", "m"]}), {"reml": False}),
    "2-1-1": ("schools", jm.Mediation(**PUPIL | {"x": "training"}), {}),
    "parallel, residuals correlated": (
        "schools",
        jm.Mediation(**PUPIL | {"m": ["motivation", "effort"]}, random={"achievement": ["1", "effort"]}),
        {},
    ),
    "moderated": ("schools", jm.Mediation(**PUPIL, moderators={"climate": ["a", "b"]}), {}),
}


@pytest.fixture(scope="module", params=MODELS)
def both(request):
    name, spec, options = MODELS[request.param]
    data = jm.datasets.load_example() if name == "example" else jm.datasets.load_schools()
    return data, *(jm.fit(data, spec, engine=engine, **options) for engine in ("numpy", "jax"))


def test_fits_agree(both):
    """To 1e-9 standard errors: both iterate until nothing is left to gain."""
    _, one, other = both
    assert one.engine == "numpy"
    assert other.engine == "jax"
    error = np.sqrt(np.diag(other.joint))
    np.testing.assert_allclose((one.values - other.values) / error, 0, atol=1e-9)
    for name in ("joint", "block"):
        first, second = (getattr(fit, name) / np.outer(error, error) for fit in (one, other))
        np.testing.assert_allclose(first, second, atol=1e-8)
    assert one.loglik == pytest.approx(other.loglik, rel=1e-13)


def test_what_follows_agrees(both):
    """Scores, predictions and degrees of freedom are passes over clusters too; 1e-7 of their size."""
    _, one, other = both
    for of in ("scores", "ranef", "cluster_residuals", "influence"):
        first, second = (getattr(fit, of) for fit in (one, other))
        first, second = (part() if callable(part) else part for part in (first, second))
        scale = second.abs().max()
        pd.testing.assert_frame_equal(first / scale, second / scale, atol=1e-7, rtol=0)
    if not one.singular:
        first, second = (fit.satterthwaite()["df"] for fit in (one, other))
        np.testing.assert_allclose(first, second, rtol=1e-6)


def test_closed_forms_are_those_of_autodiff(both):
    """8 digits: those that a second derivative of a sum over clusters has in double precision."""
    _, one, _ = both
    found = one.verify()
    assert min(found) > 8


def test_size_decides(both):
    data, one, _ = both
    assert jm.fit(data, one.spec, reml=one.reml).engine == "numpy"
    with pytest.raises(jm.SpecError, match=r"engine='gpu' is not known; choose one of \['auto', 'numpy', 'jax'\]"):
        jm.fit(data, one.spec, engine="gpu")
    with pytest.raises(jm.SpecError, match="engine='numpy' fits in one process"):
        jm.fit(data, one.spec, engine="numpy", distributed=True)


def test_ordinary_data_load_no_jax():
    """Nor does what follows from a fit: only programs for many clusters and many refits need it."""
    code = """
import sys, jaxmed as jm
data = jm.datasets.load_example()
fit = jm.fit(data, x="x", m="m", y="y", cluster="id")
fit.summary(), fit.effects("robust"), fit.heterogeneity(), fit.ranef(), fit.influence(), fit.satterthwaite()
fit.intervals("monte_carlo", seed=1), fit.intervals("profile", terms=["indirect"]), fit.conflation()
fit.optima(2, seed=1), fit.residuals(data), fit.cluster_residuals(), fit.to_json(), jm.describe(data, fit.spec)
print([name for name in ("jax", "optax", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
