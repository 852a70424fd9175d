"""What an answer of a model takes, in passes of the network inside it: an inner loop makes a defense look free.

Counts of passes see the outer model only. What the module declares (`cost()`) is taken; else the floating-point
operations of one call, and of one gradient, are put beside those of one forward pass of the largest network inside.
Croce et al. 2022, arXiv:2202.13711: compare with that network at equal cost.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustkit.api import Images
from robustkit.models import capabilities, standins
from robustkit.models.oracle import Network

DEAR = 1.5  # passes from which on a reader must be told


class Cost(NamedTuple):
    """Forward passes of the network inside that one answer takes, and one gradient (a backward pass is about two)."""

    answering: float
    gradient: float

    @property
    def message(self) -> str:
        """What a record says; empty where an answer is about one pass."""
        if self.answering < DEAR:
            return ""
        return (
            f"one answer takes {self.answering:.3g} forward passes of the network inside, one gradient "
            f"{self.gradient:.3g}: compare with that network at equal cost"
        )


def cost_of(network: Network, x: Images, classes: int) -> Cost | None:
    """The cost of a model on a tile of images; None where no network inside is found that it could be put beside."""
    if declared := capabilities.cost(network.module):
        return Cost(*declared)
    tile = network.tiles(x[: network.tile])[0]
    try:
        names = [] if capabilities.members(network.module) else standins.networks_inside(network.module, tile, classes)
        if not names:
            return None
        bare = _operations(network.module.get_submodule(names[0]), tile)
        whole, climbing = _operations(network.module, tile), _operations(network.module, tile, back=True)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # compiled code, TorchScript and integers may refuse to be counted
        return None
    return Cost(whole / bare, climbing / bare) if bare else None


class _Counting(TorchDispatchMode):
    """Adds up the floating-point operations of what torch can count: products of matrices, convolutions, attention.

    Torch's own counter hooks modules, and an inner loop's derivatives break it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += int(count(*args, **(kwargs or {}), out_val=out))
        return out


def _operations(module: nn.Module, tile: Images, *, back: bool = False) -> int:
    """Floating-point operations of one call, and of going back."""
    images = tile.clone().requires_grad_(back)
    with torch.set_grad_enabled(back), _Counting() as counted:
        logits = module(images)
        if back and logits.requires_grad:
            torch.autograd.grad(logits.sum(), images, allow_unused=True)
    found: int = counted.total
    return found
