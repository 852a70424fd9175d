"""Datasets of image files: a batch reads only its own files, so that memory does not grow with the number of images."""

from collections.abc import Iterator, Sequence
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
_ORIENTATION = 0x0112  # EXIF
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
        """The pixels of a Pillow image in its frame, (channels, height, width): uint8, or float32 in [0,1].

        Raises:
            UsageError: if it is smaller than the frame.
            ValueError: if nothing says which of its values is white.
        """
        from PIL import Image

        image = _plain(image, grey=self.grey)
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
        pixels = np.asarray(image)
        if image.mode == "F":  # grey; bicubic resizing overshoots
            return np.repeat(pixels[None].clip(0, 1), 1 if self.grey else 3, axis=0)
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)


class ImageFiles:
    """Labelled image files in a fixed order. `labels` are known without opening an image.

    Pixels are taken as they are stored, as torchvision and timm take them; `notes` says of the files that were read
    where a viewer would show something else.
    """

    def __init__(
        self, name: str, files: Sequence[str | Path], labels: Sequence[int], classes: int, framing: Framing,
        notes: Sequence[str] = (), class_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        need_pillow(name)
        if not files:
            raise UsageError(f"{name}: no images there; they are files that end in {', '.join(sorted(SUFFIXES))}")
        self.name, self.classes, self.framing = name, classes, framing
        self.files, self.class_names = files, tuple(class_names)
        self.labels: Labels = torch.tensor(labels, dtype=torch.int64)
        self._found = tuple(notes)
        self._seen: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of the files: a line each."""
        return (*self._found, *(f"{text} ({len(rows)} of the images read)" for text, rows in self._seen.items()))

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
                for text in peculiarities(image):
                    self._seen.setdefault(text, set()).add(row)
                return self.framing.apply(image)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them on a broken file
            raise UsageError(f"{self.files[row]} cannot be read as an image: {error}") from error


def _plain(image: Any, *, grey: bool) -> Any:
    """A Pillow image of bytes (L or RGB), or of one channel of floats in [0,1] (F), which keeps more than 8 bits.

    Raises:
        ValueError: for numbers of which nothing says which is white.
    """
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        tags = getattr(image, "tag_v2", {})
        white = 2 ** tags.get(258, (16,))[0] - 1  # 258: bits of a sample; a TIFF may have 12
        values = np.asarray(image).astype(np.float32) / np.float32(white)
        return Image.fromarray(1 - values if tags.get(262) == 0 else values)  # 262: white is zero there
    if image.mode in ("I", "F"):
        low, high = image.getextrema()
        if image.mode == "F" and low >= 0 and high <= 1:
            return image
        kind = "floats" if image.mode == "F" else "32-bit whole numbers"
        raise ValueError(
            f"it holds {kind} from {low:.6g} to {high:.6g}, of which nothing says which is white; save it with 8 or 16 "
            "bits, or as floats in [0,1]"
        )
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way; the colours are the same
    return image.convert("L" if grey else "RGB")


def peculiarities(image: Any) -> Iterator[str]:
    """Where what a viewer shows of a Pillow image is not what its pixels hold, which are taken as they are."""
    if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
        yield "images stored turned or mirrored (EXIF orientation) are taken so, as torchvision and timm take them"
    see_through = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA")
    if see_through and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        yield "of transparent pixels the colour beneath is taken, as torchvision and timm take it"


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
    x = np.empty((len(pixels), *pixels[0].shape), dtype=np.float32)
    for row, image in zip(x, pixels, strict=True):
        np.divide(image, np.float32(255 if image.dtype == np.uint8 else 1), out=row)
    return torch.from_numpy(x)


def need_pillow(what: str) -> None:
    """Say what to install, if Pillow is not there.

    Raises:
        UsageError: if it is not.
    """
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"{what} needs Pillow, which is not installed: pip install 'robustkit-bench[data]'") from error


def hidden(path: Path, root: Path) -> bool:
    """Whether a path below `root` is an editor's or a system's own: a part begins with a dot, or is __MACOSX."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def images_in(folder: Path) -> tuple[list[str], int]:
    """The image files of a folder and of the folders in it, by name, and how many hidden ones were skipped."""
    found = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    kept = sorted(str(file) for file in found if not hidden(file, folder))
    return kept, len(found) - len(kept)
