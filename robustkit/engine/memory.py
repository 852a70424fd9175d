"""How many samples fit into memory at once."""

from typing import Literal

import torch
from torch import Tensor

from robustkit.models.examination import Subject
from robustkit.numerics import devices

MOST_IN_FLIGHT = 512


def samples_in_flight(batch_size: int | Literal["auto"], subject: Subject, x: Tensor) -> int:
    """How many samples an attack works on at once: whole tiles, as many as memory for a backward pass allows.

    Of a randomised model one tile: its noise is that of a tile, and so the batch size changes nothing.
    """
    network = subject.reference
    if subject.facts.randomised:
        return network.tile
    if batch_size != "auto":
        return max(1, batch_size // network.tile) * network.tile
    if not subject.facts.differentiable:
        return max(1, MOST_IN_FLIGHT // network.tile) * network.tile
    kept = 0

    def pack(saved: Tensor) -> Tensor:
        nonlocal kept
        kept += saved.numel() * saved.element_size()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        network.tracked(x[:1])
    free = devices.free_memory(network.device)
    return min(MOST_IN_FLIGHT // network.tile or 1, max(1, int(free / 4 / max(1, kept)))) * network.tile
