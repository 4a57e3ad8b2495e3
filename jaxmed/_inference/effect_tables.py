"""Tables of effects: at values of moderators, differences between them, and how effects vary between clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from jaxmed._inference import effects
from jaxmed._inference.choices import Covariance, EffectCovariance, WholeCovariance
from jaxmed._inference.estimates import Estimates
from jaxmed._inference.limits import critical_value, limits_on_scale, normal_table
from jaxmed._inference.targets import estimands_of, make_targets, moderator_points, path_weights
from jaxmed._support import FitError, Floats, SpecError, check_choice


def effect_table(
    fit: Estimates, covariance: EffectCovariance, level: float, at: Mapping[str, Any] | None, difference: bool
) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.effects`."""
    critical: float | Floats = critical_value(level)
    check_choice("covariance", covariance, EffectCovariance)
    targets = make_targets(fit, at, difference)
    estimate, slope = effects.linear_combinations_and_jacobian(
        targets.plan, fit.values, targets.weights, targets.combination
    )
    if covariance != "bauer":
        error = fit.errors(slope, covariance)
    else:
        _check_bauer(fit)
        error = effects.bauer(targets.plan, targets.names, slope, fit.block)
        critical = bauer_critical(targets.names, level)
    table = normal_table(targets.names, estimate, error, critical)
    table.index = targets.rows
    return table


def bauer_critical(names: Sequence[str], level: float) -> Floats:
    """Normal quantiles, rounded to 1.96 for products at level .95 as in the worked Stata example."""
    critical = np.full(len(names), critical_value(level))
    return np.where(np.isin(names, ("indirect", "total")), 1.96, critical) if level == 0.95 else critical


def heterogeneity_table(
    fit: Estimates, level: float, at: Mapping[str, Any] | None, covariance: WholeCovariance = "joint"
) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.heterogeneity`."""
    critical = critical_value(level)
    check_choice("covariance", covariance, WholeCovariance)
    estimands = estimands_of(fit)
    rows = [row for row in estimands.rows if row.kind in ("indirect", "total") and row.suffix != "_between"]
    if not rows:
        raise FitError("no effect of this model varies between clusters: x has no variation within clusters")
    shares = [row for row in rows if len(row.terms) == 1 and len(row.terms[0][1]) == 2]
    points = moderator_points(fit, at)
    plan = effects.make_index(estimands, fit.labels, rows)
    value, jacobian = effects.value_and_jacobian(
        effects.heterogeneity, plan, fit.values, path_weights(fit, estimands, points)
    )
    error = fit.errors(jacobian, covariance)
    n = len(rows)
    variance = np.maximum(value[:, :n], 0.0)
    sd = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        sd_error = np.where(sd > 0, error[:, :n] / (2 * sd), np.where(error[:, :n] == 0, 0.0, np.nan))
    share, share_error = np.clip(value[:, n:], 0.0, 1.0), error[:, n:]
    sd_limits = limits_on_scale(sd, sd_error, critical, "log")
    share_limits = limits_on_scale(share, share_error, critical, "logit")
    columns = [sd, sd_error, *sd_limits], [share, share_error, *share_limits]
    names = [f"sd_{row.name}" for row in rows], [f"share_{row.name}_positive" for row in shares]
    table = np.concatenate([np.stack(part).transpose(2, 1, 0).reshape(-1, 4) for part in columns])
    index: pd.Index[Any] = pd.Index([*names[0], *names[1]])
    if estimands.moderators:
        index = pd.MultiIndex.from_tuples(
            [(name, *point.values()) for name in (*names[0], *names[1]) for point in points],
            names=["effect", *estimands.moderators],
        )
    return pd.DataFrame(table, index=index, columns=["estimate", "se", "ci_lower", "ci_upper"])


def omnibus_table(fit: Estimates, covariance: Covariance, at: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Table of :meth:`jaxmed.Fit.omnibus`."""
    targets = make_targets(fit, at)
    contrasts = fit.spec.contrasts(fit.facts)
    if not contrasts:
        raise FitError(
            "tests over categories are of an x with at least three categories, reference={x: category}; effects() has "
            "the test of every single effect"
        )
    value, slope = effects.linear_combinations_and_jacobian(
        targets.plan, fit.values, targets.weights, targets.combination
    )
    matrix = slope @ fit.generalized(covariance) @ slope.T
    error = fit.errors(slope, covariance)
    groups: dict[Any, list[int]] = {}
    for k, (name, *point) in enumerate(targets.rows if targets.rows.nlevels > 1 else ((n,) for n in targets.rows)):
        if name.endswith(tuple(f"[{one}]" for one in contrasts)) and " - " not in name:
            short = name[: name.rindex("[")]
            where = tuple(None if value != value else value for value in point)  # NaN is not itself
            groups.setdefault((short, *where), []).append(k)
    rows = {}
    for key, own in groups.items():
        if np.all(error[own] == 0):  # held at zero by the model
            continue
        known = bool(np.all(error[own] > 0))
        statistic = float(value[own] @ np.linalg.pinv(matrix[np.ix_(own, own)]) @ value[own]) if known else np.nan
        rows[key] = {"chi2": statistic, "df": len(own), "p": float(chdtrc(len(own), statistic)) if known else np.nan}
    table = pd.DataFrame(list(rows.values()), columns=["chi2", "df", "p"])
    table.index = pd.Index([name for name, *_ in rows])
    if targets.rows.nlevels > 1:
        keys = [(name, *(np.nan if value is None else value for value in where)) for name, *where in rows]
        table.index = pd.MultiIndex.from_tuples(keys, names=targets.rows.names)
    return table


def _check_bauer(fit: Estimates) -> None:
    if not fit.spec.is_simple(fit.facts):
        raise SpecError(
            "covariance='bauer' stands for the formulas of Bauer, Preacher & Gil (2006), for one mediator without "
            "moderators or centring; use covariance='joint'"
        )
