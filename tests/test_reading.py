"""Reading part by part: neither the chunks nor the route may matter; and moments that are kept."""

from __future__ import annotations

import datetime
import io
import re
import signal
import subprocess
import sys
import time

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import jaxmed as jm
from jaxmed._data import reader as frame
from jaxmed._data.lazy import Query
from jaxmed._data.reader import read
from jaxmed._support import block_sizes
from jaxmed._support.progress_line import progress

PLAIN = jm.Mediation(x="x", m="m", y="y", cluster="id")

SYSTEM = jm.Mediation(x="x", m="m", y="y", cluster="id").system()
WIDE = jm.System(
    [
        jm.Equation("m", ["1", "x", "between(m2)", "w"]),
        jm.Equation("y", ["1", "within(m)", "between(m)", "m:x", "g[b]:m", "w:x"]),
    ],
    cluster="id",
)


def make_rows(seed=0, clusters=40, missing=0.1, order="shuffled"):
    """Columns id, x, m, y, m2, a category g and a cluster-level w, with missing values in each but w."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(clusters), rng.integers(1, 9, clusters))
    ids = rng.permutation(ids) if order == "shuffled" else ids
    n = len(ids)
    x = 50 + 3 * rng.normal(size=n)
    m = 0.5 * x + rng.normal(size=n)
    rows = pd.DataFrame({"id": ids, "x": x, "m": m, "y": 1e-3 * (m + x + rng.normal(size=n)), "m2": rng.normal(size=n)})
    rows["g"] = rng.choice(["a", "b", "c"], n)
    rows["w"] = np.sqrt(ids + 2.0)
    for name in ("x", "m", "y", "m2", "g"):
        rows.loc[rng.random(n) < missing, name] = None
    return rows


@pytest.fixture
def tiny(shrink):
    """A few rows at a time, and few clusters that wait to be added up."""

    def of(rows=7):
        shrink(parquet_rows=rows, csv_bytes=60 * rows, frame_rows=rows, cache_rows=4, waiting_clusters=5)

    return of


def write(rows, path):
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_parquet(path, index=False, row_group_size=50)
    return path


def same(found, expected):
    np.testing.assert_array_equal(found.clusters, expected.clusters)
    assert found.clusters.dtype == expected.clusters.dtype
    assert found.sample_summary == expected.sample_summary
    np.testing.assert_array_equal(found.shift, expected.shift)
    np.testing.assert_array_equal(found.scale, expected.scale)
    assert [pattern.observed for pattern in found.patterns] == [pattern.observed for pattern in expected.patterns]
    for one, other in zip(found.patterns, expected.patterns, strict=True):
        size = np.abs(other.products).max(axis=1, keepdims=True)
        assert np.all(np.abs(one.products - other.products) <= 1e-12 * size)
    assert found.constants.keys() == expected.constants.keys()
    for name, values in found.constants.items():
        np.testing.assert_allclose(values, expected.constants[name], rtol=1e-14)


each_file = pytest.mark.parametrize("ending", [".csv", ".parquet"])
each_system = pytest.mark.parametrize("system", [SYSTEM, WIDE], ids=["1-1-1", "products, means and categories"])
LABELS = {
    "numbers": lambda ids: ids,
    "text": lambda ids: [f"site {k}" for k in ids],
    "numbers and text": lambda ids: [str(k) if k < 30 else f"site {k}" for k in ids],
    "leading zeros": lambda ids: [f"{k:03}" for k in ids],
    "decimals": lambda ids: ids / 4,
    "some missing": lambda ids: [None if k % 7 == 3 else k for k in ids],
    "dates": lambda ids: pd.Timestamp("2020-02-27") + pd.to_timedelta(ids, unit="D"),
}


# Chunks --------------------------------------------------------------------------------------------------------------


@each_file
@each_system
@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_the_size_of_chunks_does_not_matter(ending, system, order, tiny, tmp_path):
    path = write(make_rows(order=order), tmp_path / f"rows{ending}")
    expected = read(path, system)
    for rows in (3, 7, 40):
        tiny(rows)
        same(read(path, system), expected)


@each_file
@pytest.mark.parametrize("label", LABELS)
def test_ids_in_chunks(ending, label, tiny, tmp_path):
    rows = make_rows()
    rows["id"] = LABELS[label](rows["id"])
    path = write(rows, tmp_path / f"rows{ending}")
    expected = read(path, SYSTEM)
    tiny()
    same(read(path, SYSTEM), expected)
    if ending == ".parquet":
        same(read(rows, SYSTEM), expected)
        same(read(pl.from_pandas(rows), SYSTEM), expected)


@pytest.mark.parametrize("convert", [lambda rows: rows, pl.from_pandas, pa.Table.from_pandas])
def test_frames_in_memory_in_chunks(convert, tiny):
    rows = make_rows()
    expected = read(convert(rows), WIDE)
    tiny()
    same(read(convert(rows), WIDE), expected)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.4]), st.integers(3, 60))
def test_chunks_of_any_data(seed, missing, size):
    rows = make_rows(seed, missing=missing)
    expected = read(rows, WIDE)
    with block_sizes(frame_rows=size, waiting_clusters=size):
        same(read(rows, WIDE), expected)


def test_a_column_of_the_clusters_that_varies_between_chunks(tiny, tmp_path):
    """Within each chunk it is constant."""
    rows = make_rows(missing=0.0, order="sorted")
    at = rows.index[rows["id"].duplicated()][-1]
    rows.loc[at, "w"] += 1e-3
    path = write(rows, tmp_path / "rows.parquet")
    tiny(1)
    assert read(path, WIDE).cluster_level == frozenset()
    rows.loc[at, "w"] -= 1e-3
    assert read(write(rows, path), WIDE).cluster_level == {"w"}


def test_describe_and_stack_read_in_chunks(tiny, tmp_path):
    rows = make_rows()
    rows["id"] = LABELS["decimals"](rows["id"])
    path, model = write(rows, tmp_path / "rows.csv"), jm.Mediation(x="x", m="m", y="y", cluster="id")
    expected = str(jm.describe(path, model)), jm.stack(path, model)
    tiny()
    assert str(jm.describe(path, model)) == expected[0]
    pd.testing.assert_frame_equal(jm.stack(path, model), expected[1])


@pytest.mark.filterwarnings("ignore::jaxmed.DesignWarning")
def test_a_fit_does_not_depend_on_chunks(tiny, tmp_path):
    rows = jm.simulate(clusters=60, size=6, seed=3)
    model = jm.Mediation(x="x", m="m", y="y", cluster="id")
    expected = jm.fit(rows, model)
    tiny()
    assert jm.fit(write(rows, tmp_path / "rows.parquet"), model).loglik == pytest.approx(expected.loglik, abs=1e-9)


# Late surprises ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "late",
    [
        {"x": 1.5},
        {"x": 1e300},
        {"g": "b"},
        {"b": "true"},
        {"id": "first"},
        {"id": "007"},
        {"id": "2.50"},
        {"id": str(2**70)},
    ],
    ids=lambda late: f"{late}",
)
@pytest.mark.parametrize("counts", [True, False])
def test_csv_columns_that_change_their_type(late, counts, tiny, tmp_path):
    """Types are those of the whole file: whole numbers until a late decimal, categories 1 and 2 until a late b."""
    rows = make_rows(missing=0.0)[["id", "x", "m", "y"]]
    rows = rows.assign(x=(rows["x"] * 10).astype(int), g=rows.index % 2 + 1, b=rows.index % 3 % 2).astype(object)
    for name, value in late.items():
        rows.loc[len(rows) - 2, name] = value
    if not counts:
        rows.loc[len(rows) - 2, "m"] = None
        if "x" in late:
            return
    path = write(rows, tmp_path / "rows.csv")
    model = jm.Mediation(
        x="x",
        m="m",
        y="y",
        cluster="id",
        covariates=["g", "b"],
        reference={"g": "1", "b": "0" if "b" not in late else "False"},
    )

    def outcome():
        try:
            return jm.read_moments(path, model)
        except jm.DataError as error:
            return str(error)

    expected = outcome()
    tiny()
    found = outcome()
    if isinstance(expected, str):
        assert found == expected
    else:
        same(found, expected)
        assert found.categories == expected.categories
        assert (found.clusters.dtype.kind == "U") == ("id" in late)


@each_file
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("x", np.inf, "column 'x' has 1 infinite value among"),
        ("x", 1e200, "column 'x' has values up to 1e[+]200"),
        ("m", "?", "column 'm' must be numeric, but it has type String with values such as '[?]'"),
    ],
)
def test_errors_in_a_late_chunk(ending, column, value, message, tiny, tmp_path):
    rows = make_rows(missing=0.0)
    rows[column] = rows[column].astype(object)
    rows.loc[len(rows) - 1, column] = value
    rows[column] = rows[column].astype(str if isinstance(value, str) else float)
    path = write(rows, tmp_path / f"rows{ending}")
    for _ in range(2):
        with pytest.raises(jm.DataError, match=message):
            read(path, SYSTEM)
        tiny()


def test_a_late_csv_line_with_another_number_of_fields(tiny, tmp_path):
    path = write(make_rows(), tmp_path / "rows.csv")
    path.write_text(path.read_text() + "1,2,3\n")
    tiny()
    with pytest.raises(jm.DataError, match="every line must have as many fields as the header"):
        read(path, SYSTEM)


@each_file
@pytest.mark.parametrize("column", ["x", "id"])
def test_columns_without_values_in_chunks(ending, column, tiny, tmp_path):
    rows = make_rows()
    rows[column] = None
    path = write(rows, tmp_path / f"rows{ending}")
    tiny()
    with pytest.raises(jm.DataError, match=f"column '{column}'.* is missing in"):
        read(path, SYSTEM)


def test_ids_that_mix_types_between_chunks(tiny):
    rows = make_rows().astype({"id": object})
    rows.loc[len(rows) - 1, "id"] = "last"
    tiny()
    with pytest.raises(jm.DataError, match="the cluster column 'id' mixes types"):
        read(rows, SYSTEM)


def test_parquet_columns_with_a_dot(tiny, tmp_path):
    rows = make_rows()[["id", "x", "m", "y"]]
    expected = read(rows, SYSTEM)
    path = write(rows.rename(columns={"x": "a.b"}).assign(a=1.0), tmp_path / "rows.parquet")
    tiny()
    found = read(path, jm.Mediation(x="a.b", m="m", y="y", cluster="id").system())
    np.testing.assert_allclose(found.table, expected.table, rtol=1e-12, atol=1e-9)


def test_parquet_categories_and_dictionaries(tiny, tmp_path):
    rows = make_rows()
    rows["id"] = pd.Categorical([f"site {k}" for k in rows["id"]])
    expected = read(rows, WIDE)
    path = write(rows.assign(g=rows["g"].astype("category")), tmp_path / "rows.parquet")
    tiny()
    same(read(path, WIDE), expected)


# Engines and memory --------------------------------------------------------------------------------------------------


def test_lazy_polars_frames_stream(monkeypatch):
    engines = []
    collect = pl.LazyFrame.collect

    def spy(self, *args, **options):
        engines.append(options.get("engine"))
        return collect(self, *args, **options)

    monkeypatch.setattr(pl.LazyFrame, "collect", spy)
    rows = make_rows()
    found = read(pl.from_pandas(rows).lazy(), WIDE)
    assert engines
    assert set(engines) == {"streaming"}
    same(found, read(rows, WIDE))


@pytest.mark.filterwarnings("ignore:Dask support is moving out of Narwhals:FutureWarning")
def test_dask():
    frames = pytest.importorskip("dask.dataframe")
    rows = make_rows()
    same(read(frames.from_pandas(rows, npartitions=3), WIDE), read(rows, WIDE))


@pytest.mark.parametrize("offset", [0.0, 1e9])
@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_queries_find_the_scale_of_columns_far_from_zero_and_with_nan(offset, nothing):
    rows = make_rows(missing=0.0)
    rows["x"] += offset
    frame = pl.from_pandas(rows).with_columns(m=pl.when(pl.int_range(pl.len()) == 3).then(nothing).otherwise("m"))
    found = read(frame.lazy(), SYSTEM)
    same(found, read(frame, SYSTEM))
    assert found.sample_summary.missing["m"] == 1


PEAK = """
import sys
import jaxmed as jm
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
model = jm.Mediation(x="x", m="m", y="y", cluster="id")
jm.read_moments(jm.datasets.load_example(), model)
before = peak()
assert jm.read_moments(sys.argv[1], model).sample_summary.rows == int(sys.argv[2])
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_follow_rows(tmp_path):
    """10 million rows are 305 MiB; one row group of the file holds them all."""
    n = 10_000_000
    rng = np.random.default_rng(0)
    columns = {"id": np.arange(n) // 600, **{name: rng.normal(size=n) for name in "xmy"}}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=n)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "rows.parquet"), str(n)], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 270


# Progress and interruption -------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_long_reads_say_how_far_they_are(tiny, monkeypatch, tmp_path):
    rows = make_rows()
    path = write(rows, tmp_path / "rows.parquet")
    monkeypatch.setattr(sys, "stderr", Terminal())
    read(path, SYSTEM)
    assert sys.stderr.getvalue() == ""
    tiny()
    read(path, SYSTEM)
    assert f"reading rows.parquet: 14 rows of {len(rows)}" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\r\033[K")


def test_progress_is_silent_without_a_terminal(capsys):
    with progress("work") as say:
        say("half")
    assert capsys.readouterr() == ("", "")


SLOW = """
import sys, time
from jaxmed._cli import app
from jaxmed._data import chunked
from jaxmed._support import block_sizes
few = block_sizes(csv_bytes=1000)
few.__enter__()
add = chunked._Summary.add
def slow(self, values):
    print("reading", file=sys.stderr, flush=True)
    time.sleep(0.2)
    add(self, values)
chunked._Summary.add = slow
sys.argv = ["jaxmed", "fit", sys.argv[1], "--x", "x", "--m", "m", "--y", "y", "--cluster", "id", "--json", sys.argv[2]]
app.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child alone")
def test_an_interrupt_ends_a_long_read(tmp_path):
    path = write(jm.simulate(clusters=400, size=8, seed=1), tmp_path / "rows.csv")
    command = [sys.executable, "-c", SLOW, str(path), str(tmp_path / "out.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "reading\n"
        time.sleep(0.3)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert time.perf_counter() - start < 5
    assert process.returncode == 130
    assert "interrupted" in errors.splitlines()[-1]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["rows.csv"]


# Moments that are kept -----------------------------------------------------------------------------------------------

MODEL = jm.Mediation(
    x="x", m="m", y="y", cluster="id", covariates=["g", "w"], reference={"g": "a"}, moderators={"w": ["a"]}
)


@pytest.mark.parametrize("label", ["numbers", "text", "dates"])
def test_moments_saved_and_loaded(label, tmp_path):
    rows = make_rows()
    rows["id"] = LABELS[label](rows["id"])
    moments = jm.read_moments(rows, MODEL)
    assert re.fullmatch(r"<Moments: .*x.* in [0-9]+ rows of [0-9]+ clusters \(.+\)>", repr(moments))
    path = tmp_path / "rows.moments"
    jm.save_moments(moments, path)
    loaded = jm.load_moments(path)
    same(loaded, moments)
    np.testing.assert_array_equal(loaded.table, moments.table)
    for name in ("cluster", "columns", "row_products", "groups", "averaged", "categories"):
        assert getattr(loaded, name) == getattr(moments, name)
    assert [found.name for found in tmp_path.iterdir()] == ["rows.moments"]


@pytest.mark.filterwarnings("ignore::jaxmed.DesignWarning")
def test_a_fit_from_a_file_of_moments(tmp_path):
    rows = jm.simulate(clusters=60, size=6, seed=3)
    model = jm.Mediation(x="x", m="m", y="y", cluster="id")
    jm.save_moments(jm.read_moments(rows, model), tmp_path / "rows.moments")
    fit = jm.fit(tmp_path / "rows.moments", model)
    assert fit.loglik == jm.fit(rows, model).loglik
    fit.save(tmp_path / "a.fit")
    np.testing.assert_array_equal(jm.load_moments(tmp_path / "a.fit").table, fit.moments.table)


def test_moments_of_parts_of_a_model_add_up():
    rows = make_rows(2, clusters=50)
    whole = jm.read_moments(rows, MODEL)
    total = jm.read_moments(rows[::2], MODEL) + jm.read_moments(rows[1::2], MODEL)
    assert total.sample_summary == whole.sample_summary
    total = total.rescaled(whole.shift, whole.scale)
    for one, other in zip(total.patterns, whole.patterns, strict=True):
        np.testing.assert_allclose(one.products, other.products, rtol=1e-9, atol=1e-9)


def test_files_that_hold_no_moments(tmp_path):
    moments = jm.read_moments(make_rows(), SYSTEM)
    with pytest.raises(jm.FitError, match=r"must end in .moments"):
        jm.save_moments(moments, tmp_path / "rows.npz")
    with pytest.raises(jm.DataError, match="there is no file"):
        jm.load_moments(tmp_path / "nowhere.moments")
    (tmp_path / "bad.moments").write_bytes(b"PK not really")
    for action in (jm.load_moments, lambda path: jm.fit(path, SYSTEM)):
        with pytest.raises(jm.DataError, match="is not a file of moments that jaxmed saved"):
            action(tmp_path / "bad.moments")


# What a second reader found ------------------------------------------------------------------------------------------


def test_categories_beside_missing_numbers_in_many_parts(tmp_path, shrink):
    """Every part has a NaN of its own, which once counted as a category each and ended the search."""
    shrink(parquet_rows=2)
    rows = 400
    g = np.where(np.arange(rows) % 2, np.nan, (np.arange(rows) // 2) % 2)
    g[-2] = 2.0
    data = pd.DataFrame({"id": np.arange(rows) // 4, "g": g, "y": np.arange(rows) % 7 + 0.5})
    table = pa.table({name: pa.array(data[name].to_numpy(), from_pandas=False) for name in data})  # NaN stays NaN
    parquet.write_table(table, tmp_path / "g.parquet")
    source = frame.open_data(tmp_path / "g.parquet", ("id", "g"))
    assert frame.categories(source, "g") == ("0", "1", "2")


@pytest.mark.parametrize("make", [str, int, lambda k: datetime.date(2020, 1, 1) + datetime.timedelta(int(k))])
def test_a_part_whose_ids_are_all_missing(shrink, make):
    shrink(frame_rows=50)
    data = jm.simulate(clusters=40, size=5, seed=1)
    whole = data.iloc[:150]
    ids = pd.Series([make(k) for k in data["id"]], dtype=object)
    ids[150:] = None
    found = jm.read_moments(data.assign(id=ids), PLAIN)
    assert found.n_clusters == 30
    assert found.sample_summary.missing["id"] == 50
    np.testing.assert_allclose(
        np.sort(found.spread("x")), np.sort(jm.read_moments(whole, PLAIN).spread("x")), rtol=1e-10
    )


@pytest.mark.parametrize("rows", [20, 1000])
def test_ids_of_several_types_are_named(shrink, rows):
    shrink(frame_rows=rows)
    data = jm.simulate(clusters=20, size=5, seed=1)
    mixed = data.assign(id=pd.Series([str(k) if k < 11 else k for k in data["id"]], dtype=object))
    with pytest.raises(jm.DataError, match=r"the cluster column 'id' mixes types \(int\d*, str\)"):
        jm.read_moments(mixed, PLAIN)
    periods = data.assign(id=pd.period_range("2000-01", periods=20, freq="M").repeat(5))
    with pytest.raises(jm.DataError, match="the cluster column 'id' has ids such as 2000-01 of type Period; use"):
        jm.read_moments(periods, PLAIN)


@pytest.mark.parametrize("text", ["id,x,m,y", "\n", "id,x,m,y\n"])
def test_csv_files_without_rows(tmp_path, text):
    path = tmp_path / "none.csv"
    path.write_text(text)
    with pytest.raises(jm.DataError, match=r"has no rows|there is no column|has no values|Empty CSV"):
        jm.read_moments(path, PLAIN)


def test_a_value_that_reads_like_a_complaint(tmp_path):
    """A late "Expected" in a numeric column is text, not a line of the wrong length."""
    path = tmp_path / "late.csv"
    data = jm.simulate(clusters=200, size=5, seed=1).astype({"x": object})
    data.loc[990, "x"] = "Expected"
    data.to_csv(path, index=False)
    with pytest.raises(jm.DataError, match=r"column 'x' must be numeric, .*'Expected'"):
        jm.read_moments(path, PLAIN)


def test_moments_have_no_rows_to_describe(tmp_path):
    data = jm.datasets.load_example()
    path = tmp_path / "example.MOMENTS"
    jm.save_moments(jm.read_moments(data, PLAIN), path)
    for function in (jm.describe, jm.stack, jm.read_moments):
        with pytest.raises(jm.DataError, match=r"holds moments, no rows; give it to jaxmed\.fit or"):
            function(path, PLAIN)


def test_a_session_that_has_ended():
    """PySpark refuses expressions then, before a query is run."""

    class Ended:
        def collect_schema(self):
            return nw.Schema({name: nw.Float64() for name in ("id", "x", "m", "y")})

        def select(self, *expressions):
            raise RuntimeError("the session was stopped")

    system = jm.Mediation("x", "m", "y", "id").system()
    with pytest.raises(jm.DataError, match=r"own library \(RuntimeError\): the session was stopped"):
        Query(Ended()).summaries(system)
