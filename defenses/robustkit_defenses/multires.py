"""A random stack of an image at several resolutions. Fort & Lakshminarayanan 2024, arXiv:2408.05446, section 3.1.

The paper's text and its published notebook differ: the notebook's noise is uniform on [0,1], which brightens, and its
contrast is the very draw it uses for colour, one of 100 evenly spaced values. Both are here. The paper's text states
no ranges; `paper` takes the contrast range that the notebook's code overwrites, 0.7 to 1.5, and its colour range, 0.5
to 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2


@dataclass(frozen=True, slots=True)
class MultiRes:
    """Copies of an image at several resolutions, each jittered and noised afresh, stacked along the channels.

    An image of 3×32×32 becomes 12×32×32 with the default resolutions, each given in pixels of the shorter side. The
    network must have been made for such input. `noise` is the scale of the noise added at each resolution and again at
    full size, `jitter` the largest circular shift in pixels. For a network that expects it, the stack is then resized
    to `resize` pixels a side (bicubic; 0: not) and each copy normalised by `mean` and `std`, a value a channel: in the
    paper 224 and ImageNet's. For ImageNet itself: resolutions=224+112+84+56,noise=0.5,jitter=42.
    """

    preset: Literal["paper", "notebook"] = "paper"
    resolutions: tuple[int, ...] = (32, 16, 8, 4)
    noise: float = 0.2
    jitter: int = 3
    resize: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.resolutions or min(self.resolutions) < 1 or min(self.noise, self.jitter, self.resize) < 0:
            raise UsageError("multires: resolutions must be positive, noise, jitter and resize at least 0")
        if len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
            raise UsageError("multires: mean and std hold a value for each channel, and std positive ones")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the stack."""
        return Prepared(Stack(self), model).eval()


class Stack(nn.Module):
    """The stack; draws from the global generator, which the harness seeds for each call."""

    randomised = True

    def __init__(self, settings: MultiRes) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, x: Images) -> Float[Tensor, "batch stacked rows columns"]:
        """(batch, channels·resolutions, height, width), in [0,1] unless it is normalised.

        Raises:
            UsageError: for images smaller than a resolution or the jitter, or of other channels than the mean has.
        """
        how, side = self.settings, min(x.shape[2:])
        if (most := max(*how.resolutions, how.jitter)) > side:
            raise UsageError(
                f"multires: resolutions and jitter up to {most} pixels are more than these images of "
                f"{x.shape[2]}×{x.shape[3]} have; name others: multires:resolutions={side}+{side // 2 or 1}"
            )
        if how.mean and len(how.mean) != x.shape[1]:
            raise UsageError(f"multires: mean has {len(how.mean)} values, these images {x.shape[1]} channels")
        stack = torch.cat([self._at(x, size) for size in how.resolutions], 1)
        if how.resize:
            stack = F.interpolate(stack, (how.resize, how.resize), mode="bicubic", align_corners=False)
        return self._normalised(stack) if how.mean else stack

    def _normalised(self, stack: Images) -> Images:
        mean, std = (
            stack.new_tensor(values).repeat(len(self.settings.resolutions)).view(1, -1, 1, 1)
            for values in (self.settings.mean, self.settings.std)
        )
        return (stack - mean) / std

    def _at(self, x: Images, size: int) -> Images:
        own = min(x.shape[2:])
        scaled = [max(1, round(side * size / own)) for side in x.shape[2:]]
        if self.settings.preset == "notebook":
            contrast = colour = 0.5 + 0.5 * (100 * _uniform(x)).floor() / 99
        else:
            colour, contrast = 0.5 + 0.5 * _uniform(x), 0.7 + 0.8 * _uniform(x)
        gray = _gray(x).mean((1, 2, 3), keepdim=True)
        x = (contrast * x + (1 - contrast) * gray).clamp(0, 1)
        x = self._shifted(x)
        x = colour * x + (1 - colour) * x.mean(1, keepdim=True)
        small = F.interpolate(x, scaled, mode="bicubic", align_corners=False)
        small = small + self.settings.noise * self._noise(small)
        full = F.interpolate(small, x.shape[2:], mode="bicubic", align_corners=False)
        return (full + self.settings.noise * self._noise(full)).clamp(0, 1)

    def _noise(self, x: Images) -> Tensor:
        return torch.rand_like(x) if self.settings.preset == "notebook" else torch.randn_like(x)

    def _shifted(self, x: Images) -> Images:
        """Each image rolled around by its own random shift."""
        j = self.settings.jitter
        shifts = torch.randint(-j, j + 1, (len(x), 2)).tolist()
        return torch.stack([image.roll((down, right), (1, 2)) for image, (down, right) in zip(x, shifts, strict=True)])


def _uniform(x: Images) -> Tensor:
    return torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)


def _gray(x: Images) -> Float[Tensor, "batch 1 height width"]:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(_GRAY).view(1, 3, 1, 1)).sum(1, keepdim=True)
