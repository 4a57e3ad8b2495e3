"""Files from strangers are read or refused in one sentence; tests/campaigns/strangers.py draws them by the thousand."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm
from jaxmed import datasets
from jaxmed._cli import jobs
from jaxmed._data import moments_file
from jaxmed._data.moments import Moments
from jaxmed._likelihood.likelihood import BLOCK
from jaxmed._likelihood.shards import make_shards
from jaxmed._report import text as report_text
from jaxmed._report.html import element
from jaxmed._results.tables import escape_latex, escape_markdown
from jaxmed._simulation.power_result import FORMAT, WHAT
from jaxmed._simulation.replicates import OWN, Origin, Replicates
from jaxmed._simulation.study import columns_of
from jaxmed._support.checkpoints import read_table, write_table

MODEL = jm.Mediation(x="x", m="m", y="y", cluster="id")


@pytest.fixture(scope="module")
def moments() -> Moments:
    return jm.read_moments(jm.simulate(clusters=10, size=4, seed=1), MODEL)


def forged(moments, path, change, compression=zipfile.ZIP_STORED) -> None:
    """A file of moments with changed parts, and right checksums."""
    jm.save_moments(moments, path)
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", compression) as stored:
        for name, content in parts.items():
            stored.writestr(name, content)


def array(values) -> bytes:
    made = io.BytesIO()
    np.save(made, values)
    return made.getvalue()


def claim(parts) -> None:
    made = io.BytesIO()
    np.lib.format.write_array_header_1_0(made, {"descr": "<f8", "fortran_order": False, "shape": (10, 10**11)})
    parts["products0.npy"] = made.getvalue()


@pytest.mark.parametrize(
    ("change", "compression", "message"),
    [
        (claim, zipfile.ZIP_STORED, "'products0.npy' is not of the size that it claims"),
        (
            lambda p: p.update({"more.npy": array(np.zeros(10**6))}),
            zipfile.ZIP_DEFLATED,
            "parts are larger than the file",
        ),
        (lambda p: p.update({"scale.npy": array(np.zeros(3))}), zipfile.ZIP_STORED, "scales positive"),
        (
            lambda p: p.update({"shift.npy": array(np.zeros(3, dtype="i8"))}),
            zipfile.ZIP_STORED,
            "shift must be numbers of",
        ),
        (lambda p: p.update({"clusters.npy": array(np.ones(10))}), zipfile.ZIP_STORED, "clusters must be sorted"),
    ],
)
def test_arrays_that_are_not_what_they_claim(moments, tmp_path, change, compression, message):
    forged(moments, tmp_path / "forged.moments", change, compression)
    with pytest.raises(jm.DataError, match=rf"forged.moments' is not a file of moments .*{message}"):
        jm.load_moments(tmp_path / "forged.moments")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("columns", "xmy", r"Expected `array`, got `str` - at `\$.columns`"),
        ("observed", [["x", "z"]], "columns must be among those it lists"),
        ("intake", {"rows": -1}, r"Expected `int` >= 0 - at `\$.intake.rows`"),
        ("groups", [["x", "m"]], "counts of rows are not those of its equations"),
        ("format", 7, "format 7, and this version of jaxmed reads 1"),
        ("not of a header", "DEEP", "it is nested too deeply"),
    ],
)
def test_headers_that_are_not_what_jaxmed_writes(moments, tmp_path, name, value, message):
    def change(parts):
        header = json.loads(np.load(io.BytesIO(parts["moments.npy"])).tobytes()) | {name: value}
        text = json.dumps(header).replace('"DEEP"', "[" * 100_000 + "]" * 100_000)
        parts["moments.npy"] = array(np.frombuffer(text.encode(), dtype=np.uint8))

    forged(moments, tmp_path / "forged.moments", change)
    with pytest.raises(jm.DataError, match=f"forged.moments' is not a file of moments .*{message}"):
        jm.load_moments(tmp_path / "forged.moments")


def test_the_key_of_a_power_study_is_no_path(tmp_path):
    table = pd.DataFrame({name: [1] for name in columns_of(["a"], ["delta"])})
    about = {"format": FORMAT, "kind": WHAT, "key": "../../elsewhere", "design": {}, "population": {}, "requested": 1}
    about |= {"analysis": {"intervals": ["delta"], "level": 0.9}, "labels": ["a"], "truth": [0.5]}
    write_table(tmp_path / "study.parquet", table, about)
    with pytest.raises(jm.DataError, match=r"study.parquet' is not a file of a power study.*key '../../elsewhere'"):
        jm.load_power(tmp_path / "study.parquet")


def test_gaps_of_replicates_take_no_memory():
    """Once an array with an entry for every replicate that a file said was asked for."""
    nothing = np.zeros(0)
    origin = Origin(
        "parametric", 1, 10**15, {}, True, 0.0, 2, (2,), (), 0, nothing, nothing, {"names": [None], "rows": []}
    )
    table = pd.DataFrame({name: [0, 1, 5] for name in OWN})
    assert Replicates(table, origin).gaps == ((2, 4), (6, 10**15 - 1))


def test_tables_with_a_flipped_bit_are_refused(tmp_path):
    path = tmp_path / "kept.parquet"
    write_table(path, pd.DataFrame({"a": np.random.default_rng(1).normal(size=500)}), {})
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(jm.DataError, match=r"kept.parquet' is not a file of numbers, or is damaged"):
        read_table(path, "numbers")


def test_tables_that_claim_more_than_a_file_holds(tmp_path):
    path = tmp_path / "bomb.parquet"
    write_table(path, pd.DataFrame({"a": np.zeros(3_000_000)}), {})
    with pytest.raises(jm.DataError, match=r"bomb.parquet' .*it claims 3000000 numbers, more than such a file holds"):
        read_table(path, "numbers")


@pytest.mark.parametrize("text", ["[fit]\nx = " + "[" * 5000, "[fit]\nx = " + "1" * 5000, "[fit]\nx = 2021-13-41"])
def test_jobs_that_the_parser_cannot_take(tmp_path, text):
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(jm.SpecError, match=r"job.toml' is not TOML: "):
        jobs.read_job(tmp_path / "job.toml", "fit", ["x"])


def test_jobs_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "LARGEST", 1 << 10)
    (tmp_path / "job.toml").write_text("#" * 2000)
    with pytest.raises(jm.SpecError, match=r"job.toml' is larger than"):
        jobs.read_job(tmp_path / "job.toml", "fit", ["x"])


def test_unseen_letters_are_shown_by_number():
    assert element("p", "a\u202eb\0", title="\u2066") == '<p title="\\u2066">a\\u202eb\\u0000</p>'
    assert element("title", "</title>]]>") == "<title>&lt;/title&gt;]]&gt;</title>"


def test_names_command_no_terminal(tmp_path, run):
    """Names in whatever is printed: summaries, tables, errors of the program."""
    name = "\x1b[2Jx\x9b"
    rows = jm.simulate(clusters=30, size=4, seed=1).rename(columns={"x": name})
    fit = jm.fit(rows, x=name, m="m", y="y", cluster="id")
    texts = [
        fit.summary(),
        str(jm.describe(rows, fit.spec)),
        str(jm.conflation(fit)),
        fit.to_latex(),
        fit.to_markdown(),
    ]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    told = ("--x", name, "--m", "m", "--y", "y", "--cluster", "id")
    texts += run("fit", tmp_path / "rows.csv", *told)[1:]
    texts += run("fit", tmp_path / "rows.csv", *told, "--json", "-")[1:]
    texts += run("fit", tmp_path / "rows.csv", *told[:-1], "\x1b]0;id")[1:]
    assert "\\u001b[2Jx\\u009b" in texts[0]
    for text in texts:
        assert not re.search("[\x1b\x9b]", text)


def test_names_forge_no_line():
    """A line break in a name made rows of a summary; what cannot be seen widened its tables."""
    name = "m\n     total |  9.99\n\u2028\U000e0041\x7f"
    rows = jm.simulate(clusters=30, size=4, seed=1).rename(columns={"m": name})
    fit = jm.fit(rows, x="x", m=name, y="y", cluster="id")
    plain = jm.fit(rows.rename(columns={name: "m"}), x="x", m="m", y="y", cluster="id")
    assert len(fit.summary().splitlines()) >= len(plain.summary().splitlines())
    assert sum("9.99" in line and line.startswith("     total") for line in fit.summary().splitlines()) == 0
    shown = r"m\u000a     total |  9.99\u000a\u2028\udb40\udc41\u007f"
    table = fit.summary().split("Fixed effects\n")[1].splitlines()[:8]
    assert len({len(line) for line in table}) == 1
    for text in (fit.summary(), repr(fit), repr(jm.Population.from_fit(fit)), str(jm.describe(rows, fit.spec))):
        assert shown in text
    assert not set(fit.to_json(indent=None)) & set("\u2028\U000e0041\x7f")
    assert json.loads(fit.to_json())["model"] == fit.to_dict()["model"]


def test_feather_of_the_first_version(tmp_path):
    (tmp_path / "rows.feather").write_bytes(b"FEA1" + b"\0" * 100)
    with pytest.raises(jm.DataError, match="is of version 1 of feather, of 2016; write it again with version 2"):
        jm.fit(tmp_path / "rows.feather", x="x", m="m", y="y", cluster="id")


def test_working_estimates_that_are_others(tmp_path):
    """Predictions are made of them; what is shown is not."""
    fit = jm.fit(jm.simulate(clusters=30, size=4, seed=1), x="x", m="m", y="y", cluster="id")
    forged = dataclasses.replace(fit, working=fit.working._replace(values=fit.working.values + 1e-3))
    forged.save(tmp_path / "fit.jaxmed")
    jm.load(tmp_path / "fit.jaxmed")
    with pytest.raises(jm.FitError, match="estimates are not those in the units of its optimiser"):
        jm.load(tmp_path / "fit.jaxmed", verify=True)


@pytest.mark.parametrize("plain", [[], 3, "fit", None])
def test_a_saved_fit_that_is_no_table(tmp_path, plain):
    moments = jm.read_moments(jm.simulate(clusters=10, size=4, seed=1), jm.Mediation("x", "m", "y", "id"))
    moments_file.write(tmp_path / "fit.jaxmed", plain, moments)
    with pytest.raises(jm.DataError, match=r"is not a fit that jaxmed saved, or is damaged \(Expected `object`, got"):
        jm.load(tmp_path / "fit.jaxmed")


def test_line_breaks_end_no_row():
    assert escape_markdown("a\n|b") == r"a \|b"
    assert escape_latex("a\n\nb") == "a b"


def test_downloads_are_checked_before_they_are_seen(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.setenv("JAXMED_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(datasets.platformdirs, "user_cache_dir", lambda _: str(tmp_path))

    def retrieve(url, known_hash, fname, path):
        target = Path(path) / fname
        pd.DataFrame({"id": [1], "x": [0.0], "m": [0.0], "y": [0.0]}).to_stata(target, write_index=False)
        return str(target)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(jm.DataError, match=r"could not be fetched \(.*is not the worked example's data: 1 rows"):
        datasets.load_bpg2006()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("missing", "said"), [("listwise", ", missing='listwise')"), ("available", "reml=True)")])
def test_the_call_of_a_report_says_what_became_of_missing_values(missing, said):
    data = jm.simulate(clusters=10, size=4, seed=1)
    data.loc[3, "y"] = np.nan
    read = jm.read_moments(data, MODEL, missing)
    fit = SimpleNamespace(
        spec=MODEL, system=MODEL.system(), moments=read, sample_summary=read.sample_summary, reml=True
    )
    assert said in report_text.call(fit)


def test_shards_made_outside_the_float64_scope():
    shards = make_shards(np.ones((3, 2 * BLOCK)), (1,))
    assert {part.table.dtype for part in shards.parts} == {np.dtype("float64")}


def test_numbers_of_a_population_that_no_float_holds():
    with pytest.raises(jm.SpecError, match="a="):
        jm.Population(numbers={"a": 10**400})
