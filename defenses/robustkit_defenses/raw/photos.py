"""Photographs to train on, and patches of them as pairs of a finished image and the RAW it would have come from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit_defenses.raw.camera import Camera

PATCH = 32  # pixels of a patch's side; its mosaic has twice as many
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, slots=True)
class Photos:
    """Photographs of one source, bytes in (3, height, width) each, and what a card says of them."""

    name: str
    images: Sequence[Tensor]

    def facts(self) -> dict[str, object]:
        """Name, number and a hash of the pixels."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(str(tuple(image.shape)).encode() + image.numpy().tobytes())
        return {"name": self.name, "images": len(self.images), "sha256": digest.hexdigest()}


def read(source: str) -> Photos:
    """The photographs of a source.

    Args:
        source: `sklearn`, its two photographs; `foolbox`, its 20 of ImageNet; an .npz with uint8 `x` of (n, height,
            width, 3); or a folder, with the folders in it.

    Raises:
        UsageError: if there is no such thing, or it holds no colour photograph of at least 32×32 pixels.
    """
    path = Path(source).expanduser()
    if source == "sklearn":
        try:
            from sklearn.datasets import load_sample_images
        except ModuleNotFoundError as error:
            raise UsageError("the source sklearn is the package: pip install scikit-learn") from error
        return _photos(source, load_sample_images().images)
    if source == "foolbox":
        spec = find_spec("foolbox")
        if spec is None or not spec.submodule_search_locations:
            raise UsageError("the source foolbox is the package: pip install 'robustkit-bench[attacks]'")
        data = Path(next(iter(spec.submodule_search_locations))) / "data"
        return _photos("foolbox/imagenet", [_file(file) for file in sorted(data.glob("imagenet_*"))])
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file() and _seen(f, path))
        return _photos(path.resolve().name, [_file(file) for file in files])
    if path.suffix == ".npz" and path.is_file():
        return _photos(path.name, list(_array(path)))
    raise UsageError(f"no photographs {source!r}; give sklearn, foolbox, a folder of images, or an .npz with x")


def _photos(name: str, arrays: Sequence[np.ndarray]) -> Photos:
    shapes = {array.shape for array in arrays}
    if wrong := [s for s in shapes if len(s) != 3 or s[2] != 3 or min(s[:2]) < PATCH]:
        raise UsageError(f"{name}: photographs are colour, {PATCH}×{PATCH} pixels or more; one is {wrong[0]}")
    if not arrays:
        raise UsageError(f"{name} holds no photographs; files end in {', '.join(sorted(_SUFFIXES))}")
    return Photos(name, [torch.from_numpy(np.array(array)).permute(2, 0, 1).contiguous() for array in arrays])


def _seen(file: Path, root: Path) -> bool:
    """Whether a file is none of an editor's or a system's own copies, which are hidden."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(root).parts)


def _file(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":  # Pillow would clip them to bytes
                raise ValueError(f"its pixels are not bytes (Pillow's mode {image.mode}); save it with 8 bits")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them on a broken file
        raise UsageError(f"{file} cannot be read as an image: {error}") from error


def _array(file: Path) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x: np.ndarray = arrays["x"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{file} is no .npz of photographs: {error}") from error
    if x.dtype != np.uint8 or x.ndim != 4:
        raise UsageError(f"{file}: x must be uint8 of (n, height, width, 3), not {x.dtype} of {x.shape}")
    return x


def split(sources: Sequence[Photos]) -> tuple[list[Photos], list[Photos]]:
    """Each source without its last tenth, and that tenth (at most 100 photographs, of fewer than 10 none)."""
    held = [min(100, len(source.images) // 10) for source in sources]
    ends = [len(source.images) - n for source, n in zip(sources, held, strict=True)]
    train = [Photos(s.name, s.images[:end]) for s, end in zip(sources, ends, strict=True)]
    return train, [Photos(s.name, s.images[end:]) for s, end in zip(sources, ends, strict=True) if s.images[end:]]


def pairs(sources: Sequence[Photos], n: int, camera: Camera, generator: torch.Generator) -> tuple[Images, Tensor]:
    """`n` random patches: finished images (n, 3, 32, 32) in [0,1] and their noise-free packed RAW (n, 4, 32, 32).

    A source is drawn first, so that each counts the same. A patch of a large photograph is a square of 64, 128 or 192
    pixels, brought to 64 for the RAW and to 32 for the finished image; a small photograph, which has no finer detail
    than the finished image, is brought to 32, and enlarged to 64 for the RAW. Half are mirrored.
    """
    found = [_patch(sources[_draw(len(sources), generator)], generator) for _ in range(n)]
    finished, sensor = (torch.stack(part) for part in zip(*found, strict=True))
    return finished, camera.raw(sensor)


def _patch(source: Photos, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    image = source.images[_draw(len(source.images), generator)]
    short = min(image.shape[1:])
    fits = [side for side in (2 * PATCH, 4 * PATCH, 6 * PATCH) if side <= short]
    side = fits[_draw(len(fits), generator)] if fits else PATCH
    top, left = (_draw(length - side + 1, generator) for length in image.shape[1:])
    x = image[None, :, top : top + side, left : left + side].float() / 255
    x = x.flip(3) if _draw(2, generator) else x
    if not fits:
        return x[0], F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)[0]
    sensor = F.avg_pool2d(x, side // (2 * PATCH))
    return F.avg_pool2d(sensor, 2)[0], sensor[0]


def _draw(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator))
