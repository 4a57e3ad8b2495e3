# Adapter for a parametric bootstrap with lme4: the model of fit_lme4.R without the derivatives of the convergence
# check; random effects drawn anew; two forked workers. The variant "bootMer" is lme4's own; "lmer" fits each simulated
# response anew, in a third of the evaluations of lme4's refit from the old optimum. Arguments: DATA.csv VARIANT REFITS
# ROUNDS.

folder <- dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
source(file.path(folder, "stacked.R"))
suppressPackageStartupMessages(library(lme4))

workers <- 2
rounds <- as.integer(argument[4])
s <- read_stacked(argument[1])
model <- as.formula(paste("z ~", five, "+ (", five, "| id) + (0 + sm | fid)"))
control <- lmerControl(check.nobs.vs.nlev = "ignore", check.nobs.vs.nRE = "ignore")
control$calc.derivs <- FALSE
fit <- lmer(model, data = s, REML = TRUE, control = control)

described <- function(fit) {
  b <- fixef(fit)
  indirect <- b[["smx"]] * b[["sym"]] + VarCorr(fit)$id["smx", "sym"]
  c(indirect = indirect, total = indirect + b[["syx"]], converged = fit@optinfo$conv$opt == 0)
}

bootstraps <- list(
  bootMer = function(seed) bootMer(fit, described, nsim = repeats, seed = seed, use.u = FALSE, type = "parametric",
                                   parallel = "multicore", ncpus = workers)$t,
  lmer = function(seed) {
    drawn <- simulate(fit, repeats, seed = seed)
    again <- function(z) { s$z <- z; described(lmer(model, data = s, REML = TRUE, control = control)) }
    do.call(rbind, parallel::mclapply(drawn, again, mc.cores = workers))
  })

seconds <- numeric(0); found <- NULL
for (round in seq_len(rounds)) {
  seconds <- c(seconds, system.time(one <- suppressMessages(bootstraps[[variant]](round)))[["elapsed"]])
  found <- rbind(found, one)
}
cat(jsonlite::toJSON(list(
  version = as.character(packageVersion("lme4")), loglik = as.numeric(logLik(fit)), refits = repeats,
  workers = workers, seconds = I(seconds), converged = mean(found[, "converged"]),
  indirect = I(unname(found[, "indirect"])), total = I(unname(found[, "total"]))),
  auto_unbox = TRUE, digits = NA), "\n")
