"""Noise of a pass: fresh at each call, or made of the images themselves, as a trick that a second call does not see.

With noise made of its bytes an image always gets the same answer, and its neighbours get others: nothing is random
between calls, averaging over calls is of no use, and the function is as rough as it was.
"""

import math

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # SplitMix64, Steele 2014


class Noise:
    """The noise of one pass over a batch (batch, …): each call of a method is a further draw.

    Fresh noise is from the global generator, which the harness seeds for each call. `of_images`: a row's is a function
    of that row's bytes and of the number of the draw, whatever else is in the batch.
    """

    def __init__(self, x: Tensor, *, of_images: bool) -> None:
        self.like = x.detach()
        self.draw = 0
        self.keys = _keys(self.like) if of_images else None

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0,1), (batch, *shape)."""
        if self.keys is None:
            return torch.rand(len(self.like), *shape, device=self.like.device)
        self.draw += 1
        places = torch.arange(math.prod(shape), device=self.like.device) + (self.draw << 32)
        bits = _mixed(self.keys[:, None] + places * _GOLDEN)
        return ((bits >> 40) & (2**24 - 1)).float().div(2**24).view(-1, *shape)  # 24 bits: exact, below 1

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (batch, *shape)."""
        if self.keys is None:
            return torch.randn(len(self.like), *shape, device=self.like.device)
        radius = (-2 * (1 - self.uniform(*shape)).log()).sqrt()  # Box and Muller 1958
        return radius * (2 * math.pi * self.uniform(*shape)).cos()


def _keys(x: Tensor) -> Tensor:
    """A number for each row, of all its bytes."""
    words = x.float().flatten(1).contiguous().view(torch.int32).long()
    places = torch.arange(words.shape[1], device=x.device)
    return _mixed(_mixed(words + places * _GOLDEN).sum(1))


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (z >> by) & ((1 << (64 - by)) - 1)
