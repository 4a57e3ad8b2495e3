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
# # Intervals and the bootstrap
#
# An indirect effect is a product plus a covariance, and its estimate is skewed in small samples. Here are all the
# intervals that jaxmed has, on bundled data of 100 clusters of 8 rows, and then on 25 of these clusters, where they begin
# to differ. In the population the indirect effect is .473. docs/intervals.md has the definitions.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import jaxmed as jm

data = jm.datasets.load_example()
fit = jm.fit(data, x="x", m="m", y="y", cluster="id")
print(fit.effects().round(3))

# %% [markdown]
# ## Without refits
#
# The delta interval is symmetric. The Monte Carlo interval draws all parameters from their joint normal distribution
# and takes quantiles of ab + cov(a, b); it needs a seed. The profile interval holds the values that a likelihood-ratio
# test does not reject, by refits that are held to them.


# %%
def limits(table):
    """The two limits of the indirect effect."""
    return table.loc["indirect", ["ci_lower", "ci_upper"]].astype(float)


found = {
    "delta, joint": limits(fit.intervals()),
    "delta, as in the Stata example": limits(fit.intervals(covariance="bauer")),
    "Monte Carlo": limits(fit.intervals("monte_carlo", seed=1)),
    "profile": limits(fit.intervals("profile", terms=["indirect"])),
}
print(pd.DataFrame(found).T.round(3))

# %% [markdown]
# The curve behind the profile interval: `zeta` is the signed root of twice the drop of the log likelihood, and the limits
# are where it crosses -1.96 and 1.96. A straight line would be a normal likelihood.

# %%
curve = fit.profile("indirect")
axes = curve.plot(x="value", y="zeta", legend=False, xlabel="indirect effect", ylabel="zeta")
for value in (-1.96, 1.96):
    axes.axhline(value, linestyle=":", color="grey")

# %% [markdown]
# ## The parametric bootstrap
#
# A replicate is a new data set from the fitted model: random effects, then m, then y from that m; and a fit to it. Some
# thousand of them take about a second after compilation. The table has a row a replicate, with every parameter and effect.

# %%
replicates = jm.bootstrap(fit, 500, seed=1)
print(replicates)
print(
    replicates.table[["replicate", "n_iter", "singular", "a", "b", "cov_ab", "indirect", "indirect_se"]].head().round(3)
)

# %% [markdown]
# From the same replicates come five kinds of intervals. BCa also needs the fits without each cluster in turn, which it
# makes by itself. The last two columns are Monte Carlo errors: how far the limits would move with other draws.

# %%
columns = ["ci_lower", "ci_upper", "ci_lower_mcse", "ci_upper_mcse"]
kinds = ["percentile", "basic", "bc", "bca", "studentized"]
print(pd.DataFrame({kind: replicates.intervals(kind).loc["indirect", columns] for kind in kinds}).T.round(3))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
jm.plots.replicates(replicates, "indirect", kind="studentized", ax=left)
jm.plots.convergence(replicates, "indirect", ax=right)

# %% [markdown]
# ## The bootstrap of clusters
#
# The parametric bootstrap believes the model: random effects and residuals are drawn from normal distributions. The
# bootstrap of clusters draws whole clusters with replacement and believes only that they are alike and independent.

# %%
clusters = jm.bootstrap(fit, 500, method="cluster", seed=1)
print(pd.DataFrame({r.method: r.intervals("bca").loc["indirect", columns] for r in (replicates, clusters)}).T.round(3))

# %% [markdown]
# ## Fewer clusters
#
# With the first 25 clusters intervals are wider and less alike. Nearly all fits to replicates are singular: a covariance
# matrix of five random effects is more than 25 clusters identify. That is an estimate at its limit, not a failure; such
# replicates count. `failures()` lists those that did not converge.

# %%
small = jm.fit(data[data["id"] <= 25], x="x", m="m", y="y", cluster="id")
few = jm.bootstrap(small, 500, seed=1)
print(f"{few.table['singular'].mean():.0%} singular, {len(few.failures())} not converged")
found = {
    "delta, joint": limits(small.intervals()),
    "Monte Carlo": limits(small.intervals("monte_carlo", seed=1)),
    "profile": limits(small.intervals("profile", terms=["indirect"])),
    **{kind: limits(few.intervals(kind)) for kind in kinds},
}
print(pd.DataFrame(found).T.round(3))

# %% [markdown]
# ## Stopping and going on
#
# With `out=` the replicates are kept in a folder. A larger number later adds to what is there: the draws of replicate i
# depend on the seed and on i alone.

# %%
with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "replicates"
    jm.bootstrap(fit, 250, seed=1, out=out)
    whole = jm.bootstrap(fit, 500, seed=1, out=out)
print("the same replicates:", whole.table.equals(replicates.table))
