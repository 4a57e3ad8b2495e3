# Adapter for glmmTMB: a dispersion for each outcome (dispformula), REML, everything else its default. That is one core: with
# glmmTMBControl(parallel = 2) it took 0.7 of the time on two idle cores, and 18 times as long on busy ones.

folder <- dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
source(file.path(folder, "stacked.R"))
suppressPackageStartupMessages(library(glmmTMB))

model <- as.formula(paste("z ~", five, "+ us(", five, "| id)"))

run("glmmTMB",
    function(s) glmmTMB(model, dispformula = ~ 0 + outcome, data = s, REML = TRUE),
    function(fit) list(loglik = as.numeric(logLik(fit)), converged = fit$fit$convergence == 0 && isTRUE(fit$sdr$pdHess),
                       message = NULL))
