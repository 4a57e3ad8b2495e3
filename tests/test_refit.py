"""Refits in one compiled program: together as on a GPU, one after the other as on a CPU, and those that need more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import jaxmed as jm
from jaxmed._inference.targets import make_targets
from jaxmed._refit import fitted, make_refitter
from jaxmed._support.errors import Status

SIZE = 8


@pytest.fixture(scope="module")
def refitter():
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    base = fitted(fit, fit.moments, make_targets(fit))
    return make_refitter(base, "drawn", seed=1, size=SIZE)


def joined(parts, name):
    return np.concatenate([getattr(part, name) for part in parts])


def test_together_is_one_after_the_other(refitter):
    """What a GPU runs, on the CPU: the same draws and, to 1e-6 standard errors (where a refit stops), the estimates."""
    alone = list(refitter.run(range(SIZE)))
    several = replace(refitter, program=refitter.program._replace(together=SIZE))
    found = list(several.run(range(SIZE)))
    errors = joined(alone, "errors")
    np.testing.assert_allclose(joined(found, "values") / errors, joined(alone, "values") / errors, atol=1e-6)
    np.testing.assert_allclose(joined(found, "effect_errors"), joined(alone, "effect_errors"), rtol=1e-5)
    assert joined(found, "n_iter").tolist() == joined(alone, "n_iter").tolist()


def test_data_sets_that_need_more_steps_are_fitted_alone(refitter):
    """With a limit of three steps none is done in the batch; alone they reach the same optima."""
    expected = list(refitter.run(range(SIZE)))
    short = replace(refitter, program=refitter.program._replace(limit=3))
    found = list(short.run(range(SIZE)))
    assert joined(expected, "n_iter").min() > 3
    assert set(joined(found, "status")) == {Status.CONVERGED}
    errors = joined(expected, "errors")
    np.testing.assert_allclose(joined(found, "values") / errors, joined(expected, "values") / errors, atol=3e-6)
