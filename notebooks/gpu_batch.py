# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A bootstrap as a batch job on GPUs
#
# 10,000 replicates of a large fit are work for a queue. One TOML file says what is to be done, a Slurm array runs it in
# parts, one GPU each, and `jaxmed merge` puts the parts together. This notebook writes both files, and then runs the
# job's two parts here, on the CPU, with the variables that Slurm would set. What changes on the cluster is the number of
# replicates and the hardware. jaxmed takes the GPU by itself if it was installed with `pip install 'jaxmed[cuda]'`.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jaxmed as jm

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## The fit
#
# The model is fitted once, where it can be looked at, and saved: the estimates and the cross-products per cluster are
# all that the job needs. The rows stay where they are.

# %%
fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
fit.save(folder / "fit.jm")
print(fit.effects().round(3))

# %% [markdown]
# ## The job file
#
# The table `[bootstrap]` has the names of the options of `jaxmed bootstrap`. Paths are relative to the file. Replicate i
# depends on the seed and on i alone, so the parts need not know of one another.

# %%
job = """\
[bootstrap]
fit = "fit.jm"
n = 1000
seed = 1
method = "parametric"
out = "replicates"
"""
(folder / "job.toml").write_text(job)
print(job)

# %% [markdown]
# ## The batch script
#
# An array of two tasks with a GPU each. `--shard auto` reads from Slurm which part of how many this is. A task that is
# killed at the end of its time loses at most ten seconds of work; submit the same array again, and only what is missing is
# computed. The second job waits for the array and prints intervals.

# %%
script = """\
#!/bin/bash
#SBATCH --job-name=bootstrap
#SBATCH --array=0-1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=00:30:00
#SBATCH --output=bootstrap-%A-%a.log

jaxmed bootstrap --job job.toml --shard auto
"""
(folder / "bootstrap.sbatch").write_text(script)
print(script)
print("submit with")
print("  array=$(sbatch --parsable bootstrap.sbatch)")
print(
    "  sbatch --dependency=afterok:$array --wrap 'jaxmed merge replicates --kind studentized --out replicates.parquet'"
)

# %% [markdown]
# ## Its two parts, here
#
# The command of the script, twice, with the variables of a Slurm array. On a machine with several GPUs a single process
# would use all of them; an array is for several machines.


# %%
def jaxmed(*words, **variables):
    """One command line of jaxmed, in the job's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxmed", *words],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    print("$ jaxmed", *words)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1"}
for task in ("0", "1"):
    jaxmed("bootstrap", "--job", "job.toml", "--shard", "auto", SLURM_ARRAY_TASK_ID=task, **array)

# %% [markdown]
# ## Putting the parts together
#
# `merge` names what is missing (exit code 1) and what was there twice, and refuses parts of different models, data or
# seeds.

# %%
jaxmed("merge", "replicates", "--kind", "studentized", "--out", "replicates.parquet")

# %% [markdown]
# The same in Python. Nothing was lost between the parts, and a single process would have drawn the same replicates.

# %%
replicates = jm.load_replicates(folder / "replicates")
print(replicates, "gaps:", replicates.gaps)
assert len(replicates) == 1000
assert not replicates.gaps

# %%
temporary.cleanup()
