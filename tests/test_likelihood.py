"""The likelihood and its closed-form derivatives against dense matrices and automatic differentiation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.linalg import null_space
from scipy.stats import multivariate_normal

from jaxmed import Equation, Mediation, System
from jaxmed._data import reader, totals
from jaxmed._data.design import make_design
from jaxmed._inference import random_effects
from jaxmed._likelihood import derivatives, likelihood, linalg
from jaxmed._likelihood import layout as params
from jaxmed._likelihood.likelihood import BLOCK

CHAIN = Mediation("x", "m", "y", "id").system()  # m ~ 1 + x, y ~ 1 + m + x
SLOPES = [Equation("m", ["1", "x"], ["1", "x"]), Equation("y", ["1", "m", "x"], ["1", "m"])]

# name -> (system, columns with missing values). Each is compiled for ML and REML, so there are few of them, each with
# something of its own.
SYSTEMS = {
    "one equation, unstructured": (System([Equation("y", ["1", "x"], ["1", "x"])], "id"), ["y"]),
    "no random intercept": (System([Equation("y", ["1", "x", "w"], ["x"])], "id"), ["w"]),
    "1-1-1, all random": (CHAIN, ["y"]),
    "diagonal": (
        Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1", "m"]}, covariance="diagonal").system(),
        [],
    ),
    "block": (
        Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["m", "x"]}, covariance="block").system(),
        ["m", "y"],
    ),
    "three equations": (
        System(
            [
                Equation("m", ["1", "x"], ["x"]),
                Equation("w", ["1", "x"], ["1"]),
                Equation("y", ["1", "m", "w", "x"], ["m", "x"]),
            ],
            "id",
        ),
        ["w", "y"],
    ),
    "no fixed intercept, outcome before its predictor": (
        System([Equation("y", ["m", "1"], ["m", "1"]), Equation("m", ["x", "w"], ["w"])], "id", covariance="block"),
        ["y"],
    ),
    "no random effects": (Mediation("x", "m", "y", "id", random="none").system(), ["y"]),
    "groups of random effects": (System(SLOPES, "id", [["m~1"], ["m~x", "y~m"], ["y~1"]]), ["y"]),
    "correlated residuals": (
        System(
            [
                Equation("m", ["1", "x"], ["1", "x"]),
                Equation("w", ["1", "x"], ["x"]),
                Equation("y", ["1", "m", "w", "x"], ["m"]),
            ],
            "id",
            residuals=[["m", "w"]],
        ),
        ["y"],
    ),
    "correlated residuals, rows with one of two mediators": (
        System(
            [
                Equation("m", ["1", "x"], ["1"]),
                Equation("w", ["1", "x"], ["1", "x"]),
                Equation("y", ["1", "m", "w", "x"], ["w"]),
            ],
            "id",
            residuals=[["m", "w"]],
        ),
        ["m", "w", "y"],
    ),
    "three residuals, rows with any of them": (
        System(
            [Equation("m", ["1", "x"], ["1"]), Equation("w", ["x"]), Equation("y", ["1", "x"], ["1", "x"])],
            "id",
            "block",
            residuals=[["m", "w", "y"]],
        ),
        ["m", "w", "y"],
    ),
    "two groups of residuals, interleaved": (
        System(
            [
                Equation("m", ["1", "x"], ["1"]),
                Equation("v", ["1", "m"], ["m"]),
                Equation("w", ["1", "x"]),
                Equation("y", ["1", "w", "x"], ["1"]),
            ],
            "id",
            residuals=[["y", "v"], ["m", "w"]],
        ),
        ["v", "w"],
    ),
    "no random effects, correlated residuals": (
        System([Equation("m", ["1", "x"]), Equation("y", ["1", "x"])], "id", residuals=[["m", "y"]]),
        ["m", "y"],
    ),
    "mediator of the cluster": (
        System([Equation("c", ["1", "d"], level=2), Equation("y", ["1", "c", "x"], ["1", "x"])], "id"),
        ["c", "x"],
    ),
    "mediators of the cluster, correlated residuals": (
        System(
            [
                Equation("c", ["1", "between(x)"], level=2),
                Equation("y", ["1", "c", "d", "within(x)"], ["1", "within(x)"]),
                Equation("d", ["1", "between(x)", "between(x):e"], level=2),
            ],
            "id",
            residuals=[["c", "d"]],
        ),
        ["x", "d", "y"],
    ),
    "products": (
        System(
            [
                Equation("m", ["1", "x", "c", "x:c"], ["1", "x", "x:c"]),
                Equation("y", ["1", "m", "x", "w", "m:w", "x:c:w", "x:g[B]"], ["1", "m:w"]),
            ],
            "id",
        ),
        ["w", "y"],
    ),
    "products whose zero matters": (
        System([Equation("y", ["w:x", "x", "c:x"], ["w:x", "c:x"]), Equation("w", ["1", "c", "x:c"], ["x:c"])], "id"),
        ["x"],
    ),
    "within and between": (
        System(
            [
                Equation("m", ["1", "within(x)", "between(x)"], ["1", "within(x)"]),
                Equation(
                    "y",
                    ["1", "within(m)", "between(m)", "within(x)", "between(x)", "within(m):w", "between(x):c", "w"],
                    ["1", "within(m)"],
                ),
            ],
            "id",
        ),
        ["x", "m", "y"],
    ),
}
ROWS = ["x", "w", "m", "y", "v"]
CLUSTERS = ["c", "d", "e"]


def make_frame(seed: int, n_clusters: int = 14, missing: list[str] | None = None) -> pd.DataFrame:
    """Unbalanced clusters of 1 to 7 rows (always some of 1 and 2), columns of unlike units that hang together.

    c, d and e belong to the cluster; where they have missing values, it is in some rows and in all of some clusters.
    """
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([[1, 2], rng.integers(1, 8, n_clusters - 2)])
    n = sizes.sum()
    shared = rng.normal(size=n)
    data = pd.DataFrame({"id": np.repeat(rng.permutation(n_clusters), sizes)})
    units = {"x": (2.0, 1.0), "w": (-30.0, 4.0), "m": (0.5, 0.2), "y": (100.0, 30.0), "v": (0.0, 1.0)}
    for name, (mean, sd) in units.items():
        data[name] = mean + sd * (0.6 * shared + rng.normal(size=n))
    for name, (mean, sd) in zip(CLUSTERS, [(-1.0, 0.5), (300.0, 20.0), (3.0, 1.0)], strict=True):
        data[name] = (mean + sd * rng.normal(size=n_clusters))[data["id"]]
    data["g"] = rng.choice(["A", "B", "C"], n)
    for name in missing or []:
        data.loc[rng.random(n) < 0.2, name] = np.nan
        if name in CLUSTERS:
            data.loc[data["id"] % 7 == CLUSTERS.index(name), name] = np.nan
    return data.sample(frac=1, random_state=seed)


def run(function, *arguments):
    """Compiled, in float64, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function, compiler_options=QUICK)(*arguments))


@dataclass(frozen=True)
class Case:
    """A system with data and a point at which to look, on the working scale of the design."""

    name: str
    reml: bool
    zero_row: bool = False

    @property
    def system(self) -> System:
        return SYSTEMS[self.name][0]

    @cached_property
    def data(self) -> pd.DataFrame:
        return make_frame(list(SYSTEMS).index(self.name), missing=SYSTEMS[self.name][1])

    @cached_property
    def filled(self) -> pd.DataFrame:
        """The data with c, d and e on every row of a cluster in which some row has them, as jaxmed reads them."""
        return self.data.assign(**{name: self.data.groupby("id")[name].transform("first") for name in CLUSTERS})

    @cached_property
    def moments(self):
        return reader.read(self.data, self.system)

    @cached_property
    def design(self):
        return make_design(self.system, self.moments)

    @cached_property
    def working(self) -> list[dense.Cluster]:
        """Dense clusters of the working terms (value - shift) / scale."""
        units = {name: (self.design.shift[name], self.design.scale[name]) for name in self.system.terms}
        return dense.stack(self.filled, self.system, units)

    @cached_property
    def layout(self):
        return params.make_layout(self.design, self.reml)

    @cached_property
    def sigma(self) -> np.ndarray:
        """Residual covariance matrix of a row, at working scale."""
        rng = np.random.default_rng(98)
        sd = np.sqrt(rng.uniform(0.5, 1.4, self.layout.n_equations))
        correlation = np.eye(len(sd))
        for e, f in self.layout.pairs:
            correlation[e, f] = correlation[f, e] = rng.uniform(0.2, 0.6) * rng.choice([-1, 1])
        assert np.linalg.eigvalsh(correlation)[0] > 0.05
        return correlation * np.outer(sd, sd)

    @cached_property
    def point(self) -> tuple[np.ndarray, np.ndarray]:
        """Root of G (its last row zero if ``zero_row``) and tau."""
        rng = np.random.default_rng(99)
        q = self.layout.n_random
        root = np.zeros((q, q))
        for row, col in self.layout.free:
            root[row, col] = rng.uniform(0.3, 0.9) if row == col else rng.normal(0, 0.4)
        if self.zero_row:
            root[-1] = 0.0
        precisions = [np.linalg.inv(self.sigma[np.ix_(seen, seen)]) for seen in self.layout.seen]
        return root, np.concatenate([precision[np.triu_indices(len(precision))] for precision in precisions])

    @cached_property
    def core(self) -> np.ndarray:
        """The same point as (free entries of G, tau)."""
        root, tau = self.point
        return np.array([*((root @ root.T)[pair] for pair in self.layout.free), *tau])

    def split(self, core):
        """(free entries of G, tau) -> G, residual covariances by the equations that a row is seen in; also complex."""
        n, at = self.layout.n_equations, len(self.layout.free)
        g = dense.symmetric(core[:at], self.layout.free, self.layout.n_random)
        sigma = np.full((2**n, n, n), np.nan, dtype=core.dtype)
        for seen in self.layout.seen:
            pairs = tuple(zip(*np.triu_indices(len(seen)), strict=True))
            precision = dense.symmetric(core[at : at + len(pairs)], pairs, len(seen))
            sigma[np.ix_([sum(2**e for e in seen)], seen, seen)] = np.linalg.inv(precision)
            at += len(pairs)
        assert at == len(core)
        return g, sigma

    def dense_loss(self, core):
        return -dense.loglik(self.working, *self.split(core), self.reml)

    @cached_property
    def packed(self) -> likelihood.Data:
        return likelihood.make_data(self.design.table, params.count_rows(self.layout, self.system, self.totals))

    @cached_property
    def totals(self) -> totals.Totals:
        return totals.add_up(self.design)

    @cached_property
    def evaluation(self) -> derivatives.Evaluation:
        return self.run(derivatives.evaluate)

    def run(self, function, data: likelihood.Data | None = None):
        """A function of the layout, root, tau and data at the point."""
        return run(partial(function, self.layout), *self.point, data or self.packed)


# The arithmetic is under test here; what the compiler makes of it at full optimisation, wherever a model is fitted.
QUICK = {"xla_backend_optimization_level": 0}

# Compiling costs seconds: REML of every system (it contains ML's terms); ML of those that need no more than columns and
# of one with correlated residuals, and its second derivatives by autodiff of three.
SOME_ROWS = "correlated residuals, rows with one of two mediators"
ML = [*list(SYSTEMS)[:8], SOME_ROWS]
CASES = {f"{name}, REML": Case(name, True) for name in SYSTEMS} | {f"{name}, ML": Case(name, False) for name in ML}
SINGULAR = {
    f"singular G, {'REML' if reml else 'ML'}": Case("1-1-1, all random", reml, zero_row=True) for reml in (False, True)
}
TWICE = {"one equation, unstructured, ML", "1-1-1, all random, ML", f"{SOME_ROWS}, ML"}
BOTH = {name: case for name, case in CASES.items() if case.reml or name in TWICE}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=BOTH)
def autodiff_case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=CASES | SINGULAR)
def any_case(request) -> Case:
    return (CASES | SINGULAR)[request.param]


def assert_close(found, expected, tolerance: float) -> None:
    """Largest difference, relative to the largest entry (1e-15 where all should be zero)."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    scale = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale + 1e-15)


# The oracle itself ---------------------------------------------------------------------------------------------------


def test_dense_loglik_is_the_normal_density():
    case = CASES["three equations, ML"]
    g, sigma = case.split(case.core)
    beta = np.linspace(-1, 1, case.layout.n_fixed)
    expected = sum(multivariate_normal(c.x @ beta, dense.covariance(c, g, sigma)).logpdf(c.y) for c in case.working)
    assert dense.loglik(case.working, g, sigma, False, beta) == pytest.approx(expected, rel=1e-12)


def test_dense_reml_is_the_density_of_error_contrasts():
    case = CASES["three equations, REML"]
    g, sigma = case.split(case.core)
    x, y = (np.concatenate([getattr(c, name) for c in case.working]) for name in ("x", "y"))
    v = np.zeros((len(y), len(y)))
    end = np.cumsum([len(c.y) for c in case.working])
    for stop, c in zip(end, case.working, strict=True):
        v[stop - len(c.y) : stop, stop - len(c.y) : stop] = dense.covariance(c, g, sigma)
    contrasts = null_space(x.T)
    expected = multivariate_normal(cov=contrasts.T @ v @ contrasts).logpdf(contrasts.T @ y)
    constant = np.linalg.slogdet(x.T @ x)[1] / 2
    assert dense.loglik(case.working, g, sigma, True) + constant == pytest.approx(expected, rel=1e-12)


# Value ---------------------------------------------------------------------------------------------------------------


def test_value_equals_dense_on_the_users_scale(case):
    """1e-9 relative: working columns are rounded, and sums of squares of the user's columns are large."""
    scale = params.make_scale(case.design, case.layout, [sums.rows for sums in case.totals.equations])
    unit = scale.linear[np.ix_(case.layout.random, case.layout.random)]
    units = np.array([case.design.scale[outcome] for outcome in case.system.outcomes])
    g, sigma = case.split(case.core)[0], case.sigma * np.outer(units, units)
    clusters = dense.stack(case.filled, case.system)
    expected = dense.loglik(clusters, unit @ g @ unit.T, sigma, case.reml)
    assert scale.loglik - case.run(likelihood.value) == pytest.approx(expected, rel=1e-9)
    beta, information = dense.gls(clusters, unit @ g @ unit.T, sigma)
    found = scale.linear @ case.evaluation.beta + scale.offset
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    np.testing.assert_allclose((found - beta) / error, 0, atol=1e-8)


def test_data_really_are_unbalanced_and_incomplete():
    """The cases above would prove little if the frames were tidy."""
    sizes = [len(c.y) for c in CASES["one equation, unstructured, ML"].working]
    assert min(sizes) == 1
    assert len(set(sizes)) > 3
    three = CASES["three equations, ML"].moments
    assert len(three.patterns) == 3  # rows that count for m alone, for m and w, for all (y's equation needs w)
    assert three.sample_summary.used[0] > three.sample_summary.used[1] > three.sample_summary.used[2]
    assert CASES[f"{SOME_ROWS}, ML"].layout.seen == ((0,), (0, 1), (1,), (2,))
    assert {(0, 1), (0, 2), (1, 2), (0, 1, 2)} < set(CASES["three residuals, rows with any of them, REML"].layout.seen)
    assert CASES["two groups of residuals, interleaved, REML"].layout.pairs == ((2, 0), (3, 1))
    for name in ("mediator of the cluster", "mediators of the cluster, correlated residuals"):
        case = CASES[f"{name}, REML"]
        rows = [sums.rows for sums in case.totals.equations]
        assert rows[0] < case.data["id"].nunique() < rows[1]
    means = CASES["within and between, REML"]
    assert {"x"} in [set(pattern.observed) for pattern in means.moments.patterns]  # counts in a mean and nowhere else


def test_value_gradient_and_evaluate_agree(autodiff_case):
    """Three routes to the same sums; 1e-13 is rounding in another order of operations."""
    evaluation = autodiff_case.evaluation
    f, gradient = autodiff_case.run(derivatives.gradient)
    assert autodiff_case.run(likelihood.value) == pytest.approx(evaluation.value, rel=1e-13)
    assert f == pytest.approx(evaluation.value, rel=1e-13)
    assert_close(gradient, evaluation.gradient, 1e-13)


# Derivatives ---------------------------------------------------------------------------------------------------------


def test_derivatives_equal_automatic_ones(autodiff_case):
    """Closed forms against jax.grad and jax.hessian of the definition, through the Cholesky root of G."""
    case = autodiff_case
    layout, n_free = case.layout, len(case.layout.free)
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T

    def loss(core, data):
        g = jnp.zeros((layout.n_random,) * 2).at[row, col].set(core[:n_free]).at[col, row].set(core[:n_free])
        root = linalg.cholesky(g) if n_free else g
        return likelihood.negative_loglik(layout, root, core[n_free:], data)

    def gradient_twice(core, data):
        gradient = jax.grad(loss)(core, data)
        return gradient, gradient

    with jax.enable_x64(True):
        both = jax.jacfwd(gradient_twice, has_aux=True)  # jax.hessian, keeping the gradient: one compilation
        hessian, gradient = jax.jit(both, compiler_options=QUICK)(case.core, case.packed)
    assert_close(case.evaluation.gradient, gradient, 1e-10)
    assert_close(case.evaluation.hessian, hessian, 1e-9)


def test_gradient_equals_dense(any_case):
    """Complex-step derivatives of the dense likelihood are exact to rounding; 1e-9 leaves room for inverting V."""
    assert_close(any_case.evaluation.gradient, dense.gradient(any_case.dense_loss, any_case.core), 1e-9)


def test_numpy_gives_the_same_evaluation(any_case):
    """The same formulas by both executors, clusters in one block and in several; 1e-11 is rounding."""
    case = any_case
    counts = tuple(case.packed.n_rows)
    for block in (512, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(likelihood, "NUMPY_BLOCK", block)
            data = likelihood.make_numpy_data(case.design.table, counts)
        found = derivatives.evaluate(case.layout, *case.point, data)
        for name, own in found._asdict().items():
            assert isinstance(own, (np.ndarray, np.floating)), name
            assert_close(own, getattr(case.evaluation, name), 1e-11)


def test_hessian_equals_dense(any_case):
    """Central differences of the exact gradient, h = 1e-4 of a parameter: h^2 gives 1e-8, rounding eps/h some 1e-11."""
    expected = dense.hessian(any_case.dense_loss, any_case.core, 1e-4 * np.maximum(np.abs(any_case.core), 0.1))
    assert_close(any_case.evaluation.hessian, expected, 1e-7)


def test_beta_and_its_jacobian_equal_dense(any_case):
    def beta(core):
        return dense.gls(any_case.working, *any_case.split(core))[0]

    evaluation = any_case.evaluation
    assert_close(evaluation.beta, beta(any_case.core), 1e-10)
    assert_close(evaluation.beta_jacobian, dense.gradient(beta, any_case.core), 1e-9)
    information = dense.gls(any_case.working, *any_case.split(any_case.core))[1]
    assert_close(evaluation.beta_cov, np.linalg.inv(information), 1e-10)


def test_singular_point_is_singular():
    case = SINGULAR["singular G, REML"]
    assert np.linalg.eigvalsh(case.split(case.core)[0])[0] == pytest.approx(0, abs=1e-14)
    assert np.all(np.isfinite(case.evaluation.hessian))


# Blocks and padding --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> Case:
    """300 clusters: more than two blocks."""
    case = Case("one equation, unstructured", True)
    object.__setattr__(case, "data", make_frame(7, n_clusters=300, missing=["y"]))
    return case


def test_blocks_equal_the_one_block_definition(many):
    assert int(many.packed.n_blocks) == 3
    whole = many.run(likelihood.negative_loglik)
    assert many.evaluation.value == pytest.approx(whole, rel=1e-12)
    assert -many.evaluation.value == pytest.approx(-many.dense_loss(many.core), rel=1e-10)
    assert_close(many.evaluation.gradient, dense.gradient(many.dense_loss, many.core), 1e-9)


def test_predictions_in_blocks_keep_the_order_of_clusters(many):
    g, sigma = many.split(many.core)
    beta = many.evaluation.beta
    found = many.run(lambda layout, root, tau, data: random_effects.posterior(layout, root, tau, beta, data))
    present = np.isin(many.moments.clusters, [c.label for c in many.working])
    expected = dense.blups(many.working, g, sigma, beta)
    assert_close(found.effects[:, : many.moments.n_clusters][:, present].T, expected, 1e-10)
    assert np.all(found.effects[:, many.moments.n_clusters :] == 0)


def test_padding_changes_nothing():
    """Empty clusters add exact zeros; 1e-12: a loop over blocks is another program, which may round otherwise."""
    case = CASES["block, REML"]
    table = case.packed.table
    longer = likelihood.Data(np.concatenate([table, np.zeros_like(table)]), np.int64(2), case.packed.n_rows)
    jax.tree.map(
        lambda padded, plain: np.testing.assert_allclose(padded, plain, rtol=1e-12, atol=1e-12 * np.max(np.abs(plain))),
        case.run(derivatives.evaluate, longer),
        case.evaluation,
    )


def test_blocks_beyond_n_blocks_are_not_visited():
    case = CASES["block, REML"]
    table = case.packed.table
    poisoned = likelihood.Data(np.concatenate([table, table * np.nan]), np.int64(1), case.packed.n_rows)
    assert case.run(likelihood.value, poisoned) == case.run(likelihood.value)


def test_padded_sizes_are_few_and_monotone():
    """New data of similar size must meet a compiled program; what is padded is not visited."""
    whole = BLOCK * np.arange(1, 80)
    clusters = np.unique(np.concatenate([np.arange(1, 2000, 7), whole, whole + 1]))
    sizes, used = [], []
    for n in clusters:
        data = likelihood.make_data(np.ones((1, n)), (int(n),))
        sizes.append(len(data.table))
        used.append(int(data.n_blocks))
        assert data.table.shape[1:] == (1, BLOCK)
        assert data.table.sum() == n
    sizes, used = np.array(sizes), np.array(used)
    assert np.all(used == -(-clusters // BLOCK))
    assert np.all(np.diff(sizes) >= 0)
    assert sorted(set(sizes.tolist())) == [1, 8, 64, 512]


def test_make_data_keeps_the_moments_and_counts(case):
    """Rows by the set of equations that they are seen in; without correlated residuals, by equation."""
    n = case.moments.n_clusters
    table = np.concatenate(case.packed.table, axis=1)
    np.testing.assert_array_equal(table[:, :n], case.design.table)
    assert not table[:, n:].any()
    counts = [
        [np.sum(c.seen == sum(2**e for e in seen)) / len(seen) for c in case.working] for seen in case.layout.seen
    ]
    assert case.packed.n_rows.tolist() == [sum(own) for own in counts]
    by_equation = [sum(np.sum(c.equation == e) for c in case.working) for e in range(case.layout.n_equations)]
    assert [sums.rows for sums in case.totals.equations] == by_equation
    if not case.system.residuals:
        assert case.packed.n_rows.tolist() == by_equation


# Terms ---------------------------------------------------------------------------------------------------------------


def test_cross_products_of_terms_equal_dense(case):
    """Working predictors and outcome of every equation, cluster by cluster; 1e-12 of the largest entry is rounding."""
    present = np.isin(case.moments.clusters, [c.label for c in case.working])
    for e, start in enumerate(case.layout.starts):
        own = slice(start, start + case.layout.sizes[e])
        stacked = [np.column_stack([c.x[:, own], c.y])[c.equation == e] for c in case.working]
        names = case.design.names(e)
        (packed,) = totals.packed_products(case.design, e, names)
        expected = np.stack([rows.T @ rows for rows in stacked], axis=-1)
        assert_close(packed[:, present], expected[np.triu_indices(len(names))], 1e-12)
        sums = case.totals.equations[e]
        assert_close(sums.among(names), expected.sum(axis=-1), 1e-12)
        around = sum((rows - rows.mean(axis=0)).T @ (rows - rows.mean(axis=0)) for rows in stacked if len(rows))
        at = sums.index(names)
        rounding = 1e-13 * np.abs(sums.total).max()
        np.testing.assert_allclose(sums.within[np.ix_(at, at)], around, rtol=0, atol=rounding)
        assert sums.clusters == sum(len(rows) > 0 for rows in stacked)
        random = case.system.equations[e].random
        if random:
            change = np.random.default_rng(e).normal(size=(len(random), len(random)))
            own = [names.index(name) for name in random]
            moved = np.einsum("ab,bcj,dc->adj", change, expected[np.ix_(own, own)], change)
            found = totals.outer_products(case.design, e, random, change)
            assert_close(found, np.einsum("abj,cdj->abcd", moved, moved), 1e-11)
    assert case.totals.rows == sum(len(c.y) for c in case.working)
    sizes = [len(c.y) for c in case.working]
    assert (case.totals.clusters, case.totals.smallest, case.totals.largest) == (len(sizes), min(sizes), max(sizes))


def test_totals_of_some_clusters_add_up(case):
    """Parts of the clusters, one of them as plain data (as another process sends it), equal the whole."""
    one, other = (totals.add_up(case.design.part(part)) for part in (slice(0, 5), slice(5, None)))
    found = one + totals.totals_from_dict(json.loads(json.dumps(other.to_dict())))
    for part, whole in zip(found.equations, case.totals.equations, strict=True):
        assert (part.names, part.clusters, part.rows) == (whole.names, whole.clusters, whole.rows)
        assert_close(part.total, whole.total, 1e-13)
        np.testing.assert_allclose(part.within, whole.within, rtol=0, atol=1e-13 * np.abs(whole.total).max())
    assert found.blocks == case.totals.blocks
    for name in ("clusters", "smallest", "largest", "rows"):
        assert getattr(found, name) == getattr(case.totals, name)


def test_totals_in_chunks(case, shrink):
    shrink(totals_clusters=3)
    found = totals.add_up(case.design)
    for part, whole in zip(found.equations, case.totals.equations, strict=True):
        assert_close(part.total, whole.total, 1e-13)
        np.testing.assert_allclose(part.within, whole.within, rtol=0, atol=1e-13 * np.abs(whole.total).max())


def test_moments_without_needless_products_give_the_same_design(case):
    """Products with a column of the cluster follow from the others; the same to rounding."""
    lean = make_design(case.system, case.moments.lean())
    assert (lean.shift, lean.scale) == (case.design.shift, case.design.scale)
    assert_close(lean.table, case.design.table, 1e-12)


def test_a_term_is_shifted_only_where_that_leaves_the_model_as_it_is(case):
    for name in case.system.terms:
        assert case.design.shift[name] == 0 or name in case.system.centred
        assert np.log2(case.design.scale[name]) % 1 == 0
    no_intercept = CASES["products whose zero matters, REML"].design
    assert [name for name, shift in no_intercept.shift.items() if shift] == ["c", "w"]  # main effects beside "1"
    assert CASES["products, REML"].design.shift["m:w"] != 0


@pytest.mark.parametrize("part", [slice(None, None, 3), slice(2, 9)])
def test_the_design_of_some_clusters(case, part):
    """What a fit to very many clusters starts from."""
    some = case.design.part(part)
    labels = set(case.moments.clusters[part])
    assert some.n_clusters == len(labels)
    np.testing.assert_array_equal(some.table, case.design.table[:, part])
    inside = [c for c in case.working if c.label in labels]
    sums = totals.add_up(some)
    rows = [sum(np.sum(c.equation == e) for c in inside) for e in range(case.layout.n_equations)]
    assert [found.rows for found in sums.equations] == rows
    counts = [sum(np.sum(c.seen == sum(2**e for e in s)) / len(s) for c in inside) for s in case.layout.seen]
    assert list(params.count_rows(case.layout, case.system, sums)) == counts


# Residual (co)variances ----------------------------------------------------------------------------------------------

CORRELATED = {name: case for name, case in CASES.items() if case.layout.pairs}


@pytest.fixture(params=CORRELATED)
def correlated(request) -> Case:
    return CORRELATED[request.param]


def entries_of(layout: params.Layout) -> tuple[tuple[int, int], ...]:
    return (*((e, e) for e in range(layout.n_equations)), *layout.pairs)


def variances(case: Case) -> np.ndarray:
    return np.array([*np.diag(case.sigma), *(case.sigma[pair] for pair in case.layout.pairs)])


def spread(case: Case) -> np.ndarray:
    """Inverse of ``log_sds_to_variances``: log sds, and the rows of the root of the correlations up to their length."""
    sd = np.sqrt(np.diag(case.sigma))
    root = np.linalg.cholesky(case.sigma / np.outer(sd, sd))
    return np.array([*np.log(sd), *(root[e, f] / root[e, e] for e, f in case.layout.pairs)])


def differences(function, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences along the last axis; error some step^2 and 1e-16 / step."""
    points = np.concatenate([at + step * np.eye(len(at)), at - step * np.eye(len(at))])
    above, below = np.split(run(jax.vmap(function), points), 2)
    return np.moveaxis((above - below) / (2 * step), 0, -1)


def test_residual_coordinates_cover_the_covariances(correlated):
    """Round trip from a covariance matrix; 1e-14 is rounding. Any coordinates give a positive definite one."""
    layout = correlated.layout
    rng = np.random.default_rng(2)
    points = np.stack([spread(correlated), *(size * rng.normal(size=layout.n_residual) for size in (0.1, 1.0, 10.0))])
    first, *others = run(jax.vmap(partial(params.log_sds_to_variances, layout)), points)
    assert_close(first, variances(correlated), 1e-14)
    for entries in others:
        matrix = dense.symmetric(entries, entries_of(layout), layout.n_equations)
        unit = 1 / np.sqrt(np.diag(matrix))
        assert np.linalg.eigvalsh(matrix * np.outer(unit, unit))[0] > 0


def test_precisions_invert_the_covariances_of_what_a_row_has(correlated):
    """1e-13 is rounding of small inverses."""
    layout, n_rows = correlated.layout, correlated.packed.n_rows
    tau = run(partial(params.variances_to_precisions, layout), variances(correlated))
    assert_close(tau, correlated.point[1], 1e-13)
    assert_close(run(partial(params.precisions, layout), spread(correlated)), correlated.point[1], 1e-13)
    blocks = [correlated.sigma[np.ix_(seen, seen)] for seen in layout.seen]
    expected = -sum(n * np.linalg.slogdet(block)[1] for n, block in zip(n_rows, blocks, strict=True))
    assert run(partial(params.log_precision, layout), tau, n_rows) == pytest.approx(expected, rel=1e-13)


def test_derivatives_of_residual_coordinates(correlated):
    """Closed forms against central differences of the maps and automatic differentiation of their Jacobians."""
    layout, rng = correlated.layout, np.random.default_rng(6)
    at = spread(correlated)
    expected = differences(partial(params.log_sds_to_variances, layout), at)
    assert_close(run(partial(params.in_log_sds, layout), at), expected, 1e-8)
    at = variances(correlated)
    mapped = partial(params.variances_to_precisions, layout)
    weight = rng.normal(size=len(layout.pieces))
    jacobian, bend = run(partial(params.precision_chain, layout), at, weight)
    assert_close(jacobian, differences(mapped, at), 1e-8)
    assert_close(bend, differences(lambda point: weight @ jax.jacfwd(mapped)(point), at), 1e-8)


def test_derivatives_of_the_volume_of_residuals(correlated):
    """Closed forms against automatic differentiation; 1e-12 is rounding."""
    layout, n_rows, tau = correlated.layout, correlated.packed.n_rows, correlated.point[1]
    volume = partial(params.log_precision, layout)
    slopes = run(partial(params.log_precision_slopes, layout), tau)
    assert_close(n_rows @ slopes, run(jax.grad(volume), tau, n_rows), 1e-12)
    assert_close(
        run(partial(params.log_precision_curvature, layout), tau, n_rows), run(jax.hessian(volume), tau, n_rows), 1e-11
    )


def test_derivatives_of_the_root_and_residual_coordinates(correlated):
    """From entries added to a root with its rows in another order, and residual coordinates, to the free (G, tau)."""
    layout, n_free = correlated.layout, len(correlated.layout.free)
    row, col = np.array(layout.free, dtype=int).reshape(-1, 2).T
    at = spread(correlated)
    weight = np.random.default_rng(8).normal(size=n_free + len(layout.pieces))
    root, order = run(partial(params.triangular, layout, pivot=True), correlated.point[0])
    jacobian, curvature = run(partial(params.root_chain, layout), root, order, at, weight)

    def core(step):
        moved = jnp.asarray(root).at[order[row], col].add(step[:n_free])
        return jnp.concatenate([(moved @ moved.T)[row, col], params.precisions(layout, at + step[n_free:])])

    zero = np.zeros(n_free + len(at))
    assert_close(jacobian, differences(core, zero), 1e-8)
    assert_close(curvature, differences(lambda step: weight @ jax.jacfwd(core)(step), zero), 1e-8)


def test_derivatives_in_residual_covariances_equal_dense(correlated):
    """Through the precisions of all sets of outcomes to the one covariance matrix; tolerances as above."""
    layout, n_free = correlated.layout, len(correlated.layout.free)
    chain = partial(params.precision_chain, layout)
    inner, bend = run(chain, variances(correlated), correlated.evaluation.gradient[n_free:])
    jacobian = np.eye(n_free + len(layout.pieces), n_free + layout.n_residual)
    jacobian[n_free:, n_free:] = inner
    gradient = correlated.evaluation.gradient @ jacobian
    hessian = jacobian.T @ correlated.evaluation.hessian @ jacobian
    hessian[n_free:, n_free:] += bend

    def loss(values):
        g = dense.symmetric(values[:n_free], layout.free, layout.n_random)
        sigma = dense.symmetric(values[n_free:], entries_of(layout), layout.n_equations)
        return -dense.loglik(correlated.working, g, sigma, correlated.reml)

    at = np.concatenate([correlated.core[:n_free], variances(correlated)])
    assert_close(gradient, dense.gradient(loss, at), 1e-9)
    assert_close(hessian, dense.hessian(loss, at, 1e-4 * np.maximum(np.abs(at), 0.1)), 1e-7)
