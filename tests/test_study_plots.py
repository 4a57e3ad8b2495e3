"""What is drawn of simulation studies equals the numbers of their tables."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxmed as jm


@pytest.fixture(scope="module")
def study():
    return jm.power({"cov_ab": 0, "a": 0.3}, {"clusters": [10, 20], "size": [4, 6]}, 64, seed=1)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_power_curves(study):
    ax = jm.plots.power(study, "a")
    rows = study.table.query("effect == 'a' and interval == 'delta'")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["size 4", "size 6"]
    for container, size in zip(ax.containers, (4, 6), strict=True):
        line, _, (bars,) = container
        own = rows[rows["size"] == size]
        assert line.get_xdata().tolist() == [10, 20]
        assert line.get_ydata().tolist() == own["power"].tolist()
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        assert ends[:, 1] - ends[:, 0] == pytest.approx(2 * 1.96 * own["power_mcse"].to_numpy())
    assert ax.get_ylabel() == "power for a (delta)"


def test_coverage_grid(study):
    ax = jm.plots.coverage(study, "indirect", "bauer")
    rows = study.table.query("effect == 'indirect' and interval == 'bauer'")
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in ax.texts}
    for _, row in rows.iterrows():
        assert shown[[4, 6].index(row["size"]), [10, 20].index(row["clusters"])] == f"{100 * row['coverage']:.1f}"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["size 4", "size 6"]
    assert ax.images[0].get_array()[0, 1] == rows.query("clusters == 20 and size == 4")["coverage"].item()


def test_one_line_and_given_axes(study):
    _, ax = plt.subplots()
    alone = jm.power({"a": 0.3}, {"clusters": [10, 20], "size": 4}, 64, seed=1)
    assert jm.plots.power(alone, "a", "bauer", ax=ax) is ax
    assert ax.get_legend() is None


@pytest.mark.parametrize("draw", [jm.plots.power, jm.plots.coverage])
def test_refused(study, draw):
    with pytest.raises(jm.SpecError, match="effect='q' is not in this study; choose one of"):
        draw(study, "q")
    with pytest.raises(jm.SpecError, match="interval='bca' is not in this study"):
        draw(study, "a", "bca")
    with pytest.raises(jm.SpecError, match="'cov_ab' has no power: it is zero in the population"):
        jm.plots.power(study, "cov_ab")
