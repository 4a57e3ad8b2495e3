"""What follows from the likelihood at its maximum: covariances, effects, intervals, predictions."""
