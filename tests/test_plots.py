"""What is drawn against the numbers it is drawn from."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmed as jm
from jaxmed._results.slopes_by_cluster import cluster_slopes, find_route, product_below, varying_routes
from jaxmed.plots._style import thin

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def drawn():
    import matplotlib as mpl

    mpl.use("Agg")
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    return fit, jm.bootstrap(fit, 256, seed=3)


SCHOOLS = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
BOTH = SCHOOLS | {"m": ["motivation", "effort"]}


@pytest.fixture(scope="module")
def moderated():
    return jm.fit(jm.datasets.load_schools(), jm.Mediation(**SCHOOLS, moderators={"climate": ["a"]}))


@pytest.fixture(scope="module")
def parallel():
    random = {"motivation": ["1", "support"], "effort": ["1", "support"], "achievement": ["1", "motivation"]}
    return jm.fit(jm.datasets.load_schools(), jm.Mediation(**BOTH, random=random))


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize("kind", ["percentile", "studentized"])
def test_replicates(drawn, axes, kind):
    """Vertical lines at estimate and limits; the histogram and the density each have area one."""
    _, found = drawn
    assert jm.plots.replicates(found, "total", kind, ax=axes) is axes
    row = found.intervals(kind).loc["total"]
    density, *lines = axes.lines
    at = [line.get_xdata()[0] for line in lines]
    np.testing.assert_allclose(at, row[["estimate", "ci_lower", "ci_upper"]].astype(float))
    area = sum(bar.get_height() * bar.get_width() for bar in axes.patches)
    assert area == pytest.approx(1.0)
    assert np.trapezoid(density.get_ydata(), density.get_xdata()) == pytest.approx(1.0, abs=0.02)  # tails cut
    assert axes.get_xlabel() == "total"


def test_convergence(drawn, axes):
    """The last point of each line is the limit of all replicates, the band two Monte Carlo errors to both sides."""
    fit, found = drawn
    jm.plots.convergence(found, "indirect", "bca", fit=fit, ax=axes)
    row = found.intervals("bca").loc["indirect"]
    lower, upper, _ = axes.lines
    assert lower.get_ydata()[-1] == pytest.approx(row["ci_lower"])
    assert upper.get_ydata()[-1] == pytest.approx(row["ci_upper"])
    assert lower.get_xdata()[-1] == len(found)
    band = axes.collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == len(found), 1]
    assert at_end.max() - at_end.min() == pytest.approx(4 * row["ci_lower_mcse"])


def test_refusals(drawn, axes):
    _, found = drawn
    with pytest.raises(jm.SpecError, match="choose 'effects'"):
        jm.plots.replicates(found, "ab", ax=axes)
    with pytest.raises(jm.SpecError, match="kind='bcb'"):
        jm.plots.replicates(found, kind="bcb", ax=axes)


# Path diagram --------------------------------------------------------------------------------------------------------


def drawn_texts(axes):
    return [text.get_text() for text in axes.texts]


def test_path_diagram(drawn, axes):
    """Boxes of x, m, y; on each arrow the path with its interval; a dot per path that varies."""
    fit, _ = drawn
    assert jm.plots.path_diagram(fit, ax=axes) is axes
    texts, effects = drawn_texts(axes), fit.effects().round(3)
    assert texts[:3] == ["x", "m", "y"]
    for name, path in {"a": "a", "b": "b", "c′": "c_prime"}.items():
        row = effects.loc[path]
        expected = f"{name} = {row['estimate']:.3f}\n[{row['ci_lower']:.3f}, {row['ci_upper']:.3f}]"
        assert texts.count(expected) == 1
    row = effects.loc["indirect"]
    assert f"indirect = {row['estimate']:.3f} [{row['ci_lower']:.3f}, {row['ci_upper']:.3f}]" in texts[-1].split("\n")
    kinds = [type(patch).__name__ for patch in axes.patches]
    assert (kinds.count("FancyBboxPatch"), kinds.count("FancyArrowPatch"), len(axes.lines)) == (3, 3, 3)


def test_path_diagram_of_two_mediators(parallel, axes):
    """b of effort and c' do not vary, so that three of five paths have a dot."""
    jm.plots.path_diagram(parallel, 0.9, ax=axes)
    texts, row = drawn_texts(axes), parallel.effects(level=0.9).loc["b_effort"]
    assert texts[:4] == ["support", "motivation", "effort", "achievement"]
    assert f"b = {row['estimate']:.3f}\n[{row['ci_lower']:.3f}, {row['ci_upper']:.3f}]" in texts
    assert len(axes.lines) == 3


def test_path_diagram_of_moderated_paths(moderated, axes):
    """A dashed box and arrow more, and the path at the value that the note names."""
    jm.plots.path_diagram(moderated, at={"climate": 1.0}, ax=axes)
    row = moderated.effects(at={"climate": 1.0}).loc[("a", 1.0)]
    texts = drawn_texts(axes)
    assert f"a = {row['estimate']:.3f}\n[{row['ci_lower']:.3f}, {row['ci_upper']:.3f}]" in texts
    assert "climate" in texts
    assert texts[-1].startswith("at climate = 1:\n")
    dashed = [patch for patch in axes.patches if patch.get_linestyle() == "--"]
    assert [type(patch).__name__ for patch in dashed] == ["FancyBboxPatch", "FancyArrowPatch"]


def test_no_path_diagram_of_a_system(axes):
    system = jm.System([jm.Equation("y", ["1", "x"], random=["1"])], cluster="id")
    with pytest.raises(jm.FitError, match="this fit is of a System"):
        jm.plots.path_diagram(jm.fit(jm.datasets.load_example(), system), ax=axes)


# Clusters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", [0.0, 0.11, -0.15])
def test_distribution_of_a_product(covariance):
    """Against numerical integration of the bivariate density where ab <= v (tolerance: that of 4e6 draws)."""
    mean, matrix = np.array([0.6, -0.3]), np.array([[0.16, covariance], [covariance, 0.2]])
    draws = np.random.default_rng(1).multivariate_normal(mean, matrix, 4_000_000).prod(axis=1)
    values = np.array([-1.0, -0.2, 0.0, 0.05, 0.4])
    found = product_below(mean, matrix, values)
    np.testing.assert_allclose(found, [(draws <= v).mean() for v in values], atol=1.2e-3)
    positive = stats.multivariate_normal(-mean, matrix).cdf([0, 0]) + stats.multivariate_normal(mean, matrix).cdf(
        [0, 0]
    )
    assert 1 - found[2] == pytest.approx(positive, abs=1e-5)


def test_distribution_of_a_product_with_a_fixed_slope():
    found = product_below(np.array([0.5, -2.0]), np.diag([0.04, 0.0]), np.array([-1.0, -0.6]))
    np.testing.assert_allclose(found, [0.5, stats.norm.cdf(1.0)])


def test_cluster_effects(drawn, axes):
    """Bars have the area one; the curve is the density of a_j b_j of draws from the fitted means and G."""
    fit, _ = drawn
    jm.plots.cluster_effects(fit, ax=axes)
    assert sum(bar.get_height() * bar.get_width() for bar in axes.patches) == pytest.approx(1.0)
    at, curve = axes.lines[0].get_data()
    width = at[1] - at[0]
    assert curve.sum() * width == pytest.approx(1.0, abs=0.01)  # tails beyond 3.5 sd are cut
    labels = ["m~x", "y~m"]
    rng, g = np.random.default_rng(1), fit.random_cov.loc[labels, labels]
    draws = rng.multivariate_normal(fit.params[labels], g, 1_000_000).prod(axis=1)
    inside = draws[(draws > at[0]) & (draws < at[-1])]
    assert np.sum(at * curve) / curve.sum() == pytest.approx(inside.mean(), abs=2e-3)
    assert np.sum(at**2 * curve) / curve.sum() == pytest.approx((inside**2).mean(), abs=5e-3)
    assert axes.lines[1].get_xdata()[0] == pytest.approx(fit.effects().loc["indirect", "estimate"])
    share = curve[at > 0].sum() * width
    assert share == pytest.approx(fit.heterogeneity().loc["share_indirect_positive", "estimate"], abs=0.01)


def test_population_under_a_moderator_of_clusters(moderated):
    """The mean of the mixture is the effect at the mean of climate over clusters: it is linear in climate."""
    route = find_route(moderated, None)
    found = cluster_slopes(moderated, route)
    means = moderated.moments.constants["climate"]
    at = moderated.effects(at={"climate": [float(means.mean())]})
    np.testing.assert_allclose(found.centre, at.loc[["a", "b"], "estimate"])
    assert found.spread[0, 0] > moderated.random_cov.iloc[1, 1]  # climate spreads the slopes further


def test_routes_are_named(parallel, axes):
    assert [route.effect for route in varying_routes(parallel)] == ["indirect_motivation", "indirect_effort"]
    jm.plots.cluster_effects(parallel, "indirect_effort", ax=axes)
    assert axes.get_xlabel() == "indirect effect (effort) of a cluster"
    with pytest.raises(jm.SpecError, match="the indirect effects that vary between clusters are"):
        jm.plots.cluster_effects(parallel, "indirect", ax=axes)
    with pytest.raises(jm.FitError, match="'b_effort' does not vary between clusters"):
        jm.plots.slopes(parallel, "indirect_effort", ax=axes)


def test_serial_chain(axes):
    """Of three slopes the curve is from draws: area one, mean that of the effect (tolerance of 20,000 draws)."""
    random = {"motivation": ["1", "support"], "effort": ["1", "motivation"], "achievement": ["1", "effort"]}
    spec = jm.Mediation(**BOTH, serial=True, random=random)
    fit = jm.fit(jm.datasets.load_schools(), spec)
    jm.plots.cluster_effects(fit, "indirect_motivation_effort", ax=axes)
    at, curve = axes.lines[0].get_data()
    width = at[1] - at[0]
    estimate = fit.effects().loc["indirect_motivation_effort", "estimate"]
    assert curve.sum() * width == pytest.approx(1.0, abs=0.02)
    assert np.sum(at * curve) * width == pytest.approx(estimate, abs=0.004)
    with pytest.raises(jm.FitError, match="has 3 slopes along its way"):
        jm.plots.slopes(fit, "indirect_motivation_effort", ax=axes)


def test_caterpillar(drawn, axes):
    """One segment a cluster, in order, from estimate - z se to estimate + z se."""
    fit, _ = drawn
    jm.plots.caterpillar(fit, "m~x", 0.9, ax=axes)
    table = fit.ranef().sort_values("m~x")
    segments = np.concatenate([lines.get_segments() for lines in axes.collections])
    segments = segments[segments[:, 0, 0].argsort()]
    z = stats.norm.ppf(0.95)
    np.testing.assert_allclose(segments[:, 0, 1], table["m~x"] - z * table["m~x_se"])
    np.testing.assert_allclose(segments[:, 1, 1], table["m~x"] + z * table["m~x_se"])
    holds, excludes = (len(lines.get_segments()) for lines in axes.collections)
    assert excludes == (table["m~x"].abs() > z * table["m~x_se"]).sum()
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == [
        f"90% interval holds 0 ({holds})",
        f"90% interval excludes 0 ({excludes})",
    ]
    with pytest.raises(jm.SpecError, match="term='d': choose one of"):
        jm.plots.caterpillar(fit, "d", ax=axes)


def test_slopes(drawn, axes):
    """Points are the predictions; of G's ellipse the radius is that of 95% in G's own metric."""
    fit, _ = drawn
    jm.plots.slopes(fit, ax=axes)
    predicted = fit.ranef()[["a", "b"]]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), predicted)
    radius = stats.chi2(2).ppf(0.95)
    labels = ["m~x", "y~m"]
    g = fit.random_cov.loc[labels, labels].to_numpy()
    for line, centre, matrix in (
        (axes.lines[0], predicted.mean().to_numpy(), predicted.cov().to_numpy()),
        (axes.lines[1], fit.params[labels].to_numpy(), g),
    ):
        apart = np.stack(line.get_data()).T - centre
        np.testing.assert_allclose(np.sum(apart @ np.linalg.inv(matrix) * apart, axis=1), radius)
    r = g[0, 1] / np.sqrt(g[0, 0] * g[1, 1])
    assert axes.get_legend().get_texts()[2].get_text() == f"95% of the population, r = {r:.2f}"


@pytest.mark.parametrize(("outcome", "predictor"), [("m", "x"), ("y", "m")])
def test_cluster_lines(drawn, axes, outcome, predictor):
    """Every line has its cluster's slope and passes through fitted values at the cluster's means."""
    fit, _ = drawn
    jm.plots.cluster_lines(fit, outcome, predictor, ax=axes)
    segments = np.array(axes.collections[0].get_segments())
    rise = np.diff(segments, axis=1)[:, 0]
    table = fit.ranef()
    np.testing.assert_allclose(rise[:, 1] / rise[:, 0], table[{"m": "a", "y": "b"}[outcome]], rtol=1e-9)
    rows = jm.datasets.load_example()
    means = rows.groupby("id").mean()
    value = sum(
        (fit.params[f"{outcome}~{name}"] + table[f"{outcome}~{name}"]) * (1.0 if name == "1" else means[name])
        for name in fit.system.equations[["m", "y"].index(outcome)].predictors
    )
    at = (means[predictor] - segments[:, 0, 0]) / rise[:, 0]
    np.testing.assert_allclose(segments[:, 0, 1] + at * rise[:, 1], value)
    (low, high), average = axes.lines[0].get_data()
    assert (low, high) == (rows[predictor].min(), rows[predictor].max())
    assert np.diff(average)[0] / (high - low) == pytest.approx(fit.params[f"{outcome}~{predictor}"])
    with pytest.raises(jm.SpecError, match=r"the outcomes of this fit are \['m', 'y'\]"):
        jm.plots.cluster_lines(fit, "x", "m", ax=axes)


def test_quantiles(drawn, axes):
    """Points: u_j / sqrt(G - se^2) in order, at Blom's quantiles; the band has the level at each order statistic."""
    fit, _ = drawn
    jm.plots.quantiles(fit, "y~m", ax=axes)
    table = fit.ranef()
    standardized = np.sort(table["y~m"] / np.sqrt(fit.random_cov.loc["y~m", "y~m"] - table["y~m_se"] ** 2))
    at, value = axes.lines[1].get_data()
    np.testing.assert_allclose(value, standardized)
    np.testing.assert_allclose(at, stats.norm.ppf((np.arange(1, 101) - 0.375) / 100.25))
    edge = axes.collections[0].get_paths()[0].vertices
    first = np.unique(edge[edge[:, 0] == at[0], 1].round(10))
    np.testing.assert_allclose(first, stats.norm.ppf(stats.beta(1, 100).ppf([0.025, 0.975])), rtol=1e-8)


def test_influence(axes):
    """Every cluster is a point, the most influential are named."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame(
        {"indirect": rng.normal(size=40), "cook": rng.exponential(size=40)}, index=[f"s{k}" for k in range(40)]
    )
    jm.plots.influence(table, "indirect", 3, ax=axes)
    points = np.concatenate([part.get_offsets() for part in axes.collections])
    np.testing.assert_allclose(points[points[:, 1].argsort()], table.sort_values("cook").to_numpy())
    assert drawn_texts(axes) == list(table["cook"].nlargest(3).index)
    with pytest.raises(jm.SpecError, match="the table has no column 'cook'"):
        jm.plots.influence(table[["indirect"]], ax=axes)


def test_many_clusters_are_thinned():
    kept = thin(10_000)
    assert (len(kept), kept[0], kept[-1]) == (300, 0, 9_999)
    assert thin(7).tolist() == list(range(7))


# Moderators ----------------------------------------------------------------------------------------------------------


def test_conditional(moderated, axes):
    """The curve is the effect at each value; the band's edges are its limits; the region ends where a limit is zero."""
    jm.plots.conditional(moderated, "climate", ax=axes)
    regions = jm.johnson_neyman(moderated, "climate")
    (limit,) = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert limit == pytest.approx(regions.loc[0, "lower"])
    at_limit = moderated.effects(at={"climate": [float(limit)]}).loc["indirect"].iloc[0]
    assert at_limit["ci_lower"] == pytest.approx(0.0, abs=1e-8)
    curve = next(line for line in axes.lines if len(line.get_xdata()) == 101)
    chosen = [0, 40, 100]
    found = moderated.effects(at={"climate": curve.get_xdata()[chosen].tolist()}).loc["indirect"]
    np.testing.assert_allclose(curve.get_ydata()[chosen], found["estimate"])
    edge = axes.collections[0].get_paths()[0].vertices
    for value, row in zip(curve.get_xdata()[chosen], found.itertuples(), strict=True):
        own = edge[edge[:, 0] == value, 1]
        np.testing.assert_allclose([own.min(), own.max()], [row.ci_lower, row.ci_upper])
    inner = axes.collections[1].get_paths()[0].vertices
    assert inner[:, 0].min() == pytest.approx(limit)


def test_regions_on_both_sides(moderated):
    """An effect that changes sign differs from zero on two sides: the difference from zero of a by itself, shifted."""
    regions = jm.johnson_neyman(moderated, "climate", "a", level=0.5)
    low, high = moderated.sample_summary.ranges["climate"]
    assert (regions["upper"] <= high).all()
    assert (regions["lower"] >= low).all()
    for limit in regions[["lower", "upper"]].to_numpy().ravel():
        row = moderated.effects(level=0.5, at={"climate": [float(limit)]}).loc["a"].iloc[0]
        inside = limit in (low, high)
        assert inside or min(abs(row["ci_lower"]), abs(row["ci_upper"])) < 1e-8


def test_refusals_of_moderators(drawn, moderated):
    with pytest.raises(jm.SpecError, match=r"the moderators of this fit that are numbers are \[\]"):
        jm.johnson_neyman(drawn[0], "x")
    with pytest.raises(jm.SpecError, match="effect='ab': the effects of this fit are"):
        jm.johnson_neyman(moderated, "climate", "ab")


def test_names_with_dollars_are_no_formulas(axes):
    data = jm.datasets.load_example().rename(columns={"x": "in$come$", "m": "m_1", "y": "<y>"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = jm.fit(data, jm.Mediation(x="in$come$", m="m_1", y="<y>", cluster="id"))
        jm.plots.path_diagram(fit, ax=axes)
        axes.figure.canvas.draw()
    assert drawn_texts(axes)[0] == r"in\$come\$"


@pytest.fixture(scope="module")
def flat():
    """Balanced data with cluster means: the data do not tell some parameters apart."""
    with pytest.warns(jm.ConvergenceWarning, match="not identified: the likelihood is flat in"):
        return jm.fit(
            jm.datasets.load_example(), jm.Mediation("x", "m", "y", "id", center="cluster", intercepts="correlated")
        )


def test_a_flat_fit_shows_what_it_knows(flat, tmp_path):
    """Numbers of what the data tell, nothing of what they do not, and no warning of another library."""
    error = flat.effects()["se"]
    unknown = list(error.index[error.isna()])
    changes = flat.influence()
    assert changes.columns[changes.isna().all()].tolist() == unknown
    assert changes.drop(columns=unknown).notna().all().all()
    jm.report(flat, tmp_path / "flat.html")
    page = (tmp_path / "flat.html").read_text(encoding="utf-8")
    assert page.count("the likelihood is flat in") == 2  # at the top too
    assert "There is no test of all: some of them are not identified." in page
    assert "not available, because the fit is flat" in page
    assert re.search(r"The average indirect effect \(between\) is [0-9.]+, without a standard error: these data", page)
    assert "The likelihood was flat in" in page  # the paragraph for a paper
    assert re.search("Wald test of all fixed effects.{,60}not available", page)
    assert "= nan" not in page
    assert "+nan" not in page
    assert not any("[, ]" in text.get_text() for text in jm.plots.path_diagram(flat).texts)
    assert jm.plots.influence(changes).get_xlabel() == "what the cluster adds to indirect_within"
    with pytest.warns(jm.ConvergenceWarning, match="replicates say nothing of what the fit does not know"):
        replicates = jm.bootstrap(flat, 100, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.ConvergenceWarning)
        assert jm.plots.replicates(replicates).get_xlabel() == "indirect_within"
        for kind in ("percentile", "basic", "bc", "bca", "studentized"):
            table = replicates.intervals(kind)
            assert table.loc[unknown, ["se", "ci_lower", "ci_upper"]].isna().all(axis=None)
            assert table.loc[error.index[error > 0], ["ci_lower", "ci_upper"]].notna().all(axis=None)
        with pytest.raises(jm.JaxmedError):
            jm.plots.replicates(replicates, "nothing")
    assert "no test, since some of these are not identified" in str(jm.conflation(flat))
    with pytest.raises(jm.FitError, match="no degrees of freedom of its standard errors"):
        flat.satterthwaite()
    assert "Hessian positive definite" not in flat.message
    assert "cov(m~1,y~1)" in flat.message


@pytest.mark.parametrize("plot", ["replicates", "convergence", "influence", "power", "coverage", "path_diagram"])
@pytest.mark.parametrize("given", [None, 3, "fit"])
def test_plots_of_something_else(plot, given):
    with pytest.raises(jm.SpecError, match=r"must be .*; got "):
        getattr(jm.plots, plot)(given)
