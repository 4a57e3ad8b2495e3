# Adapter for nlme: lme with a residual variance for each outcome (varIdent). nlminb, its default optimiser, ends at its
# limit of iterations from 1,000 clusters on, and with a higher limit takes twice as long as `optim`, which is used here;
# but at 10,000 clusters `optim` ends in an error, and nlminb gets there.

folder <- dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
source(file.path(folder, "stacked.R"))
suppressPackageStartupMessages(library(nlme))

fixed <- as.formula(paste("z ~", five))
random <- as.formula(paste("~", five, "| id"))
by_size <- function(s) lmeControl(opt = if (nrow(s) > 80000) "nlminb" else "optim", maxIter = 500, msMaxIter = 1000)

run("nlme",
    function(s) lme(fixed, random = random, weights = varIdent(form = ~ 1 | outcome), data = s, method = "REML", control = by_size(s)),
    function(fit) list(loglik = as.numeric(logLik(fit)), converged = TRUE, message = NULL))  # lme stops where it fails
