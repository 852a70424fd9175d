"""How the probes ask: in the judge's tiles, with the same noise in every call of a randomised model, in float64."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkit.api import Images, Labels, Logits
from robustkit.errors import NoGradientError
from robustkit.models.oracle import Network
from robustkit.numerics import devices, rows

_KEY = ("robustkit audit", "probe")


class Look(NamedTuple):
    """What a probe may look at: some images, the judge's network, their places in the data, the seed of its draws."""

    network: Network
    x: Images
    indices: Tensor
    seed: int

    def first(self, n: int) -> "Look":
        """The first n images."""
        return self._replace(x=self.x[:n], indices=self.indices[:n])

    def through(self, module: nn.Module) -> "Look":
        """The same images, seen by a stand-in of the model."""
        return self._replace(network=replace(self.network, module=module, probabilities=False))


def held(network: Network) -> Network:
    """The network with its noise held: every first call has the same."""
    return network if network.noise is None else network.seeded(*_KEY)


def answers(network: Network, batches: Sequence[Images]) -> list[Logits]:
    """The logits for several batches of one size, float64.

    They share tiles, so that few calls are needed; not those of a randomised model, where noise belongs to a row.
    """
    if network.noise is not None:
        return [devices.wide(held(network).logits(batch)) for batch in batches]
    return list(torch.split(devices.wide(network.logits(torch.cat(list(batches)))), len(batches[0])))


def gradient(network: Network, x: Images, of: Labels, over: Labels) -> Images:
    """The gradient of z_of − z_over at each image, zero where none flows."""
    network = held(network)
    tiles = network.tracked(x)
    logits = torch.cat([tile.outputs.logits for tile in tiles])
    seeds = torch.zeros_like(logits)
    at = torch.arange(len(x), device=x.device)
    seeds[at, of], seeds[at, over] = 1.0, -1.0
    try:
        ((grad,), _) = network.pull(tiles, [[seeds]])
    except (NoGradientError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return torch.zeros_like(x)
    return grad[: len(x)].to(x.dtype)


def top_two(logits: Logits) -> tuple[Labels, Labels]:
    """The decision and its runner-up."""
    best = logits.topk(2, dim=1).indices
    return best[:, 0], best[:, 1]


def gap(logits: Logits, of: Labels, over: Labels) -> Tensor:
    """z_of − z_over: unlike a margin it has no kink where the rival changes."""
    at = torch.arange(len(logits), device=logits.device)
    return logits[at, of] - logits[at, over]


def scale_of(logits: Logits) -> Tensor:
    """The median margin of the model's own decisions: the unit in which outputs are compared."""
    return rows.margin(logits, logits.argmax(1)).median().clamp_min(torch.finfo(logits.dtype).tiny)
