# Adapter for a parametric bootstrap with glmmTMB: the model of fit_glmmTMB.R; simulate(), which draws random effects
# anew; each simulated response fitted from the old optimum, by two forked workers. The refits leave out standard
# errors, which glmmTMB::refit cannot and takes 1.5 times as long for. Arguments: DATA.csv VARIANT REFITS ROUNDS.

folder <- dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
source(file.path(folder, "stacked.R"))
suppressPackageStartupMessages(library(glmmTMB))

workers <- 2
rounds <- as.integer(argument[4])
s <- read_stacked(argument[1])
model <- as.formula(paste("z ~", five, "+ us(", five, "| id)"))
fit <- glmmTMB(model, dispformula = ~ 0 + outcome, data = s, REML = TRUE)
at <- function(name) unname(fit$fit$par[names(fit$fit$par) == name])
start <- list(beta = unname(fixef(fit)$cond), betad = at("betad"), theta = at("theta"))

again <- function(z) {
  s$z <- z
  refit <- suppressWarnings(
    glmmTMB(model, dispformula = ~ 0 + outcome, data = s, REML = TRUE, start = start, se = FALSE))
  b <- fixef(refit)$cond
  indirect <- b[["smx"]] * b[["sym"]] + VarCorr(refit)$cond$id["smx", "sym"]
  c(indirect = indirect, total = indirect + b[["syx"]], converged = refit$fit$convergence == 0)
}

bootstrap <- function(seed) {
  do.call(rbind, parallel::mclapply(simulate(fit, repeats, seed = seed), again, mc.cores = workers))
}

seconds <- numeric(0); found <- NULL
for (round in seq_len(rounds)) {
  seconds <- c(seconds, system.time(one <- bootstrap(round))[["elapsed"]])
  found <- rbind(found, one)
}
cat(jsonlite::toJSON(list(
  version = as.character(packageVersion("glmmTMB")), loglik = as.numeric(logLik(fit)), refits = repeats,
  workers = workers, seconds = I(seconds), converged = mean(found[, "converged"]),
  indirect = I(unname(found[, "indirect"])), total = I(unname(found[, "total"]))),
  auto_unbox = TRUE, digits = NA), "\n")
