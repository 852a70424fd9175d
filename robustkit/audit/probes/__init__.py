"""Probes: each asks one question of a model, for few passes. One probe, one file: cost, rule, evidence text, samples.

Every limit stands in `robustkit.audit.rules`; passes are rows of the model a look, unless a file says otherwise.
"""
