"""Description, stacking, bundled and fetched data, and draws from the documented population."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import platformdirs
import polars as pl
import pytest

import jaxmed as jm
from jaxmed.datasets import load_bpg2006

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
MODEL = jm.Mediation(**ROLES)
NAMES = ["x", "m", "y"]


@pytest.fixture(scope="module")
def example():
    return jm.datasets.load_example()


# Describe ------------------------------------------------------------------------------------------------------------


def anova_icc(values, groups):
    """One-way analysis of variance from group means, without sums of squares of raw values."""
    table = values.groupby(groups)
    n, sizes, k = len(values), table.size(), table.ngroups
    means = table.transform("mean")
    between = ((means - values.mean()) ** 2).sum() / (k - 1)
    within = ((values - means) ** 2).sum() / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    return (between - within) / (between + (size - 1) * within)


def test_describe_against_pandas(unbalanced):
    found = jm.describe(unbalanced, MODEL)
    columns = unbalanced[NAMES]
    expected = columns.agg(["count", "mean", "std", "min", "max"]).T.set_axis(
        ["count", "mean", "sd", "min", "max"], axis=1
    )
    pd.testing.assert_frame_equal(found.variables[list(expected)], expected, check_dtype=False, rtol=1e-12)
    assert (found.variables["missing"] == columns.isna().sum()).all()
    assert found.variables["missing"].sum() > 0
    complete = unbalanced.dropna()
    pd.testing.assert_frame_equal(found.correlations, complete[NAMES].corr(), rtol=1e-10)


def test_icc_of_uneven_clusters(unbalanced):
    complete = unbalanced.dropna()
    found = jm.describe(complete, MODEL).variables["icc"]
    for name in NAMES:
        assert found[name] == pytest.approx(anova_icc(complete[name], complete["id"]), rel=1e-9)
    assert found.between(0.05, 0.95).any()


def test_icc_uses_the_rows_that_have_the_column(unbalanced):
    found = jm.describe(unbalanced, MODEL).variables["icc"]
    for name in NAMES:
        rows = unbalanced.dropna(subset=name)
        assert found[name] == pytest.approx(anova_icc(rows[name], rows["id"]), rel=1e-9)


def test_icc_uses_the_rows_that_have_the_column_also_without_the_mediator(unbalanced):
    data = unbalanced.dropna().assign(m=lambda d: d["m"].where(d["x"] > d["x"].median()))
    found = jm.describe(data, MODEL).variables.loc["y"]
    assert found["count"] == len(data)
    assert found["icc"] == pytest.approx(anova_icc(data["y"], data["id"]), rel=1e-9)


def test_icc_of_extreme_columns(example):
    data = example.assign(x=np.sin(example["id"]), m=example.groupby("id").cumcount())
    found = jm.describe(data, MODEL).variables["icc"]
    assert found["x"] == pytest.approx(1)
    assert found["m"] == pytest.approx(-1 / 7)


def test_cluster_sizes(unbalanced):
    sizes = unbalanced.groupby("id").size()
    found = jm.describe(unbalanced, MODEL).clusters
    expected = {
        "n_clusters": len(sizes),
        "min": sizes.min(),
        "mean": sizes.mean(),
        "median": sizes.median(),
        "max": sizes.max(),
    }
    assert found.to_dict() == pytest.approx(expected)


def test_describe_does_not_depend_on_the_frame(unbalanced):
    one, other = jm.describe(unbalanced, MODEL), jm.describe(pl.from_pandas(unbalanced).lazy(), MODEL)
    pd.testing.assert_frame_equal(one.variables, other.variables, rtol=1e-12)
    pd.testing.assert_frame_equal(one.correlations, other.correlations, rtol=1e-12)
    assert one.sample_summary == other.sample_summary


def test_text_of_a_description(unbalanced):
    text = str(jm.describe(unbalanced, MODEL))
    assert f"{len(unbalanced)} rows, 0 without any complete equation" in text
    assert f"missing values: {{'y': {unbalanced['y'].isna().sum()}}}" in text
    assert "60 clusters; rows per cluster: min" in text
    assert "Correlations" in text


def test_describe_the_worked_example(bpg2006):
    """Figures as the worked example prints them: summarize x m y; corr x m y; tab id."""
    found = jm.describe(bpg2006, MODEL)
    printed = {
        "x": (800, -0.1539876, 1.330374, -4.151426, 3.869661),
        "m": (800, -0.0247739, 1.483614, -6.47837, 5.012422),
        "y": (800, -0.1833981, 1.66918, -8.600032, 5.919008),
    }
    for name, (count, mean, sd, least, most) in printed.items():
        row = found.variables.loc[name]
        assert (row["count"], row["missing"]) == (count, 0)
        assert row["mean"] == pytest.approx(mean, abs=5.1e-8)
        assert row["sd"] == pytest.approx(sd, abs=5.1e-7)
        assert row[["min", "max"]].tolist() == pytest.approx([least, most], abs=5.1e-7)
    correlations = found.correlations
    assert correlations.loc["x", "m"] == pytest.approx(0.5404, abs=5.1e-5)
    assert correlations.loc["x", "y"] == pytest.approx(0.5537, abs=5.1e-5)
    assert correlations.loc["m", "y"] == pytest.approx(0.7591, abs=5.1e-5)
    assert found.clusters.tolist() == [100, 8, 8, 8, 8]


def test_describe_a_column_that_varies_only_where_it_is_not_used(example):
    data = example.assign(x=example["x"].where(example["id"] > 50, 1.0), m=example["m"].where(example["id"] <= 50))
    variables = jm.describe(data, MODEL).variables
    assert variables.loc["x", "icc"] == pytest.approx(anova_icc(data["x"], data["id"]), rel=1e-8)


def test_describe_refuses_what_fit_refuses(example):
    with pytest.raises(jm.DataError, match="there is no column 'z'"):
        jm.describe(example, jm.Mediation(x="x", m="m", y="z", cluster="id"))
    with pytest.raises(jm.SpecError, match=r"must be a jaxmed\.Mediation"):
        jm.describe(example, None)


# Stack ---------------------------------------------------------------------------------------------------------------


def test_stack_the_worked_example(bpg2006):
    """The first eight rows listed after ``reshape long``: fid, sm, id, x, m, z, sy."""
    listed = np.array(
        [
            [1, 0, 1, 1.5451205, 0.10680165, 0.567776, 1],
            [1, 1, 1, 1.5451205, 0.10680165, 0.1068017, 0],
            [2, 0, 1, 2.275272, 2.1104394, 1.206145, 1],
            [2, 1, 1, 2.275272, 2.1104394, 2.110439, 0],
            [3, 0, 1, 0.7866992, 0.03888269, -0.2612771, 1],
            [3, 1, 1, 0.7866992, 0.03888269, 0.0388827, 0],
            [4, 0, 1, -0.06185872, 0.47940645, -0.7589904, 1],
            [4, 1, 1, -0.06185872, 0.47940645, 0.4794064, 0],
        ]
    )
    fid, sm, cluster, x, m, z, sy = listed.T
    long = jm.stack(bpg2006, MODEL)
    assert len(long) == 1600
    expected = pd.DataFrame(
        {
            "row": fid,
            "id": cluster,
            "outcome": np.where(sm == 1, "m", "y"),
            "z": z,
            "s_m": sm,
            "s_m:x": sm * x,
            "s_y": sy,
            "s_y:m": sy * m,
            "s_y:x": sy * x,
        }
    )
    pd.testing.assert_frame_equal(long.head(8), expected, check_dtype=False, atol=5.1e-7, rtol=0)


def test_least_squares_on_the_stack_is_least_squares_by_outcome(unbalanced):
    long = jm.stack(unbalanced, MODEL)
    design = [name for name in long if name.startswith("s_")]
    stacked = np.linalg.lstsq(long[design], long["z"], rcond=None)[0]
    parts = []
    for outcome, predictors in (("m", ["x"]), ("y", ["m", "x"])):
        used = unbalanced.dropna(subset=[outcome, *predictors])
        columns = np.column_stack([np.ones(len(used)), used[predictors]])
        parts.append(np.linalg.lstsq(columns, used[outcome], rcond=None)[0])
    np.testing.assert_allclose(stacked, np.concatenate(parts), rtol=1e-9)


def test_stack_leaves_incomplete_rows_out(unbalanced):
    data = unbalanced.copy()
    data.loc[[1, 2], "m"] = np.nan
    data.loc[[2, 3], "id"] = None
    data.loc[4, "y"] = np.nan
    long = jm.stack(data, MODEL)
    rows = {outcome: set(long.loc[long["outcome"] == outcome, "row"]) for outcome in ("m", "y")}
    everything = set(range(1, len(data) + 1))
    no_y = set(np.flatnonzero(data["y"].isna()) + 1)
    assert rows["m"] == everything - {2, 3, 4}
    assert rows["y"] == everything - {2, 3, 4} - no_y
    assert not long.isna().any(axis=None)
    assert list(long["row"]) == sorted(long["row"])


def test_stack_without_a_cluster_id(example):
    with pytest.raises(jm.DataError, match=f"'id' is missing in all {len(example)} rows"):
        jm.stack(example.assign(id=np.nan), MODEL)


def test_stack_of_ids_that_nobody_can_hash(example):
    with pytest.raises(jm.DataError, match=r"'id' has ids such as .* of type list; use numbers, text or dates"):
        jm.stack(example.assign(id=[[k] for k in example["id"]]), MODEL)


def test_stack_of_infinite_values(example):
    with pytest.raises(jm.DataError, match="column 'm' has 1 infinite value among"):
        jm.stack(example.assign(m=example["m"].where(example.index > 0, np.inf)), MODEL)


def test_stack_keeps_ids_that_no_text_can_hold(example):
    ids = pd.Series([f"\ud800{k}" for k in example["id"]], dtype=object)
    assert set(jm.stack(example.assign(id=ids), MODEL)["id"]) == set(ids)


def test_stack_counts_what_the_fit_counts(unbalanced):
    found = jm.describe(unbalanced, MODEL).sample_summary
    counts = jm.stack(unbalanced, MODEL)["outcome"].value_counts()
    assert (counts["m"], counts["y"]) == found.used


def test_stack_of_one_equation_and_another_frame(example):
    system = jm.System([jm.Equation("y", ["1", "x"], random=["1"])], cluster="id")
    long = jm.stack(pl.from_pandas(example), system)
    assert list(long) == ["row", "id", "outcome", "z", "s_y", "s_y:x"]
    np.testing.assert_array_equal(long["z"], example["y"])
    np.testing.assert_array_equal(long["s_y:x"], example["x"])


@pytest.mark.parametrize("name", ["row", "z", "outcome", "s_m", "_order"])
def test_stack_with_a_cluster_named_like_its_own_columns(example, name):
    """Both columns, or an error that asks for another name."""
    data = example.rename(columns={"id": name})
    try:
        long = jm.stack(data, jm.Mediation(x="x", m="m", y="y", cluster=name))
    except jm.JaxmedError:
        return
    assert len(long.columns) == 9


# Data sets -----------------------------------------------------------------------------------------------------------


def test_the_example_is_a_draw_that_anyone_can_repeat(example, monkeypatch):
    """The example was drawn when the root of G was its eigenvectors times the roots of its eigenvalues: these."""
    root = np.zeros((5, 5))
    root[[4, 2, 0], [0, 3, 4]] = np.sqrt([0.04, 0.4, 0.6]) * [1, -1, 1]
    root[[1, 3], 1:3] = np.array([[-1, -1], [1, -1]]) * np.sqrt([0.047, 0.273]) / np.sqrt(2)
    simulation = importlib.import_module("jaxmed._simulation.simulation")
    drawn = simulation.lower_root
    assert root @ root.T == pytest.approx(drawn(root @ root.T) @ drawn(root @ root.T).T)
    monkeypatch.setattr(simulation, "lower_root", lambda matrix: root if len(matrix) == 5 else drawn(matrix))
    pd.testing.assert_frame_equal(example, jm.simulate(clusters=100, size=8, seed=2006), rtol=0, atol=1e-10)


def _tampered(data, what):
    changes = {
        "a value": lambda d: d.assign(x=d["x"].where(d.index != 17, 0.0)),
        "a row less": lambda d: d.iloc[:-1],
        "other clusters": lambda d: d.assign(id=np.where(d.index == 0, 2, d["id"])),
        "m shuffled": lambda d: d.assign(m=d["m"].sample(frac=1, random_state=1).to_numpy()),
        "no y": lambda d: d.drop(columns="y"),
    }
    return changes[what](data)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a value", "column 'x' has mean"),
        ("a row less", "799 rows in 100 clusters"),
        ("other clusters", "instead of 800 in 100 clusters of 8"),
        ("m shuffled", "the correlation of 'x' and 'm' is"),
        ("no y", "it has no column 'y'"),
    ],
)
def test_a_changed_file_is_not_the_worked_example(bpg2006, what, message, tmp_path, monkeypatch):
    _tampered(bpg2006, what).to_csv(tmp_path / "bpg2006.csv", index=False)
    monkeypatch.setenv("JAXMED_DATA", str(tmp_path))
    with pytest.raises(jm.DataError, match=f"is not the worked example's data: .*{message}.*remove or replace"):
        load_bpg2006()


def test_the_worked_example_from_a_folder(bpg2006, tmp_path, monkeypatch):
    """Columns in another order and one too many do no harm."""
    bpg2006.assign(fid=1)[["fid", "y", "m", "x", "id"]].to_csv(tmp_path / "bpg2006.csv", index=False)
    monkeypatch.setenv("JAXMED_DATA", str(tmp_path))
    pd.testing.assert_frame_equal(load_bpg2006(), bpg2006)


def test_the_worked_example_from_the_cache(bpg2006, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXMED_DATA", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_: str(tmp_path))
    (tmp_path / "data").mkdir()
    bpg2006.to_stata(tmp_path / "data" / "ml_sim.dta", write_index=False)
    pd.testing.assert_frame_equal(load_bpg2006(download=False), bpg2006)


@pytest.mark.parametrize("folder", [None, "", "nowhere", "."])
def test_the_worked_example_is_nowhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_: str(tmp_path / "cache"))
    if folder is None:
        monkeypatch.delenv("JAXMED_DATA", raising=False)
    else:
        monkeypatch.setenv("JAXMED_DATA", folder)
    with pytest.raises(jm.DataError, match="not in the folder named by JAXMED_DATA, and not in the download cache"):
        load_bpg2006(download=False)
    assert list(tmp_path.iterdir()) == []


# Draws ---------------------------------------------------------------------------------------------------------------


def test_same_seed_same_data():
    one, other = jm.simulate(clusters=7, size=3, seed=5), jm.simulate(clusters=7, size=3, seed=5)
    pd.testing.assert_frame_equal(one, other)
    assert list(one) == ["id", "x", "m", "y"]
    assert one["id"].value_counts().eq(3).all()
    assert one["id"].nunique() == 7
    for seed in (4, 6, 2**32 + 5):
        assert not np.isclose(jm.simulate(clusters=7, size=3, seed=seed)["x"], one["x"]).any()


@pytest.fixture(scope="module")
def population_draw():
    data = jm.simulate(clusters=20_000, size=8, seed=77)
    return data[NAMES].to_numpy().T.reshape(3, 20_000, 8)


# From the documented population. With x = x_j + e (variances 1 and 1), r = m - .6 x = u_1 + u_a x + e_m and
# s = y - .6 m - .2 x = u_2 + u_b m + u_c x + e_y, where cov(u_a, u_b) = .113 is the only covariance.
# Pairs (i, k) are two different rows of a cluster: residuals drop out of them, and what is left is G.
POPULATION = {
    "E x": (lambda x, m, y: x, 0.0),
    "E m": (lambda x, m, y: m, 0.0),
    "E y": (lambda x, m, y: y, 0.0),
    "var x": (lambda x, m, y: x * x, 2.0),
    "var m": (lambda x, m, y: m * m, 0.6 + (0.36 + 0.16) * 2 + 0.65),
    "cov x m": (lambda x, m, y: x * m, 0.6 * 2),
    "cov x y": (lambda x, m, y: x * y, (0.6 * 0.6 + 0.113) * 2 + 0.2 * 2),
    "cov m y": (lambda x, m, y: m * y, 0.6 * 2.29 + 2 * 2 * 0.6 * 0.113 + 0.2 * 1.2),
    "var r": (lambda x, m, y: (m - 0.6 * x) ** 2, 0.6 + 0.16 * 2 + 0.65),
    "E x r": (lambda x, m, y: x * (m - 0.6 * x), 0.0),
    "E x s": (lambda x, m, y: x * (y - 0.6 * m - 0.2 * x), 0.113 * 2),
    "E r s": (lambda x, m, y: (m - 0.6 * x) * (y - 0.6 * m - 0.2 * x), 0.113 * 0.6 * 2),
    "var s": (
        lambda x, m, y: (y - 0.6 * m - 0.2 * x) ** 2,
        0.4 + 0.16 * (0.6 + 0.65) + 2 * (0.16 * 0.36 + 0.16 * 0.16 + 2 * 0.113**2) + 0.04 * 2 + 0.45,
    ),
}
PAIRS = {
    "cov(x_i, x_k)": (lambda x, r, s: (x, x), 1.0),
    "var u_1 + var u_a": (lambda x, r, s: (r, r), 0.6 + 0.16),
    "var u_1 + 6 var u_a": (lambda x, r, s: (r * x, r * x), 0.6 + 6 * 0.16),
    ".6 cov(u_a, u_b)": (lambda x, r, s: (r, s), 0.6 * 0.113),
    "3.6 cov(u_a, u_b)": (lambda x, r, s: (r * x, s * x), 6 * 0.6 * 0.113),
}


def agrees(by_cluster, expected):
    """Within 4 Monte Carlo standard errors, clusters being the independent units (1 in 16,000 by chance)."""
    error = by_cluster.std(ddof=1) / np.sqrt(len(by_cluster))
    assert abs(by_cluster.mean() - expected) < 4 * error
    assert error < 0.05


@pytest.mark.parametrize("name", POPULATION)
def test_moments_of_the_population(name, population_draw):
    take, expected = POPULATION[name]
    agrees(take(*population_draw).mean(axis=1), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_moments_between_rows_of_a_cluster(name, population_draw):
    x, m, y = population_draw
    take, expected = PAIRS[name]
    one, other = take(x, m - 0.6 * x, y - 0.6 * m - 0.2 * x)
    size = x.shape[1]
    pairs = one.sum(axis=1) * other.sum(axis=1) - (one * other).sum(axis=1)
    agrees(pairs / (size * (size - 1)), expected)


@pytest.mark.parametrize(
    "arguments",
    [{"clusters": 0}, {"size": -1}, {"clusters": 2.0}, {"size": "8"}, {"clusters": True}, {"seed": -1}, {"seed": None}],
)
def test_simulate_refuses(arguments):
    name = next(iter(arguments))
    message = (
        "is not understood; give a whole number of rows" if name == "size" else "must be a whole number of at least"
    )
    with pytest.raises(jm.SpecError, match=f"{name}=.* {message}"):
        jm.simulate(**({"seed": 1} | arguments))


@pytest.mark.parametrize("seed", [2**63, 2**64, 2**70])
def test_large_seeds_are_used_or_refused(seed):
    try:
        data = jm.simulate(clusters=2, size=2, seed=seed)
    except jm.SpecError:
        return
    assert len(data) == 4
