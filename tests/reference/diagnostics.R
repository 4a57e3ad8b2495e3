# Satterthwaite degrees of freedom by lmerTest and cluster-robust covariances by clubSandwich, as JSON.
#
#     Rscript diagnostics.R [folder]
#
# lme4's optimiser stops later than by default. lmerTest differentiates numerically (numDeriv); clubSandwich takes the
# variance parameters as known: C (sum_j s_j s_j') C of the fixed effects alone, C = (X'V^-1X)^-1.

suppressPackageStartupMessages({ library(lme4); library(lmerTest); library(clubSandwich); library(jsonlite) })

argument <- commandArgs(trailingOnly = TRUE)
folder <- if (length(argument)) argument[1] else dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))

control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhobeg = 0.02, rhoend = 1e-10, maxfun = 1e5))

answer_of <- function(formula, data, reml) {
  fit <- lme4::lmer(formula, data, REML = reml, control = control)
  tested <- as_lmerModLmerTest(fit)
  table <- coef(summary(tested, ddf = "Satterthwaite"))
  contrast <- seq_along(fixef(fit)) - 1
  contrast[1] <- 0
  along <- contest1D(tested, contrast, ddf = "Satterthwaite")
  list(
    loglik = as.numeric(logLik(fit)),
    rows = nrow(model.frame(fit)),
    params = unname(fixef(fit)),
    se = unname(table[, "Std. Error"]),
    df = unname(table[, "df"]),
    p = unname(table[, "Pr(>|t|)"]),
    contrast = contrast,
    contrast_df = along[["df"]],
    robust = lapply(c(CR0 = "CR0", CR1 = "CR1"), function(type) unname(as.matrix(vcovCR(fit, type = type))))
  )
}

unbalanced <- read.csv(file.path(folder, "unbalanced.csv"))
unbalanced$x <- (unbalanced$x - 50) / 10
extended <- read.csv(file.path(folder, "extended.csv"))
version <- function(package) as.character(packageVersion(package))

both <- function(formula, data) list(REML = answer_of(formula, data, TRUE), ML = answer_of(formula, data, FALSE))
answer <- list(
  versions = c(list(R = paste(R.version$major, R.version$minor, sep = ".")),
               sapply(c(lme4 = "lme4", lmerTest = "lmerTest", clubSandwich = "clubSandwich"), version, simplify = FALSE)),
  slope = both(y ~ x + (1 + x | id), unbalanced),
  levels = both(y ~ x + tx + w + v + (1 + x | id), extended)
)
write(toJSON(answer, auto_unbox = TRUE, digits = I(12), pretty = TRUE), file.path(folder, "diagnostics.json"))
