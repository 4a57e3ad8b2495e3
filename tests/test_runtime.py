"""How jaxmed behaves as a guest: no deadlock, no change of settings, no private interfaces, no needless compilation."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmed as jm
from jaxmed._data import reader
from jaxmed._data.design import make_design
from jaxmed._data.totals import add_up
from jaxmed._likelihood import likelihood, optimise
from jaxmed._likelihood.layout import count_rows, make_layout
from jaxmed._support.runtime import PROGRAMS, jit_by_key, use_compilation_cache

MODEL = jm.Mediation("x", "m", "y", "id")
PACKAGE = Path(jm.__file__).parent


def run(code: str, limit: int = 60) -> str:
    """Standard output of a fresh process on two cores; fails after ``limit`` seconds."""
    pin = "import os\n"
    if hasattr(os, "sched_setaffinity"):
        pin += "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", pin + code],
        capture_output=True,
        text=True,
        timeout=limit,
        env=os.environ | {"JAX_ENABLE_X64": "0"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def simulate(n_clusters: int, n_rows: int = 6, seed: int = 0):
    """1-1-1 data with every coefficient varying."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(n_clusters), n_rows)
    u = rng.normal(0, 0.4, size=(5, n_clusters))[:, cluster]
    x, e, f = rng.normal(size=(3, len(cluster)))
    m = u[0] + (0.5 + u[1]) * x + e
    return pd.DataFrame({"id": cluster, "x": x, "m": m, "y": u[2] + (0.4 + u[3]) * m + (0.2 + u[4]) * x + f})


def prepared(n_clusters: int):
    """Layout, starting values and data of the model."""
    design = make_design(MODEL.system(), reader.read(simulate(n_clusters), MODEL.system()))
    layout = make_layout(design, True)
    totals = add_up(design)
    data = likelihood.make_data(design.table, count_rows(layout, design.system, totals))
    return layout, optimise.starting_values(layout, design.system, totals), data


SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax, jax.numpy as jnp, numpy as np, jaxmed as jm
from test_runtime import prepared
from jaxmed._likelihood import derivatives, optimise
"""


# Deadlocks -----------------------------------------------------------------------------------------------------------


def test_hessians_and_batched_refits_finish():
    """Batched LAPACK calls in second derivatives, or under vmap, once hung for ever on two cores: a limit in time."""
    out = run(
        SETUP
        + """
from jaxmed._likelihood.layout import root_and_precision
with jax.enable_x64(True):
    for n in (100, 2000):
        layout, start, data = prepared(n)
        point = root_and_precision(layout, jnp.asarray(start))
        evaluation = jax.jit(derivatives.evaluate, static_argnums=0)(layout, *point, data)
        assert np.all(np.isfinite(evaluation.hessian)), n
    layout, start, data = prepared(100)
    weights = np.random.default_rng(1).exponential(size=(64, len(data.table), 1, data.table.shape[2]))

    def refit(weight):
        table = data.table * weight
        rows = data.n_rows * jnp.sum(table[:, 0]) / jnp.sum(data.table[:, 0])
        return optimise.solve(layout, data._replace(table=table, n_rows=rows), start, warm_up=0)

    found = jax.jit(jax.vmap(refit))(weights)
    assert found.status.shape == (64,)
    print(int(jnp.sum(found.status == 0)), int(jnp.all(jnp.isfinite(found.theta))))
"""
    )
    converged, finite = map(int, out.split())
    assert converged == 64
    assert finite


def test_optimiser_is_compiled_to_plain_arithmetic():
    """No custom call, to LAPACK or anything else, and nothing in single precision in what runs under vmap."""
    layout, start, data = prepared(30)
    with jax.enable_x64(True):
        lowered = jax.jit(optimise.solve, static_argnums=0).lower(layout, data, start)
        texts = [lowered.as_text().lower(), lowered.compile().as_text().lower()]
    for text in texts:
        assert "lapack" not in text
        assert "custom_call" not in text
        assert "custom-call" not in text
        assert "f32[" not in text
        assert "f64" in text


# Import --------------------------------------------------------------------------------------------------------------


def test_import_changes_nothing():
    out = run(
        """
import jax
before = dict(jax.config.values)
import jaxmed, jaxmed._cli.app
after = dict(jax.config.values)
print({name: (before.get(name), value) for name, value in after.items() if before.get(name, value) != value})
print(len(jax.live_arrays()))
"""
    )
    assert out.splitlines() == ["{}", "0"]


def test_import_starts_no_backend():
    """A process that only imports jaxmed must not claim a GPU."""
    out = run("import jaxmed, jax\nfrom jax._src import xla_bridge\nprint(xla_bridge.backends_are_initialized())")
    assert out == "False"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("**/*.py")), ids=lambda path: path.name)
def test_nothing_private_of_jax_is_used(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        assert not [name for name in names if name.startswith(("jax._src", "jaxlib._"))]


# Compilation ---------------------------------------------------------------------------------------------------------


def test_similar_data_meets_the_compiled_program(monkeypatch):
    """Other rows, other clusters, other numbers of either within a block: no new program; another model: one more."""
    solve, traced = optimise.solve, []
    monkeypatch.setattr(optimise, "solve", lambda *arguments: traced.append(1) or solve(*arguments))
    jm.fit(simulate(40, seed=1), MODEL, engine="jax")
    traced.clear()
    fit = jm.fit(simulate(65, n_rows=9, seed=2), MODEL, engine="jax")
    assert fit.converged
    renamed = simulate(40, seed=1).rename(columns={"x": "dose", "id": "site"})
    jm.fit(renamed, x="dose", m="m", y="y", cluster="site", engine="jax")
    assert len(traced) == 0
    jm.fit(simulate(200, seed=3), jm.System([jm.Equation("y", ["1"], ["1"])], "id"), engine="jax")
    assert len(traced) == 1


def test_compiled_programs_are_kept_but_not_without_limit():
    """A program per key: the last is used again, the first of many more than are kept is compiled anew."""
    traced = []

    @jit_by_key
    def product(key, value):
        traced.append(key)
        return key * value

    for key in range(3 * PROGRAMS):
        assert product(key, 2.0) == product(key, 2.0) == 2 * key
    assert traced == list(range(3 * PROGRAMS))
    product(0, 2.0)
    assert traced[-1] == 0


def test_simulated_data_of_any_size_share_programs(monkeypatch):
    """Numbers of rows and of clusters in all combinations: a program for each power of two of the larger one."""
    rooms, normal = [], jax.random.normal
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape, **how: rooms.append(shape) or normal(key, shape, **how)
    )
    for _ in range(2):
        for clusters in range(20, 310, 40):
            for size in (1, 4, 9):
                jm.simulate(clusters=clusters, size=size, seed=1)
    assert len(rooms) <= 2 * 6  # two streams of x, three of effects and residuals; 128 to 4,096 numbers


def test_results_leave_as_numpy():
    """A float64 JAX array that leaves its scope is rounded by the next operation: none may."""
    fit = jm.fit(simulate(40, seed=1), MODEL)
    for name in ("values", "joint", "block"):
        array = getattr(fit, name)
        assert type(array) is np.ndarray
        assert array.dtype == np.float64
    assert type(fit.loglik) is float
    assert all(dtype == np.float64 for frame_ in (fit.effects(), fit.ranef()) for dtype in frame_.dtypes)


# Settings and processes of the caller --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True)],
    ids=["rank", "dtype", "nans"],
)
def test_settings_of_the_caller_change_nothing(setting):
    expected = jm.fit(simulate(40, seed=1), MODEL)
    with setting:
        assert jm.fit(simulate(40, seed=1), MODEL).to_json() == expected.to_json()


def test_a_fit_compiles_one_program():
    """Constants were compiled one by one, some 140 a model, while the program was traced: half of the time it took."""
    code = """
import jax, jaxmed as jm
compiled = []
def hear(event, seconds, **about):
    if "backend_compile" in event:
        compiled.append(about.get("fun_name"))
jax.monitoring.register_event_duration_secs_listener(hear)
jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id", engine="jax")
print(len(compiled))
"""
    assert 1 <= int(run(code)) <= 5


def test_a_fit_inside_a_function_that_is_traced():
    """The data are numbers, so the fit is computed while the caller's function is traced."""
    expected = jm.fit(simulate(40, seed=1), MODEL).loglik
    found = jax.jit(lambda value: value * jm.fit(simulate(40, seed=1), MODEL).loglik)(1.0)
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_forked_after_the_first_fit_is_told():
    """It would wait for ever for threads that stayed with its parent; forked before, it computes."""
    out = run(
        f"""
import sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jaxmed as jm
from test_runtime import MODEL, simulate
warnings.simplefilter("ignore")

def child():
    pid = os.fork()
    if pid == 0:
        try:
            print(jm.fit(simulate(40, seed=1), MODEL, engine="jax").converged, flush=True)
        except jm.FitError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

child()
jm.fit(simulate(40, seed=1), MODEL, engine="jax")
child()
"""
    )
    first, second = out.splitlines()
    assert first == "True"
    assert second.startswith("this process was forked from one in which JAX had computed already")
    assert "'spawn'" in second


def test_no_home_is_no_cache(monkeypatch):
    """No HOME, and a user who is in no list of users: platformdirs has no folder to give."""

    def unknown(name):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAXMED_DATA", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", unknown)
    assert use_compilation_cache() is None
    with pytest.raises(jm.DataError, match="there is no download cache"):
        jm.datasets.load_bpg2006()
