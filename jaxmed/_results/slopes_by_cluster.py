"""How the slopes along a route from x to y, and their product, are distributed over clusters in the population."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from jaxmed._inference import estimands_of, moderator_by_cluster, moderators_of, product_moments
from jaxmed._results.result import Fit
from jaxmed._support import FitError, Floats, SpecError

if TYPE_CHECKING:
    pass

POINTS = 32  # values of moderators over which a population curve is averaged
DRAWS = 20_000  # of slopes along routes of three and more


class Route(NamedTuple):
    """A way from x to y through mediators.

    Attributes
    ----------
    effect : str
        Name of its indirect effect.
    column : str
        Of its expected product in :meth:`jaxmed.Fit.ranef`.
    paths : tuple of str
        Slopes along the way, as columns of :meth:`jaxmed.Fit.ranef`.
    """

    effect: str
    column: str
    paths: tuple[str, ...]


class Slopes(NamedTuple):
    """Normal distributions of the slopes along a route, one per distinct setting of the moderators.

    Attributes
    ----------
    mean : ndarray, shape (settings, paths)
    covariance : ndarray, shape (settings, paths, paths)
    share : ndarray, shape (settings,)
        Share of the clusters that have the setting.
    """

    mean: Floats
    covariance: Floats
    share: Floats

    @property
    def centre(self) -> Floats:
        """Mean over all clusters, shape (paths,)."""
        return self.share @ self.mean

    @property
    def spread(self) -> Floats:
        """Covariance over all clusters, shape (paths, paths): within settings, and of their means."""
        apart = self.mean - self.centre
        within = np.tensordot(self.share, self.covariance, 1)
        return within + np.einsum("s,sa,sb->ab", self.share, apart, apart)


def varying_routes(fit: Fit) -> list[Route]:
    """Routes whose product differs between clusters; none of a model without such slopes."""
    found = []
    for row in estimands_of(fit).rows:
        if row.kind == "indirect" and len(row.terms) == 1 and row.suffix != "_between":
            route = Route(row.name, "ab" + row.name.removeprefix("indirect"), row.terms[0][1])
            if np.any(np.diag(cluster_slopes(fit, route).spread) > 0):
                found.append(route)
    return found


def find_route(fit: Fit, effect: str | None) -> Route:
    """The route of a specific indirect effect; by default the first that varies.

    Raises
    ------
    SpecError
        No such effect.
    FitError
        Not a mediation model, or no slope along any route varies between clusters.
    """
    found = varying_routes(fit)
    if not found:
        raise FitError("no slope along a route from x to y varies between clusters in this model; list some in random=")
    names = [route.effect for route in found]
    if effect is not None and effect not in names:
        raise SpecError(f"effect={effect!r}: the indirect effects that vary between clusters are {names}")
    return found[0 if effect is None else names.index(effect)]


def cluster_slopes(fit: Fit, route: Route) -> Slopes:
    """The distribution of the slopes along a route, given what clusters have as moderators.

    A slope is a sum of coefficients, each times a product of moderators; its random parts have the covariance G.
    """
    estimands = estimands_of(fit)
    moments = fit.moments
    moderators = {name: moderator_by_cluster(fit, moments, name) for name in moderators_of(estimands)}
    labels = list(fit.system.random_labels)
    mean = np.zeros((moments.n_clusters, len(route.paths)))
    load = np.zeros((moments.n_clusters, len(route.paths), len(labels)))
    for k, path in enumerate(route.paths):
        for label, by in estimands.paths[path].pieces:
            weight = np.prod([moderators[name] for name in by], axis=0) * np.ones(moments.n_clusters)
            mean[:, k] += weight * fit.params[label]
            if label in labels:
                load[:, k, labels.index(label)] += weight
    known = np.all(np.isfinite(mean), axis=1)
    covariance = np.einsum("jaq,qr,jbr->jab", load[known], fit.random_cov.to_numpy(), load[known], optimize=True)
    settings = np.concatenate([mean[known], covariance.reshape(len(covariance), -1)], axis=1)
    distinct, counts = np.unique(settings, axis=0, return_counts=True)
    size = len(route.paths)
    return Slopes(distinct[:, :size], distinct[:, size:].reshape(-1, size, size), counts / counts.sum())


def average_product(slopes: Slopes) -> tuple[float, float]:
    """Mean and standard deviation of the product of the slopes over all clusters.

    The mean is that of the settings' means, the variance that within settings plus that of these means.
    """
    along = tuple(range(slopes.mean.shape[1]))
    mean, variance = product_moments(along, slopes.mean.T, np.moveaxis(slopes.covariance, 0, -1))
    centre = slopes.share @ mean
    return float(centre), float(np.sqrt(slopes.share @ (variance + (mean - centre) ** 2)))


def product_density(slopes: Slopes, edges: Floats) -> Floats:
    """Density of the product of the slopes, averaged over each interval between ``edges``, shape (edges - 1,).

    Of two slopes from the distribution function, exact to the quadrature; at most 32 settings of the moderators stand
    for all. Of more slopes from draws with a fixed seed.
    """
    chosen = np.unique(np.linspace(0, len(slopes.share) - 1, min(len(slopes.share), POINTS)).round().astype(int))
    share = slopes.share[chosen] / slopes.share[chosen].sum()
    if slopes.mean.shape[1] == 2:
        below = sum(
            part * product_below(slopes.mean[k], slopes.covariance[k], edges)
            for part, k in zip(share, chosen, strict=True)
        )
        return np.diff(np.asarray(below)) / np.diff(edges)
    rng = np.random.default_rng(0)
    which = rng.choice(chosen, DRAWS, p=share)
    root = _roots(slopes.covariance)
    draws = slopes.mean[which] + np.einsum("dab,db->da", root[which], rng.standard_normal((DRAWS, root.shape[-1])))
    return np.asarray(density(draws.prod(axis=1), (edges[1:] + edges[:-1]) / 2))


def _roots(covariance: Floats) -> Floats:
    """Square roots of covariances that may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]


def product_below(mean: Floats, covariance: Floats, values: Floats) -> Floats:
    """P(a b <= v) of a bivariate normal (a, b), by integration over a of the conditional distribution of b.

    Examples
    --------
    >>> import numpy as np
    >>> product_below(np.zeros(2), np.eye(2), np.zeros(1)).round(6).tolist()
    [0.5]
    """
    if covariance[0, 0] <= 0 or covariance[1, 1] <= 0:
        first, second = (1, 0) if covariance[0, 0] <= 0 else (0, 1)
        centre = mean[first] * mean[second]
        sd = abs(mean[second]) * np.sqrt(max(covariance[first, first], 0.0))
        return ndtr((values - centre) / sd) if sd > 0 else (values >= centre).astype(float)
    sd_a, sd_b = np.sqrt(np.diag(covariance))
    slope = covariance[0, 1] / sd_a**2
    # A correlation of one would make a step of the conditional distribution, which quadrature does not see.
    sd = max(np.sqrt(max(sd_b**2 - slope**2 * sd_a**2, 0.0)), 0.01 * sd_b)
    ends = [mean[0] - 8 * sd_a, mean[0] + 8 * sd_a]
    cuts = sorted({*ends, mean[0], *([0.0] if ends[0] < 0 < ends[1] else [])})
    node, weight = np.polynomial.legendre.leggauss(200)
    total = np.zeros(len(values))
    for low, high in pairwise(cuts):
        a = low + (high - low) * (node + 1) / 2
        part = weight * (high - low) / 2 * np.exp(-(((a - mean[0]) / sd_a) ** 2) / 2) / (sd_a * np.sqrt(2 * np.pi))
        below = ndtr((values[:, None] / a - mean[1] - slope * (a - mean[0])) / sd)
        total += np.where(a > 0, below, 1 - below) @ part
    return total


def density(draws: Any, grid: Any) -> Any:
    """Gaussian kernel density, bandwidth of Silverman (1986)."""
    from scipy.stats import gaussian_kde  # half a second, for figures alone

    spread = min(draws.std(), np.subtract(*np.quantile(draws, [0.75, 0.25])) / 1.34) or draws.std()
    width = 0.9 * spread * len(draws) ** -0.2
    return gaussian_kde(draws, width / draws.std(ddof=1))(grid)
