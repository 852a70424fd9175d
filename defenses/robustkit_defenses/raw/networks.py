"""The two learned parts: F from RGB to packed RAW, in two shapes, and G from packed RAW to RGB.

All work at one size: (batch, 3, h, w) images and (batch, 4, h, w) packed RAW, whose mosaic is 2h×2w.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit_defenses.raw.camera import encoded


def plain5() -> nn.Module:
    """F of the released code of arXiv:2112.09219: five 3×3 convolutions 3→64→64→64→64→4, a ReLU after each.

    114,692 weights and biases. The paper's text speaks of a pyramid; the code has none.
    """
    widths = (3, 64, 64, 64, 64, 4)
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU()]
    last = layers[-2]
    assert isinstance(last, nn.Conv2d)
    nn.init.constant_(last.bias, 0.2)  # type: ignore[arg-type]  # else a plane that starts below 0 never learns
    return nn.Sequential(*layers)


def unet() -> nn.Module:
    """F in a small U shape, of our own design: a tenth of the work of `plain5`."""
    return nn.Sequential(Funnel(3, 4, 16), nn.Softplus(beta=20))


def isp() -> nn.Module:
    """G: a small U shape of our own design, which is not PyNET. It sees RAW as it is and through sRGB's curve."""
    return nn.Sequential(_BothScales(), Funnel(8, 3, 24), nn.Sigmoid())


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"plain5": plain5, "unet": unet, "isp": isp}


class Funnel(nn.Module):
    """Two convolutions, two at half the size, and two on both together; any height and width."""

    def __init__(self, inner: int, outer: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(_conv(inner, width), nn.ReLU(), _conv(width, width), nn.ReLU())
        self.below = nn.Sequential(
            _conv(width, 2 * width, stride=2), nn.ReLU(), _conv(2 * width, 2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, width, 1),
        )  # fmt: skip
        self.leave = nn.Sequential(_conv(2 * width, width), nn.ReLU(), _conv(width, outer))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inner, h, w) to (batch, outer, h, w)."""
        fine = self.enter(x)
        coarse = F.interpolate(self.below(fine), fine.shape[2:], mode="nearest")
        leaving: Tensor = self.leave(torch.cat([fine, coarse], 1))
        return leaving


class _BothScales(nn.Module):
    """RAW, and RAW through sRGB's curve: dark places differ little in the one and much in the other."""

    def forward(self, raw: Tensor) -> Tensor:
        """(batch, 4, h, w) to (batch, 8, h, w)."""
        return torch.cat([raw, encoded(raw)], 1)


def _conv(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride, 1)
