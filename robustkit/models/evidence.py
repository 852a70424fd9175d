"""What an attack's gradients were worth, a sample: counted while they pass, for next to nothing."""

import torch
from torch import Tensor

from robustkit.api import Labels, Logits
from robustkit.numerics import devices, rows

# A gradient below this in every entry is flat: entries a rounding error smaller than its largest are no floats at all.
FLAT = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps


class Climb:
    """The gradients of the model itself that an attack asked for while a sample stood, one row a sample of a batch.

    Those of a sample that is reached say nothing: a loss may well be flat where its aim is met. Nor do those of members
    and stand-ins.

    Attributes:
        asked: how many there were.
        flat: how many of them were zero, or all but zero, or not finite.
        first, last: the first and the last value of a loss with one value a sample; NaN if there was none.
    """

    def __init__(self, y: Labels, target: Labels | None) -> None:
        self.y, self.target = y, target
        self.asked, self.flat = torch.zeros_like(y), torch.zeros_like(y)
        self.first = torch.full(y.shape, torch.nan, dtype=devices.widest(y.device), device=y.device)
        self.last = self.first.clone()

    def saw(self, samples: Tensor, logits: Logits, grad: Tensor, loss: Tensor | None = None) -> None:
        """Note the gradient at these samples' images, (batch, …) or of several losses (losses, batch, …).

        Whoever hands in other images than one a sample goes uncounted.
        """
        several = loss is not None and loss.dim() == 2
        each = grad if several else grad[None]
        if each.shape[1] != len(samples):
            return
        target = None if self.target is None else self.target[samples]
        stands = ~rows.reached(logits, self.y[samples], target)
        size = each.detach().abs().flatten(2).amax(2)  # NaN where an entry is
        flat = ~((size >= FLAT) & (size < torch.inf))
        self.asked.index_add_(0, samples, stands.long() * len(each))
        self.flat.index_add_(0, samples, (flat & stands).long().sum(0))
        if loss is not None and not several:
            # A sample may have several rows, whose highest value counts: writing them one by one has no order.
            value = torch.where(stands, loss.detach().to(self.first.dtype), -torch.inf)
            highest = torch.full_like(self.last, -torch.inf).scatter_reduce_(0, samples, value, "amax")
            known = highest > -torch.inf
            self.first = torch.where(known & self.first.isnan(), highest, self.first)
            self.last = torch.where(known, highest, self.last)

    def none_flows(self) -> None:
        """Note that the attack asked in vain for a gradient at every sample."""
        self.asked += 1
        self.flat += 1

    @property
    def share(self) -> Tensor:
        """The share of each sample's gradients that were flat; NaN where none was asked for."""
        return self.flat.to(self.first.dtype) / self.asked
