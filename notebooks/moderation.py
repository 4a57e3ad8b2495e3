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
# # Moderation, and effects within and between clusters
#
# Bundled, simulated data of 1,025 pupils in 90 schools: does a teacher's support raise achievement through motivation, is
# that stronger in schools with a better climate, and does it happen within schools or between them? The population is in
# the docstring of `jaxmed.datasets.load_schools`, so every answer can be checked.

# %%
import matplotlib.pyplot as plt

import jaxmed as jm

schools = jm.datasets.load_schools()
roles = {"x": "support", "m": "motivation", "y": "achievement", "cluster": "school"}
print(jm.describe(schools, jm.Mediation(**roles, moderators={"climate": ["a"]})))

# %% [markdown]
# ## A moderator of the school
#
# The path from support to motivation may depend on climate: `climate` enters the equation of motivation, by itself and
# multiplied with support. In the population the path is .5 + .2 climate.

# %%
spec = jm.Mediation(**roles, moderators={"climate": ["a"]})
fit = jm.fit(schools, spec)
print(fit.params.round(3))

# %% [markdown]
# `effects()` gives every effect at the moderator's mean and one standard deviation to either side; `at=` says other
# values. The index of moderated mediation is the slope of the indirect effect in climate: the test of whether it moves.

# %%
values = [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]
effects = fit.effects(at={"climate": values})
print(effects.loc["indirect"].round(3))
print(effects.loc["index_climate"].round(3))

# %%
line = effects.loc["indirect"]
axes = plt.figure(figsize=(5, 4), layout="constrained").add_subplot(xlabel="climate", ylabel="indirect effect")
axes.plot(line.index, line["estimate"])
axes.fill_between(line.index, line["ci_lower"], line["ci_upper"], alpha=0.2)

# %% [markdown]
# Differences between two values come with their own test:

# %%
print(fit.effects(at={"climate": [-1, 1]}, difference=True).loc[["a", "indirect", "total"]].round(3))

# %% [markdown]
# Does climate move the path at all? The two models differ in fixed effects, so both are fitted by maximum likelihood;
# the smaller one keeps climate as a covariate.

# %%
without = jm.fit(schools, jm.Mediation(**roles, covariates={"motivation": ["climate"]}), reml=False)
print(jm.compare(without, jm.fit(schools, spec, reml=False)))

# %% [markdown]
# ## A moderator in categories
#
# Text columns are coded as indicators; `reference` names the category that the others are compared with.

# %%
by_sector = jm.fit(schools, jm.Mediation(**roles, moderators={"sector": ["b"]}, reference={"sector": "public"}))
print(by_sector.effects().loc["indirect"].round(3))
print(by_sector.effects(difference=True).loc["indirect"].round(3))

# %% [markdown]
# Sector moves nothing in the population, and the differences are within their errors.

# %% [markdown]
# ## Within and between schools
#
# So far one slope stood for pupils of the same school and for schools. Do the two differ?

# %%
print(jm.conflation(jm.fit(schools, **roles), schools))

# %% [markdown]
# There is no sign of it here. `center="cluster"` gives both anyway: it splits support and motivation into the pupil's
# deviation from the mean of the school and that mean. Random intercepts are then independent of the other random effects,
# since a covariance of the two intercepts would explain the same differences between schools as the path from the
# school's motivation to its achievement (docs/models.md).

# %%
parts = jm.fit(schools, **roles, center="cluster")
names = ["a", "b", "c_prime", "indirect", "total"]
print(parts.effects().loc[[f"{name}_within" for name in names] + [f"{name}_between" for name in names]].round(3))

# %% [markdown]
# The contextual effect is between minus within. Where it is near zero the uncentred model was right, and more precise.

# %%
table = parts.effects()
print(table[table.index.str.startswith("contextual")].round(3))

# %% [markdown]
# Both at once: climate moves the path from support to motivation within and between schools.

# %%
both = jm.fit(schools, **roles, center="cluster", moderators={"climate": ["a"]})
print(both.effects(at={"climate": [-1, 0, 1]}).loc[["indirect_within", "indirect_between"]].round(3))

# %% [markdown]
# ## A predictor of the school
#
# Training is a property of the school. It can move pupils' motivation only between schools, so jaxmed splits motivation
# by itself, and says so; the indirect effect is a times b_between. In the population training raises motivation by .3,
# and motivation raises achievement by .62 (.5, and .12 through effort).

# %%
trained = jm.fit(schools, x="training", m="motivation", y="achievement", cluster="school")
print(trained.notes)
print(trained.effects().round(3))

# %% [markdown]
# ## A predictor with categories
#
# With three kinds of schools every effect has two rows, each against public schools. `omnibus` tests them together.

# %%
kinds = jm.fit(schools, x="sector", m="motivation", y="achievement", cluster="school", reference={"sector": "public"})
print(kinds.effects().round(3))
print(kinds.omnibus().round(3))

# %% [markdown]
# ## How different are the schools?
#
# The effects above are averages. `heterogeneity` says how much the indirect effect varies around its average, at the mean
# of climate, and in what share of schools it is positive.

# %%
print(fit.heterogeneity(at={"climate": [0]}).round(3))
predicted = fit.ranef()["ab"]
print(predicted.describe().round(3))
