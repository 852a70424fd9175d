"""Adversarial images for training, and losses: what the recipes share. No evaluation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Draws, Images, Labels, Logits
from robustkit.errors import UsageError

BatchLoss = Callable[[Logits], Tensor]  # the logits of a batch to one number that is to grow


def pgd(
    network: nn.Module,
    x: Images,
    *,
    eps: float,
    steps: int,
    step_size: float,
    loss: BatchLoss,
    start: Tensor | None = None,
) -> Images:
    """Images of the linf ball and the box that raise a loss, in steps along its gradient's sign.

    From x, or from x + `start` brought into the ball and the box. The network stays in the mode it is in, and its
    weights get no gradients.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    adv = x if start is None else (x + start).clamp(low, high)
    for _ in range(steps):
        adv = adv.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(loss(network(adv)), adv, materialize_grads=True)  # zeros where nothing flows
        adv = (adv.detach() + step_size * grad.sign()).clamp(low, high)
    return adv.detach()


def uniform_start(x: Images, eps: float, draws: Draws) -> Tensor:
    """Uniform noise of the linf ball."""
    return eps * (2 * draws.uniform(x.shape[1:]) - 1)


def cross_entropy(logits: Logits, y: Labels) -> Tensor:
    """The mean over the batch, in float32 whatever the forward pass was in."""
    return F.cross_entropy(logits.float(), y)


def summed_cross_entropy(y: Labels) -> BatchLoss:
    """The sum over the batch as a loss for `pgd`: no image's gradient depends on how many there are."""
    return lambda logits: F.cross_entropy(logits.float(), y, reduction="sum")


def accuracy(logits: Logits, y: Labels) -> Tensor:
    """The share of the batch that is classified as `y`."""
    return (logits.argmax(1) == y).float().mean()


def check_ball(name: str, eps: float, steps: int = 1, step_size: float = 0.0) -> None:
    """Check settings of a recipe.

    Raises:
        UsageError: for an eps outside (0, 1], no steps, or a negative size of step.
    """
    if not 0 < eps <= 1:
        raise UsageError(f"{name}: eps must be above 0 and at most 1 (pixels are in [0,1]), not {eps!r}; write 8/255")
    if steps < 1:
        raise UsageError(f"{name}: steps must be at least 1, not {steps}")
    if not 0 <= step_size < float("inf"):
        raise UsageError(f"{name}: step_size must be positive, or 0 for the usual one, not {step_size!r}")
