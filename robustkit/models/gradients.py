"""What the gradients of a model are worth, seen on a few images: whether they flow, vanish or mislead."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.api import Images
from robustkit.errors import NoGradientError, first_line
from robustkit.models.oracle import Network, Noise
from robustkit.models.state import quantised
from robustkit.numerics import devices, rows
from robustkit.numerics.streams import SampleDraws, key_of

STEP = 1 / 255  # of each pixel, small against any eps that is attacked


class Probe(NamedTuple):
    """The gradient of a fixed mixture of the logits at some images, at most a tile of them; None, and why, if none."""

    grad: Tensor | None
    why: str = ""

    @property
    def flow(self) -> str:
        """Whether gradients reach the image: "all", "some" (zero for some of the images) or "none"."""
        if self.grad is None:
            return "none"
        alive = self.grad.flatten(1).ne(0).any(1)
        return "all" if bool(alive.all()) else "some" if bool(alive.any()) else "none"


def probed_gradient(network: Network, x: Images) -> Probe:
    """The gradient at some images, as far as it can be had."""
    integers = "its weights are quantised, and torch goes back through floats only" if quantised(network.module) else ""
    x = x[: network.tile]
    try:
        (tile,) = network.tracked(x)
        logits = tile.outputs.logits[: x.shape[0]]
        if not logits.requires_grad:
            return Probe(None, integers or "its outputs are detached from its input, or are hard decisions")
        weights = SampleDraws(key_of("robustkit gradient probe"), torch.arange(x.shape[0], device=x.device))
        ((grad,), _) = network.pull([tile], [[weights.normal(tuple(logits.shape[1:])).to(logits)]])
    except NoGradientError as error:
        return Probe(None, integers or str(error))
    except (RuntimeError, NotImplementedError) as error:
        if devices.out_of_memory(error):
            raise
        return Probe(None, integers or f"torch says: {first_line(error)}")
    return Probe(grad[: x.shape[0]])


def gradient_faults(network: Network, x: Images) -> tuple[float, float]:
    """Two shares of the images `x` (at most one tile of them is looked at).

    The first: images whose gradient is exactly zero, of the cross-entropy of the model's own decision (saturated
    logits) or of its margin (steps, detached parts). The second: images at which a step of 1/255 against the gradient
    of the margin does not lower the margin, though that gradient is not zero (a backward pass that is not the
    forward's). A randomised model has the same noise before and after the step.
    """
    x = x[: network.tile]
    logits, of_entropy, of_margin = _gradients(_quiet(network), x)
    zero, flat = (~grad.ne(0).flatten(1).any(1) for grad in (of_entropy, of_margin))
    moved = _quiet(network).logits((x - STEP * of_margin.sign()).clamp(0, 1))
    decision = logits.argmax(1)
    misled = ~flat & (rows.margin(moved, decision) >= rows.margin(logits, decision))
    return rows.share(zero | flat), rows.share(misled)


def _quiet(network: Network) -> Network:
    return network if network.noise is None else replace(network, noise=Noise("gradient faults"))


def _gradients(network: Network, x: Images) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, and the gradients of the cross-entropy and of the margin of the decision."""
    tiles = network.tracked(x)
    logits = tiles[0].outputs.logits.detach()[: len(x)].requires_grad_(True)
    decision = logits.detach().argmax(1)
    with torch.enable_grad():
        values = [F.cross_entropy(logits, decision, reduction="none"), rows.margin(logits, decision)]
    several = [torch.autograd.grad(value.sum(), [logits], materialize_grads=True) for value in values]
    (of_entropy, of_margin), _ = network.pull(tiles, several)
    return logits.detach(), of_entropy[: len(x)].to(x.dtype), of_margin[: len(x)].to(x.dtype)
