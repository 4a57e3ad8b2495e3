"""The section of a report on what the answer rests on: normality, single clusters, many clusters, equal paths."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from jaxmed._report import figures, text
from jaxmed._report.blocks import Content, number_table, paragraphs, pictures
from jaxmed._report.html import element, join, table
from jaxmed._results import tables
from jaxmed._support import FitError

SHOWN = 5  # clusters
FEW = 8  # rows of a table by kind of standard error
EXPECTED = 0.01  # p below which a cluster's random effects are far out


def diagnostics(of: Content) -> Markup:
    """Standard errors by kind, influence of clusters, outlying clusters, paths within against between."""
    return join([_kinds(of), _influence(of), _outlying(of), _conflation(of)])


def _kinds(of: Content) -> Markup:
    """Joint, cluster-robust and Satterthwaite's intervals side by side."""
    fit = of.fit
    joint = fit.intervals(level=of.level, covariance="joint", at=of.at)
    chosen = [key for key in joint.index if _summed(key)] or list(joint.index)
    chosen = chosen[:FEW]
    robust = fit.intervals(level=of.level, covariance="robust", at=of.at)
    shown = pd.DataFrame(
        {
            "estimate": joint["estimate"],
            "se": joint["se"],
            "robust SE": robust["se"],
            "robust lower": robust["ci_lower"],
            "robust upper": robust["ci_upper"],
        }
    ).loc[chosen]
    words = [
        "The standard errors of this report rest on normal random effects and residuals; cluster-robust ones do not, "
        "and should be close. If they are much larger, the random effects are skewed or heavy-tailed: trust the robust "
        "intervals, or a bootstrap of clusters."
    ]
    note = "Robust: sandwich estimator, times J / (J - 1)."
    try:
        freedom = fit.satterthwaite(level=of.level, at=of.at, terms="effects")
        shown["df"] = freedom["df"].reindex(shown.index)
        note += " df: Satterthwaite's degrees of freedom; below about 30 intervals of the t distribution are wider."
    except FitError:
        why = "singular" if fit.singular else "flat"
        note += f" Satterthwaite's degrees of freedom are not available, because the fit is {why}."
    numbers = tables.Numbers("kinds", "By kind of standard error", shown, of.level)
    return join([element("h3", "Standard errors"), paragraphs(words), number_table("kinds", numbers, note)])


def _summed(key: object) -> bool:
    name = str(key[0] if isinstance(key, tuple) else key)
    return name.startswith(("indirect", "total")) and " - " not in name


def _influence(of: Content) -> Markup:
    """Clusters by Cook's distance, and what the first indirect effect would be without each."""
    found = of.fit.influence(at=of.at)
    identified = [str(name) for name in found if found[name].notna().any() and name not in ("cook", "cook_all")]
    terms = [name for name in identified if name.startswith("indirect")] or identified[:1]
    if not terms:
        words = "Not available: without any one of the clusters these data do not determine the model."
        return join([element("h3", "Influence"), paragraphs([words])])
    top = found.nlargest(SHOWN, "cook")
    rows = [
        [str(cluster), *(f"{row[term]:+.3g}" for term in terms[:2]), f"{row['cook']:.3f}", f"{row['cook_all']:.3f}"]
        for cluster, row in top.iterrows()
    ]
    heads = [of.fit.spec.cluster, *(f"adds to {term}" for term in terms[:2]), "Cook", "Cook, all parameters"]
    note = (
        "What the cluster adds to the estimate, by one Newton step from its score: without it the estimate would be "
        "that much less. Cook: of the fixed effects; above about 4 divided by the number of clusters a cluster "
        "deserves a look."
    )
    drawn = pictures(figures.influential(found, terms[0]))
    return join(
        [element("h3", "Influence"), table("influence", "Most influential clusters", heads, rows, note=note), drawn]
    )


def _outlying(of: Content) -> Markup:
    """Clusters whose random effects are far from what the model expects."""
    if not of.fit.system.random_labels:
        return Markup("")
    found = of.fit.cluster_residuals()
    far = found[found["p"] < EXPECTED].nsmallest(SHOWN, "p")
    expected = EXPECTED * len(found)
    count = int((found["p"] < EXPECTED).sum())
    words = [
        f"{count} of {len(found)} clusters have predicted random effects as far from zero as would have a probability "
        f"below {EXPECTED:g} if they were normal; about {expected:.1f} are expected."
    ]
    parts = [element("h3", "Outlying clusters"), paragraphs(words)]
    if len(far):
        rows = [
            [str(c), f"{row['distance']:.2f}", f"{row['df']:g}", tables.p_value(row["p"])] for c, row in far.iterrows()
        ]
        heads = [of.fit.spec.cluster, "distance", "df", "p"]
        parts.append(table("outlying", "Distances of predicted random effects", heads, rows))
    return join(parts)


def _conflation(of: Content) -> Markup:
    """Whether paths within and between clusters differ."""
    conflation = of.conflation
    if not conflation:
        return Markup("")
    title = element("h3", "Within and between clusters")
    if isinstance(conflation, str):
        return join([title, element("p", f"Not tested: {conflation}.")])
    test = " ".join(text.levels_differ(conflation)) or "There is no test of all: some of them are not identified."
    words = [
        "Cluster means of the predictor and the mediators, added to the equations, separate the paths between clusters "
        f"from those within. {test}"
    ]
    shown = conflation.table[["within", "between", "estimate", "se", "z", "p"]]
    numbers = tables.Numbers("conflation", "Paths within and between clusters", shown, of.level)
    return join([title, paragraphs(words), number_table("conflation", numbers, "Estimate: between less within.")])
