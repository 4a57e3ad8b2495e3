"""What follows from the likelihood at its maximum: covariances, effects, intervals, predictions."""

from __future__ import annotations

from jaxmed._inference.choices import (
    OF_COEFFICIENTS,
    OF_VARIANCES,
    Covariance,
    EffectCovariance,
    IntervalCovariance,
    ModelCovariance,
    WholeCovariance,
)
from jaxmed._inference.covariance import Covariances, covariances, without_inverse
from jaxmed._inference.effect_tables import bauer_critical, effect_table, heterogeneity_table, omnibus_table
from jaxmed._inference.estimability import Estimable, Working, delta
from jaxmed._inference.estimates import Estimates, problem_of
from jaxmed._inference.fit_remarks import barely_informed, negative_dependence, notes_on
from jaxmed._inference.fit_views import Optimizer, Sample
from jaxmed._inference.hypothesis_tests import TestResult, chi_squared
from jaxmed._inference.limits import (
    bias_corrected,
    check_level,
    critical_value,
    draws_table,
    limits_on_scale,
    normal_table,
    quantile_limits,
    studentized,
)
from jaxmed._inference.null_likelihoods import null_models
from jaxmed._inference.random_effects import (
    moderator_by_cluster,
    moderators_of,
    predict_clusters,
    predict_working,
    product_moments,
)
from jaxmed._inference.record import fields_from_dict, plain_data
from jaxmed._inference.satterthwaite import satterthwaite_table
from jaxmed._inference.scores import Scores, cluster_scores
from jaxmed._inference.singularity import are_singular, is_singular, mean_squares, shares
from jaxmed._inference.targets import Quantities, Targets, estimands_of, make_targets, positions, quantities

__all__ = [
    "OF_COEFFICIENTS",
    "OF_VARIANCES",
    "Covariance",
    "Covariances",
    "EffectCovariance",
    "Estimable",
    "Estimates",
    "IntervalCovariance",
    "ModelCovariance",
    "Optimizer",
    "Quantities",
    "Sample",
    "Scores",
    "Targets",
    "TestResult",
    "WholeCovariance",
    "Working",
    "are_singular",
    "barely_informed",
    "bauer_critical",
    "bias_corrected",
    "check_level",
    "chi_squared",
    "cluster_scores",
    "covariances",
    "critical_value",
    "delta",
    "draws_table",
    "effect_table",
    "estimands_of",
    "fields_from_dict",
    "heterogeneity_table",
    "is_singular",
    "limits_on_scale",
    "make_targets",
    "mean_squares",
    "moderator_by_cluster",
    "moderators_of",
    "negative_dependence",
    "normal_table",
    "notes_on",
    "null_models",
    "omnibus_table",
    "plain_data",
    "positions",
    "predict_clusters",
    "predict_working",
    "problem_of",
    "product_moments",
    "quantile_limits",
    "quantities",
    "satterthwaite_table",
    "shares",
    "studentized",
    "without_inverse",
]
