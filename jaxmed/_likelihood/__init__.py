"""The marginal likelihood of a model as a function of arrays: value, derivatives, optimiser, shards."""
