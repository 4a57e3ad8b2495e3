"""What is drawn against the numbers it is drawn from."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmed as jm

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def drawn():
    import matplotlib as mpl

    mpl.use("Agg")
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    return fit, jm.bootstrap(fit, 256, seed=3)


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize("kind", ["percentile", "studentized"])
def test_replicates(drawn, axes, kind):
    """Vertical lines at estimate and limits; the histogram and the density each have area one."""
    _, found = drawn
    assert jm.plots.replicates(found, "total", kind, ax=axes) is axes
    row = found.intervals(kind).loc["total"]
    density, *lines = axes.lines
    at = [line.get_xdata()[0] for line in lines]
    np.testing.assert_allclose(at, row[["estimate", "ci_lower", "ci_upper"]].astype(float))
    area = sum(bar.get_height() * bar.get_width() for bar in axes.patches)
    assert area == pytest.approx(1.0)
    assert np.trapezoid(density.get_ydata(), density.get_xdata()) == pytest.approx(1.0, abs=0.02)  # tails cut
    assert axes.get_xlabel() == "total"


def test_convergence(drawn, axes):
    """The last point of each line is the limit of all replicates, the band two Monte Carlo errors to both sides."""
    fit, found = drawn
    jm.plots.convergence(found, "indirect", "bca", fit=fit, ax=axes)
    row = found.intervals("bca").loc["indirect"]
    lower, upper, _ = axes.lines
    assert lower.get_ydata()[-1] == pytest.approx(row["ci_lower"])
    assert upper.get_ydata()[-1] == pytest.approx(row["ci_upper"])
    assert lower.get_xdata()[-1] == len(found)
    band = axes.collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == len(found), 1]
    assert at_end.max() - at_end.min() == pytest.approx(4 * row["ci_lower_mcse"])


def test_refusals(drawn, axes):
    _, found = drawn
    with pytest.raises(jm.SpecError, match="choose 'effects'"):
        jm.plots.replicates(found, "ab", ax=axes)
    with pytest.raises(jm.SpecError, match="kind='bcb'"):
        jm.plots.replicates(found, kind="bcb", ax=axes)
