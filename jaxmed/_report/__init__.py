"""The report of a fit or a study, one HTML file."""
