"""What must not change an estimate: order, labels, units, starting values, threads and the user's own JAX settings."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import dense
import jax
import numpy as np
import pandas as pd
import pytest
from conftest import REFERENCE

import jaxmed as jm
from jaxmed._data.design import make_design
from jaxmed._data.totals import add_up
from jaxmed._likelihood import likelihood, newton, optimise
from jaxmed._likelihood.layout import Layout, count_rows, make_layout
from jaxmed._results.optimum import solve_from
from jaxmed._support.errors import Status

MODEL = jm.Mediation("x", "m", "y", "id")


@pytest.fixture(scope="module")
def base(unbalanced) -> jm.Fit:
    return jm.fit(unbalanced, MODEL)


def prepared(fit: jm.Fit) -> tuple[Layout, likelihood.Data]:
    design = make_design(fit.system, fit.moments)
    layout = make_layout(design, fit.reml)
    return layout, likelihood.make_data(design.table, count_rows(layout, fit.system, add_up(design)))


def assert_same(fit: jm.Fit, base: jm.Fit, tolerance: float) -> None:
    """Estimates in units of their standard errors, covariances in units of their diagonals."""
    error = np.sqrt(np.diag(base.joint))
    np.testing.assert_allclose((fit.values - base.values) / error, 0, atol=tolerance)
    np.testing.assert_allclose((fit.joint - base.joint) / np.outer(error, error), 0, atol=tolerance)
    np.testing.assert_allclose((fit.block - base.block) / np.outer(error, error), 0, atol=tolerance)
    assert fit.loglik == pytest.approx(base.loglik, rel=1e-12)


def assert_same_bits(fit: jm.Fit, base: jm.Fit) -> None:
    for name in ("values", "joint", "block"):
        np.testing.assert_array_equal(getattr(fit, name), getattr(base, name))
    assert (fit.loglik, fit.n_iter, fit.grad_norm) == (base.loglik, base.n_iter, base.grad_norm)


# The data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_row_order(unbalanced, base, seed):
    """Sums are taken in another order: rounding only, which the Hessian's condition may raise to some 1e-9."""
    assert_same(jm.fit(unbalanced.sample(frac=1, random_state=seed), MODEL), base, 1e-8)


def test_cluster_labels(unbalanced, base):
    """Other labels, of another type and in another order; predictions follow their cluster."""
    names = unbalanced["id"].unique()
    numbers = pd.Series(np.random.default_rng(5).permutation(len(names)) * 37 - 500, index=names)
    fit = jm.fit(unbalanced.assign(id=unbalanced["id"].map(numbers)), MODEL)
    assert_same(fit, base, 1e-8)
    expected = base.ranef()
    found = fit.ranef().loc[numbers[expected.index]].set_index(expected.index)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_other_columns_and_index_do_not_matter(unbalanced, base):
    data = unbalanced.set_index(np.arange(len(unbalanced))[::-1] * 3).assign(unused="text", another=np.nan)
    assert_same_bits(jm.fit(data[["another", "y", "unused", "x", "id", "m"]], MODEL), base)


@pytest.mark.parametrize("reml", [True, False])
def test_units(unbalanced, reml):
    """x' = 1e6 x + 3e7, y' = 1e-4 y + 5: estimates, covariances, effects and the log likelihood map exactly.

    With beta' = T beta + t, G' = T G T' and C' = T C T', the likelihood of y' is shifted by the Jacobian -n_y log 1e-4;
    the restricted one also by log|T|, half the change of -log|X'V^-1X|. Agreement to 1e-7 standard errors: the user's
    intercepts lie far outside the data (x near 8e7), which costs digits in the map back.
    """
    k, h, s, t = 1e6, 3e7, 1e-4, 5.0
    base = jm.fit(unbalanced, MODEL, reml=reml)
    fit = jm.fit(unbalanced.assign(x=k * unbalanced["x"] + h, y=s * unbalanced["y"] + t), MODEL, reml=reml)
    linear = np.array(  # m~1, m~x, y~1, y~m, y~x
        [
            [1, -h / k, 0, 0, 0],
            [0, 1 / k, 0, 0, 0],
            [0, 0, s, 0, -s * h / k],
            [0, 0, 0, s, 0],
            [0, 0, 0, 0, s / k],
        ]
    )

    def assert_mapped(kind):
        expected = linear @ base.cov_params(kind) @ linear.T
        found = fit.cov_params(kind).to_numpy()
        unit = np.sqrt(np.diag(expected))
        np.testing.assert_allclose((found - expected) / np.outer(unit, unit), 0, atol=1e-7)
        return unit

    error = assert_mapped("joint")
    assert_mapped("block")
    np.testing.assert_allclose((fit.params - linear @ base.params - [0, 0, t, 0, 0]) / error, 0, atol=1e-7)
    g = linear @ base.random_cov @ linear.T
    sd = np.sqrt(np.diag(g))
    np.testing.assert_allclose((fit.random_cov.to_numpy() - g) / np.outer(sd, sd), 0, atol=1e-7)
    np.testing.assert_allclose(fit.residual_var, base.residual_var * [1, s**2], rtol=1e-7)
    unit = np.array([1 / k, s, *[s / k] * 4])  # a, b and what is in units of y per x
    for se in ("joint", "bauer"):
        for column in ("estimate", "se", "ci_lower", "ci_upper"):
            np.testing.assert_allclose(fit.effects(se)[column], base.effects(se)[column] * unit, rtol=1e-6, atol=0)
    shift = -unbalanced["y"].count() * np.log(s) + reml * np.linalg.slogdet(linear)[1]
    assert fit.loglik - base.loglik == pytest.approx(shift, rel=1e-10)
    assert fit.lr_test().statistic == pytest.approx(base.lr_test().statistic, rel=1e-8)


# Terms ---------------------------------------------------------------------------------------------------------------

TERMS = jm.System(
    [
        jm.Equation("m", ["1", "x", "w", "x:w"], ["1", "x"]),
        jm.Equation("y", ["1", "within(m)", "between(m)", "w", "within(m):w", "x", "x:c", "c"], ["1", "within(m)"]),
    ],
    "id",
    covariance="block",
    residuals=[],
)
UNITS = {"x": (1e3, 4e4), "m": (10.0, -70.0), "w": (1e-3, 0.5), "c": (0.02, 7.0), "y": (1e-4, 5.0)}


@pytest.fixture(scope="module")
def wide(unbalanced) -> pd.DataFrame:
    """With a moderator w of the row, c of the cluster and a second mediator v, some m and v missing."""
    rng = np.random.default_rng(21)
    at = unbalanced["id"].astype("category").cat.codes.to_numpy()
    data = unbalanced.assign(w=40 + 3 * rng.normal(size=len(at)), c=rng.normal(size=at.max() + 1)[at] - 2)
    data["m"] += 0.02 * (data["x"] - 51) * (data["w"] - 40)
    data["v"] = 0.3 * data["m"] + 0.2 * data["x"] + rng.normal(size=len(at))
    data["y"] += 0.3 * data["c"] + 0.1 * data["v"]
    data["site"] = rng.choice(["north", "south", "west"], len(at))
    data.loc[rng.random(len(at)) < 0.1, "m"] = np.nan
    data.loc[rng.random(len(at)) < 0.1, "v"] = np.nan
    return data


def moved_terms(names: tuple[str, ...], units: dict[str, tuple[float, float]]) -> np.ndarray:
    """Coefficients of the old terms (rows) in the new ones (columns) when every column v becomes k v + h."""
    matrix = np.zeros((len(names), len(names)))
    for j, name in enumerate(names):
        whole = {(): 1.0}
        for factor in [] if name == "1" else name.split(":"):
            k, h = units.get(factor.removeprefix("within(").removeprefix("between(").removesuffix(")"), (1.0, 0.0))
            h = 0.0 if factor.startswith("within(") else h
            whole = {(*old, factor): k * c for old, c in whole.items()} | {old: h * c for old, c in whole.items()}
        for old, value in whole.items():
            if value:
                matrix[names.index(":".join(old) or "1"), j] = value
    return matrix


@pytest.mark.parametrize("reml", [True, False])
def test_units_of_products_and_cluster_means(wide, reml):
    """As test_units: with X' = X M and y' = s y + t, beta' = M^-1 (s beta + t e_1), and so on; 1e-6 standard errors.

    The user's products lie farther out than their columns (x w near 2e5 sds of it), which costs digits in the map back.
    """
    base = jm.fit(wide, TERMS, reml=reml)
    fit = jm.fit(wide.assign(**{name: k * wide[name] + h for name, (k, h) in UNITS.items()}), TERMS, reml=reml)
    assert base.converged
    assert fit.converged
    linear, offset = np.zeros((12, 12)), np.zeros(12)
    for equation, own in zip(TERMS.equations, (slice(0, 4), slice(4, 12)), strict=True):
        scale, shift = UNITS[equation.outcome]
        inverse = np.linalg.inv(moved_terms(equation.predictors, UNITS))
        linear[own, own], offset[own] = scale * inverse, shift * inverse[:, equation.predictors.index("1")]
    for kind in ("block", "joint"):
        expected = linear @ base.cov_params(kind).to_numpy() @ linear.T
        error = np.sqrt(np.diag(expected))
        np.testing.assert_allclose((fit.cov_params(kind) - expected) / np.outer(error, error), 0, atol=1e-6)
    np.testing.assert_allclose((fit.params - linear @ base.params.to_numpy() - offset) / error, 0, atol=1e-6)
    at = [TERMS.labels.index(label) for label in TERMS.random_labels]
    g = linear[np.ix_(at, at)] @ base.random_cov @ linear[np.ix_(at, at)].T
    sd = np.sqrt(np.diag(g))
    np.testing.assert_allclose((fit.random_cov.to_numpy() - g) / np.outer(sd, sd), 0, atol=1e-6)
    scales = np.array([UNITS[outcome][0] for outcome in TERMS.outcomes])
    np.testing.assert_allclose(fit.residual_var, base.residual_var * scales**2, rtol=1e-6)
    change = -np.dot(base.sample_summary.used, np.log(scales)) + reml * np.linalg.slogdet(linear)[1]
    assert fit.loglik - base.loglik == pytest.approx(change, rel=1e-9)


def test_terms_equal_the_same_columns_made_by_hand(wide):
    """Products, indicators, deviations and means written into the data first; rounding, as for the order of rows."""
    predictors = ["1", "within(m)", "between(m)", "w", "within(m):w", "x:c", "x", "c", "site[west]", "x:site[south]"]
    system = jm.System([jm.Equation("y", predictors, ["1", "within(m)", "x:site[south]"])], "id", "diagonal")
    names = {name: f"v{k}" for k, name in enumerate(predictors) if name not in ("1", *wide.columns)}
    by_hand = wide.assign(**{column: dense.term(wide, name, "id") for name, column in names.items()})
    equation = system.equations[0]
    plain = jm.Equation("y", [names.get(n, n) for n in equation.predictors], [names.get(n, n) for n in equation.random])
    fit, base = jm.fit(wide, system), jm.fit(by_hand, jm.System([plain], "id", "diagonal"))
    assert (
        fit.sample_summary.used
        == base.sample_summary.used
        == (wide["m"].notna().where(wide["y"].notna(), False).sum(),)
    )
    assert_same(fit, base, 1e-8)


def test_order_of_equations_with_correlated_residuals(wide):
    """Estimates and covariances by label; 1e-7 as the last Newton step differs."""
    equations = jm.Equation("m", ["1", "x"], ["1"]), jm.Equation("v", ["1", "x", "w"], ["1", "x"])
    base = jm.fit(wide, jm.System(equations, "id", "block", residuals=[["m", "v"]]))
    fit = jm.fit(wide, jm.System(equations[::-1], "id", "block", residuals=[["v", "m"]]))
    at = [[canonical(label) for label in fit.labels].index(canonical(label)) for label in base.labels]
    error = np.sqrt(np.diag(base.joint))
    np.testing.assert_allclose((fit.values[at] - base.values) / error, 0, atol=1e-7)
    np.testing.assert_allclose((fit.joint[np.ix_(at, at)] - base.joint) / np.outer(error, error), 0, atol=1e-7)
    assert fit.loglik == pytest.approx(base.loglik, rel=1e-12)


def canonical(label: str) -> tuple[str, ...]:
    """A covariance is the same with its ends exchanged."""
    return tuple(sorted(label.split("~~")))


def test_groups_of_random_effects_say_what_the_named_structures_say(unbalanced):
    m, y = [f"m~{name}" for name in ("1", "x")], [f"y~{name}" for name in ("1", "m", "x")]
    for named, groups in (("unstructured", [m + y]), ("block", [y, m]), ("diagonal", [[label] for label in y + m])):
        systems = (jm.System(MODEL.system().equations, "id", covariance) for covariance in (named, groups))
        base, fit = (jm.fit(unbalanced, system) for system in systems)
        assert fit.labels == base.labels
        assert_same_bits(fit, base)


# The computation -----------------------------------------------------------------------------------------------------


def test_starting_values(base, unbalanced):
    """Twenty poor starts, standard deviations between 1/20 and 20 times those of the columns, end in one optimum."""
    layout, data = prepared(base)
    rng = np.random.default_rng(17)
    missed = []
    for _ in range(20):
        start = rng.normal(size=layout.n_theta) * np.exp(rng.uniform(-3, 1.5))
        start[len(layout.free) :] = rng.uniform(-3, 3, layout.n_equations)
        with jax.enable_x64(True):
            found = jax.tree.map(np.asarray, solve_from("jax", layout, data, start, 100, optimise.WARM_UP)[0])
        gap = found.evaluation.value - base.trace[-1][1]
        if found.status != Status.CONVERGED or abs(gap) > 1e-8:
            missed.append((int(found.status), float(gap), int(found.n_iter), start))
    assert not missed


@pytest.mark.parametrize("zero", ["one variance", "all variances"])
def test_starting_at_a_singular_fit(unbalanced, zero):
    """A start with zero variances, such as the optimum of a subsample or of the fit behind a bootstrap may be."""
    random = {"m": ["1", "x"], "y": ["1", "m"]}
    fit = jm.fit(unbalanced, jm.Mediation("x", "m", "y", "id", random=random, covariance="diagonal"))
    layout, data = prepared(fit)
    start = fit.working.theta.copy()
    start[[3] if zero == "one variance" else range(4)] = 0.0
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, solve_from("jax", layout, data, start, 100, optimise.WARM_UP)[0])
    assert found.status == Status.CONVERGED
    assert found.evaluation.value == pytest.approx(fit.trace[-1][1], rel=0, abs=1e-8)


def test_repeated_fits_are_identical(unbalanced, base):
    assert_same_bits(jm.fit(unbalanced, MODEL), base)


def test_threads_do_not_disturb_each_other(unbalanced, base):
    """Four fits at once, also of another method in between: the bits of a single thread."""
    ml = jm.fit(unbalanced, MODEL, reml=False)
    with ThreadPoolExecutor(4) as pool:
        fits = list(pool.map(lambda i: jm.fit(unbalanced, MODEL, reml=i % 3 > 0), range(12)))
    for i, fit in enumerate(fits):
        assert_same_bits(fit, base if i % 3 else ml)


@pytest.mark.parametrize("setting", [True, False])
def test_the_users_scope_of_x64_does_not_matter(unbalanced, base, setting):
    with jax.enable_x64(setting):
        assert_same_bits(jm.fit(unbalanced, MODEL), base)
        assert jax.numpy.zeros(1).dtype == (np.float64 if setting else np.float32)


def test_the_users_default_dtype_and_precision_do_not_matter(unbalanced, base):
    """Lower matmul precision that a user set for a neural network must not reach the likelihood; 1e-8 as above."""
    with jax.default_matmul_precision("bfloat16"), jax.numpy_dtype_promotion("standard"):
        assert_same(jm.fit(unbalanced, MODEL), base, 1e-8)


FIT = """
import hashlib, sys, jax, numpy as np, pandas as pd, jaxmed as jm
if sys.argv[2] == "config":
    jax.config.update("jax_enable_x64", True)
before = dict(jax.config.values)
fit = jm.fit(pd.read_csv(sys.argv[1]), x="x", m="m", y="y", cluster="id")
fit.effects(), fit.ranef(), fit.summary()
assert dict(jax.config.values) == before
assert jax.numpy.ones(1).dtype == np.float64
print(hashlib.sha256(b"".join(a.tobytes() for a in (fit.values, fit.joint, fit.block, fit.working.theta))).hexdigest())
"""


@pytest.mark.parametrize("flag", ["environment", "config"])
def test_the_users_global_x64_flag_does_not_matter(base, flag):
    """A process whose flag is on, from outside or by its own code, gives the bits of this one, keeps its settings."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIT, str(REFERENCE / "unbalanced.csv"), flag],
        env=os.environ | {"JAX_ENABLE_X64": str(int(flag == "environment"))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    arrays = (base.values, base.joint, base.block, base.working.theta)
    assert done.stdout.strip() == hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


# Hard and degenerate data ---------------------------------------------------------------------------------------------


def test_the_certificate_does_not_depend_on_the_damping(base):
    """At the optimum, with the damping still high from steps lost to rounding: nothing is left to gain all the same."""
    layout, data = prepared(base)
    with jax.enable_x64(True):
        step = jax.jit(newton.step, static_argnums=0)
        trace = jax.numpy.full((optimise.LOGGED, 3), np.nan)
        theta = jax.numpy.asarray(base.working.theta)
        first = step(layout, data, newton.start(layout, theta, jax.numpy.asarray(0), trace))
        found = jax.tree.map(np.asarray, step(layout, data, first._replace(ridge=jax.numpy.asarray(1.0))))
    assert found.decrement < newton.TARGET
    assert found.status == Status.CONVERGED


def test_the_decrement_is_that_of_an_undamped_step():
    """By hand: H = I, g = 1, ridge 1; the step is -1/2, the decrement 1/2."""
    with jax.enable_x64(True):
        step, ridge, decrement = newton._damped(jax.numpy.eye(1), jax.numpy.ones(1), jax.numpy.ones(()))
    assert float(step[0]) == pytest.approx(-0.5, rel=1e-12)
    assert float(ridge) == 1.0
    assert float(decrement) == pytest.approx(0.5, rel=1e-10)


@pytest.mark.parametrize("sd", [50.0, 300.0])
def test_clusters_far_apart_converge(sd):
    """Intercept sds of 50 and 300 residual sds, where rounding of the likelihood is large beside its value."""
    data = jm.datasets.load_example()
    for seed in range(3):
        u = np.random.default_rng(seed).normal(0, sd, data["id"].nunique() + 1)
        fit = jm.fit(data.assign(y=data["y"] + u[data["id"]]), x="x", m="m", y="y", cluster="id")
        assert fit.converged
        assert fit.decrement < 1e-10


def test_standard_errors_at_a_singular_fit_do_not_depend_on_the_order_of_predictors():
    """Cluster-mean centred data: the intercept variances are zero, first or last in the root of G."""
    data = jm.datasets.load_example()
    columns = ["x", "m", "y"]
    data[columns] -= data.groupby("id")[columns].transform("mean")
    tables = []
    for order in (["1", "x"], ["x", "1"]):
        equations = [jm.Equation("m", order, random=order), jm.Equation("y", ["1", "m", "x"], random=["1", "m"])]
        with pytest.warns(jm.DesignWarning, match="intraclass correlation of about -0.14"):  # -1/7 in clusters of 8
            fit = jm.fit(data, jm.System(equations, cluster="id"))
        assert fit.singular
        assert fit.reduced_rank
        tables.append(fit.random_cov_se.loc[["m~1", "m~x", "y~1", "y~m"], ["m~1", "m~x", "y~1", "y~m"]])
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-6, atol=1e-9)


def test_effects_of_very_different_size_converge_and_are_said_to_be_imprecise():
    """b varies 1e7 times as much as the other slopes, for which the shared start is thousands of times too large.

    The variance of b is then that of the drawn slopes, to twice their sampling error by their sd.
    """
    rng = np.random.default_rng(1)
    at = np.repeat(np.arange(40), 8)
    u = rng.normal(size=(40, 5)) * [0.6, 0.4, 0.6, 3e3, 0.4]
    x, e_m, e_y = rng.normal(size=(3, 320))
    m = u[at, 0] + (0.5 + u[at, 1]) * x + e_m
    y = u[at, 2] + (0.4 + u[at, 3]) * m + (0.2 + u[at, 4]) * x + e_y
    with pytest.warns(jm.ConvergenceWarning, match="imprecise: a random effect varies .e.07 times"):
        fit = jm.fit(pd.DataFrame({"id": at, "x": x, "m": m, "y": y}), MODEL)
    assert fit.converged
    assert fit.imprecise
    assert fit.random_cov.loc["y~m", "y~m"] == pytest.approx(u[:, 3].var(ddof=1), rel=1e-4)
    assert np.all(np.delete(np.diag(fit.random_cov), 3) < 1)


def test_outcomes_without_residual_start_again_without_a_warning():
    """Slopes of sd 1e3 and residuals of 1e-8: least squares by cluster may leave less than nothing to the residual."""
    rng = np.random.default_rng(1)
    at = np.repeat(np.arange(30), 4)
    x, e_m = rng.normal(size=(2, 120))
    m = (1e3 * rng.normal(size=30))[at] * x + 1e-8 * e_m
    system = jm.System([jm.Equation("m", ["1", "x"], ["1", "x"])], "id")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", jm.ConvergenceWarning)
        jm.fit(pd.DataFrame({"id": at, "x": x, "m": m}), system)
