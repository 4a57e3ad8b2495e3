"""What is filled in and what looks odd in the data: said once, by every route, with a remedy that works."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import jaxmed as jm
from jaxmed._data.moments import SampleSummary
from jaxmed._data.reader import read
from jaxmed._support import convert

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
MODEL = jm.Mediation(**ROLES)
SCHOOLS = jm.Mediation("training", "morale", "achievement", "school")
SECTORS = jm.Mediation(
    "training", "morale", "achievement", "school", covariates=["sector"], reference={"sector": "public"}
)

pytestmark = pytest.mark.filterwarnings("ignore::jaxmed.DesignWarning")


def _duckdb(rows):
    return duckdb.from_arrow(pa.Table.from_pandas(rows, preserve_index=False))


def _file(ending):
    def convert(rows, folder):
        path = folder / f"rows{ending}"
        rows.to_csv(path, index=False) if ending == ".csv" else rows.to_parquet(path, index=False)
        return path

    return convert


IN_MEMORY = {
    "pandas": lambda rows, _: rows,
    "polars": lambda rows, _: pl.from_pandas(rows),
    "pyarrow": lambda rows, _: pa.Table.from_pandas(rows, preserve_index=False),
    "csv": _file(".csv"),
    "parquet": _file(".parquet"),
}
LAZY = {
    "polars lazy": lambda rows, _: pl.from_pandas(rows).lazy(),
    "duckdb": lambda rows, _: _duckdb(rows),
}
ROUTES = IN_MEMORY | LAZY
each_route = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture(scope="module")
def schools():
    return jm.datasets.load_schools()


@pytest.fixture
def tiny(shrink):
    """A few rows at a time, and few clusters that wait to be added up."""
    shrink(parquet_rows=7, csv_bytes=500, frame_rows=7, cache_rows=4, waiting_clusters=5)


def make_rows(seed=0, clusters=60, size=6):
    """Columns id, x, m, y and a cluster-level w."""
    rows = jm.simulate(clusters=clusters, size=size, seed=seed)
    return rows.assign(w=np.sqrt(rows["id"] + 1.0))


def once(data, cluster, *columns, last=False):
    """Blank on all rows of a cluster but one."""
    kept = ~data[cluster].duplicated(keep="last" if last else "first")
    return data.assign(**{name: data[name].where(kept) for name in columns})


def remarks(data, model=MODEL, **options):
    return jm.read_moments(data, model, **options).sample_summary.remarks


def only(data, model=MODEL):
    (found,) = remarks(data, model)
    return found


def run(code, data):
    """Data after a remedy that a message gives."""
    names = {"data": data.copy(), "pandas": pd}
    exec(code, names)
    return names["data"]


def remedy(text, start="data"):
    """The code at the end of a message."""
    return text[text.index(f": {start}") + 2 :]


# One value per cluster, entered once ---------------------------------------------------------------------------------


@each_route
def test_values_of_the_cluster_entered_once_are_filled_in(route, schools, tmp_path):
    blank = once(once(schools, "school", "morale"), "school", "sector", last=True)
    full = jm.read_moments(ROUTES[route](schools, tmp_path), SECTORS)
    found = jm.read_moments(ROUTES[route](blank, tmp_path), SECTORS)
    n = len(schools) - schools["school"].nunique()
    assert found.sample_summary.filled == {"sector[church]": n, "sector[private]": n, "morale": n}
    assert found.sample_summary.missing == full.sample_summary.missing
    assert found.sample_summary.ranges == full.sample_summary.ranges
    assert found.cluster_level == full.cluster_level == {"training", "morale", "sector[church]", "sector[private]"}
    assert found.sample_summary.remarks == (
        "'sector' has one value in each cluster, entered on some rows only: 935 rows were filled in with the value of "
        "their cluster",
        "'morale' has one value in each cluster, entered on some rows only: 935 rows were filled in with the value of "
        "their cluster",
    )
    np.testing.assert_array_equal(found.shift, full.shift)
    np.testing.assert_array_equal(found.scale, full.scale)
    assert [pattern.observed for pattern in found.patterns] == [pattern.observed for pattern in full.patterns]
    tolerance = 0 if route in IN_MEMORY else 1e-12  # engines add in an order of their own
    np.testing.assert_allclose(found.table, full.table, rtol=0, atol=tolerance)
    for name, values in full.constants.items():
        np.testing.assert_array_equal(found.constants[name], values)


def test_the_frame_that_is_filled_in_is_not_changed(schools):
    blank = once(schools, "school", "morale")
    before = blank.copy(deep=True)
    jm.read_moments(blank, SCHOOLS)
    pd.testing.assert_frame_equal(blank, before)


def test_a_mediator_entered_once_is_a_mediator_of_the_cluster(schools):
    blank = once(schools, "school", "morale")
    full, found = jm.fit(schools, SCHOOLS), jm.fit(blank, SCHOOLS)
    assert found.loglik == full.loglik
    assert found.params.equals(full.params)
    assert found.facts.cluster_level == {"training", "morale"}
    pd.testing.assert_frame_equal(found.residuals(blank), full.residuals(schools))
    pd.testing.assert_frame_equal(jm.stack(blank, SCHOOLS), jm.stack(schools, SCHOOLS))
    for method in ("residual", "cluster"):
        one, other = (
            jm.bootstrap(fit, 10, method, seed=1, data=data).table for fit, data in ((full, schools), (found, blank))
        )
        pd.testing.assert_frame_equal(one, other)


@each_route
def test_rows_are_the_same_however_they_are_looked_at(route, schools, tmp_path):
    blank = ROUTES[route](once(schools, "school", "morale"), tmp_path)
    pd.testing.assert_frame_equal(jm.stack(blank, SCHOOLS), jm.stack(schools, SCHOOLS), check_dtype=False)
    described = jm.describe(blank, SCHOOLS)
    assert described.variables.loc["morale", ["count", "missing"]].tolist() == [len(schools), 0]
    assert "935 rows were filled in" in "".join(described.notes)


@pytest.mark.parametrize("route", ["pandas", "polars", "csv", "parquet"])
def test_filling_does_not_depend_on_chunks(route, schools, tmp_path, tiny):
    rows = schools.sample(frac=1, random_state=1, ignore_index=True)
    for data in (schools, rows):
        blank = once(data, "school", "morale", "sector")
        full, found = jm.read_moments(ROUTES[route](data, tmp_path), SECTORS), None
        found = jm.read_moments(ROUTES[route](blank, tmp_path), SECTORS)
        assert found.sample_summary.filled["morale"] == len(data) - 90
        np.testing.assert_allclose(found.table, full.table, rtol=0, atol=0 if route != "csv" else 1e-12)
        pd.testing.assert_frame_equal(
            jm.stack(ROUTES[route](blank, tmp_path), SCHOOLS), jm.stack(data, SCHOOLS), check_dtype=False
        )


def test_nan_and_null_are_both_filled_in(schools):
    blank = once(schools, "school", "morale")
    frame = pl.from_pandas(blank)
    assert frame["morale"].null_count()
    nan = frame.with_columns(pl.col("morale").fill_null(float("nan")))
    full = jm.read_moments(schools, SCHOOLS)
    for data in (frame, nan, nan.lazy(), nan.to_arrow(), duckdb.from_arrow(nan.to_arrow())):
        found = jm.read_moments(data, SCHOOLS)
        assert found.sample_summary.filled == {"morale": 935}
        np.testing.assert_allclose(found.table, full.table, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["text", "dates", "missing", "decimals"])
@pytest.mark.parametrize("route", ["pandas", "csv", "polars lazy", "duckdb"])
def test_filling_by_ids_of_any_kind(kind, route, schools, tmp_path, tiny):
    label = {
        "text": lambda ids: "s" + ids.astype(str),
        "dates": lambda ids: pd.Timestamp("2020-02-27") + pd.to_timedelta(ids, unit="D"),
        "missing": lambda ids: ids.where(ids != 7).astype(float),
        "decimals": lambda ids: ids / 4,
    }[kind]
    rows = schools.assign(school=label(schools["school"]))
    blank = once(rows, "school", "morale")
    found = jm.read_moments(ROUTES[route](blank, tmp_path), SCHOOLS)
    lost = schools["school"].eq(7).sum() if kind == "missing" else 0
    kept = 1 if lost else 0  # of the rows without an id the first keeps its value
    assert found.sample_summary.missing["morale"] == max(lost - kept, 0)
    assert found.sample_summary.filled["morale"] == len(rows) - rows["school"].nunique() - lost
    full = jm.read_moments(ROUTES[route](rows, tmp_path), SCHOOLS)
    np.testing.assert_array_equal(found.clusters, full.clusters)
    np.testing.assert_allclose(found.table, full.table, rtol=0, atol=1e-12)


@each_route
def test_what_stays_missing_is_missing(route, schools, tmp_path):
    """A school without any value has none afterwards; the outcome of a Mediation is never filled in."""
    first = ~schools["school"].duplicated()
    blank = once(schools, "school", "morale")
    blank = blank.assign(
        morale=blank["morale"].where(blank["school"] != 3), achievement=schools["achievement"].where(first)
    )
    found = jm.read_moments(ROUTES[route](blank, tmp_path), SCHOOLS).sample_summary
    n = int((schools["school"] == 3).sum())
    assert found.missing["morale"] == n
    assert found.filled == {"morale": len(schools) - 90 - (n - 1)}
    assert found.missing["achievement"] == blank["achievement"].isna().sum()
    with pytest.raises(jm.DataError, match=r"missing values .*'morale': "):
        jm.read_moments(ROUTES[route](blank, tmp_path), SCHOOLS, missing="raise")


def test_missing_rows_are_those_after_filling(schools):
    data = schools.dropna()
    blank = once(data, "school", "morale")
    assert jm.read_moments(blank, SCHOOLS, missing="raise").sample_summary.used == (len(data), len(data))
    assert jm.read_moments(blank, SCHOOLS, missing="listwise").sample_summary.dropped == 0


@each_route
def test_a_column_that_varies_within_a_cluster_is_not_filled_in(route, schools, tmp_path):
    for name in ("motivation", "support"):
        gaps = schools.assign(**{name: schools[name].where(schools.index % 5 > 0)})
        model = jm.Mediation("support", "motivation", "achievement", "school")
        found = jm.read_moments(ROUTES[route](gaps, tmp_path), model).sample_summary
        assert found.filled == {}
        assert found.missing[name] == 205
        assert found.remarks == ()


@pytest.mark.parametrize("route", ["pandas", "polars lazy", "duckdb"])
def test_variation_within_one_late_cluster_is_enough(route, schools, tmp_path, tiny):
    blank = once(schools, "school", "morale")
    blank.loc[len(blank) - 1, "morale"] = 50.0
    assert jm.read_moments(ROUTES[route](blank, tmp_path), SCHOOLS).sample_summary.filled == {}


@each_route
def test_filling_to_the_tolerance_of_one_value(route, schools, tmp_path):
    """Two rows of a school have the value, in two precisions: the middle is filled in."""
    blank = once(schools, "school", "morale")
    second = schools.groupby("school").cumcount() == 1
    blank["morale"] = blank["morale"].where(~second, schools["morale"].astype("float32").astype(float))
    found = jm.read_moments(ROUTES[route](blank, tmp_path), SCHOOLS)
    assert found.sample_summary.filled == {"morale": len(schools) - 180}
    assert "morale" in found.cluster_level
    assert "'morale' is almost constant within clusters" in found.sample_summary.remarks[1]


def test_one_row_is_filled_in():
    rows = make_rows()
    rows.loc[3, "w"] = np.nan
    model = jm.Mediation(**ROLES, covariates=["w"])
    assert only(rows, model) == (
        "'w' has one value in each cluster, entered on some rows only: 1 row was filled in with that of its cluster"
    )


def test_filling_for_a_system():
    """Every column but the outcomes of the row."""
    rows = make_rows().assign(m=lambda table: np.sin(table["id"]))
    blank = once(rows, "id", "w", "m")
    equations = [jm.Equation("m", ["1", "w"], level=2), jm.Equation("y", ["1", "m", "x"], ["1"])]
    found = jm.read_moments(blank, jm.System(equations, "id"))
    assert found.sample_summary.filled == {"w": 300, "m": 300}
    assert jm.fit(blank, jm.System(equations, "id")).loglik == jm.fit(rows, jm.System(equations, "id")).loglik
    row = jm.System([jm.Equation("m", ["1", "w"]), jm.Equation("y", ["1", "x"], ["1"])], "id")
    assert jm.read_moments(blank, row).sample_summary.filled == {"w": 300}
    assert read(blank, row).sample_summary.filled == {"w": 300}


@pytest.mark.parametrize("route", ["pandas", "polars lazy"])
def test_indicators_are_filled_in_together_or_not_at_all(route, schools, tmp_path):
    """The one indicator of a system would have one value in every school though the category varies."""
    rows = schools.assign(sector=np.where(schools["sector"] == "church", "church", None))
    rows.loc[schools.index % 2 == 0, "sector"] = None
    varies = (schools["school"] == 2) & (schools.index % 2 == 1)
    rows.loc[varies, "sector"] = np.where(np.cumsum(varies[varies]) % 2, "public", "private")
    both = jm.System([jm.Equation("achievement", ["1", "sector[public]", "sector[church]"])], "school")
    assert read(ROUTES[route](rows, tmp_path), both).sample_summary.filled == {}


def test_moments_of_parts_of_the_clusters_add_up(schools):
    blank = once(schools, "school", "morale")
    first = blank["school"] <= 40
    total = jm.read_moments(blank[first], SCHOOLS) + jm.read_moments(blank[~first], SCHOOLS)
    assert total.sample_summary.filled == {"morale": 935}
    assert total.cluster_level == {"training", "morale"}
    assert len(total.sample_summary.remarks) == 2
    assert jm.fit(total, SCHOOLS).loglik == pytest.approx(jm.fit(schools, SCHOOLS).loglik, rel=1e-9)


def test_parts_in_which_a_column_of_the_rows_seemed_to_be_one_of_the_clusters():
    """In each half x is observed in one row of every cluster, with another value in the other half."""
    rows = make_rows(size=4)
    place = rows.groupby("id").cumcount()
    rows["x"] = rows["x"].where(place.isin([0, 2]))
    parts = [jm.read_moments(rows[half], MODEL) for half in (place < 2, place >= 2)]
    assert parts[0].sample_summary.filled == {"x": 60}
    with pytest.raises(
        jm.DataError, match=r"'x' has one value in each cluster of one part .*; read the data in one go"
    ):
        parts[0] + parts[1]
    assert jm.read_moments(rows, MODEL).sample_summary.filled == {}


# Kept ----------------------------------------------------------------------------------------------------------------


def test_what_was_filled_in_and_said_is_saved(schools, tmp_path):
    blank = once(schools, "school", "morale")
    moments = jm.read_moments(blank, SCHOOLS)
    jm.save_moments(moments, tmp_path / "a.moments")
    assert jm.load_moments(tmp_path / "a.moments").sample_summary == moments.sample_summary
    fit = jm.fit(blank, SCHOOLS)
    fit.save(tmp_path / "a.fit")
    assert jm.load(tmp_path / "a.fit").sample_summary == fit.sample_summary
    assert fit.sample_summary.filled == {"morale": 935}
    assert json.loads(fit.to_json())["rows"]["remarks"] == list(fit.sample_summary.remarks)


def test_readings_of_earlier_versions_are_read(tmp_path):
    moments = jm.read_moments(make_rows(), MODEL)
    jm.save_moments(moments, tmp_path / "a.moments")
    with np.load(tmp_path / "a.moments") as stored:
        arrays = dict(stored)
    header = json.loads(arrays["moments"].tobytes())
    del header["intake"]["filled"], header["intake"]["remarks"]
    arrays["moments"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with open(tmp_path / "b.moments", "wb") as stream:
        np.savez(stream, **arrays)
    assert jm.load_moments(tmp_path / "b.moments").sample_summary == moments.sample_summary
    plain = {"rows": 1, "used": [1], "missing": {}, "dropped": 0, "patterns": {}, "ranges": {}}
    assert convert(plain, SampleSummary) == SampleSummary(1, (1,), {}, 0)


def test_a_fit_of_an_earlier_version_is_read(tmp_path):
    from jaxmed._inference.record import fields_from_dict

    plain = json.loads(jm.fit(make_rows(), MODEL).to_json())
    expected = fields_from_dict(plain)["sample_summary"]
    del plain["rows"]["filled"], plain["rows"]["remarks"]
    assert fields_from_dict(plain)["sample_summary"] == expected


def test_readings_add_up():
    one = SampleSummary(3, (2,), {"x": 1}, 1, {"x": 2}, {"x": (0.0, 1.0)}, {"w": 2}, ("a", "b"))
    other = SampleSummary(2, (2,), {"x": 0}, 0, {"x": 2}, {"x": (-1.0, 0.5)}, {"w": 1, "v": 3}, ("b", "c"))
    total = one + other
    assert total.filled == {"w": 3, "v": 3}
    assert total.remarks == ("a", "b", "c")


def test_remarks_for_a_model_with_fewer_columns(schools):
    """From the same moments, without a word on columns that the other model has not."""
    blank = once(schools.dropna(), "school", "morale", "sector", "climate")
    model = jm.Mediation(
        "training", "morale", "achievement", "school", covariates=["sector", "climate"], reference={"sector": "public"}
    )
    moments = jm.read_moments(blank, model)
    assert {remark.split()[0] for remark in moments.sample_summary.remarks} == {"'sector'", "'climate'", "'morale'"}
    indicators = {"sector[church]", "sector[private]"}
    for spec, filled, about in (
        (SCHOOLS, {"morale"}, ["'morale'"]),
        (SECTORS, {"morale", *indicators}, ["'sector'", "'morale'"]),
    ):
        sample = jm.fit(moments, spec).sample_summary
        assert set(sample.filled) == filled
        assert [remark.split()[0] for remark in sample.remarks] == about


# Almost constant within clusters -------------------------------------------------------------------------------------


def rounded_means(digits=None):
    """m and y of rows, x of clusters in two precisions."""
    rows = make_rows(clusters=100)
    x = rows.groupby("id")["x"].transform("mean")
    other = x.astype("float32").astype(float) if digits is None else x.round(digits)
    return rows.assign(x=x.where(rows.groupby("id").cumcount() % 2 == 0, other)), x


@each_route
@pytest.mark.parametrize("digits", [None, 5])
def test_values_that_rounding_tells_apart_are_one(digits, route, tmp_path):
    rows, x = rounded_means(digits)
    found = jm.read_moments(ROUTES[route](rows, tmp_path), MODEL)
    assert found.cluster_level == {"x"}
    (said,) = found.sample_summary.remarks
    spread = rows.groupby("id")["x"].max() - rows.groupby("id")["x"].min()
    different = np.sum(spread > 1e-10 * (rows["x"].max() - rows["x"].min()))
    assert said == (
        f"'x' is almost constant within clusters: in {different} of 100 clusters its values differ, by "
        f"{spread.max():.2g} at the most, as rounding does; it is taken as constant within clusters"
    )
    exact = jm.read_moments(rows.assign(x=x), MODEL)
    np.testing.assert_allclose(found.constants["x"], exact.constants["x"], atol=1e-5)


def test_a_fit_of_values_that_rounding_tells_apart():
    rows, x = rounded_means()
    found, exact = jm.fit(rows, MODEL), jm.fit(rows.assign(x=x), MODEL)
    assert found.facts.cluster_level == {"x"}
    assert found.loglik == pytest.approx(exact.loglik, abs=1e-4)
    np.testing.assert_allclose(found.params, exact.params, atol=1e-5)


def test_rounding_of_double_precision_is_not_worth_a_word():
    rows = make_rows()
    rows["w"] *= 1 + 1e-15 * (rows.index % 3)
    model = jm.Mediation(**ROLES, covariates=["w"])
    assert remarks(rows, model) == ()
    assert jm.read_moments(rows, model).cluster_level == {"w"}


def test_parts_that_differ_by_rounding_add_up():
    rows, x = rounded_means()
    half = rows.groupby("id").cumcount() % 2 == 0
    total = jm.read_moments(rows[half], MODEL) + jm.read_moments(rows[~half], MODEL)
    assert total.cluster_level == {"x"}
    moved = rows.assign(x=rows["x"].where(half, rows["x"] + 0.01))
    apart = jm.read_moments(moved[half], MODEL) + jm.read_moments(moved[~half], MODEL)
    assert apart.cluster_level == frozenset()
    assert x.nunique() == 100


@pytest.mark.parametrize("name", ["x", "m"])
@each_route
def test_x_and_mediators_that_hardly_vary_within_clusters_are_refused(name, route, tmp_path):
    rows = make_rows()
    noise = np.random.default_rng(1).uniform(-1, 1, len(rows))
    rows[name] = rows.groupby("id")[name].transform("mean") + 0.002 * noise
    spread = (rows.groupby("id")[name].max() - rows.groupby("id")[name].min()).max()
    with pytest.raises(jm.DataError) as caught:
        jm.fit(ROUTES[route](rows, tmp_path), MODEL)
    means = f"data.groupby('id')['{name}'].transform('mean')"
    assert str(caught.value) == (
        f"column '{name}' hardly varies within clusters: by {spread:.2g} at the most, its standard deviation is "
        f"{rows[name].std(ddof=0):.2g}. If these differences are rounding, make it constant: data['{name}'] = {means}; "
        f"if they are what you are after, subtract the cluster means: data['{name}'] -= {means}"
    )
    assert jm.describe(ROUTES[route](rows, tmp_path), MODEL).notes[0] == str(caught.value)


@pytest.mark.parametrize("name", ["x", "m"])
def test_the_remedies_for_what_hardly_varies(name):
    rows = make_rows()
    noise = np.random.default_rng(1).uniform(-1, 1, len(rows))
    rows[name] = rows.groupby("id")[name].transform("mean") + 0.002 * noise
    with pytest.raises(jm.DataError) as caught:
        jm.fit(rows, MODEL)
    constant, deviations = (part.split(": ")[1] for part in str(caught.value).split(". ", 1)[1].split("; if they are"))
    fixed = run(constant, rows)
    assert name in jm.read_moments(fixed, MODEL).cluster_level
    assert remarks(fixed) == ()
    if name == "x":
        assert jm.fit(fixed, MODEL).converged
    within = run(deviations, rows)
    assert jm.read_moments(within, MODEL).cluster_level == frozenset()
    assert jm.fit(within, jm.Mediation(**ROLES, random={"m": [], "y": ["1"]})).params["m~x"] != 0


def test_covariates_and_outcomes_may_hardly_vary():
    rows = make_rows()
    rows["w"] += 0.001 * np.random.default_rng(1).uniform(-1, 1, len(rows))
    assert remarks(rows, jm.Mediation(**ROLES, covariates=["w"])) == ()
    system = jm.System([jm.Equation("y", ["1", "w"], ["1"])], "id")
    assert jm.read_moments(rows, system).cluster_level == frozenset()


def test_what_the_reader_and_the_fit_say_of_levels_agrees():
    """In very many rows, a share of 1e-13 of the variation of x is within clusters: the reader saw it vary."""
    rows = pd.DataFrame({"id": np.arange(400_000) // 20, "y": np.random.default_rng(1).normal(size=400_000)})
    rows["x"] = np.sin(rows["id"])
    rows.loc[5, "x"] += 2e-4
    system = jm.System([jm.Equation("y", ["1", "x"], ["1", "x"])], "id")
    assert "'x' has one value in 19999 of 20000 clusters but varies in 1: id 0" in only(rows, system)
    with pytest.raises(jm.DataError, match=r"'x' varies too little within clusters .*leave it out of random"):
        jm.fit(rows, system)


# Varies in a few clusters --------------------------------------------------------------------------------------------

ADVICE = (
    "If it belongs to the cluster, correct these rows, or the ids if two clusters share one; as it is, it is taken as "
    "a variable of the rows"
)


@each_route
def test_a_value_of_the_cluster_that_is_wrong_in_a_row(route, schools, tmp_path, tiny):
    rows = schools.copy()
    at = rows.index[rows["school"] == 13][5], rows.index[rows["school"] == 62][2]
    rows.loc[list(at), "training"] = 1 - rows.loc[list(at), "training"]
    moments = jm.read_moments(ROUTES[route](rows, tmp_path), SCHOOLS)
    (said,) = moments.sample_summary.remarks
    assert moments.cluster_level == {"morale"}
    head = "'training' has one value in 88 of 90 clusters but varies in 2: "
    if route in LAZY:
        assert said == f"{head}school 13 (values from 0 to 1), school 62 (values from 0 to 1). {ADVICE}"
        return
    was = [int(schools.loc[row, "training"]) for row in at]
    others = [int((rows["school"] == k).sum()) - 1 for k in (13, 62)]
    parts = [
        f"school {k} (row {row} has {1 - value}, the {n} others {value})"
        for k, row, value, n in zip((13, 62), at, was, others, strict=True)
    ]
    assert said == f"{head}{', '.join(parts)}; rows are counted from 0. {ADVICE}"


def test_correcting_the_rows_that_are_named(schools):
    rows = schools.copy()
    rows.loc[133, "training"] = 1 - rows.loc[133, "training"]
    assert "row 133 has" in only(rows, SCHOOLS)
    rows.loc[133, "training"] = 1 - rows.loc[133, "training"]
    assert remarks(rows, SCHOOLS) == ()


def test_two_schools_that_share_an_id(schools):
    """Half of the rows has one value, half the other: of a covariate, a moderator or a category."""
    sizes = schools.groupby("school")["training"].agg(["size", "first"])
    zero, one = (sizes.index[(sizes["first"] == value) & (sizes["size"] > 6)][0] for value in (0, 1))
    rows = schools.assign(school=schools["school"].replace({one: zero}))
    n = [int(sizes.loc[k, "size"]) for k in (zero, one)]
    model = jm.Mediation(
        "support",
        "motivation",
        "achievement",
        "school",
        covariates=["sector", "climate"],
        moderators={"training": ["a"]},
        reference={"sector": "public"},
    )
    found = {remark.split()[0]: remark for remark in remarks(rows, model)}
    few, many = sorted(zip(n, (0, 1), strict=True))
    assert f"'training' has one value in 88 of 89 clusters but varies in 1: school {zero} " in found["'training'"]
    assert f"({few[0]} rows have {few[1]}, {many[0]} rows have {many[1]})" in found["'training'"]
    assert "'climate'" in found
    assert remarks(schools, model) == ()
    apart = rows.assign(school=schools["school"])
    assert remarks(apart, model) == ()


@each_route
def test_a_category_is_named_once(route, schools, tmp_path):
    rows = schools.copy()
    at = rows.index[rows["school"] == 5][1]
    old = rows.loc[at, "sector"]
    new = "church" if old != "church" else "private"
    rows.loc[at, "sector"] = new
    said = only(ROUTES[route](rows, tmp_path), SECTORS)
    assert said.startswith("'sector' has one value in 89 of 90 clusters but varies in 1: school 5")
    if route in IN_MEMORY:
        n = int((rows["school"] == 5).sum())
        assert f"school 5 (row {at} has '{new}', the {n - 1} others '{old}'); rows are counted from 0" in said


def test_more_clusters_than_are_named(schools):
    rows = schools.copy()
    for k in (3, 9, 20, 44):
        at = rows.index[rows["school"] == k][:2]
        rows.loc[at, "climate"] = [7.5, 8.5]
    said = only(rows, jm.Mediation("support", "motivation", "achievement", "school", covariates=["climate"]))
    assert "varies in 4: school 3 (3 values in " in said
    assert ", 1 more; rows are counted from 0" in said


@each_route
def test_a_value_entered_once_per_cluster_but_in_one_twice(route, schools, tmp_path):
    """It is not filled in, and said why; corrected, it is."""
    blank = once(schools, "school", "morale")
    blank.loc[133, "morale"] = 9.5
    data = ROUTES[route](blank, tmp_path)
    sample = jm.read_moments(data, SCHOOLS).sample_summary
    assert sample.filled == {}
    first = int(np.flatnonzero(blank["school"] == blank["school"][133])[0])
    value = schools["morale"][first]
    what = f"row {first} has {value:g}, row 133 has 9.5" if route in IN_MEMORY else f"values from {value:g} to 9.5"
    assert f"'morale' has one value in 89 of 90 clusters but varies in 1: school 13 ({what})" in sample.remarks[0]
    blank.loc[133, "morale"] = np.nan
    assert jm.read_moments(ROUTES[route](blank, tmp_path), SCHOOLS).sample_summary.filled == {"morale": 935}


@pytest.mark.parametrize("clusters", [9, 30])
def test_few_clusters_are_many_of_few(clusters):
    rows = make_rows(clusters=clusters, size=8)
    rows.loc[[3, 20], "w"] += 1
    assert remarks(rows, jm.Mediation(**ROLES, covariates=["w"])) == ()


def test_a_rare_value_of_rows_is_no_value_of_clusters():
    """It is 0 in all rows of all other clusters, so it does not tell clusters apart."""
    rows = make_rows().assign(rare=0.0)
    rows.loc[[3, 100, 200], "rare"] = 1.0
    assert remarks(rows, jm.Mediation(**ROLES, covariates=["rare"])) == ()


# Oddities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", IN_MEMORY)
def test_rows_that_were_entered_twice(route, tmp_path, tiny):
    rows = make_rows()[["id", "x", "m", "y"]]
    rows.loc[7, "y"] = np.nan
    twice = pd.concat([rows, rows.iloc[[3, 50, 7]]], ignore_index=True)
    said = only(ROUTES[route](twice, tmp_path))
    n = len(rows)
    assert said == (
        f"2 rows repeat another row in 'id' and all columns of the model (row {n} is row 3 again, counted from 0): if "
        "they were entered twice, keep one of each: data = data.drop_duplicates(['id', 'x', 'm', 'y'])"
    )
    assert remarks(run(remedy(said), twice)) == ()


def test_all_rows_twice():
    rows = make_rows()
    assert "360 rows repeat another row" in only(pd.concat([rows, rows], ignore_index=True))


@pytest.mark.parametrize("digits", [0, 1])
def test_rows_that_are_alike_by_chance(digits):
    rows = make_rows(clusters=100, size=20).round({"x": digits, "m": digits, "y": digits})
    rows = rows.assign(x=(rows["x"] > 0) * 1.0)
    assert rows.duplicated(["id", "x", "m", "y"]).any()
    assert not any("repeat" in remark for remark in remarks(rows))


@each_route
def test_ids_that_differ_in_blanks_and_case(route, tmp_path):
    rows = make_rows()
    rows["id"] = "A" + rows["id"].astype(str)
    rows.loc[[0, 20], "id"] = ["a1 ", " a4"]
    said = only(ROUTES[route](rows, tmp_path))
    assert said.startswith(
        "the ids ' a4' and 'A4' are different clusters (and so are 1 more), though they differ only in blanks or the "
        "case of letters: if they are one, write them alike: data['id'] = data['id'].str.lower()"
    )
    fixed = run(remedy(said), rows)
    assert fixed["id"].nunique() == 60
    assert remarks(fixed) == ()


@each_route
@pytest.mark.parametrize("code", [-9, -99, -999, -77, 99, 999, 9999, 88])
def test_codes_for_missing_values(code, route, tmp_path):
    rows = make_rows().astype({"y": float})
    rows["y"] = rows["y"].clip(-2, 2)
    rows.loc[[3, 50, 51], "y"] = code
    said = only(ROUTES[route](rows, tmp_path))
    assert said.startswith(f"'y' is {code} in 3 rows, far from all its other values (-2 to 2): if that stands for a")
    assert said.endswith(f": data['y'] = data['y'].replace({code}, float('nan'))")
    fixed = run(remedy(said), rows)
    assert fixed["y"].isna().sum() == 3
    assert remarks(fixed) == ()


def test_several_codes():
    rows = make_rows()
    rows["x"] = rows["x"].round().clip(-2, 2).astype(int)
    rows.loc[[3, 50], "x"] = -99
    rows.loc[[4], "x"] = -88
    rows.loc[[5], "x"] = 999
    said = only(rows)
    assert said.startswith("'x' is -88 in 1 row and -99 in 2 rows and 999 in 1 row, far from all its other values")
    fixed = run(remedy(said), rows)
    assert fixed["x"].isna().sum() == 4


@pytest.mark.parametrize("low", [0, 40])
def test_numbers_that_are_no_codes(low):
    """99 and 77 at the end of a range that goes on to there."""
    rows = make_rows()
    rows["x"] = np.random.default_rng(1).integers(low, 100, len(rows))
    rows.loc[0, "x"] = 99
    assert remarks(rows) == ()


@pytest.mark.parametrize("route", IN_MEMORY)
def test_an_extreme_value(route, tmp_path, tiny):
    rows = make_rows()
    rows.loc[17, "m"] = 5000.5
    low, high = rows["m"].drop(17).min(), rows["m"].drop(17).max()
    assert only(ROUTES[route](rows, tmp_path)) == (
        f"'m' has one extreme value, 5000.5 in row 17 (counted from 0): its other values are {low:g} to {high:g}; "
        "check it, and look at fit.influence()"
    )


@each_route
def test_outcomes_with_two_values(route, tmp_path):
    rows = make_rows()
    rows["y"] = (rows["y"] > 0).astype(int)
    rows["m"] = np.where(rows["m"] > 0, 3, 1)
    m, y = remarks(ROUTES[route](rows, tmp_path))
    assert y == (
        "'y' has two values (0 and 1): effects on it are differences of the probability of 1, and its residual "
        "variance depends on its mean, which joint standard errors do not take into account; look at "
        "fit.effects(covariance='robust'), and at predictions outside 0 to 1"
    )
    assert m.startswith("'m' has two values (1 and 3): effects on it are 2 times differences of the probability of 3")


def test_the_other_standard_errors_of_a_binary_outcome():
    rows = make_rows()
    rows["y"] = rows["y"] > 0
    fit = jm.fit(rows, jm.Mediation(**ROLES, random={"m": ["1"], "y": ["1"]}))
    assert "has two values (0 and 1)" in fit.sample_summary.remarks[0]
    assert not fit.effects(covariance="robust")["se"].equals(fit.effects(covariance="joint")["se"])


@each_route
def test_ordinal_outcomes_and_counts(route, tmp_path):
    rows = make_rows(clusters=100)
    rows["m"] = (rows["m"] * 1.2).round().clip(-2, 2) + 3
    rows["y"] = np.random.default_rng(1).poisson(np.exp(rows["y"].clip(-3, 3)))
    m, y = remarks(ROUTES[route](rows, tmp_path))
    assert m.startswith(
        "'m' has 5 values, whole numbers from 1 to 5: the steps between them count as equal, effects on it are "
        "differences of its mean"
    )
    assert y.startswith(f"'y' looks like a count (whole numbers from 0 to {rows['y'].max()}, {rows['y'].mean():.3g} on")
    assert "effects on it are differences of the mean count, and its residual variance grows with its mean" in y
    assert y.endswith("look at fit.effects(covariance='robust')")


@each_route
def test_whole_numbers_that_are_a_scale(route, tmp_path):
    """A test score, and a predictor and a covariate with few values, which need no remark."""
    rows = make_rows()
    rows["y"] = (rows["y"] * 5 + 50).round()
    rows["x"] = (rows["x"] > 0) * 1.0
    rows["m"] = rows["m"].round(1)
    assert remarks(ROUTES[route](rows, tmp_path)) == ()


@each_route
def test_nothing_is_said_of_plain_data(route, schools, tmp_path):
    assert remarks(ROUTES[route](jm.datasets.load_example(), tmp_path)) == ()
    pupils = jm.Mediation(
        "support",
        ["motivation", "effort"],
        "achievement",
        "school",
        covariates=["sector", "age", "climate"],
        moderators={"training": ["a_motivation"]},
        reference={"sector": "public"},
    )
    for model in (pupils, SECTORS):
        assert remarks(ROUTES[route](schools, tmp_path), model) == ()


def test_remarks_do_not_depend_on_chunks(schools, tmp_path, request):
    rows = schools.copy()
    rows.loc[133, "training"] = 1 - rows.loc[133, "training"]
    rows.loc[200, "support"] = -99
    rows = pd.concat([once(rows, "school", "morale"), rows.iloc[[11]]], ignore_index=True)
    model = jm.Mediation("support", "motivation", "effort", "school", covariates=["training", "morale"])
    path = _file(".csv")(rows, tmp_path)
    expected = [jm.describe(data, model).notes for data in (rows, path)]
    assert expected[0] == expected[1]
    assert len(expected[0]) == 4
    request.getfixturevalue("tiny")
    assert [jm.describe(data, model).notes for data in (rows, path)] == expected


def test_notes_of_a_description(schools):
    found = jm.describe(once(schools, "school", "morale"), SCHOOLS)
    assert str(found).endswith(f"\nNotes\n- {found.notes[0]}")
    assert found.notes == found.sample_summary.remarks
    assert "Notes" not in str(jm.describe(schools, SCHOOLS))


def test_what_needs_all_rows_is_left_out_where_there_are_too_many(shrink):
    rows = make_rows()
    shrink(remark_rows=len(rows))
    twice = pd.concat([rows, rows.iloc[[3]]], ignore_index=True)
    assert remarks(twice) == ()
    assert remarks(twice.iloc[1:])
