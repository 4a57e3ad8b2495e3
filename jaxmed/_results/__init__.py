"""Fitting a model, and everything that one fit can be asked."""
