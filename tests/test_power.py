"""Simulation studies: what is reported is what fits to the same data sets give, whatever the sharding.

Witnesses: ``jaxmed.fit`` and ``jaxmed.bootstrap`` on the data sets by their seeds; least squares in NumPy where the
model reduces to it; the t distribution; jackknives for the Monte Carlo errors; published sample sizes.
"""

from __future__ import annotations

import importlib
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmed as jm
from jaxmed._simulation.power_result import _errors, _kurtosis, _sd, no_cell
from jaxmed._simulation.power_study import _line, _reached, make_designs
from jaxmed._simulation.study import Analysis, roomy
from jaxmed._support.checkpoints import claim, write_table

FLAT = jm.Mediation(x="x", m="m", y="y", cluster="id", random="none")
DESIGN = {"clusters": 30, "size": 5}


@pytest.fixture(scope="module")
def study():
    return jm.power({"a": 0.3}, DESIGN, 48, seed=3, intervals=["delta", "bauer", "monte_carlo"])


def same(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True)


# Data sets -----------------------------------------------------------------------------------------------------------


def test_a_data_set_is_a_fit_to_simulated_rows(study):
    """Estimates agree to a hundred-thousandth of a standard error, where refits stop."""
    for _, row in study.replications.iloc[:4].iterrows():
        fit = jm.fit(jm.simulate({"a": 0.3}, **DESIGN, seed=int(row["seed"])), x="x", m="m", y="y", cluster="id")
        assert fit.converged
        assert row["singular"] == fit.singular
        for effect, found in fit.effects().iterrows():
            assert row[effect] == pytest.approx(found["estimate"], abs=1e-5 * found["se"])
            assert row[f"{effect}_se"] == pytest.approx(found["se"], rel=1e-4)
            assert row[f"{effect}_se_block"] == pytest.approx(fit.effects("bauer").loc[effect, "se"], rel=1e-4)
        limits = fit.intervals("monte_carlo", seed=int(row["seed"]), draws=1000).loc["indirect"]
        assert row["indirect_monte_carlo_lower"] == pytest.approx(limits["ci_lower"], abs=1e-3 * limits["se"])
        assert row["indirect_monte_carlo_upper"] == pytest.approx(limits["ci_upper"], abs=1e-3 * limits["se"])


def test_bootstrap_and_profile_intervals_are_those_of_the_fit():
    kinds = ["percentile", "studentized", "profile", "robust"]
    study = jm.power(None, DESIGN, 2, seed=3, intervals=kinds, replicates=99, terms=["indirect"])
    row = study.replications.iloc[1]
    fit = jm.fit(jm.simulate(**DESIGN, seed=int(row["seed"])), x="x", m="m", y="y", cluster="id")
    replicates = jm.bootstrap(fit, 99, seed=int(row["seed"]))
    tables = {kind: replicates.intervals(kind) for kind in kinds[:2]} | {"profile": fit.intervals("profile")}
    tables["robust"] = fit.intervals(covariance="robust")
    errors = study.table.query("interval == 'robust'").iloc[0]
    assert errors["mean_se"] > 0
    assert study.table.query("interval == 'percentile'")["mean_se"].isna().all()
    for kind, table in tables.items():
        found = row[[f"indirect_{kind}_lower", f"indirect_{kind}_upper"]].to_list()
        assert found == table.loc["indirect", ["ci_lower", "ci_upper"]].to_list()
    clusters = jm.power(None, DESIGN, 2, seed=3, intervals="percentile", replicates=99, method="cluster")
    assert clusters.replications["indirect_percentile_lower"].iloc[1] != row["indirect_percentile_lower"]


def test_a_data_set_depends_on_seed_design_and_number_alone(study):
    grid = jm.power({"a": 0.3}, {"clusters": [25, 30], "size": [5]}, 20, seed=3, intervals=["delta"])
    inside = grid.replications[grid.replications["clusters"] == 30].reset_index(drop=True)
    same(inside, study.replications[inside.columns].iloc[:20].reset_index(drop=True))
    other = jm.power({"a": 0.3}, DESIGN, 20, seed=4)
    assert not set(other.replications["seed"]) & set(study.replications["seed"])
    assert not np.any(other.replications["a"] == inside["a"])


def test_sizes_and_clusters_share_compiled_programs():
    sizes = [roomy(clusters) for clusters in (2, 8, 9, 25, 50, 64, 65, 100, 128, 129, 200, 1000)]
    assert sizes == [8, 8, 16, 32, 56, 64, 80, 112, 128, 160, 224, 1024]
    assert all(roomy(n) <= max(1.25 * n + 8, 8) for n in range(1, 2000))


def test_a_design_of_which_nothing_can_be_fitted_is_said():
    """Two of five random effects a cluster can show, in three clusters: the table was NaN without a word."""
    with pytest.warns(jm.ConvergenceWarning, match=r"no fit of 4 data sets of the design \(clusters 3, size 2\)"):
        study = jm.power(None, [{"clusters": 3, "size": 2}, DESIGN], 4, seed=1, intervals="delta")
    assert len(study.notes) == 1
    assert study.summary().splitlines()[-1] == f"Note: {study.notes[0]}"
    pytest.importorskip("matplotlib")
    with pytest.warns(jm.ConvergenceWarning):
        alone = jm.power(None, {"clusters": 3, "size": 2}, 4, seed=1, intervals="delta")
    for plot in (jm.plots.power, jm.plots.coverage):
        with pytest.raises(jm.SpecError, match="no fit of this study has the interval; no fit of 4 data sets"):
            plot(alone)


def test_files_of_replicates_and_of_studies_are_told_apart(tmp_path, study):
    """They were called damaged, with the advice to delete them."""
    study.save(tmp_path / "study")
    with pytest.raises(jm.DataError, match=r"holds a power study, not replicates: read it with jaxmed\.load_power"):
        jm.load_replicates(tmp_path / "study")
    fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    jm.bootstrap(fit, 4, seed=1, out=tmp_path / "replicates")
    with pytest.raises(jm.DataError, match=r"holds replicates, not a power study: read them with"):
        jm.power(None, DESIGN, 4, seed=1, out=tmp_path / "replicates")
    write_table(tmp_path / "forged.parquet", pd.DataFrame({"a": [1.0]}), {"kind": [1]})  # no text: a TypeError
    for load in (jm.load_replicates, jm.load_power):
        with pytest.raises(jm.DataError, match="or is damaged"):
            load(tmp_path / "forged.parquet")


# The table -----------------------------------------------------------------------------------------------------------


def test_measures_are_those_of_the_data_sets(study):
    """Recomputed from the rows with plain NumPy."""
    used = study.replications[study.replications["status"] == 0]
    row = study.table.query("effect == 'c_prime' and interval == 'delta'").iloc[0]
    estimate, se = used["c_prime"], used["c_prime_se"]
    z = stats.norm.ppf(0.975)
    lower, upper = estimate - z * se, estimate + z * se
    expected = {
        "truth": 0.2,
        "replications": 48,
        "converged": len(used) / 48,
        "singular": used["singular"].mean(),
        "mean": estimate.mean(),
        "bias": estimate.mean() - 0.2,
        "bias_mcse": estimate.std() / np.sqrt(len(used)),
        "sd": estimate.std(),
        "mean_se": se.mean(),
        "se_bias": se.mean() / estimate.std() - 1,
        "coverage": ((lower <= 0.2) & (upper >= 0.2)).mean(),
        "too_low": (upper < 0.2).mean(),
        "too_high": (lower > 0.2).mean(),
        "width": (upper - lower).mean(),
        "power": ((lower > 0) | (upper < 0)).mean(),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    share = row["coverage"]
    assert row["coverage_mcse"] == pytest.approx(np.sqrt(share * (1 - share) / len(used)))
    assert np.isnan(row["type_1_error"])
    bauer = study.table.query("effect == 'indirect' and interval == 'bauer'").iloc[0]
    reach = 1.96 * used["indirect_se_block"]
    assert bauer["width"] == pytest.approx((2 * reach).mean())
    percent = study.table.query("effect == 'indirect' and interval == 'monte_carlo'").iloc[0]
    assert np.isnan(percent["mean_se"])


def test_monte_carlo_errors_against_the_jackknife():
    """Errors of sd and of the standard errors' bias; skewed numbers, so that a normal formula would be a third off."""
    rng = np.random.default_rng(1)
    estimate = rng.exponential(size=4000)
    error = 1 + 0.3 * rng.standard_normal(4000)

    def jackknife(function):
        n = len(estimate)
        groups = [np.delete(np.arange(n), slice(k, k + 20)) for k in range(0, n, 20)]
        values = np.array([function(keep) for keep in groups])
        return np.sqrt((len(values) - 1) * np.mean((values - values.mean()) ** 2))

    assert _sd(estimate)[1] == pytest.approx(jackknife(lambda keep: estimate[keep].std(ddof=1)), rel=0.15)
    assert _kurtosis(estimate) > 6
    found = _errors(error, estimate)
    expected = jackknife(lambda keep: error[keep].mean() / estimate[keep].std(ddof=1) - 1)
    assert found["se_bias_mcse"] == pytest.approx(expected, rel=0.15)


def test_what_is_fixed_or_not_in_the_population_has_no_coverage():
    """cov_ab of a 2-1-1 design with one slope is zero by design; a path that the population lacks has no truth."""
    one = jm.Mediation("x", "m", "y", "id", center="none")
    study = jm.power(jm.Population(one, icc_x=1), {"clusters": 20, "size": 4}, 16, seed=1)
    row = study.table.query("effect == 'cov_ab'").iloc[0]
    assert row[["coverage", "type_1_error", "width"]].isna().all()
    assert row["used"] == 0
    serial = jm.Mediation(x="x", m=["m", "w"], y="y", cluster="id", serial=True, random="none")
    system = jm.System(
        [jm.Equation("m", ["1", "x"], ["1"]), jm.Equation("y", ["1", "m", "x", "w"], ["1"])], cluster="id"
    )
    study = jm.power(jm.Population(system, {"m~x": 0.5, "y~m": 0.5}), DESIGN, 16, seed=1, model=serial, terms="all")
    known = study.table.set_index("effect")["truth"]
    assert known["m~x"].iloc[0] == 0.5
    assert np.isnan(known["d_m_w"].iloc[0])


def test_moderated_effects_have_their_truth():
    model = jm.Mediation(x="x", m="m", y="y", cluster="id", moderators={"w": ["a"]}, random="none")
    population = jm.Population(model, {"m~x:w": 0.2, "icc_w": 1.0, "share_w": 0.5})
    table = jm.power(population, DESIGN, 64, seed=2).table.set_index(["effect", "interval"])
    assert table.loc[("indirect[w=1]", "delta"), "truth"] == pytest.approx(0.8 * 0.6)
    assert table.loc[("index_w", "delta"), "truth"] == pytest.approx(0.12)
    row = table.loc[("a[w=1]", "delta")]
    assert abs(row["bias"]) < 5 * row["bias_mcse"]


# Against theory ------------------------------------------------------------------------------------------------------


def ordinary(data):
    """a, its standard error, and ab with Sobel's, by least squares in NumPy."""

    def regress(columns, outcome):
        x = np.column_stack([np.ones(len(data)), *(data[name] for name in columns)])
        inverse = np.linalg.inv(x.T @ x)
        beta = inverse @ x.T @ data[outcome].to_numpy()
        left = data[outcome].to_numpy() - x @ beta
        return beta, np.sqrt(np.diag(inverse) * (left @ left) / (len(x) - x.shape[1]))

    (_, a), (_, se_a) = regress(["x"], "m")
    (_, b, _), (_, se_b, _) = regress(["m", "x"], "y")
    return a, se_a, a * b, np.sqrt(a**2 * se_b**2 + b**2 * se_a**2)


MEDIUM = {"m~x": 0.39, "y~m": 0.39, "y~x": 0.0, "m~~m": 1.0, "y~~y": 1.0, "sd_x": 1.0, "icc_x": 0.0}


def test_the_single_level_limit_is_least_squares():
    """Without random effects REML is least squares: estimates and Sobel errors of every data set to 1e-6."""
    population = jm.Population(FLAT, MEDIUM)
    study = jm.power(population, {"clusters": 9, "size": 10}, 32, seed=7)
    for _, row in study.replications.iloc[:6].iterrows():
        a, se_a, ab, se_ab = ordinary(jm.simulate(population, clusters=9, size=10, seed=int(row["seed"])))
        found = row[["a", "a_se", "indirect", "indirect_se"]].to_list()
        assert found == pytest.approx([a, se_a, ab, se_ab], rel=1e-6)


def test_power_of_a_slope_is_that_of_the_t_distribution():
    """Given x, a / se is noncentral t; averaged over quantiles of x's sum of squares. Four Monte Carlo errors."""
    population = jm.Population(FLAT, MEDIUM)
    row = jm.power(population, {"clusters": 4, "size": 10}, 2000, seed=11).table.query("effect == 'a'").iloc[0]
    squares = stats.chi2(39).ppf((np.arange(2000) + 0.5) / 2000)
    z = stats.norm.ppf(0.975)
    beyond = [stats.nct(38, 0.39 * np.sqrt(s)) for s in squares[::20]]
    expected = np.mean([t.sf(z) + t.cdf(-z) for t in beyond])
    assert row["power"] == pytest.approx(expected, abs=4 * row["power_mcse"])


def test_published_sample_size_of_sobels_test():
    """Fritz & MacKinnon (2007, table 3): a = b = .39, c' = 0, N = 90 for .8. To rounding of N (.015) and 4 MCSE."""
    population = jm.Population(FLAT, MEDIUM)
    row = jm.power(population, {"clusters": 9, "size": 10}, 4000, seed=5).table.query("effect == 'indirect'").iloc[0]
    assert row["power"] == pytest.approx(0.8, abs=0.015 + 4 * row["power_mcse"])


def test_type_1_error_of_a_true_null():
    """Random intercepts, no random slopes: .05 to three Monte Carlo errors, and .003 for the t distribution's tails."""
    model = jm.Mediation(x="x", m="m", y="y", cluster="id", random={"m": ["1"], "y": ["1"]})
    null = jm.Population(model, {"m~x": 0.0, "y~x": 0.0})
    table = jm.power(null, {"clusters": 50, "size": 8}, 2000, seed=9).table
    for effect in ("a", "c_prime"):
        row = table[(table["effect"] == effect) & (table["interval"] == "delta")].iloc[0]
        assert np.isnan(row["power"])
        assert row["type_1_error"] == pytest.approx(0.05, abs=0.003 + 3 * row["type_1_error_mcse"])


@pytest.mark.slow
def test_coverage_at_the_population_of_bauer():
    """J = 100, n = 8, REML, 2,000 data sets: the figures of the design within Monte Carlo error.

    Mean joint standard error of c' within 4% of the empirical sd, block about 10% below; coverages of DESIGN section 2
    (c' .940 joint, .917 block; b .940, .928; indirect .943, .935) to three errors of both simulations.
    """
    table = jm.power(None, {"clusters": 100, "size": 8}, 2000, seed=1).table.set_index(["effect", "interval"])
    print(f"\n{table[['bias', 'sd', 'mean_se', 'se_bias', 'coverage']].round(4)}")
    assert abs(table.loc[("c_prime", "delta"), "se_bias"]) < 0.04
    assert table.loc[("c_prime", "bauer"), "se_bias"] == pytest.approx(-0.10, abs=0.04)
    measured = {"c_prime": (0.940, 0.917), "b": (0.940, 0.928), "indirect": (0.943, 0.935)}
    for effect, known in measured.items():
        for interval, coverage in zip(("delta", "bauer"), known, strict=True):
            row = table.loc[(effect, interval)]
            error = np.hypot(row["coverage_mcse"], np.sqrt(coverage * (1 - coverage) / 1000))
            assert row["coverage"] == pytest.approx(coverage, abs=3 * error)
    assert np.all(np.abs(table["bias"]) < 4 * table["bias_mcse"])


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    return jm.power({"a": 0.3}, {"clusters": [20, 30], "size": [4, {"poisson": 4}]}, 300, seed=2)


def test_the_same_table_whatever_the_sharding(whole, tmp_path):
    """Three parts in one folder, the last one first, then the whole from what is there; nothing is computed twice."""
    options = {"population": {"a": 0.3}, "designs": {"clusters": [20, 30], "size": [4, {"poisson": 4}]}}
    options |= {"replications": 300, "seed": 2, "out": tmp_path}
    counts = [len(jm.power(**options, shard=(k, 3)).replications) for k in (2, 0, 1)]
    assert sum(counts) == 1200
    before = {path.name for path in tmp_path.iterdir()}
    again = jm.power(**options)
    assert {path.name for path in tmp_path.iterdir()} == before
    same(again.table, whole.table)
    same(again.replications, whole.replications)
    loaded = jm.load_power(tmp_path)
    keys = ["clusters", "size", "effect", "interval"]
    same(
        loaded.table.astype({"size": str}).sort_values(keys, ignore_index=True),
        whole.table.astype({"size": str}).sort_values(keys, ignore_index=True),
    )


def test_more_replications_and_designs_add_to_what_is_there(whole, tmp_path):
    jm.power({"a": 0.3}, {"clusters": 20, "size": 4}, 100, seed=2, out=tmp_path)
    jm.power({"a": 0.3}, {"clusters": [20, 30], "size": 4}, 150, seed=2, out=tmp_path)
    found = jm.power({"a": 0.3}, {"clusters": [20, 30], "size": [4, {"poisson": 4}]}, 300, seed=2, out=tmp_path)
    same(found.table, whole.table)


def test_interrupted_and_resumed(whole, tmp_path, monkeypatch):
    """Ctrl-C in the second design keeps what is done, says so, and hands it over."""
    ledger = importlib.import_module("jaxmed._support.checkpoints")
    options = {"population": {"a": 0.3}, "designs": {"clusters": [20, 30], "size": 4}}
    options |= {"replications": 300, "seed": 2, "out": tmp_path}
    add, calls = ledger.Ledger.add, []

    def interrupted(self, table):
        add(self, table)
        calls.append(len(table))
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ledger.Ledger, "add", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        jm.power(**options)
    assert caught.value.__notes__ == [
        f"556 of 600 data sets are done and kept in {str(tmp_path)!r}; the same call goes on from there"
    ]
    assert len(caught.value.power.replications) == 556
    monkeypatch.undo()
    found = jm.power(**options)
    same(found.replications, whole.replications[whole.replications["size"] == 4].reset_index(drop=True).infer_objects())


def test_folders_of_other_studies_are_refused(tmp_path):
    jm.power(None, {"clusters": 10, "size": 4}, 8, seed=1, out=tmp_path)
    with pytest.raises(jm.DataError, match="holds another study: they have different population"):
        jm.power({"a": 0.1}, {"clusters": 10, "size": 4}, 8, seed=1, out=tmp_path)
    for changed in ({"seed": 2}, {"level": 0.9}, {"intervals": "delta"}, {"reml": False}):
        with pytest.raises(jm.DataError, match=f"holds another study: they have different {next(iter(changed))}"):
            jm.power(None, {"clusters": 10, "size": 4}, 8, **({"seed": 1, "out": tmp_path} | changed))
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(jm.DataError, match=r"is not a file of a power study, or is damaged .* delete it"):
        jm.power(None, {"clusters": 10, "size": 4}, 8, seed=1, out=tmp_path)
    with pytest.raises(jm.DataError, match=r"there is no file"):
        jm.load_power(tmp_path / "nothing")


def test_of_two_studies_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    """A study says whose its folder is before its first data set, and the other would write files of the same names."""
    studying = importlib.import_module("jaxmed._simulation.power_study")
    monkeypatch.setattr(studying, "open_folder", lambda folder: [])
    nothing = no_cell(Analysis(1, ("delta",), 0.95, "effects", None, True, 500, "parametric", ""))
    claim(tmp_path / "study.parquet", nothing.table, nothing.about)
    with pytest.raises(jm.DataError, match=r"there are no data sets of a power study in .* yet"):
        jm.load_power(tmp_path)
    with pytest.raises(jm.DataError, match="holds another study: they have different seed, 2 and 1"):
        jm.power(None, {"clusters": 10, "size": 4}, 8, seed=2, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["study.parquet"]


@pytest.mark.parametrize("paths", [5, None, [5]])
def test_paths_that_are_none(paths):
    with pytest.raises(jm.SpecError, match=r"paths.* must be a (path|list)"):
        jm.load_power(paths)
    with pytest.raises(jm.SpecError, match=r"out=5 must be a path"):
        jm.power(None, seed=1, out=5)


def test_saved_and_read(study, tmp_path):
    study.save(tmp_path / "saved")
    again = jm.load_power(tmp_path / "saved")
    same(again.table, study.table)
    plain = json.loads(study.to_json())
    assert plain["table"][0]["effect"] == "a"
    assert plain["analysis"]["seed"] == 3
    assert plain["populations"][0]["numbers"]["m~x"] == 0.3
    assert repr(study) == "<Power: 1 designs, 48 data sets>"
    assert "indirect" in str(study)
    assert "indirect" not in study.summary("a")
    with pytest.raises(jm.SpecError, match=r"effects has 'nope'; this study reports \['a'"):
        study.summary(["a", "nope"])


# Search --------------------------------------------------------------------------------------------------------------


def test_the_search_finds_the_number_of_clusters(tmp_path):
    """Sobel's test without clustering again: 9 clusters of 10 by the published table; of 5, so 18."""
    population = jm.Population(FLAT, MEDIUM)
    found = jm.power(population, {"size": 5}, 1000, seed=6, target=0.8, out=tmp_path)
    row = found.needed.iloc[0]
    assert row["clusters_lower"] <= 18 <= row["clusters_upper"]
    assert row["clusters"] == pytest.approx(18, abs=2)
    assert row["power"] == pytest.approx(0.8, abs=4 * row["power_mcse"])
    assert set(found.table["clusters"]) >= {25, 100, row["clusters"]}
    files = len(list(tmp_path.iterdir()))
    again = jm.power(population, {"size": 5}, 1000, seed=6, target=0.8, out=tmp_path)
    same(again.needed, found.needed)
    assert len(list(tmp_path.iterdir())) == files


def test_the_line_of_the_search():
    """Exact where powers are a probit line; the error is that of a weighted regression."""
    powers = {n: (float(stats.norm.cdf(-1.9 + 0.4 * np.sqrt(n))), 1e7) for n in (20, 40, 60)}
    line = _line(powers)
    assert (line.start, line.slope) == pytest.approx((-1.9, 0.4), abs=1e-3)
    assert _reached(line, 0.8) == int(np.ceil(((stats.norm.ppf(0.8) + 1.9) / 0.4) ** 2))
    assert line.error(0.8) < 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": 1.0}, r"target=1.0 is not a power; give a number between 0 and 1"),
        ({"target": 0.8, "designs": {"clusters": [20]}}, r"leave 'clusters' out of the designs"),
        ({"target": 0.8, "shard": (0, 2)}, r"a search for a target goes step by step and has no shards"),
    ],
)
def test_searches_refused(given, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.power(None, seed=1, **given)


def test_a_search_for_nothing():
    null = jm.Population(FLAT, MEDIUM | {"m~x": 0.0})
    with pytest.raises(jm.SpecError, match="indirect is zero in this population"):
        jm.power(null, {"size": 5}, 32, seed=1, target=0.8)
    with pytest.raises(jm.SpecError, match=r"effect='q' is not reported; choose one of \['a'"):
        jm.power(null, {"size": 5}, 32, seed=1, target=0.8, effect="q")


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replications": 0}, r"replications=0 must be a whole number"),
        ({"seed": None}, r"seed=None must be a whole number"),
        ({"level": 95}, r"level=95 is not a confidence level"),
        ({"intervals": "wald"}, r"intervals=\['wald'\]: choose some of \['delta', 'bauer'"),
        ({"intervals": []}, r"intervals=\[\]: choose some of"),
        ({"intervals": 5}, r"intervals=\[5\]: choose some of"),
        ({"intervals": np.array("x")}, r"intervals=\[array\('x', .*\]: choose some of"),
        ({"terms": np.array("x")}, r"terms=\[array\('x', .*\]: choose"),
        ({"terms": 5}, r"terms=5 must be 'effects'"),
        ({"intervals": ["bauer", "block"]}, r"choose one of them"),
        ({"reml": 1}, r"reml=1 must be True or False"),
        ({"method": "jackknife"}, r"method='jackknife' is not known"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\) must be \(i, k\)"),
        ({"designs": 3}, r"designs=3 must be a dict such as"),
        ({"designs": {"clusters": []}}, r"designs: 'clusters' has no values"),
        ({"designs": {"clusters": 1}}, r"clusters=1 must be a whole number from 2"),
        ({"designs": {"size": [4, 4]}}, r"is there twice; name each once"),
        ({"designs": {"slope": [1]}}, r"this population has no 'slope'"),
        ({"designs": {"cluster": [20]}}, r"the designs have 'cluster'; did you mean 'clusters'"),
        ({"designs": {"sizes": 4}}, r"the designs have 'sizes'; did you mean 'size'"),
        ({"designs": {"residuals": "odd"}}, r"residuals='odd' is not known"),
        ({"designs": {"size": 1}}, r"the design \(clusters 100, size 1\) cannot answer the model: 'm' does not vary"),
        ({"model": "m ~ x"}, r"must be a jaxmed.Mediation or jaxmed.System"),
        ({"terms": ["q"], "designs": DESIGN}, r"terms=\['q'\]: choose 'effects', 'parameters', 'all' or some of"),
        ({"model": jm.Mediation(x="x", m="m", y="y", cluster="id", center="cluster"), "intervals": "bauer"},
         r"'bauer' are the formulas of Bauer, Preacher & Gil"),
    ],
)  # fmt: skip
def test_arguments(given, message):
    with pytest.raises(jm.SpecError, match=message):
        jm.power(None, **({"seed": 1, "replications": 4} | given))


def test_designs_name_what_varies():
    base = jm.Population()
    grid = make_designs(base, {"clusters": [10, 20], "a": [0.1, 0.2], "random_effects": ["normal", "skewed"]})
    assert [str(design) for design in grid[:2]] == [
        "clusters 10, size 8, a 0.1, random_effects normal",
        "clusters 10, size 8, a 0.1, random_effects skewed",
    ]
    assert len({design.key for design in grid}) == 8
    listed = make_designs(base, [{"clusters": 20, "size": 4}, {"clusters": 5, "size": 16}])
    assert [(design.clusters, design.size) for design in listed] == [(20, 4), (5, 16)]


def test_estimates_of_a_number_that_varies_stay(tmp_path):
    """Its true value stands beside them; NumPy's numbers are as good as Python's."""
    study = jm.power({"cov_ab": 0}, {"clusters": 20, "size": 4, "a": np.array([0, 1])}, 8, seed=1, out=tmp_path)
    assert study.replications["a_true"].tolist() == [0] * 8 + [1] * 8
    assert study.replications["a"].nunique() == 16
    assert json.loads(study.to_json())["table"][0]["a"] == 0


def test_columns_that_would_be_called_the_same():
    system = jm.System.from_formulas(["y ~ x + x_se + (1 | id)"])
    with pytest.raises(jm.SpecError, match="two columns of the results would be called 'y~x_se'; rename a column"):
        jm.power(jm.Population(system), DESIGN, 4, seed=1)


def test_one_unlucky_data_set_does_not_end_a_study():
    """x of the cluster, constant in some data sets of 12 clusters, the first among them: counted as not converged."""
    model = jm.Mediation(x="x", m="m", y="y", cluster="id", random={"m": ["1"], "y": ["1"]})
    rare = jm.Population(model, icc_x=1, share_x=0.15, a=0.5)
    study = jm.power(rare, {"clusters": 12, "size": 4}, 24, seed=1, intervals=["delta", "robust"])
    constant = [
        jm.simulate(rare, clusters=12, size=4, seed=int(seed))["x"].nunique() == 1
        for seed in study.replications["seed"]
    ]
    assert any(constant)
    assert np.all(study.replications["status"][constant] != 0)
    assert study.replications["indirect_robust_lower"][constant].isna().all()


def test_a_search_without_a_truth():
    system = jm.System([jm.Equation("m", ["1", "x"], ["1"]), jm.Equation("y", ["1", "m", "x"], ["1"])], cluster="id")
    with pytest.raises(jm.SpecError, match="indirect has no power here: the population does not have it"):
        jm.power(jm.Population(system), {"size": 4}, 16, seed=1, model=FLAT, target=0.8)


def test_a_summary_says_of_how_many_data_sets_intervals_are():
    """Centred and balanced: nearly no data set tells b between clusters, all tell b within."""
    random = {"m": ["1"], "y": ["1"]}
    model = jm.Mediation("x", "m", "y", "id", center="cluster", random=random, intercepts="correlated")
    study = jm.power(jm.Population(model), {"clusters": [30], "size": [6]}, 16, seed=1, intervals=["delta"])
    used = study.table.set_index("effect")["used"]
    assert used["indirect_within"] == study.table["converged"].iloc[0] > 0.8
    assert used["b_between"] < 0.5
    assert study.summary().splitlines()[0].split()[-1] == "used"
    assert "used" not in study.summary("indirect_within")


def test_a_study_saved_where_a_file_is(tmp_path):
    study = jm.power({"a": 0.3, "b": 0.3, "cov_ab": 0}, {"clusters": [20]}, 4, seed=1)
    (tmp_path / "taken").write_text("")
    with pytest.raises(jm.FitError, match=r"the folder .*taken' cannot be made"):
        study.save(tmp_path / "taken")
