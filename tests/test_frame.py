"""Reading: every kind of frame and file gives the same moments, and the moments are what NumPy says they are."""

from __future__ import annotations

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmed as jm
from jaxmed._data.design import make_design
from jaxmed._data.moments import SampleSummary
from jaxmed._data.reader import read
from jaxmed._data.totals import add_up

SYSTEM = jm.Mediation(x="x", m="m", y="y", cluster="id").system()
NAMES = ("x", "m", "y")


def make_rows(seed=0, clusters=12, missing=0.0, size=(2, 7)):
    """Unsorted rows of uneven clusters with columns id, x, m, y; x far from zero, y in other units."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(clusters), rng.integers(*size, clusters)))
    x = 50 + 3 * rng.normal(size=len(ids))
    m = 0.5 * x + rng.normal(size=len(ids))
    y = 1e-3 * (m + x + rng.normal(size=len(ids)))
    rows = pd.DataFrame({"id": ids, "x": x, "m": m, "y": y})
    for name in NAMES:
        rows.loc[rng.random(len(ids)) < missing, name] = np.nan
    return rows


def holey():
    """Missing values of x, m, y and id in different rows, some together; no two counts are equal."""
    rows = make_rows(3, clusters=9, size=(5, 9)).astype({"id": float})
    rows.loc[[0], "x"] = np.nan
    rows.loc[[1, 2], "m"] = np.nan
    rows.loc[[2, 3, 4, 5], "y"] = np.nan
    rows.loc[[5, 6, 7], "id"] = np.nan
    return rows


def _to_file(writer, ending):
    def convert(rows, folder):
        path = folder / f"rows{ending}"
        writer(rows, path)
        return path

    return convert


def _nullable(rows, _):
    return rows.convert_dtypes()


def _duckdb(rows):
    return duckdb.from_arrow(pa.Table.from_pandas(rows, preserve_index=False))


ROUTES = {
    "pandas": lambda rows, _: rows,
    "pandas nullable": _nullable,
    "pandas pyarrow": lambda rows, _: rows.convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda rows, _: pl.from_pandas(rows),
    "polars lazy": lambda rows, _: pl.from_pandas(rows).lazy(),
    "pyarrow": lambda rows, _: pa.Table.from_pandas(rows, preserve_index=False),
    "duckdb": lambda rows, _: _duckdb(rows),
    "csv": _to_file(lambda rows, path: rows.to_csv(path, index=False), ".csv"),
    "parquet": _to_file(lambda rows, path: rows.to_parquet(path, index=False), ".parquet"),
    "feather": _to_file(lambda rows, path: rows.to_feather(path), ".feather"),
    "dta": _to_file(lambda rows, path: rows.to_stata(path, write_index=False), ".dta"),
}
ENGINES = {
    "pandas": lambda rows: rows,
    "polars": pl.from_pandas,
    "polars lazy": lambda rows: pl.from_pandas(rows).lazy(),
    "pyarrow": lambda rows: pa.Table.from_pandas(rows, preserve_index=False),
    "duckdb": _duckdb,
}
each_route = pytest.mark.parametrize("route", ROUTES)
each_engine = pytest.mark.parametrize("engine", ENGINES)


def by_hand(rows, moments, label=lambda value: value):
    """Products per pattern and cluster by plain NumPy, on the working columns that ``moments`` chose."""
    rows = rows.assign(**{name: rows[name].astype(float) for name in NAMES}).dropna(subset="id")
    ids = np.array([label(value) for value in rows["id"]])
    working = (rows[list(NAMES)].to_numpy() - moments.shift) / moments.scale
    full = np.column_stack([np.ones(len(rows)), working])
    found = {}
    seen = ~np.isnan(working)
    for observed in {("m", "x"), ("m", "x", "y")}:
        chosen = seen[:, 0] & seen[:, 1] & (seen[:, 2] == ("y" in observed))
        keep = [0, *(1 + NAMES.index(name) for name in NAMES if name in observed)]
        pairs = [(i, j) for at, i in enumerate(keep) for j in keep[at:]]
        table = [
            [np.sum(full[chosen & (ids == cluster), i] * full[chosen & (ids == cluster), j]) for i, j in pairs]
            for cluster in moments.clusters
        ]
        if chosen.any():
            found[tuple(NAMES[k - 1] for k in keep[1:])] = np.array(table).T
    return found


def check(moments, rows, label=lambda value: value):
    complete = rows.dropna(subset=["id", "x", "m"])
    np.testing.assert_array_equal(moments.clusters, np.unique([label(value) for value in complete["id"]]))
    expected = by_hand(rows, moments, label)
    assert {pattern.observed for pattern in moments.patterns} == set(expected)
    for pattern in moments.patterns:
        close(pattern.products, expected[pattern.observed], 1e-12)


def close(actual, expected, tolerance):
    """Relative to the largest entry of each row: sums of products of either sign may cancel."""
    size = np.abs(expected).max(axis=1, keepdims=True)
    assert np.all(np.abs(actual - expected) <= tolerance * size), np.max(np.abs(actual - expected) / size)


def close_moments(one, other, tolerance):
    np.testing.assert_array_equal(one.clusters, other.clusters)
    assert [pattern.observed for pattern in one.patterns] == [pattern.observed for pattern in other.patterns]
    for left, right in zip(one.patterns, other.patterns, strict=True):
        close(left.products, right.products, tolerance)


# Every route ---------------------------------------------------------------------------------------------------------


@each_route
def test_complete_rows(route, tmp_path):
    rows = make_rows()
    check(read(ROUTES[route](rows, tmp_path), SYSTEM), rows)


@each_route
def test_missing_values_are_counted_and_left_out(route, tmp_path):
    rows = holey()
    moments = read(ROUTES[route](rows, tmp_path), SYSTEM)
    check(moments, rows, int)
    n = len(rows)
    assert moments.sample_summary == SampleSummary(
        rows=n,
        used=(n - 6, n - 8),
        missing={"x": 1, "m": 2, "y": 4, "id": 3},
        dropped=6,
        patterns={"x, m": 2, "x, m, y": n - 8},
        ranges={name: (rows[name].min(), rows[name].max()) for name in NAMES},
    )
    assert moments.clusters.dtype.kind == "i"


@each_route
def test_working_columns_do_not_depend_on_the_route(route, tmp_path):
    rows = holey()
    plain, moments = read(rows, SYSTEM), read(ROUTES[route](rows, tmp_path), SYSTEM)
    np.testing.assert_array_equal(moments.shift, plain.shift)
    np.testing.assert_array_equal(moments.scale, plain.scale)
    assert np.all(np.log2(moments.scale) % 1 == 0)


@each_route
def test_text_ids(route, tmp_path):
    rows = make_rows()
    rows["id"] = "c" + rows["id"].astype(str)
    check(read(ROUTES[route](rows, tmp_path), SYSTEM), rows)


@each_route
def test_missing_text_ids(route, tmp_path):
    rows = make_rows()
    rows["id"] = "c" + rows["id"].astype(str)
    rows.loc[[3, 5], "id"] = None
    moments = read(ROUTES[route](rows, tmp_path), SYSTEM)
    check(moments, rows)
    assert moments.sample_summary.missing["id"] == moments.sample_summary.dropped == 2


@each_route
def test_fractional_ids_stay_as_they_are(route, tmp_path):
    rows = make_rows()
    rows["id"] += 0.5
    check(read(ROUTES[route](rows, tmp_path), SYSTEM), rows)


@each_route
def test_a_yes_no_predictor(route, tmp_path):
    rows = make_rows()
    rows["x"] = rows["x"] > 50
    check(read(ROUTES[route](rows, tmp_path), SYSTEM), rows)


@each_route
def test_whole_numbers_do_not_overflow(route, tmp_path):
    """Products of small integer types would wrap around if they were not widened first."""
    rows = make_rows()
    rows["x"] = (rows["x"] * 100).astype("int16")
    check(read(ROUTES[route](rows, tmp_path), SYSTEM), rows)


@each_route
def test_unused_columns_and_column_order_do_not_matter(route, tmp_path):
    rows = make_rows()
    wide = rows.assign(other="text", pattern=1, v0=2.0)[["other", "y", "v0", "id", "m", "pattern", "x"]]
    check(read(ROUTES[route](wide, tmp_path), SYSTEM), rows)


@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Spark starts its Java process by a fork and an exec
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_spark(tmp_path):
    sql = pytest.importorskip("pyspark.sql")
    session = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        rows = make_rows()
        frame = session.createDataFrame(rows)
        check(read(frame, SYSTEM), rows)
        model = jm.System([jm.Equation("m", ["1", "x"], random=["1"])], cluster="id")
        assert jm.fit(frame, model).loglik == pytest.approx(jm.fit(rows, model).loglik, abs=1e-9)
    finally:
        session.stop()


# Kinds of id ---------------------------------------------------------------------------------------------------------


def _categories(rows):
    return rows.assign(id=rows["id"].astype(str).astype("category"))


@pytest.mark.parametrize(
    "convert",
    [
        _categories,
        lambda rows: pl.from_pandas(_categories(rows)),
        lambda rows: pl.from_pandas(rows).with_columns(pl.col("id").cast(pl.String).cast(pl.Categorical)),
        lambda rows: pl.from_pandas(rows).with_columns(
            pl.col("id").cast(pl.String).cast(pl.Enum([str(k) for k in range(40)]))
        ),
        lambda rows: pa.Table.from_pandas(_categories(rows)),
        lambda rows: _duckdb(_categories(rows)),
    ],
    ids=["pandas", "polars from pandas", "polars", "polars enum", "pyarrow", "duckdb"],
)
def test_categorical_ids(convert):
    rows = make_rows()
    check(read(convert(rows), SYSTEM), rows, str)


def test_missing_and_unused_categories_are_no_clusters():
    rows = make_rows()
    rows["id"] = rows["id"].astype(str).astype("category").cat.add_categories("never")
    rows.loc[4, "id"] = np.nan
    moments = read(rows, SYSTEM)
    check(moments, rows)
    assert moments.sample_summary.missing["id"] == 1


@each_engine
@pytest.mark.parametrize(
    "relabel",
    [
        lambda ids: ids + 2**60,
        lambda ids: pd.Timestamp("2020-02-27") + pd.to_timedelta(ids, unit="D"),
        lambda ids: ids > 5,
        lambda ids: ids - 6.0,
    ],
    ids=["beyond 2**53", "dates", "yes and no", "negative whole floats"],
)
def test_other_ids(engine, relabel):
    rows = make_rows()
    rows["id"] = relabel(rows["id"])
    check(read(ENGINES[engine](rows), SYSTEM), rows, lambda value: np.array(value, dtype=rows["id"].dtype)[()])


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "pandas"])
def test_long_ids_next_to_a_missing_one(engine):
    rows = make_rows()
    rows["id"] = pd.array(rows["id"] + 2**60, dtype="Int64")
    rows.loc[0, "id"] = pd.NA
    check(read(ENGINES[engine](rows), SYSTEM), rows)


def test_long_ids_next_to_a_missing_one_in_csv(tmp_path):
    rows = make_rows()
    rows["id"] = pd.array(rows["id"] * 50 + 2**60, dtype="Int64")
    rows.loc[0, "id"] = pd.NA
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert read(tmp_path / "rows.csv", SYSTEM).n_clusters == rows["id"].nunique()


@pytest.mark.parametrize("engine", ENGINES)
def test_negative_zero_is_zero(engine):
    rows = make_rows().astype({"id": float})
    rows.loc[rows.index[rows["id"] == 0][0], "id"] = -0.0
    moments = read(ENGINES[engine](rows), SYSTEM)
    assert moments.sample_summary.used == (len(rows), len(rows))


def test_ids_that_differ_in_a_trailing_nul():
    rows = make_rows()
    rows["id"] = ["1\0" if value == 0 else str(value) for value in rows["id"]]
    with pytest.raises(jm.DataError, match="ids that end in a NUL character"):
        read(rows, SYSTEM)


# Missing values ------------------------------------------------------------------------------------------------------


def test_nan_and_null_are_both_missing_in_polars():
    rows = make_rows()
    frame = pl.from_pandas(rows).with_columns(
        x=pl.when(pl.int_range(pl.len()) == 0).then(None).otherwise("x"),
        m=pl.when(pl.int_range(pl.len()) == 1).then(float("nan")).otherwise("m"),
        id=pl.when(pl.int_range(pl.len()) == 2).then(float("nan")).otherwise("id"),
    )
    rows = rows.astype({"id": float})
    rows.loc[0, "x"] = rows.loc[1, "m"] = rows.loc[2, "id"] = np.nan
    for data in (frame, frame.lazy()):
        moments = read(data, SYSTEM)
        check(moments, rows, int)
        assert moments.sample_summary.missing == {"x": 1, "m": 1, "y": 0, "id": 1}


@pytest.mark.parametrize("convert", [lambda table: table, duckdb.from_arrow], ids=["pyarrow", "duckdb"])
def test_nan_is_missing_where_null_exists(convert):
    rows = holey()
    table = pa.table({name: pa.array(rows[name].to_numpy(), from_pandas=False) for name in rows})
    assert table["x"].null_count == 0
    moments = read(convert(table), SYSTEM)
    check(moments, rows, int)
    assert moments.sample_summary.missing == {"x": 1, "m": 2, "y": 4, "id": 3}


def test_a_row_counts_where_its_equation_is_complete():
    """y does not need to be there for the mediator's equation; a row with y but no m counts nowhere."""
    rows = make_rows()
    rows.loc[:9, "y"] = np.nan
    rows.loc[10:14, "m"] = np.nan
    moments = read(rows, SYSTEM)
    n = len(rows)
    assert moments.sample_summary.used == (n - 5, n - 15)
    assert moments.sample_summary.dropped == 5
    design = make_design(SYSTEM, moments)
    assert [sums.rows for sums in add_up(design).equations] == [n - 5, n - 15]


@pytest.mark.parametrize("make", [make_rows, holey, lambda: _categories(holey())])
def test_the_frame_that_goes_in_is_not_changed(make):
    rows = make()
    before = rows.copy(deep=True)
    read(rows, SYSTEM)
    pd.testing.assert_frame_equal(rows, before)


# Names ---------------------------------------------------------------------------------------------------------------


@each_engine
@pytest.mark.parametrize(
    "names",
    [
        ("cluster", "pattern", "v0", "p0"),
        ("p1", "v2", "v1", "v0"),
        ("rows", "no_cluster", "missing0", "mean1"),
        ("v0", "cluster", "pattern", "rows"),
        ("a.b", "x 😀", "m \"quoted\" 'too'", "ÿ %s {0}\n"),
        ("level_0", "index", "__index_level_0__", "count"),
    ],
)
def test_column_names_do_not_matter(engine, names):
    if engine == "duckdb" and "." in names[0] and int(duckdb.__version__.split(".")[0]) < 2:
        pytest.skip("DuckDB before 2.0 takes what stands before a dot for a table, and is refused with its words")
    rows = holey()
    cluster, x, m, y = names
    renamed = ENGINES[engine](rows.rename(columns=dict(zip(rows, names, strict=True))))
    moments = read(renamed, jm.Mediation(x=x, m=m, y=y, cluster=cluster).system())
    plain = read(rows, SYSTEM)
    close(moments.table, plain.table, 1e-12)
    assert moments.sample_summary.missing == dict(zip((x, m, y, cluster), (1, 2, 4, 3), strict=True))


@pytest.mark.parametrize("name", ["*", "^x.*$"])
def test_names_that_polars_takes_for_patterns(name):
    with pytest.raises(jm.SpecError, match="which data frames read as a pattern; rename the column"):
        jm.Mediation(x=name, m="m", y="y", cluster="id")


@pytest.mark.parametrize("index", [np.zeros(6, int), list("abcdef"), pd.MultiIndex.from_arrays([range(6)] * 2)])
def test_the_index_of_a_pandas_frame_does_not_matter(index):
    rows = make_rows(clusters=3, size=(2, 3))
    moments = read(rows.set_axis(index, axis=0), SYSTEM)
    check(moments, rows)


# CSV -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\n\n" + text,
        lambda text: "\ufeff" + text,
        lambda text: "".join(",".join(f'"{cell}"' for cell in line.split(",")) + "\n" for line in text.splitlines()),
        lambda text: text.rstrip("\n"),
        lambda text: "".join(f"{line},{at or 'q'},{at or 'q'}\n" for at, line in enumerate(text.splitlines())),
    ],
    ids=["CRLF", "blank lines first", "BOM", "quoted", "no last newline", "unused twins"],
)
def test_csv_in_other_hands(edit, tmp_path):
    rows = make_rows()
    (tmp_path / "rows.csv").write_text(edit(rows.to_csv(index=False)), encoding="utf-8", newline="")
    check(read(tmp_path / "rows.csv", SYSTEM), rows)
    check(read(str(tmp_path / "rows.csv"), SYSTEM), rows)


@pytest.mark.parametrize("mark", ["", "NA", "NaN", ".", "NULL"])
def test_csv_marks_of_missing_values(mark, tmp_path):
    rows = holey()
    rows.to_csv(tmp_path / "rows.CSV", index=False, na_rep=mark)
    check(read(tmp_path / "rows.CSV", SYSTEM), rows, int)


@pytest.mark.parametrize(
    "edit",
    [lambda line: f'"7",{line}', lambda line: f"{line},", lambda line: line.rpartition(",")[0]],
    ids=["row names without a header", "trailing commas", "a field short"],
)
@pytest.mark.parametrize("unused", [False, True])
def test_csv_lines_that_do_not_match_the_header(edit, unused, tmp_path):
    """Never the row name as id, the id as x and the x as m."""
    rows = make_rows()
    lines = (rows.assign(other=7) if unused else rows).to_csv(index=False).splitlines()
    text = "\n".join([lines[0], *(edit(line) for line in lines[1:])])
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    with pytest.raises(jm.DataError, match="every line must have as many fields as the header"):
        read(tmp_path / "rows.csv", SYSTEM)


def test_parquet_in_a_folder_that_looks_like_a_partition(tmp_path):
    rows = make_rows()
    folder = tmp_path / "x=5"
    folder.mkdir()
    rows.to_parquet(folder / "rows.parquet", index=False)
    check(read(folder / "rows.parquet", SYSTEM), rows)


# Properties ----------------------------------------------------------------------------------------------------------

few = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
shares = st.sampled_from([0.0, 0.05, 0.3])


@few
@given(seeds, shares)
def test_row_order_does_not_matter(seed, missing):
    rows = make_rows(seed, missing=missing)
    shuffled = rows.sample(frac=1, random_state=seed)
    close_moments(read(shuffled, SYSTEM), read(rows, SYSTEM), 1e-12)


@few
@given(seeds, shares)
def test_cluster_labels_do_not_matter(seed, missing):
    rows = make_rows(seed, missing=missing)
    names = np.random.default_rng(seed).permutation([f"site {k:02}" for k in range(12)])
    one, other = read(rows, SYSTEM), read(rows.assign(id=names[rows["id"]]), SYSTEM)
    order = np.argsort(names[one.clusters])
    np.testing.assert_array_equal(other.clusters, names[one.clusters][order])
    close(other.table, one.table[:, order], 1e-12)
    assert other.sample_summary == one.sample_summary


@few
@given(seeds, shares, st.floats(0.2, 0.8))
def test_moments_of_parts_add_up(seed, missing, share):
    """The parts choose other shifts and scales than the whole, and neither has all clusters."""
    rows = make_rows(seed, clusters=20, missing=missing)
    first = np.random.default_rng(seed).random(len(rows)) < share
    first[:4], first[4:8] = True, False
    whole, parts = read(rows, SYSTEM), [read(rows[first], SYSTEM), read(rows[~first], SYSTEM)]
    for total in (parts[0] + parts[1], parts[1] + parts[0]):
        close_moments(total.rescaled(whole.shift, whole.scale), whole, 1e-10)
        assert total.sample_summary == whole.sample_summary


@few
@given(seeds, shares)
def test_rescaled_and_back(seed, missing):
    moments = read(make_rows(seed, missing=missing), SYSTEM)
    shift, scale = moments.shift + np.array([1.0, -2.0, 1e-3]), moments.scale * np.array([3.0, 0.1, 7.0])
    there = moments.rescaled(shift, scale)
    np.testing.assert_array_equal(there.shift, shift)
    np.testing.assert_array_equal(there.scale, scale)
    close_moments(there.rescaled(moments.shift, moments.scale), moments, 1e-10)


def test_rescaled_are_the_moments_of_the_rescaled_columns():
    rows = holey()
    moments = read(rows, SYSTEM).rescaled(np.array([49.0, 20.0, 0.1]), np.array([3.0, 5.0, 0.7]))
    expected = by_hand(rows, moments, int)
    for pattern in moments.patterns:
        close(pattern.products, expected[pattern.observed], 1e-12)


def test_parts_with_their_columns_in_another_order_add_up():
    rows = make_rows(5, missing=0.2)
    other = jm.System(reversed(SYSTEM.equations), cluster="id")
    assert other.columns != SYSTEM.columns
    total = read(rows[:20], SYSTEM) + read(rows[20:], other)
    whole = read(rows, SYSTEM)
    total = total.rescaled(whole.shift, whole.scale)
    for columns in (("1", "x", "m"), ("1", "m", "x", "y")):
        np.testing.assert_allclose(total.cross_products(columns), whole.cross_products(columns), rtol=1e-10, atol=1e-9)


def test_moments_of_other_columns_do_not_add():
    rows = make_rows()
    alone = read(rows, jm.System([jm.Equation("y", ["1", "x"])], cluster="id"))
    with pytest.raises(jm.DataError, match="cannot be added"):
        alone + read(rows, SYSTEM)


@pytest.mark.parametrize("columns", [("1",), ("x", "1"), ("m", "y", "x"), ("y", "1", "x", "m"), ("x", "m")])
def test_cross_products(columns):
    """Rows that have all of the columns, whatever else is missing in them, as long as some equation has them."""
    rows = holey()
    moments = read(rows, SYSTEM)
    needed = {"id", "x", "m", *columns} - {"1"}
    used = rows.dropna(subset=sorted(needed))
    at = {name: k for k, name in enumerate(moments.columns)}
    working = np.column_stack(
        [np.ones(len(used)) if c == "1" else (used[c] - moments.shift[at[c]]) / moments.scale[at[c]] for c in columns]
    )
    found = moments.cross_products(columns)
    assert found.shape == (len(columns), len(columns), moments.n_clusters)
    for j, cluster in enumerate(moments.clusters):
        own = working[(used["id"] == cluster).to_numpy()]
        np.testing.assert_allclose(found[:, :, j], own.T @ own, rtol=1e-12, atol=1e-12)


def test_far_from_zero_costs_no_digits():
    """Products of raw values near 1e9 would keep one digit of a variance near 1."""
    rows = make_rows()
    moved = rows.assign(x=(rows["x"] * 2**20).round() / 2**20)
    far = read(moved.assign(x=moved["x"] + 2**30), SYSTEM)
    close(far.rescaled(far.shift, far.scale).table, by_hand_table(moved.assign(x=moved["x"] + 2**30), far), 1e-12)
    near = read(moved, SYSTEM)
    back = far.rescaled(near.shift + np.array([2**30, 0, 0]), near.scale)
    close(back.table, near.table, 1e-10)


def test_parts_within_and_between_far_from_zero_cost_no_digits():
    """m is 2e15 standard deviations from zero: its cluster means, as numbers, hold no deviation."""
    rows = jm.simulate(clusters=20, size=6, seed=2)
    rows["m"] = (rows["m"] * 3).round() * 2048
    model = jm.Mediation(x="x", m="m", y="y", cluster="id", random={"m": ["1"]}, center="cluster")
    near = jm.fit(rows, model)
    far = jm.fit(rows.assign(m=rows["m"] + 2.0**63), model)
    assert far.loglik == pytest.approx(near.loglik, rel=1e-11)
    labels = ["m~within(x)", "m~between(x)", "y~within(m)", "y~between(m)"]
    np.testing.assert_allclose(far.params[labels], near.params[labels], rtol=1e-7)
    stacked = [jm.stack(data, model)["s_y:within(m)"] for data in (rows, rows.assign(m=rows["m"] + 2.0**63))]
    np.testing.assert_allclose(*stacked, rtol=1e-12)


def by_hand_table(rows, moments):
    expected = by_hand(rows, moments)
    return np.concatenate([expected[pattern.observed] for pattern in moments.patterns])


@pytest.mark.parametrize(
    "size",
    [1e-35, 1e-20, 1e20, 1e35],
)
def test_the_unit_of_a_column_does_not_matter(size):
    """Working columns stay near one, whatever the unit; beyond 1e37 a fourth power of y / x does not fit a float64."""
    rows = make_rows()
    scaled = rows.assign(x=rows["x"] * size)
    moments = read(scaled, SYSTEM)
    assert np.all(np.isfinite(moments.table))
    assert 0.1 < moments.cross_products(("x",)).sum() / len(rows) < 10


@pytest.mark.parametrize("size", [1e-200, 1e-40, 1e40, 1e306])
@pytest.mark.parametrize("engine", ["pandas", "polars"])
def test_values_without_a_finite_fourth_power_are_refused(engine, size):
    rows = make_rows()
    with pytest.raises(jm.DataError, match=r"column 'x' has values up to .* too large or too small to multiply"):
        read(ENGINES[engine](rows.assign(x=(rows["x"] - 50) * size)), SYSTEM)


# Products and cluster means -------------------------------------------------------------------------------------------

PRODUCTS = jm.System(
    [jm.Equation("m", ["1", "x", "between(m2)"]), jm.Equation("y", ["1", "within(m)", "between(m)", "m:x", "g[b]:m"])],
    cluster="id",
)


def with_more(rows):
    """A second mediator and a category, some of both missing."""
    rng = np.random.default_rng(len(rows))
    rows = rows.assign(m2=rng.normal(size=len(rows)), g=rng.choice(["a", "b", "c"], len(rows)))
    rows.loc[rng.random(len(rows)) < 0.1, "m2"] = np.nan
    rows.loc[rng.random(len(rows)) < 0.1, "g"] = None
    return rows


@each_engine
def test_products_indicators_and_means_do_not_depend_on_the_engine(engine):
    rows = with_more(holey())
    plain, found = read(rows, PRODUCTS), read(ENGINES[engine](rows), PRODUCTS)
    assert plain.row_products == (("g[b]", "m"), ("m", "x"))
    assert found.sample_summary == plain.sample_summary
    close_moments(found, plain, 1e-12)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_moments_with_products_add_up_and_change_scale(missing):
    """Parts with other shifts and scales: a product of shifted columns takes up the columns and a constant."""
    rows = with_more(make_rows(11, clusters=20, missing=missing))
    whole, parts = read(rows, PRODUCTS), [read(rows[:40], PRODUCTS), read(rows[40:], PRODUCTS)]
    for total in (parts[0] + parts[1], parts[1] + parts[0]):
        close_moments(total.rescaled(whole.shift, whole.scale), whole, 1e-10)
        assert total.sample_summary == whole.sample_summary
    away = whole.rescaled(whole.shift + 0.7 * whole.scale, whole.scale * 3.0)
    close_moments(away.rescaled(whole.shift, whole.scale), whole, 1e-10)
    one, other = (add_up(make_design(PRODUCTS, moments)) for moments in (whole, parts[0] + parts[1]))
    assert [sums.rows for sums in one.equations] == [sums.rows for sums in other.equations]


def test_cluster_means_take_every_row_that_has_the_column():
    """Also rows that lack what the equations need, and those of no equation at all."""
    rows = with_more(holey())
    moments = read(rows, PRODUCTS)
    expected = rows.dropna(subset="id").groupby("id")[["m", "m2"]].mean()
    for name in ("m", "m2"):
        shift, scale = moments.unit(name)
        found = pd.Series(shift + scale * moments.cluster_means(name), index=moments.clusters)
        np.testing.assert_allclose(found, expected[name][moments.clusters], rtol=1e-12, atol=1e-12)
    listwise = read(rows, PRODUCTS, missing="listwise")
    complete = rows.dropna().groupby("id")["m2"].mean()
    shift, scale = listwise.unit("m2")
    np.testing.assert_allclose(shift + scale * listwise.cluster_means("m2"), complete, rtol=1e-12, atol=1e-12)


def test_columns_of_the_cluster_are_found_whatever_is_missing():
    rows = holey().assign(c=lambda rows: rows["id"] ** 2 - 7)
    rows.loc[[1, 9, 20], "c"] = np.nan
    system = jm.System([jm.Equation("y", ["1", "x", "c", "x:c"])], cluster="id")
    moments = read(rows, system)
    assert moments.cluster_level == {"c"}
    assert moments.row_products == (("c", "x"),)
    assert moments.lean().row_products == ()
    rows.loc[15, "c"] += 1e-3  # of a standard deviation of 22
    assert read(rows, system).cluster_level == {"c"}
    rows.loc[15, "c"] += 1e-2
    assert read(rows, system).cluster_level == frozenset()


# Moments as data ------------------------------------------------------------------------------------------------------


def test_moments_by_another_cluster_are_refused():
    moments = read(make_rows(), SYSTEM)
    other = jm.Mediation(x="x", m="m", y="y", cluster="school").system()
    with pytest.raises(jm.DataError, match="these moments are by cluster 'id', not 'school'"):
        moments.for_columns(other.cluster, other.columns, other.groups, other.averaged)


def test_moments_with_ids_of_other_types_do_not_add():
    rows = make_rows()
    with pytest.raises(jm.DataError, match="cluster ids of these moments are of different types"):
        read(rows, SYSTEM) + read(rows.assign(id=rows["id"].astype(str)), SYSTEM)


def test_ids_in_csv_that_differ_in_leading_zeros_stay_two(tmp_path):
    rows = make_rows(clusters=4)
    rows["id"] = rows["id"].map({0: "1", 1: "01", 2: "2", 3: "002"})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert read(tmp_path / "rows.csv", SYSTEM).clusters.tolist() == ["002", "01", "1", "2"]


def test_ids_in_a_time_zone_are_refused():
    rows = make_rows()
    rows["id"] = pd.Timestamp("2020-01-01", tz="Europe/Berlin") + pd.to_timedelta(rows["id"], unit="D")
    with pytest.raises(jm.DataError, match="holds times in a time zone"):
        read(rows, SYSTEM)


def test_missing_text_ids_of_object_dtype():
    """pandas before 3 keeps text as objects, and a cast makes the text 'None' of a missing one."""
    rows = make_rows()
    rows["id"] = ("c" + rows["id"].astype(str)).astype(object)
    rows.loc[[3, 5], "id"] = None
    assert read(rows, SYSTEM).sample_summary.missing["id"] == 2
    assert read(rows.astype({"id": "category"}), SYSTEM).sample_summary.missing["id"] == 2
