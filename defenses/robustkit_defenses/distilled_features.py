"""Distilled features: an image near a source that looks to one layer of a network like a target.

Ilyas et al. 2019, arXiv:1905.02175; as DVERGE uses it: Yang et al. 2020 (NeurIPS), arXiv:2009.14720.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from robustkit.api import Images, Labels
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit.training.adversarial import cross_entropy
from robustkit.training.recipes import in_eval_mode
from robustkit_defenses.taps import Tap, features


@dataclass(frozen=True, slots=True)
class Distillation:
    """How far and how to search: linf `eps`, and steps of `step_size`·eps along the sign of the accumulated gradient.

    A step of 0.1 and 10 steps is what the paper's program uses, without a random start. The network is in eval mode
    meanwhile; with `faithful` it stays as it is, in training as there in train mode: BatchNorm then uses the batch's
    statistics, and its running ones move with every pass.
    """

    eps: float = 0.07
    steps: int = 10
    step_size: float = 0.1
    momentum: float = 1.0
    faithful: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1 or self.steps < 1 or self.step_size <= 0 or self.momentum < 0:
            raise UsageError(
                "dverge: eps is a share of the pixel range above 0, steps and step_size (in units of eps) must "
                f"be positive and momentum at least 0; not eps={self.eps}, steps={self.steps}, "
                f"step_size={self.step_size}, momentum={self.momentum}"
            )


def distilled(network: nn.Module, source: Images, target: Images, tap: Tap, settings: Distillation) -> Images:
    """Images of [0,1] within eps of `source` whose features at `tap` are near those of `target`, row by row.

    What is lowered is the mean squared difference of a row's features; its gradient counts with an L1 length of 1. The
    network's weights get no gradients.

    Raises:
        UsageError: if the network does not come by the tap.
    """
    low, high = (source - settings.eps).clamp_min(0), (source + settings.eps).clamp_max(1)
    z, gathered = source.detach(), torch.zeros_like(source)
    with contextlib.nullcontext() if settings.faithful else in_eval_mode(network):
        with torch.no_grad():
            wanted = features(network, target, tap)
        for _ in range(settings.steps):
            z = z.detach().requires_grad_(True)
            loss = (features(network, z, tap) - wanted).square().flatten(1).mean(1).sum()
            (grad,) = torch.autograd.grad(loss, z)
            gathered = settings.momentum * gathered + norms.unit(grad, "l1")
            z = (z.detach() - settings.step_size * settings.eps * gathered.sign()).clamp(low, high)
    return z


def others(network: nn.Module, images: Sequence[Images], y: Labels, own: int) -> Tensor:
    """DVERGE's loss of member `own`: the sum, over all other members, of its cross-entropy on what they distilled."""
    return rows.added([cross_entropy(network(x), y) for j, x in enumerate(images) if j != own])


@torch.no_grad()
def diversity(networks: Sequence[nn.Module], images: Sequence[Images], y: Labels) -> float:
    """How badly members do on each other's distilled features: ½(CE(f_i(x'_j), y) + CE(f_j(x'_i), y)) over pairs.

    The paper's measure of diversity, for one batch and one layer; `images[i]` were distilled from `networks[i]`.
    """
    loss = [[float(cross_entropy(network(x), y)) for x in images] for network in networks]
    pairs = list(combinations(range(len(networks)), 2))
    return sum((loss[i][j] + loss[j][i]) / 2 for i, j in pairs) / len(pairs)
