# Fit the data sets of make_data.py with nlme, glmmTMB and lme4, and write the answers as JSON.
#
#     Rscript make_reference.R [folder]
#
# Stacked model: one response z holds the m rows (sm = 1) and the observed y rows (sy = 1), with a residual variance for
# each outcome. A row whose y is missing keeps its m row.
#
# Scale. The optimisers work on (x - cx)/sx and, as a regressor, (m - cm)/sdm; responses are never rescaled. With T the
# linear map from the coefficients of that model to the user's, params = T b, random_cov = T G T', predictions = T u, and
# the restricted log likelihood gains log|det T| because log|X'V^-1 X| loses 2 log|det T|. Centring changes a model
# whose random intercept and slope are uncorrelated, so the diagonal model is only scaled (cx = cm = 0).
# The constants (50 and 20, over 10) suit unbalanced.csv; data with other means need their own.
#
# Every reported optimum is evaluated once more by `direct`, a few lines of dense linear algebra for each cluster
# that share nothing with the packages.

suppressPackageStartupMessages({
  library(nlme); library(lme4); library(glmmTMB); library(jsonlite); library(numDeriv)
})

argument <- commandArgs(trailingOnly = TRUE)
folder <- if (length(argument)) argument[1] else dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
five <- c("m~1", "m~x", "y~1", "y~m", "y~x")
column <- c("m~1" = "sm", "m~x" = "smx", "y~1" = "sy", "y~m" = "sym", "y~x" = "syx")
label_of <- setNames(names(column), column)

# ---- data -----------------------------------------------------------------------------------------------------------

read_rows <- function(name) {
  d <- read.csv(file.path(folder, name), colClasses = c(id = "character"))
  d$id <- factor(d$id)
  d
}

stack_rows <- function(d, cx = 0, sx = 1, cm = 0, sdm = 1) {
  x <- (d$x - cx) / sx
  m <- (d$m - cm) / sdm
  one <- rep(1, nrow(d)); zero <- rep(0, nrow(d))
  fid <- factor(seq_len(nrow(d)))
  s <- rbind(
    data.frame(id = d$id, fid = fid, outcome = "m", z = d$m, sm = one, smx = x, sy = zero, sym = zero, syx = zero),
    data.frame(id = d$id, fid = fid, outcome = "y", z = d$y, sm = zero, smx = zero, sy = one, sym = m, syx = x))
  s <- s[!is.na(s$z), ]
  s$outcome <- factor(s$outcome)
  s[order(s$id, s$outcome), ]
}

user_map <- function(cx, sx, cm, sdm) {
  T <- diag(c(1, 1 / sx, 1, 1 / sdm, 1 / sx))
  dimnames(T) <- list(five, five)
  T["m~1", "m~x"] <- -cx / sx
  T["y~1", "y~m"] <- -cm / sdm
  T["y~1", "y~x"] <- -cx / sx
  T
}

# ---- the likelihood, written out ------------------------------------------------------------------------------------

clusters_of <- function(s, fixed, random) {
  lapply(split(s, s$id), function(k) list(
    X = as.matrix(k[, fixed, drop = FALSE]), Z = as.matrix(k[, random, drop = FALSE]), y = k$z, outcome = as.character(k$outcome)))
}

direct <- function(clusters, G, s2, reml) {
  p <- ncol(clusters[[1]]$X)
  S <- matrix(0, p + 1, p + 1); logdet <- 0; N <- 0
  for (k in clusters) {
    R <- chol(k$Z %*% G %*% t(k$Z) + diag(s2[k$outcome], length(k$y)))
    W <- backsolve(R, cbind(k$X, k$y), transpose = TRUE)
    S <- S + crossprod(W); logdet <- logdet + 2 * sum(log(diag(R))); N <- N + length(k$y)
  }
  XVX <- S[1:p, 1:p]; C <- solve(XVX); beta <- drop(C %*% S[1:p, p + 1])
  rss <- S[p + 1, p + 1] - sum(beta * S[1:p, p + 1])
  loglik <- -0.5 * (N * log(2 * pi) + logdet + rss)
  if (reml) loglik <- loglik + 0.5 * (p * log(2 * pi) - as.numeric(determinant(XVX)$modulus))
  list(loglik = loglik, beta = beta, cov = C)
}

direct_predictions <- function(clusters, G, s2, beta) {
  t(sapply(clusters, function(k) {
    V <- k$Z %*% G %*% t(k$Z) + diag(s2[k$outcome], length(k$y))
    drop(G %*% t(k$Z) %*% solve(V, k$y - k$X %*% beta))
  }))
}

# Standard errors and the joint covariance of the fixed effects from numerical second derivatives of `direct`: C + D V D'.
# Differences are taken in the Cholesky factor of G, where every step stays inside the parameter space, and carried to G
# by the delta method, which is exact at an optimum because the gradient is zero. Parameters are shifted to 1, so that
# numDeriv takes steps of one size. On the fitting scale.
information <- function(clusters, G, s2, reml, free) {
  position <- which(lower.tri(G, TRUE) & free, arr.ind = TRUE)
  q <- nrow(position)
  L <- t(chol(G))
  scale <- c(sqrt(diag(G))[position[, 1]], s2)
  origin <- c(L[position], s2)
  build <- function(t) {
    v <- origin + scale * (t - 1); K <- L * 0; K[position] <- v[1:q]
    list(G = K %*% t(K), s2 = setNames(v[-(1:q)], names(s2)))
  }
  start <- rep(1, q + length(s2)); step <- list(d = 0.05)
  f <- function(t) { b <- build(t); direct(clusters, b$G, b$s2, reml)$loglik }
  g <- grad(f, start, method.args = step)
  V <- solve(-hessian(f, start, method.args = step))
  D <- jacobian(function(t) { b <- build(t); direct(clusters, b$G, b$s2, reml)$beta }, start, method.args = step)
  J <- jacobian(function(t) { b <- build(t); c(b$G[position], b$s2) }, start, method.args = step)
  list(position = position, V = J %*% V %*% t(J), joint = direct(clusters, G, s2, reml)$cov + D %*% V %*% t(D),
       scaled_gradient = max(abs(g)), decrement = drop(t(g) %*% V %*% g) / 2)
}

# ---- the programs ---------------------------------------------------------------------------------------------------

fixed_formula <- z ~ 0 + sm + smx + sy + sym + syx
term <- function(labels) paste("0 +", paste(column[labels], collapse = " + "))
block_mask <- function(blocks, random) Reduce(`+`, lapply(blocks, function(b) outer(random %in% b, random %in% b))) > 0

fit_nlme <- function(s, blocks, diagonal, reml) {
  random <- unlist(blocks)
  piece <- function(value) function(b) {
    v <- if (is.null(value)) numeric(0) else value[b, b, drop = FALSE]
    if (!is.null(value)) dimnames(v) <- list(column[b], column[b])
    (if (diagonal) pdDiag else pdSymm)(v, form = as.formula(paste("~", term(b))))
  }
  best <- NULL; value <- NULL; ratio <- NULL
  for (step in 1:6) {
    parts <- lapply(blocks, piece(value))
    structure <- if (length(parts) == 1) parts[[1]] else pdBlocked(parts)
    weights <- if (is.null(ratio)) varIdent(form = ~ 1 | outcome) else varIdent(ratio, form = ~ 1 | outcome)
    control <- lmeControl(opt = if (step %% 2) "nlminb" else "optim", maxIter = 500, msMaxIter = 5000, msMaxEval = 50000,
                          tolerance = 1e-13, msTol = 1e-14, niterEM = if (is.null(value)) 50 else 0, returnObject = TRUE)
    fit <- tryCatch(suppressWarnings(lme(fixed_formula, random = list(id = structure), weights = weights, data = s,
                                         method = if (reml) "REML" else "ML", control = control)), error = function(e) NULL)
    if (is.null(fit)) next
    if (is.null(best) || fit$logLik > best$logLik) best <- fit
    value <- as.matrix(best$modelStruct$reStruct[[1]])
    dimnames(value) <- lapply(dimnames(value), function(n) label_of[n])
    ratio <- coef(best$modelStruct$varStruct, unconstrained = FALSE)
  }
  G <- value[random, random] * best$sigma^2
  sd <- best$sigma * coef(best$modelStruct$varStruct, unconstrained = FALSE, allCoef = TRUE)
  u <- as.matrix(ranef(best)); colnames(u) <- label_of[colnames(u)]
  list(loglik = as.numeric(best$logLik), params = setNames(fixef(best), five), cov = unname(best$varFix), G = G,
       s2 = c(m = sd[["m"]]^2, y = sd[["y"]]^2), ranef = u)
}

# glmmTMB's own optimum is sharpened by Newton steps on its objective (automatic gradient, differenced once).
fit_glmmTMB <- function(s, blocks, diagonal, reml, newton = TRUE, start = NULL) {
  random <- unlist(blocks)
  kind <- if (diagonal) "diag" else "us"
  formula <- as.formula(paste("z ~ 0 + sm + smx + sy + sym + syx +",
                              paste0(kind, "(", sapply(blocks, term), " | id)", collapse = " + ")))
  control <- glmmTMBControl(optCtrl = list(iter.max = 5000, eval.max = 20000, rel.tol = 1e-15, x.tol = 1e-12))
  fit <- suppressWarnings(glmmTMB(formula, dispformula = ~ 0 + outcome, data = s, REML = reml, control = control, start = start))
  obj <- fit$obj; par <- fit$fit$par; H <- NULL
  if (newton) for (step in 1:12) {
    g <- drop(obj$gr(par)); H <- jacobian(function(t) drop(obj$gr(t)), par); H <- (H + t(H)) / 2
    move <- drop(solve(H, g)); par <- par - move
    if (max(abs(move)) < 1e-11) break
  }
  value <- as.numeric(obj$fn(par))
  full <- obj$env$last.par; list_of <- obj$env$parList(par, full); report <- obj$report(full)
  G <- matrix(0, length(random), length(random), dimnames = list(random, random))
  for (k in seq_along(blocks)) {
    sd <- report$sd[[k]]; R <- if (diagonal) diag(length(sd)) else report$corr[[k]]
    G[blocks[[k]], blocks[[k]]] <- R * outer(sd, sd)
  }
  disp <- setNames(list_of$betad, c("m", "y"))
  beta <- setNames(list_of$beta, five)
  # log variance or log standard deviation, by glmmTMB version: whichever gives back its own log likelihood
  clusters <- clusters_of(s, column[five], column[random])
  try_s2 <- list(exp(disp), exp(2 * disp))
  error <- sapply(try_s2, function(v) abs(direct(clusters, G, v, reml)$loglik + value))
  s2 <- try_s2[[which.min(error)]]
  joint <- NULL
  if (newton) {
    sdr <- TMB::sdreport(obj, par.fixed = par, hessian.fixed = H, getJointPrecision = reml)
    V <- if (reml) solve(as.matrix(sdr$jointPrecision)) else sdr$cov.fixed
    take <- (if (reml) colnames(sdr$jointPrecision) else names(par)) == "beta"
    joint <- unname(V[take, take])
  }
  # glmmTMB keeps predictions term by term, cluster within term
  n <- nlevels(s$id); at <- 0; u <- NULL
  for (b in blocks) {
    u <- cbind(u, matrix(list_of$b[at + seq_len(n * length(b))], n, byrow = TRUE, dimnames = list(levels(s$id), b)))
    at <- at + n * length(b)
  }
  list(loglik = -value, params = beta, G = G, s2 = s2, ranef = u, joint = joint, gradient = max(abs(obj$gr(par))),
       start = list(theta = list_of$theta, betad = list_of$betad))
}

labelled <- function(M, labels) list(labels = labels, values = unname(as.matrix(M)))
named <- function(v) as.list(v)

disagreement <- function(a, b, se) {
  random <- rownames(a$G); scale <- sqrt(outer(diag(a$G), diag(a$G)))
  list(loglik = abs(a$loglik - b$loglik),
       params_in_se = max(abs(a$params - b$params) / se),
       random_cov_relative = max(abs(a$G - b$G[random, random]) / scale),
       residual_var_relative = max(abs(a$s2 / b$s2 - 1)))
}

stacked_reference <- function(d, blocks, diagonal, reml) {
  random <- unlist(blocks)
  centre <- !diagonal
  cx <- if (centre) 50 else 0; cm <- if (centre) 20 else 0; sx <- 10; sdm <- 10
  s <- stack_rows(d, cx, sx, cm, sdm)
  T <- user_map(cx, sx, cm, sdm); Tr <- T[random, random]
  constant <- if (reml) as.numeric(determinant(T)$modulus) else 0

  fits <- list(nlme = fit_nlme(s, blocks, diagonal, reml), glmmTMB = fit_glmmTMB(s, blocks, diagonal, reml))
  # the higher log likelihood; below 1e-9 the difference is rounding, and glmmTMB's optimum is the sharper
  program <- if (fits$nlme$loglik > fits$glmmTMB$loglik + 1e-9) "nlme" else "glmmTMB"
  best <- fits[[program]]
  clusters <- clusters_of(s, column[five], column[random])
  check <- direct(clusters, best$G, best$s2, reml)
  info <- information(clusters, best$G, best$s2, reml,
                      if (diagonal) diag(length(random)) > 0 else block_mask(blocks, random))

  # the same optimum evaluated on the user's scale
  on_scale <- lapply(fits, function(f) {
    f$loglik <- f$loglik + constant
    f$params <- drop(T %*% f$params); f$G <- Tr %*% f$G[random, random] %*% t(Tr)
    f$ranef <- f$ranef[, random] %*% t(Tr)
    f
  })
  value <- on_scale[[program]]
  raw <- clusters_of(stack_rows(d), column[five], column[random])
  again <- direct(raw, value$G, value$s2, reml)
  C <- T %*% check$cov %*% t(T); joint <- T %*% info$joint %*% t(T); se <- sqrt(diag(C))

  # standard errors of T G T': each entry is linear in the free entries
  entries <- which(lower.tri(value$G, TRUE), arr.ind = TRUE)
  A <- sapply(seq_len(nrow(info$position)), function(k) {
    E <- matrix(0, length(random), length(random)); i <- info$position[k, 1]; j <- info$position[k, 2]
    E[i, j] <- E[j, i] <- 1
    (Tr %*% E %*% t(Tr))[entries]
  })
  q <- nrow(info$position)
  se_G <- value$G * 0; se_G[entries] <- sqrt(pmax(0, diag(A %*% info$V[1:q, 1:q] %*% t(A)))); se_G[entries[, 2:1]] <- se_G[entries]

  answer <- list(
    program = program, loglik = value$loglik,
    loglik_by_program = lapply(on_scale, `[[`, "loglik"), loglik_direct = again$loglik,
    nobs = nrow(s), n_clusters = nlevels(s$id), reml = reml,
    params = named(value$params),
    bse_block = named(setNames(se, five)), cov_params_block = labelled(C, five),
    bse_joint = named(setNames(sqrt(diag(joint)), five)), cov_params_joint = labelled(joint, five),
    random_cov = labelled(value$G, random), random_cov_se = labelled(se_G, random),
    residual_var = named(value$s2),
    residual_var_se = named(setNames(sqrt(diag(info$V))[q + 1:2], names(value$s2))),
    smallest_correlation_eigenvalue = min(eigen(cov2cor(value$G))$values),
    checks = list(
      programs = disagreement(value, on_scale[[setdiff(names(fits), program)]], se),
      params_against_gls_in_se = max(abs(again$beta - value$params) / se),
      block_cov_against_nlme = max(abs(T %*% fits$nlme$cov %*% t(T) - C) / outer(se, se)),
      joint_cov_against_glmmTMB = max(abs(T %*% fits$glmmTMB$joint %*% t(T) - joint) / outer(se, se)),
      glmmTMB_gradient = fits$glmmTMB$gradient,
      direct_scaled_gradient = info$scaled_gradient, direct_newton_decrement = info$decrement))
  predictions <- lapply(on_scale, `[[`, "ranef")
  list(answer = answer, program = program, ranef = predictions,
       ranef_direct = direct_predictions(raw, value$G, value$s2, value$params))
}

# ---- lme4 -----------------------------------------------------------------------------------------------------------

# Several optimisers from several starts; interior optima are then sharpened by Newton steps on lme4's deviance.
lme4_optimum <- function(formula, data, reml, starts, newton) {
  parsed <- lFormula(formula, data, REML = reml, control = lmerControl(check.nobs.vs.nlev = "ignore", check.nobs.vs.nRE = "ignore"))
  deviance_of <- do.call(mkLmerDevfun, parsed)
  lower <- environment(deviance_of)$lower; best <- list(fval = Inf); found <- numeric(0)
  for (start in starts(length(lower), lower)) {
    par <- start
    for (round in 1:3) {
      par <- pmax(lower, minqa::bobyqa(par, deviance_of, lower, control = list(rhobeg = 0.2 / 10^(round - 1), rhoend = 1e-10, maxfun = 50000))$par)
      polished <- nlminb(par, deviance_of, lower = lower, control = list(rel.tol = 1e-15, x.tol = 1e-13, iter.max = 2000, eval.max = 20000))
      par <- polished$par
    }
    found <- c(found, polished$objective)
    if (polished$objective < best$fval) best <- list(par = par, fval = polished$objective)
  }
  if (newton) for (step in 1:6) {
    move <- solve(hessian(deviance_of, best$par), grad(deviance_of, best$par))
    best$par <- best$par - drop(move)
    if (max(abs(move)) < 1e-11) break
  }
  best$fval <- deviance_of(best$par)
  fit <- mkMerMod(environment(deviance_of), c(best, list(conv = 0, message = "")), parsed$reTrms, fr = parsed$fr)
  list(fit = fit, found = -0.5 * found)
}

single_equation <- function(d, reml) {
  cx <- 50; sx <- 10
  d <- d[!is.na(d$y), ]; d$xs <- (d$x - cx) / sx
  T <- matrix(c(1, 0, -cx / sx, 1 / sx), 2); labels <- c("y~1", "y~x")
  constant <- if (reml) log(abs(det(T))) else 0
  fit <- lme4_optimum(y ~ xs + (1 + xs | id), d, reml, function(n, lower) list(as.numeric(lower == 0)), TRUE)$fit
  other <- lme(y ~ xs, random = ~ xs | id, data = d, method = if (reml) "REML" else "ML",
               control = lmeControl(maxIter = 500, msMaxIter = 5000, tolerance = 1e-13, msTol = 1e-14))
  G <- T %*% matrix(VarCorr(fit)$id, 2, 2) %*% t(T); C <- T %*% as.matrix(vcov(fit)) %*% t(T)
  u <- ranef(fit, condVar = TRUE)$id
  P <- attr(u, "postVar")
  loglik <- as.numeric(logLik(fit)) + constant
  raw <- lapply(split(d, d$id, drop = TRUE), function(k)
    list(X = cbind(1, k$x), Z = cbind(1, k$x), y = k$y, outcome = rep("y", nrow(k))))
  again <- direct(raw, G, c(y = sigma(fit)^2), reml)
  predictions <- as.matrix(u) %*% t(T)
  list(program = "lme4", loglik = loglik, loglik_by_program = list(lme4 = loglik, nlme = as.numeric(other$logLik) + constant), loglik_direct = again$loglik,
       nobs = nrow(d), n_clusters = nrow(u), reml = reml,
       params = named(setNames(drop(T %*% fixef(fit)), labels)), bse_block = named(setNames(sqrt(diag(C)), labels)),
       cov_params_block = labelled(C, labels), random_cov = labelled(G, labels), residual_var = list(y = sigma(fit)^2),
       checks = list(programs = disagreement(
         list(loglik = loglik, params = drop(T %*% fixef(fit)), G = `dimnames<-`(G, list(labels, labels)), s2 = sigma(fit)^2),
         list(loglik = as.numeric(other$logLik) + constant, params = drop(T %*% fixef(other)),
              G = `dimnames<-`(T %*% matrix(getVarCov(other), 2, 2) %*% t(T), list(labels, labels)), s2 = other$sigma^2), sqrt(diag(C))),
         predictions_against_direct = max(abs(predictions - direct_predictions(raw, G, c(y = sigma(fit)^2), again$beta)))),
       ranef = list(id = rownames(u), labels = labels, values = unname(predictions),
                    conditional_cov = lapply(seq_len(nrow(u)), function(k) unname(T %*% P[, , k] %*% t(T)))))
}

singular_reference <- function(d, reml) {
  random <- five[1:4]; s <- stack_rows(d)
  set.seed(11)
  starts <- function(n, lower) c(list(as.numeric(lower == 0)),
                                 lapply(1:7, function(k) ifelse(lower == 0, runif(n, 0.1, 1.5), rnorm(n, sd = 0.4))))
  a <- lme4_optimum(z ~ 0 + sm + smx + sy + sym + syx + (0 + sm + smx + sy + sym | id) + (0 + sm | fid), s, reml, starts, FALSE)
  fit <- a$fit; V <- VarCorr(fit)
  G <- matrix(V$id, 4, 4, dimnames = list(random, random))
  s2 <- c(m = sigma(fit)^2 + as.numeric(V$fid), y = sigma(fit)^2)
  clusters <- clusters_of(s, column[five], column[random])
  again <- direct(clusters, G, s2, reml)

  best <- NULL; found <- numeric(0)
  for (k in 0:5) {
    start <- if (k == 0) NULL else list(theta = c(log(runif(4, 0.05, 1)), rnorm(6, sd = 0.5)))
    b <- tryCatch(fit_glmmTMB(s, list(random), FALSE, reml, newton = FALSE, start = start), error = function(e) NULL)
    if (is.null(b) || !is.finite(b$loglik)) next
    found <- c(found, b$loglik)
    if (is.null(best) || b$loglik > best$loglik) best <- b
  }
  lme4_loglik <- as.numeric(logLik(fit)); se <- sqrt(diag(again$cov))
  value <- list(loglik = lme4_loglik, params = setNames(fixef(fit), five), G = G, s2 = s2)
  program <- if (best$loglik > lme4_loglik) "glmmTMB" else "lme4"
  other <- disagreement(value, best, se)
  if (program == "glmmTMB") { value <- best; again <- direct(clusters, best$G, best$s2, reml); se <- sqrt(diag(again$cov)) }
  list(program = program, loglik = value$loglik,
       loglik_by_program = list(lme4 = lme4_loglik, glmmTMB = best$loglik), loglik_direct = again$loglik,
       loglik_by_start = list(lme4 = a$found, glmmTMB = found), lme4_singular = isSingular(fit),
       nobs = nrow(s), n_clusters = nlevels(s$id), reml = reml, params = named(value$params),
       bse_block = named(setNames(se, five)), cov_params_block = labelled(again$cov, five),
       random_cov = labelled(value$G, random), residual_var = named(value$s2),
       smallest_correlation_eigenvalue = min(eigen(cov2cor(value$G))$values),
       checks = list(programs = other, params_against_gls_in_se = max(abs(again$beta - value$params) / se)))
}

# ---- write ----------------------------------------------------------------------------------------------------------

write_answer <- function(value, name)
  write_json(value, file.path(folder, name), digits = NA, auto_unbox = TRUE, pretty = TRUE, matrix = "rowmajor")

both <- function(f) list(REML = f(TRUE), ML = f(FALSE))
versions <- lapply(c(R = "base", nlme = "nlme", glmmTMB = "glmmTMB", lme4 = "lme4"), function(p) as.character(packageVersion(p)))

unbalanced <- read_rows("unbalanced.csv")
models <- list(full = list(list(five), FALSE), ab_int = list(list(five[1:4]), FALSE),
               ab_int_diag = list(list(five[1:4]), TRUE), full_blocks = list(list(five[1:2], five[3:5]), FALSE))
report <- function(name, a) cat(sprintf("%-18s %-4s %-8s %s  %s\n", name, if (a$reml) "REML" else "ML", a$program,
  paste(names(a$loglik_by_program), sprintf("%.9f", unlist(a$loglik_by_program)), collapse = "  "),
  paste(names(unlist(a$checks)), sprintf("%.1e", unlist(a$checks)), collapse = "  ")))

answers <- list(versions = versions)
for (name in names(models)) {
  fits <- both(function(reml) stacked_reference(unbalanced, models[[name]][[1]], models[[name]][[2]], reml))
  answers[[name]] <- lapply(fits, `[[`, "answer")
  for (f in fits) report(name, f$answer)
  if (name == "full") {
    f <- fits$REML; u <- f$ranef[[f$program]]
    other <- f$ranef[[setdiff(names(f$ranef), f$program)]]
    predictions <- list(versions = versions, program = f$program, model = "full, REML", id = rownames(u), labels = five, values = unname(u),
                        checks = list(programs = max(abs(u - other[rownames(u), ])),
                                      direct = max(abs(u - f$ranef_direct[rownames(u), ]))))
    cat("predictions", unlist(predictions$checks), "sd", apply(u, 2, sd), "\n")
    write_answer(predictions, "unbalanced_ranef.json")
  }
}
write_answer(answers, "unbalanced.json")

equation <- both(function(reml) single_equation(unbalanced, reml))
for (a in equation) report("y ~ x", a)
write_answer(c(list(versions = versions), equation), "unbalanced_single_equation.json")

flat <- both(function(reml) singular_reference(read_rows("singular.csv"), reml))
for (a in flat) { report("singular", a); print(a$loglik_by_start); cat(a$lme4_singular, a$smallest_correlation_eigenvalue, "\n") }
write_answer(c(list(versions = versions), flat), "singular.json")
