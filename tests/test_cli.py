"""The command line: what is printed where, what is written, and the exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

import jaxmed as jm
from jaxmed._cli import app

COLUMNS = ["--x", "x", "--m", "m", "--y", "y", "--cluster", "id"]
MODEL = jm.Mediation(x="x", m="m", y="y", cluster="id")
PLAIN = jm.Mediation(x="x", m="m", y="y", cluster="id", random="none")


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    """The program points JAX at its cache folder and moves stderr, which would outlive these tests in this process."""
    monkeypatch.setattr(app, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(app, "drop_loader_noise", lambda: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "rows.csv"
    jm.datasets.load_example().to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def plain():
    return jm.fit(jm.datasets.load_example(), PLAIN)


@pytest.fixture(scope="module")
def full():
    return jm.fit(jm.datasets.load_example(), MODEL)


def succeeded(result):
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def failed(result, code, message):
    """One line on stderr, nothing else anywhere."""
    assert result[0] == code
    assert result[1] == ""
    assert result[2].startswith("jaxmed: error: ")
    assert result[2].count("\n") == 1
    assert message in result[2]


# Results -------------------------------------------------------------------------------------------------------------


def test_fit_prints_the_summary(run, data, full):
    assert succeeded(run("fit", data, *COLUMNS)).strip() == full.summary().strip()


def test_fit_with_the_formulas_of_bauer_and_another_level(run, data, full):
    out = succeeded(run("fit", data, *COLUMNS, "--se", "bauer", "--level", "0.9"))
    assert out.strip() == full.summary("bauer", 0.9).strip()
    assert out.strip() != full.summary().strip()


def test_demo_fits_the_bundled_data(run, full):
    out = succeeded(run("demo"))
    assert full.summary() in out
    assert "jaxmed fit DATA.csv --x X --m M --y Y --cluster ID" in out


def test_ml(run, data):
    out = succeeded(run("fit", data, *COLUMNS, "--random", "none", "--ml", "--json", "-"))
    fit = jm.fit(jm.datasets.load_example(), PLAIN, reml=False)
    assert json.loads(out)["loglik"] == pytest.approx(fit.loglik, rel=1e-12)


def assert_same(found, expected):
    """Equal but for rounding: a file and a frame sum the same products in another order."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected.keys() - {"trace", "grad_norm", "decrement"}:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-9, abs=1e-12) if isinstance(expected, float) else expected)


def test_json_on_stdout_is_all_there_is(run, data, plain):
    out = succeeded(run("fit", data, *COLUMNS, "--random", "none", "--json", "-"))
    assert_same(json.loads(out), json.loads(plain.to_json()))


def test_json_in_a_file_beside_the_tables(run, data, plain, tmp_path):
    out = succeeded(run("fit", data, *COLUMNS, "--random", "none", "--json", tmp_path / "fit.json"))
    assert out.strip() == plain.summary().strip()
    assert_same(json.loads((tmp_path / "fit.json").read_text(encoding="utf-8")), json.loads(plain.to_json()))


def test_save_and_load(run, data, plain, tmp_path):
    path = tmp_path / "saved.fit"
    assert succeeded(run("fit", data, *COLUMNS, "--random", "none", "--quiet", "--save", path)) == ""
    loaded = jm.load(path, verify=True)
    pd.testing.assert_series_equal(loaded.params, plain.params)
    assert loaded.spec == plain.spec
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved.fit"]


def test_moments_in_place_of_data(run, data, tmp_path):
    path = tmp_path / "rows.moments"
    first = succeeded(run("fit", data, *COLUMNS, "--random", "none", "--moments", path))
    assert succeeded(run("fit", path, *COLUMNS, "--random", "none")) == first


def test_verbose_logs_to_stderr_only(run, data, plain):
    code, out, err = run("fit", data, *COLUMNS, "--random", "none", "--verbose")
    assert code == 0
    assert out.strip() == plain.summary().strip()
    lines = err.strip().splitlines()
    assert "iteration" in lines[0]
    assert len(lines) == 1 + len(plain.trace)


@pytest.mark.parametrize(
    ("options", "random"),
    [
        ([], "all"),
        (["--random", "all"], "all"),
        (["--random", "none"], "none"),
        (["--random", "m=1,x", "--random", "y=1"], {"m": ["1", "x"], "y": ["1"]}),
        (["--random", "y=m , 1"], {"y": ["m", "1"]}),
        (["--random", "m="], {"m": []}),
    ],
)
@pytest.mark.parametrize("covariance", [None, "diagonal", "block"])
def test_the_model_asked_for(run, data, monkeypatch, options, random, covariance):
    """Without fitting: the specification that reaches the fit."""
    asked = []

    def stop(data, spec, **others):
        asked.append((spec, others))
        raise jm.FitError("enough")

    monkeypatch.setattr(app, "fit_model", stop)
    chosen = ["--covariance", covariance] if covariance else []
    failed(run("fit", data, *COLUMNS, *options, *chosen, "--ml", "--max-iter", "7"), 1, "enough")
    expected = jm.Mediation("x", "m", "y", "id", random=random, covariance=covariance or "unstructured")
    assert asked == [(expected, {"reml": False, "max_iter": 7})]


def test_column_names_with_an_equals_sign(run, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "fit_model", lambda data, spec, **others: pytest.fail(str(spec.random)))
    arguments = ["--x", "x", "--m", "m=2", "--y", "y", "--cluster", "id", "--random", "m=2=1,x"]
    with pytest.raises(pytest.fail.Exception, match=r"'m=2', \('1', 'x'\)"):
        run("fit", "rows.csv", *arguments)


def test_describe(run, data):
    assert succeeded(run("describe", data, *COLUMNS)).strip() == str(jm.describe(data, MODEL)).strip()


def test_stack_on_stdout_and_in_a_file(run, data, tmp_path):
    out = succeeded(run("stack", data, *COLUMNS))
    assert succeeded(run("stack", data, *COLUMNS, "--out", tmp_path / "long.csv")) == ""
    assert (tmp_path / "long.csv").read_text(encoding="utf-8") == out
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(out)), jm.stack(data, MODEL), check_dtype=False)


def test_names_outside_ascii(run, tmp_path):
    path = tmp_path / "données.csv"
    jm.datasets.load_example().rename(columns={"x": "âge 😀"}).to_csv(path, index=False)
    out = succeeded(run("describe", path, "--x", "âge 😀", *COLUMNS[2:]))
    assert "âge 😀" in out


# Help ----------------------------------------------------------------------------------------------------------------


def test_version():
    result = CliRunner().invoke(app.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"jaxmed {jm.__version__}\n")


@pytest.mark.parametrize("command", [[], ["demo"], ["fit"], ["describe"], ["stack"]])
def test_help(command):
    result = CliRunner().invoke(app.app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_help_of_fit_names_every_option():
    out = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app.app, ["fit", "--help"]).stdout
    for option in ("x", "m", "y", "cluster", "ml", "se", "level", "random", "covariance", "json", "save", "max-iter"):
        assert f"--{option} " in out, option


def test_nothing_asked_shows_help(run):
    code, out, err = run()
    assert code == 2
    assert "demo" in out + err


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "0"], "level=0.0 is not a confidence level"),
        (["--level", "nan"], "level=nan is not a confidence level"),
        (["--max-iter", "0"], "max_iter=0 must be"),
        (["--random", "some"], "--random 'some' is not understood"),
        (["--random", "none", "--random", "m=1"], "--random 'none' is not understood"),
        (["--random", "m=1", "--random", "m=x"], "--random 'm=x': 'm' is named twice"),
        (["--random", "q=1"], "random has the key 'q'"),
        (["--random", "m=1,y"], "not a predictor of 'm'"),
        (["--m", "x"], "x and m[1] are the same column 'x'"),  # a further mediator
        (["--m", "M"], "there is no column 'M'"),
    ],
)
def test_bad_input_is_code_2(run, data, options, message):
    failed(run("fit", data, *COLUMNS, *options), 2, message)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["fit", "DATA", *COLUMNS, option] for option in ("--json", "--save")),
        ["stack", "DATA", *COLUMNS, "--out"],
        ["bootstrap", "DATA", *COLUMNS, "--n", "8", "--seed", "1", "--json"],
        ["power", "--seed", "1", "--json"],
        ["simulate", "--seed", "1", "--out"],
        ["merge", "DATA", "--json"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)
@pytest.mark.parametrize(
    ("where", "why"), [("no/x", "No such file"), ("rows.csv/x", "Not a direc"), (".", "Is a direc")]
)
def test_what_cannot_be_written_is_known_before_the_work(run, data, tmp_path, monkeypatch, arguments, where, why):
    (tmp_path / "rows.csv").touch()
    for worker in ("app._fit", "app._data", "studies.power", "studies.simulate", "app.load_replicates"):
        monkeypatch.setattr(f"jaxmed._cli.{worker}", lambda *_, **__: pytest.fail("worked"))
    result = run(*(data if word == "DATA" else word for word in arguments), tmp_path / where)
    failed(result, 1, f"could not be written: {why}")


def test_a_link_to_stdout_stays_one_and_others_lead_nowhere(data, tmp_path):
    """--json /dev/stdout > FILE put a file in the place of the link, and nothing in FILE."""
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("stdout", "link"):
        command = [sys.executable, "-m", "jaxmed", "fit", data, *COLUMNS, "--quiet", "--json", tmp_path / name]
        with open(tmp_path / f"{name}.out", "wb") as out:
            subprocess.run(command, check=True, stdout=out)
    assert (tmp_path / "stdout").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert (tmp_path / "link.out").read_bytes() == b""
    written = (tmp_path / "stdout.out").read_text(encoding="utf-8")
    assert json.loads(written) == json.loads((tmp_path / "link").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", ["fit", "describe", "stack"])
def test_bad_data_is_code_2(run, command, tmp_path):
    (tmp_path / "two\nlines.csv").write_text("id,x,m\n1,2,3\n", encoding="utf-8")
    failed(run(command, "nowhere.csv", *COLUMNS), 2, "there is no file 'nowhere.csv'")
    failed(run(command, tmp_path / "two\nlines.csv", *COLUMNS), 2, "there is no column 'y'")
    failed(run(command, tmp_path, *COLUMNS), 2, "has an ending that cannot be read")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "rows.csv", *COLUMNS, "--se", "sandwich"],
        ["fit", "rows.csv", *COLUMNS, "--covariance", "free"],
        ["fit", "rows.csv", *COLUMNS, "--level", "high"],
        ["estimate"],
        ["--wrong"],
    ],
)
def test_bad_usage_is_code_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err
    assert "Traceback" not in err


def test_data_or_columns_left_out_are_code_2(run):
    """Either may come from a job file, so that it is no usage of the command line that is wrong."""
    failed(run("fit", *COLUMNS), 2, "which data? Give the path")
    failed(run("fit"), 2, "which columns are x, m, y, cluster?")
    failed(run("fit", "rows.csv", "--x", "x"), 2, "which columns are m, y, cluster?")


@pytest.mark.parametrize("option", ["--json", "--save"])
@pytest.mark.parametrize("target", ["", "no/such/folder/out"])
def test_output_that_cannot_be_written_is_code_1(run, data, tmp_path, option, target):
    result = run("fit", data, *COLUMNS, "--random", "none", "--quiet", option, tmp_path / target)
    failed(result, 1, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_stack_that_cannot_be_written_is_code_1(run, data, tmp_path):
    failed(run("stack", data, *COLUMNS, "--out", tmp_path), 1, "could not be written")


def test_no_convergence_is_code_1_after_the_results(run, data):
    """What was found is still printed and written; the code says not to trust it."""
    code, out, err = run("fit", data, *COLUMNS, "--max-iter", "1", "--json", "-")
    assert code == 1
    assert json.loads(out)["converged"] is False
    assert err.startswith("jaxmed: error: not converged: the iteration limit was reached")
    assert err.count("\n") == 1


def test_interruption_is_code_130(run, data, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "describe_data", interrupt)
    code, out, err = run("describe", data, *COLUMNS)
    assert code == 130
    assert out == ""
    assert "Traceback" not in err


def test_handlers_of_signals_come_back(run, data):
    def own(number, frame):
        raise AssertionError

    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.signal(number, own) for number in numbers]
    try:
        run("describe", data, *COLUMNS)
        assert [signal.getsignal(number) for number in numbers] == [own, own]
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)


# The program itself --------------------------------------------------------------------------------------------------


def program(*arguments, folder):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "jaxmed", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        timeout=120,
        check=False,
    )


def test_program_fits(data, plain, tmp_path):
    done = program("fit", data, *COLUMNS, "--random", "none", "--json", "-", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["loglik"] == pytest.approx(plain.loglik, rel=1e-12)


def test_program_refuses(tmp_path):
    done = program("fit", "nowhere.csv", *COLUMNS, folder=tmp_path)
    failed((done.returncode, done.stdout, done.stderr), 2, "there is no file 'nowhere.csv'")


@pytest.mark.skipif(os.name == "nt", reason="closes descriptors by a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(data, tmp_path, closed):
    """The next file that is opened would get the number of a stream, and what native code says would be in it."""
    out = tmp_path / "stacked.csv"
    command = [sys.executable, "-m", "jaxmed", "stack", str(data), *COLUMNS, "--out", str(out)]
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], timeout=120, check=False, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert out.read_text(encoding="utf-8").startswith("row,id,")


def test_a_full_disk_leaves_the_earlier_file(monkeypatch, tmp_path):
    from jaxmed._support.atomic_files import write_atomically

    target = tmp_path / "fit.json"
    target.write_text("earlier", encoding="utf-8")

    def fill(stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(jm.FitError, match=r"fit.json' could not be written: No space left on device"):
        write_atomically(target, fill)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]
    assert target.read_text(encoding="utf-8") == "earlier"
