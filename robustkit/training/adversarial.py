"""Adversarial images for training: what the recipes share. For training and its progress only; no evaluation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Draws, Images, Labels

Divergence = Callable[[Tensor], Tensor]  # logits of a batch to one number that is to grow


def pgd(
    network: nn.Module,
    x: Images,
    y: Labels,
    *,
    eps: float,
    steps: int,
    rate: float,
    draws: Draws | None,
    loss: Divergence | None = None,
) -> Images:
    """Images of the linf ball and the box that raise a loss, by default the cross-entropy, in steps of `rate`.

    With `draws` from a uniform random start, else from x. The network stays in the mode it is in.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    noise = torch.zeros_like(x) if draws is None else eps * (2 * draws.uniform(x.shape[1:]) - 1)
    adv = (x + noise).clamp(low, high)
    for _ in range(steps):
        adv.requires_grad_(True)
        logits = network(adv)
        value = F.cross_entropy(logits, y, reduction="sum") if loss is None else loss(logits)
        (grad,) = torch.autograd.grad(value, adv)
        adv = (adv.detach() + rate * grad.sign()).clamp(low, high)
    return adv
