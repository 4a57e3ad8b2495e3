"""What the benchmark runs on, and what it lacks: no host name, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

R_PACKAGES = ("nlme", "glmmTMB", "lme4", "jsonlite")
PYTHON_PACKAGES = ("jaxmed", "jax", "jaxlib", "numpy", "pandas", "pyarrow", "statsmodels", "matplotlib")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")
ASK_R = (
    'cat("R", as.character(getRversion()), "\\n"); cat("BLAS", basename(extSoftVersion()[["BLAS"]]), "\\n");'
    'for (p in commandArgs(TRUE)) if (nzchar(system.file(package = p))) cat(p, as.character(packageVersion(p)), "\\n")'
)


def python_versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in PYTHON_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def r_versions() -> dict[str, str]:
    """Versions of R, its BLAS and the packages that are there; nothing where there is no R."""
    if not shutil.which("Rscript"):
        return {}
    answer = subprocess.run(["Rscript", "-e", ASK_R, *R_PACKAGES], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in answer.splitlines())


def describe() -> dict[str, object]:
    """Cores, processor, memory, versions and thread settings."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        models = [
            line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
        ]
        processor = models[0].strip() if models else processor
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": python_versions() | r_versions(),
        "threads": {name: os.environ.get(name, "not set") for name in THREADS},
    }


def remedy(package: str) -> str:
    """How to get what is missing."""
    if package == "R":
        return "R (Debian, Ubuntu: apt install r-base-core; else https://cran.r-project.org)"
    if package in R_PACKAGES:
        debian = f"Debian, Ubuntu: apt install r-cran-{package.lower()}"
        return f"the R package {package} (install.packages({package!r}); {debian})"
    return f"the Python package {package} (pip install {package})"
