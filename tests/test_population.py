"""Populations: numbers by name, defaults, standardised effects, what a fit estimates; and data drawn from them.

Witnesses: moments of large draws against the population's own numbers (bounds of four or five standard errors, which
the test computes); closed forms; NumPy's own estimators of variance components.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmed as jm
from jaxmed._simulation.cluster_sizes import check_size, draw_sizes, size_text
from jaxmed._simulation.population import as_population
from jaxmed._simulation.simulation import draw, shaped
from jaxmed._support.arrays import lower_root

MODEL = jm.Mediation(x="x", m="m", y="y", cluster="id")
SYSTEM = jm.System(
    [jm.Equation("y", ["1", "m", "x", "w"], ["1", "m"]), jm.Equation("m", ["1", "x"], ["1", "x"])], cluster="g"
)


# Numbers -------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_population_of_bauer():
    population = jm.Population()
    assert population.effects().round(12).to_dict() == {
        "a": 0.6,
        "b": 0.6,
        "c_prime": 0.2,
        "cov_ab": 0.113,
        "indirect": 0.473,
        "total": 0.673,
    }
    assert np.diag(population.random_cov).tolist() == [0.6, 0.16, 0.4, 0.16, 0.04]
    assert population.random_cov.loc["m~x", "y~m"] == 0.113
    assert np.diag(population.residual_cov).tolist() == [0.65, 0.45]
    assert (population.between[0, 0], population.within[0, 0]) == (1.0, 1.0)


def test_names_labels_and_short_names():
    numbers = {"m~x": 0.1, "y~m~~m~x": 0.02, "residual_var_y": 0.7, "intercept_var_m": 0.5, "intercept_y": 3.0}
    population = jm.Population(None, numbers, b=0.2, var_a=0.3, icc_x=0.25, sd_x=2.0, mean_x=-1.0)
    assert population.params.to_dict() == {"m~1": 0.0, "m~x": 0.1, "y~1": 3.0, "y~m": 0.2, "y~x": 0.2}
    assert population.random_cov.loc["m~x", "y~m"] == population.random_cov.loc["y~m", "m~x"] == 0.02
    assert population.random_cov.loc["m~x", "m~x"] == 0.3
    assert population.random_cov.loc["m~1", "m~1"] == 0.5
    assert population.residual_cov.loc["y", "y"] == 0.7
    assert (population.between[0, 0], population.within[0, 0], population.means[0]) == (1.0, 3.0, -1.0)
    other = population.replace(a=0.4, icc_x=0.5)
    assert (other.params["m~x"], other.between[0, 0], population.params["m~x"]) == (0.4, 2.0, 0.1)


def test_several_mediators_have_their_own_names():
    model = jm.Mediation(x="x", m=["p", "q"], y="y", cluster="id", serial=True)
    effects = jm.Population(model, a_p=0.5, d_p_q=0.4, b_q=0.3, cov_ab_p=0.0).effects()
    assert effects[["a_p", "a_q", "d_p_q", "b_q", "cov_ab_p", "cov_ab_q"]].tolist() == [0.5, 0.6, 0.4, 0.3, 0, 0.113]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q": 1.0}, r"this population has no 'q'; there are"),
        ({"c_prim": 1.0}, r"did you mean 'c_prime'"),
        ({"a": 1.0, "m~x": 2.0}, r"'m~x' and 'a' are the same"),
        ({"a": float("nan")}, r"a=nan must be a finite number"),
        ({"a": "0.3"}, r"a='0.3' must be a finite number"),
        ({"a": True}, r"a=True must be a finite number"),
        ({"cov_ab": 0.3}, r"covariances of the random effects are larger than their variances allow"),
        ({"var_a": -1.0}, r"the variance of 'm~x' is negative \(-1\)"),
        ({"residual_var_m": 0.0}, r"residual variance of 'm' must be above 0"),
        ({"icc_x": 1.5}, r"icc_x=1.5 is an intraclass correlation, from 0 to 1"),
        ({"sd_x": 0.0}, r"sd_x=0.0 must be above 0"),
        ({"share_x": 1.0}, r"share_x=1.0 must lie between 0 and 1"),
        ({"share_x": 0.5, "mean_x": 5}, r"'x' takes two values in shares \(share_x\); leave out 'mean_x'"),
    ],
)
def test_numbers_refused(given, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.Population(None, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"random_effects": "odd"}, r"random_effects='odd' is not known; choose one of \['normal', 'skewed'"),
        ({"residuals": "odd"}, r"residuals='odd' is not known"),
        ({"clusters": 0}, r"clusters=0 must be a whole number"),
        ({"size": 0}, r"size=0 is not understood; give a whole number of rows"),
        ({"cluster_level": 5}, r"cluster_level must be a list of column names"),
        ({"cluster_level": ["z"]}, r"cluster_level names 'z'; the columns of the model are"),
        ({"spec": "m ~ x"}, r"must be a jaxmed.Mediation or jaxmed.System"),
        (
            {"spec": jm.Mediation(x="x", m="m", y="y", cluster="id", covariates=["s"], reference={"s": "A"})},
            r"'s' is categorical, and a population has no categories",
        ),
    ],
)
def test_options_refused(given, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.Population(**given)


def test_whether_a_column_is_of_the_cluster_belongs_to_the_model():
    with pytest.raises(jm.SpecError, match=r"whether 'x' varies within clusters is part of the model"):
        jm.Population().replace(icc_x=1)
    design = jm.Population(icc_x=1)
    assert design.system.random_labels == ("m~1", "y~1", "y~within(m)")
    with pytest.raises(jm.SpecError, match=r"a population is a jaxmed\.Population, a fit or a dict"):
        as_population(3)


# Draws ---------------------------------------------------------------------------------------------------------------


def agrees(values, expected, errors=5):
    """The mean of independent values is what is expected, to some standard errors."""
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < errors * error


@pytest.mark.parametrize(("shape", "skewness", "kurtosis"), [("skewed", 2.0, 6.0), ("heavy_tailed", 0.0, 6.0)])
def test_shapes(shape, skewness, kurtosis):
    """Against the quadrature of the transformed normal density; both kurtoses are 6 in closed form."""
    normal = np.linspace(-12, 12, 2_000_001)
    weight = stats.norm.pdf(normal) * (normal[1] - normal[0])
    value = shaped(normal, shape)
    assert np.all(np.diff(value) >= 0)
    moments = [float(weight @ value**k) for k in range(1, 5)]
    assert moments[0] == pytest.approx(0, abs=1e-8)
    assert moments[1] == pytest.approx(1, abs=1e-6)
    assert moments[2] == pytest.approx(skewness, abs=1e-4)
    assert moments[3] - 3 == pytest.approx(kurtosis, rel=0.01 if shape == "heavy_tailed" else 1e-6)  # heavy tails end


def test_quantiles_of_shapes():
    probability = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
    normal = stats.norm.ppf(probability)
    assert shaped(normal, "skewed") == pytest.approx(stats.expon.ppf(probability) - 1, rel=1e-9)
    assert shaped(normal, "heavy_tailed") == pytest.approx(stats.t.ppf(probability, 5) / np.sqrt(5 / 3), abs=1e-9)


@pytest.mark.parametrize("shape", ["skewed", "heavy_tailed"])
def test_other_distributions_keep_the_covariances(shape):
    """Slopes of m on x by cluster, with so many rows that they are nearly a_j, and cov(a_j, b_j) through E[a_j b_j]."""
    population = jm.Population(random_effects=shape, residuals=shape, residual_var_m=1e-6, residual_var_y=1e-6, icc_x=0)
    columns, cluster = draw(population, 4000, 12, 5)
    x, m, y = (columns[name].reshape(4000, 12) for name in "xmy")
    a, b = np.empty(4000), np.empty(4000)
    for j in range(4000):
        ones = np.ones(12)
        a[j] = np.linalg.lstsq(np.column_stack([ones, x[j]]), m[j], rcond=None)[0][1]
        # m is nearly a line in x: what is left of it is the residual, the only way to b.
        b[j] = np.linalg.lstsq(np.column_stack([ones, m[j], x[j]]), y[j], rcond=None)[0][1]
    agrees(a, 0.6)
    agrees((a - 0.6) ** 2, 0.16)
    keep = np.abs(b - 0.6) < 5
    assert keep.mean() > 0.99
    agrees(((a - 0.6) * (b - 0.6))[keep], 0.113)
    if shape == "skewed":
        assert stats.skew(a) == pytest.approx(2, abs=0.5)
    assert np.all(cluster == np.repeat(np.arange(4000), 12))


def test_standardised_populations_have_unit_variances():
    """x, m, y have variance one, with random slopes that covary: 30,000 clusters, cluster means of squares."""
    population = jm.Population.standardized(0.4, 0.3, 0.2, sd_a=0.3, sd_b=0.25, sd_c_prime=0.1, corr_ab=0.6)
    columns, _ = draw(population, 30_000, 4, 3)
    for name in "xmy":
        agrees((columns[name].reshape(-1, 4) ** 2).mean(axis=1), 1.0)
    assert population.effects()["cov_ab"] == pytest.approx(0.6 * 0.3 * 0.25)
    product = columns["x"].reshape(-1, 4) @ np.ones(4) / 4
    agrees((product**2), 0.2 + 0.8 / 4)  # icc_x = .2


def test_a_standardised_slope_that_does_not_vary_is_fixed_in_the_model():
    population = jm.Population.standardized(a=0.3, b=0.3, sd_a=0, icc_m=0)
    assert population.system.random_labels == ("y~1", "y~m")
    assert population.spec.to_dict()["random"] == {"m": [], "y": ["1", "m"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 1.0, "b": 0.1}, "explain 1.040 of a variance of m of one"),
        ({"a": 0.5, "b": 0.9, "c_prime": 0.5}, "of a variance of y of one; make them smaller"),
        ({"a": 0.1, "b": 0.1, "icc_m": 1.0}, "icc_m=1.0 must be a share from 0 to below 1"),
        ({"a": 0.1, "b": 0.1, "sd_a": -0.1}, "sd_a=-0.1 must not be negative"),
        ({"a": 0.1, "b": 0.1, "corr_ab": 2}, "corr_ab=2 must lie between -1 and 1"),
        ({"a": "x", "b": 0.1}, "a='x' must be a number from -1e6 to 1e6"),
        ({"a": 0.1, "b": 0.1, "sd_a": 1e308}, r"sd_a=1e\+308 must be a number from -1e6 to 1e6"),
    ],
)
def test_standardised_numbers_refused(given, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.Population.standardized(**given)


def test_columns_of_two_values_and_of_the_cluster():
    population = jm.Population(SYSTEM, share_w=0.3, icc_w=1, share_x=0.6, icc_x=0.2)
    columns, cluster = draw(population, 8000, 5, 1)
    w, x = columns["w"].reshape(8000, 5), columns["x"].reshape(8000, 5)
    assert set(np.unique(w)) == set(np.unique(x)) == {0.0, 1.0}
    assert np.all(w == w[:, :1])
    agrees(w[:, 0], 0.3)
    agrees(x.mean(axis=1), 0.6)
    assert population.facts.cluster_level == {"w"}
    assert x.mean(axis=1).var() > 1.2 * 0.24 / 5  # more alike within clusters than independent draws
    assert len(cluster) == 40_000


def test_equations_may_come_in_any_order():
    """y is written before m, on which it depends."""
    data = jm.simulate(jm.Population(SYSTEM, {"m~x": 0.5, "y~m": 0.8}), clusters=4000, size=4, seed=2)
    total = np.cov(data["x"], data["y"])
    assert total[0, 1] / total[0, 0] == pytest.approx(0.4, abs=0.03)


def test_the_lower_root_of_singular_matrices():
    rng = np.random.default_rng(0)
    half = rng.standard_normal((5, 3))
    matrix = half @ half.T
    matrix[2] = matrix[:, 2] = 0
    root = lower_root(matrix)
    assert np.allclose(root @ root.T, matrix, atol=1e-12)
    assert np.all(np.triu(root, 1) == 0)


# Of a fit ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schools():
    spec = jm.Mediation(
        x="support", m="motivation", y="achievement", cluster="school", moderators={"climate": ["a"]},
        covariates=["age", "training"],
    )  # fmt: skip
    return jm.fit(jm.datasets.load_schools(), spec)


def test_the_population_of_a_fit(schools):
    """Variance components by NumPy from the rows; estimates, sizes and two-valued columns as they are."""
    population = jm.Population.from_fit(schools)
    assert population.values == pytest.approx(schools.values, rel=1e-9)  # ten digits
    data = jm.datasets.load_schools()
    sizes = data["school"].value_counts(sort=False).sort_index()
    assert population.clusters == 90
    assert population.size == sizes.tolist()
    low, high, share = population.two_valued["training"]
    assert (low, high, share) == (0.0, 1.0, pytest.approx(data["training"].mean(), abs=1e-9))
    names = list(population.columns)
    x = data["support"].to_numpy()
    means = data.groupby("school")["support"].mean()
    within = ((x - means[data["school"]].to_numpy()) ** 2).sum() / (len(x) - 90)
    even = (len(x) - (sizes**2).sum() / len(x)) / 89
    between = ((sizes * (means - x.mean()) ** 2).sum() / 89 - within) / even
    at = names.index("support")
    assert population.within[at, at] == pytest.approx(within, rel=1e-9)
    assert population.between[at, at] == pytest.approx(between, rel=1e-9)
    assert population.means[at] == pytest.approx(x.mean(), rel=1e-9)
    of_school = names.index("climate")
    assert population.within[of_school].tolist() == [0.0] * len(names)
    assert population.facts.cluster_level == {"climate", "training"}


def test_data_of_a_fit_give_it_back(schools):
    """Ten times the clusters: every fixed effect within five of its standard errors of the fit's."""
    data = jm.simulate(schools, clusters=900, seed=4)
    again = jm.fit(data, schools.spec)
    assert np.all(np.abs(again.params - schools.params) < 5 * again.bse)
    assert data["school"].value_counts().between(6, 16).all()
    effects = jm.Population.from_fit(schools).effects(at={"climate": [0.5]})
    expected = schools.effects(at={"climate": [0.5]})["estimate"]
    assert effects.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-8)


# Sizes and calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "distribution"),
    [
        ({"poisson": 8}, stats.poisson(7, loc=1)),
        ({"uniform": [4, 12]}, stats.randint(4, 13)),
        ({"negative_binomial": [8, 6]}, stats.nbinom(49 / 29, 49 / 29 / (49 / 29 + 7), loc=1)),
        ([2, 2, 9], None),
    ],
)
def test_sizes_follow_their_distribution(size, distribution):
    """Equal steps of the uniform numbers: shares are the distribution's to 1e-5 of SciPy's."""
    size = check_size(size)
    uniform = (np.arange(200_000) + 0.5) / 200_000
    drawn = draw_sizes(size, uniform)
    if distribution is None:
        assert np.bincount(drawn)[[2, 9]].tolist() == pytest.approx([200_000 * 2 / 3, 200_000 / 3], abs=2)
        return
    shares = np.bincount(drawn, minlength=30)[:30] / len(drawn)
    assert shares == pytest.approx(distribution.pmf(np.arange(30)), abs=1e-5)
    assert drawn.var() == pytest.approx(distribution.var(), rel=1e-3)


@pytest.mark.parametrize(
    "size",
    [0, -1, 2.5, True, "8", [], [3, 0], {"poisson": 1}, {"poisson": [3, 4]}, {"uniform": [5, 4]}, {"odd": 3}, {},
     np.array("x"), np.array([[2]]),
     {"negative_binomial": 8}, {"uniform": [2.5, 4]}, {"poisson": float("nan")}, {"poisson": 2, "uniform": [1, 2]}],
)  # fmt: skip
def test_sizes_refused(size):
    with pytest.raises(jm.SpecError, match=r"size=.* is not understood; give a whole number of rows"):
        check_size(size)
    with pytest.raises(jm.SpecError, match="the sd of a negative binomial is above that of a Poisson"):
        check_size({"negative_binomial": [8, 2]})


def test_sizes_in_words():
    assert [size_text(check_size(size)) for size in (8, {"poisson": 8.5}, {"uniform": [4, 12]}, [3, 5])] == [
        8,
        "poisson(8.5)",
        "uniform(4, 12)",
        "3-5 (list of 2)",
    ]


def test_rows_or_moments():
    rows = jm.simulate({"a": 0.3}, clusters=30, size={"poisson": 6}, seed=4)
    moments = jm.simulate({"a": 0.3}, clusters=30, size={"poisson": 6}, seed=4, moments=True)
    assert moments.n_clusters == 30
    assert moments.sample_summary.rows == len(rows)
    expected = rows["id"].value_counts(sort=False).sort_index()
    assert moments.sums("x")[0].tolist() == expected.tolist()
    pd.testing.assert_frame_equal(rows, jm.simulate(jm.Population(a=0.3), clusters=30, size={"poisson": 6}, seed=4))


def test_two_two_one():
    data = jm.simulate(jm.Population(icc_x=1, cluster_level=["m"]), clusters=50, size=3, seed=1)
    assert data.groupby("id")[["x", "m"]].nunique().eq(1).all(axis=None)
    assert data.groupby("id")["y"].nunique().eq(3).all()


def test_draws_do_not_depend_on_the_linear_algebra_library(monkeypatch):
    """Signs of eigenvectors, and all of them where eigenvalues are equal, are the choice of the machine's library."""

    def unused(*args, **kwargs):
        raise AssertionError("a factorisation of the machine's library")

    monkeypatch.setattr(np.linalg, "eigh", unused)
    monkeypatch.setattr(np.linalg, "svd", unused)
    monkeypatch.setattr(np.linalg, "cholesky", unused)
    jm.simulate(clusters=3, size=2, seed=1)


@pytest.mark.parametrize("shape", ["skewed", "heavy_tailed"])
def test_serial_effects_of_populations_that_are_not_normal(shape):
    """E[a_j d_j b_j] against the mean over 4 million drawn clusters, within four of its Monte Carlo errors.

    With slope covariances of .08: .260 of skewed slopes, where normal ones have .228.
    """
    model = jm.Mediation("x", ["m1", "m2"], "y", "id", serial=True)
    slopes = ["m1~x", "m2~m1", "y~m2"]
    covariances = {f"{one}~~{other}": 0.08 for k, one in enumerate(slopes) for other in slopes[k + 1 :]}
    population = jm.Population(model, random_effects=shape).replace(covariances)
    rng = np.random.default_rng(1)
    labels = list(population.random_cov.index)
    size = (len(labels), 4_000_000)
    numbers = rng.exponential(size=size) - 1 if shape == "skewed" else rng.standard_t(5, size) / np.sqrt(5 / 3)
    drawn = np.linalg.cholesky(population.random_cov.to_numpy()) @ numbers
    product = np.prod([population.fixed[label] + drawn[labels.index(label)] for label in slopes], axis=0)
    found = population.effects()
    assert abs(found["indirect_m1_m2"] - product.mean()) < 4 * product.std() / 2000
    assert found["indirect_m1_m2"] == pytest.approx(0.26 if shape == "skewed" else 0.228, abs=5e-4)
    assert found["indirect"] == pytest.approx(found[["indirect_m1", "indirect_m2", "indirect_m1_m2"]].sum(), rel=1e-12)
