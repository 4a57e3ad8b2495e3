# Bootstrap intervals of the R package boot from the replicates in boot.csv: writes boot.json.
#
#     Rscript make_boot.R
#
# boot.csv holds a column for each statistic and one for its standard error; boot.input.json the estimates, their
# standard errors and the influence values (make_boot.py writes both).
library(boot)
library(jsonlite)

replicates <- read.csv("boot.csv", check.names = FALSE, colClasses = "numeric")
input <- fromJSON("boot.input.json")
answers <- list()
for (name in names(input)) {
  own <- input[[name]]
  t <- cbind(replicates[[name]], replicates[[paste0(name, "_se")]]^2) # the second column: variances
  made <- structure(
    list(t0 = c(own$estimate, own$se^2), t = t, R = nrow(t), sim = "ordinary", stype = "i", strata = rep(1, length(own$influence)),
         weights = rep(1 / length(own$influence), length(own$influence)), data = seq_along(own$influence),
         statistic = function(data, i) own$estimate, call = quote(boot(data, statistic, R))),
    class = "boot"
  )
  for (level in c(0.9, 0.95)) {
    both <- function(type, part, ...) {
      found <- boot.ci(made, conf = level, type = type, index = 1:2, ...)[[part]]
      as.numeric(found[1, 4:5])
    }
    answers[[name]][[format(level)]] <- list(
      percentile = both("perc", "percent"),
      basic = both("basic", "basic"),
      bca = both("bca", "bca", L = own$influence),
      # influence values that cancel in the third power: no acceleration
      bc = both("bca", "bca", L = rep(c(-1, 1), 50)),
      studentized = both("stud", "student")
    )
  }
}
answers$versions <- list(R = R.version.string, boot = as.character(packageVersion("boot")))
write_json(answers, "boot.json", digits = I(17), auto_unbox = TRUE, pretty = TRUE)
