"""Figures for papers from stored records: which kinds there are, and the module that draws each.

A module's `draw(sources, width)` gives a matplotlib Figure and touches no pyplot state. Needs matplotlib.
"""

from collections.abc import Mapping

KINDS: Mapping[str, tuple[str, str]] = {
    "eps": ("eps", "accuracy over eps, from sweeps, minimal attacks, or runs at several eps"),
    "transfer": ("transfer", "a transfer run's success rates as a heat map"),
    "attacks": ("attacks", "the accuracy that each attack leaves"),
    "steps": ("steps", "accuracy over attack steps, from runs with steps=… or an audit's series"),
    "queries": ("queries", "the share broken over forward passes"),
    "scatter": ("scatter", "clean against robust accuracy of several runs"),
    "grid": ("grid", "images, adversarials and perturbations, from a run that kept them"),
}
