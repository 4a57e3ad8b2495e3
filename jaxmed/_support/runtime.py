"""Scoped float64 and the persistent compilation cache: the only place that speaks to JAX's configuration."""

from __future__ import annotations

import atexit
import functools
import os
import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import platformdirs

from jaxmed._support.errors import FitError

Params = ParamSpec("Params")
Result = TypeVar("Result")

PROGRAMS = 12  # kept per function, those that were used last
LEFT_OUT: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_experimental_ynn_fusion_type": ""}
ON_DISK = 1 << 30  # bytes of compiled programs that are kept between processes


class _Process:
    """What became of JAX in this process."""

    started = False
    kept: Path | None = None  # where compiled programs are kept
    orphaned = False  # it had started before the fork: its threads are not here, and whoever waits for them hangs


def _being_traced() -> bool:
    """Whether what is computed now would become part of a program of the caller's."""
    import jax

    return isinstance(jax.lax.neg(np.int32(0)), jax.core.Tracer)


@contextmanager
def _own_settings() -> Iterator[None]:
    """Settings that programs are written for, also while the caller's function is being traced."""
    import jax

    with (
        # Not always: it has every constant of a program that is traced within compiled and run by itself.
        jax.ensure_compile_time_eval() if _being_traced() else nullcontext(),
        jax.enable_x64(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_nans(False),  # NaN is a point that the optimiser leaves
        jax.debug_infs(False),
    ):
        yield


def float64(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Run a function with 64-bit JAX types and hand its result back as NumPy arrays.

    The caller's own settings of types and of debugging are untouched and without effect: the scope is local to the
    thread and to the call. Results must leave it as NumPy, because the next operation on a float64 JAX array outside
    the scope would silently round it to float32.
    """

    @functools.wraps(function)
    def scoped(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        if _Process.orphaned:
            raise FitError(
                "this process was forked from one in which JAX had computed already, and would wait for its threads "
                "for ever; start processes with multiprocessing.get_context('spawn') or 'forkserver', or fork before "
                "the first fit"
            )
        import jax

        if not _Process.started:
            _Process.started = True
            _keep_programs()
        with _own_settings():
            result = function(*args, **kwargs)
            return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, result)

    return scoped


@functools.cache
def _compiler_options() -> dict[str, str | bool]:
    """What XLA is asked to leave out on a CPU, since programs are faster without (docs/decisions.md).

    Its fusion emitters, which take a third of the time of compilation, and the fusion of dot products of JAX 0.10.2 and
    later, with which an evaluation takes three times as long. Versions of XLA know one, the other or both.
    """
    import jax

    def is_known(name: str, value: str | bool) -> bool:
        try:
            jax.jit(lambda: 0.0, compiler_options={name: value}).lower().compile()
        except Exception:  # whatever a version says to an option that it does not know
            return False
        return True

    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in LEFT_OUT.items() if is_known(name, value)}


def jit_by_key(function: Callable[..., Result], *, static: int = 1) -> Callable[..., Result]:
    """``jax.jit`` with the first ``static`` arguments as keys, which keeps the programs of the last keys only.

    A compiled program takes a thousand memory maps or more, and a process may have 65,530 (Linux's default): without a
    limit a study over some fifty models, or patterns of missing values, would abort.
    """
    programs: OrderedDict[Any, Any] = OrderedDict()  # those used last at the end
    lock, order = threading.Lock(), threading.Lock()  # of compiling, which takes seconds; of the order of programs

    def find(key: Any) -> Any:
        with order:
            if key in programs:
                programs.move_to_end(key)
            return programs.get(key)

    def compile_with(key: Any) -> Any:
        @functools.wraps(function)
        def with_key(*args: Any) -> Result:
            return function(*key, *args)

        import jax

        return jax.jit(with_key, compiler_options=_compiler_options())

    @functools.wraps(function)
    def call(*args: Any) -> Result:
        key, others = args[:static], args[static:]
        program = find(key)
        if program is not None:
            return program(*others)
        with lock:  # threads that come with a new key wait for the first one to compile
            program = find(key)
            if program is None:
                program = compile_with(key)
                result = program(*others)
                with order:
                    programs[key] = program
                    dropped = programs.popitem(last=False)[1] if len(programs) > PROGRAMS else None
                if dropped is not None:
                    dropped.clear_cache()
                return result
        return program(*others)

    return call


_pools: dict[int, ThreadPoolExecutor] = {}


def pool(workers: int) -> ThreadPoolExecutor:
    """Threads that run compiled programs side by side; XLA's own run one after the other."""
    if workers not in _pools:
        _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="jaxmed")
    return _pools[workers]


def finish_threads() -> None:
    """Wait until the threads of all pools have ended; later work starts new ones."""
    while _pools:
        _pools.popitem()[1].shutdown()


def _after_fork() -> None:
    """In the child: the threads of the pools stayed with the parent."""
    _pools.clear()
    _Process.orphaned = _Process.started or _Process.orphaned


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def n_workers() -> int:
    """Programs at a time: the cores of this process, or the devices where these are others or more."""
    import jax

    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return len(devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores, len(devices))


def use_compilation_cache(folder: Path | None = None) -> Path | None:
    """Keep compiled programs on disk between processes, unless the user's environment already says where.

    For applications (the command line calls it); importing the library never does. The folder is one per machine,
    since compiled code may not run on another processor that shares the home directory. A folder that cannot be
    written is passed over: the cache only saves time. Returns the folder in use, or None.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    try:
        chosen = folder or Path(platformdirs.user_cache_dir("jaxmed")) / "compiled" / (platform.node() or "here")
        chosen.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no HOME, and no such user
        return None
    if not os.access(chosen, os.W_OK):
        return None
    with suppress(OSError):
        drop_oldest(chosen)
    _Process.kept = chosen
    if _Process.started:
        _keep_programs()
    return chosen


def _keep_programs() -> None:
    """Tell JAX where compiled programs are kept, once there is anything for it to do."""
    if _Process.kept is None:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(_Process.kept))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def drop_oldest(folder: Path, most: int = ON_DISK) -> None:
    """Keep a folder of compiled programs below ``most`` bytes: those that were used longest ago go.

    JAX has a limit of its own, which needs a further package and takes a lock for every program.
    """
    files = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process may drop it at the same time
            found = path.stat()
            files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    size = sum(one for _, one, _ in files)
    for _, one, path in sorted(files):
        if size <= most:
            return
        with suppress(OSError):
            path.unlink()
            size -= one


def drop_loader_noise() -> None:
    """Keep XLA's complaints about its own compilation cache off the terminal.

    XLA reports tuning hints such as ``+prefer-no-gather`` as missing processor features, in two long lines for every
    program it loads from the cache (openxla/xla issue 44565); nothing is wrong. Those lines, written by native code
    straight to file descriptor 2, are dropped, and everything else passes; Python's own ``sys.stderr`` is not touched
    otherwise. For applications; a descriptor that cannot be redirected is left alone.
    """
    try:
        real = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        sys.stderr = os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace")
    except OSError:
        return

    def relay() -> None:
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if b"cpu_aot_loader" not in line:
                    os.write(real, line)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()

    def restore() -> None:
        os.dup2(real, 2)  # closes the pipe, so that the relay ends with its last line
        thread.join(timeout=1)

    atexit.register(restore)
