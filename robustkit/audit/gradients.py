"""What the gradients of a model are worth, measured on some images: do they vanish, mislead, shatter, agree?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.api import Images, Labels, Logits
from robustkit.models.oracle import Network
from robustkit.numerics import devices, norms, rows
from robustkit.numerics.streams import SampleDraws, key_of

SCALES = (1.0, 10.0, 100.0)
STEPS = (1 / 255, 4 / 255, 16 / 255)  # of each pixel; a rounded image takes a larger one to move at all
RADII = (0.25 / 255, 1 / 255, 4 / 255)
Loss = Callable[[Logits, Labels], Tensor]


class Vanishing(NamedTuple):
    """Shares of images with a gradient that is exactly zero.

    Of the cross-entropy at each of SCALES, of its logarithm in float64, and of the margin.
    """

    entropy: tuple[float, ...]
    of_log: float
    of_margin: float


class Misleading(NamedTuple):
    """Shares of images whose margin is not lowered by a step of each of STEPS against its gradient; by none of them."""

    shares: tuple[float, ...]
    always: float


class Outputs(NamedTuple):
    """The share of output values that differ from each other, and each image's margin."""

    distinct: float
    margins: Tensor

    def saturated(self, margin: float) -> float:
        """The share of images with a larger margin."""
        return rows.share(self.margins > margin)


def outputs(network: Network, x: Images) -> Outputs:
    """How the model's outputs look."""
    logits = _logits(network, x)
    distinct = len(torch.unique(logits))
    return Outputs(distinct / logits.numel(), rows.margin(logits, logits.argmax(1)))


def vanishing(network: Network, x: Images) -> Vanishing:
    """Where gradients of the model's own decision vanish."""
    losses: list[Loss] = [_scaled(scale) for scale in SCALES]
    zero = [~grad.ne(0).flatten(1).any(1) for grad in _gradients(network, x, [*losses, _log_entropy, rows.margin])]
    *entropy, of_log, of_margin = map(rows.share, zero)
    return Vanishing(tuple(entropy), of_log, of_margin)


def misleading(network: Network, x: Images) -> Misleading:
    """Where steps against the gradient of the margin do not lower it, though that gradient is not zero."""
    logits = _logits(network, x)
    decision = logits.argmax(1)
    (grad,) = _gradients(network, x, [rows.margin])
    alive = grad.ne(0).flatten(1).any(1)
    before = rows.margin(logits, decision)
    fails = [
        alive & (rows.margin(_logits(network, (x - step * grad.sign()).clamp(0, 1)), decision) >= before)
        for step in STEPS
    ]
    return Misleading(tuple(map(rows.share, fails)), rows.share(torch.stack(fails).all(0)))


def steadiness(network: Network, x: Images, indices: Tensor) -> tuple[float, ...]:
    """The mean cosine of the margin's gradient with that at points within each of RADII; empty if they vanish."""
    (here,) = _gradients(network, x, [rows.margin])
    draws = SampleDraws(key_of("robustkit audit steadiness"), indices)
    found = []
    for step, radius in enumerate(RADII):
        noise = (2 * draws.uniform(x.shape[1:], step=step) - 1).to(x)
        (there,) = _gradients(network, (x + radius * noise).clamp(0, 1), [rows.margin], _logits(network, x).argmax(1))
        found.append(_mean_cosine(here, there))
    return () if any(value is None for value in found) else tuple(value for value in found if value is not None)


def agreement(network: Network, x: Images, averaged: Sequence[int]) -> tuple[float, ...]:
    """Of a randomised model: the mean cosine of two independent means of k gradients, for each k of `averaged`."""
    x = x[: network.tile]
    decision = _logits(network, x).argmax(1)

    def mean(k: int, side: int) -> Tensor:
        seeded = (network.seeded("audit agreement", k, side, draw) for draw in range(k))
        return rows.average([_gradients(one, x, [rows.margin], decision)[0] for one in seeded])

    return tuple(_mean_cosine(mean(k, 0), mean(k, 1)) or 0.0 for k in averaged)


def _scaled(scale: float) -> Loss:
    return lambda logits, label: F.cross_entropy(logits / scale, label, reduction="none")


def _log_entropy(logits: Logits, label: Labels) -> Tensor:
    """The logarithm of the cross-entropy, which in float64 does not underflow: for a sure model minus the margin."""
    logits = devices.wide(logits)
    hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, label[:, None], True)
    lead = logits.masked_fill(hidden, -torch.inf).logsumexp(1) - logits.gather(1, label[:, None])[:, 0]
    return torch.where(lead < -30, lead, F.softplus(lead.clamp_min(-30)).log())


def _logits(network: Network, x: Images) -> Logits:
    """The logits; of a randomised model always with the same noise for the same tile."""
    return torch.cat([_quiet(network, k).logits(tile) for k, tile in enumerate(torch.split(x, network.tile))])


def _quiet(network: Network, tile: int) -> Network:
    return network if network.noise is None else network.seeded(*network.noise.key, "audit", tile)


def _gradients(network: Network, x: Images, losses: Sequence[Loss], decision: Labels | None = None) -> list[Tensor]:
    """The gradient of each loss with respect to each image, for the model's own decision unless another is given."""
    found: list[list[Tensor]] = [[] for _ in losses]
    for k, some in enumerate(torch.split(x, network.tile)):
        quiet = _quiet(network, k)
        tiles = quiet.tracked(some)
        logits = tiles[0].outputs.logits.detach().requires_grad_(True)
        label = logits.detach().argmax(1)
        if decision is not None:
            label[: len(some)] = decision[k * network.tile :][: len(some)]
        with torch.enable_grad():
            values = [loss(logits, label).sum() for loss in losses]
        several = [torch.autograd.grad(value, [logits], materialize_grads=True) for value in values]
        for grads, grad in zip(found, quiet.pull(tiles, several)[0], strict=True):
            grads.append(grad[: len(some)].to(x.dtype))
    return [torch.cat(grads) for grads in found]


def _mean_cosine(a: Tensor, b: Tensor) -> float | None:
    """The mean over the images at which neither gradient is zero."""
    both = a.ne(0).flatten(1).any(1) & b.ne(0).flatten(1).any(1)
    if not bool(both.any()):
        return None
    return float(rows.dot(*(norms.unit(devices.wide(each[both])) for each in (a, b))).mean())
