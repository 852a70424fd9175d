"""Random resizing and padding. Xie, Wang, Zhang, Ren, Yuille 2018, arXiv:1711.01991."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared


@dataclass(frozen=True, slots=True)
class RandomResizePad:
    """Each image is enlarged to a random size up to `scale` times its own and put somewhere on a black frame.

    The frame is `scale` times the image (331 for 299 in the paper). With `restore` it is scaled back to the image's own
    size, for networks that take only one.
    """

    scale: float = 1.1
    restore: bool = True

    def __post_init__(self) -> None:
        if self.scale <= 1:
            raise UsageError(f"random-resize-pad: scale must be above 1, not {self.scale:g}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the random step; gradients flow through the resizing."""
        return Prepared(_Step(self.scale, self.restore), model).eval()


class _Step(nn.Module):
    """Draws from the global generator, which the harness seeds for each call."""

    randomised = True

    def __init__(self, scale: float, restore: bool) -> None:
        super().__init__()
        self.scale = scale
        self.restore = restore

    def forward(self, x: Images) -> Float[Tensor, "batch channels rows columns"]:
        """The images, each on its frame."""
        height, width = x.shape[2:]
        frame = (math.ceil(height * self.scale), math.ceil(width * self.scale))
        share, down, right = torch.rand(3, len(x)).tolist()
        done = torch.cat([self._one(x[i : i + 1], frame, share[i], down[i], right[i]) for i in range(len(x))])
        return F.interpolate(done, (height, width), mode="bilinear", antialias=True) if self.restore else done

    def _one(self, image: Images, frame: tuple[int, int], share: float, down: float, right: float) -> Tensor:
        size = [own + int(share * (most - own + 1)) for own, most in zip(image.shape[2:], frame, strict=True)]
        larger = F.interpolate(image, size, mode="bilinear", align_corners=False)
        top, left = int(down * (frame[0] - size[0] + 1)), int(right * (frame[1] - size[1] + 1))
        return F.pad(larger, (left, frame[1] - size[1] - left, top, frame[0] - size[0] - top))
