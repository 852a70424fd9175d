"""A median filter in front of a network. Xu, Evans, Qi 2018, "Feature squeezing", arXiv:1704.01155, section II."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared


@dataclass(frozen=True, slots=True)
class Median:
    """Each pixel becomes the median of the `size`×`size` pixels around it, channel by channel; edges are mirrored."""

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise UsageError(f"median: size is an odd number of pixels, not {self.size}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the filter, through which gradients flow to the pixel that was the median."""
        return Prepared(_Filter(self.size), model).eval()


class _Filter(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Images) -> Images:
        """The filtered images."""
        if self.size // 2 >= min(x.shape[2:]):
            raise UsageError(f"median: a filter of size {self.size} is too large for images of {tuple(x.shape[2:])}")
        around = F.pad(x, [self.size // 2] * 4, mode="reflect")
        windows = around.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(-2).median(-1).values
