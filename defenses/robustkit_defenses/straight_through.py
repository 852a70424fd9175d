"""BPDA: a step whose true forward has no useful gradient, with a stand-in for the way back.

Source: Athalye, Carlini, Wagner 2018, arXiv:1802.00420, section 4.1.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkit.api import Images


class StraightThrough(nn.Module):
    """Does `step` forwards and passes gradients back unchanged, as if it were the identity."""

    def __init__(self, step: Callable[[Images], Images]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Images) -> Images:
        """The step's images, bit for bit."""
        done: Images = _Identity.apply(x, self.step)
        return done


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        return step(x.detach())

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
