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
# # How many clusters, and which interval to trust
#
# A power study for a 1-1-1 model with random slopes, first small and live, then the large one whose results come with
# the sources of the package (`benchmarks/study.py`, 2,000 data sets a design).

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import jaxmed as jm

# %% [markdown]
# ## Planning a study
#
# What do we expect? Standardised slopes of .3 from x to m and from m to y, a direct effect of .1, slopes that vary
# between clusters with a standard deviation of .2, intraclass correlations of .2.

# %%
population = jm.Population.standardized(a=0.3, b=0.3, c_prime=0.1, sd_a=0.2, sd_b=0.2)
population.effects().round(3)

# %% [markdown]
# One data set from it, and the fit that we would report:

# %%
rows = jm.simulate(population, clusters=60, size=6, seed=1)
jm.fit(rows, population.spec).effects().round(3)

# %% [markdown]
# Two hundred of them for each design. The Monte Carlo error of a power of .8 is then .028; take thousands for a decision.

# %%
study = jm.power(
    population, {"clusters": [30, 60, 120], "size": [4, 8]}, 200, seed=1, intervals=["delta", "monte_carlo"]
)
study.table.query("effect == 'indirect'")[
    ["clusters", "size", "interval", "coverage", "width", "power", "singular"]
].round(3)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
jm.plots.power(study, "indirect", ax=left)
jm.plots.coverage(study, "indirect", ax=right)

# %% [markdown]
# And the number of clusters of 8 for a power of .8:

# %%
jm.power(population, {"size": 8}, 200, seed=1, target=0.8).needed.round(3)

# %% [markdown]
# ## Which interval?
#
# The population of Bauer, Preacher & Gil (2006), 25 to 200 clusters of 4 to 32 rows, with normal and with skewed random
# effects (exponential). Coverage of the indirect effect, nominal 95%:

# %%
results = Path("benchmarks/results/study.json")
results = results if results.is_file() else Path("..") / results
table = pd.DataFrame(json.loads(results.read_text())["rows"])
grid = table[(table["study"] == "grid") & (table["effect"] == "indirect")]
grid.pivot_table(index=["random_effects", "size"], columns=["interval", "clusters"], values="coverage").round(3)

# %% [markdown]
# With normal random effects the joint standard errors are right, and those of c' by the block formulas too small:

# %%
direct = table[(table["study"] == "grid") & (table["effect"] == "c_prime") & (table["random_effects"] == "normal")]
direct[direct["interval"] != "monte_carlo"].pivot_table(
    index="size", columns=["interval", "clusters"], values="se_bias"
).round(3)

# %% [markdown]
# Bootstraps of 25 and 100 clusters of 8: the parametric one draws normal random effects and inherits the model's
# assumption; the bootstrap of clusters does not.

# %%
refitted = table[table["study"].isin(["bootstrap", "robust", "cluster"]) & (table["effect"] == "indirect")]
refitted.pivot_table(
    index=["study", "interval"], columns=["random_effects", "clusters"], values=["coverage", "too_low", "too_high"]
).round(3)
