"""BatchNorm with a second set of statistics and weights, for adversarial images. Xie et al. 2020, arXiv:1911.09665."""

import copy
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class DualNorm(nn.Module):
    """Two BatchNorm layers in the place of one; which of them works, `adversarial` says."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.clean = norm
        self.other = copy.deepcopy(norm)
        self.adversarial = False

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        out: Tensor = (self.other if self.adversarial else self.clean)(x)
        return out


def dual(network: nn.Module) -> nn.Module:
    """The network with every BatchNorm doubled, in place."""
    return _replaced(network, lambda part: DualNorm(part) if isinstance(part, _BatchNorm) else None)


def single(network: nn.Module) -> nn.Module:
    """A copy of the network with the clean statistics alone."""
    return _replaced(copy.deepcopy(network), lambda part: part.clean if isinstance(part, DualNorm) else None)


def choose(network: nn.Module, *, adversarial: bool) -> None:
    """Say which statistics the network works with, and updates in train mode."""
    for part in network.modules():
        if isinstance(part, DualNorm):
            part.adversarial = adversarial


def _replaced(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The network with parts replaced, in place; what a replacement holds is not looked into."""
    if (made := replacement(network)) is not None:
        return made
    for name, part in network.named_children():
        setattr(network, name, _replaced(part, replacement))
    return network
