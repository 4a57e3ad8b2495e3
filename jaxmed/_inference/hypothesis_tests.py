"""Tests of hypotheses."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import chdtrc


@dataclass(frozen=True)
class TestResult:
    """A chi-squared test.

    Attributes
    ----------
    statistic : float
    df : int
    p : float
        Upper tail of the chi-squared distribution.
    hypothesis : str
        What is tested, in words.
    """

    statistic: float
    df: int
    p: float
    hypothesis: str

    __test__ = False  # not a test class for pytest


def chi_squared(statistic: float, df: int, hypothesis: str) -> TestResult:
    """Test of a chi-squared statistic."""
    p = float(chdtrc(df, max(statistic, 0.0))) if df > 0 else float("nan")
    return TestResult(float(statistic), int(df), p, hypothesis)
