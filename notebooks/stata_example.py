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
# # The worked Stata example, step by step
#
# UCLA's Stata FAQ "How can I perform mediation with multilevel data? (Method 2)" fits the model of Bauer, Preacher & Gil
# (2006) to 100 clusters of 8 rows. Here is each of its steps, with the numbers that Stata printed beside those of jaxmed.
# The data are not part of jaxmed. Put them as `bpg2006.csv` (columns id, x, m, y) into a folder and name that folder in
# the environment variable `JAXMED_DATA`, or run `jaxmed.datasets.load_bpg2006()` once where there is a network.

# %%
import sys

import numpy as np
import pandas as pd

import jaxmed as jm

try:
    data = jm.datasets.load_bpg2006(download=False)
except jm.DataError as error:
    print(f"The worked example's data: {error}.")
    print("Put bpg2006.csv into a folder and name it in JAXMED_DATA, or run jaxmed.datasets.load_bpg2006() once.")
    sys.exit(0)


def beside(found, printed):
    """Numbers of jaxmed next to those in the Stata log, and how far apart they are."""
    table = pd.DataFrame({"jaxmed": pd.Series(found), "Stata": pd.Series(printed)})
    return table.assign(difference=(table["jaxmed"] - table["Stata"]).map("{:.0e}".format))


# %% [markdown]
# ## Looking at the data
#
# `summarize x m y` printed means of -.1539876, -.0247739 and -.1833981, `corr x m y` correlations of .5404 (x, m), .5537
# (x, y) and .7591 (m, y), `tab id` a hundred clusters of eight. `describe` shows all of that, and intraclass correlations.

# %%
spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
print(jm.describe(data, spec))

# %% [markdown]
# ## Three preliminary models
#
# Each is an ordinary mixed model of one outcome: a `System` with one equation. `xtmixed` used maximum likelihood, so
# `reml=False`. In Stata: `xtmixed y x || id: x, var cov(un)`.


# %%
def single(outcome, *predictors):
    """One mixed equation, all of its coefficients random."""
    terms = [*predictors, "1"]
    return jm.fit(data, jm.System([jm.Equation(outcome, terms, random=terms)], cluster="id"), reml=False)


y_on_x = single("y", "x")
print(y_on_x.summary())

# %% [markdown]
# The total effect of x is .69, and it varies between clusters. The log of Stata beside it:

# %%
print(
    beside(
        {
            "log likelihood": y_on_x.loglik,
            "x": y_on_x.params["y~x"],
            "x, std. err.": y_on_x.standard_errors("block")["y~x"],
            "_cons": y_on_x.params["y~1"],
            "var(x)": y_on_x.random_cov.loc["y~x", "y~x"],
            "var(_cons)": y_on_x.random_cov.loc["y~1", "y~1"],
            "cov(x,_cons)": y_on_x.random_cov.loc["y~x", "y~1"],
            "var(Residual)": y_on_x.residual_var["y"],
            "LR test, chi2(3)": y_on_x.lr_test().statistic,
        },
        {
            "log likelihood": -1214.1952,
            "x": 0.6897692,
            "x, std. err.": 0.0583307,
            "_cons": -0.0273891,
            "var(x)": 0.2138149,
            "var(_cons)": 0.737622,
            "cov(x,_cons)": -0.0262811,
            "var(Residual)": 0.822606,
            "LR test, chi2(3)": 367.76,
        },
    )
)

# %% [markdown]
# The second model predicts the mediator (`xtmixed m x || id: x, var cov(un)`), the third the outcome by both
# (`xtmixed y m x || id: m x, var cov(un)`). The effect of x falls from .69 to .25 once m is in the model.

# %%
m_on_x, y_on_m_x = single("m", "x"), single("y", "m", "x")
print(
    beside(
        {
            "m on x: log likelihood": m_on_x.loglik,
            "m on x: x": m_on_x.params["m~x"],
            "m on x: x, std. err.": m_on_x.standard_errors("block")["m~x"],
            "m on x: var(Residual)": m_on_x.residual_var["m"],
            "y on m, x: log likelihood": y_on_m_x.loglik,
            "y on m, x: m": y_on_m_x.params["y~m"],
            "y on m, x: m, std. err.": y_on_m_x.standard_errors("block")["y~m"],
            "y on m, x: x": y_on_m_x.params["y~x"],
            "y on m, x: x, std. err.": y_on_m_x.standard_errors("block")["y~x"],
            "y on m, x: var(Residual)": y_on_m_x.residual_var["y"],
        },
        {
            "m on x: log likelihood": -1113.6567,
            "m on x: x": 0.6114761,
            "m on x: x, std. err.": 0.0461973,
            "m on x: var(Residual)": 0.6449282,
            "y on m, x: log likelihood": -1016.0623,
            "y on m, x: m": 0.6252951,
            "y on m, x: m, std. err.": 0.04657,
            "y on m, x: x": 0.2500122,
            "y on m, x: x, std. err.": 0.0384508,
            "y on m, x: var(Residual)": 0.5078589,
        },
    )
)

# %% [markdown]
# ## The stacked data
#
# Two separate models cannot estimate the covariance of a_j and b_j, which belong to different equations. So the example
# stacks y on m (`reshape long`), with an indicator for each and the products of indicators and predictors. jaxmed does
# that by itself; `stack` shows the table. `s_m` is Stata's `sm`, `s_m:x` is `smx`, and so on.

# %%
print(jm.stack(data, spec).head(8).round(4).to_string(index=False))

# %% [markdown]
# ## The stacked model
#
# In Stata: `xtmixed z sm smx sy sym syx, nocons || id: sm smx sy sym syx, nocons cov(un) || fid: sm, nocons var reml`.
# Here the model is named by its columns, REML is the default, and m and y have residual variances of their own. Stata's
# extra random effect `fid: sm` stands for the difference of the two: var(fid) = var(residual m) - var(residual y).

# %%
fit = jm.fit(data, spec)
print(fit.summary(covariance="bauer"))

# %%
print(
    beside(
        {
            "log restricted-likelihood": fit.loglik,
            "smx (a)": fit.params["m~x"],
            "smx, std. err.": fit.standard_errors("block")["m~x"],
            "sym (b)": fit.params["y~m"],
            "sym, std. err.": fit.standard_errors("block")["y~m"],
            "syx (c')": fit.params["y~x"],
            "syx, std. err.": fit.standard_errors("block")["y~x"],
            "var(smx)": fit.random_cov.loc["m~x", "m~x"],
            "var(sym)": fit.random_cov.loc["y~m", "y~m"],
            "cov(smx,sym)": fit.random_cov.loc["m~x", "y~m"],
            "cov(smx,sym), std. err.": fit.random_cov_se.loc["m~x", "y~m"],
            "fid: var(sm)": fit.residual_var["m"] - fit.residual_var["y"],
            "var(Residual)": fit.residual_var["y"],
            "LR test, chi2(16)": fit.lr_test("pooled").statistic,
        },
        {
            "log restricted-likelihood": -2126.1345,
            "smx (a)": 0.6118566,
            "smx, std. err.": 0.0464952,
            "sym (b)": 0.6105632,
            "sym, std. err.": 0.0455363,
            "syx (c')": 0.2208116,
            "syx, std. err.": 0.0372474,
            "var(smx)": 0.1204833,
            "var(sym)": 0.1118722,
            "cov(smx,sym)": 0.0989554,
            "cov(smx,sym), std. err.": 0.0228226,
            "fid: var(sm)": 0.1377656,
            "var(Residual)": 0.5089653,
            "LR test, chi2(16)": 765.76,
        },
    )
)

# %% [markdown]
# ## The final display
#
# The example takes these estimates into global macros and computes ab + cov(a_j, b_j), its standard error by the formula
# of Bauer et al., and the total effect. In jaxmed that is one table; `covariance="bauer"` says by which formulas.

# %%
bauer = fit.effects(covariance="bauer")
rows = {"a": "a", "b": "b", "c prime": "c_prime", "cov(ajbj)": "cov_ab"}
found = {name: bauer.loc[row, "estimate"] for name, row in rows.items()}
printed = {"a": 0.61185658, "b": 0.61056318, "c prime": 0.22081162, "cov(ajbj)": 0.09895544}
display = {
    "indirect": {"effect": 0.47253254, "se": 0.05333007, "ratio": 8.8605279, "LCL": 0.36800561, "UCL": 0.57705946},
    "total": {"effect": 0.69334416, "se": 0.05829333, "ratio": 11.894057, "LCL": 0.57908923, "UCL": 0.80759908},
}
columns = {"effect": "estimate", "se": "se", "ratio": "z", "LCL": "ci_lower", "UCL": "ci_upper"}
for effect, numbers in display.items():
    printed |= {f"average {effect} effect: {name}": value for name, value in numbers.items()}
    found |= {f"average {effect} effect: {name}": bauer.loc[effect, column] for name, column in columns.items()}
table = beside(found, printed)
print(table)
assert np.allclose(table["jaxmed"], table["Stata"], rtol=2e-6)

# %% [markdown]
# They agree to six digits or more. Stata's optimiser stopped a little before the optimum: at jaxmed's estimates the
# gradient is zero to rounding, and the differences are those of where the two stopped.

# %% [markdown]
# ## What joint standard errors change
#
# In an ordinary mixed model the estimates of coefficients and of variances are independent in large samples, and every
# program computes the standard errors of coefficients as if the variances were known. In the stacked model that is not
# so: m is a response in one equation and a predictor in the other, and its random effects covary with those of y. Had the
# covariances come out a little different, so would b and c'. The default, `covariance="joint"`, inverts the information on all
# parameters together and so lets this uncertainty through.

# %%
joint = fit.effects()
print(pd.DataFrame({"estimate": joint["estimate"], "se bauer": bauer["se"], "se joint": joint["se"]}).round(4))

# %% [markdown]
# The standard error of b goes from .0455 to .0501, that of c' from .0372 to .0415; that of a stays, since no outcome
# stands among its predictors. The indirect effect's goes from .0533 to .0547. The total effect's goes the other way, from
# .0583 to .0562: the uncertainty that b and c' share has opposite signs in the two, and cancels in their sum.

# %%
for kind in ("block", "joint"):
    covariance, errors = fit.cov_params(kind), fit.standard_errors(kind)
    correlation = covariance.loc["y~m", "y~x"] / (errors["y~m"] * errors["y~x"])
    print(f"correlation of the estimates of b and c', {kind}: {correlation:.2f}")

# %% [markdown]
# In simulations from the population of Bauer et al. the joint standard errors match the spread of the estimates, and the
# others are too small for b and c' (docs/method.md has the figures).
