# Fit the models of cases.json with glmmTMB and lme4, single covariances of the random effects held at zero; write R.json.
#
#     JAXMED_DATA=folder Rscript make_zero.R [case ...]
#
# Data files are looked for in the folder JAXMED_DATA, then in jaxmed/datasets. With names of cases, only those are refitted.
#
# Stacked model: one response z holds the rows of every equation, with a column for each predictor of each equation (zero
# elsewhere) and a residual variance for each outcome. A row enters an equation where all of that equation's columns are
# observed; cluster means are over all rows in which the column itself is.
#
# us() has theta = log sds, then the row-wise lower triangle of a Cholesky factor with unit diagonal, whose rows are
# scaled to length one. The intercepts come first in the term, so that a zero covariance of two of them is a zero of the
# factor as long as the zeros of a row come first. `map` holds those elements at 0; VarCorr is checked afterwards. In
# lme4, theta is the factor itself, by columns, and its deviance function is minimised over the other elements.
#
# Correlated residuals are an effect of the data row, shared by the two outcomes, with their covariance as its variance.
# Different residual variances are, for lme4, effects of the single stacked rows of all outcomes but one.

suppressPackageStartupMessages({ library(glmmTMB); library(lme4); library(jsonlite) })

folder <- dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
wanted <- commandArgs(trailingOnly = TRUE)
cases <- fromJSON(file.path(folder, "cases.json"), simplifyVector = FALSE)

read_data <- function(case) {
  paths <- file.path(c(Sys.getenv("JAXMED_DATA"), file.path(folder, "..", "..", "..", "jaxmed", "data")), case$data)
  d <- read.csv(paths[file.exists(paths)][1])
  d$cluster <- factor(d[[case$cluster]])
  d
}

value_of <- function(d, term) {
  if (term == "1") return(rep(1, nrow(d)))
  parts <- regmatches(term, regexec("^(within|between)\\((\\w+)\\)$", term))[[1]]
  column <- d[[parts[3]]]
  means <- ave(column, d$cluster, FUN = function(v) mean(v, na.rm = TRUE))
  if (parts[2] == "between") means else column - means
}

stack_rows <- function(d, equations) {
  labels <- function(which) unlist(lapply(equations, function(e) paste0(e$outcome, "~", unlist(e[[which]]))))
  fixed <- labels("predictors")
  pieces <- lapply(equations, function(e) {
    X <- matrix(0, nrow(d), length(fixed), dimnames = list(NULL, fixed))
    for (term in unlist(e$predictors)) X[, paste0(e$outcome, "~", term)] <- value_of(d, term)
    keep <- complete.cases(X, d[[e$outcome]])
    cbind(data.frame(z = d[[e$outcome]], cluster = d$cluster, row = factor(seq_len(nrow(d))), outcome = e$outcome),
          setNames(as.data.frame(X), paste0("c", seq_along(fixed))))[keep, ]
  })
  s <- do.call(rbind, pieces)
  s$outcome <- factor(s$outcome, levels = sapply(equations, `[[`, "outcome"))
  list(d = s, fixed = fixed, random = labels("random"), name = setNames(paste0("c", seq_along(fixed)), fixed))
}

prepare <- function(case) {
  s <- stack_rows(read_data(case), case$equations)
  s$pair <- unlist(case$residuals)
  s$d$shared <- as.numeric(s$d$outcome %in% s$pair)
  first <- endsWith(s$random, "~1")
  s$order <- c(s$random[first], s$random[!first])
  s$is_zero <- function(i, j) list(s$order[c(i, j)]) %in% lapply(case$zero, unlist)
  s$formula <- paste(s$name[s$order], collapse = " + ")
  s$fixed_part <- paste("z ~ 0 +", paste(s$name, collapse = " + "))
  s
}

fit_glmmTMB <- function(case, reml) {
  s <- prepare(case); pair <- s$pair; random <- s$order; q <- length(random)
  position <- which(upper.tri(diag(q)), arr.ind = TRUE)      # by columns of the upper triangle: rows of the lower one
  held <- apply(position, 1, function(k) s$is_zero(k[2], k[1]))
  stopifnot(sum(held) == length(case$zero))
  size <- q + length(held) + (length(pair) > 0)
  map <- seq_len(size); map[q + which(held)] <- NA

  formula <- paste(s$fixed_part, "+ us(0 +", s$formula, "| cluster)", if (length(pair)) "+ (0 + shared | row)")
  control <- glmmTMBControl(optCtrl = list(iter.max = 5000, eval.max = 20000, rel.tol = 1e-12))
  model <- glmmTMB(as.formula(formula), s$d, dispformula = ~ 0 + outcome, REML = reml, control = control,
                   start = list(theta = rep(0, size)), map = list(theta = factor(map)))

  obj <- model$obj; par <- model$fit$par
  curvature <- function() {
    H <- sapply(seq_along(par), function(i) { e <- replace(0 * par, i, 1e-4); drop(obj$gr(par + e) - obj$gr(par - e)) / 2e-4 })
    (H + t(H)) / 2
  }
  for (step in 1:6) {                                        # Newton steps on glmmTMB's own objective and gradient
    g <- drop(obj$gr(par))
    if (max(abs(g)) < 1e-9) break
    move <- drop(solve(curvature(), g))
    if (obj$fn(par - move) > obj$fn(par) + 1e-9) break
    par <- par - move
  }
  value <- as.numeric(obj$fn(par)); gradient <- max(abs(obj$gr(par)))
  list_of <- obj$env$parList(par, obj$env$last.par); report <- obj$report(obj$env$last.par); H <- curvature()
  G <- report$corr[[1]] * outer(report$sd[[1]], report$sd[[1]]); dimnames(G) <- list(random, random)
  before <- VarCorr(model)$cond$cluster                      # the same order of terms, before the Newton steps
  stopifnot(all(sapply(case$zero, function(z) G[z[[1]], z[[2]]] == 0 && before[s$name[[z[[1]]]], s$name[[z[[2]]]]] == 0)),
            max(abs(before - G) / outer(report$sd[[1]], report$sd[[1]])) < 1e-2)

  outcomes <- levels(s$d$outcome)
  shared <- if (length(pair)) as.numeric(report$sd[[2]])^2 else 0
  s2 <- setNames(exp(list_of$betad), outcomes); s2[pair] <- s2[pair] + shared

  answer <- list(program = "glmmTMB", version = as.character(packageVersion("glmmTMB")), R = as.character(getRversion()),
                 loglik = -value, nobs = nrow(s$d), n_clusters = nlevels(droplevels(s$d$cluster)), reml = reml, gradient = gradient,
                 params = as.list(setNames(list_of$beta, s$fixed)), random_cov = labelled(G[s$random, s$random], s$random),
                 residual_var = as.list(s2))
  if (length(pair)) answer$residual_cov <- labelled(matrix(c(s2[pair[1]], shared, shared, s2[pair[2]]), 2), pair)
  if (gradient > 1e-6) return(answer)                        # a singular G, which glmmTMB only approaches

  sdr <- TMB::sdreport(obj, par.fixed = par, hessian.fixed = H, getJointPrecision = reml)
  precision <- if (reml) as.matrix(sdr$jointPrecision) else H
  kind <- if (reml) rownames(precision) else names(par)
  given <- if (reml) kind %in% c("beta", "b") else kind == "beta"
  block <- solve(precision[given, given])[kind[given] == "beta", kind[given] == "beta"]
  full <- solve(precision)
  theta <- c(paste("log sd", random), apply(position, 1, function(k) paste("factor", random[k[2]], random[k[1]])), if (length(pair)) "log sd shared")
  c(answer, list(cov_params_block = labelled(block, s$fixed), cov_params_joint = labelled(full[kind == "beta", kind == "beta"], s$fixed)),
    if (!reml) list(cov_full = labelled(full, c(s$fixed, paste("log residual variance", outcomes), theta[!is.na(map)]))))
}

fit_lme4 <- function(case, reml) {
  s <- prepare(case); pair <- s$pair; outcomes <- levels(s$d$outcome)
  d <- s$d; d$each <- factor(seq_len(nrow(d)))
  spread <- sapply(split(d$z, d$outcome), var)
  extra <- paste0("extra", seq_along(outcomes))
  for (k in seq_along(outcomes)) d[[extra[k]]] <- as.numeric(d$outcome == outcomes[k])
  fitted <- function(base) {                                 # base: the outcome without an extra effect
    other <- setdiff(seq_along(outcomes), base)
    formula <- paste(s$fixed_part, "+ (0 +", s$formula, "| cluster) +", paste0("(0 + ", extra[other], " | each)", collapse = " + "),
                     if (length(pair)) "+ (0 + shared | row)")
    parts <- lFormula(as.formula(formula), d, REML = reml, control = lmerControl(check.nobs.vs.nlev = "ignore", check.nobs.vs.nRE = "ignore"))
    dev <- do.call(mkLmerDevfun, parts)
    names_of <- parts$reTrms$cnms; at <- 0; index <- list()
    for (k in seq_along(names_of)) { n <- length(names_of[[k]]); index[[k]] <- at + seq_len(n * (n + 1) / 2); at <- at + n * (n + 1) / 2 }
    cluster <- which(names(names_of) == "cluster"); q <- length(s$order)
    position <- which(lower.tri(diag(q), TRUE), arr.ind = TRUE)
    free <- rep(TRUE, at)
    free[index[[cluster]]] <- !apply(position, 1, function(k) s$is_zero(k[1], k[2]))
    stopifnot(sum(!free) == length(case$zero), identical(unname(s$name[s$order]), names_of[[cluster]]))
    objective <- function(v) dev(replace(numeric(at), which(free), v))
    v <- ifelse(parts$reTrms$lower == 0, 0.7, 0)[free]
    for (radius in c(0.1, 0.02, 0.005, 1e-3))
      v <- minqa::bobyqa(v, objective, parts$reTrms$lower[free], control = list(rhobeg = radius, rhoend = 1e-9, maxfun = 1e5))$par
    theta <- replace(numeric(at), which(free), v); value <- dev(theta)
    pp <- environment(dev)$pp; n <- nrow(d); p <- length(s$fixed)
    sigma2 <- (environment(dev)$resp$wrss() + pp$sqrL(1)) / (n - if (reml) p else 0)
    L <- matrix(0, q, q, dimnames = list(s$order, s$order)); L[position] <- theta[index[[cluster]]]
    sizes <- setNames(sapply(seq_along(names_of), function(k) theta[index[[k]]][1]^2), sapply(names_of, `[`, 1)) * sigma2
    list(loglik = -value / 2, beta = pp$beta(1), G = L %*% t(L) * sigma2, C = pp$unsc() * sigma2, base = base,
         shared = if (length(pair)) sizes[["shared"]] else 0,
         s2 = setNames(sigma2 + ifelse(seq_along(outcomes) %in% other, sizes[extra], 0), outcomes))
  }
  fits <- lapply(seq_along(outcomes), fitted)                # the right base is the outcome of the smallest residual variance
  best <- fits[[which.max(sapply(fits, `[[`, "loglik"))]]
  best$s2[pair] <- best$s2[pair] + best$shared
  c(list(program = "lme4", version = as.character(packageVersion("lme4")), loglik = best$loglik, reml = reml,
         params = as.list(setNames(best$beta, s$fixed)), random_cov = labelled(best$G[s$random, s$random], s$random),
         residual_var = as.list(best$s2), cov_params_block = labelled(best$C, s$fixed)),
    if (length(pair)) list(residual_cov = labelled(matrix(c(best$s2[pair[1]], best$shared, best$shared, best$s2[pair[2]]), 2), pair)))
}

labelled <- function(M, labels) list(labels = I(labels), values = unname(as.matrix(M)))

path <- file.path(folder, "R.json")
answers <- if (file.exists(path)) fromJSON(path, simplifyVector = FALSE) else list()
for (name in if (length(wanted)) wanted else names(cases)) {
  for (method in c("REML", "ML")) for (program in c("glmmTMB", "lme4")) {
    began <- proc.time()[3]
    a <- list(glmmTMB = fit_glmmTMB, lme4 = fit_lme4)[[program]](cases[[name]], method == "REML")
    gradient <- if (is.null(a$gradient)) "" else sprintf("gradient %.1e", a$gradient)
    cat(sprintf("%-22s %-4s %-7s %.9f %s %.0f s\n", name, method, program, a$loglik, gradient, proc.time()[3] - began))
    answers[[name]][[method]][[program]] <- a
  }
  write_json(answers[intersect(names(cases), names(answers))], path, digits = NA, auto_unbox = TRUE, pretty = TRUE, matrix = "rowmajor")
}
