"""From data to sums of products: readers, moments, the design of a model and whether data identify it."""
