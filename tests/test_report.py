"""The report: valid HTML without anything from elsewhere, every number that of the fit, readable at two widths."""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from browser import Browser, find_browser

import jaxmed as jm
from jaxmed._report.html import element

pytest.importorskip("matplotlib")

SCHOOLS = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
ODD = {"x": "x <b>&amp;\"'", "m": "m_1 $&$", "y": "<script>alert(1)</script>", "cluster": "id&"}


class Page(HTMLParser):
    """Elements in order, text by element id of tables, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, attributes))
        if tag in ("meta", "br", "hr"):
            return
        self.open.append(tag)
        if tag == "table":
            self._table = attributes["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        elif re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not self.open:
            return
        if self.open[-1] in ("td", "th"):
            self.tables[self._table][-1][-1] += text
        elif re.fullmatch("h[1-6]", self.open[-1]):
            level, before = self.headings[-1]
            self.headings[-1] = level, before + text

    def rows(self, table: str) -> dict[tuple[str, ...], list[str]]:
        """Rows of a table without its head: by what they are of, cells below ``number``."""
        head, *rows = self.tables[table]
        stubs = next(k for k, name in enumerate(head) if name in ("Estimate", "count", "value"))
        return {tuple(row[:stubs]): row[stubs:] for row in rows}


@pytest.fixture(scope="module")
def fit():
    return jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")


@pytest.fixture(scope="module")
def replicates(fit):
    return jm.bootstrap(fit, 256, seed=3)


@pytest.fixture(scope="module")
def moderated():
    return jm.fit(jm.datasets.load_schools(), jm.Mediation(**SCHOOLS, moderators={"climate": ["a"]}))


@pytest.fixture(scope="module")
def odd():
    data = jm.datasets.load_example().rename(columns=dict(zip(("x", "m", "y", "id"), ODD.values(), strict=True)))
    return jm.fit(data, jm.Mediation(**ODD))


@pytest.fixture(scope="module")
def system():
    equation = jm.Equation("y", ["1", "x"], random=["1", "x"])
    return jm.fit(jm.datasets.load_example(), jm.System([equation], cluster="id"), reml=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory, fit, replicates, moderated, odd, system):
    """Reports by what they are of."""
    folder = tmp_path_factory.mktemp("reports")
    jm.report(fit, folder / "plain.html", replicates)
    for name, found in {"moderated": moderated, "odd": odd, "system": system}.items():
        jm.report(found, folder / f"{name}.html")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pages(files):
    return {name: Page(path.read_text(encoding="utf-8")) for name, path in files.items()}


NAMES = ("plain", "moderated", "odd", "system")


def shown(text: str, value: float | None) -> bool:
    """Whether a number is shown as what it is, rounded to the decimals shown."""
    if value is None:
        return text == ""
    if text.startswith("<"):
        return value < float(text[1:])
    decimals = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5000001 * 10.0**-decimals


# Form ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_html_is_whole(pages, files, name):
    page, text = pages[name], files[name].read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, a in page.elements for key, value in a.items() if key == "href"]
    targets += [name for _, a in page.elements for name in (a.get("aria-labelledby") or "").split()]
    targets += re.findall(r"url\(#([^)]*)\)", text)
    assert set(targets) <= set(ids)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_elsewhere(pages, files, name):
    text = files[name].read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=", text)
    tags = {tag for tag, _ in pages[name].elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image"}
    assert all(value.startswith("#") for _, a in pages[name].elements for key, value in a.items() if key == "href")


@pytest.mark.parametrize("name", NAMES)
def test_accessible(pages, name):
    """Language, viewport, one h1, no level left out, captions, scopes, names of pictures and of what scrolls."""
    page = pages[name]
    found = dict(page.elements)
    assert found["html"] == {"lang": "en"}
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.elements if tag == "th")
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert pictures
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in pictures)
    assert tags.count("figure") == tags.count("figcaption") == len(pictures) == tags.count("title") - 1
    boxes = [attributes for _, attributes in page.elements if attributes.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and ("aria-labelledby" in a or "aria-label" in a) for a in boxes)
    first = next(attributes for tag, attributes in page.elements if tag == "a")
    assert first == {"href": "#main", "class": "skip"}


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("ink", ["#1a1a1a", "#4a4a4a", "#1b4965"])
@pytest.mark.parametrize("paper", ["#ffffff", "#f1f6f9", "#fdf3f0", "#f4f4f4"])
def test_contrast(ink, paper):
    """At least 7 to 1 (WCAG 2, AAA)."""
    assert (luminance(paper) + 0.05) / (luminance(ink) + 0.05) >= 7


def test_names_are_escaped(files, pages):
    text = files["odd"].read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert pages["odd"].headings[0][1] == f"From {ODD['x']} through {ODD['m']} to {ODD['y']}"
    assert (f"{ODD['m']}~{ODD['x']}",) in pages["odd"].rows("coefficients")


def test_elements_escape():
    assert element("p", "<&>", title='"') == '<p title="&#34;">&lt;&amp;&gt;</p>'
    assert element("p", element("b", "x")) == "<p><b>x</b></p>"


def test_same_fit_same_file(fit, files, replicates, tmp_path):
    jm.report(fit, tmp_path / "again.html", replicates)
    assert (tmp_path / "again.html").read_bytes() == files["plain"].read_bytes()


# Numbers -------------------------------------------------------------------------------------------------------------

COLUMNS = ("estimate", "se", "z", "p", "ci_lower", "ci_upper")


def test_effects_and_coefficients(fit, pages):
    plain = fit.to_dict()
    rows = pages["plain"].rows("effects")
    assert list(rows) == [(name,) for name in plain["effects"]["joint"]]
    for (name,), row in rows.items():
        expected = plain["effects"]["joint"][name]
        assert all(shown(text, expected[column]) for text, column in zip(row, COLUMNS, strict=True))
    rows = pages["plain"].rows("coefficients")
    assert list(rows) == [(label,) for label in plain["params"]]
    for (label,), row in rows.items():
        assert shown(row[0], plain["params"][label])
        assert shown(row[1], plain["bse"][label])


def test_conditional_effects(moderated, pages):
    expected = moderated.to_dict()["effects"]["joint"]
    rows = pages["moderated"].tables["effects"][1:]
    assert len(rows) == len(expected)
    for row, found in zip(rows, expected, strict=True):
        assert row[0] == found["effect"]
        assert row[1] == ("" if found["climate"] is None else f"{found['climate']:.4g}")
        assert all(shown(text, found[column]) for text, column in zip(row[2:], COLUMNS, strict=True))
    (region, _) = (row for row in pages["moderated"].tables["regions"][1:])
    limits = jm.johnson_neyman(moderated, "climate").iloc[0]
    assert region == ["indirect", "climate", "positive", f"{limits['lower']:.3g}", f"{limits['upper']:.3g}"]


def test_regions_are_of_effects_that_a_moderator_moves(tmp_path):
    """Two moderators, of the paths to one mediator each: neither moves the indirect effect through the other one."""
    roles = {"x": "support", "m": ["motivation", "effort"], "y": "achievement", "cluster": "school"}
    moderators = {"climate": ["a_motivation"], "age": ["a_effort"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.DesignWarning)
        fit = jm.fit(jm.datasets.load_schools(), jm.Mediation(**roles, random="none", moderators=moderators))
    jm.report(fit, tmp_path / "r.html")
    rows = Page((tmp_path / "r.html").read_text(encoding="utf-8")).tables["regions"][1:]
    found = {(row[0], row[1]) for row in rows}
    assert {effect for effect, moderator in found if moderator == "climate"} == {
        "indirect_motivation",
        "indirect",
        "total",
    }
    assert not {effect for effect, moderator in found if moderator == "age"} & {"indirect_motivation"}


def test_variances(fit, pages):
    plain, rows = fit.to_dict(), pages["plain"].rows("variances")
    g, labels = plain["random_cov"]["values"], plain["random_cov"]["labels"]
    for a, one in enumerate(labels):
        assert shown(rows[(f"var({one})",)][0], g[a][a])
        assert shown(rows[(f"var({one})",)][1], plain["random_cov_se"]["values"][a][a])
        for b, other in enumerate(labels[:a]):
            assert shown(rows[(f"cov({other},{one})",)][0], g[a][b])
    for outcome, value in plain["residual_var"].items():
        assert shown(rows[(f"var(residual {outcome})",)][0], value)
    corner = pages["plain"].tables["random-correlations"]
    assert shown(corner[2][1], g[1][0] / (g[0][0] * g[1][1]) ** 0.5)


def test_statistics(fit, system, pages):
    for name, found in (("plain", fit), ("system", system)):
        plain = found.to_dict()
        rows = {key[0]: row[0] for key, row in pages[name].rows("statistics").items()}
        label = "restricted log likelihood" if found.reml else "log likelihood"
        numbers = {label: "loglik", "AIC": "aic", "BIC": "bic", "clusters": "n_clusters"}
        assert all(shown(rows[shown_as], plain[key]) for shown_as, key in numbers.items())
        test = found.wald()
        assert rows["Wald test of all fixed effects"].startswith(f"χ²({test.df}) = {test.statistic:.2f}, p ")


def test_heterogeneity_and_bootstrap(fit, replicates, pages):
    plain = fit.to_dict(heterogeneity=True)["heterogeneity"]
    for (name,), row in pages["plain"].rows("heterogeneity").items():
        columns = ("estimate", "se", "ci_lower", "ci_upper")
        assert all(shown(text, plain[name][column]) for text, column in zip(row, columns, strict=True))
    intervals = replicates.intervals()
    for (name,), row in pages["plain"].rows("bootstrap").items():
        columns = ("estimate", "se", "ci_lower", "ci_upper", "ci_lower_mcse", "ci_upper_mcse")
        assert all(shown(text, intervals.loc[name, column]) for text, column in zip(row, columns, strict=True))


def test_data(moderated, pages):
    """Against jaxmed.describe on the rows themselves; climate, which no row lacks, to all its decimals."""
    found = jm.describe(jm.datasets.load_schools(), jm.Mediation(**SCHOOLS, moderators={"climate": ["a"]}))
    rows = pages["moderated"].rows("variables")
    assert list(rows) == [(name,) for name in found.variables.index]
    for (name,), row in rows.items():
        assert all(shown(text, value) for text, value in zip(row, found.variables.loc[name], strict=True))


def test_diagnostics(fit, moderated, pages):
    """Standard errors by kind, influence, outlying clusters, conflation: the numbers of the fit's own tables."""
    rows = pages["plain"].rows("kinds")
    robust, freedom = fit.intervals(covariance="robust"), fit.satterthwaite()
    assert list(rows) == [("indirect",), ("total",)]
    for (effect,), cells in rows.items():
        joint = fit.effects().loc[effect]
        values = [joint["estimate"], joint["se"], *robust.loc[effect, ["se", "ci_lower", "ci_upper"]]]
        assert all(map(shown, cells, [*values, freedom.loc[effect, "df"]]))
    found = fit.influence()
    _, *lines = pages["plain"].tables["influence"]
    assert [line[0] for line in lines] == [str(cluster) for cluster in found["cook"].nlargest(5).index]
    assert float(lines[0][1]) == pytest.approx(found["indirect"].loc[found["cook"].idxmax()], rel=0.01)
    paths = jm.conflation(fit).table
    for (path, *parts), cells in pages["plain"].rows("conflation").items():
        values = paths.loc[path, ["within", "between", "estimate", "se", "z", "p"]]
        assert all(map(shown, [*parts, *cells], values))
    kinds = pages["moderated"].rows("kinds")
    assert len(kinds) == 6
    assert all(name in ("indirect", "total") for name, *_ in kinds)


def test_words(fit, moderated, files):
    text = files["plain"].read_text(encoding="utf-8").replace("\u00a0", " ")
    row = fit.effects().loc["indirect"]
    said = f"The average indirect effect is {row['estimate']:.3f} (SE {row['se']:.3f}, 95% CI {row['ci_lower']:.3f} to"
    assert said in text
    assert "multilevel mediation model (1-1-1)" in text
    assert "(REML; Patterson &amp; Thompson, 1971), in jaxmed" in text
    assert "Percentile bootstrap intervals (Davison &amp; Hinkley, 1997) rest on 256 replicates" in text
    assert f"reached the maximum after {fit.n_iter} iterations" in text
    text = files["moderated"].read_text(encoding="utf-8").replace("\u00a0", " ")
    index = moderated.effects().loc["index_climate"].iloc[0]
    assert f"The index of moderated mediation (climate) is {index['estimate']:.3f}" in text
    assert "Hayes, A. F. (2015)." in text


def test_the_call_fits_the_model_again(moderated, system, files):
    for name, found, data in (
        ("moderated", moderated, jm.datasets.load_schools()),
        ("system", system, jm.datasets.load_example()),
    ):
        page = files[name].read_text(encoding="utf-8")
        code, model = re.findall(r"<code>(.*?)</code>", page, flags=re.DOTALL)
        code, model = unescape(code), unescape(model)
        assert json.loads(model) == found.spec.to_dict()
        names = {"DATA": data}
        exec(code, names)
        assert names["fit"].spec == found.spec
        assert names["fit"].loglik == pytest.approx(found.loglik)


def test_a_singular_fit_is_said_to_be_one(tmp_path, files):
    """In these data the slope of motivation hardly varies once that of effort does."""
    random = {"motivation": ["1", "support"], "effort": ["1", "motivation"], "achievement": ["1", "effort"]}
    spec = jm.Mediation(**SCHOOLS | {"m": ["motivation", "effort"]}, serial=True, random=random)
    found = jm.fit(jm.datasets.load_schools(), spec)
    assert found.singular
    jm.report(found, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<div class="warning"><p>The optimiser reached the maximum' in text
    assert "The covariance of the random effects is singular" in text
    assert '<div class="warning">' not in files["plain"].read_text(encoding="utf-8")


# Refusals and the command line ---------------------------------------------------------------------------------------


def test_refusals(fit, moderated, replicates, tmp_path):
    with pytest.raises(jm.FitError, match="this fit is not the one of these replicates"):
        jm.report(moderated, tmp_path / "r.html", replicates)
    with pytest.raises(jm.SpecError, match="kind='bcb' is not known"):
        jm.report(fit, tmp_path / "r.html", kind="bcb")
    with pytest.raises(jm.SpecError, match=r"report needs a Fit, as .* returns it; got str"):
        jm.report("fit", tmp_path / "r.html")
    with pytest.raises(jm.FitError, match="could not be written"):
        jm.report(fit, tmp_path / "no folder" / "r.html")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory, fit, replicates):
    folder = tmp_path_factory.mktemp("saved")
    fit.save(folder / "fit")
    replicates.save(folder / "replicates.parquet")
    return folder


def test_command(run, saved, files, tmp_path):
    out = tmp_path / "report.html"
    found = run("report", saved / "fit", "--replicates", saved / "replicates.parquet", "-o", out)
    assert found == (0, "", "")
    assert out.read_bytes() == files["plain"].read_bytes()


def test_job_file(run, saved, tmp_path):
    (saved / "job.toml").write_text('[model]\nx = "x"\n[report]\nfit = "fit"\nout = "job.html"\nlevel = 0.9\n')
    assert run("report", "--job", saved / "job.toml") == (0, "", "")
    assert "90% lower" in (saved / "job.html").read_text(encoding="utf-8")
    assert run("report", "--job", saved / "job.toml", "-o", tmp_path / "own.html")[0] == 0
    assert (tmp_path / "own.html").exists()


def test_a_folder_that_is_not_there_is_said_before_the_report_is_made(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxmed._report.document"], "_document", lambda _: pytest.fail("made"))
    with pytest.raises(jm.FitError, match=r"r\.html' could not be written"):
        jm.report(fit, tmp_path / "no" / "r.html")


@pytest.mark.filterwarnings("ignore::jaxmed.ConvergenceWarning", "ignore::jaxmed.DesignWarning")
def test_a_fit_that_needs_every_cluster(tmp_path):
    """Three cluster means and three coefficients between clusters: the picture of influences had none to show.

    The total effect between clusters has one value and no error: without a random intercept of y it is the same.
    """
    rng = np.random.default_rng(0)
    at = np.repeat([0, 1, 2], 40)
    x, m, y = rng.normal(size=(3, 120)) + 0.5 * at
    data = pd.DataFrame({"id": at, "x": x, "m": m + x, "y": y + m})
    fits = [
        jm.fit(data, jm.Mediation("x", "m", "y", "id", {"m": ["1"], "y": of_y}, "diagonal", center="cluster"))
        for of_y in (["1"], [])
    ]
    between = [found.effects()["estimate"]["total_between"] for found in fits]
    assert between[0] == pytest.approx(between[1], rel=1e-8)
    assert np.isnan(fits[0].effects()["se"]["total_between"])
    assert "at zero" not in fits[0].message  # none of its covariances is free
    jm.report(fits[0], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "without any one of the clusters these data do not determine the model" in text
    assert "without a standard error: these data leave it, or how precise it is, undetermined" in text


def test_exit_codes(run, saved, tmp_path):
    out = tmp_path / "report.html"
    for arguments, code, message in (
        ((saved / "fit",), 2, "which file is to be written? Give -o report.html"),
        (("-o", out), 2, "which fit? Give the path of a fit"),
        ((saved / "none", "-o", out), 2, "there is no file"),
        ((saved / "replicates.parquet", "-o", out), 2, "is not a fit that jaxmed saved"),
        ((saved / "fit", "-o", tmp_path / "no" / "r.html"), 1, "could not be written"),
        ((saved / "fit", "-o", out, "--level", "95"), 2, "level=95.0 is not a confidence level"),
        ((saved / "fit", "-o", out, "--at", "w=1"), 2, "this model has no moderators"),
    ):
        found = run("report", *arguments)
        assert (found[0], found[1], found[2].count("\n")) == (code, "", 1)
        assert message in found[2]
    assert not out.exists()


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_browser() is None:
        pytest.skip("no Chromium here; install one (Debian: apt-get install chromium) to see reports at two widths")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1280, 375])
def test_in_a_browser(browser, files, name, width):
    """No message on the console, nothing fetched, and no page wider than its window, a phone's or a desk's."""
    found = browser.look(files[name], width)
    assert found["messages"] == []
    assert found["fetched"] == [files[name].resolve().as_uri()]
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["height"] > 3000


def test_a_fit_without_standard_errors(tmp_path):
    """Two rows a cluster, each many times: three random effects of y leave nothing to its residual."""
    rows = pd.concat([jm.simulate(clusters=12, size=2, seed=1)] * 50, ignore_index=True)
    with pytest.warns(jm.ConvergenceWarning), pytest.warns(jm.DesignWarning, match="rows repeat another row"):
        fit = jm.fit(rows, x="x", m="m", y="y", cluster="id")
    assert not np.all(np.isfinite(fit.block))
    with pytest.raises(jm.FitError, match="this fit has no joint standard errors to report"):
        jm.report(fit, tmp_path / "a.html")
    assert not list(tmp_path.iterdir())
    jm.plots.cluster_effects(fit)  # predictions need the covariance of the fixed effects only
    unknown = fit.working._replace(block=np.full_like(fit.working.block, np.nan))
    with pytest.raises(jm.FitError, match="has no predictions of 'ab' to show"):
        jm.plots.cluster_effects(replace(fit, working=unknown))
