"""A fit in words: the question, the answer, how it converged, the methods for a paper, the call that repeats it."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd

from jaxmed._data import equation_groups
from jaxmed._inference import estimands_of
from jaxmed._model import Mediation
from jaxmed._results import Conflation, Fit, decimals, p_value, rounded
from jaxmed._simulation import IntervalKind, Replicates
from jaxmed._version import __version__
from jaxmed.plots._style import words

DIFFERENT = 0.05  # p of the test that paths within and between clusters are the same
PACKAGES = ("jax", "jaxlib", "numpy", "pandas", "scipy", "matplotlib")
REFERENCES = {
    "bauer": "Bauer, D. J., Preacher, K. J., & Gil, K. M. (2006). Conceptualizing and testing random indirect effects "
    "and moderated mediation in multilevel models: New procedures and recommendations. Psychological Methods, 11, "
    "142–163.",
    "bauer_curran": "Bauer, D. J., & Curran, P. J. (2005). Probing interactions in fixed and multilevel regression: "
    "Inferential and graphical techniques. Multivariate Behavioral Research, 40, 373–400.",
    "davison": "Davison, A. C., & Hinkley, D. V. (1997). Bootstrap methods and their application. Cambridge University "
    "Press.",
    "hayes": "Hayes, A. F. (2015). An index and test of linear moderated mediation. Multivariate Behavioral Research, "
    "50, 1–22.",
    "kenny": "Kenny, D. A., Korchmaros, J. D., & Bolger, N. (2003). Lower level mediation in multilevel models. "
    "Psychological Methods, 8, 115–128.",
    "patterson": "Patterson, H. D., & Thompson, R. (1971). Recovery of inter-block information when block sizes are "
    "unequal. Biometrika, 58, 545–554.",
    "zhang": "Zhang, Z., Zyphur, M. J., & Preacher, K. J. (2009). Testing multilevel mediation using hierarchical "
    "linear models: Problems and solutions. Organizational Research Methods, 12, 695–719.",
}
METHODS = {
    "parametric": "parametric bootstrap, in which the mediator was drawn from the fitted model and the outcome from "
    "that mediator",
    "cluster": "bootstrap of clusters, drawn with replacement",
    "residual": "residual bootstrap, in which predicted random effects and residuals were drawn with replacement",
    "two_stage": "two-stage bootstrap of clusters and of rows within them",
}


def listed(names: Any) -> str:
    """``a, b and c``."""
    names = [str(name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def title(fit: Fit) -> str:
    """What the report is of."""
    spec = fit.spec
    if not isinstance(spec, Mediation):
        return f"Mixed model of {listed(fit.system.outcomes)}"
    through = ", then ".join(spec.mediators) if spec.serial else listed(spec.mediators)
    return f"From {spec.x} through {through} to {spec.y}"


def question(fit: Fit) -> list[str]:
    """What is asked of the data."""
    spec = fit.spec
    if not isinstance(spec, Mediation):
        return [
            f"How do {listed(fit.system.outcomes)} depend on their predictors, and how much do these relations differ "
            f"between the clusters of {spec.cluster}?"
        ]
    through = listed(spec.mediators)
    order = ", one after the other" if spec.serial else ", side by side" if len(spec.mediators) > 1 else ""
    several = len(spec.mediators) > 1
    found = [
        f"How much of the effect of {spec.x} on {spec.y} goes through {through}{order}? Observations are nested "
        f"in clusters ({spec.cluster}), and the effects may differ between clusters.",
        f"Path a leads from {spec.x} to {'each mediator' if several else through}, b from "
        f"{'each mediator' if several else through} to {spec.y}, and c′ from {spec.x} to {spec.y} directly. The "
        "indirect effect of a cluster is the product of the paths along the way, and its average over clusters holds "
        "the covariance of these paths: where clusters with a larger a also have a larger b, it exceeds the product of "
        "the averages.",
    ]
    if spec.moderators:
        moved = "; ".join(f"{name} moderates {listed(paths)}" for name, paths in spec.moderators)
        found.append(f"Some paths depend on further variables: {moved}.")
    if spec.is_split(fit.facts):
        found.append("Effects within clusters (of deviations from cluster means) and between clusters are kept apart.")
    return found


def answers(fit: Fit, effects: pd.DataFrame, level: float) -> list[str]:
    """The average indirect and total effects, a sentence each."""
    names = effects.index.get_level_values(0)
    found = []
    shown = [str(name).startswith(("indirect", "total", "index")) for name in names]
    for key, row in effects[shown].iterrows():
        name, *at = key if isinstance(key, tuple) else (key,)
        values = zip(effects.index.names[1:], at, strict=True)
        given = ", ".join(f"{m} = {v if isinstance(v, str) else f'{v:.3g}'}" for m, v in values if pd.notna(v))
        where = f", at {given}," if given else ""
        if " - " in name:
            one, other = (words(part) for part in name.split(" - "))
            what = f"The difference between the {one} and the {other}"
        elif name.startswith("index_"):
            what = f"The index of moderated mediation ({name.removeprefix('index_')})"
        else:
            what = f"The average {words(name)}"
        found.append(f"{what}{where} is {estimate_words(row, level)}.")
    return found


def shares(fit: Fit, level: float) -> list[str]:
    """The share of clusters with a positive indirect effect, of a model without moderators."""
    if not fit.spec.has_effects or fit.spec.moderators or not fit.system.random_labels:
        return []
    if not effects_vary(fit):
        return []
    found = []
    for name, row in fit.heterogeneity(level).iterrows():
        effect = str(name).removeprefix("share_").removesuffix("_positive")
        if effect != name and row["se"] > 0:
            shown, low, high = (f"{100 * row[column]:.1f}" for column in ("estimate", "ci_lower", "ci_upper"))
            found.append(
                f"By the model the {words(effect)} is positive in {shown}% of clusters ({100 * level:g}% CI "
                f"{low}% to {high}%)."
            )
    return found


def effects_vary(fit: Fit) -> bool:
    """Whether some indirect effect can differ between clusters: not one that runs between them."""
    return any(row.suffix != "_between" for row in estimands_of(fit).rows if row.kind == "indirect")


def levels_differ(conflation: Conflation | str) -> list[str]:
    """Whether the paths within and between clusters differ, in one sentence, and what to do; nothing without a test."""
    if isinstance(conflation, str) or np.isnan(conflation.test.p):
        return []
    spec = conflation.fit.spec
    test = f"χ²({conflation.test.df})\u00a0=\u00a0{conflation.test.statistic:.2f}, p\u00a0{_p(conflation.test.p)}"
    if conflation.test.p >= DIFFERENT:
        return [f"There is no sign that paths within and between clusters differ ({test})."]
    if not isinstance(spec, Mediation):  # the model with cluster means that was fitted for the test
        do = "one path for both is a mixture of the two, so fit the model with center='cluster' and read its effects"
    else:
        do = "read the effects of each level by itself"
        if spec.center == "cluster":
            do += (
                "; where the slopes of a and b covary, coefficients between clusters differ from those within for that "
                "reason, too"
            )
    return [f"Paths within and between clusters differ ({test}): {do}."]


def estimate_words(row: pd.Series, level: float) -> str:
    """``0.473 (SE 0.055, 95% CI 0.365 to 0.580, p <0.001)``."""
    digits = decimals([row["se"]], 2)
    estimate, se, low, high = (rounded(row[name], digits) for name in ("estimate", "se", "ci_lower", "ci_upper"))
    if not se:
        return f"{estimate}, without a standard error: these data leave it, or how precise it is, undetermined"
    return f"{estimate} (SE\u00a0{se}, {100 * level:g}%\u00a0CI {low} to {high}, p\u00a0{_p(row['p'])})"


def _p(value: float) -> str:
    text = p_value(value)
    return text.replace("<", "<\u00a0") if text.startswith("<") else f"=\u00a0{text}"


def convergence(fit: Fit) -> list[str]:
    """Whether the estimates are those of the maximum, and whether the random effects are identified."""
    if fit.converged:
        first = (
            f"The optimiser reached the maximum after {fit.n_iter} iterations. There the scaled gradient has the norm "
            f"{fit.grad_norm:.1e}, the Newton decrement, which is what one more step would gain in log likelihood, is "
            f"{fit.decrement:.1e}"
        )
        first += "." if fit.flat else ", and the Hessian is positive definite."
    else:
        first = f"The optimiser did not reach its convergence criterion, so do not use these estimates: {fit.message}."
    if fit.singular:
        second = (
            "The covariance of the random effects is singular: a variance is estimated as zero, or a correlation as "
            f"one. {'' if fit.cautions else 'The averages stand, but '}{'S' if fit.cautions else 's'}tandard errors of "
            "(co)variances and intervals that rest on normality are rough; consider fewer random effects."
        )
    elif fit.system.random_labels:
        second = (
            "The covariance of the random effects is not singular: no variance is zero and no correlation is one to "
            "the precision of the fit."
        )
    else:
        second = "The model has no random effects."
    extra = [f"{caution[0].upper()}{caution[1:]}." for caution in fit.cautions]
    extra += ["Standard errors take the rank of that covariance as known."] if fit.reduced_rank else []
    if fit.flat:
        extra.append(
            f"Not identified: the likelihood is flat in {listed(fit.unknown)}, or in variances that their standard "
            "errors depend on. These parameters, and effects that depend on them, have no standard errors."
        )
    if fit.too_few_clusters:
        extra.append(
            f"{fit.n_clusters} clusters do not identify the covariance of {fit.largest_group} random effects: use "
            "fewer of them."
        )
    if fit.imprecise:
        extra.append(
            f"A random effect varies {fit.largest_share:.0e} times as much as the residual of its outcome, which "
            "leaves few correct digits in double precision."
        )
    return [first, second, *extra]


def methods(fit: Fit, level: float, replicates: Replicates | None, kind: IntervalKind) -> str:
    """A paragraph for the methods section of a paper."""
    spec = fit.spec
    rows = fit.sample_summary.rows - fit.sample_summary.dropped
    reml = "restricted maximum likelihood (REML; Patterson & Thompson, 1971)" if fit.reml else "maximum likelihood"
    sentences = []
    if isinstance(spec, Mediation):
        sentences.append(
            f"We fitted a multilevel mediation model{_design(fit)} (Bauer, Preacher, & Gil, 2006; Kenny, Korchmaros, & "
            f"Bolger, 2003) with {spec.x} as predictor, {listed(spec.mediators)} as "
            f"{'mediators' if len(spec.mediators) > 1 else 'mediator'} and {spec.y} as outcome"
        )
    else:
        sentences.append(f"We fitted a system of linear mixed models for {listed(fit.system.outcomes)}")
    sentences[0] += (
        f" to {rows} observations in {fit.n_clusters} clusters ({spec.cluster}; on average "
        f"{rows / fit.n_clusters:.1f} observations per cluster)."
    )
    used = {n for n, e in zip(fit.sample_summary.used, fit.system.equations, strict=True) if e.level == 1}
    if len(used) > 1:
        sentences.append(
            "Rows with missing values counted in the equations that they complete, which takes values as missing at "
            "random."
        )
    if fit.sample_summary.dropped:
        sentences.append(f"{fit.sample_summary.dropped} rows with missing values were left out.")
    several = len(fit.system.outcomes) > 1
    sentences.append(
        f"{'All equations were estimated jointly' if several else 'The model was estimated'} by {reml}, in jaxmed "
        f"{__version__}."
    )
    random = fit.system.random_labels
    if random:
        how = {
            "unstructured": "an unstructured covariance matrix",
            "diagonal": "no covariances",
            "block": "covariances within equations only",
        }
        structure = how.get(str(fit.system.covariance), "covariances within given groups only")
        sentences.append(f"Random effects across clusters were those of {listed(random)}, with {structure}.")
    if fit.system.residual_pairs:
        sentences.append("Residuals of parallel mediators were allowed to covary within rows.")
    if isinstance(spec, Mediation):
        if spec.is_split(fit.facts):
            only = spec.center is None
            split = f"{listed(spec.mediators)} {'were' if len(spec.mediators) > 1 else 'was'}"
            sentences.append(
                f"{split if only else 'The predictor and the mediators were'} split into cluster means and deviations "
                "from them, to tell within from between effects (Zhang, Zyphur, & Preacher, 2009)."
            )
        sentences.append(
            "The average indirect effect is the expected product of the paths over clusters, E(a_j b_j) = ab + "
            "cov(a_j, b_j)" + (", and correspondingly along chains of mediators." if spec.serial else ".")
        )
        if spec.moderators:
            sentences.append(
                f"Conditional effects were evaluated at values of {listed(name for name, _ in spec.moderators)}, with "
                "the index of moderated mediation (Hayes, 2015) where it is defined and regions of significance "
                "(Bauer & Curran, 2005)."
            )
    kinds = {
        "joint": "the joint covariance matrix of fixed effects and (co)variances",
        "robust": "the cluster-robust covariance matrix of fixed effects and (co)variances, since residuals are "
        "negatively correlated within clusters",
    }
    sentences.append(
        f"Standard errors come from {kinds[fit.default_se]}, those of effects by the delta method; intervals have the "
        f"level {100 * level:g}%."
    )
    if fit.flat:
        sentences.append(
            f"The likelihood was flat in {listed(fit.unknown)}; these parameters, and effects that depend on them, "
            "have no standard errors because they are not identified."
        )
    if replicates is not None:
        sentences.append(
            f"{kind.capitalize() if kind not in ('bc', 'bca') else {'bc': 'BC', 'bca': 'BCa'}[kind]} bootstrap "
            f"intervals (Davison & Hinkley, 1997) rest on {len(replicates) - len(replicates.failures())} replicates of "
            f"a {METHODS.get(replicates.method, replicates.method)} (seed {replicates.seed})."
        )
    return " ".join(sentences)


def _design(fit: Fit) -> str:
    """`` (1-1-1)``, by the levels of x, m and y."""
    spec = fit.spec
    if not isinstance(spec, Mediation) or len(spec.mediators) > 1:
        return ""
    x = fit.facts.cluster_level.issuperset(edge.source for edge in spec.edges_in(fit.facts) if edge.kind == "a")
    levels = ["2" if x else "1"]
    levels += ["2" if name in fit.facts.cluster_level else "1" for name in (*spec.mediators, spec.y)]
    return f" ({'-'.join(levels)})"


def references(fit: Fit, replicates: Replicates | None) -> list[str]:
    """Works that the methods paragraph cites, by author."""
    spec = fit.spec
    chosen = {"patterson"} if fit.reml else set()
    if isinstance(spec, Mediation):
        chosen |= {"bauer", "kenny"}
        chosen |= {"hayes", "bauer_curran"} if spec.moderators else set()
        chosen |= {"zhang"} if spec.is_split(fit.facts) else set()
    chosen |= {"davison"} if replicates is not None else set()
    return sorted(REFERENCES[name] for name in chosen)


def versions() -> dict[str, str]:
    """Versions of what computed the report."""
    found = {"jaxmed": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def call(fit: Fit) -> str:
    """Python that fits the model again."""
    plain = fit.spec.to_dict()
    kind = plain.pop("kind")
    defaults = {"random": "all", "covariance": "unstructured", "serial": False, "residuals": "correlated"}
    given = {
        name: value
        for name, value in plain.items()
        if value is not None and value != [] and not (name in defaults and value == defaults[name])
    }
    if kind == "system":
        equations = given.pop("equations")
        made = "".join(f"        jm.Equation({_arguments(equation)}),\n" for equation in equations)
        model = f"jm.System(\n    [\n{made}    ],\n    {_arguments(given)},\n)"
    else:
        model = "jm.Mediation(\n" + "".join(f"    {name}={value!r},\n" for name, value in given.items()) + ")"
    available, listwise = (equation_groups(fit.system, missing) for missing in ("available", "listwise"))
    read = fit.moments.groups, fit.moments.averaged
    left_out = any(fit.sample_summary.missing.values()) and read == listwise != available
    missing = ", missing='listwise'" if left_out else ""
    return f"import jaxmed as jm\n\nmodel = {model}\nfit = jm.fit(DATA, model, reml={fit.reml}{missing})\n"


def _arguments(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())
