"""Hostile inputs: every case ends in the right answer or in one clear jaxmed error.

Drawn, from (seed, case): data sets of 0 to 10,000 rows, degenerate or in scales from 1e-12 to 1e12, in any type of
column and under any name, in every container that jaxmed reads, fitted by one of a handful of models; files that are
damaged; and calls of the public interface in which one or two arguments are replaced by something hostile.

Judged: a refusal is a JaxmedError of fewer than 1,500 characters that names the argument, column, file or value. A fit
has finite estimates; its log likelihood is that of the dense covariance matrices (tests/dense.py) to 1e-8; if it says
that it converged, no nearby point has a higher one, and the gradient vanishes where G has full rank. Data that are
plainly fine must be fitted. No input changes, no warning but jaxmed's own escapes, no case takes longer than --limit.

    python tests/campaigns/inputs.py --cases 20000 --seed 1
    python tests/campaigns/inputs.py --seed 1 --case 1234
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import datetime as dt
import decimal
import faulthandler
import fractions
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import dense

import jaxmed as jm
from jaxmed._model.data_facts import DataFacts

OWN = (jm.DesignWarning, jm.ConvergenceWarning)
LONGEST = 1500
COLUMNS = ("id", "x", "m", "y", "w", "site")


class Defect(Exception):
    """What a case must not end in."""


# Rows ----------------------------------------------------------------------------------------------------------------


def draw_rows(rng):
    """Rows of a 1-1-1 model with a moderator and categories of the cluster."""
    clusters = int(
        rng.choice([1, 2, 3, 6, 12, 30, 60, 300, 1200], p=[0.03, 0.03, 0.04, 0.1, 0.3, 0.3, 0.15, 0.04, 0.01])
    )
    sizes = rng.integers(1, [2, 3, 8, 8, 16, 16, 40][rng.integers(7)], clusters) * rng.choice([1, 1, 3], clusters)
    ids = np.repeat(np.arange(clusters), sizes)
    u = rng.normal(size=(5, clusters))[:, ids] * rng.choice([0.0, 0.3, 1.0, 30.0], p=[0.1, 0.4, 0.4, 0.1])
    x, e, f = rng.normal(size=(3, len(ids)))
    x = x + rng.normal(size=clusters)[ids]
    m = u[0] + (0.5 + u[1]) * x + e
    y = u[2] + (0.5 + u[3]) * m + (0.2 + u[4]) * x + f
    w = rng.normal(size=clusters)[ids]
    site = np.array(["A", "B", "C"])[rng.integers(0, 3, clusters)[ids]]
    rows = pd.DataFrame({"id": ids.astype(float), "x": x, "m": m, "y": y, "w": w, "site": site})
    return rows.sample(frac=1, random_state=int(rng.integers(2**31))).reset_index(drop=True)


def _numbers(change):
    """A mutation of one numeric column."""

    def mutate(rng, rows):
        name = rng.choice(["x", "m", "y", "w"], p=[0.3, 0.3, 0.3, 0.1])
        return rows.assign(**{name: change(rng, rows, rows[name].to_numpy())})

    return mutate


def _some(rng, value, values, share):
    chosen = rng.random(len(values)) < share
    return np.where(chosen, value, values)


def _outlier(rng, rows, v):
    at = np.arange(len(v)) == rng.integers(max(len(v), 1))
    return np.where(at, rng.choice([-1, 1]) * 10.0 ** rng.choice([3, 6, 12, 100, 160, 300]), v)


def _copied(rng, rows, v):
    other = rows[rng.choice(["x", "m", "y"])].to_numpy()
    return other * 10.0 ** rng.integers(-9, 9) + rng.choice([0, 1e-13, 1e-11, 1e-9, 1e-6, 1e-3]) * v


MILD = [
    _numbers(lambda rng, rows, v: v * 10.0 ** rng.uniform(-12, 12)),
    _numbers(lambda rng, rows, v: v + 10.0 ** rng.uniform(-2, 2)),
    _numbers(lambda rng, rows, v: _some(rng, np.nan, v, 0.1)),
]
WILD = [
    *MILD,
    _numbers(lambda rng, rows, v: v + rng.choice([-1, 1]) * 10.0 ** rng.uniform(2, 12)),
    _numbers(lambda rng, rows, v: 0 * v + rng.choice([0.0, 1.0, -1e12, 1e-300, np.nan])),
    _numbers(lambda rng, rows, v: pd.Series(v).groupby(rows["id"].to_numpy()).transform("mean").to_numpy()),
    _numbers(lambda rng, rows, v: _some(rng, np.nan, v, rng.choice([0.5, 0.9, 1.0]))),
    _numbers(lambda rng, rows, v: _some(rng, rng.choice([np.inf, -np.inf]), v, 0.05)),
    _numbers(lambda rng, rows, v: v * rng.choice([1e-310, 1e-200, 1e-100, 1e100, 1e200])),
    _numbers(lambda rng, rows, v: np.round(v * rng.choice([0.1, 1, 10]))),
    _numbers(lambda rng, rows, v: (v > 0).astype(float)),
    _numbers(_outlier),
    _numbers(_copied),
    lambda rng, rows: rows.assign(id=_some(rng, np.nan, rows["id"].to_numpy(), rng.choice([0.05, 1.0]))),
    lambda rng, rows: rows.assign(id=np.arange(len(rows)).astype(float)),
    lambda rng, rows: rows.assign(site=np.where(rows["site"] == "A", "B", rows["site"])),
    lambda rng, rows: rows.head(int(rng.integers(0, 8))),
    lambda rng, rows: pd.concat([rows] * 2, ignore_index=True),
    lambda rng, rows: pd.concat([rows] * max(10_000 // max(len(rows), 1), 1), ignore_index=True),
]

# Types and names -----------------------------------------------------------------------------------------------------


def _objects(make, missing=None):
    """Values one by one as Python objects."""
    return lambda rng, v: pd.Series([missing if np.isnan(e) else make(e) for e in v], dtype=object)


def _arrow(kind):
    def dress(rng, v):
        import pyarrow as pa

        return pd.Series(v, dtype=pd.ArrowDtype(getattr(pa, kind)()))

    return dress


def _text(rng, v):
    return pd.Series([None if np.isnan(e) else f"{e:.17g}" for e in v], dtype=object)


PLAIN = {  # any column of numbers that keeps its values
    "float64": lambda rng, v: pd.Series(v),
    "Float64": lambda rng, v: pd.Series(v, dtype="Float64"),
    "arrow double": _arrow("float64"),
    "read only": lambda rng, v: pd.Series(_read_only(v), copy=False),
}
WHOLE = {  # whole numbers only
    "int64": lambda rng, v: pd.Series(v).astype("int64"),
    "Int64": lambda rng, v: pd.Series(v).astype("Int64"),
    "int8": lambda rng, v: pd.Series(v).astype("int8"),
    "arrow int64": lambda rng, v: pd.Series(v).astype("Int64").astype("int64[pyarrow]"),
    "categorical": lambda rng, v: pd.Series(pd.Categorical(v)),
}
ODD = {  # to be read as what they are, or refused
    "objects": _objects(float),
    "objects and nan": _objects(float, np.nan),
    "objects and NA": _objects(float, pd.NA),
    "float32": lambda rng, v: pd.Series(v, dtype="float32"),
    "float16": lambda rng, v: pd.Series(v, dtype="float16"),
    "longdouble": lambda rng, v: pd.Series(v, dtype=np.longdouble),
    "text": _text,
    "string": lambda rng, v: _text(rng, v).astype("string"),
    "arrow string": lambda rng, v: _text(rng, v).astype("string[pyarrow]"),
    "Arrow string": lambda rng, v: _text(rng, v).astype(_arrow_type("string")),
    "dictionary": lambda rng, v: _text(rng, v).astype(_arrow_type("dictionary")),
    "unused levels": lambda rng, v: pd.Series(pd.Categorical(_text(rng, v), [*_text(rng, v).dropna().unique(), "zz"])),
    "decimals": _objects(lambda e: decimal.Decimal(repr(float(e)))),
    "fractions": _objects(lambda e: fractions.Fraction(e) if np.isfinite(e) else e),
    "complex": lambda rng, v: pd.Series(v + 0j),
    "complex objects": _objects(complex),
    "datetime": lambda rng, v: pd.Series(pd.to_datetime(_small(v), unit="D", origin="2020-01-01")),
    "time zone": lambda rng, v: pd.Series(pd.to_datetime(_small(v), unit="D")).dt.tz_localize("Europe/Berlin"),
    "arrow timestamp": lambda rng, v: pd.Series(pd.to_datetime(_small(v), unit="D")).astype(_arrow_type("timestamp")),
    "timedelta": lambda rng, v: pd.Series(pd.to_timedelta(_small(v), unit="D")),
    "period": lambda rng, v: pd.Series(pd.to_datetime(_small(v), unit="D")).dt.to_period("D"),
    "dates": _objects(lambda e: dt.date(2020, 1, 1) + dt.timedelta(int(abs(e)) % 3000)),
    "sparse": lambda rng, v: pd.Series(pd.arrays.SparseArray(v)),
    "interval": lambda rng, v: pd.Series(pd.IntervalIndex.from_arrays(_small(v), _small(v) + 1)),
    "lists": _objects(lambda e: [float(e)]),
    "dicts": _objects(lambda e: {"v": float(e)}),
    "tuples": _objects(lambda e: (float(e), 0)),
    "bytes": _objects(lambda e: repr(float(e)).encode()),
    "uuids": _objects(lambda e: uuid.uuid5(uuid.NAMESPACE_OID, repr(float(e)))),
    "numpy scalars": _objects(np.float64),
    "mixed": lambda rng, v: pd.Series([[1, "1", 1.5, None, b"1", True][k % 6] for k in range(len(v))], dtype=object),
    "a text among numbers": lambda rng, v: pd.Series([*v[:-1], "1,5"], dtype=object)[: len(v)],
    "booleans": lambda rng, v: pd.Series(v > 0),
    "boolean": lambda rng, v: pd.Series(v > 0, dtype="boolean"),
    "huge integers": _objects(lambda e: int(min(abs(e), 1e6)) + 2**70),
    "unsigned": lambda rng, v: pd.Series((_small(v) + 2.0**63).astype("uint64")),
    "nothing": lambda rng, v: pd.Series([None] * len(v), dtype=object),
}
IDS = {  # one label for every id
    "object ints": _objects(int),
    **WHOLE,
    **PLAIN,
    **{name: ODD[name] for name in ("datetime", "timedelta", "period", "text", "dates", "decimals", "uuids", "bytes")},
    **{name: ODD[name] for name in ("arrow string", "Arrow string", "dictionary", "unused levels", "arrow timestamp")},
    **{name: ODD[name] for name in ("time zone", "tuples", "lists", "complex", "interval", "fractions", "mixed")},
    "words": _objects(lambda e: f"É {int(e)} \u65e5\u672c ~:*"),
    "nul": _objects(lambda e: f"a{int(e)}\0"),
    "spaces": _objects(lambda e: f" {int(e)}" + " " * (int(e) % 3)),
    "leading zeros": _objects(lambda e: "0" * (int(e) % 3) + str(int(e) // 3 + 1)),
    "minus zero": lambda rng, v: pd.Series(np.where(v == 0, -0.0, v)),
    "fractional": lambda rng, v: pd.Series(v / 7),
    "large": lambda rng, v: pd.Series(v * 2.0**40).astype("Int64") + 2**62 - 10**15,
    "large objects": _objects(lambda e: 2**64 + int(e)),
    "long text": _objects(lambda e: f"{int(e)}" * 2000),
    "quotes": _objects(lambda e: f'"{int(e)},\n'),
    "surrogates": _objects(lambda e: f"\ud800{int(e)}"),
}
NAMES = [
    *(
        "größe",
        "e\u0301",
        "日本",
        "a b",
        " x",
        "x ",
        "x.y",
        "x'y",
        'x"y',
        "x\ny",
        "x\0y",
        "X" * 300,
        "\U0001f600",
        "-",
        "%s",
    ),
    *("a~b", "~", "a:b", ":", "x*y", "*", "^x$", "within(z)", "between(z)", "g[B]", "[", "]", "1", "0", "1.5", "nan"),
    *("v0", "v1", "cluster", "pattern", "rows", "p0", "p1", "index", "level_0", "literal", "select", "None", "{x}"),
    *("estimate", "a", "b", "ab", "indirect", "total", "m~1", "m~x", "random", "x", "m", "y", "id", "\\", "$x$", "<b>"),
    "\ud800",
]


@contextlib.contextmanager
def quiet():
    """What is made here may warn; what jaxmed does may not."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def _small(values):
    return np.clip(values, -1e4, 1e4).round()


def _arrow_type(kind):
    import pyarrow as pa

    types = {"dictionary": lambda: pa.dictionary(pa.int32(), pa.string()), "timestamp": lambda: pa.timestamp("us")}
    return pd.ArrowDtype(types.get(kind, getattr(pa, kind))())


def as_numbers(column):
    """What a dressed column says in numbers; None where that is not plain."""
    try:
        return pd.Series([np.nan if pd.isna(v) else float(v) for v in column], dtype=float).to_numpy()
    except (TypeError, ValueError, OverflowError):
        return None


def dress(rng, rows, wild):
    """The frame to present, the same data as floats (None where they say something else), and what was done."""
    frame, truth, done = {}, rows.copy(), []
    for name in COLUMNS:
        values = rows[name].to_numpy()
        if name == "site":
            frame[name] = pd.Series(values).astype(rng.choice(["object", "string", "category"]))
            continue
        whole = len(values) > 0 and np.all(values == np.round(values)) and np.all(np.abs(values) < 2**53)
        kinds = PLAIN | (WHOLE if whole and np.abs(values).max() < 128 else {})
        kinds |= (IDS if name == "id" else ODD) if wild and rng.random() < 0.3 else {}
        kind = str(rng.choice(list(kinds)))
        with contextlib.suppress(TypeError, ValueError, OverflowError, pd.errors.OutOfBoundsDatetime), quiet():
            frame[name] = kinds[kind](rng, values)
        column = frame.setdefault(name, pd.Series(values))
        if kind not in PLAIN:
            done.append(f"{name} as {kind}")
        if name == "id":
            if kind == "mixed":
                truth = None
        elif truth is not None:
            numbers = as_numbers(column)
            truth = None if numbers is None else truth.assign(**{name: numbers})
    names = {name: name for name in COLUMNS}
    if wild and rng.random() < 0.3:
        for name in rng.choice(COLUMNS, rng.integers(1, 4)):
            names[str(name)] = str(NAMES[rng.integers(len(NAMES))])
            done.append(f"{name} named {names[name]!r}")
    table = pd.concat(frame.values(), axis=1, keys=range(len(frame))) if len(rows) else pd.DataFrame(frame)
    table.columns = pd.Index([names[name] for name in COLUMNS], dtype=object)
    if wild and rng.random() < 0.2:
        what = int(rng.integers(len(FRAMES)))
        with contextlib.suppress(NotImplementedError, UnicodeEncodeError, TypeError), quiet():  # no such frame
            table = FRAMES[what](rng, table)
            done.append(f"frame {what}")
    return table, truth, names, done


def _renamed(table, columns):
    table.columns = columns
    return table


FRAMES = [
    lambda rng, t: t.set_index(pd.Index(np.zeros(len(t)))),
    lambda rng, t: t.set_index(pd.MultiIndex.from_arrays([np.arange(len(t)), np.arange(len(t))])),
    lambda rng, t: t.set_index(pd.date_range("2020", periods=len(t))),
    lambda rng, t: _renamed(t, pd.MultiIndex.from_product([["g"], list(t.columns)])),
    lambda rng, t: _renamed(t, range(t.shape[1])),
    lambda rng, t: _renamed(t, [*t.columns[:-1], t.columns[rng.integers(3)]]),
    lambda rng, t: _renamed(t, pd.CategoricalIndex(t.columns)) if t.columns.is_unique else t,
    lambda rng, t: t.assign(**{"": 1.0}),
    lambda rng, t: pd.concat([t, pd.DataFrame({7: [object()] * len(t), None: 1.0})], axis=1),
    lambda rng, t: t[t.columns[::-1]] if t.columns.is_unique else t,
    lambda rng, t: t.drop(columns=[t.columns[rng.integers(4)]]),
    lambda rng, t: t.astype(object),
    lambda rng, t: t.convert_dtypes(dtype_backend="pyarrow"),
    lambda rng, t: t.iloc[:, :0],
    lambda rng, t: t[::2].iloc[:0],
]

# Containers ----------------------------------------------------------------------------------------------------------


def _polars(table):
    import polars as pl

    return pl.from_pandas(table)


def _pyarrow(table):
    import pyarrow as pa

    return pa.Table.from_pandas(table, preserve_index=False)


def _duckdb(table):
    import duckdb

    return duckdb.from_arrow(_pyarrow(table))


def _failing(table):
    import polars as pl

    def fail(series):
        raise ArithmeticError("no")

    lazy = _polars(table).lazy()
    return lazy.with_columns(pl.col(table.columns[1]).map_batches(fail, return_dtype=pl.Float64))


def _file(ending, write):
    def to_file(table):
        path = Path(f"rows{ending}")
        path.unlink(missing_ok=True)
        getattr(table, write)(path, **({} if ending in (".parquet", ".feather") else _without_index(ending)))
        return path

    return to_file


def _without_index(ending):
    return {"write_index": False} if ending == ".dta" else {"index": False}


CONTAINERS = {
    "pandas": lambda t: t,
    "polars": _polars,
    "lazy": lambda t: _polars(t).lazy(),
    "failing": _failing,
    "pyarrow": _pyarrow,
    "duckdb": _duckdb,
    "csv": _file(".csv", "to_csv"),
    "parquet": _file(".parquet", "to_parquet"),
    "feather": _file(".feather", "to_feather"),
    "dta": _file(".dta", "to_stata"),
}
EXACT = {"pandas", "polars", "lazy", "pyarrow", "duckdb", "parquet", "feather"}  # have every plain type
DAMAGE = [
    lambda rng, b: b[: int(rng.integers(len(b) + 1))],
    lambda rng, b: bytes(rng.integers(0, 256, int(rng.integers(200)), dtype=np.uint8)),
    lambda rng, b: b[: len(b) // 2] + bytes(rng.integers(0, 256, 16, dtype=np.uint8)) + b[len(b) // 2 + 16 :],
    lambda rng, b: b"\xff\xfe" + b,
    lambda rng, b: b + b"\n1,2\n",
    lambda rng, b: b.replace(b",", b";"),
    lambda rng, b: b.replace(b"\n", b"\r\n"),
]


def hold(rng, table, wild):
    """The frame in a container; in pandas where a library has no such frame."""
    kind = str(rng.choice(list(CONTAINERS), p=[0.36, 0.1, 0.1, 0.02, 0.1, 0.08, 0.08, 0.06, 0.05, 0.05]))
    if kind == "failing" and not wild:
        kind = "pandas"
    try:
        with quiet():
            held = CONTAINERS[kind](table)
    except Exception:  # the library has no such frame
        kind, held = "pandas", table
    if isinstance(held, Path) and wild and rng.random() < 0.3:
        damaged = DAMAGE[rng.integers(len(DAMAGE))](rng, held.read_bytes())
        other = held.with_suffix(
            rng.choice([held.suffix, held.suffix, ".csv", ".parquet", ".dta", ".feather", ".moments"])
        )
        other.write_bytes(damaged)
        return f"{kind} damaged, {other.suffix}", (str(other) if rng.random() < 0.5 else other)
    return kind, held


# Models --------------------------------------------------------------------------------------------------------------


def make_model(number, n):
    """A model of columns called ``n``, and whether it is fitted by REML."""
    roles = {"x": n["x"], "m": n["m"], "y": n["y"], "cluster": n["id"]}
    m, x, y, w, site = n["m"], n["x"], n["y"], n["w"], n["site"]
    intercepts = {m: ["1"], y: ["1"]}
    return [
        lambda: (roles, True),
        lambda: (jm.Mediation(**roles, random="none"), False),
        lambda: (jm.Mediation(**roles, random=intercepts, covariance="diagonal"), True),
        lambda: (jm.System([jm.Equation(y, ["1", x], ["1", x])], n["id"]), True),
        lambda: (jm.System.from_formulas([f"{m} ~ {x} + (1 | {n['id']})"]), False),
        lambda: (jm.Mediation(**roles, random={m: ["1"]}, center="cluster"), True),
        lambda: (jm.Mediation(**roles, random="none", covariates=[site], reference={site: "A"}), True),
        lambda: (jm.Mediation(**roles, random=intercepts, moderators={w: ["b"]}), True),
    ][number]()


PLAIN_NAMES = {name: name for name in COLUMNS}
MODELS = 8


def clean_system(number, fit, names):
    """The system that was fitted, in the plain names."""
    back = {name: plain for plain, name in names.items()}
    facts = DataFacts(
        {back[name]: found for name, found in fit.facts.categories.items()},
        frozenset(back.get(name, name) for name in fit.facts.cluster_level),
    )
    model, _ = make_model(number, PLAIN_NAMES)
    if number == 4 and names["x"] == "1":  # to a formula an intercept
        model = jm.System.from_formulas(["m ~ 1 + (1 | id)"])
    return (jm.Mediation(**model) if isinstance(model, dict) else model).system(facts)


# The judge -----------------------------------------------------------------------------------------------------------


def check_refusal(error, words):
    """One clear message of jaxmed's own."""
    if not isinstance(error, jm.JaxmedError):
        raise Defect(f"{type(error).__name__} instead of a jaxmed error: {str(error)[:200]}") from error
    text = str(error)
    if len(text) > LONGEST:
        raise Defect(f"message of {len(text)} characters: {text[:200]}") from error
    if "Traceback" in text or not any(word in text for word in words):
        raise Defect(f"message names none of {sorted(words)[:8]}: {text[:300]}") from error


def rounding_of(shares):
    """Relative error of residual sums of squares that are these shares of the cross-products they are left from.

    Outcomes predict each other, so that what one leaves is the predictor of the next.
    """
    return 1e-15 / max(np.prod(np.minimum(shares, 1.0)), 1e-300)


def nearly_collinear(clusters):
    """Relative error of a log likelihood from cross-products, by the share that predictors leave of each other."""
    x = np.vstack([cluster.x for cluster in clusters])
    x = x / np.maximum(np.linalg.norm(x, axis=0), 1e-300)
    return 1e-16 / max(np.linalg.svd(x, compute_uv=False)[-1] ** 2, 1e-300)


def check_fit(rng, fit, rows, number, names, missing):
    """Against the dense likelihood."""
    parts = {"params": fit.params, "random_cov": fit.random_cov, "residual_var": fit.residual_var}
    for name, found in parts.items():
        if not np.all(np.isfinite(found)):
            raise Defect(f"{name} is not finite ({fit.message})")
    if fit.converged and not np.all(np.isfinite(fit.standard_errors("block"))):
        raise Defect(f"standard errors are not finite: {fit.standard_errors('block').to_dict()} ({fit.message})")
    if fit.imprecise and not fit.converged:  # both said: a likelihood without a maximum
        return
    if rows is None or len(rows) > 2000 or rows.groupby("id").size().max() > 150:
        return
    with np.errstate(all="ignore"):
        middle = rows[["x", "m", "y", "w"]].median()
        far = middle.where(np.abs(middle) > 1e2 * rows[middle.index].std(), 0.0).fillna(0.0)
    if far.any():  # dense matrices have no digits left there: the same fit, moved to where they have
        rows = rows.assign(**{name: rows[name] - shift for name, shift in far.items()})
        model, _ = make_model(number, PLAIN_NAMES)
        model = jm.Mediation(**model) if isinstance(model, dict) else model
        moved = jm.fit(rows, model, reml=fit.reml, missing=missing)
        spread = [np.nanvar(dense.term(rows, name, "id")) for name in moved.system.outcomes]
        lost = rounding_of(moved.residual_var.to_numpy() / spread)
        if fit.converged and not abs(fit.loglik - moved.loglik) <= (1e-7 + lost) * (abs(fit.loglik) + len(rows)):
            raise Defect(f"log likelihood {fit.loglik!r}, of columns less {far.to_dict()} {moved.loglik!r}")
        fit, names = moved, PLAIN_NAMES
    system = clean_system(number, fit, names)
    outcomes = list(system.outcomes)
    unit = {}
    with np.errstate(all="ignore"):
        for name in system.terms:
            v = dense.term(rows, name, "id")
            shifted = ":" not in name and "(" not in name
            unit[name] = (np.nanmean(v) if shifted else 0.0, np.nanstd(v) or 1.0)
    if missing == "listwise":
        rows = rows.dropna(subset=[name for name in rows if name in system.columns or f"{name}[B]" in system.columns])
    clusters = dense.stack(rows, system, unit)
    move, scale = np.zeros((len(system.labels),) * 2), [unit[name][1] for name in outcomes]
    start = np.zeros(len(system.labels))
    for equation in system.equations:
        size, shift = unit[equation.outcome][1], unit[equation.outcome][0]
        at = system.labels.index(f"{equation.outcome}~1")
        move[at, at], start[at] = 1 / size, -shift / size
        for name in equation.predictors[1:]:
            k = system.labels.index(f"{equation.outcome}~{name}")
            move[k, k], move[at, k] = unit[name][1] / size, unit[name][0] / size
    beta = move @ fit.params.to_numpy() + start
    random = [system.labels.index(label) for label in system.random_labels]
    root = move[np.ix_(random, random)]
    g = root @ fit.random_cov.to_numpy() @ root.T
    sigma = fit.residual_var.to_numpy() / np.square(scale)
    counts = sum(np.bincount(c.equation, minlength=len(outcomes)) for c in clusters)
    constant = -counts @ np.log(scale) - fit.reml * np.linalg.slogdet(move)[1]
    found = dense.loglik(clusters, g, sigma, fit.reml, beta)
    # The dense likelihood loses digits with the condition of its matrices, ours with the ratio of variances.
    condition = max(np.linalg.cond(dense.covariance(cluster, g, sigma)) for cluster in clusters)
    lost = rounding_of(sigma) + (1e-13 * fit.largest_share if fit.imprecise else 0.0) + nearly_collinear(clusters)
    tolerance = (1e-8 + 1e-15 * condition + lost) * (abs(found) + abs(constant) + counts.sum())
    if not abs(found + constant - fit.loglik) <= tolerance:
        raise Defect(f"log likelihood {fit.loglik!r}, dense {found + constant!r}, converged={fit.converged}")
    if not fit.converged or counts.sum() > 400:
        return
    # Nearby points: steps in a root of G in its own basis, in the logs of the residual variances.
    roots, inverse = np.linalg.cholesky(_padded(g)), np.linalg.inv(root)
    for _ in range(12):
        size = 10 ** rng.uniform(-4, -1)
        near = roots + size * np.tril(rng.normal(size=g.shape)) * (np.abs(np.diag(roots)).max(initial=0) or 1.0)
        other = inverse @ near @ near.T @ inverse.T
        other = np.where(_free(system), other, 0.0)
        if len(other) and np.linalg.eigvalsh(root @ other @ root.T)[0] < 0:
            continue
        higher = dense.loglik(
            clusters, root @ other @ root.T, sigma * np.exp(size * rng.normal(size=len(sigma))), fit.reml
        )
        if higher > found + 1e-6 + tolerance:
            raise Defect(f"converged (singular={fit.singular}), but a step of {size:.1g} gains {higher - found:.3g}")
    if fit.singular or fit.imprecise or fit.flat:  # it says so
        return
    free = fit.free

    def objective(theta):
        inner = dense.symmetric(theta[: len(free)], free, len(g))
        return dense.loglik(clusters, root @ inner @ root.T, theta[len(free) :] / np.square(scale), fit.reml)

    theta = fit.values[len(system.labels) :]
    slopes = dense.gradient(lambda t: objective(t * np.abs(theta)), np.sign(theta)) if np.all(theta) else np.zeros(1)
    errors = np.sqrt(np.diag(fit.joint))[len(system.labels) :] / np.abs(theta) if np.all(theta) else np.zeros(1)
    if not np.all(np.abs(slopes * errors) < 1e-3):
        raise Defect(f"converged, but gradient times standard errors is {np.abs(slopes * errors).max():.2g}")


def _padded(g):
    """A covariance matrix with room for a Cholesky root."""
    return g + 1e-12 * np.eye(len(g)) * max(np.trace(g), 1e-12)


def _free(system):
    free = np.zeros((len(system.random_labels),) * 2, dtype=bool)
    for a, b in system.random_pairs:
        free[a, b] = free[b, a] = True
    return free


def same(before, after):
    """Whether a frame is what it was."""
    if isinstance(after, pd.DataFrame):
        return (
            list(map(repr, before.columns)) == list(map(repr, after.columns))
            and list(before.dtypes) == list(after.dtypes)
            and before.index.equals(after.index)
            and all(repr(a) == repr(b) for a, b in zip(before.to_numpy().flat, after.to_numpy().flat, strict=True))
        )
    return before.equals(after) if hasattr(after, "equals") else True


# Cases of data -------------------------------------------------------------------------------------------------------

USES = [
    lambda fit: fit.effects(),
    lambda fit: fit.effects("robust"),
    lambda fit: fit.summary(),
    lambda fit: fit.ranef(),
    lambda fit: fit.heterogeneity(),
    lambda fit: fit.lr_test(),
    lambda fit: fit.wald(),
    lambda fit: fit.cluster_residuals(),
    lambda fit: fit.to_latex("variances"),
    lambda fit: (fit.save("fit.json"), jm.load("fit.json", verify=fit.converged)),
    lambda fit: fit.influence(),
]


def data_case(rng, note):
    """One data set, read and fitted."""
    wild = rng.random() < 0.75
    rows = draw_rows(rng)
    for _ in range(rng.integers(0, 4) if wild else rng.integers(0, 2)):
        pool = WILD if wild else MILD
        with quiet():
            rows = pool[rng.integers(len(pool))](rng, rows)
    rows = rows.reset_index(drop=True).head(10_000)
    table, truth, names, done = dress(rng, rows, wild)
    kind, held = hold(rng, table, wild)
    number = int(rng.integers(MODELS))
    note.update(rows=len(rows), container=kind, model=number, done=done, missing="")
    words = {repr(name)[1:-1] for name in names.values()} | {repr(name) for name in names.values()}
    words |= (
        {"rows", "cluster", "columns", "did you mean", str(held)}
        if isinstance(held, (str, Path))
        else {"data", "cluster"}
    )
    before = copy.deepcopy(table)
    try:
        model, reml = make_model(number, names)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", jm.ConvergenceWarning)
            fit = _fitted(rng, held, model, reml, note)
    except Exception as error:
        check_refusal(error, words)
        note["message"] = str(error)
        if not wild and note["missing"] != "raise" and len(rows) > 200 and rows["id"].nunique() > 11 and kind in EXACT:
            raise Defect(f"refused plain data: {error}") from error
        return "refused"
    finally:
        if not same(before, table):
            raise Defect("the input changed")
    if fit is None:
        return "described"
    uncertain = not fit.converged or fit.imprecise or not np.all(np.isfinite(fit.bse))
    if uncertain and not said:
        raise Defect(f"no warning of a fit that needs one: {fit.message}")
    rounded = kind == "csv" and any("float" in word for word in done)  # written in as few digits as their type has
    coded = kind == "dta" and any(word in " ".join(done) for word in ("categor", "levels", "dictionary"))
    if rounded or coded or "damaged" in kind or any(word.startswith("frame") for word in done):
        truth = None
    try:
        check_fit(rng, fit, truth, number, names, note["missing"])
    except (RuntimeWarning, np.linalg.LinAlgError) as error:  # dense matrices without digits: nothing to compare with
        if fit.converged and not fit.imprecise:
            raise Defect("converged where the dense likelihood has no value") from error
    use = USES[rng.integers(len(USES))]
    try:
        use(fit)
    except jm.JaxmedError as error:
        check_refusal(error, words | {"fit", "effects", "jaxmed"})
    return "fitted" if fit.converged else f"fitted, {fit.status!r}"


def _fitted(rng, held, model, reml, note):
    way = rng.choice(["fit", "moments", "parts", "file", "describe", "stack"], p=[0.6, 0.12, 0.08, 0.06, 0.08, 0.06])
    note["way"] = str(way)
    spec = jm.Mediation(**model) if isinstance(model, dict) else model
    missing = str(rng.choice(["available", "listwise", "raise"], p=[0.8, 0.15, 0.05]))
    note["missing"] = missing
    if way in ("describe", "stack"):
        getattr(jm, way)(held, spec)
        return None
    if way == "fit":
        if isinstance(model, dict):
            return jm.fit(held, **model, reml=reml, missing=missing)
        return jm.fit(held, model, reml=reml, missing=missing)
    if way == "parts" and isinstance(held, pd.DataFrame) and len(held) > 1:
        half = len(held) // 2
        moments = jm.read_moments(held[:half], spec, missing) + jm.read_moments(held[half:], spec, missing)
    else:
        moments = jm.read_moments(held, spec, missing)
    if way == "file":
        jm.save_moments(moments, "some.moments")
        moments = jm.load_moments("some.moments") if rng.random() < 0.5 else "some.moments"
    return jm.fit(moments, spec, reml=reml, missing=missing)


# Cases of calls ------------------------------------------------------------------------------------------------------


def hostile(rng, rows):
    """Something that hardly any argument wants."""
    pool = [
        *(None, True, False, 0, -1, 1, 2, 3, 2.5, -0.5, 0.5, 0.999, 1e-300, 1e308, float("nan"), float("inf"), 10**30),
        *(
            -(10**30),
            "",
            " ",
            "x",
            "y",
            "m",
            "id",
            "z",
            "w",
            "site",
            "~",
            ":",
            "*",
            "x:",
            ":x",
            "x:m",
            "x*m",
            "^x$",
            "1",
        ),
        *("within(x)", "within(", "site[B]", "g[", "m ~ x", "m ~", "y~m", "y~x", "a", "b", "indirect", "all", "none"),
        *("joint", "delta", "profile", "nan", "\0", "\ud800", "a" * 5000, "ÿ", "{}", "%s", b"x", b"", 1j, (), [], {}),
        *([[]], [None], [""], ["x"], ["x", "x"], ["x", 1], [1, 2], [float("nan")], ["m", "y"], ("m", "x"), [["m~1"]]),
        *(
            {"x": 1},
            {1: 2},
            {"w": float("nan")},
            {"w": float("inf")},
            {"w": "a"},
            {"w": None},
            {"w": [1, 2]},
            {"w": 1.0},
        ),
        *({"m": ["1"]}, {"m": None}, {"m": ["1", "x"], "y": ["1", "m", "x"]}, {"y": ["1", "1"]}, {"z": "A"}, {"w": []}),
        *(
            {"x", "m"},
            frozenset(),
            range(3),
            range(0),
            object(),
            object,
            len,
            Ellipsis,
            NotImplemented,
            Path("x"),
            Path(),
        ),
        *(np.int64(3), np.float64(0.9), np.float32(0.5), np.bool_(True), np.array([1, 2]), np.array([]), np.array("x")),
        *(
            np.array(["x", "m"]),
            np.array([[1.0, np.nan]]),
            np.datetime64("NaT"),
            np.nan,
            np.str_("x"),
            np.zeros((0, 3)),
        ),
        *(pd.NA, pd.NaT, pd.Series([1, 2]), pd.Series(dtype=float), pd.Index(["x"]), rows.head(3), rows.head(0), rows),
        *(decimal.Decimal("0.9"), fractions.Fraction(1, 2), dt.date(2020, 1, 1), dt.timedelta(1), uuid.UUID(int=1)),
        *(
            lambda: None,
            (k for k in "xm"),
            iter([]),
            memoryview(b"x"),
            slice(1),
            ValueError("x"),
            type("T", (str,), {})("x"),
        ),
    ]
    return pool[rng.integers(len(pool))]


@functools.cache
def fixtures():
    """Rows and fits that calls are made of."""
    rows = jm.simulate(clusters=40, size=6, seed=3)
    rng = np.random.default_rng(3)
    w = rng.normal(size=40)
    ids = pd.factorize(rows["id"])[0]
    rows = rows.assign(w=w[ids], site=np.array(["A", "B"])[ids % 2])
    roles = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
    intercepts = {"m": ["1"], "y": ["1"]}
    full = jm.fit(rows, **roles)
    small = jm.fit(rows, jm.Mediation(**roles, random=intercepts, covariance="diagonal"))
    moderated = jm.fit(rows, jm.Mediation(**roles, random=intercepts, moderators={"w": ["b"]}))
    draws = jm.bootstrap(small, 20, seed=1)
    return rows, full, small, moderated, draws


def calls():
    """Callables and good arguments."""
    rows, full, small, moderated, draws = fixtures()
    roles = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
    population = jm.Population()
    model = small.spec
    fit = {"se": "joint", "level": 0.95, "at": None}
    return [
        (
            jm.fit,
            {
                "data": rows,
                "spec": None,
                **roles,
                "reml": True,
                "missing": "available",
                "max_iter": 50,
                "distributed": False,
            },
        ),
        (jm.fit, {"data": rows, "spec": model, "reml": True, "missing": "available", "max_iter": 50}),
        (jm.read_moments, {"data": rows, "spec": model, "missing": "available"}),
        (jm.describe, {"data": rows, "spec": model}),
        (jm.stack, {"data": rows, "spec": model}),
        *[
            (
                jm.Mediation,
                {**roles, "random": "all", "covariance": "unstructured", "covariates": ["w"], "moderators": None},
            )
        ]
        * 4,
        *[
            (
                jm.Mediation,
                {
                    **roles,
                    "m": ["m", "v"],
                    "center": None,
                    "serial": True,
                    "reference": None,
                    "residuals": "correlated",
                },
            )
        ]
        * 3,
        *[(jm.Equation, {"outcome": "y", "predictors": ["1", "x"], "random": ["1"], "level": 1})] * 3,
        (
            jm.System,
            {"equations": [jm.Equation("y", ["1", "x"])], "cluster": "id", "covariance": "block", "residuals": ()},
        ),
        (
            jm.System.from_formulas,
            {"formulas": ["y ~ x + (1|id)"], "cluster": "id", "covariance": "block", "residuals": ()},
        ),
        (formula_of_pieces, {"a": "y", "b": "x", "c": "1", "d": "id"}),
        (jm.compare, {"fit0": small, "fit1": full}),
        (jm.conflation, {"found": small, "data": rows, "kind": "joint", "level": 0.95, "intercepts": "apart"}),
        (jm.johnson_neyman, {"fit": moderated, "moderator": "w", "effect": "indirect", "level": 0.95, "at": None}),
        (jm.load, {"path": "fit.json", "verify": False}),
        (jm.load_moments, {"path": "some.moments"}),
        (jm.save_moments, {"moments": full.moments, "path": "other.moments"}),
        (jm.load_replicates, {"paths": "draws.parquet"}),
        (jm.load_power, {"paths": "power"}),
        (
            jm.bootstrap,
            {
                "fit": small,
                "n": 5,
                "method": "parametric",
                "seed": 1,
                "shard": (0, 1),
                "out": None,
                "data": None,
                "at": None,
                "batch": None,
            },
        ),
        (
            jm.bootstrap,
            {"fit": small, "n": 5, "method": "cluster", "seed": 1, "shard": (0, 1), "data": None, "at": None},
        ),
        (draws.intervals, {"kind": "percentile", "level": 0.95, "terms": "effects", "fit": None}),
        (draws.save, {"path": "draws.parquet"}),
        *[
            (
                jm.Population,
                {
                    "spec": None,
                    "numbers": None,
                    "cluster_level": (),
                    "random_effects": "normal",
                    "residuals": "normal",
                    "clusters": 10,
                    "size": 4,
                    "a": 0.5,
                    "icc_x": 0.1,
                },
            )
        ]
        * 3,
        (
            jm.Population.standardized,
            {"a": 0.3, "b": 0.3, "c_prime": 0.1, "sd_a": 0.1, "corr_ab": 0.1, "icc_x": 0.2, "icc_m": 0.2, "size": 5},
        ),
        (jm.Population.from_fit, {"fit": small}),
        (population.replace, {"numbers": {"y~m": 0.3}, "clusters": 10}),
        (population.effects, {"at": None}),
        *[(jm.simulate, {"population": population, "clusters": 10, "size": 4, "seed": 1, "moments": False})] * 3,
        (
            jm.power,
            {
                "population": population,
                "designs": {"clusters": [40], "size": [6]},
                "replications": 4,
                "seed": 1,
                "intervals": "joint",
                "level": 0.95,
                "terms": "effects",
                "model": model,
                "reml": True,
            },
        ),
        (
            jm.power,
            {
                "population": None,
                "designs": [{"clusters": 40}],
                "replications": 4,
                "seed": 1,
                "model": model,
                "shard": (0, 1),
                "effect": "indirect",
                "out": None,
                "target": None,
                "method": "parametric",
                "replicates": 3,
            },
        ),
        (full.effects, {**fit, "difference": False}),
        (moderated.effects, {**fit, "at": {"w": [0, 1]}, "difference": True}),
        (moderated.effects, {**fit, "at": {"w": 0.5}}),
        (full.heterogeneity, fit),
        (
            full.intervals,
            {"method": "delta", "level": 0.95, "seed": None, "se": "joint", "terms": "effects", "at": None},
        ),
        (
            moderated.intervals,
            {"method": "monte_carlo", "level": 0.95, "seed": 1, "terms": "effects", "at": None, "draws": 200},
        ),
        (full.cov_params, {"kind": "joint", "full": False}),
        (full.standard_errors, {"kind": "joint"}),
        (full.random_cov_errors, {"kind": "joint"}),
        (full.robust_cov, {"correction": "CR1"}),
        (full.lr_test, {"null": "separate"}),
        (full.wald, {"terms": None, "kind": "joint"}),
        (full.influence, {"exact": False, "standardized": False, "at": None}),
        (small.satterthwaite, {"kind": "joint", "level": 0.95, "terms": None, "at": None}),
        (small.profile, {"term": "y~m", "values": [0.4, 0.5], "at": None}),
        (full.residuals, {"data": rows}),
        (full.summary, {**fit, "difference": False, "heterogeneity": False}),
        (full.to_latex, {"table": "effects", **fit}),
        (full.to_markdown, {"table": "effects", **fit}),
        (full.to_csv, {"table": "effects", **fit}),
        (full.to_dict, {"at": None, "difference": False, "heterogeneity": False, "robust": False}),
        (full.to_json, {"indent": 1, "at": None}),
        (full.save, {"path": "fit.json"}),
    ]


def formula_of_pieces(a, b, c, d):
    """A formula made of what comes."""
    return jm.System.from_formulas(f"{a} ~ {b} + ({c} | {d})")


def call_case(rng, note):
    """One call with hostile arguments."""
    with quiet():
        rows = fixtures()[0]
        choices = calls()
    function, good = choices[rng.integers(len(choices))]
    changed = {}
    for name in rng.choice(list(good), min(len(good), rng.choice([1, 1, 1, 2])), replace=False):
        value = hostile(rng, rows)
        changed[str(name)] = value
    note.update(call=function.__qualname__, arguments={name: _short(value) for name, value in changed.items()})
    before = rows.copy()
    words = {_short(value) for value in changed.values()} | set(changed) | {type(v).__name__ for v in changed.values()}
    words |= {str(v) for v in changed.values() if isinstance(v, (str, Path)) and str(v)}
    for value in changed.values():
        if (isinstance(value, Iterable) and np.ndim(value) == 1) or isinstance(value, (dict, set)):
            words |= set(map(str, value))
    words |= {"column", "model", "cluster", "fit", "formula", "path", "file", "slopes", "Equation", "equation"}
    try:
        found = function(**(good | changed))
    except Exception as error:
        check_refusal(error, words)
        note["message"] = str(error)
        return "refused"
    finally:
        if not same(before, rows):
            raise Defect("the input changed")
    if isinstance(found, pd.DataFrame) and "estimate" in found and not np.all(np.isfinite(found["estimate"])):
        raise Defect(f"estimates are not finite:\n{found}")
    return "accepted"


def _short(value):
    try:
        text = repr(value)
    except Exception:
        return type(value).__name__
    return text if len(text) < 60 else text[:50]


# Running -------------------------------------------------------------------------------------------------------------


def run_case(seed, case):
    """Outcome, note and, for a failure, what went wrong and where."""
    rng, note = np.random.default_rng((seed, case)), {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for own in OWN:
                warnings.simplefilter("ignore", own)
            return (call_case if rng.random() < 0.5 else data_case)(rng, note), note, None
    except Exception as error:
        return "failed", note, "".join(traceback.format_exception(error)[-12:])


def work(seed, cases, limit):
    """Worker: a line before a case and one after it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for case in cases:
            faulthandler.dump_traceback_later(limit, exit=True)
            print(json.dumps({"case": case}), flush=True)
            before = time.monotonic()
            outcome, note, failure = run_case(seed, case)
            faulthandler.cancel_dump_traceback_later()
            seconds = round(time.monotonic() - before, 2)
            print(
                json.dumps({"case": case, "outcome": outcome, "seconds": seconds, **note, "failure": failure}),
                flush=True,
            )
        os.chdir("/")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--case", type=int, help="repeat one case in this process")
    parser.add_argument("--limit", type=float, default=300, help="seconds a case may take, compilation included")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.seed, range(options.worker[0], options.cases, options.worker[1]), options.limit)
        return
    if options.case is not None:
        outcome, note, failure = run_case(options.seed, options.case)
        print(outcome, note, failure or "", sep="\n")
        return
    with ThreadPoolExecutor(options.processes) as threads:
        shares = [threads.submit(share, options, first) for first in range(options.processes)]
        results = [result for part in shares for result in part.result()]
    counts = collections.Counter((result.get("call", "data"), result["outcome"]) for result in results)
    for (what, outcome), count in sorted(counts.items()):
        print(f"{count:6d}  {what}: {outcome}")
    failed = [result for result in results if result["outcome"] == "failed"]
    print(f"{len(results)} cases, {len(failed)} failed (seed {options.seed})")
    sys.exit(bool(failed))


def share(options, first):
    """Results of every so many cases, by workers; a worker that dies in a case has failed it, and another goes on."""
    results, following = [], first
    while following < options.cases:
        arguments = ["--seed", options.seed, "--cases", options.cases, "--limit", options.limit]
        command = [sys.executable, __file__, *map(str, arguments), "--worker", str(following), str(options.processes)]
        with tempfile.TemporaryFile("w+") as said:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
            for line in worker.stdout:
                found = json.loads(line)
                following = found["case"] + options.processes
                if "outcome" in found:
                    results.append(found)
                    tell(options, found)
            worker.wait()
            said.seek(0)
            if worker.returncode:
                failure = f"the process ended ({worker.returncode}): {said.read()[-6000:]}"
                results.append({"case": found["case"], "outcome": "failed", "failure": failure})
                tell(options, results[-1])
    return results


def tell(options, result):
    """A line per failure, and what went wrong."""
    if result["outcome"] == "failed":
        note = {key: value for key, value in result.items() if key not in ("failure", "outcome", "case")}
        print(f"--seed {options.seed} --case {result['case']}: {note}\n{result['failure']}", flush=True)


if __name__ == "__main__":
    main()
