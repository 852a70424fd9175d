"""JPEG compression in front of a network. Guo, Rana, Cissé, van der Maaten 2018, arXiv:1711.00117, and others.

It removes what an attack on the bare network added; an attack that differentiates through it (here: as if it were the
identity, BPDA) is hardly slowed. Not a defense to rely on: one to compare with.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared
from robustkit_defenses.straight_through import StraightThrough


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Each image is written as JPEG of this quality (1 to 95) and read again; 1 or 3 channels."""

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise UsageError(f"jpeg: quality is from 1 to 95, not {self.quality}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the compression; gradients pass the compression unchanged."""
        return Prepared(StraightThrough(self.compress), model).eval()

    def compress(self, x: Images) -> Images:
        """Images in [0,1] as they come back from JPEG.

        Raises:
            UsageError: for images of other than 1 or 3 channels.
        """
        if x.shape[1] not in (1, 3):
            raise UsageError(f"jpeg needs images of 1 or 3 channels, not {x.shape[1]}")
        levels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        done = np.stack([self._one(image) for image in levels])
        return torch.from_numpy(done).permute(0, 3, 1, 2).to(x) / 255

    def _one(self, levels: np.ndarray) -> np.ndarray:
        from PIL import Image

        image, file = Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels), io.BytesIO()
        image.save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file)).reshape(levels.shape)
