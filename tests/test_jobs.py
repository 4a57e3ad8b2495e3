"""The command line beyond the 1-1-1 model, and job files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm
from jaxmed._cli import jobs

ROLES = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
PLAIN = [word for role, name in ROLES.items() for word in (f"--{role}", name)]
AB = ["--random", "motivation=1,support", "--random", "achievement=1,motivation"]
RANDOM = {"motivation": ["1", "support"], "achievement": ["1", "motivation"]}


@pytest.fixture(scope="module")
def schools(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "schools.csv"
    jm.datasets.load_schools().to_csv(path, index=False)
    return str(path)


@pytest.fixture
def passes(run):
    """Standard output of a command that must succeed without a word on stderr."""

    def call(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def refused(run):
    """The one line on stderr of a command that must be refused."""

    def call(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    return call


def test_covariates_moderators_and_categories(passes, schools, tmp_path):
    job = tmp_path / "all.toml"
    job.write_text(f"[fit]\ndata = {schools!r}\n")
    options = ["--covariate", "achievement=age,sector", "--reference", "sector=public", "--moderator", "climate=a"]
    found = passes(
        "fit", "--job", str(job), *PLAIN, *AB, *options, "--at", "climate=-1,1", "--difference", "--json", "-"
    )
    spec = jm.Mediation(
        **ROLES,
        random=RANDOM,
        covariates={"achievement": ["age", "sector"]},
        reference={"sector": "public"},
        moderators={"climate": ["a"]},
    )
    fit = jm.fit(jm.datasets.load_schools(), spec)
    plain = json.loads(found)
    assert plain["model"] == json.loads(json.dumps(spec.to_dict()))
    assert list(plain["params"]) == list(fit.params.index)
    np.testing.assert_allclose(list(plain["params"].values()), fit.params, rtol=1e-8, atol=1e-10)
    expected = fit.effects(at={"climate": [-1, 1]}).reset_index()
    rows = pd.DataFrame(plain["effects"]["joint"])
    assert list(rows["effect"]) == list(expected["effect"])
    np.testing.assert_allclose(rows["estimate"], expected["estimate"], rtol=1e-7)


def test_tables_of_a_moderated_fit(passes, schools):
    out = passes("fit", schools, *PLAIN, *AB, "--moderator", "climate=a", "--difference", "--heterogeneity")
    for text in ("index_climate", "Differences of effects", "sd_indirect, climate", "share_indirect_positive", "vs"):
        assert text in out


def test_several_mediators_and_their_order(passes, schools):
    random = ["--random", "motivation=1", "--random", "effort=1", "--random", "achievement=1"]
    roles = ["--x", "support", "--m", "motivation", "--m", "effort", "--y", "achievement", "--cluster", "school"]
    out = passes("fit", schools, *roles, *random, "--serial")
    assert "motivation -> effort -> achievement" in out
    assert "indirect_motivation_effort" in out
    assert "cov(residual" not in out
    out = passes("fit", schools, *roles, *random)
    assert "cov(residual motivation,effort)" in out


def test_designs_of_the_cluster_are_explained_in_the_summary_only(passes, schools):
    done = passes("fit", schools, "--x", "training", "--m", "morale", "--y", "achievement", "--cluster", "school")
    assert "'morale' does not vary within clusters: its equation has one row per cluster" in done


def test_formulas(passes, refused, schools):
    formulas = ["motivation ~ support + (1 | school)", "achievement ~ motivation + (1 | school)"]
    out = passes("fit", schools, *(word for text in formulas for word in ("--formula", text)))
    assert "Mixed model: motivation, achievement within school" in out
    error = refused("fit", schools, *PLAIN, "--formula", formulas[0])
    assert "formulas say the whole model; leave out 'x'" in error


def test_a_job_file_says_it_all(passes, schools, tmp_path):
    (tmp_path / "schools.csv").write_text(Path(schools).read_text())
    (tmp_path / "job.toml").write_text(
        """
        [model]
        x = "support"
        m = "motivation"
        y = "achievement"
        cluster = "school"
        random = {motivation = ["1", "support"], achievement = ["1", "motivation"]}
        moderators = {climate = "a"}

        [fit]
        data = "schools.csv"
        missing = "listwise"
        at = {climate = [0, 1]}
        json = "result.json"
        quiet = true
        reml = false
        """
    )
    done = passes("fit", "--job", str(tmp_path / "job.toml"))
    assert done == ""
    plain = json.loads((tmp_path / "result.json").read_text())
    assert plain["reml"] is False
    assert plain["rows"]["used"][0] == plain["rows"]["used"][1]
    assert {row["climate"] for row in plain["effects"]["joint"]} == {0, 1, None}
    # Options on the command line win.
    done = passes("fit", "--job", str(tmp_path / "job.toml"), "--reml", "--json", "-", "--missing", "available")
    plain = json.loads(done)
    assert plain["reml"] is True
    assert plain["rows"]["used"][0] > plain["rows"]["used"][1]


def test_describe_and_stack_read_the_same_job(passes, schools, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(
        "[model]\nx='support'\nm='motivation'\ny='achievement'\ncluster='school'\ncenter='cluster'\n"
        "covariates=['sector']\nreference={sector='public'}\n"
    )
    assert "sector[private]" in passes("describe", schools, "--job", str(job))
    table = pd.read_csv(io.StringIO(passes("stack", schools, "--job", str(job))))
    data = jm.datasets.load_schools()
    mean = data.groupby("school")["support"].transform("mean")
    own = table[table["outcome"] == "motivation"]
    np.testing.assert_allclose(own["s_motivation:between(support)"], mean, rtol=1e-12)
    np.testing.assert_allclose(own["s_motivation:within(support)"], data["support"] - mean, atol=1e-12)
    np.testing.assert_array_equal(own["s_motivation:sector[private]"], (data["sector"] == "private").astype(float))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "sets 'x' outside a table"),
        ("[fit]\nmodell = 1", "has 'modell' in [fit]"),
        ("[model]\nxx = 'x'", "has 'xx' in [model]; did you mean 'x'?"),
        ("[fit]\nmising = 'raise'", "did you mean 'missing'?"),
        ("[fit", "is not TOML"),
        ("[optoins]\nreml = false", "has a table [optoins]; it may have [model], [population] and [demo], [fit]"),
        ("[fit]\nquiet = 'no'", "has quiet='no'; write true or false"),
        ("[model]\nserial = 1", "has serial=1; write true or false"),
        ("[fit]\ndata = 5", "has data=5; give a path as text"),
        ("[fit]\ndata='a.csv'\nse='odd'\nx='x'\nm='m'\ny='y'\ncluster='id'", "se='odd' is not known"),
        ("", "has neither a table [model] nor [fit]"),
        ("[describe]\ndata = 'x.csv'", "has neither a table [model] nor [fit]"),
        ("[fit]\ndata = 'nowhere.csv'\nx = 'x'", "which columns are m, y, cluster? Give --m and --y and --cluster"),
        ("[fit]\nx='x'\nm='m'\ny='y'\ncluster='id'", "which data? Give the path"),
        (
            "[fit]\ndata='a.csv'\nx='x'\nm='m'\ny='y'\ncluster='id'\nlevel='high'",
            "level='high' is not a confidence level",
        ),
        ("[fit]\ndata='a.csv'\nx='x'\nm=3\ny='y'\ncluster='id'", "m must be a column name (text); got 3"),
    ],
)
def test_job_files_that_cannot_be_followed(refused, tmp_path, text, message):
    path = tmp_path / "job.toml"
    path.write_text(text)
    error = refused("fit", "--job", str(path))
    assert message in error


def test_no_job_file(refused):
    assert "cannot be read: No such file" in refused("fit", "--job", "nowhere.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--random", "x"], "--random 'x' is not understood"),
        (
            ["--random", "m=1", "--random", "m=x"],
            "--random 'm=x': 'm' is named twice; list all that belongs to it in one",
        ),
        (["--reference", "g=A", "--reference", "g=B"], "--reference names 'g' twice"),
        (["--moderator", "w=a", "--moderator", "v"], "--moderator 'v': name its paths too"),
        (["--reference", "site"], "--reference 'site' is not understood; write --reference COLUMN=CATEGORY"),
        (["--at", "w"], "--at 'w' is not understood; write --at MODERATOR=VALUE,VALUE"),
        (["--covariate", "y=z", "--covariate", "v"], "--covariate 'v' is not understood"),
        (["--moderator", "w=q"], "moderators['w']=['q']: choose paths from ['a', 'b', 'c_prime']"),
    ],
)
def test_options_that_cannot_be_followed(refused, options, message):
    error = refused("fit", "a.csv", "--x", "x", "--m", "m", "--y", "y", "--cluster", "id", *options)
    assert message in error


def test_names_and_values():
    assert jobs.parse_lists(["a,b", "c"], "--covariate", keys="OUTCOME") == ["a", "b", "c"]
    assert jobs.parse_lists(["m=a, b", "y=c"], "--covariate", keys="OUTCOME") == {"m": ["a", "b"], "y": ["c"]}
    assert jobs.parse_lists(["a=b=c"], "--random", keys="OUTCOME") == {"a=b": ["c"]}
    assert jobs.parse_lists(None, "--random", keys="OUTCOME") is None
    assert jobs.parse_values(["w=-1,.5", "sex=f,m"]) == {"w": [-1.0, 0.5], "sex": ["f", "m"]}


def test_tables_reach_the_json(schools, passes):
    options = ["--moderator", "climate=a", "--difference", "--heterogeneity", "--at", "climate=0,1", "--json", "-"]
    plain = json.loads(passes("fit", schools, *PLAIN, *AB, *options))
    assert {row["climate"] for row in plain["effect_differences"]} == {"1 vs 0"}
    assert {row["effect"] for row in plain["heterogeneity"]} == {"sd_indirect", "sd_total", "share_indirect_positive"}


def test_effects_of_formulas_are_refused(refused):
    error = refused("fit", "a.csv", "--formula", "y ~ x + (1 | id)", "--at", "w=1")
    assert "at is of effects, and formulas have none" in error


@pytest.mark.parametrize("target", [".", ""])
def test_no_file_name_to_write_to(schools, run, target):
    options = ["--random", "none", "--json", target, "--quiet"]
    code, out, err = run("fit", schools, *PLAIN, *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no file name" in err
