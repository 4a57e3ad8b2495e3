# Adapter for lme4: lmer with the worked example's device, an effect of the data row on the mediator's rows (0 + sm | fid),
# whose variance is sigma_m^2 - sigma_y^2. The variant "no-derivatives" leaves out the derivatives of the convergence
# check. The checks of the number of random effects against the number of rows are off, since the device needs that;
# everything else is lme4's default.

folder <- dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
source(file.path(folder, "stacked.R"))
suppressPackageStartupMessages(library(lme4))

model <- as.formula(paste("z ~", five, "+ (", five, "| id) + (0 + sm | fid)"))
control <- lmerControl(check.nobs.vs.nlev = "ignore", check.nobs.vs.nRE = "ignore")
if (variant == "no-derivatives") control$calc.derivs <- FALSE

run("lme4", function(s) lmer(model, data = s, REML = TRUE, control = control), function(fit) list(
  loglik = as.numeric(logLik(fit)), converged = fit@optinfo$conv$opt == 0, message = unlist(fit@optinfo$conv$lme4$messages)))
