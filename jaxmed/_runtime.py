"""Scoped float64 and the persistent compilation cache: the only place that speaks to JAX's configuration."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import jax
import numpy as np
import platformdirs

Params = ParamSpec("Params")
Result = TypeVar("Result")


def float64(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Run a function with 64-bit JAX types and hand its result back as NumPy arrays.

    The caller's own x64 setting is untouched: the scope is local to the thread and to the call. Results must leave it
    as NumPy, because the next operation on a float64 JAX array outside the scope would silently round it to float32.
    """

    @functools.wraps(function)
    def scoped(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        with jax.enable_x64(True):
            result = function(*args, **kwargs)
            return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, result)

    return scoped


def use_compilation_cache(folder: Path | None = None) -> Path | None:
    """Keep compiled programs on disk between processes, unless the user's environment already says where.

    For applications (the command line calls it); importing the library never does. A folder that cannot be written
    is passed over: the cache only saves time. Returns the folder in use, or None.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    chosen = folder or Path(platformdirs.user_cache_dir("jaxmed")) / "compiled"
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(chosen, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return chosen
