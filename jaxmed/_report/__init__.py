"""The report of a fit or a study, one HTML file."""

from __future__ import annotations

from jaxmed._report.document import report

__all__ = ["report"]
