"""Pictures of clusters: their effects, slopes and fitted lines, and how much each one weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import betaincinv, ndtri

from jaxmed._inference import check_level, critical_value
from jaxmed._model import Equation, factors
from jaxmed._results import Fit, Route, average_product, cluster_slopes, find_route, product_density, varying_routes
from jaxmed._support import FitError, Floats, SpecError
from jaxmed.plots._style import (
    ACCENT,
    DARK,
    GREY,
    LIGHT,
    MIDDLE,
    bins,
    broken,
    check_shown,
    ellipse,
    headroom,
    legend,
    main_effect,
    make_axes,
    plain,
    thin,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def cluster_effects(fit: Fit, effect: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Distribution of the indirect effect over clusters: predictions as a histogram, the population as a curve.

    The curve is the density of the product of normal slopes with the fitted means and G (at what clusters have as
    moderators). Predictions are drawn towards the average, so that they vary less than the population.

    Parameters
    ----------
    fit : Fit
        Of a :class:`jaxmed.Mediation`.
    effect : str, optional
        A specific indirect effect, such as ``"indirect_m1"``; by default the first that varies between clusters.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        No such effect.
    FitError
        Nothing along the route varies between clusters; matplotlib is not installed.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.plots.cluster_effects(fit).get_xlabel()
    'indirect effect of a cluster'
    """
    route = find_route(fit, effect)
    found = _predicted(fit, [route.column])[:, 0]
    population = cluster_slopes(fit, route)
    mean, sd = average_product(population)
    ax = make_axes(ax)
    ax.hist(found, bins=bins(found), density=True, color=LIGHT, edgecolor="white", linewidth=0.5, label="predicted")
    edges = np.linspace(min(found.min(), mean - 3.5 * sd), max(found.max(), mean + 3.5 * sd), 302)
    ax.plot((edges[1:] + edges[:-1]) / 2, product_density(population, edges), color=DARK, label="population")
    ax.axvline(mean, color=ACCENT, label=f"average {mean:.3g}")
    ax.axvline(0, color=GREY, linestyle=":", linewidth=1)
    ax.set(xlabel=f"{plain(words(route.effect))} of a cluster", ylabel="density")
    headroom(ax, 1.15)
    legend(ax, loc="upper right")
    return ax


def caterpillar(fit: Fit, term: str | None = None, level: float = 0.95, *, ax: Axes | None = None) -> Axes:
    """Predictions of every cluster with their intervals, sorted; dark where the interval excludes zero.

    Parameters
    ----------
    fit : Fit
    term : str, optional
        A column of :meth:`jaxmed.Fit.ranef` with a standard error, such as ``"ab"`` or ``"m~x"``; by default the first
        indirect effect that varies. Of more than 300 clusters 300 are drawn, evenly over the ranks.
    level : float
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        No such column; no confidence level.
    FitError
        The model has no random effects.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.plots.caterpillar(fit).get_ylabel()
    'predicted indirect effect'
    """
    table = fit.ranef()
    term = find_route(fit, None).column if term is None else term
    choices = [name for name in table.columns if f"{name}_se" in table.columns]
    if term not in choices:
        raise SpecError(f"term={term!r}: choose one of {choices}")
    rows = table[[term, f"{term}_se"]].dropna().sort_values(term).to_numpy()
    shown = thin(len(rows))
    value, error = rows[shown].T
    low, high = value - critical_value(level) * error, value + critical_value(level) * error
    apart = (low > 0) | (high < 0)
    ax = make_axes(ax)
    rank = shown + 1
    for chosen, colour, name in ((~apart, MIDDLE, "holds 0"), (apart, DARK, "excludes 0")):
        label = f"{100 * check_level(level):g}% interval {name} ({chosen.sum()})"
        ax.vlines(rank[chosen], low[chosen], high[chosen], color=colour, linewidth=1, label=label)
        ax.plot(rank[chosen], value[chosen], linestyle="none", marker="o", markersize=2.5, color=colour)
    ax.axhline(0, color=GREY, linestyle=":", linewidth=1)
    routes = {route.column: route for route in _routes(fit)}
    if term in routes:
        mean = average_product(cluster_slopes(fit, routes[term]))[0]
        ax.axhline(mean, color=ACCENT, linewidth=1, label=f"average {mean:.3g}")
    what = words(routes[term].effect) if term in routes else term
    count = f"{len(shown)} of {len(rows)} clusters" if len(shown) < len(rows) else f"{len(rows)} clusters"
    ax.set(xlabel=f"{count}, by rank", ylabel=broken(f"predicted {plain(what)}"))
    headroom(ax, 1.25)
    legend(ax, loc="upper left")
    return ax


def slopes(fit: Fit, effect: str | None = None, level: float = 0.95, *, ax: Axes | None = None) -> Axes:
    """Predicted a_j against b_j of every cluster, with the ellipses of the population (G) and of the predictions.

    Parameters
    ----------
    fit : Fit
    effect : str, optional
        A specific indirect effect with two slopes; by default the first that varies between clusters.
    level : float
        Share of clusters that an ellipse holds, were the slopes normal.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        No such effect.
    FitError
        One of the slopes does not vary between clusters.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.plots.slopes(fit).get_xlabel()
    'a: x → m'
    """
    route = find_route(fit, effect)
    if len(route.paths) != 2:
        raise FitError(f"{route.effect!r} has {len(route.paths)} slopes along its way; this plot is of two")
    population = cluster_slopes(fit, route)
    if np.any(np.diag(population.spread) <= 0):
        fixed = [path for path, var in zip(route.paths, np.diag(population.spread), strict=True) if var <= 0]
        raise FitError(f"{fixed[0]!r} does not vary between clusters in this model; there is no scatter to show")
    level = check_level(level)
    found = _predicted(fit, list(route.paths))
    ax = make_axes(ax)
    shown = found[thin(len(found))]
    ax.scatter(
        shown[:, 0], shown[:, 1], s=14, color=MIDDLE, edgecolor="white", linewidth=0.3, label="clusters (predicted)"
    )
    ax.plot(*ellipse(found.mean(axis=0), np.cov(found.T), level), color=GREY, linestyle="--", label="of predictions")
    spread = population.spread
    r = spread[0, 1] / np.sqrt(spread[0, 0] * spread[1, 1])
    outline = ellipse(population.centre, spread, level)
    ax.plot(*outline, color=DARK, label=f"{100 * level:g}% of the population, r = {r:.2f}")
    ax.plot(*population.centre, marker="D", linestyle="none", color=ACCENT, label="averages")
    for line in (ax.axhline, ax.axvline):
        line(0, color=GREY, linestyle=":", linewidth=1)
    ax.set(xlabel=plain(_slope_words(fit, route.paths[0])), ylabel=plain(_slope_words(fit, route.paths[1])))
    headroom(ax, 1.3)
    legend(ax, loc="upper left")
    return ax


def cluster_lines(fit: Fit, outcome: str, predictor: str, *, ax: Axes | None = None) -> Axes:
    """Fitted lines of one equation, one per cluster, and the line of the averages.

    A line reaches 1.5 standard deviations of the cluster's own values to both sides of their mean, its other
    predictors at their means in the cluster.

    Parameters
    ----------
    fit : Fit
    outcome, predictor : str
        Columns: an outcome, and a predictor in its equation. Of more than 300 clusters 300 are drawn.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        No such equation, or the predictor is not in it.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.plots.cluster_lines(fit, "y", "m").get_ylabel()
    'y'
    """
    from matplotlib.collections import LineCollection

    outcomes = list(fit.system.outcomes)
    if outcome not in outcomes:
        raise SpecError(f"outcome={outcome!r}: the outcomes of this fit are {outcomes}")
    equation = fit.system.equations[outcomes.index(outcome)]
    known = [name for name in equation.columns if name != outcome]
    if predictor not in known:
        raise SpecError(f"predictor={predictor!r}: the equation of {outcome!r} has {known}")
    means = {name: _means(fit, name) for name in known}
    low, high = fit.sample_summary.ranges[predictor]
    reach = 1.5 * _sds(fit, predictor)
    ends = np.clip(np.stack([means[predictor] - reach, means[predictor] + reach]), low, high)
    lines = _line(fit, equation, predictor, ends, means, _deviations(fit, equation))
    counted = np.flatnonzero(np.all(np.isfinite(lines), axis=0) & (fit.moments.sums(predictor)[0] > 0))
    shown = counted[thin(len(counted))]
    whole = {name: np.array([fit.moments.spread(name)[0]]) for name in known}
    average = _line(fit, equation, predictor, np.array([[low], [high]]), whole, {})
    ax = make_axes(ax)
    segments = [np.column_stack([ends[:, j], lines[:, j]]) for j in shown]
    ax.add_collection(LineCollection(segments, colors=MIDDLE, linewidths=0.8, alpha=0.7, label="clusters"))
    ax.plot([low, high], average[:, 0], color=ACCENT, linewidth=2, label="average")
    ax.autoscale()
    ax.set(xlabel=plain(predictor), ylabel=plain(outcome))
    headroom(ax, 1.15)
    legend(ax, loc="upper left")
    return ax


def quantiles(fit: Fit, term: str | None = None, level: float = 0.95, *, ax: Axes | None = None) -> Axes:
    """Normal quantile plot of the standardized predictions of a random effect, with a pointwise band.

    A prediction has the variance G_kk - se_j^2 under the model (its prediction error is uncorrelated with it), so that
    u_j / sqrt(G_kk - se_j^2) is standard normal (Lange & Ryan 1989). The band holds each order statistic of as many
    independent normal draws with probability ``level``.

    Parameters
    ----------
    fit : Fit
    term : str, optional
        Label of a random effect, such as ``"m~x"``; by default the first.
    level : float
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        No such random effect.
    FitError
        The model has no random effects, or the variance of this one is zero.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.plots.quantiles(fit, "m~x").get_ylabel()
    'standardized m~x'
    """
    table, labels = fit.ranef(), list(fit.system.random_labels)
    term = labels[0] if term is None else term
    if term not in labels:
        raise SpecError(f"term={term!r}: the random effects of this fit are {labels}")
    whole = float(fit.random_cov.to_numpy()[labels.index(term), labels.index(term)])
    variance = whole - table[f"{term}_se"].to_numpy() ** 2
    usable = variance > 1e-8 * whole
    if usable.sum() < 2:
        raise FitError(f"the variance of {term!r} is estimated as zero; its predictions cannot be standardized")
    value = np.sort(table[term].to_numpy()[usable] / np.sqrt(variance[usable]))
    n = len(value)
    rank = np.arange(1, n + 1)
    expected = ndtri((rank - 0.375) / (n + 0.25))  # Blom (1958)
    tail = (1 - check_level(level)) / 2
    low, high = (ndtri(betaincinv(rank, n + 1 - rank, share)) for share in (tail, 1 - tail))
    shown = thin(n)
    ax = make_axes(ax)
    ax.fill_between(expected, low, high, color=LIGHT, alpha=0.6, linewidth=0, label=f"{100 * level:g}% band")
    ax.plot(expected[[0, -1]], expected[[0, -1]], color=GREY, linestyle="--", linewidth=1)
    ax.plot(expected[shown], value[shown], linestyle="none", marker="o", markersize=3, color=DARK, label="clusters")
    ax.set(xlabel="normal quantile", ylabel=broken(f"standardized {plain(term)}"))
    legend(ax, loc="upper left")
    return ax


def influence(table: pd.DataFrame, term: str | None = None, labels: int = 5, *, ax: Axes | None = None) -> Axes:
    """What each cluster adds to an effect, against the cluster's Cook's distance.

    Parameters
    ----------
    table : DataFrame
        That of :meth:`jaxmed.Fit.influence`: a column per effect with what the cluster adds, and ``cook``.
    term : str
        Column of the change; the first indirect effect unless named.
    labels : int
        Clusters with the largest distances that are named.
    ax : Axes, optional

    Returns
    -------
    Axes
        ``ax``, or those of a new figure.

    Raises
    ------
    SpecError
        The table has no such columns.

    Examples
    --------
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> jm.plots.influence(fit.influence()).get_xlabel()
    'what the cluster adds to indirect'
    """
    check_shown("table", table, pd.DataFrame, "the table that fit.influence() returns")
    term = main_effect(table.columns) if term is None and len(table.columns) else term
    absent = [name for name in (term, "cook") if name not in table.columns]
    if absent:
        raise SpecError(f"the table has no column {absent[0]!r}, only {list(table.columns)}")
    order = table["cook"].to_numpy().argsort()[::-1]
    top, rest = order[:labels], order[labels:]
    rest = rest[thin(len(rest), 1000)] if len(rest) else rest
    change, cook = table[term].to_numpy(), table["cook"].to_numpy()
    ax = make_axes(ax)
    ax.scatter(change[rest], cook[rest], s=14, color=MIDDLE, edgecolor="white", linewidth=0.3)
    ax.scatter(change[top], cook[top], s=22, color=ACCENT, edgecolor="white", linewidth=0.3)
    for at in top:
        away = -1 if change[at] < 0 else 1  # the name stands on the outer side of its point
        place: Any = {"xytext": (6 * away, 0), "textcoords": "offset points", "ha": "left" if away > 0 else "right"}
        ax.annotate(plain(table.index[at]), (change[at], cook[at]), va="center", fontsize="small", **place)
    ax.axvline(0, color=GREY, linestyle=":", linewidth=1)
    ax.margins(x=0.15)
    ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel=f"what the cluster adds to {plain(term)}", ylabel="Cook's distance", ylim=(0, None))
    return ax


# Numbers of a fit, by cluster ----------------------------------------------------------------------------------------


def _predicted(fit: Fit, columns: list[str]) -> Floats:
    """Predictions of the clusters that have them, shape (clusters, columns)."""
    found = fit.ranef()[columns].dropna().to_numpy()
    if not len(found):
        raise FitError(f"this fit has no predictions of {columns[0]!r} to show ({fit.message})")
    return found


def _routes(fit: Fit) -> list[Route]:
    return varying_routes(fit) if fit.spec.has_effects else []


def _slope_words(fit: Fit, path: str) -> str:
    edge = next(edge for edge in fit.spec.edges_in(fit.facts) if path in (edge.path(), edge.path("_within")))
    return f"{path}: {edge.source} → {edge.outcome}"


def _means(fit: Fit, column: str) -> Floats:
    shift, scale = fit.moments.unit(column)
    return shift + scale * fit.moments.cluster_means(column)


def _sds(fit: Fit, column: str) -> Floats:
    """Standard deviation of a column within each cluster, divisor n - 1."""
    rows, total, square = fit.moments.sums(column)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (square - total**2 / rows) / (rows - 1)
    return np.sqrt(np.maximum(np.nan_to_num(variance), 0.0)) * fit.moments.unit(column)[1]


def _deviations(fit: Fit, equation: Equation) -> dict[str, Floats]:
    """Predicted random effects of an equation, by label and cluster; NaN of clusters without any row."""
    if not equation.random:
        return {}
    found = fit.ranef().reindex(fit.moments.clusters)
    return {label: found[label].to_numpy() for label in equation.random_labels}


def _line(
    fit: Fit, equation: Equation, predictor: str, at: Floats, means: dict[str, Floats], deviations: dict[str, Floats]
) -> Floats:
    """Fitted values at values of the predictor, (2, clusters), all other columns at their means in the cluster."""
    total = np.zeros(at.shape)
    for label, term in zip(equation.labels, equation.predictors, strict=True):
        value = np.ones(at.shape)
        for factor in factors(term):
            own = at if factor.column == predictor else means[factor.column]
            middle = means[factor.column]
            value = value * {"": own, "between": middle, "within": own - middle}[factor.part]
        total = total + value * (fit.params[label] + deviations.get(label, 0.0))
    return total
