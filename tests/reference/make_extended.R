# Fit extended.csv (make_extended.py) with nlme, glmmTMB and lme4, and write the answers to extended.json.
#
#     Rscript make_extended.R [folder] [model ...]
#
# With names of models, only those are refitted; the others keep what the file holds.
#
# Stacked model: one response z holds the rows of every equation, with a coefficient column for each predictor of each
# equation (zero elsewhere) and a residual variance for each outcome. A row enters an equation where all of that
# equation's columns are observed. Cluster means, for within() and between(), are over the rows where that column is.
#
# Correlated residuals of two outcomes are, for the programs, an effect of the data row shared by the two outcomes (its
# variance is the covariance, so this needs a positive one) plus a residual variance for each outcome.
#
# Every model is fitted by two programs from their own starting values. The better fit is then taken to the optimum of
# `dense`, the likelihood written out cluster by cluster, by Newton steps on its own parameters: the entries of G and
# the residual (co)variances. That optimum is reported, and both programs are compared with it. The programs see
# columns divided by powers of ten; with T the diagonal map back, the restricted log likelihood gains log|det T|.

suppressPackageStartupMessages({ library(nlme); library(lme4); library(glmmTMB); library(jsonlite) })

argument <- commandArgs(trailingOnly = TRUE)
folder <- if (length(argument)) argument[1] else dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
wanted <- argument[-1]

# ---- data -----------------------------------------------------------------------------------------------------------

data <- read.csv(file.path(folder, "extended.csv"), colClasses = c(id = "character", site = "character"))
data$id <- factor(data$id)
data$row <- seq_len(nrow(data))

value_of <- function(d, term) {
  if (term == "1") return(rep(1, nrow(d)))
  parts <- strsplit(term, ":", fixed = TRUE)[[1]]
  if (length(parts) > 1) return(Reduce(`*`, lapply(parts, function(p) value_of(d, p))))
  called <- regmatches(term, regexec("^(\\w+)[([](\\w+)[])]$", term))[[1]]
  if (!length(called)) return(d[[term]])
  if (called[2] == "site") return(as.numeric(d$site == called[3]))
  column <- d[[called[3]]]
  means <- ave(column, d$id, FUN = function(v) mean(v, na.rm = TRUE))
  if (called[2] == "between") means else column - means
}

equation <- function(outcome, predictors, random = character(0), level = NULL)
  c(list(outcome = outcome, predictors = I(predictors), random = I(random)), if (!is.null(level)) list(level = level))
labels_of <- function(e, which) if (length(e[[which]])) paste0(e$outcome, "~", e[[which]]) else character(0)

stack_rows <- function(d, equations) {
  fixed <- unlist(lapply(equations, labels_of, "predictors"))
  pieces <- lapply(equations, function(e) {
    X <- matrix(0, nrow(d), length(fixed), dimnames = list(NULL, fixed))
    for (k in seq_along(e$predictors)) X[, labels_of(e, "predictors")[k]] <- value_of(d, e$predictors[k])
    keep <- complete.cases(X, d[[e$outcome]])
    if (identical(e$level, 2)) keep <- keep & !duplicated(d$id)
    list(X = X[keep, , drop = FALSE], z = d[[e$outcome]][keep], id = d$id[keep], row = d$row[keep], outcome = rep(e$outcome, sum(keep)))
  })
  s <- list(X = do.call(rbind, lapply(pieces, `[[`, "X")))
  for (name in c("z", "id", "row", "outcome")) s[[name]] <- unlist(lapply(pieces, `[[`, name))
  s$random <- unlist(lapply(equations, labels_of, "random"))
  s$outcomes <- sapply(equations, `[[`, "outcome")
  s
}

# ---- the likelihood, written out ------------------------------------------------------------------------------------

# Parameters: the free entries of G, the residual variances, the residual covariance. A derivative of V is Z E Z' or a
# 0/1 pattern, so one matrix Q for each cluster gives the whole gradient: d l = sum of Q * dV.
dense_model <- function(s, diagonal, residuals, reml) {
  q <- length(s$random); p <- ncol(s$X); K <- length(s$outcomes); correlated <- length(residuals) > 0
  position <- which(lower.tri(diag(q), TRUE) & (!diagonal | diag(q) > 0), arr.ind = TRUE)
  clusters <- lapply(split(seq_along(s$z), s$id, drop = TRUE), function(k) {
    outcome <- s$outcome[k]
    pair <- if (correlated) outer(s$row[k], s$row[k], `==`) & outer(outcome %in% residuals, outcome %in% residuals) & !diag(length(k)) else NULL
    list(X = s$X[k, , drop = FALSE], Z = s$X[k, s$random, drop = FALSE], z = s$z[k], outcome = match(outcome, s$outcomes), pair = pair * 1)
  })
  unpack <- function(v) {
    G <- matrix(0, q, q, dimnames = list(s$random, s$random))
    G[position] <- v[seq_len(nrow(position))]; G[position[, 2:1, drop = FALSE]] <- G[position]
    list(G = G, s2 = setNames(v[nrow(position) + seq_len(K)], s$outcomes), rc = if (correlated) v[length(v)])
  }
  pack <- function(G, s2, rc) c(G[s$random, s$random, drop = FALSE][position], s2[s$outcomes], if (correlated) rc)
  evaluate <- function(v, gradient = TRUE) {
    u <- unpack(v); XVX <- matrix(0, p, p); XVz <- numeric(p); logdet <- 0
    kept <- lapply(clusters, function(k) {
      V <- k$Z %*% u$G %*% t(k$Z) + diag(u$s2[k$outcome], length(k$z))
      if (correlated) V <- V + u$rc * k$pair
      R <- chol(V); W <- chol2inv(R)
      list(W = W, WX = W %*% k$X, logdet = 2 * sum(log(diag(R))))
    })
    for (i in seq_along(clusters)) {
      XVX <- XVX + crossprod(clusters[[i]]$X, kept[[i]]$WX)
      XVz <- XVz + drop(crossprod(kept[[i]]$WX, clusters[[i]]$z)); logdet <- logdet + kept[[i]]$logdet
    }
    unit <- 1 / sqrt(diag(XVX)); C <- solve(XVX * outer(unit, unit)) * outer(unit, unit); beta <- drop(C %*% XVz)
    gG <- matrix(0, q, q); gs <- numeric(K); gr <- 0; rss <- 0
    for (i in seq_along(clusters)) {
      k <- clusters[[i]]; r <- drop(k$z - k$X %*% beta); Wr <- drop(kept[[i]]$W %*% r); rss <- rss + sum(r * Wr)
      if (!gradient) next
      Q <- (outer(Wr, Wr) - kept[[i]]$W) / 2
      if (reml) Q <- Q + kept[[i]]$WX %*% C %*% t(kept[[i]]$WX) / 2
      gG <- gG + t(k$Z) %*% Q %*% k$Z
      for (o in unique(k$outcome)) gs[o] <- gs[o] + sum(diag(Q)[k$outcome == o])
      if (correlated) gr <- gr + sum(Q * k$pair)
    }
    loglik <- -0.5 * (length(s$z) * log(2 * pi) + logdet + rss)
    if (reml) loglik <- loglik + 0.5 * (p * log(2 * pi) - as.numeric(determinant(XVX)$modulus))
    twice <- ifelse(position[, 1] == position[, 2], 1, 2)
    list(loglik = loglik, beta = setNames(beta, colnames(s$X)), cov = C, gradient = c(gG[position] * twice, gs, if (correlated) gr))
  }
  scale_of <- function(v) { u <- unpack(v); d <- sqrt(diag(u$G)); c(outer(d, d)[position], u$s2, if (correlated) prod(sqrt(u$s2[residuals]))) }
  # derivatives of the gradient and of beta by four-point central differences
  derivatives <- function(v, step = 2e-3) {
    scale <- scale_of(v)
    both <- sapply(seq_along(v), function(i) {
      at <- function(h) { w <- v; w[i] <- w[i] + h * scale[i]; e <- evaluate(w); c(e$gradient * scale, e$beta) }
      (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    })
    n <- length(v); H <- both[seq_len(n), , drop = FALSE]
    list(scale = scale, H = (H + t(H)) / 2, D = both[-seq_len(n), , drop = FALSE])
  }
  polish <- function(v, rounds = 8) {
    for (round in seq_len(rounds)) {
      g <- evaluate(v)$gradient; d <- derivatives(v)
      move <- -drop(solve(d$H, g * d$scale))
      if (max(abs(move)) > 0.3) stop("Newton step too long: ", max(abs(move)))
      v <- v + move * d$scale
      if (max(abs(move)) < 1e-9) break
    }
    e <- evaluate(v); d <- derivatives(v); V <- solve(-d$H); g <- e$gradient * d$scale
    list(v = v, e = e, se = sqrt(diag(V)) * d$scale, joint = e$cov + d$D %*% V %*% t(d$D), scaled_gradient = max(abs(g)),
         decrement = drop(t(g) %*% V %*% g) / 2, last_step = max(abs(move)), definite = all(eigen(-d$H)$values > 0))
  }
  list(position = position, unpack = unpack, pack = pack, evaluate = evaluate, polish = polish)
}

# ---- the programs ---------------------------------------------------------------------------------------------------

frame_of <- function(s, residuals) {
  scale <- apply(s$X, 2, function(v) 10^round(log10(sqrt(mean(v[v != 0]^2)))))
  name <- setNames(paste0("c", seq_along(scale)), colnames(s$X))
  d <- as.data.frame(sweep(s$X, 2, scale, `/`)); names(d) <- name
  d$z <- s$z; d$id <- factor(s$id); d$row <- factor(s$row); d$outcome <- factor(s$outcome, levels = s$outcomes)
  d$shared <- as.numeric(s$outcome %in% residuals)
  d <- d[order(d$id, d$row, d$outcome), ]
  list(d = d, name = name, scale = scale, fixed = paste("z ~ 0 +", paste(name, collapse = " + ")),
       random = paste("0 +", paste(name[s$random], collapse = " + ")))
}

user_scale <- function(fit, s, f, reml) {
  fit$loglik <- fit$loglik - if (reml) sum(log(f$scale)) else 0
  fit$params <- fit$params / f$scale
  fit$G <- fit$G / outer(f$scale[s$random], f$scale[s$random]); dimnames(fit$G) <- list(s$random, s$random)
  fit
}

fit_nlme <- function(s, f, diagonal, residuals, reml) {
  piece <- if (diagonal) pdDiag else pdSymm
  random <- list(id = piece(form = as.formula(paste("~", f$random))))
  if (length(residuals)) random$row <- pdDiag(form = ~ 0 + shared)
  best <- NULL
  for (opt in c("nlminb", "optim")) {
    control <- lmeControl(opt = opt, maxIter = 500, msMaxIter = 5000, msMaxEval = 50000, tolerance = 1e-13, msTol = 1e-14, niterEM = 50,
                          returnObject = TRUE)
    call <- list(fixed = as.formula(f$fixed), random = random, data = f$d, method = if (reml) "REML" else "ML", control = control)
    if (length(s$outcomes) > 1) call$weights <- varIdent(form = ~ 1 | outcome)
    fit <- tryCatch(suppressWarnings(do.call(lme, call)), error = function(e) NULL)
    if (!is.null(fit) && (is.null(best) || fit$logLik > best$logLik)) best <- fit
  }
  if (is.null(best)) return(NULL)
  structure <- best$modelStruct$reStruct
  rc <- if (length(residuals)) as.numeric(as.matrix(structure$row)) * best$sigma^2
  sd <- if (length(s$outcomes) > 1) best$sigma * coef(best$modelStruct$varStruct, unconstrained = FALSE, allCoef = TRUE) else setNames(best$sigma, s$outcomes)
  s2 <- sd[s$outcomes]^2; s2[residuals] <- s2[residuals] + rc
  C <- best$varFix / outer(f$scale, f$scale)
  user_scale(list(loglik = as.numeric(best$logLik), params = setNames(fixef(best), names(f$name)),
                  G = unname(as.matrix(structure$id)[f$name[s$random], f$name[s$random], drop = FALSE]) * best$sigma^2, s2 = s2, rc = rc, cov = unname(C)), s, f, reml)
}

fit_glmmTMB <- function(s, f, diagonal, residuals, reml) {
  formula <- paste0(f$fixed, " + ", if (diagonal) "diag" else "us", "(", f$random, " | id)", if (length(residuals)) " + (0 + shared | row)")
  control <- glmmTMBControl(optCtrl = list(iter.max = 5000, eval.max = 20000, rel.tol = 1e-15, x.tol = 1e-12))
  fit <- suppressWarnings(glmmTMB(as.formula(formula), dispformula = if (length(s$outcomes) > 1) ~ 0 + outcome else ~ 1,
                                  data = f$d, REML = reml, control = control))
  obj <- fit$obj; par <- fit$fit$par
  curvature <- function() {
    H <- sapply(seq_along(par), function(i) { e <- replace(0 * par, i, 1e-4); drop(obj$gr(par + e) - obj$gr(par - e)) / 2e-4 })
    (H + t(H)) / 2
  }
  for (step in 1:4) {   # Newton steps on its own objective
    g <- drop(obj$gr(par))
    if (max(abs(g)) < 1e-9) break
    move <- drop(solve(curvature(), g))
    if (obj$fn(par - move) > obj$fn(par) + 1e-9) break
    par <- par - move
  }
  value <- as.numeric(obj$fn(par)); gradient <- max(abs(obj$gr(par)))
  full <- obj$env$last.par; list_of <- obj$env$parList(par, full); report <- obj$report(full)
  sd <- report$sd[[1]]; R <- if (diagonal || length(sd) == 1) diag(length(sd)) else report$corr[[1]]
  rc <- if (length(residuals)) as.numeric(report$sd[[2]])^2
  s2 <- setNames(exp(list_of$betad), s$outcomes); s2[residuals] <- s2[residuals] + rc
  sdr <- TMB::sdreport(obj, par.fixed = par, hessian.fixed = curvature(), getJointPrecision = reml)
  V <- if (reml) solve(as.matrix(sdr$jointPrecision)) else sdr$cov.fixed
  take <- (if (reml) colnames(sdr$jointPrecision) else names(par)) == "beta"
  user_scale(list(loglik = -value, params = setNames(list_of$beta, names(f$name)), G = R * outer(sd, sd), s2 = s2, rc = rc, gradient = gradient,
                  joint = unname(V[take, take]) / outer(f$scale, f$scale)), s, f, reml)
}

# Without random effects in the level-2 equation nothing links the two equations: lm and lmer, log likelihoods added.
fit_separately <- function(s, f, reml) {
  d <- f$d; first <- d$outcome == s$outcomes[1]
  used <- function(o) paste("z ~ 0 +", paste(f$name[startsWith(names(f$name), paste0(o, "~"))], collapse = " + "))
  a <- lm(as.formula(used(s$outcomes[1])), d[first, ])
  b <- lmer(as.formula(paste(used(s$outcomes[2]), "+ (1 | id)")), d[!first, ], REML = reml,
            control = lmerControl(optimizer = "nloptwrap", optCtrl = list(xtol_abs = 1e-14, ftol_abs = 1e-14, xtol_rel = 0, ftol_rel = 0)))
  s2 <- setNames(c(sum(resid(a)^2) / (if (reml) a$df.residual else nobs(a)), sigma(b)^2), s$outcomes)
  user_scale(list(loglik = as.numeric(logLik(a, REML = reml)) + as.numeric(logLik(b)), params = setNames(c(coef(a), fixef(b)), names(f$name)),
                  G = matrix(VarCorr(b)$id[1], 1, 1), s2 = s2, rc = NULL), s, f, reml)
}

# ---- answers --------------------------------------------------------------------------------------------------------

labelled <- function(M, labels) list(labels = I(labels), values = unname(as.matrix(M)))
named <- function(v) as.list(v)

disagreement <- function(a, e, u, se) {
  d <- sqrt(diag(u$G))
  list(loglik = abs(a$loglik - e$loglik), params_in_se = max(abs(a$params - e$beta) / se), random_cov_relative = max(abs(a$G - u$G) / outer(d, d)),
       residual_relative = max(abs(a$s2 / u$s2 - 1), if (!is.null(u$rc)) abs(a$rc / u$rc - 1)))
}

reference <- function(d, equations, diagonal, residuals, reml) {
  s <- stack_rows(d, equations); f <- frame_of(s, residuals); model <- dense_model(s, diagonal, residuals, reml)
  separate <- any(sapply(equations, function(e) identical(e$level, 2)))
  fits <- if (separate) list(`lm+lmer` = fit_separately(s, f, reml), glmmTMB = fit_glmmTMB(s, f, diagonal, residuals, reml)) else
    list(nlme = fit_nlme(s, f, diagonal, residuals, reml), glmmTMB = fit_glmmTMB(s, f, diagonal, residuals, reml))
  fits <- Filter(function(a) !is.null(a) && is.finite(a$loglik), fits)
  start <- fits[[which.max(sapply(fits, `[[`, "loglik"))]]
  best <- model$polish(model$pack(start$G, start$s2, start$rc))
  u <- model$unpack(best$v); e <- best$e; se <- sqrt(diag(e$cov)); fixed <- colnames(s$X); variance <- model$unpack(best$se)
  block <- if (!is.null(fits$nlme)) max(abs(fits$nlme$cov - e$cov) / outer(se, se))
  wide <- sqrt(diag(best$joint)); joint <- max(abs(fits$glmmTMB$joint - best$joint) / outer(wide, wide))
  c(list(program = "dense", loglik = e$loglik, loglik_by_program = c(lapply(fits, `[[`, "loglik"), list(dense = e$loglik)),
         nobs = length(s$z), n_clusters = length(unique(s$id)), reml = reml,
         params = named(e$beta),
         bse_block = named(setNames(se, fixed)), cov_params_block = labelled(e$cov, fixed),
         bse_joint = named(setNames(sqrt(diag(best$joint)), fixed)), cov_params_joint = labelled(best$joint, fixed),
         random_cov = labelled(u$G, s$random), random_cov_se = labelled(variance$G, s$random),
         residual_var = named(u$s2), residual_var_se = named(variance$s2)),
    if (length(residuals)) {
      R <- matrix(u$rc, 2, 2); diag(R) <- u$s2[residuals]; S <- matrix(variance$rc, 2, 2); diag(S) <- variance$s2[residuals]
      list(residual_cov = labelled(R, residuals), residual_cov_se = labelled(S, residuals))
    },
    list(smallest_correlation_eigenvalue = min(eigen(cov2cor(u$G))$values),
         checks = c(lapply(fits, disagreement, e, u, se), if (!is.null(block)) list(block_cov_against_nlme = block),
                    list(joint_cov_against_glmmTMB = joint, glmmTMB_gradient = fits$glmmTMB$gradient, scaled_gradient = best$scaled_gradient,
                         newton_decrement = best$decrement, last_newton_step = best$last_step, maximum = best$definite))))
}

m1_x <- equation("m1", c("1", "x"), c("1", "x")); m2_x <- equation("m2", c("1", "x"), c("1", "x"))
observed <- list(equation("m1_miss", c("1", "x"), c("1", "x")), equation("y_miss", c("1", "m1_miss", "x"), c("1", "m1_miss")))
parallel_y <- equation("y", c("1", "m1", "m2", "x"), "1")
models <- list(
  covariates = list(equations = list(
    equation("m1", c("1", "x", "age", "site[B]", "site[C]"), c("1", "x")), equation("y", c("1", "m1", "x", "age"), c("1", "m1")))),
  covariate_random = list(equations = list(equation("y", c("1", "x", "age"), c("1", "x", "age"))), covariance = "diagonal"),
  covariate_random_age10 = list(equations = list(equation("y", c("1", "x", "age10"), c("1", "x", "age10"))), covariance = "diagonal"),
  moderated_level2 = list(equations = list(
    equation("m1", c("1", "x", "w", "x:w"), c("1", "x")), equation("y", c("1", "m1", "x", "w", "m1:w"), c("1", "m1")))),
  moderated_level1 = list(equations = list(
    equation("mv", c("1", "x", "v", "x:v"), c("1", "x")), equation("yv", c("1", "mv", "x", "v"), c("1", "mv")))),
  moderated_level1_random = list(equations = list(equation("mv", c("1", "x", "v", "x:v"), c("1", "x", "x:v")))),
  within_between = list(equations = list(
    equation("m1", c("1", "within(x)", "between(x)"), c("1", "within(x)")),
    equation("y", c("1", "within(m1)", "between(m1)", "within(x)", "between(x)"), c("1", "within(m1)")))),
  within_between_missing = list(equations = list(
    equation("m1_miss", c("1", "within(x)", "between(x)"), c("1", "within(x)")),
    equation("y_miss", c("1", "within(m1_miss)", "between(m1_miss)", "within(x)", "between(x)"), c("1", "within(m1_miss)")))),
  design_211 = list(equations = list(equation("mt", c("1", "tx"), "1"), equation("yt", c("1", "mt", "tx"), c("1", "mt")))),
  design_221 = list(equations = list(equation("mc", c("1", "xc"), level = 2), equation("yc", c("1", "mc", "xc"), "1"))),
  parallel = list(equations = list(m1_x, m2_x, parallel_y), residuals = c("m1", "m2")),
  parallel_missing = list(equations = list(
    observed[[1]], m2_x, equation("y", c("1", "m1_miss", "m2", "x"), "1")), residuals = c("m1_miss", "m2")),
  serial = list(equations = list(
    m1_x, equation("m2", c("1", "m1", "x"), c("1", "m1")), equation("y", c("1", "m1", "m2", "x"), c("1", "m2")))),
  listwise = list(equations = observed, rows = "listwise", complete = c("id", "x", "m1_miss", "y_miss")),
  available = list(equations = observed, rows = "available"))

answer <- function(m) {
  covariance <- if (is.null(m$covariance)) "unstructured" else m$covariance
  d <- if (is.null(m$complete)) data else data[complete.cases(data[m$complete]), ]
  described <- c(list(equations = m$equations, covariance = covariance), if (!is.null(m$residuals)) list(residuals = I(list(m$residuals))),
                 if (!is.null(m$rows)) list(rows = m$rows))
  fits <- lapply(c(REML = TRUE, ML = FALSE), function(reml) reference(d, m$equations, covariance == "diagonal", m$residuals, reml))
  c(list(model = described), fits)
}

# Is the slope's variance zero? REML; the mixture's reference is chi-squared on 1 and 2 degrees of freedom, half each.
comparison <- function() {
  pair <- list(`1` = list(equation("y", c("1", "x"), "1")), `1,x` = list(equation("y", c("1", "x"), c("1", "x"))))
  fits <- lapply(pair, function(e) c(list(model = list(equations = e, covariance = "unstructured")), list(REML = reference(data, e, FALSE, NULL, TRUE))))
  small <- fits[[1]]$REML; large <- fits[[2]]$REML
  statistic <- 2 * (large$loglik - small$loglik)
  control <- lmeControl(tolerance = 1e-12, msTol = 1e-13)
  table <- anova(lme(y ~ x, data, ~ 1 | id, control = control), lme(y ~ x, data, ~ x | id, control = control))
  p <- pchisq(statistic, 1:2, lower.tail = FALSE)
  list(method = "REML", loglik = list(`1` = small$loglik, `1,x` = large$loglik), statistic = statistic, df = 2, p_naive = p[2], p_mixture = mean(p),
       nlme = list(statistic = table$L.Ratio[2], p_naive = table$`p-value`[2]), fits = fits)
}

path <- file.path(folder, "extended.json")
keys <- c(names(models), "compare")
answers <- if (length(wanted) && file.exists(path)) fromJSON(path, simplifyVector = FALSE) else list()
answers$versions <- lapply(c(R = "base", nlme = "nlme", glmmTMB = "glmmTMB", lme4 = "lme4"), function(p) as.character(packageVersion(p)))
for (name in if (length(wanted)) wanted else keys) {
  began <- proc.time()[3]
  a <- if (name == "compare") comparison() else answer(models[[name]])
  fits <- if (name == "compare") lapply(a$fits, `[[`, "REML") else a[c("REML", "ML")]
  for (k in names(fits)) cat(sprintf("%s %s %.9f eigenvalue %.3f\n    %s\n", name, k, fits[[k]]$loglik, fits[[k]]$smallest_correlation_eigenvalue,
    paste(names(unlist(fits[[k]]$checks)), sprintf("%.1e", unlist(fits[[k]]$checks)), collapse = "  ")))
  if (name == "compare") cat("   ", a$statistic, a$nlme$statistic, a$p_naive, a$p_mixture, a$nlme$p_naive, "\n")
  cat(sprintf("    %.0f s\n", proc.time()[3] - began))
  answers[[name]] <- a
  write_json(answers[c("versions", intersect(keys, names(answers)))], path, digits = NA, auto_unbox = TRUE, pretty = TRUE, matrix = "rowmajor", null = "null")
}
