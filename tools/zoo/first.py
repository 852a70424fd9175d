"""How the bundled networks were trained, before there were recipes: kept so that their bytes can be made again.

Baselines and published reports name their weights. Everything newer is trained by `robustkit train`.

Adversarial training: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Dataset, Images, Labels


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. With `eps` above 0, on the images that PGD makes in that linf ball; the rate falls as a cosine."""

    epochs: int = 60
    batch: int = 64
    rate: float = 2e-3
    weight_decay: float = 1e-4
    eps: float = 0.0
    steps: int = 10
    seed: int = 0


class EpochDone(NamedTuple):
    """Progress: the epoch just finished (from 1), of how many, and on its training images loss and accuracy."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float


def train(
    build: Callable[[], nn.Module], data: Dataset, plan: Plan, on_event: Callable[[EpochDone], None]
) -> nn.Module:
    """A network trained from scratch, in eval mode.

    The weights start from `plan.seed` and everything else that is random comes from one generator of its own; the
    global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        network = build().train()
    generator = torch.Generator().manual_seed(plan.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.rate, weight_decay=plan.weight_decay)
    for epoch in range(plan.epochs):
        order = torch.randperm(len(data), generator=generator).tolist()
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * (1 + math.cos(math.pi * epoch / plan.epochs)) / 2
        loss_sum, correct = 0.0, 0
        for start in range(0, len(order), plan.batch):
            x, y = data.batch(order[start : start + plan.batch])
            if plan.eps > 0:
                x = pgd(network, x, y, plan.eps, plan.steps, generator)
            logits = network(x)
            loss = F.cross_entropy(logits, y)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss_sum += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
        on_event(EpochDone(epoch + 1, plan.epochs, loss_sum / len(data), correct / len(data)))
    return network.eval()


def pgd(network: nn.Module, x: Images, y: Labels, eps: float, steps: int, generator: torch.Generator) -> Images:
    """Images of the linf ball that raise the loss: a random start, then steps of 2.5·eps/steps. For training only."""
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    adv = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(low, high)
    for _ in range(steps):
        adv.requires_grad_(True)
        grad: Tensor = torch.autograd.grad(F.cross_entropy(network(adv), y, reduction="sum"), adv)[0]
        adv = (adv.detach() + 2.5 * eps / steps * grad.sign()).clamp(low, high)
    return adv
