"""One source of formulas, two executors: NumPy for a fit of ordinary size, XLA for many clusters and many refits.

A function takes its array module from its arrays (:func:`module_of`), and what NumPy and JAX do differently goes
through the few functions below. JAX is imported by the first call that needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import numpy as np

from jaxmed._support.runtime import float64, jit_by_key

Array: TypeAlias = Any  # of NumPy's or of JAX's
Engine = Literal["numpy", "jax"]
EngineChoice = Literal["auto", "numpy", "jax"]
Params = ParamSpec("Params")
Result = TypeVar("Result")
State = TypeVar("State")
COMPLEX_STEP = 1e-30  # its square is lost beside any number, so that derivatives are exact


def module_of(*arrays: Any) -> Any:
    """``jax.numpy`` where one of the arrays is JAX's, ``numpy`` otherwise."""
    kind = getattr(sys.modules.get("jax"), "Array", None)  # there is none while another thread imports JAX
    if kind is not None:
        for array in arrays:
            if type(array) is not np.ndarray and isinstance(array, kind):
                return sys.modules["jax.numpy"]
    return np


def leaves(tree: Any) -> Iterator[Any]:
    """The arrays in nested tuples."""
    if isinstance(tree, tuple):
        for part in tree:
            yield from leaves(part)
    else:
        yield tree


def map_arrays(function: Callable[..., Any], *trees: Any) -> Any:
    """A function of the arrays of nested tuples, place by place."""
    first = trees[0]
    if not isinstance(first, tuple):
        return function(*trees)
    parts = [map_arrays(function, *several) for several in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def put(array: Array, index: Any, values: Any) -> Array:
    """The array with other values in some places; places beyond its end are passed over."""
    if module_of(array, values) is not np:
        return module_of(array, values).asarray(array).at[index].set(values, mode="drop")
    changed = np.array(array, dtype=np.result_type(array, values))
    if not (isinstance(index, (int, np.integer)) and index >= len(changed)):
        changed[index] = values
    return changed


def while_loop(going: Callable[[State], Any], step: Callable[[State], State], state: State) -> State:
    """``step`` as long as ``going``."""
    if module_of(*leaves(state)) is not np:
        from jax import lax

        return lax.while_loop(going, step, state)
    while going(state):
        state = step(state)
    return state


def for_loop(count: int, step: Callable[[Any, State], State], state: State) -> State:
    """``step(k, state)`` for k = 0, ..., count - 1."""
    if module_of(*leaves(state)) is not np:
        from jax import lax

        return lax.fori_loop(0, count, step, state)
    for k in range(count):
        state = step(k, state)
    return state


def jacobian(function: Callable[[Array], Array], at: Array) -> Array:
    """Derivatives of an analytic function of a vector, shape (..., n): exact, by autodiff or by complex steps."""
    if module_of(at) is not np:
        import jax

        return jax.jacfwd(function)(at)
    points = np.asarray(at) + COMPLEX_STEP * 1j * np.eye(len(at))
    columns = [np.imag(function(point)) / COMPLEX_STEP for point in points]
    if not columns:
        return np.zeros((*np.shape(function(at)), 0))
    return np.stack(columns, axis=-1)


def along(function: Callable[[Array], Array], at: Array, steps: Array) -> Array:
    """Derivatives of an analytic function of a vector along some directions, shape (directions, ...)."""
    if module_of(at, steps) is not np:
        import jax

        return jax.lax.map(lambda step: jax.jvp(function, (at,), (step,))[1], steps)
    return np.stack([np.imag(function(at + COMPLEX_STEP * 1j * step)) / COMPLEX_STEP for step in steps])


def map_blocks(function: Callable[[Array], Any], table: Array) -> Any:
    """A function of every block of clusters, its arrays put together along their last axis, that of clusters."""
    if module_of(table) is np:
        parts = [function(block) for block in table]
        return map_arrays(lambda *several: np.concatenate(several, axis=-1), *parts)
    from jax import lax

    def joined(stacked: Array) -> Array:
        last = module_of(stacked).moveaxis(stacked, 0, -2)
        return last.reshape(*last.shape[:-2], -1)

    return map_arrays(joined, lax.map(function, table))


def traced_once(function: Callable[Params, Result], *, static: int = 0) -> Callable[Params, Result]:
    """What a program uses in several places: a program by itself, so that it is traced once.

    The first ``static`` arguments, and those given by name, are no arrays.
    """
    compiled: list[Any] = []

    @wraps(function)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        if module_of(*leaves(args[static:])) is np:
            return function(*args, **kwargs)
        if not compiled:
            import jax

            compiled.append(jax.jit(function, static_argnums=tuple(range(static)), static_argnames=tuple(kwargs)))
        return compiled[0](*args, **kwargs)

    return call


def executed(function: Callable[..., Result], *, static: int = 1) -> Callable[..., Result]:
    """A function by one of the engines, ``function(engine, *arguments)``; the first ``static`` are keys of programs.

    NumPy's results are those of the function itself; JAX compiles it, see :func:`jaxmed._support.runtime.jit_by_key`.
    """
    compiled = float64(jit_by_key(function, static=static))

    @wraps(function)
    def call(engine: Engine, *args: Any) -> Result:
        if engine == "jax":
            return compiled(*args)
        with np.errstate(all="ignore"):  # NaN is a point that the optimiser leaves
            return function(*args)

    return call
