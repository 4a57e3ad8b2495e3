"""Data drawn as cross-products per cluster, against data drawn row by row."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import root as solve

import jaxmed as jm
from jaxmed._data.design import make_design
from jaxmed._data.reader import read_facts, read_moments
from jaxmed._data.totals import add_up
from jaxmed._inference.estimability import Working
from jaxmed._inference.limits import quantile, quantile_error
from jaxmed._likelihood.layout import make_layout, make_scale
from jaxmed._likelihood.problem import Problem
from jaxmed._refit import sample_moments, sample_rows
from jaxmed._refit.program import seed_key
from jaxmed._refit.refitter import Fitted, _population, _variances, fitted, given_rows, make_refitter
from jaxmed._simulation.replicates import make_origin, make_table
from jaxmed._support import stream
from jaxmed._support.arrays import packed_index

SIZES = (1, 1, 2, 2, 3, 3, 8, 8)  # of every second kind of cluster x is constant
KINDS = len(SIZES)


# Roots of cross-products ---------------------------------------------------------------------------------------------


def test_gram_root():
    """root'root = products to 1e-12 of the largest entry, and the rank is that of the rows' columns (SVD)."""
    rng = np.random.default_rng(3)
    rows = []
    for n in (0, 1, 2, 3, 8, 40):
        for constant in (False, True):
            x, w = rng.normal(size=n) + 3, np.full(n, rng.normal())
            rows.append(np.column_stack([np.ones(n), np.full(n, 1.7) if constant else x, w, x**2, 2 * x - 1]))
    products = np.stack([own.T @ own for own in rows], axis=2)
    root, rank = sample_moments.gram_root(products, np.array([len(own) for own in rows], dtype=float))
    assert rank.tolist() == [np.linalg.matrix_rank(own) if len(own) else 0 for own in rows]
    np.testing.assert_allclose(np.einsum("laj,lbj->abj", root, root), products, rtol=0, atol=1e-12 * products.max())
    for j, r in enumerate(rank.astype(int)):
        assert not root[r:, :, j].any()


@pytest.mark.parametrize("most", [1, 2, 3, 16, 17, 60])
def test_chi_squared(most):
    """Mean, variance and skewness for degrees 1 to ``most`` side by side, within 5 Monte Carlo errors.

    Mean d, variance 2d, skewness sqrt(8/d); up to 16 from uniform numbers, beyond from gamma ones. Errors of the
    variance and the third moment from the moments of the distribution: kurtosis 3 + 12/d, and sixth central moment
    below.
    """
    degrees = np.unique(np.linspace(1, most, min(most, 20)).astype(int)).astype(float)
    n = 40_000
    with jax.enable_x64(True):
        found = np.asarray(sample_moments.chi_squared(jax.random.key(most), np.tile(degrees, (n, 1)), most))
    m2 = 2 * degrees
    m3 = 8 * degrees
    m4 = 12 * degrees**2 + 48 * degrees
    m6 = 120 * degrees**3 + 2080 * degrees**2 + 3840 * degrees
    apart = found - degrees
    assert np.all(found > 0)
    assert np.all(np.abs(apart.mean(axis=0)) < 5 * np.sqrt(m2 / n))
    assert np.all(np.abs((apart**2).mean(axis=0) - m2) < 5 * np.sqrt((m4 - m2**2) / n))
    assert np.all(np.abs((apart**3).mean(axis=0) - m3) < 5 * np.sqrt((m6 - m3**2) / n))


# Draws of tables -----------------------------------------------------------------------------------------------------

MODELS = {
    "1-1-1": jm.Mediation("x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1", "m"]}),
    "centred": jm.Mediation(
        "x",
        "m",
        "y",
        "id",
        random={"m": ["1", "within(x)"], "y": ["1", "within(m)"]},
        center="cluster",
        intercepts="correlated",
    ),
    "moderated": jm.Mediation(
        "x", "m", "y", "id", random={"m": ["1", "x"], "y": ["1", "m"]}, moderators={"w": ["a", "b"]}
    ),
    "parallel": jm.Mediation("x", ["m", "m2"], "y", "id", random={"m": ["1", "x"], "m2": ["1"], "y": ["1", "m2"]}),
    "serial": jm.Mediation(
        "x", ["m", "m2"], "y", "id", serial=True, random={"m": ["1", "x"], "m2": ["1"], "y": ["1", "m2"]}
    ),
    "2-1-1": jm.Mediation("xc", "m", "y", "id", random={"m": ["1"], "y": ["1", "m"]}, center="none"),
    "2-2-1": jm.Mediation("xc", "mc", "y", "id", random={"y": ["1"]}),
}


def frame(copies: int) -> pd.DataFrame:
    """Copies of eight kinds of clusters that differ in size, in x and w, and in what is missing."""
    rng = np.random.default_rng(11)
    parts = []
    for kind, n in enumerate(SIZES):
        x = rng.normal(size=n) + 1
        own = pd.DataFrame({"x": np.full(n, x.mean()) if kind % 2 else x})
        parts.append(own.assign(kind=kind, w=rng.normal(), xc=rng.normal()))
    one = pd.concat(parts, ignore_index=True)
    data = pd.concat([one.assign(id=one["kind"] + KINDS * copy) for copy in range(copies)], ignore_index=True)
    for name in ("m", "m2", "y"):
        data[name] = rng.normal(size=len(data)) + 0.5
    data["mc"] = rng.normal(size=copies * KINDS)[data["id"]]
    row = np.tile(np.arange(len(one)), copies)
    data.loc[np.isin(row, (5, 14, 20)), "y"] = np.nan
    data.loc[np.isin(row, (8, 14, 22, 23)), "m"] = np.nan
    data.loc[np.isin(row, (3, 17)), "m2"] = np.nan
    data.loc[data["kind"] == 2, "mc"] = np.nan
    return data


def population(name: str, copies: int) -> tuple[Fitted, sample_rows.Rows]:
    """A model with parameters as they come, in the place of a fit, and its rows."""
    data, spec = frame(copies), MODELS[name]
    moments = read_moments(data, spec)
    facts = read_facts(data, spec)[1]
    facts = type(facts)(facts.categories, frozenset(moments.cluster_level))
    system = spec.system(facts)
    design = make_design(system, moments)
    layout, totals = make_layout(design, True), add_up(design)
    used = tuple(sums.rows for sums in totals.equations)
    rng = np.random.default_rng(5)
    q = layout.n_random
    factor = 0.3 * rng.normal(size=(q, q)) + 0.6 * np.eye(q)
    cov = factor @ factor.T
    keep = np.zeros((q, q), dtype=bool)
    for row, col in layout.free:
        keep[row, col] = keep[col, row] = True
    assert keep.all()
    residual = np.diag(rng.uniform(0.5, 1.5, layout.n_equations))
    for row, col in layout.pairs:
        residual[row, col] = residual[col, row] = 0.4
    beta = rng.uniform(0.2, 0.8, layout.n_fixed) * rng.choice([-1, 1], layout.n_fixed)
    variances = [cov[row, col] for row, col in layout.free], np.diag(residual), [residual[at] for at in layout.pairs]
    values = np.concatenate([beta, *map(np.array, variances)])
    scale = make_scale(design, layout, used)
    working = np.linalg.solve(scale.matrix, values - np.concatenate([scale.offset, np.zeros(layout.n_theta)]))
    inner = np.zeros((q, q))
    n_free, p = len(layout.free), layout.n_fixed
    for value, (row, col) in zip(working[p : p + n_free], layout.free, strict=True):
        inner[row, col] = inner[col, row] = value
    root = np.linalg.cholesky(inner)
    spread = _spread(layout, working[p + n_free :])
    theta = np.concatenate([[root[row, col] for row, col in layout.free], spread])
    labels = [label for equation in system.equations for label in equation.labels]
    found = SimpleNamespace(
        spec=spec,
        facts=facts,
        system=system,
        reml=True,
        values=values,
        working=Working(theta, working, *[np.full((len(values),) * 2, np.nan)] * 2),
        params=pd.Series(beta, labels),
        fixed=dict(zip(labels, beta, strict=True)),
        random_cov=pd.DataFrame(cov, system.random_labels, system.random_labels),
        residual_cov=pd.DataFrame(residual, system.outcomes, system.outcomes),
        sample_summary=SimpleNamespace(used=used),
    )
    base = Fitted(found, moments, Problem(design, layout), None)
    return base, sample_rows.read_rows(data, found, moments)


def _spread(layout, variances):
    """Optimiser's parameters of residual variances and covariances on the working scale, by solving for them."""
    start = np.concatenate([np.log(variances[: layout.n_equations]) / 2, np.zeros(len(layout.pairs))])
    found = solve(lambda spread: np.asarray(_variances(layout, spread)) - variances, start, tol=1e-14)
    np.testing.assert_allclose(_variances(layout, found.x), variances, rtol=1e-10)
    return found.x


def moment_draws(base: Fitted, count: int) -> np.ndarray:
    """Tables drawn as cross-products, shape (count, rows, J)."""
    plan, known = sample_moments.make_draw_plan(base.problem.design, base.moments)
    people = _population(base)
    with jax.enable_x64(True):
        draw = jax.jit(sample_moments.draw, static_argnums=(0, 1))
        keys = [jax.random.fold_in(jax.random.wrap_key_data(seed_key(7)), k) for k in range(count)]
        return np.stack([np.asarray(draw(base.problem.layout, plan, known, people, key)) for key in keys])


def row_draws(base: Fitted, rows: sample_rows.Rows, count: int) -> np.ndarray:
    """Tables of data drawn row by row, shape (count, rows, J)."""
    drawn = (sample_rows.drawn(rows, base.fit, stream(8, k)) for k in range(count))
    return np.stack(
        [sample_rows.design_of(rows, columns, rows.cluster, base.problem.design).table for columns in drawn]
    )


def by_kind(tables: np.ndarray, copies: int) -> np.ndarray:
    """(count, rows, J) -> (draws, rows, kinds); a kind without rows that count is not among the clusters."""
    count, size, n = tables.shape
    return tables.reshape(count, size, copies, n // copies).swapaxes(1, 2).reshape(-1, size, n // copies)


@pytest.mark.parametrize("name", MODELS)
def test_draws_of_moments_are_distributed_as_draws_of_rows(name):
    """2,000 draws of each kind of cluster: mean and variance of every cross-product within 5 Monte Carlo errors.

    What is not random, among outside columns and counts, agrees to 1e-9 of its size. Parameters are set, not fitted.
    """
    base, rows = population(name, 100)
    one, other = by_kind(moment_draws(base, 20), 100), by_kind(row_draws(base, rows, 20), 100)
    size = np.abs(other).max(axis=0)
    fixed = other.std(axis=0) <= 1e-9 * np.maximum(size, 1)
    assert np.array_equal(fixed, one.std(axis=0) <= 1e-9 * np.maximum(size, 1))
    assert 0.05 < np.mean(~fixed) < 1
    scale = np.broadcast_to(np.maximum(size, 1)[fixed], (len(one), fixed.sum()))
    np.testing.assert_allclose(one[:, fixed] / scale, other[:, fixed] / scale, rtol=0, atol=1e-9)
    for power in (1, 2):
        middle = other.mean(axis=0)[~fixed] if power == 2 else 0.0
        left, right = ((draws[:, ~fixed] - middle) ** power for draws in (one, other))
        error = np.sqrt(left.var(axis=0) / len(left) + right.var(axis=0) / len(right))
        assert np.all(np.abs(left.mean(axis=0) - right.mean(axis=0)) < 5 * error)
    # Rank correlations, since products of squares have long tails; sd of a difference about sqrt(2 / 2000) = .032.
    ranks = [np.argsort(np.argsort(draws[:, ~fixed], axis=0), axis=0) for draws in (one, other)]
    apart = np.subtract(*(np.corrcoef(own.T) for own in ranks))
    assert np.abs(apart).max() < 0.19  # 6 errors, of thousands of pairs


@pytest.mark.parametrize("name", ["1-1-1", "parallel", "2-2-1"])
def test_a_draw_is_a_table_of_cross_products(name):
    """Outside columns keep theirs bit by bit; every matrix is positive semi-definite, its rank at most the rows.

    1e-9 of the trace for eigenvalues that are zero.
    """
    base, _ = population(name, 2)
    plan, _ = sample_moments.make_draw_plan(base.problem.design, base.moments)
    table = moment_draws(base, 1)[0]
    first = 0
    for block, own in zip(base.problem.design.blocks, plan.blocks, strict=True):
        index = packed_index(len(block.names))
        products = table[first : first + len(block.products)][index]
        first += len(block.products)
        outside = np.ix_(own.outside, own.outside)
        np.testing.assert_array_equal(products[outside], block.products[index][outside])
        value = np.linalg.eigvalsh(np.moveaxis(products, 2, 0))
        trace = np.maximum(value.sum(axis=1), 1)
        assert np.all(value >= -1e-9 * trace[:, None])
        assert np.all((value > 1e-9 * trace[:, None]).sum(axis=1) <= block.products[0])
    again = moment_draws(base, 1)[0]
    np.testing.assert_array_equal(table, again)
    assert first == len(table)


# Where rows are needed -----------------------------------------------------------------------------------------------


def test_a_row_level_product_with_the_mediator_needs_rows():
    data = jm.simulate(clusters=25, size=6, seed=4)
    data["v"] = np.random.default_rng(1).normal(size=len(data))
    spec = jm.Mediation(
        "x", "m", "y", "id", random={"m": ["1"], "y": ["1"]}, moderators={"v": ["b"]}, covariates={"y": ["v"]}
    )
    fit = jm.fit(data, spec)
    with pytest.raises(sample_moments.RowsNeededError, match=r"'m:v'"):
        sample_moments.make_draw_plan(make_design(fit.system, fit.moments), fit.moments)
    with pytest.raises(jm.FitError, match=r"because of the term 'm:v'; pass the data too: .*data=data"):
        jm.bootstrap(fit, 8, seed=1)
    found = jm.bootstrap(fit, 200, seed=1, data=data)
    assert not len(found.failures())
    sd, se = found.table["y~m:v"].std(), fit.bse["y~m:v"]
    assert 0.8 * se < sd < 1.2 * se  # sd of 200 replicates: 5% Monte Carlo error


# Refits --------------------------------------------------------------------------------------------------------------


STATISTICS = ("mean", "variance", "fourth moment", "quantile 2.5%", "median", "quantile 97.5%")


def moments_and_errors(draws: np.ndarray) -> np.ndarray:
    """Mean, variance, fourth central moment and three quantiles, and their standard errors: shape (2, 6)."""
    n = len(draws)
    apart = draws - draws.mean()
    m = {k: np.mean(apart**k) for k in range(2, 9)}
    ordered = np.sort(draws)
    shares = (0.025, 0.5, 0.975)
    found = [draws.mean(), m[2], m[4], *(quantile(ordered, share) for share in shares)]
    fourth = m[8] - m[4] ** 2 - 8 * m[5] * m[3] + 16 * m[3] ** 2 * m[2]
    errors = [np.sqrt(m[2] / n), np.sqrt((m[4] - m[2] ** 2) / n), np.sqrt(fourth / n)]
    return np.array([found, errors + [quantile_error(ordered, share) for share in shares]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1-1-1", "centred"])
def test_refits_of_moment_draws_and_row_draws(name):
    """20,000 refits of each: every parameter's and effect's moments and quantiles within 4.5 Monte Carlo errors.

    Clusters of 1, 2, 3 and 8 rows, constant x in every second one, some m and y missing. About 100 comparisons, of
    which one in two thousand would be beyond 4.5 by chance.
    """
    n = 20_000
    base, rows = population(name, 30)
    data = pd.DataFrame(sample_rows.drawn(rows, base.fit, stream(3, 1))).assign(id=rows.cluster)
    fit = jm.fit(data, MODELS[name])
    assert not fit.singular
    drawn = jm.bootstrap(fit, n, seed=21)
    rows = sample_rows.read_rows(data, fit, fit.moments)
    origin, targets = make_origin(fit, "parametric", 22, n, None)
    start = fitted(fit, fit.moments, targets)

    def make(number: int):
        columns = sample_rows.drawn(rows, fit, stream(22, number))
        return given_rows(start, sample_rows.design_of(rows, columns, rows.cluster, start.problem.design))

    refitter = replace(make_refitter(start, "given", 22), make=make)
    table = make_table(refitter.run(range(n)), origin)
    worst = 0.0, ""
    for label in origin.labels:
        one, other = (own.loc[own["status"] == 0, label].to_numpy() for own in (drawn.table, table))
        assert min(len(one), len(other)) >= 0.999 * n
        if one.std() == 0:
            continue
        (a, ea), (b, eb) = moments_and_errors(one), moments_and_errors(other)
        apart = np.abs(a - b) / np.hypot(ea, eb)
        worst = max(worst, (apart.max(), f"{STATISTICS[apart.argmax()]} of {label}"))
    print(f"{name}: largest deviation {worst[0]:.2f} Monte Carlo errors, {worst[1]}")
    failed, singular = (table["status"] != 0).sum(), drawn.table["singular"].mean()
    print(f"not converged {len(drawn.failures())} and {failed}, singular {singular:.3f}")
    assert worst[0] < 4.5
