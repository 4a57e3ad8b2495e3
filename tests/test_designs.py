"""What the data change about a model: 2-1-1 designs, balanced and categorical predictors, centred outcomes, pairs.

Witnesses: ordinary regression on cluster means and the paired t test, which balanced data must reproduce; indicators
made by hand; simulations without any effect, in which tests at .05 must reject 5% (``pytest -m slow -s`` of this file).
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import jaxmed as jm

ROLES = {"x": "x", "m": "m", "y": "y", "cluster": "id"}
INTERCEPTS = {"m": ["1"], "y": ["1"]}


def ols(x: list[pd.Series], y: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of an ordinary regression with intercept, and their standard errors."""
    design = np.column_stack([np.ones(len(y)), *x])
    beta = np.linalg.lstsq(design, y, rcond=None)[0]
    left = y - design @ beta
    inverse = np.linalg.inv(design.T @ design)
    return beta, np.sqrt(np.diag(inverse) * (left @ left) / (len(y) - design.shape[1]))


def trial(
    seed: int, clusters: int = 60, size: int = 8, a: float = 0.4, b: float = 0.6, within: float = 0.3
) -> pd.DataFrame:
    """A treatment of clusters, and rows whose slope within clusters is another than that between them."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(clusters), size)
    x = (np.arange(clusters) % 2.0)[ids]
    m = a * x + 0.7 * rng.normal(size=clusters)[ids] + rng.normal(size=len(ids))
    mean = pd.Series(m).groupby(ids).transform("mean").to_numpy()
    slope = within + 0.2 * rng.normal(size=clusters)
    y = slope[ids] * (m - mean) + b * mean + 0.5 * rng.normal(size=clusters)[ids] + rng.normal(size=len(ids))
    return pd.DataFrame({"id": ids, "x": x, "m": m, "y": y})


def pairs(
    seed: int, clusters: int = 100, size: int = 2, correlation: float = -0.6, ipsative: bool = False
) -> pd.DataFrame:
    """No effects; rows of one cluster are less alike than others, or sum to zero."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(clusters), size)
    root = np.linalg.cholesky(np.full((size, size), correlation) + (1 - correlation) * np.eye(size))
    m, y = ((rng.normal(size=(clusters, size)) @ root.T).ravel() for _ in range(2))
    frame = pd.DataFrame({"id": ids, "x": np.tile(np.linspace(-0.5, 0.5, size), clusters), "m": m, "y": y})
    if ipsative:
        frame[["m", "y"]] -= frame.groupby("id")[["m", "y"]].transform("mean")
    return frame


def quietly(data: pd.DataFrame, **options) -> jm.Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jm.fit(data, **ROLES | options)


# 2-1-1 -------------------------------------------------------------------------------------------------------------


def test_211_is_regression_on_cluster_means():
    """Estimates to 1e-7, standard errors within 2% (here 1e-4): REML of balanced data; those of products by delta."""
    data = trial(5)
    with pytest.warns(jm.DesignWarning, match="'x' does not vary within clusters") as said:
        fit = jm.fit(data, **ROLES)
    assert "it can move 'm' only between clusters" in str(said[0].message)
    assert "the indirect effect is the path between clusters (center='none'" in str(said[0].message)
    effects = fit.effects()
    assert list(effects.index) == ["a", "b_within", "b_between", "c_prime", "indirect", "total", "contextual_b"]
    assert "indirect: product of the paths between clusters" in fit.summary()
    means = data.groupby("id").mean()
    (_, a), (_, a_se) = ols([means["x"]], means["m"])
    (_, b, c), (_, b_se, c_se) = ols([means["m"], means["x"]], means["y"])
    (_, total), _ = ols([means["x"]], means["y"])
    product_se = np.sqrt(a**2 * b_se**2 + b**2 * a_se**2)
    by_hand = {"a": (a, a_se), "b_between": (b, b_se), "c_prime": (c, c_se), "indirect": (a * b, product_se)}
    for name, (estimate, se) in by_hand.items():
        assert abs(effects.loc[name, "estimate"] - estimate) < 1e-7
        assert abs(effects.loc[name, "se"] / se - 1) < 0.02
    assert abs(effects.loc["total", "estimate"] - total) < 1e-7


def test_211_remedy_gives_the_old_model():
    """center="none", as the note says, is one slope for both levels: its indirect effect is another."""
    data = trial(5)
    old = quietly(data, center="none")
    assert list(old.effects().index) == ["a", "b", "c_prime", "cov_ab", "indirect", "total"]
    assert old.system.labels == ("m~1", "m~x", "y~1", "y~m", "y~x")
    assert old.effects().loc["indirect", "estimate"] < 0.6 * quietly(data).effects().loc["indirect", "estimate"]


def test_211_with_options():
    """Random effects, zeros and moderators named by the mediator's own column mean its part within clusters."""
    data = trial(7).assign(w=lambda d: d["id"] % 3 - 1.0)
    fit = quietly(data, random={"m": ["1"], "y": ["1", "m"]}, zero=[("y~1", "y~m")])
    assert set(fit.system.random_labels) == {"m~1", "y~1", "y~within(m)"}
    assert fit.random_cov.loc["y~1", "y~within(m)"] == 0.0
    moderated = quietly(data, moderators={"w": ["b"]})
    assert {"y~within(m):w", "y~between(m):w"} <= set(moderated.params.index)
    slopes = moderated.effects(at={"w": [-1, 1]}).loc["indirect", "estimate"]
    at = moderated.params["m~x"] * (
        moderated.params["y~between(m)"] + np.array([-1, 1]) * moderated.params["y~between(m):w"]
    )
    np.testing.assert_allclose(slopes, at, rtol=1e-10)


def test_211_serial_and_report(tmp_path):
    """A chain of two mediators runs between clusters along its whole way; reports and plots show it."""
    data = trial(9)
    data["n"] = 0.5 * data["m"] + np.random.default_rng(1).normal(size=len(data))
    fit = quietly(data, m=["m", "n"], serial=True, random={"m": ["1"], "n": ["1"], "y": ["1"]})
    effects = fit.effects()["estimate"]
    assert abs(effects["indirect_m_n"] - effects["a_m"] * effects["d_m_n_between"] * effects["b_n_between"]) < 1e-12
    assert abs(effects["total"] - effects["indirect"] - effects["c_prime"]) < 1e-12
    jm.report(quietly(data), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Paths within and between clusters differ" in text
    assert "read the effects of each level by itself" in text
    assert "(2-1-1)" in text


def test_centred_mediator_of_a_treated_cluster():
    """x of the cluster cannot move what has the same mean in every cluster: refused, and the remedy works."""
    data = trial(3)
    centred = data.assign(m=data["m"] - data.groupby("id")["m"].transform("mean"))
    with pytest.raises(jm.DataError, match=r"'x' cannot move it\. Use 'm' as it was before it was centred"):
        jm.fit(centred, **ROLES)
    assert quietly(data).converged


# Balanced and categorical predictors -------------------------------------------------------------------------------


def test_balanced_condition():
    """A condition with the same share in every cluster has no effects between: left out with a note, not refused."""
    data = jm.datasets.load_example().assign(x=lambda d: d.groupby("id").cumcount() % 2.0)
    with pytest.warns(jm.DesignWarning, match="'x' has the same mean in every cluster: it has no effects between"):
        fit = jm.fit(data, **ROLES, center="cluster")
    assert "m~between(x)" not in fit.params.index
    assert "y~between(m)" in fit.params.index
    names = list(fit.effects().index)
    assert "indirect_within" in names
    assert "b_between" in names
    assert "indirect_between" not in names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jm.fit(data, **ROLES)  # nothing to say without centring


def arms() -> pd.DataFrame:
    data = jm.datasets.load_example()
    rng = np.random.default_rng(1)
    data["x"] = np.array(["none", "half", "full"])[rng.integers(0, 3, len(data))]
    data["m"] += 0.5 * (data["x"] == "half") + 1.0 * (data["x"] == "full")
    return data


def test_categorical_x_is_indicators_by_hand():
    """Contrasts, their effects and the tests of all of them, against a System of indicators made by hand (1e-9)."""
    data = arms()
    fit = quietly(data, reference={"x": "none"}, random={"m": ["1", "x"], "y": ["1", "m"]})
    hand = data.assign(h=(data["x"] == "half") * 1.0, f=(data["x"] == "full") * 1.0)
    system = jm.System(
        [jm.Equation("m", ["1", "f", "h"], ["1", "f", "h"]), jm.Equation("y", ["1", "m", "f", "h"], ["1", "m"])], "id"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        witness = jm.fit(hand, system)
    assert abs(fit.loglik - witness.loglik) < 1e-9
    effects, params, g = fit.effects()["estimate"], witness.params, witness.random_cov
    for category, column in (("full", "f"), ("half", "h")):
        indirect = params[f"m~{column}"] * params["y~m"] + g.loc[f"m~{column}", "y~m"]
        assert abs(effects[f"indirect[{category}]"] - indirect) < 1e-7
        assert abs(effects[f"total[{category}]"] - indirect - params[f"y~{column}"]) < 1e-7
    test = witness.wald(["m~f", "m~h"])
    assert abs(fit.omnibus().loc["a", "chi2"] - test.statistic) < 1e-5
    assert fit.omnibus().loc["indirect", "df"] == 2
    assert "Tests of all categories of x together" in fit.summary()
    assert set(fit.to_dict()["omnibus"]) == {"a", "c_prime", "cov_ab", "indirect", "total"}


def test_categorical_x_of_two_and_refusals():
    data = arms()
    two = data[data["x"] != "half"]
    fit = quietly(two, reference={"x": "none"}, random=INTERCEPTS)
    assert list(fit.effects().index) == ["a", "b", "c_prime", "cov_ab", "indirect", "total"]
    assert "m~x[full]" in fit.params.index
    with pytest.raises(jm.FitError, match="tests over categories are of an x with at least three categories"):
        fit.omnibus()
    with pytest.raises(jm.DataError, match="reference=") as refused:
        jm.fit(data, **ROLES)
    assert "1, 2, 3" not in str(refused.value)
    with pytest.raises(jm.DataError, match="reference\\['x'\\]='nil' is not among the categories"):
        jm.fit(data, **ROLES, reference={"x": "nil"})
    with pytest.raises(jm.SpecError, match="only x may be categorical"):
        jm.Mediation(**ROLES, reference={"m": "none"})


def test_categorical_treatment_of_clusters(tmp_path):
    """Three arms of clusters: 2-1-1 with two contrasts, in reports, plots and resampled clusters too."""
    data = trial(2).assign(x=lambda d: d["id"].map(lambda j: ["a", "b", "c"][j % 3]))
    fit = quietly(data, reference={"x": "a"})
    names = list(fit.effects().index)
    assert names[:3] == ["a[b]", "a[c]", "b_within"]
    assert {"indirect[b]", "indirect[c]", "total[b]", "total[c]"} <= set(names)
    means = data.groupby("id")[["m", "y"]].mean()
    arm = data.groupby("id")["x"].first()
    assert (
        abs(fit.effects().loc["a[c]", "estimate"] - (means["m"][arm == "c"].mean() - means["m"][arm == "a"].mean()))
        < 1e-7
    )
    jm.report(fit, tmp_path / "report.html")
    assert "Wald tests of all categories of x together" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(jm.bootstrap(fit, 4, method="cluster", seed=1)) == 4


# Outcomes without cluster means ------------------------------------------------------------------------------------


def test_outcome_centred_beforehand():
    """Its random intercept is left out: the same maximum as with one, which would be zero or a copy of a slope."""
    data = jm.datasets.load_example()
    data["m"] -= data.groupby("id")["m"].transform("mean")
    fit = quietly(data)
    assert fit.notes[0].startswith("'m' has the same mean in every cluster, as if it had been centred")
    assert fit.system.random_labels == ("m~x", "y~1", "y~m", "y~x")
    rounded = data.assign(m=data["m"].round(2))
    assert quietly(rounded).system.random_labels == fit.system.random_labels
    named = quietly(data, random={"m": ["1", "x"], "y": ["1"]})
    assert named.system.random_labels == ("m~x", "y~1")


def test_centred_outcomes_with_split_mediators(tmp_path):
    """Nothing moves cluster means that are all the same: no path, no contextual effect and no test of such a path."""
    data = jm.datasets.load_example()
    data["m"] -= data.groupby("id")["m"].transform("mean")
    fit = quietly(data, center="cluster", random=INTERCEPTS)
    assert "m~between(x)" not in fit.params.index
    assert not {"a_between", "contextual_a", "indirect_between"} & set(fit.effects().index)
    assert any(
        "it has no effects between clusters, and nothing has an effect between clusters on it" in note
        for note in fit.notes
    )
    mixed = quietly(data, random=INTERCEPTS)
    (note,) = (note for note in mixed.notes if "is a mixture that is too small" in note)
    assert note.startswith("'x' differs between clusters, but 'm' does not: the slope on 'm'")
    within = fit.effects().loc["a_within", "estimate"]  # the remedy
    assert mixed.effects().loc["a", "estimate"] < 0.8 * within
    assert list(jm.conflation(mixed).table.index) == ["c_prime"]
    if mixed.negative_icc:
        assert any(note.startswith("centring 'm' by cluster left its rows") for note in mixed.notes)


def test_parts_of_a_mediator_that_is_not_split():
    """A slope that only a 2-1-1 design would have is refused in others, and that of a mean everywhere."""
    data = jm.datasets.load_example()
    with pytest.raises(jm.SpecError, match="is random in the equation of 'y' but not among its predictors"):
        jm.fit(data, **ROLES, random={"m": ["1"], "y": ["1", "within(m)"]})
    with pytest.raises(jm.SpecError, match="which is not a predictor of 'y'"):
        jm.fit(data, **ROLES, random={"m": ["1"], "y": ["1", "between(m)"]})


def test_labels_of_fits_can_be_given_back():
    """In zero and covariance a split mediator's slope has either name, and x stands for all of its categories."""
    data = trial(5)
    for label in ("y~m", "y~within(m)"):
        fit = quietly(data, zero=[("m~1", label), ("m~1", "y~1")])
        assert fit.random_cov.loc["m~1", "y~within(m)"] == 0.0
        groups = [["m~1", "m~x"], ["y~1", label], ["y~x"]]
        assert quietly(data, covariance=groups).system.random_pairs == ((0, 0), (1, 1), (2, 1), (2, 2))
    random = {"m": ["1", "x"], "y": ["1"]}
    fit = quietly(arms(), reference={"x": "none"}, random=random, zero=[("m~x", "y~1")])
    assert fit.random_cov.loc["y~1", ["m~x[full]", "m~x[half]"]].tolist() == [0.0, 0.0]
    assert fit.random_cov.loc["y~1", "m~1"] != 0.0


def test_omnibus_tests_of_moderated_contrasts():
    data = arms().assign(w=np.random.default_rng(3).normal(size=800))
    found = quietly(data, reference={"x": "none"}, moderators={"w": ["a"]}, random=INTERCEPTS).omnibus()
    assert found.index.is_unique
    assert found["df"].tolist() == [2] * len(found)
    assert found["p"].notna().all()
    assert "index_w" in found.index.get_level_values(0)


# Rows that are less alike within clusters than between --------------------------------------------------------------


def test_pairs_give_the_paired_t():
    """The default standard error of a is that of the paired t test; the joint one is too small by a quarter."""
    data = pairs(1)
    fit = quietly(data, random=INTERCEPTS)
    assert fit.notes[0].startswith("rows of one cluster are less alike in 'm' than rows of different clusters")
    assert "cluster-robust by default (covariance='joint' gives the others; profile and Satterthwaite" in fit.notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert jm.conflation(quietly(jm.datasets.load_example())).test.df == 3
    wide = data.pivot_table(index="id", columns="x", values="m")
    difference = wide[0.5] - wide[-0.5]
    effects = fit.effects()
    assert abs(effects.loc["a", "estimate"] - difference.mean()) < 1e-9
    assert abs(effects.loc["a", "se"] / (difference.std() / np.sqrt(len(difference))) - 1) < 1e-6
    assert fit.effects(covariance="joint").loc["a", "se"] < 0.8 * effects.loc["a", "se"]
    assert fit.default_covariance == "robust"
    assert set(fit.negative_icc) == {"m", "y"}
    wide_y = np.corrcoef(wide[0.5], wide[-0.5])[0, 1]
    assert abs(fit.negative_icc["m"] - wide_y) < 0.1
    assert fit.intervals()["se"].equals(fit.effects()["se"])
    assert "cluster-robust" in fit.summary()
    assert fit.to_dict()["effects"]["robust"]["a"]["se"] == effects.loc["a", "se"]
    with pytest.warns(
        jm.DesignWarning, match="replicates of the parametric bootstrap are not: .* use method='cluster'"
    ):
        jm.bootstrap(fit, 4, seed=1)
    assert len(jm.bootstrap(fit, 4, "cluster", seed=1)) == 4  # without a warning


def test_pairs_are_too_small_for_random_slopes():
    """The default asks too much of pairs; the message names random effects that they can show."""
    data = pairs(1)
    with pytest.raises(jm.DataError, match=r"take fewer, such as random=\{'m': \['1'\], 'y': \['1'\]\}"):
        jm.fit(data, **ROLES)
    assert quietly(data, random={"m": ["1"], "y": ["1"]}).converged


def test_ipsative_scores():
    """Scores that sum to zero in every cluster: negative dependence, seen without a random intercept."""
    data = pairs(2, size=4, correlation=-0.3, ipsative=True)
    fit = quietly(data, random="none")
    assert set(fit.negative_icc) == {"m", "y"}
    assert abs(fit.negative_icc["m"] + 1 / 3) < 0.01


@pytest.mark.parametrize("center", [None, "cluster"])
def test_two_clusters_have_no_three_coefficients_between(center):
    data = jm.simulate(clusters=2, size=20, seed=1)
    if center is None:
        data["x"] = data.groupby("id")["x"].transform("mean")
    with pytest.raises(
        jm.DataError, match=r"2 clusters cannot answer for 'between\(m\)' and '(between\()?x\)?' in the"
    ):
        quietly(data, center=center, random=INTERCEPTS)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_said_of_ordinary_data(seed):
    """Independent rows, whose intercept variance is often estimated as zero, have no negative dependence to report."""
    data = pairs(seed, size=8, correlation=0.0)
    assert not quietly(data, random=INTERCEPTS).negative_icc
    assert quietly(jm.datasets.load_example()).notes == ()


def test_slopes_that_few_clusters_inform():
    """A slope that varies within 4 of 60 clusters is noted, with random effects that do without it."""
    data = trial(4)
    rng = np.random.default_rng(2)
    data["x"] = rng.normal(size=60)[data["id"]] + (data["id"] < 4) * rng.normal(size=len(data))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        jm.fit(data, **ROLES)
    text = next(str(w.message) for w in said if "varies within 4 of 60 clusters only" in str(w.message))
    assert text.startswith("the slope of 'x' on 'm' may differ between clusters")
    assert "random={'m': ['1'], 'y': ['1', 'm']} leaves it out" in text
    fit = quietly(data, random={"m": ["1"], "y": ["1", "m"]})
    assert not any("varies within 4" in note for note in fit.notes)


def test_options_of_fit():
    data = jm.datasets.load_example()
    fit = jm.fit(data, **ROLES, random=INTERCEPTS, covariance="diagonal", reml=False)
    assert fit.spec == jm.Mediation(**ROLES, random=INTERCEPTS, covariance="diagonal")
    with pytest.raises(jm.SpecError, match=r"jaxmed.fit has no option 'centre'; did you mean 'center'\?"):
        jm.fit(data, **ROLES, centre="cluster")
    with pytest.raises(jm.SpecError, match="give either a model or its columns, not both"):
        jm.fit(data, fit.spec, center="cluster")


# Simulations without effects ---------------------------------------------------------------------------------------

SETS = 500
ERROR = 3 * np.sqrt(0.05 * 0.95 / SETS)


def rejections(draw, names, **options) -> dict[str, float]:
    found = dict.fromkeys(names, 0)
    for seed in range(SETS):
        effects = quietly(draw(seed), **options).effects()
        for name in names:
            found[name] += effects.loc[name, "p"] < 0.05
    return {name: count / SETS for name, count in found.items()}


@pytest.mark.slow
def test_null_211():
    """a = 0 with b = .6 between clusters: a, indirect; then b_between = 0 with another slope within."""
    rates = rejections(lambda seed: trial(seed, clusters=100, a=0.0), ["a", "indirect", "total"])
    print(rates)
    assert all(abs(rates[name] - 0.05) < ERROR for name in ("a", "total"))
    assert rates["indirect"] < 0.05 + ERROR
    rates = rejections(lambda seed: trial(seed, clusters=100, b=0.0), ["b_between", "c_prime"])
    print(rates)
    assert all(abs(rate - 0.05) < ERROR for rate in rates.values())


def diary(seed: int) -> pd.DataFrame:
    """Effects within clusters that vary, none between, and intercepts of m and y that share nothing."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(100), 10)
    x = rng.normal(size=100)[ids] + rng.normal(size=1000)
    away = x - pd.Series(x).groupby(ids).transform("mean").to_numpy()
    m = 0.6 * rng.normal(size=100)[ids] + (0.3 + 0.2 * rng.normal(size=100))[ids] * away + rng.normal(size=1000)
    off = m - pd.Series(m).groupby(ids).transform("mean").to_numpy()
    y = 0.6 * rng.normal(size=100)[ids] + (0.3 + 0.2 * rng.normal(size=100))[ids] * off + rng.normal(size=1000)
    return pd.DataFrame({"id": ids, "x": x, "m": m, "y": y})


@pytest.mark.slow
def test_null_between():
    """center="cluster" by default: tests of effects between clusters, none of which there are."""
    rates = rejections(diary, ["a_between", "b_between", "c_prime_between", "total_between"], center="cluster")
    print(rates)
    assert all(abs(rate - 0.05) < ERROR for rate in rates.values())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("ipsative", [False, True])
def test_null_negative_dependence(size, ipsative):
    """Pairs and fours less alike than others: 5%, where joint standard errors reject far more."""
    names = ["a", "b", "c_prime", "total"]
    rates = rejections(
        lambda seed: pairs(seed, size=size, correlation=-0.6 / (size - 1), ipsative=ipsative), names, random=INTERCEPTS
    )
    print(size, ipsative, rates)
    assert all(abs(rate - 0.05) < ERROR for rate in rates.values())
