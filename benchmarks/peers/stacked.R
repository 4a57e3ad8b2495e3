# What the R adapters share: their arguments, the stacked data, the clock and the line they print.
#
# One response z holds the rows of m (sm = 1) and of y (sy = 1), with a coefficient column for each predictor; fid numbers
# the data rows. Reading and stacking are timed apart from the fit.

argument <- commandArgs(trailingOnly = TRUE)
variant <- argument[2]
repeats <- as.integer(argument[3])
allowed <- as.numeric(argument[4])

read_stacked <- function(path) {
  d <- read.csv(path, colClasses = c("integer", "numeric", "numeric", "numeric"))
  one <- rep(1, nrow(d)); zero <- rep(0, nrow(d)); fid <- seq_len(nrow(d))
  s <- rbind(
    data.frame(id = d$id, fid = fid, outcome = "m", z = d$m, sm = one, smx = d$x, sy = zero, sym = zero, syx = zero),
    data.frame(id = d$id, fid = fid, outcome = "y", z = d$y, sm = zero, smx = zero, sy = one, sym = d$m, syx = d$x))
  s <- s[order(s$id, s$outcome), ]
  for (name in c("id", "fid", "outcome")) s[[name]] <- factor(s[[name]])
  s
}

five <- "0 + sm + smx + sy + sym + syx"

# Fits at least once, then as often as the time allows; `describe` turns the last fit into loglik, converged, message.
run <- function(package, fit, describe) {
  seconds_read <- system.time(s <- read_stacked(argument[1]))[["elapsed"]]
  said <- character(0); seconds <- numeric(0)
  repeat {
    seconds <- c(seconds, system.time(value <- withCallingHandlers(fit(s), warning = function(w) {
      said <<- c(said, conditionMessage(w)); invokeRestart("muffleWarning")
    }))[["elapsed"]])
    if (length(seconds) >= repeats || sum(seconds) + seconds[length(seconds)] >= allowed) break
  }
  found <- describe(value)
  cat(jsonlite::toJSON(list(
    version = as.character(packageVersion(package)), clusters = nlevels(s$id), loglik = found$loglik,
    converged = found$converged, message = paste(unique(c(found$message, said)), collapse = "; "),
    seconds_read = seconds_read, seconds_fit = I(seconds)), auto_unbox = TRUE, digits = NA), "\n")
}
