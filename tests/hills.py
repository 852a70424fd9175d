"""A landscape with many hills, in float64: where it goes up and who decides changes within a step of an attack."""

import torch
from torch import nn

from tests import toys


class Hills(nn.Module):
    """Four classes; `lead` is added to the logit of the first. Notes what it is asked."""

    def __init__(self, lead=0.0, size=16):
        super().__init__()
        self.inner, self.outer, self.asked = nn.Linear(size, 24), nn.Linear(24, 4), []
        for parameter in self.parameters():
            parameter.data = 1.5 * torch.randn(parameter.shape, generator=toys.seeded(parameter.numel())).double()
        self.outer.bias.data[0] += lead

    def forward(self, x):
        self.asked += list(x.detach().clone())
        return self.outer(self.inner(x.flatten(1)).sin())


def images(n, shape=(1, 4, 4), low=0.0, high=1.0):
    return low + (high - low) * torch.rand(n, *shape, generator=toys.seeded(5)).double()
