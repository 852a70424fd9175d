"""Datasets of image files: a batch reads only its own files, so that memory does not grow with the number of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robustkit.api import Images, Labels
from robustkit.datasets.pair import as_rows
from robustkit.errors import UsageError

Interpolation = Literal["bilinear", "bicubic"]
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image gets its size: the short side resized to `resize` pixels, then the central `crop` square; 0 is not.

    Resizing is Pillow's, antialiased, as torchvision's on Pillow images.
    """

    resize: int = 0
    crop: int = 0
    interpolation: Interpolation = "bilinear"
    grey: bool = False

    def __post_init__(self) -> None:
        if self.resize < 0 or self.crop < 0:
            raise UsageError(f"resize={self.resize} and crop={self.crop} must be numbers of pixels; 0 leaves it out")
        if self.resize and self.crop > self.resize:
            raise UsageError(f"crop={self.crop} does not fit in resize={self.resize}; make resize at least as large")

    def apply(self, image: Any) -> np.ndarray:
        """The bytes of a Pillow image in its frame, (channels, height, width) uint8."""
        from PIL import Image

        image = image.convert("L" if self.grey else "RGB")
        width, height = image.size
        short = min(width, height)
        if self.resize and short != self.resize:
            # The long side is cut to a whole number, not rounded: torchvision's rule.
            width, height = int(self.resize * width / short), int(self.resize * height / short)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.crop:
            if min(width, height) < self.crop:
                raise UsageError(f"an image of {width}×{height} has no square of {self.crop} pixels; add resize=")
            left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)


class ImageFiles:
    """Labelled image files in a fixed order. `labels` are known without opening an image."""

    def __init__(
        self, name: str, files: Sequence[str | Path], labels: Sequence[int], classes: int, framing: Framing
    ) -> None:
        need_pillow(name)
        if not files:
            raise UsageError(f"{name}: no images there; they are files that end in {', '.join(sorted(SUFFIXES))}")
        self.name, self.classes, self.framing = name, classes, framing
        self.files = files
        self.labels: Labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`; only their files are read.

        Raises:
            UsageError: for an index that is not there, a file that is no image, or images of different sizes.
        """
        rows = as_rows(indices, len(self), self.name)
        return stacked([self._read(int(row)) for row in rows], self.name), self.labels[rows]

    def _read(self, row: int) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(self.files[row]) as image:
                return self.framing.apply(image)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them on a broken file
            raise UsageError(f"{self.files[row]} cannot be read as an image: {error}") from error


def stacked(pixels: Sequence[np.ndarray], what: str) -> Tensor:
    """Images of one size as a batch, float32 in [0,1].

    Raises:
        UsageError: if they are of different sizes.
    """
    shapes = {image.shape for image in pixels}
    if len(shapes) > 1:
        sizes = " and ".join(f"{s[2]}×{s[1]}" for s in sorted(shapes)[:2])
        raise UsageError(f"{what}: images of different sizes ({sizes}); add size=224 to bring them to one")
    if not pixels:
        return torch.zeros(0, 3, 1, 1)
    return torch.from_numpy(np.stack(pixels)).float() / 255


def need_pillow(what: str) -> None:
    """Say what to install, if Pillow is not there.

    Raises:
        UsageError: if it is not.
    """
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"{what} needs Pillow, which is not installed: pip install 'robustkit[data]'") from error


def images_in(folder: Path) -> list[str]:
    """The image files of a folder and of the folders in it, by name."""
    return sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
