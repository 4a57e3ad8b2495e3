"""The model as it is written down: terms, equations, mediation models and the effects that follow from them."""

from __future__ import annotations

from jaxmed._model.choices import Center, Intercepts, Residuals, Structure
from jaxmed._model.data_facts import DataFacts
from jaxmed._model.estimands import Edge, Estimands, Row
from jaxmed._model.mediation import MODEL, Mediation, Spec, check_spec, from_dict
from jaxmed._model.system import Equation, System
from jaxmed._model.terms import INTERCEPT, category_text, check_terms, factors, find_category, varies_within

__all__ = [
    "INTERCEPT",
    "MODEL",
    "Center",
    "DataFacts",
    "Edge",
    "Equation",
    "Estimands",
    "Intercepts",
    "Mediation",
    "Residuals",
    "Row",
    "Spec",
    "Structure",
    "System",
    "category_text",
    "check_spec",
    "check_terms",
    "factors",
    "find_category",
    "from_dict",
    "varies_within",
]
