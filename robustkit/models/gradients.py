"""What the gradients of a model are worth, seen on a few images: whether they flow, vanish or mislead."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.api import Images
from robustkit.models.oracle import Network, Noise
from robustkit.numerics import rows
from robustkit.numerics.streams import SampleDraws, key_of

STEP = 1 / 255  # of each pixel, small against any eps that is attacked


def gradient_flow(network: Network, x: Images) -> str:
    """Whether gradients reach the image: "all", "some" (zero for some of the images) or "none"."""
    grad = probed_gradient(network, x)
    if grad is None:
        return "none"
    alive = grad[: x.shape[0]].flatten(1).ne(0).any(1)
    return "all" if bool(alive.all()) else "some" if bool(alive.any()) else "none"


def probed_gradient(network: Network, x: Images) -> Tensor | None:
    """The gradient of a fixed mixture of the logits at some images, at most a tile of them; None if there is none."""
    try:
        (tile, *_) = network.tracked(x)
        logits = tile.outputs.logits[: x.shape[0]]
        if not logits.requires_grad:
            return None
        weights = SampleDraws(key_of("robustkit gradient probe"), torch.arange(x.shape[0], device=x.device))
        cotangent = weights.normal(tuple(logits.shape[1:])).to(logits)
        grad: Tensor | None = torch.autograd.grad(logits, tile.x, cotangent, allow_unused=True)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        return None
    return grad


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
    return float((zero | flat).double().mean()), float(misled.double().mean())


def _quiet(network: Network) -> Network:
    return network if network.noise is None else replace(network, noise=Noise("gradient faults"))


def _gradients(network: Network, x: Images) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, and the gradients of the cross-entropy and of the margin of the decision."""
    (tile,) = network.tracked(x)
    logits = tile.outputs.logits
    decision = logits.detach().argmax(1)
    of_entropy, of_margin = (
        torch.autograd.grad(value.sum(), tile.x, retain_graph=True, materialize_grads=True)[0][: len(x)].to(x.dtype)
        for value in (F.cross_entropy(logits, decision, reduction="none"), rows.margin(logits, decision))
    )
    return logits.detach()[: len(x)], of_entropy, of_margin
