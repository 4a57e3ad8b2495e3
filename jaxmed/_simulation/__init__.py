"""Populations, the bootstrap and power studies."""
