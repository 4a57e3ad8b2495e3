"""Claim: `jaxmed demo` takes 1.2 s at the most, also the first time (wall time, import included).

    python benchmarks/cold_start.py

Runs the installed command with an empty compilation cache and then with a filled one, and says where the time goes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

DEMO = [sys.executable, "-m", "jaxmed", "demo"]


def wall(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - start
    if command == DEMO and "indirect" not in done.stdout:
        raise SystemExit("the demo printed no indirect effect")
    return elapsed


def main() -> None:
    print(f"import jaxmed       {wall([sys.executable, '-c', 'import jaxmed'], dict(os.environ)):.2f} s")
    cold, warm = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": cache}
            cold.append(wall(DEMO, environment))
            warm += [wall(DEMO, environment) for _ in range(2)]
    print(f"demo, empty cache   {statistics.median(cold):.2f} s (median of {len(cold)})")
    print(f"demo, filled cache  {statistics.median(warm):.2f} s (median of {len(warm)})")


if __name__ == "__main__":
    main()
