"""The house: what lies where, what is loaded, what is imported from where."""

from __future__ import annotations

import ast
import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

import jaxmed as jm
from jaxmed._report.html import page
from jaxmed._report.text import METHODS as WORDS
from jaxmed._simulation import BootstrapMethod
from jaxmed._support import MONTE_CARLO, STARTS, is_own, runtime, stream
from jaxmed._support.runtime import PROGRAMS, jit_by_key

HOUSE = Path(jm.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
# By `import jaxmed`, beside what these load themselves.
LOADED = {"jax", "jaxlib", "msgspec", "narwhals", "numpy", "optax", "pandas", "platformdirs", "pyarrow", "scipy"}
NOT_LOADED = (
    "scipy.stats",
    "scipy.optimize",
    "matplotlib",
    "formulae",
    "jinja2",
    "typer",
    "rich",
    "polars",
    "duckdb",
    "pyspark",
)


def test_importing_loads_no_more_than_it_needs():
    code = f"import sys, jaxmed; print([name for name in {NOT_LOADED!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_import_no_other_packages():
    """Of those that are declared; some are imported where a function needs them."""
    top = {
        "jaxmed",
        "formulae",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "pooch",
        "typer",
        *LOADED,
        *sys.stdlib_module_names,
    }
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert {name.partition(".")[0] for name in names} <= top, path


def test_the_house_has_few_rooms():
    entries = [path for path in HOUSE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 16


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_file_is_short_and_keeps_its_private_names(path):
    text = path.read_text()
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jaxmed."):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not set(private) - {"__version__"}


def test_packages_are_imported_through_their_names():
    """All but runtime, which loads JAX; modules may be used under their own name."""
    for path in FILES:
        package = path.relative_to(HOUSE).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jaxmed._"):
                parts = node.module.split(".")
                if len(parts) > 2 and parts[1] != package and path.name != "__main__.py":
                    assert parts[1:] == ["_support", "runtime"], (path, node.module)


def test_no_function_hides_a_module():
    for package in (path for path in HOUSE.iterdir() if path.is_dir() and path.name != "__pycache__"):
        modules = {path.stem for path in package.glob("*.py")}
        source = ast.parse((package / "__init__.py").read_text())
        names = {alias.name for node in source.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not modules & names, package
    assert not {path.stem for path in HOUSE.iterdir()} & (set(jm.__all__) - {"plots", "datasets"})


def test_the_command_line_and_the_report_know_every_method():
    assert set(WORDS) == set(get_args(BootstrapMethod))


# Errors and streams --------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_written_are_errors_of_the_system_too(tmp_path):
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    with pytest.raises(OSError, match="could not be written") as raised:
        fit.save(tmp_path / "no" / "fit.jaxmed")
    assert isinstance(raised.value, jm.FitError)
    assert raised.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    "call",
    [
        lambda: jm.bootstrap("fit", 10, seed=1),
        lambda: jm.compare(1, 2),
        lambda: jm.conflation(None),
        lambda: jm.optima(3, seed=1),
        lambda: jm.johnson_neyman("fit", "w"),
        lambda: jm.report("fit", "x.html"),
        lambda: jm.Population.from_fit(3),
        lambda: jm.simulate(clusters="many", size=3, seed=1),
        lambda: jm.Mediation(x=1, m="m", y="y", cluster="id"),
    ],
)
def test_a_wrong_type_is_a_type_error_too(call):
    with pytest.raises(TypeError) as raised:
        call()
    assert isinstance(raised.value, jm.SpecError)


def test_data_of_a_wrong_type_are_a_type_error_too():
    with pytest.raises(TypeError, match="cannot be read") as raised:
        jm.fit(3, x="x", m="m", y="y", cluster="id")
    assert isinstance(raised.value, jm.DataError)


def test_a_mistake_of_jaxmed_is_not_blamed_on_the_library_of_the_data(monkeypatch):
    """It comes out as it is, while the same error from a line of another package becomes one sentence."""
    pl = pytest.importorskip("polars")
    from jaxmed._data import lazy

    data = pl.from_pandas(jm.datasets.load_example()).lazy()

    def wrong(*_):
        return {}["mistake"]

    monkeypatch.setattr(lazy, "_sums", wrong)
    with pytest.raises(
        jm.DataError, match="could not be read by its own library"
    ):  # of this file, which is not jaxmed's
        jm.fit(data, x="x", m="m", y="y", cluster="id")
    wrong.__code__ = wrong.__code__.replace(co_filename=lazy.__file__)
    with pytest.raises(KeyError, match="mistake"):
        jm.fit(data, x="x", m="m", y="y", cluster="id")


def test_errors_of_other_packages_are_theirs():
    def raised(function):
        try:
            function()
        except Exception as error:
            return error

    assert not is_own(raised(lambda: np.linalg.cholesky(-np.eye(2))))
    assert not is_own(raised(lambda: Path("/nowhere/at/all").read_text()))
    assert not is_own(raised(lambda: int("x")))  # by a line of this test, which is not jaxmed's


def test_every_use_of_a_seed_has_its_own_numbers():
    first = [stream(7, number).standard_normal() for number in (0, 1, MONTE_CARLO, STARTS)]
    assert len(set(first)) == 4


# Compiled programs ---------------------------------------------------------------------------------------------------


def test_one_more_program_drops_the_one_that_was_used_longest_ago():
    traced = []

    @jit_by_key
    def product(key, value):
        traced.append(key)
        return key * value

    for key in range(PROGRAMS):
        product(key, 2.0)
    product(0, 2.0)  # now 1 is the oldest
    product(PROGRAMS, 2.0)
    assert traced == [*range(PROGRAMS), PROGRAMS]
    for key in (0, *range(2, PROGRAMS + 1)):
        product(key, 2.0)
    assert traced == [*range(PROGRAMS), PROGRAMS]
    product(1, 2.0)
    assert traced[-1] == 1


def test_programs_on_disk_have_a_bound(tmp_path):
    import os

    for k in range(6):
        path = tmp_path / f"program-{k}"
        path.write_bytes(b"0" * 100)
        os.utime(path, (1e9 + k, 1e9 + k))
    runtime.drop_oldest(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program-4", "program-5"]


def test_a_report_holds_its_style_and_shows_what_cannot_be_seen():
    style = (HOUSE / "_report" / "templates" / "style.css").read_text()
    text = page("a\u202e<b>", Markup("<h1>h</h1>"), [("at", "S & T", Markup("<p>x</p>"))], Markup("f"))
    assert ":focus-visible" in style
    assert style.strip() in text
    assert "<title>a\\u202e&lt;b&gt;</title>" in text
    assert '<a href="#at">S &amp; T</a>' in text


def test_four_serial_mediators_of_a_heavy_tailed_population():
    """A cumulant of order 5 does not exist, and does not matter where slopes do not covary."""
    model = jm.Mediation("x", ["m1", "m2", "m3", "m4"], "y", "id", serial=True, random="none")
    assert jm.Population(model, random_effects="heavy_tailed").effects().notna().all()


def test_warnings_of_methods_point_at_the_caller():
    """The methods of a fit are the functions themselves, whose warnings count their callers."""
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    worse = replace(fit, loglik=fit.loglik - 1)
    with pytest.warns(jm.ConvergenceWarning, match="better than that of the fit") as caught:
        worse.optima(2, seed=1)
    assert caught[0].filename == __file__


def test_former_names_of_keywords_and_attributes():
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    pd.testing.assert_frame_equal(fit.effects(se="bauer"), fit.effects(covariance="bauer"))
    pd.testing.assert_frame_equal(fit.cov_params(kind="block"), fit.cov_params("block"))
    pd.testing.assert_frame_equal(fit.heterogeneity(se="robust"), fit.heterogeneity(covariance="robust"))
    assert fit.summary(se="robust") == fit.summary("robust")
    assert fit.to_csv("variances", se="robust") == fit.to_csv("variances", "robust")
    assert fit.wald("m~x", kind="robust") == fit.wald("m~x", "robust")
    assert fit.default_se == fit.default_covariance == "joint"
    assert fit.intake is fit.sample_summary
    assert fit.moments.intake is fit.moments.sample_summary
    with pytest.raises(TypeError, match="se= is the former name of covariance=; give one of them"):
        fit.effects(se="joint", covariance="robust")
    with pytest.raises(jm.SpecError, match="covariance='odd' is not known; choose one of"):
        fit.effects(se="odd")
