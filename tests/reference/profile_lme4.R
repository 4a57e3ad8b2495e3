# Profile-likelihood limits of single mixed models by lme4 (maximum likelihood), as JSON.
#
#     Rscript profile_lme4.R [folder]
#
# lme4 profiles standard deviations; a limit of a variance is the square of theirs. Its limits come from a spline through
# the profile, here on a grid four times as fine as its default, with an optimiser that stops later than its default.
# x of unbalanced.csv is far from zero, where lme4's own optimiser is not at ease: (x - 50) / 10 stands for it.

suppressPackageStartupMessages({ library(lme4); library(jsonlite) })

argument <- commandArgs(trailingOnly = TRUE)
folder <- if (length(argument)) argument[1] else dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))

limits <- function(formula, data, level = 0.95) {
  control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhobeg = 0.02, rhoend = 1e-9, maxfun = 1e5),
                         check.conv.singular = "ignore")
  fit <- lmer(formula, data, REML = FALSE, control = control)
  cutoff <- sqrt(qchisq(1 - 1e-2, length(fixef(fit)) + length(getME(fit, "theta")) + 1))
  shape <- profile(fit, signames = FALSE, delta = cutoff / 32, maxpts = 400)
  found <- confint(shape, level = level)
  list(loglik = as.numeric(logLik(fit)), level = level, rows = nrow(model.frame(fit)),
       lower = as.list(found[, 1]), upper = as.list(found[, 2]))
}

unbalanced <- read.csv(file.path(folder, "unbalanced.csv"))
unbalanced$x <- (unbalanced$x - 50) / 10
singular <- read.csv(file.path(folder, "singular.csv"))

answer <- list(
  versions = list(R = paste(R.version$major, R.version$minor, sep = "."), lme4 = as.character(packageVersion("lme4"))),
  unbalanced = limits(y ~ x + (1 + x | id), unbalanced),
  bound = limits(y ~ m + (1 + m | id), singular)
)
write(toJSON(answer, auto_unbox = TRUE, digits = 12, pretty = TRUE, na = "null"), file.path(folder, "profile_lme4.json"))
