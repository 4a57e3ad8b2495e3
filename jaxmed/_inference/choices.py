"""Which covariance of the parameters standard errors come from, as callers choose it."""

from __future__ import annotations

from typing import Literal

Covariance = Literal["joint", "block", "robust"]
EffectCovariance = Literal["joint", "bauer", "robust"]
WholeCovariance = Literal["joint", "robust"]
ModelCovariance = Literal["joint", "block"]
IntervalCovariance = Literal["joint", "block", "robust", "bauer", "independent"]

OF_COEFFICIENTS: dict[EffectCovariance, Covariance] = {"joint": "joint", "bauer": "block", "robust": "robust"}
OF_VARIANCES: dict[EffectCovariance, WholeCovariance] = {"joint": "joint", "bauer": "joint", "robust": "robust"}
