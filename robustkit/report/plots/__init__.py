"""Figures for papers from stored records: which kinds there are. Each has a module of its name.

Its `draw(sources, width)` gives a matplotlib Figure and touches no pyplot state. Needs matplotlib.
"""

from collections.abc import Mapping

KINDS: Mapping[str, str] = {
    "eps": "accuracy over eps, from sweeps, minimal attacks, or runs at several eps",
    "transfer": "a transfer run's success rates as a heat map",
    "attacks": "the accuracy that each attack leaves",
    "steps": "accuracy over attack steps, from runs with steps=… or an audit's series",
    "queries": "the share broken over forward passes",
    "scatter": "clean against robust accuracy of several runs",
    "grid": "images, adversarials and perturbations, from a run that kept them",
}
