"""The likelihood and its closed-form derivatives against dense matrices and automatic differentiation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.linalg import null_space
from scipy.stats import multivariate_normal

from jaxmed import Equation, Mediation, System, frame, likelihood, linalg, params
from jaxmed.likelihood import BLOCK

# name -> (system, columns with missing values). Each is compiled for ML and REML, so there are few of them, each with
# something of its own.
SYSTEMS = {
    "one equation, unstructured": (System([Equation("y", ["1", "x"], ["1", "x"])], "id"), ["y"]),
    "no random intercept": (System([Equation("y", ["1", "x", "w"], ["x"])], "id"), ["w"]),
    "1-1-1, all random": (Mediation("x", "m", "y", "id").system(), ["y"]),
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
}


def make_frame(seed: int, n_clusters: int = 14, missing: list[str] | None = None) -> pd.DataFrame:
    """Unbalanced clusters of 1 to 7 rows (always some of 1 and 2), columns of unlike units that hang together."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([[1, 2], rng.integers(1, 8, n_clusters - 2)])
    n = sizes.sum()
    shared = rng.normal(size=n)
    data = pd.DataFrame({"id": np.repeat(rng.permutation(n_clusters), sizes)})
    for name, (mean, sd) in {"x": (2.0, 1.0), "w": (-30.0, 4.0), "m": (0.5, 0.2), "y": (100.0, 30.0)}.items():
        data[name] = mean + sd * (0.6 * shared + rng.normal(size=n))
    for name in missing or []:
        data.loc[rng.random(n) < 0.2, name] = np.nan
    return data.sample(frac=1, random_state=seed)


@dataclass(frozen=True)
class Case:
    """A system with data and a point at which to look, on the working scale of the moments."""

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
    def moments(self):
        return frame.read(self.data, self.system)

    @cached_property
    def working(self) -> list[dense.Cluster]:
        """Dense clusters of the working columns (value - shift) / scale."""
        columns = list(self.moments.columns)
        shifted = (self.data[columns] - self.moments.shift) / self.moments.scale
        return dense.stack(shifted.assign(id=self.data["id"]), self.system)

    @cached_property
    def layout(self):
        return params.make_layout(self.system, self.moments, self.reml)

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
        return root, rng.uniform(0.7, 2.0, self.layout.n_equations)

    @cached_property
    def core(self) -> np.ndarray:
        """The same point as (free entries of G, tau)."""
        root, tau = self.point
        return np.array([*((root @ root.T)[pair] for pair in self.layout.free), *tau])

    def split(self, core):
        """(free entries of G, tau) -> G, residual variances; also for complex values."""
        n_free = len(self.layout.free)
        return dense.symmetric(core[:n_free], self.layout.free, self.layout.n_random), 1 / core[n_free:]

    def dense_loss(self, core):
        return -dense.loglik(self.working, *self.split(core), self.reml)

    @cached_property
    def packed(self) -> likelihood.Data:
        return likelihood.make_data(self.moments.table, self.moments.intake.used)

    @cached_property
    def evaluation(self) -> likelihood.Evaluation:
        return self.run(likelihood.evaluate)

    def run(self, function, data: likelihood.Data | None = None):
        """A function of ``likelihood`` at the point, compiled, as NumPy."""
        with jax.enable_x64(True):
            compiled = jax.jit(function, static_argnums=0, compiler_options=QUICK)
            return jax.tree.map(np.asarray, compiled(self.layout, *self.point, data or self.packed))


CASES = {f"{name}, {'REML' if reml else 'ML'}": Case(name, reml) for name in SYSTEMS for reml in (False, True)}
SINGULAR = {
    f"singular G, {'REML' if reml else 'ML'}": Case("1-1-1, all random", reml, zero_row=True) for reml in (False, True)
}


# The arithmetic is under test here; what the compiler makes of it at full optimisation, wherever a model is fitted.
QUICK = {"xla_backend_optimization_level": 0}

# Compiling second derivatives costs seconds: REML of every system (it contains ML's terms), ML of two.
BOTH = {name: case for name, case in CASES.items() if case.reml or case.name in list(SYSTEMS)[:3:2]}


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
    g, sigma2 = case.split(case.core)
    beta = np.linspace(-1, 1, case.layout.n_fixed)
    expected = sum(multivariate_normal(c.x @ beta, dense.covariance(c, g, sigma2)).logpdf(c.y) for c in case.working)
    assert dense.loglik(case.working, g, sigma2, False, beta) == pytest.approx(expected, rel=1e-12)


def test_dense_reml_is_the_density_of_error_contrasts():
    case = CASES["three equations, REML"]
    g, sigma2 = case.split(case.core)
    x, y = (np.concatenate([getattr(c, name) for c in case.working]) for name in ("x", "y"))
    v = np.zeros((len(y), len(y)))
    end = np.cumsum([len(c.y) for c in case.working])
    for stop, c in zip(end, case.working, strict=True):
        v[stop - len(c.y) : stop, stop - len(c.y) : stop] = dense.covariance(c, g, sigma2)
    contrasts = null_space(x.T)
    expected = multivariate_normal(cov=contrasts.T @ v @ contrasts).logpdf(contrasts.T @ y)
    constant = np.linalg.slogdet(x.T @ x)[1] / 2
    assert dense.loglik(case.working, g, sigma2, True) + constant == pytest.approx(expected, rel=1e-12)


# Value ---------------------------------------------------------------------------------------------------------------


def test_value_equals_dense_on_the_users_scale(case):
    """1e-9 relative: working columns are rounded, and sums of squares of the user's columns are large."""
    scale = params.make_scale(case.system, case.layout, case.moments)
    unit = scale.linear[np.ix_(case.layout.random, case.layout.random)]
    g, sigma2 = case.split(case.core)
    units = dict(zip(case.moments.columns, case.moments.scale, strict=True))
    sigma2 = sigma2 * np.array([units[outcome] for outcome in case.system.outcomes]) ** 2
    clusters = dense.stack(case.data, case.system)
    expected = dense.loglik(clusters, unit @ g @ unit.T, sigma2, case.reml)
    assert scale.loglik - case.run(likelihood.value) == pytest.approx(expected, rel=1e-9)
    beta, information = dense.gls(clusters, unit @ g @ unit.T, sigma2)
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
    assert three.intake.used[0] > three.intake.used[1] > three.intake.used[2]


def test_value_gradient_and_evaluate_agree(autodiff_case):
    """Three routes to the same sums; 1e-13 is rounding in another order of operations."""
    evaluation = autodiff_case.evaluation
    f, gradient = autodiff_case.run(likelihood.gradient)
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
    g, sigma2 = many.split(many.core)
    beta = many.evaluation.beta
    found = many.run(lambda layout, root, tau, data: likelihood.predict(layout, root, tau, beta, data))
    present = np.isin(many.moments.clusters, [c.label for c in many.working])
    expected = dense.blups(many.working, g, sigma2, beta)
    assert_close(found.effects[:, : many.moments.n_clusters][:, present].T, expected, 1e-10)
    assert np.all(found.effects[:, many.moments.n_clusters :] == 0)


def test_padding_changes_nothing():
    """Empty clusters add exact zeros: in the same block bit by bit, in further blocks too."""
    case = CASES["block, REML"]
    table = case.packed.table
    longer = likelihood.Data(np.concatenate([table, np.zeros_like(table)], axis=1), np.int64(2), case.packed.n_rows)
    for padded in jax.tree.leaves(jax.tree.map(np.array_equal, case.run(likelihood.evaluate, longer), case.evaluation)):
        assert padded


def test_blocks_beyond_n_blocks_are_not_visited():
    case = CASES["block, REML"]
    table = case.packed.table
    poisoned = likelihood.Data(np.concatenate([table, table * np.nan], axis=1), np.int64(1), case.packed.n_rows)
    assert case.run(likelihood.value, poisoned) == case.run(likelihood.value)


def test_padded_sizes_are_few_monotone_and_not_wasteful():
    """New data of similar size must meet a compiled program: few sizes, yet never more than 1/3 of the blocks empty."""
    whole = BLOCK * np.arange(1, 600)
    clusters = np.unique(np.concatenate([np.arange(1, 2000, 7), whole, whole + 1]))
    sizes, used = [], []
    for n in clusters:
        data = likelihood.make_data(np.ones((1, n)), (int(n),))
        sizes.append(data.table.shape[1] // BLOCK)
        used.append(int(data.n_blocks))
        assert data.table.shape[1] % BLOCK == 0
        assert data.table.sum() == n
    sizes, used = np.array(sizes), np.array(used)
    assert np.all(used == -(-clusters // BLOCK))
    assert np.all(np.diff(sizes) >= 0)
    assert len(set(sizes.tolist())) <= 2 * np.log2(sizes.max()) + 2
    assert np.all(3 * (sizes - used) <= sizes)


def test_make_data_keeps_the_moments_and_counts():
    case = CASES["three equations, ML"]
    n = case.moments.n_clusters
    np.testing.assert_array_equal(case.packed.table[:, :n], case.moments.table)
    assert not case.packed.table[:, n:].any()
    assert case.packed.n_rows.tolist() == [
        sum(int(np.sum(c.equation == e)) for c in case.working) for e in range(case.layout.n_equations)
    ]
