"""Looking at data before and beside a model: descriptive statistics and the stacked table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jaxmed._data.design import term_values
from jaxmed._data.moments import Moments, SampleSummary
from jaxmed._data.reader import check_finite, check_some_ids, read, read_facts, sample_of, summarise
from jaxmed._data.source import no_ids
from jaxmed._model import INTERCEPT, Equation, Spec, System
from jaxmed._support import SpecError, escape_control


@dataclass(frozen=True, eq=False)
class Description:
    """What :func:`describe` found.

    Attributes
    ----------
    variables : DataFrame
        By column: ``count, missing, mean, sd, min, max, icc``. ``icc`` is the one-way analysis-of-variance estimate of
        the intraclass correlation (Shrout & Fleiss 1979, ICC(1), with the usual mean size for unbalanced clusters).
    correlations : DataFrame
        Pearson correlations over the rows that have every column.
    clusters : Series
        ``n_clusters``, and ``min, mean, median, max`` of the rows per cluster.
    sample_summary : SampleSummary
        Rows read, used and left out.
    notes : tuple of str
        What looks odd in the data, and what was filled in, one sentence each.
    """

    variables: pd.DataFrame
    correlations: pd.DataFrame
    clusters: pd.Series
    sample_summary: SampleSummary

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the data."""
        return self.sample_summary.remarks

    @property
    def intake(self) -> SampleSummary:
        """Former name of ``sample_summary``."""
        return self.sample_summary

    def __str__(self) -> str:
        missing = {name: count for name, count in self.sample_summary.missing.items() if count}
        sizes = self.clusters
        lines = [
            f"{self.sample_summary.rows} rows, {self.sample_summary.dropped} without any complete equation"
            + (f"; missing values: {missing}" if missing else "; no missing values"),
            f"{int(sizes['n_clusters'])} clusters; rows per cluster: min {sizes['min']:g}, mean {sizes['mean']:.2f}, "
            f"median {sizes['median']:g}, max {sizes['max']:g}",
            "",
            self.variables.rename(escape_control).to_string(float_format=lambda value: f"{value:.6g}"),
            "",
            "Correlations",
            self.correlations.rename(index=escape_control, columns=escape_control).to_string(
                float_format=lambda value: f"{value:.4f}"
            ),
        ]
        if self.notes:
            lines += ["", "Notes", *(f"- {note}" for note in self.notes)]
        return escape_control("\n".join(lines), "\n")


def describe(data: Any, spec: Spec) -> Description:
    """Counts, means, sds, ranges, intraclass correlations, correlations and cluster sizes of a model's columns.

    Parameters
    ----------
    data : frame or path
        As for :func:`jaxmed.fit`.
    spec : Mediation or System

    Returns
    -------
    Description

    Raises
    ------
    DataError
        The data cannot be read, see :func:`jaxmed.fit`.

    Examples
    --------
    >>> import jaxmed as jm
    >>> found = jm.describe(jm.datasets.load_example(), jm.Mediation(x="x", m="m", y="y", cluster="id"))
    >>> int(found.clusters["n_clusters"])
    100
    """
    source, facts = read_facts(data, spec)
    system = spec.system(facts)
    # Every column on its own, so that its intraclass correlation uses every row that has it.
    alone = System([Equation(name, [INTERCEPT]) for name in system.columns], system.cluster)
    summaries, rows, _ = summarise(source, alone)
    moments = read(source, alone, remarks=False)
    variables = pd.DataFrame(
        {
            name: {
                "count": rows - column.missing,
                "missing": column.missing,
                "mean": column.mean,
                "sd": column.sd,
                "min": column.minimum,
                "max": column.maximum,
                "icc": _icc(moments, name),
            }
            for name, column in summaries.items()
        }
    ).T.astype({"count": int, "missing": int})
    return Description(variables, _correlations(moments), _clusters(moments), sample_of(source, spec, facts))


def describe_moments(moments: Moments) -> Description:
    """What moments tell of the data, over the rows that count in the model they were read for.

    Parameters
    ----------
    moments : Moments

    Examples
    --------
    >>> import jaxmed as jm
    >>> model = jm.Mediation(x="x", m="m", y="y", cluster="id")
    >>> data = jm.datasets.load_example()
    >>> known = describe_moments(jm.read_moments(data, model)).variables
    >>> bool(abs(known - jm.describe(data, model).variables).max(axis=None) < 1e-9)
    True
    """
    found = {}
    for name in moments.columns:
        count = int(moments.sums(name)[0].sum())
        mean, around, _ = moments.spread(name) if count else (np.nan, np.nan, np.nan)
        low, high = moments.sample_summary.ranges[name]
        sd = np.sqrt(around * count / (count - 1)) if count > 1 else np.nan
        own = {"count": count, "missing": moments.sample_summary.missing.get(name, 0), "mean": mean, "sd": sd}
        found[name] = own | {"min": low, "max": high, "icc": _icc(moments, name)}
    variables = pd.DataFrame(found).T.astype({"count": int, "missing": int})
    return Description(variables, _correlations(moments), _clusters(moments), moments.sample_summary)


def _clusters(moments: Moments) -> pd.Series:
    """Number of clusters, and rows per cluster."""
    sizes = np.sum([pattern.products[0] for pattern in moments.patterns], axis=0)
    found = {"min": sizes.min(), "mean": sizes.mean(), "median": np.median(sizes), "max": sizes.max()}
    return pd.Series({"n_clusters": float(moments.n_clusters), **found})


def _icc(moments: Moments, name: str) -> float:
    """(MSB - MSW) / (MSB + (n0 - 1) MSW), n0 = (N - sum n_j^2 / N) / (J - 1)."""
    products = moments.cross_products((INTERCEPT, name))
    used = products[0, 0] > 0
    rows, total, square = products[0, 0, used], products[0, 1, used], products[1, 1, used]
    n, j = rows.sum(), len(rows)
    if n <= j or j < 2:
        return float("nan")
    within = np.sum(square - total**2 / rows) / (n - j)
    between = (np.sum(total**2 / rows) - total.sum() ** 2 / n) / (j - 1)
    size = (n - np.sum(rows**2) / n) / (j - 1)
    return float((between - within) / (between + (size - 1) * within))


def _correlations(moments: Moments) -> pd.DataFrame:
    total = moments.cross_products((INTERCEPT, *moments.columns)).sum(axis=-1)
    if total[0, 0] < 2:
        values = np.full((len(moments.columns),) * 2, np.nan)
    else:
        covariance = total[1:, 1:] - np.outer(total[1:, 0], total[0, 1:]) / total[0, 0]
        with np.errstate(divide="ignore", invalid="ignore"):  # a column may be constant where all are observed
            unit = 1 / np.sqrt(np.diag(covariance))
            values = covariance * unit[:, None] * unit
    return pd.DataFrame(values, index=list(moments.columns), columns=list(moments.columns))


def stack(data: Any, spec: Spec) -> pd.DataFrame:
    """The stacked long table behind a model: one row per original row and outcome.

    For teaching, checking, or fitting with another program. Columns: ``row`` (number of the original row), the
    cluster, ``outcome`` (name), ``z`` (value of that outcome), an indicator ``s_<outcome>`` per equation, and
    ``s_<outcome>:<predictor>`` for the products: the columns of the stacked design matrix. Rows keep their order, and
    within a row the last equation comes first, as in the worked Stata example. Rows whose equation is incomplete are
    left out, as in the fit. Every equation has a row per original row, also one that a fit gives one row per cluster.

    Parameters
    ----------
    data : frame or path
        As for :func:`jaxmed.fit`.
    spec : Mediation or System

    Returns
    -------
    DataFrame
        ``n_rows`` times the number of equations rows, less those left out.

    Raises
    ------
    SpecError
        The cluster column has the name of a column of the table.
    DataError
        The data cannot be read, see :func:`jaxmed.fit`, has infinite values, or no row has a cluster id.

    Examples
    --------
    >>> import jaxmed as jm
    >>> long = jm.stack(jm.datasets.load_example(), jm.Mediation(x="x", m="m", y="y", cluster="id"))
    >>> list(long.columns)
    ['row', 'id', 'outcome', 'z', 's_m', 's_m:x', 's_y', 's_y:m', 's_y:x']
    """
    source, facts = read_facts(data, spec)
    system = spec.system(facts)
    reserved = {"row", "outcome", "z", *(f"s_{outcome}" for outcome in system.outcomes)}
    if system.cluster in reserved:
        raise SpecError(f"the stacked table has a column {system.cluster!r} of its own; rename the cluster column")
    wide = source.to_pandas(system)
    wide.columns = pd.Index([system.cluster, *system.columns])
    try:
        codes = pd.factorize(wide[system.cluster])[0].astype(np.int64)
    except TypeError:  # nobody can hash them
        raise no_ids(wide[system.cluster].iloc[0], system.cluster) from None
    check_some_ids(system.cluster, len(wide), int(np.sum(codes < 0)))
    values = {name: wide[name].to_numpy(dtype=float) for name in system.columns}
    for name, column in values.items():
        check_finite(name, int(np.isinf(column).sum()), len(wide))
    parts = []
    for equation in reversed(system.equations):
        complete = wide[[system.cluster, *equation.columns]].notna().all(axis=1)
        used = wide[complete]
        part = {
            "row": np.flatnonzero(complete) + 1,
            system.cluster: used[system.cluster].reset_index(drop=True),  # of its own type: not every text is UTF-8
            "outcome": np.full(len(used), equation.outcome, dtype=object),
            "z": used[equation.outcome].to_numpy(dtype=float),
        }
        for other in system.equations:
            own = other is equation
            for name in other.predictors:
                head = f"s_{other.outcome}" if name == INTERCEPT else f"s_{other.outcome}:{name}"
                part[head] = term_values(name, values, codes)[complete] if own else np.zeros(len(used))
        parts.append(pd.DataFrame(part))
    return pd.concat(parts).sort_values("row", kind="stable", ignore_index=True)
