"""A camera: how it turns light into an image, step by step, and each step undone.

The steps, and undoing them to make RAW from photographs, are those of Brooks, Mildenhall, Xue, Chen, Sharlet, Barron
2019, "Unprocessing images for learned raw denoising", arXiv:1811.11127, section 3; its ranges and its noise are quoted
from memory. Ours, since one network must undo it: one camera instead of a random one for each image; a colour matrix of
our own; and sRGB's curve (IEC 61966-2-1) for a power of 1/2.2, whose slope at black is infinite.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit_defenses.raw.bayer import Demosaic, demosaic, mosaic

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]

_BRIGHT = 0.9  # above it, undoing the gains keeps highlights bright
_KNEE, _SLOPE = 0.0031308, 12.92  # of sRGB's curve: straight below the knee


@dataclass(frozen=True, slots=True)
class Camera:
    """The settings of a camera; the defaults are a daylight scene.

    `to_sensor` takes linear sRGB to the sensor's colours: no entry negative, each row summing to 1, so that white stays
    white and [0,1] stays [0,1]. `red` and `blue` are the gains of the white balance, green's being 1; `digital` that of
    the exposure. `curve` is sRGB's, `tone` a smooth step that raises contrast.
    """

    to_sensor: Matrix = ((0.68, 0.25, 0.07), (0.12, 0.78, 0.10), (0.03, 0.27, 0.70))
    red: float = 2.0
    blue: float = 1.7
    digital: float = 1.25
    curve: bool = True
    tone: bool = True

    def __post_init__(self) -> None:
        if min(self.red, self.blue, self.digital) < 1:
            raise UsageError("camera: the gains red, blue and digital are at least 1")
        if any(min(row) < 0 or abs(sum(row) - 1) > 1e-6 for row in self.to_sensor):
            raise UsageError("camera: to_sensor has no negative entry and rows that sum to 1")

    def unprocessed(self, x: Images) -> Images:
        """The light on the sensor, in its colours, of a finished image in [0,1]; both (batch, 3, height, width)."""
        x = 0.5 - torch.sin(torch.asin((1 - 2 * x).clamp(-1, 1)) / 3) if self.tone else x
        x = _linear(x) if self.curve else x
        x = _coloured(x, x.new_tensor(self.to_sensor))
        gains = x.new_tensor([self.red, 1.0, self.blue]).view(3, 1, 1) * self.digital
        # Dividing alone would make white a colour; near white, the value itself takes over.
        share = ((x.mean(1, keepdim=True) - _BRIGHT).clamp_min(0) / (1 - _BRIGHT)) ** 2
        return torch.maximum(x / gains, (1 - share) / gains * x + share * x)

    def raw(self, x: Images) -> Tensor:
        """The packed RAW, noise-free, of finished images (batch, 3, 2h, 2w): (batch, 4, h, w).

        Raises:
            UsageError: for other than 3 channels, or an odd height or width.
        """
        return mosaic(self.unprocessed(x))

    def developed(self, packed: Tensor, by: Demosaic) -> Images:
        """The finished images in [0,1] of packed RAW (batch, 4, h, w), at half the mosaic's size: (batch, 3, h, w).

        White balance and gain, demosaicing, colour matrix, sRGB's curve, tone curve, 2×2 averages.
        """
        gains = packed.new_tensor([self.blue, 1.0, self.red, 1.0]).view(4, 1, 1) * self.digital
        x = demosaic((packed * gains).clamp(0, 1), by)
        return F.avg_pool2d(self.finished(x), 2)

    def finished(self, x: Images) -> Images:
        """Images in the sensor's colours after the gains, through the colour matrix and both curves, in [0,1]."""
        back = torch.linalg.inv(torch.tensor(self.to_sensor, dtype=torch.float64)).to(x)
        x = _coloured(x, back).clamp(0, 1)
        x = encoded(x) if self.curve else x
        return x * x * (3 - 2 * x) if self.tone else x


def encoded(x: Tensor) -> Tensor:
    """The curve of sRGB for linear light: 12.92·x up to 0.0031308 (below 0 too), then 1.055·x^(1/2.4) − 0.055."""
    curved = 1.055 * x.clamp_min(_KNEE) ** (1 / 2.4) - 0.055
    return torch.where(x <= _KNEE, _SLOPE * x, curved)


def _linear(x: Tensor) -> Tensor:
    knee = _KNEE * _SLOPE
    return torch.where(x <= knee, x / _SLOPE, ((x.clamp_min(knee) + 0.055) / 1.055) ** 2.4)


def _coloured(x: Images, matrix: Tensor) -> Images:
    return torch.einsum("dc,bchw->bdhw", matrix, x)


def with_sensor_noise(raw: Tensor, generator: torch.Generator) -> Tensor:
    """RAW with the noise of photons and of reading out, of a strength drawn for each image; clipped to [0,1].

    Gaussian of variance shot·value + read. Source: arXiv:1811.11127, section 3.1: log shot is uniform between those of
    1e-4 and 0.012, log read normal about 2.18·log shot + 1.20 with standard deviation 0.26.
    """
    n = len(raw)
    low, high = math.log(1e-4), math.log(0.012)
    shot = low + (high - low) * torch.rand(n, generator=generator)
    read = 2.18 * shot + 1.20 + 0.26 * torch.randn(n, generator=generator)
    variance = raw * shot.exp().view(n, 1, 1, 1) + read.exp().view(n, 1, 1, 1)
    return (raw + variance.sqrt() * torch.randn(raw.shape, generator=generator)).clamp(0, 1)
