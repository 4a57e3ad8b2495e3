"""Sentences about a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxmed._model import DataFacts, Spec


def negative_icc_notes(negative_icc: Mapping[str, float], facts: DataFacts) -> list[str]:
    """What is noted of outcomes whose residuals are negatively correlated within clusters, a sentence each."""
    kinds = (
        "those of effects are cluster-robust by default (covariance='joint' gives the others; profile and "
        "Satterthwaite stay joint)"
    )
    return [
        f"centring {outcome!r} by cluster left its rows an intraclass correlation of about {value:.2f}, for which "
        f"joint standard errors are too small; {kinds}"
        if outcome in facts.equal_means
        else f"rows of one cluster are less alike in {outcome!r} than rows of different clusters: its residuals have "
        f"an intraclass correlation of about {value:.2f}, which no random intercept can show, so joint standard errors "
        f"are wrong; {kinds}"
        for outcome, value in negative_icc.items()
    ]


def parameter_in_words(label: str) -> str:
    """A parameter as tables name it: ``"m~1~~y~1"`` is ``"cov(m~1,y~1)"``."""
    one, pair, other = label.partition("~~")
    return label if not pair else f"var({one})" if one == other else f"cov({one},{other})"


def is_across(label: str) -> bool:
    """Whether a parameter is the covariance of random effects of different outcomes."""
    one, pair, other = label.partition("~~")
    return bool(pair) and "~" in one and one.partition("~")[0] != other.partition("~")[0]


def fewer_covariances(spec: Spec, facts: DataFacts, labels: Sequence[str]) -> str:
    """Which covariance to hold at zero, where some of the parameters that are not identified are covariances."""
    if spec.free_intercepts(facts):
        return ", or fit with intercepts='independent'"
    across = [tuple(label.split("~~")) for label in labels if is_across(label)]
    return f", or hold covariances between different outcomes at zero, such as zero=[{across[0]}]" if across else ""
