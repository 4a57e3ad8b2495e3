"""The model as it is written down: terms, equations, mediation models and the effects that follow from them."""
