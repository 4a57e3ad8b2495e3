"""What cannot be fitted is refused in one sentence that names the column, what was seen and what helps."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather

import jaxmed as jm
from jaxmed._support.validation import check_path

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
MODEL = jm.Mediation(**ROLES)
EQUATIONS = [jm.Equation("m", ["1", "x"], ["1"]), jm.Equation("y", ["1", "m", "x"], ["1", "m"])]


def rows(clusters=12, size=5):
    rng = np.random.default_rng(4)
    ids = np.repeat(np.arange(clusters), size)
    x, m, y = rng.normal(size=(3, len(ids)))
    return pd.DataFrame({"id": ids, "x": x, "m": x + m, "y": m + y})


def changed(**columns):
    """The rows with some columns replaced; a function gets the rows."""
    return rows().assign(**columns)


def refused(match, data, model=MODEL, error=jm.DataError, **options):
    with pytest.raises(error, match=match) as caught:
        jm.fit(data, model, **options)
    assert isinstance(caught.value, jm.JaxmedError)
    assert isinstance(caught.value, ValueError)


def with_value(name, at, value):
    data = rows().astype({name: object if isinstance(value, str) else float})
    data.loc[at, name] = value
    return data


# Columns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert", [lambda d: d, pl.from_pandas, pa.Table.from_pandas, lambda d: pl.from_pandas(d).lazy()]
)
@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"m": "mm"}, "no column 'm' in the data; did you mean 'mm'"),
        ({"id": "ID_"}, "no column 'id' in the data; the columns are 'ID_', 'x', 'm', 'y'"),
        ({"x": " x"}, "no column 'x' in the data; did you mean ' x'"),
    ],
)
def test_missing_column(convert, rename, message):
    refused(message, convert(rows().rename(columns=rename)))


def test_missing_column_in_a_wide_frame():
    """The message stays short."""
    wide = pd.DataFrame({f"column_{k}": [1.0, 2.0] for k in range(500)})
    refused("'column_11' and 488 more$", wide)


@pytest.mark.parametrize(
    ("column", "seen"),
    [
        ([f"v{k}" for k in range(60)], "'v0'"),
        (["1.5"] * 30 + ["1,5"] * 30, "'1,5'"),
        (pd.date_range("2020-01-01", periods=60), "Timestamp"),
        (pd.to_timedelta(np.arange(60), unit="D"), "Timedelta"),
        (pd.Categorical(["low", "high"] * 30), "'low'"),
        (np.arange(60) * 1j, "0j"),
        ([[1.0], [2.0]] * 30, r"\[1\.0\]"),
    ],
    ids=["text", "text among numbers", "dates", "durations", "categories", "complex", "lists"],
)
@pytest.mark.parametrize("name", ["x", "m", "y"])
def test_columns_that_are_no_numbers(name, column, seen):
    data = rows()
    data[name] = column
    refused(f"column '{name}' must be numeric, but it has type .* with values such as .*{seen}", data)


def test_ids_that_tell_rows_apart():
    """One row a cluster: it was said of x that it cannot vary, and to leave its slope out."""
    refused("'m' does not vary within any cluster.*or does 'id' tell rows apart, not clusters", changed(id=range(60)))


@pytest.mark.parametrize("convert", [pl.from_pandas, pa.Table.from_pandas, duckdb.from_arrow])
def test_text_in_other_frames(convert):
    data = changed(x=[f"v{k}" for k in range(60)])
    data = pa.Table.from_pandas(data) if convert is duckdb.from_arrow else data
    refused("column 'x' must be numeric, but it has type String with values such as 'v0'", convert(data))


@pytest.mark.parametrize("convert", [lambda d: d, pl.from_pandas])
@pytest.mark.parametrize("name", ["x", "m", "y"])
@pytest.mark.parametrize("nothing", [np.nan, None])
def test_columns_without_values(name, nothing, convert):
    refused(f"column '{name}' has no values: it is missing in every row", convert(changed(**{name: nothing})))


@pytest.mark.parametrize("convert", [lambda d: d, pl.from_pandas])
@pytest.mark.parametrize("nothing", [np.nan, None])
def test_no_cluster_ids(nothing, convert):
    refused("cluster column 'id' is missing in all 60 rows", convert(changed(id=nothing)))


@pytest.mark.parametrize("name", ["x", "m", "y"])
@pytest.mark.parametrize("value", [0.0, -2.5, 1e100])
def test_constant_columns(name, value):
    refused(f"column '{name}' is constant", changed(**{name: value}))


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda data: data, id="pandas"),
        pytest.param(pl.from_pandas, id="polars"),
        pytest.param(pa.Table.from_pandas, id="pyarrow"),
        pytest.param(lambda data: duckdb.from_arrow(pa.Table.from_pandas(data)), id="duckdb"),
    ],
)
@pytest.mark.parametrize("name", ["x", "m", "y"])
@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)])
def test_infinite_values(name, signs, convert):
    data = rows()
    data.loc[[3, 40], name] = np.inf * np.array(signs)
    refused(f"column '{name}' has 2 infinite values among 60 rows", convert(data))


def test_infinite_values_in_pandas_are_named():
    """As above, past the warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        refused("column 'm' has 1 infinite value among 60 rows", with_value("m", 7, -np.inf))


def test_equal_column_names():
    data = rows()
    data.columns = ["id", "x", "x", "y"]
    refused("the data has 2 columns named 'x'; rename them", data)


def test_columns_of_columns():
    data = rows()
    data.columns = pd.MultiIndex.from_product([["wave 1"], data.columns])
    refused("there is no column 'id' in the data", data)


def test_names_that_only_look_like_text():
    data = rows()
    data.columns = [5, 6, 7, 8]
    refused("no column '5'|column name", data, jm.Mediation(x="6", m="7", y="8", cluster="5"))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [0, None, "", ("a", 7), b"x"])
def test_names_that_are_no_text(role, name):
    """m may be several columns; each of them must be text."""
    where = "m.1." if role == "m" and isinstance(name, tuple) else role
    message = f"{where} must be a column name .text." if name is not None else f"which columns are {role}"
    refused(message, rows(), None, jm.SpecError, **(ROLES | {role: name}))


# Clusters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [7, 7.0, "only"])
def test_one_cluster(value):
    refused("cluster column 'id' has one cluster .*7|only.*at least two", changed(id=value))


def test_one_cluster_left_after_missing_values():
    data = rows()
    data.loc[data["id"] > 0, "m"] = np.nan
    refused("cluster column 'id' has one cluster", data)


def test_cluster_ids_of_mixed_types():
    ids = pd.Series([1, "one", 2.0] * 20, dtype=object)
    refused(r"cluster column 'id' mixes types \(float, int, str\)", changed(id=ids))


@pytest.mark.parametrize(
    "make",
    [
        lambda: changed(id=[(k % 9, 0) for k in range(60)]),
        lambda: pl.from_pandas(rows()).with_columns(pl.struct("id").alias("id")),
        lambda: pl.from_pandas(rows()).with_columns(pl.concat_list("id")),
    ],
)
def test_cluster_ids_of_several_parts(make):
    refused("cluster column 'id'", make())


@pytest.mark.parametrize("covariance", ["unstructured", "diagonal"])
def test_predictor_of_the_cluster_cannot_have_a_random_slope(covariance):
    """A System is taken at its word; a Mediation fixes the slope, asked for or not, and says so."""
    data = changed(x=lambda d: np.sin(d["id"]))
    message = "'x' does not vary within any cluster, so its slope in the equation of 'm'.*leave it out of random"
    refused(message, data, jm.System([jm.Equation("m", ["1", "x"], ["1", "x"])], "id", covariance))
    model = jm.Mediation(**ROLES, covariance=covariance, random={"m": ["1", "x"]})
    with pytest.warns(jm.DesignWarning, match="'x' does not vary within clusters: its slope cannot vary"):
        fit = jm.fit(data, model)
    assert fit.system.random_labels == ("m~1",)


def test_mediator_of_the_cluster():
    data = changed(m=lambda d: np.sin(d["id"]))
    refused("'m' does not vary within clusters but 'x' does .a 1-2-1 design.", data)
    refused("'m' does not vary within any cluster, so its residual variance", data, jm.System(EQUATIONS, "id"))


def test_mediator_of_the_cluster_cannot_have_a_random_slope():
    data = changed(m=lambda d: np.sin(d["id"]))
    message = "'m' does not vary within any cluster, so its slope in the equation of 'y'"
    refused(message, data, jm.System(EQUATIONS[1], "id"))
    model = jm.Mediation(**ROLES, random={"y": ["1", "m"]})
    with pytest.warns(jm.DesignWarning, match="'m' does not vary within clusters: .*its slope cannot vary"):
        fit = jm.fit(data.assign(x=lambda d: np.cos(d["id"])), model)
    assert fit.system.random_labels == ("y~1",)


def test_outcome_of_the_cluster():
    data = changed(y=lambda d: np.sin(d["id"]))
    refused("the outcome 'y' does not vary within clusters .an x-m-2 design.", data)
    refused("'y' does not vary within any cluster", data, jm.System(EQUATIONS[1], "id"))


def test_every_row_a_cluster():
    refused("does not vary within any cluster", changed(id=np.arange(60)))


def test_random_effects_that_clusters_this_small_cannot_show():
    """Two rows with the same two values of x everywhere: three (co)variances and a residual for a 2 x 2 covariance."""
    data = rows(clusters=20, size=2)
    data["x"] = np.tile([0.0, 1.0], 20)
    model = jm.System([jm.Equation("m", ["1", "x"], random=["1", "x"])], cluster="id")
    refused(
        r"the random effects \['1', 'x'\] of 'm' cannot be separated from each other or from the residual", data, model
    )


def test_dyads_whose_predictor_differs_are_fitted():
    """As nlme 3.1 and lme4 1.1 do: m ~ x with random = ~ x | id has log restricted likelihood -318.1046674 here."""
    model = jm.System([jm.Equation("m", ["1", "x"], random=["1", "x"])], cluster="id")
    assert jm.fit(jm.simulate(clusters=100, size=2, seed=1), model).loglik == pytest.approx(-318.1046674, abs=1e-7)


# Rows ----------------------------------------------------------------------------------------------------------------


def test_too_few_rows():
    data = pd.DataFrame({"id": [1, 2], "x": [0.0, 1.0], "m": [1.0, 0.5], "y": [2.0, 1.0]})
    refused("only 2 rows have all of 'x', 'm' observed, too few for the 2 coefficients of 'm'", data)


def test_too_few_rows_with_y():
    data = rows()
    data.loc[3:, "y"] = np.nan
    refused("only 3 rows have all of 'm', 'x', 'y' observed, too few for the 3 coefficients of 'y'", data)


def test_mediator_and_outcome_never_together():
    data = rows()
    data.loc[:29, "y"] = np.nan
    data.loc[30:, "m"] = np.nan
    refused("only 0 rows have all of 'm', 'x', 'y' observed", data)


def test_no_complete_row_at_all():
    data = rows()
    data.loc[:29, "x"] = np.nan
    data.loc[30:, "m"] = np.nan
    refused("no row has all the columns of any equation observed .missing values: 'x': 30, 'm': 30, 'y': 0", data)


@pytest.mark.parametrize(
    "convert", [lambda d: d, pl.from_pandas, pa.Table.from_pandas, lambda d: pl.from_pandas(d).lazy()]
)
def test_no_rows(convert):
    refused("the data has no rows", convert(rows().iloc[:0]))


def test_no_rows_and_no_types():
    refused("no rows", pd.DataFrame(columns=["id", "x", "m", "y"]))


# Collinearity --------------------------------------------------------------------------------------------------------


def test_mediator_copies_the_predictor():
    refused("'m' is an exact linear function of 'x', to 10 digits: nothing is left", changed(m=lambda d: d["x"]))


def test_outcome_copies_the_mediator():
    refused("'y' is an exact linear function of 'm'", changed(y=lambda d: d["m"]))


def test_outcome_is_a_sum():
    data = changed(y=lambda d: 2 * d["m"] - d["x"] + 1e3)
    refused("'y' is an exact linear function of 'm' and 'x'", data)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_two_collinear_predictors(shift):
    model = jm.System([jm.Equation("y", ["1", "x", "twin"], random=["1"])], cluster="id")
    data = changed(twin=lambda d: 3 * d["x"] - 1 + shift)
    refused("column 'twin' is collinear with 'x' in the equation of 'y'.*remove one", data, model)


def test_predictor_varies_only_where_it_is_not_used():
    """Constant among the rows that count, not among all rows."""
    data = changed(x=lambda d: np.where(d["id"] > 5, 1.0, d["x"]), m=lambda d: d["m"].where(d["id"] > 5))
    refused("column 'x' is collinear with the intercept in the equation of 'm'", data)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_nearly_collinear_predictors_are_accepted_in_any_unit(scale):
    """A correlation of .9999 is hard, not impossible."""
    data = changed(twin=lambda d: scale * (d["x"] + 0.01 * np.sin(np.arange(60))))
    model = jm.System([jm.Equation("y", ["1", "x", "twin"])], cluster="id")
    assert jm.fit(data, model).converged


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "", "rows.csv' is empty"),
        ("rows.parquet", "", "rows.parquet' is empty"),
        ("rows.csv", "\n\n", "rows.csv': the data has no rows"),
        ("rows.csv", "id;x;m;y\n1;2;3;4\n", "no column 'id' in the data; its one column is 'id;x;m;y': separate"),
        ("rows.csv", "id,x,x,y\n1,2,3,4\n", "the data has 2 columns named 'x'"),
        ("rows.csv", b"\xff\xfei\x00d\x00", "the data has no rows: .* or the file is not text in UTF-8"),
        ("rows.csv", "id,x,m,y\n1,a,3,4\n2,b,5,6\n", "column 'x' must be numeric.*'a'"),
        ("rows.parquet", "PAR1 not really", "cannot be read as .parquet"),
        ("rows.feather", "ARROW1 not really", "cannot be read as .feather"),
        ("rows.xlsx", "PK", "cannot be read; use one of .csv, .parquet"),
        ("rows", "id,x,m,y\n", "cannot be read; use one of .csv"),
        ("rows.csv.gz", "", "cannot be read; use one of .csv"),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(message, path)


def test_csv_with_a_header_only(tmp_path):
    (tmp_path / "rows.csv").write_text("id,x,m,y\n", encoding="utf-8")
    refused("no rows", tmp_path / "rows.csv")


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".feather", ".dta"])
def test_no_such_file(ending, tmp_path):
    refused("there is no file '.*nowhere.*'; check the path", tmp_path / f"nowhere{ending}")
    refused("there is no file", f"nowhere{ending}")


def test_a_folder_with_the_name_of_a_file(tmp_path):
    (tmp_path / "data.csv").mkdir()
    refused("data.csv' is not a file", tmp_path / "data.csv")


@pytest.mark.parametrize(
    "ending",
    [
        ".parquet",
        ".feather",
        pytest.param(".dta"),
    ],
)
@pytest.mark.parametrize("share", [0.001, 0.05, 0.3])
def test_files_cut_short(ending, share, tmp_path):
    path = tmp_path / f"rows{ending}"
    write = {".parquet": rows().to_parquet, ".feather": rows().to_feather, ".dta": rows().to_stata}[ending]
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole)) + 1])
    refused(f"cannot be read as {ending}", path)


def test_a_feather_file_whose_text_lies_elsewhere(tmp_path):
    """A flipped bit in the offsets of text sent Arrow to memory that is not its own, and ended the process."""
    data = rows().assign(id=lambda table: "g" + table["id"].astype(str))
    path = tmp_path / "rows.feather"
    feather.write_feather(pa.Table.from_pandas(data), path, compression="uncompressed")
    whole = bytearray(path.read_bytes())
    starts = np.cumsum([0, *data["id"].str.len()])
    width = next(width for width in (4, 8) if whole.find(starts.astype(f"<i{width}").tobytes()) >= 0)
    at = whole.find(starts.astype(f"<i{width}").tobytes()) + 10 * width
    whole[at : at + width] = np.array([10**9], f"<i{width}").tobytes()
    path.write_bytes(whole)
    refused(r"cannot be read as .feather \(ArrowInvalid\)", path)


def test_numbers_and_flags_of_numpy(plain_fit):
    assert jm.Mediation("x", ["m", "y2"], "y", "id", serial=np.True_) == jm.Mediation(
        "x", ["m", "y2"], "y", "id", serial=True
    )
    assert plain_fit.intervals(level=np.float32(0.5)).equals(plain_fit.intervals(level=0.5))


# Kinds of data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [[1, 2], {"x": [1.0]}, None, 3, b"rows.csv", np.zeros((3, 4)), rows()["x"], rows().groupby("id"), object()],
    ids=lambda data: type(data).__name__,
)
def test_data_that_is_no_table(data):
    refused(f"data of type {type(data).__name__} cannot be read; pass a pandas, polars", data)


def test_an_error_inside_a_lazy_query_is_passed_on():
    lazy = pl.from_pandas(rows()).lazy()
    lazy = lazy.with_columns(pl.col("x").map_batches(lambda s: 1 / 0, return_dtype=pl.Float64))
    refused("could not be read by its own library .*division by zero", lazy)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pl.scan_parquet("nowhere.parquet"),
        lambda: pl.scan_csv("nowhere.csv"),
        lambda: pl.from_pandas(rows()).lazy().select("id", "x", "m", "nowhere"),
    ],
)
def test_a_lazy_query_that_cannot_start(make):
    refused("could not be read by its own library", make())


# Models and options --------------------------------------------------------------------------------------------------


def test_mediator_and_outcome_are_one_column():
    message = "m and y are the same column 'y'"
    refused(message, rows(), None, jm.SpecError, **(ROLES | {"m": "y"}))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_left_out(role):
    others = {other: name for other, name in ROLES.items() if other != role}
    refused(f"which columns are {role}", rows(), None, jm.SpecError, **others)


def test_no_role_at_all():
    refused("which columns are x, m, y, cluster", rows(), None, jm.SpecError)


@pytest.mark.parametrize("roles", [ROLES, {"cluster": "id"}])
def test_a_model_and_its_columns(roles):
    refused("give either a model or its columns, not both", rows(), MODEL, jm.SpecError, **roles)


@pytest.mark.parametrize("model", ["y ~ x", 3, jm.Mediation, {"x": "x"}])
def test_a_model_that_is_none(model):
    refused(r"must be a jaxmed\.Mediation or jaxmed\.System; got", rows(), model, jm.SpecError)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"random": "some"}, "random='some' is not known; use 'all', 'none' or a dict"),
        ({"random": None}, "random must be 'all', 'none' or a dict"),
        ({"random": ["1", "x"]}, "random must be 'all', 'none' or a dict"),
        ({"random": {"z": ["1"]}}, "random has the key 'z'; the outcomes of this model are"),
        ({"random": {"x": ["1"]}}, "random has the key 'x'"),
        ({"random": {"m": ["m"]}}, "which is not a predictor of 'm'"),
        ({"random": {"y": ["1", "1"]}}, "names '1' more than once"),
        ({"covariance": "free"}, "covariance='free' is not known; choose one of"),
        ({"covariance": None}, "covariance=None is not known"),
        ({"covariance": ["diagonal"]}, "must list each random effect once; 'diagonal' is not one of"),
    ],
)
def test_options_of_the_model(option, message):
    with pytest.raises(jm.SpecError, match=message) as caught:
        jm.Mediation(**ROLES, **option)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [0, -1, 2.5, "10", True, None, float("nan")])
def test_max_iter(value):
    refused("max_iter=.* must be a whole number of at least 1", rows(), error=jm.SpecError, max_iter=value)


@pytest.mark.parametrize("value", ["ML", "no", None])
def test_reml(value):
    model = jm.System([jm.Equation("y", ["1", "x"])], cluster="id")
    refused("reml", rows(), model, jm.SpecError, reml=value)


@pytest.fixture(scope="module")
def plain_fit():
    return jm.fit(rows(), jm.Mediation(**ROLES, random="none"))


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, "0.95", None, True, float("nan"), Fraction(1, 2)])
@pytest.mark.parametrize("method", ["effects", "intervals", "summary"])
def test_level(plain_fit, method, level):
    with pytest.raises(jm.SpecError, match=r"level=.* is not a confidence level"):
        getattr(plain_fit, method)(level=level)


@pytest.mark.parametrize("se", ["block", "sandwich", 1])
@pytest.mark.parametrize("method", ["effects", "summary"])
def test_se(plain_fit, method, se):
    with pytest.raises(jm.SpecError, match=r"covariance=.* is not known; choose one of \['joint', 'bauer', 'robust'\]"):
        getattr(plain_fit, method)(covariance=se)


# Moments instead of rows ---------------------------------------------------------------------------------------------


def test_moments_read_for_another_model():
    """A shifted x changes a model whose random effects may not covary: the same answer, or an error."""
    from jaxmed._data.reader import read

    data = jm.simulate(clusters=60, size=6, seed=1).assign(x=lambda d: d["x"] + 5)
    free, diagonal = (
        jm.System([jm.Equation("y", ["1", "x"], random=["1", "x"])], "id", covariance)
        for covariance in ("unstructured", "diagonal")
    )
    expected = jm.fit(data, diagonal).loglik
    try:
        found = jm.fit(read(data, free), diagonal).loglik
    except jm.JaxmedError:
        return
    assert found == pytest.approx(expected, abs=1e-6)


# Arguments that cannot be compared, iterated or named ----------------------------------------------------------------

STRANGE = [np.array([1, 2]), np.array([]), np.array("x"), pd.NA, pd.Series(dtype=float), {"x"}, object(), 10**30, None]


def refused_call(call):
    with pytest.raises(jm.JaxmedError) as caught:
        call()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: type(value).__name__)
def test_strange_choices_flags_lists_and_numbers(plain_fit, strange):
    """Whatever has no truth, hash or length of its own is refused as any other wrong value is."""
    for call in (
        *([] if strange is None else [lambda: plain_fit.effects(covariance=strange)]),  # None is the default
        lambda: plain_fit.cov_params(covariance=strange),
        lambda: plain_fit.cov_params(full=strange),
        lambda: plain_fit.to_dict(robust=strange),
        lambda: plain_fit.summary(heterogeneity=strange),
        lambda: plain_fit.lr_test(null=strange),
        lambda: plain_fit.intervals(method=strange),
        lambda: jm.fit(rows(), MODEL, missing=strange),
        lambda: jm.Mediation(**ROLES, residuals=strange),
        lambda: jm.Mediation(**ROLES | {"x": strange}),
        lambda: jm.Mediation(**ROLES, covariance=strange),
        lambda: jm.System(strange, "id"),
        lambda: jm.simulate(seed=1, moments=strange),
        lambda: jm.Population.from_fit(strange),
        lambda: jm.Population(icc_x=strange),
        lambda: jm.johnson_neyman(strange, "w"),
    ):
        refused_call(call)


@pytest.mark.parametrize("terms", [2.5, object, [], ["y~m", "y~m"], [["y~m"]], np.array("x")], ids=repr)
def test_wald_terms_that_are_none(plain_fit, terms):
    with pytest.raises(jm.SpecError, match=r"terms=.*: choose from"):
        plain_fit.wald(terms=terms)


@pytest.mark.parametrize("indent", ["x", 2.5, -1, np.array([])], ids=repr)
def test_indent_of_json(plain_fit, indent):
    with pytest.raises(jm.SpecError, match=r"indent=.* must be a whole number"):
        plain_fit.to_json(indent=indent)


@pytest.mark.parametrize("numbers", [0.5, "joint", ["x"], {1: 2.0}, pd.Series(dtype=float)], ids=repr)
def test_numbers_of_a_population(numbers):
    for call in (jm.Population, jm.Population().replace):
        with pytest.raises(jm.SpecError, match=r"numbers=.* must be a dict from names to numbers"):
            call(numbers=numbers)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "a" * 5000, 3, True, ["x"], np.array([1.0]), pd.NaT], ids=ascii)
def test_paths_that_no_file_can_have(plain_fit, path):
    for call in (
        lambda: plain_fit.save(path),
        lambda: jm.load(path),
        lambda: jm.load_moments(path),
        lambda: jm.save_moments(plain_fit.moments, path),
        lambda: jm.load_power(path),
        lambda: jm.report(plain_fit, path),
    ):
        refused_call(call)


def test_anything_that_is_a_path_will_do(plain_fit, tmp_path):
    class Place:
        def __init__(self, name):
            self.name = name

        def __fspath__(self):
            return str(tmp_path / self.name)

    plain_fit.save(Place("a.fit"))
    assert jm.load(Place("a.fit")).loglik == plain_fit.loglik
    rows().to_csv(Place("a.csv"), index=False)
    jm.save_moments(plain_fit.moments, Place("a.moments"))
    for name in ("a.csv", "a.moments"):
        assert jm.fit(Place(name), plain_fit.spec).loglik == pytest.approx(plain_fit.loglik, rel=1e-12)


def test_a_path_that_says_it_is_a_number(plain_fit):
    """Its message asked again and ended in a TypeError."""

    class Place:
        def __fspath__(self):
            return 3

    with pytest.raises(jm.SpecError, match="must be a path"):
        plain_fit.save(Place())


@pytest.mark.parametrize("read", [jm.load, jm.load_moments, lambda path: jm.describe(path, MODEL)])
def test_a_path_without_text_is_not_the_current_folder(read):
    with pytest.raises(jm.SpecError, match="='' must be a path"):
        read("")


def test_what_opening_a_file_says_is_said(monkeypatch, tmp_path):
    """That a path cannot be looked at is no mistake in the argument."""
    monkeypatch.setattr(Path, "exists", lambda path: os.stat("/dev/null/x"))
    assert check_path("path", "a.fit") == Path("a.fit")


def test_ids_that_are_durations_are_loaded_again(tmp_path):
    data = rows().assign(id=lambda table: pd.to_timedelta(table["id"], unit="D"))
    jm.fit(data, jm.Mediation(**ROLES, random="none")).save(tmp_path / "a.fit")
    assert jm.load(tmp_path / "a.fit").moments.clusters.dtype.kind == "m"


@pytest.mark.parametrize("read", [jm.stack, lambda data, model: jm.fit(rows(), model).residuals(data)])
def test_rows_of_a_frame_without_rows(read):
    with pytest.raises(jm.DataError, match=r"the data has no rows"):
        read(rows().head(0), jm.Mediation(**ROLES, random="none"))


@pytest.mark.parametrize("one", [[1], {"k": 1}, (1,), object()])
def test_residuals_of_rows_with_ids_that_nothing_orders(one):
    fit = jm.fit(rows(), jm.Mediation(**ROLES, random="none"))
    with pytest.raises(jm.DataError, match=r"'id' has ids such as .* use numbers, text or dates"):
        fit.residuals(rows().assign(id=lambda table: [one] * len(table)))


def test_lists_that_are_arrays_without_dimensions(plain_fit):
    none = np.array("x")
    refused_call(lambda: plain_fit.intervals(terms=none))
    refused_call(lambda: jm.Mediation(**ROLES, moderators={"w": none}))
    refused_call(lambda: jm.Mediation(**ROLES, moderators={"w": [none]}))
    refused_call(lambda: jm.System(EQUATIONS, "id", residuals=none))
    refused_call(lambda: jm.System.from_formulas(none))
    refused_call(lambda: jm.System(EQUATIONS, "id", covariance=none))
    refused_call(lambda: jm.power(replications=2, seed=1, intervals=[np.array([1, 2])]))


@pytest.mark.parametrize("column", ["m", "site"])
def test_text_that_is_no_utf8(column):
    """As a damaged feather file may hold: Arrow does not look at it before it is asked for."""
    data = rows().assign(site=lambda table: np.where(table["id"] % 2, "A", "B"))
    broken = pa.Array.from_buffers(
        pa.string(),
        len(data),
        [None, pa.py_buffer(np.arange(len(data) + 1, dtype="int32").tobytes()), pa.py_buffer(b"\xcf" * len(data))],
    )
    table = pa.Table.from_pandas(data)
    table = table.set_column(table.schema.get_field_index(column), column, broken)
    with pytest.raises(jm.DataError, match=r"could not be read by its own library \(UnicodeDecodeError\)"):
        jm.fit(table, jm.Mediation(**ROLES, covariates=["site"], reference={"site": "A"}))


def test_clusters_of_formulas_that_are_no_text():
    refused_call(lambda: jm.System.from_formulas(["y ~ x + (1 | id)"], cluster=["id"]))


def test_long_values_are_cut_in_messages():
    refused_call(lambda: jm.Mediation(**ROLES, covariance="a" * 5000))


@pytest.mark.parametrize("scale", [1e-34, 1e34])
def test_errors_of_variances_in_extreme_units_neither_overflow_nor_vanish(scale):
    """The standard error of a slope variance is of the order of (y / x)^2, its variance of (y / x)^4."""
    data = jm.simulate(clusters=100, size=2, seed=1).assign(x=lambda d: d["x"] / scale, m=lambda d: d["m"] * scale)
    model = jm.System([jm.Equation("m", ["1", "x"], random=["1", "x"])], cluster="id")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = jm.fit(data, model)
    variances = np.diag(fit.joint)
    assert np.all(np.isfinite(variances))
    assert np.all(variances > 0)


@pytest.mark.parametrize("values", ["x", ["x"], [np.nan], [[0.1, 0.2]], object(), 1e308])
def test_values_of_a_profile_that_are_no_numbers(plain_fit, values):
    refused_call(lambda: plain_fit.profile("y~m", values))


@pytest.mark.parametrize("term", [pd.NA, np.array([1, 2]), {"x"}], ids=["NA", "array", "set"])
def test_terms_that_cannot_be_compared(plain_fit, term):
    refused_call(lambda: plain_fit.profile(term))
    refused_call(lambda: plain_fit.intervals(terms=[term]))


def test_ids_that_no_text_can_hold_or_nobody_can_hash():
    data = rows()
    ids = pd.Series([f"\ud800{k}" for k in data["id"]], dtype=object)
    refused("the cluster column 'id' has ids such as", data.assign(id=ids))
    tables = pd.Series([{"k": k} for k in data["id"]], dtype=object)
    refused(
        "the cluster column 'id' has ids such as",
        pl.DataFrame(data).with_columns(id=pl.Series(tables.tolist(), dtype=pl.Object)),
    )


def test_a_test_of_terms_that_are_one_number_is_nan(plain_fit):
    """As when x is 1e11 standard deviations from zero."""
    one = replace(plain_fit, joint=np.ones_like(plain_fit.joint))
    assert np.isnan(one.wald().statistic)
    assert one.summary()
