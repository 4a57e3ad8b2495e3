"""The same model in other words, or the same data in another form: the answers must not tell which."""

from __future__ import annotations

import warnings
from dataclasses import replace

import dense
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import jaxmed as jm
from jaxmed._data.reader import read
from jaxmed._results.saved_fit import _at_stored

# Every route to a term in one model: a product with a column of the clusters (x:w) and one of rows (m1_miss:v), an
# indicator, and missing values. One system, so that all tests with it share a compiled program.
MODEL = jm.Mediation(
    "x",
    "m1_miss",
    "y_miss",
    "id",
    random={"m1_miss": ["1", "x"], "y_miss": ["1", "m1_miss"]},
    moderators={"w": "a", "v": "b"},
    covariates={"y_miss": ["site"]},
    reference={"site": "B"},
)
CENTRED = jm.Mediation(
    "x",
    "m1_miss",
    "y_miss",
    "id",
    random={"m1_miss": ["1", "within(x)"], "y_miss": ["1", "within(m1_miss)"]},
    moderators={"w": "b"},
    center="cluster",
    intercepts="correlated",
)


@pytest.fixture(scope="module")
def base(extended) -> jm.Fit:
    return jm.fit(extended, MODEL)


@pytest.fixture(scope="module")
def centred(extended) -> jm.Fit:
    return jm.fit(extended, CENTRED)


def assert_same(fit: jm.Fit, base: jm.Fit, tolerance: float = 1e-7) -> None:
    """Parameters in units of their standard errors, covariances in units of their diagonals, in order.

    By default 1e-7: sums in another order or columns at another scale change the last digits, the optimiser stops
    within 1e-10 of the optimum in the log likelihood, and sqrt(2e-10) = 1e-5 standard errors would be the worst case;
    its last Newton step, quadratic, is far closer.
    """
    assert fit.converged
    assert base.converged
    error = np.sqrt(np.diag(base.joint))
    np.testing.assert_allclose((fit.values - base.values) / error, 0, atol=tolerance)
    np.testing.assert_allclose((fit.joint - base.joint) / np.outer(error, error), 0, atol=tolerance)
    np.testing.assert_allclose((fit.block - base.block) / np.outer(error, error), 0, atol=tolerance)
    assert fit.loglik == pytest.approx(base.loglik, rel=1e-11)
    assert fit.nobs == base.nobs


def assert_same_effects(fit: jm.Fit, base: jm.Fit, rtol: float = 1e-7) -> None:
    pd.testing.assert_frame_equal(fit.effects(), base.effects(), check_exact=False, rtol=rtol, atol=1e-9)


def columns_of(system: jm.System, names: dict[str, str]) -> jm.System:
    """The same equations with other names for their terms."""
    equations = [
        jm.Equation(
            e.outcome, [names.get(p, p) for p in e.predictors], [names.get(p, p) for p in e.random], level=e.level
        )
        for e in system.equations
    ]
    return jm.System(equations, system.cluster, system.covariance, system.residuals)


# Terms as columns ----------------------------------------------------------------------------------------------------


def test_products_and_indicators_as_columns(extended, base):
    """Products and dummies made by the user; products of a column that is missing are missing."""
    data = extended.assign(
        xw=extended["x"] * extended["w"],
        mv_=extended["m1_miss"] * extended["v"],
        in_a=(extended["site"] == "A").astype(float),
        in_c=(extended["site"] == "C").astype(int),
    )
    names = {"x:w": "xw", "m1_miss:v": "mv_", "site[A]": "in_a", "site[C]": "in_c"}
    system = columns_of(base.system, names)
    assert set(names.values()) < set(system.columns)
    assert_same(jm.fit(data, system), base)


def test_the_system_of_a_mediation(extended, base, centred):
    """Terms in a System are those of the Mediation."""
    assert_same(jm.fit(extended, base.system), base, 0)
    assert_same(jm.fit(extended, centred.system), centred, 0)


def test_random_products_as_columns(extended):
    """A random slope of a row-level product, and one of a product with a column of the clusters."""
    model = jm.System(jm.Equation("yv", ["1", "x", "v", "w", "x:v", "x:w"], ["1", "x", "x:v", "x:w"]), "id")
    data = extended.assign(xv=extended["x"] * extended["v"], xw=extended["x"] * extended["w"])
    explicit = columns_of(model, {"x:v": "xv", "x:w": "xw"})
    # x:w has variance near zero here: at such an optimum the last digits of the covariances are less sharp.
    fit, other = jm.fit(extended, model), jm.fit(data, explicit)
    assert fit.loglik == pytest.approx(other.loglik, rel=0, abs=1e-7)
    error = np.sqrt(np.diag(other.block))[:6]
    np.testing.assert_allclose((fit.params.to_numpy() - other.params.to_numpy()) / error, 0, atol=1e-4)


@pytest.mark.parametrize("listwise", [False, True])
def test_centring_before_reading(extended, centred, listwise):
    """Deviations and means made by the user: over the rows where the column is observed, or over complete rows."""
    columns = ["x", "m1_miss", "y_miss", "w"]
    data = extended.dropna(subset=columns) if listwise else extended.copy()
    for name in ("x", "m1_miss"):
        mean = data.groupby("id")[name].transform("mean")
        data[f"{name}_dev"], data[f"{name}_mean"] = data[name] - mean, mean
    data["dev_w"], data["mean_w"] = data["m1_miss_dev"] * data["w"], data["m1_miss_mean"] * data["w"]
    # A row without m1 has no deviation and must not count in y, although the mean of its cluster is known.
    data["m1_miss_mean"] = data["m1_miss_mean"].where(data["m1_miss"].notna())
    names = {f"within({name})": f"{name}_dev" for name in ("x", "m1_miss")}
    names |= {f"between({name})": f"{name}_mean" for name in ("x", "m1_miss")}
    names |= {"within(m1_miss):w": "dev_w", "between(m1_miss):w": "mean_w"}
    fit = jm.fit(extended, CENTRED, missing="listwise") if listwise else centred
    assert fit.nobs == (2 * len(data) if listwise else 768 - 60 + len(extended.dropna(subset=columns)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.DesignWarning)  # the means are known on the other rows, too
        again = jm.fit(data, columns_of(fit.system, names))
    assert_same(again, fit, 1e-5)


def test_listwise_is_dropping_rows_first(extended, base):
    complete = extended.dropna(subset=["m1_miss", "y_miss"])
    fit = jm.fit(extended, MODEL, missing="listwise")
    again = jm.fit(complete, MODEL, missing="raise")
    assert_same(fit, again)
    assert fit.nobs == 2 * len(complete) < base.nobs
    assert fit.sample_summary.rows == 768
    np.testing.assert_allclose(fit.moderator_values["v"], again.moderator_values["v"], rtol=1e-12)


def test_an_equation_needs_its_own_columns_only(extended, base):
    """Missing categories and moderators remove rows of the equations that have them, and of no other.

    Those of the cluster, w, are missing in whole clusters: else they are known from its other rows.
    """
    data = extended.assign(
        site=extended["site"].mask(pd.factorize(extended["id"])[0] % 9 == 0),
        w=extended["w"].mask(pd.factorize(extended["id"])[0] % 11 == 0),
    )
    fit = jm.fit(data, MODEL)
    in_m = data[["x", "w", "m1_miss"]].notna().all(axis=1).sum()
    in_y = data[["x", "v", "m1_miss", "site", "y_miss"]].notna().all(axis=1).sum()
    assert fit.sample_summary.used == (in_m, in_y)
    assert fit.sample_summary.missing["site[A]"] == data["site"].isna().sum()
    system = columns_of(fit.system, {})
    loglik = dense.loglik(dense.stack(data, system), fit.random_cov.to_numpy(), fit.residual_cov.to_numpy(), True)
    assert fit.loglik == pytest.approx(loglik, rel=1e-11)


# Categories ----------------------------------------------------------------------------------------------------------

CODES = {
    "text": {"A": "A", "B": "B", "C": "C"},
    "integers": {"A": 3, "B": 1, "C": 2},
    "floats": {"A": 1.5, "B": -1.0, "C": 2.0},
    "long text": {"A": "the north-east", "B": "a:b [x] ~ 1", "C": "Zürich (x)"},
    "text that is numbers": {"A": "1.0", "B": "01", "C": "1"},
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("frame", ["pandas", "polars", "pyarrow"])
def test_kinds_of_categories(extended, base, kind, frame):
    """However categories are written, the coefficient of each is the same."""
    convert = {"pandas": lambda d: d, "polars": pl.from_pandas, "pyarrow": pa.Table.from_pandas}[frame]
    codes = CODES[kind]
    model = replace_reference(codes["B"])
    fit = jm.fit(convert(extended.assign(site=extended["site"].map(codes))), model)

    def text(value):
        return f"{value:g}" if isinstance(value, float) else str(value)

    labels = [f"y_miss~site[{text(codes[k])}]" for k in "AC"]
    expected = base.params[["y_miss~site[A]", "y_miss~site[C]"]]
    error = base.bse[expected.index]
    np.testing.assert_allclose((fit.params[labels].to_numpy() - expected) / error, 0, atol=1e-7)
    assert fit.loglik == pytest.approx(base.loglik, rel=1e-11)


def replace_reference(category) -> jm.Mediation:
    plain = MODEL.to_dict() | {"reference": {"site": category}}
    plain.pop("kind")
    return jm.Mediation(**plain)


def test_categories_of_a_pandas_categorical(extended, base):
    """Unused categories are no categories, and the order of pandas plays no part."""
    site = pd.Categorical(extended["site"], categories=["C", "unused", "A", "B"], ordered=True)
    assert_same(jm.fit(extended.assign(site=site), MODEL), base)


def test_another_reference_is_the_same_model(extended, base):
    """Coefficients of categories are differences from the reference; log|T| = 0 in the restricted likelihood."""
    fit = jm.fit(extended, replace_reference("A"))
    b, c = fit.params["y_miss~site[B]"], fit.params["y_miss~site[C]"]
    found = {"A": -b, "C": c - b}
    for category, value in found.items():
        label = f"y_miss~site[{category}]"
        assert value == pytest.approx(base.params[label], rel=0, abs=1e-7 * base.bse[label])
    assert fit.loglik == pytest.approx(base.loglik, rel=1e-11)
    assert_same_effects(fit, base)


def test_moments_do_not_take_another_reference_for_a_category(extended, base):
    """From moments with indicators of A and C: the same answer as from the data, or a refusal."""
    model = replace_reference("A")
    try:
        fit = jm.fit(base.moments, model)
    except jm.DataError:
        return
    assert_same(fit, jm.fit(extended, model))


def test_booleans_are_categories_or_numbers(extended):
    """A boolean column as 0 and 1, and as a category with the reference False."""
    data = extended.assign(flag=extended["tx"] == 1)
    random = {"m1": ["1"], "y": ["1"]}
    numbers = jm.fit(data, jm.Mediation("x", "m1", "y", "id", random=random, covariates=["tx"]))
    plain = jm.fit(data, jm.Mediation("x", "m1", "y", "id", random=random, covariates=["flag"]))
    assert_same(plain, numbers)
    for reference in (False, "False"):
        model = jm.Mediation("x", "m1", "y", "id", random=random, covariates=["flag"], reference={"flag": reference})
        for frame in (data, pl.from_pandas(data), pa.Table.from_pandas(data)):
            fit = jm.fit(frame, model)
            assert "y~flag[True]" in fit.params.index
            assert_same(fit, numbers)


# Frames and chunks ---------------------------------------------------------------------------------------------------

FRAMES = {
    "polars": pl.from_pandas,
    "polars lazy": lambda data: pl.from_pandas(data).lazy(),
    "pyarrow": lambda data: pa.Table.from_pandas(data),
    "duckdb": lambda data: duckdb.from_arrow(pa.Table.from_pandas(data)),
    "pandas with text index": lambda data: data.set_index("id", drop=False),
}


@pytest.mark.parametrize("frame", FRAMES)
def test_frames(extended, base, centred, frame):
    """Engines sum in another order: rounding alone."""
    for model, expected in ((MODEL, base), (CENTRED, centred)):
        fit = jm.fit(FRAMES[frame](extended), model)
        assert_same(fit, expected)
        assert fit.facts == expected.facts
        for name, values in expected.moderator_values.items():
            np.testing.assert_allclose(fit.moderator_values[name], values, rtol=1e-12)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_files(extended, base, centred, tmp_path, ending):
    path = tmp_path / f"data{ending}"
    extended.to_csv(path, index=False) if ending == ".csv" else extended.to_parquet(path)
    assert_same(jm.fit(path, MODEL), base)
    assert_same(jm.fit(str(path), CENTRED), centred)


@pytest.mark.parametrize("by", ["rows", "clusters"])
@pytest.mark.parametrize("model", [MODEL, CENTRED], ids=["products", "centred"])
def test_chunks_add_up(extended, base, centred, by, model):
    """Moments of parts of the rows, or of parts of the clusters, add up to those of the whole."""
    expected = base if model is MODEL else centred
    in_first = np.arange(len(extended)) % 3 == 0 if by == "rows" else extended["id"] < "c31"
    parts = [read(part, expected.system, facts=expected.facts) for part in (extended[in_first], extended[~in_first])]
    fit = jm.fit(parts[0] + parts[1], model)
    assert_same(fit, expected)
    assert fit.sample_summary.used == expected.sample_summary.used
    assert_same_effects(fit, expected)


def test_moments_stand_for_the_data(base, centred):
    for fit, model in ((base, MODEL), (centred, CENTRED)):
        again = jm.fit(fit.moments, model)
        assert_same(again, fit)
        assert_same_effects(again, fit)


@pytest.mark.parametrize("seed", range(2))
def test_row_order_and_cluster_labels(extended, base, centred, seed):
    shuffled = extended.sample(frac=1, random_state=seed)
    names = shuffled["id"].unique()
    numbers = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) * 7 - 100, strict=True))
    data = shuffled.assign(id=shuffled["id"].map(numbers))
    for model, expected in ((MODEL, base), (CENTRED, centred)):
        fit = jm.fit(data, model)
        assert_same(fit, expected)
        old = expected.ranef()
        found = fit.ranef().loc[[numbers[name] for name in old.index]]
        np.testing.assert_allclose(found, old.to_numpy(), rtol=1e-6, atol=1e-7)


def test_units(extended, base):
    """x' = 1000 x + 4000, w' = 10 w - 3, v' = v/100 + 1, m' = m/50 - 20, y' = 8 y + 5: effects in their new units.

    Moderators enter as main effects and intercepts are free, so that origins do not matter; the default values of the
    moderators follow them. 1e-6: the user's intercepts lie far outside the data.
    """
    data = extended.assign(
        x=extended["x"] * 1000 + 4000,
        w=extended["w"] * 10 - 3,
        v=extended["v"] / 100 + 1,
        m1_miss=extended["m1_miss"] / 50 - 20,
        y_miss=extended["y_miss"] * 8 + 5,
    )
    fit = jm.fit(data, MODEL)
    unit = {"a": 1 / 50 / 1000, "b": 8 * 50, "c_prime": 8 / 1000, "cov_ab": 8 / 1000, "indirect": 8 / 1000}
    unit |= {"total": 8 / 1000, "index_w": 8 / 1000 / 10, "index_v": 8 / 1000 * 100}
    expected, found = base.effects(), fit.effects()
    assert list(found.index.get_level_values(0)) == list(expected.index.get_level_values(0))
    factor = np.array([unit[name] for name in expected.index.get_level_values(0)])
    for column in ("estimate", "se", "ci_lower", "ci_upper"):
        np.testing.assert_allclose(found[column], expected[column] * factor, rtol=1e-6, atol=1e-12)
    values = found.index.get_level_values("w").to_numpy(float), expected.index.get_level_values("w").to_numpy(float)
    np.testing.assert_allclose(values[0], values[1] * 10 - 3, rtol=1e-10)
    share = "share_indirect_positive"
    np.testing.assert_allclose(fit.heterogeneity().loc[share], base.heterogeneity().loc[share], rtol=1e-6)


# Structures ----------------------------------------------------------------------------------------------------------


def dense_loglik(fit: jm.Fit, data: pd.DataFrame, system: jm.System | None = None) -> float:
    """At the fit's variances, in another system's dense matrices; GLS for its coefficients."""
    clusters = dense.stack(data, system or fit.system)
    return dense.loglik(clusters, fit.random_cov.to_numpy(), fit.residual_cov.to_numpy(), fit.reml)


@pytest.mark.parametrize(
    "covariance",
    ["diagonal", pytest.param("block", marks=pytest.mark.slow), [["m1~1", "y~1"], ["m1~x", "y~m1"]]],
)
def test_structures_are_unstructured_with_zeros(extended, covariance):
    """The likelihood at a structured optimum is the unstructured model's there, and below its maximum.

    Relative 1e-11: the dense matrices of 90 clusters lose some digits of 16.
    """
    random = {"m1": ["1", "x"], "y": ["1", "m1"]}
    roles = {"x": "x", "m": "m1", "y": "y", "cluster": "id", "random": random}
    fit = jm.fit(extended, jm.Mediation(**roles, covariance=covariance))
    free = jm.fit(extended, jm.Mediation(**roles))
    held = fit.random_cov_se.isna().to_numpy()
    assert np.all(fit.random_cov.to_numpy()[held] == 0)
    assert held.sum() == {"diagonal": 12, "block": 8}.get(str(covariance), 8)
    assert fit.loglik == pytest.approx(dense_loglik(fit, extended, free.system), rel=1e-11)
    assert fit.loglik < free.loglik
    # No entry that is free can be improved: the slope of the dense likelihood vanishes there, in units of its errors.
    clusters = dense.stack(extended, free.system)
    g, sigma = fit.random_cov.to_numpy(), fit.residual_cov.to_numpy()
    for row, col in fit.free:
        step = np.zeros_like(g)
        step[row, col] = step[col, row] = 1e-3 * fit.random_cov_se.to_numpy()[row, col]
        up, down = (dense.loglik(clusters, g + sign * step, sigma, True) for sign in (1, -1))
        assert abs(up - down) / 2e-3 < 1e-4


def test_parallel_mediators_with_independent_residuals(extended):
    """The correlated model at a covariance of zero, by its own code and in dense matrices."""
    roles = {"x": "x", "m": ["m1_miss", "m2"], "y": "y", "cluster": "id"}
    random = {"m1_miss": ["1", "x"], "m2": ["1"], "y": ["1"]}
    fit = jm.fit(extended, jm.Mediation(**roles, random=random, residuals="independent"))
    correlated = jm.Mediation(**roles, random=random)
    working = fit.working._replace(**{name: np.append(getattr(fit.working, name), 0.0) for name in ("theta", "values")})
    at_zero = replace(fit, spec=correlated, working=working)
    assert at_zero.system.residual_pairs == ((1, 0),)
    assert _at_stored(at_zero)[0] == pytest.approx(fit.loglik, rel=1e-12)
    assert dense_loglik(fit, extended, correlated.system()) == pytest.approx(fit.loglik, rel=1e-11)
    free = jm.fit(extended, correlated)
    assert free.loglik > fit.loglik
    assert dense_loglik(free, extended) == pytest.approx(free.loglik, rel=1e-11)


def test_parallel_mediators_in_another_order(extended):
    """m2 before m1: the same numbers under the same names."""
    random = {"m1_miss": ["1", "x"], "m2": ["1"], "y": ["1"]}
    orders = (["m1_miss", "m2"], ["m2", "m1_miss"])
    one, other = (jm.fit(extended, jm.Mediation("x", names, "y", "id", random=random)) for names in orders)
    error = one.bse
    np.testing.assert_allclose((other.params[error.index] - one.params) / error, 0, atol=1e-6)
    rows = [name for name in one.effects().index if " - " not in name]
    np.testing.assert_allclose(other.effects().loc[rows, "se"], one.effects().loc[rows, "se"], rtol=1e-6)
    contrast = other.effects().loc["indirect_m2 - indirect_m1_miss", "estimate"]
    assert contrast == pytest.approx(-one.effects().loc["indirect_m1_miss - indirect_m2", "estimate"], rel=1e-6)
    assert one.loglik == pytest.approx(other.loglik, rel=1e-11)


@pytest.mark.parametrize("reml", [True, False])
def test_221_is_two_fits(extended, reml):
    """Nothing is shared between the equations: a regression over clusters, and a mixed model over rows."""
    with pytest.warns(jm.DesignWarning):
        fit = jm.fit(extended, jm.Mediation("xc", "mc", "yc", "id"), reml=reml)
    clusters = extended.groupby("id")[["xc", "mc"]].first()
    x = np.column_stack([np.ones(len(clusters)), clusters["xc"]])
    beta, rss, *_ = np.linalg.lstsq(x, clusters["mc"].to_numpy(), rcond=None)
    df = len(clusters) - 2 * reml
    variance = rss[0] / df
    error = np.sqrt(variance * np.diag(np.linalg.inv(x.T @ x)))
    np.testing.assert_allclose(fit.params[["mc~1", "mc~xc"]], beta, rtol=1e-8)
    np.testing.assert_allclose(fit.bse[["mc~1", "mc~xc"]], error, rtol=1e-8)
    assert fit.residual_var["mc"] == pytest.approx(variance, rel=1e-8)
    loglik = -(df * np.log(2 * np.pi * variance) + df + reml * np.linalg.slogdet(x.T @ x)[1]) / 2
    rows = jm.fit(extended, jm.System(jm.Equation("yc", ["1", "mc", "xc"], ["1"]), "id"), reml=reml)
    assert fit.loglik == pytest.approx(loglik + rows.loglik, rel=1e-10)
    np.testing.assert_allclose(fit.params[rows.params.index], rows.params, rtol=1e-6)
    np.testing.assert_allclose(fit.bse[rows.bse.index], rows.bse, rtol=1e-6)
    np.testing.assert_allclose(fit.random_cov, rows.random_cov, rtol=1e-6)
    effect = fit.effects().loc["indirect"]
    a, b, var_a, var_b = beta[1], rows.params["yc~mc"], error[1] ** 2, rows.bse["yc~mc"] ** 2
    assert effect["estimate"] == pytest.approx(a * b, rel=1e-6)
    assert effect["se"] == pytest.approx(np.sqrt(a**2 * var_b + b**2 * var_a), rel=1e-6)


@pytest.mark.slow
def test_serial_mediators_with_independent_equations(extended):
    """Without covariances between equations each is a fit of its own: log likelihoods and coefficients add up."""
    random = {"m1": ["1", "x"], "m2": ["1"], "y": ["1"]}
    model = jm.Mediation("x", ["m1", "m2"], "y", "id", serial=True, random=random, covariance="block")
    fit = jm.fit(extended, model)
    parts = [jm.fit(extended, jm.System(equation, "id")) for equation in model.system().equations]
    assert fit.loglik == pytest.approx(sum(part.loglik for part in parts), rel=1e-10)
    for part in parts:
        np.testing.assert_allclose((fit.params[part.params.index] - part.params) / part.bse, 0, atol=1e-6)
        np.testing.assert_allclose(fit.bse[part.bse.index], part.bse, rtol=1e-5)


def test_chunks_of_single_rows_keep_what_they_know_of_levels(extended):
    """In the first rows of clusters every column has one value; together with the rest it is known which do vary."""
    first = ~extended["id"].duplicated()
    model = jm.Mediation("tx", "mt", "yt", "id", moderators={"w": "b"})
    parts = [read(rows, model.system()) for rows in (extended[first], extended[~first])]
    whole = read(extended, model.system())
    assert parts[0].cluster_level == frozenset()
    for moments in (parts[0] + parts[1], parts[0] + parts[1].lean(), parts[1].lean() + parts[0]):
        assert moments.cluster_level == whole.cluster_level == {"tx", "w"}
    assert (parts[0] + parts[1].lean()).row_products == whole.lean().row_products
    moved = extended.assign(w=extended["w"].where(first, extended["w"] + 1))
    both = [read(rows, model.system()) for rows in (moved[first], moved[~first])]
    assert (both[0] + both[1]).cluster_level == {"tx"}
    with pytest.raises(jm.DataError, match="a moderator varies within clusters in one part of the data only"):
        both[0] + both[1].lean()


def test_a_column_is_of_the_clusters_in_the_rows_that_count(extended):
    """tx is 9 in one row without an outcome: listwise that row is not there."""
    data = extended.assign(
        yt=extended["yt"].where(extended.index != 3), tx=extended["tx"].where(extended.index != 3, 9)
    )
    model = jm.Mediation("tx", "mt", "yt", "id")
    assert "tx" in read(data, model.system(), "listwise").cluster_level
    assert "tx" not in read(data, model.system()).cluster_level


@pytest.mark.parametrize("model", [CENTRED, jm.Mediation("x", "m1_miss", "y_miss", "id", random="none")])
def test_clusters_without_a_row_that_counts_are_not_counted(extended, model):
    """Also where their x has a mean, and where a listwise fit is made from moments that hold more."""
    idle = extended["id"].isin(["c41", "c84"])
    data = extended.assign(m1_miss=extended["m1_miss"].mask(idle))
    read_all = jm.fit(data, model)
    listwise = jm.fit(read(data, model.system()), model, missing="listwise") if model.center is None else read_all
    for fit in (read_all, listwise):
        assert fit.n_clusters == extended["id"].nunique() - 2
        assert fit.cluster_sizes[0] > 0
        if fit.free:
            assert len(fit.ranef()) == fit.n_clusters
