"""Corrupted images made here: one image in, one out, at a severity from 1 to 5.

The kinds are Hendrycks and Dietterich's (ICLR 2019) where a maintained library does the work; fog, frost, snow, glass
blur and spatter, which need textures of their own, are in the archives only. For noise, brightness, contrast, JPEG,
pixelation and Gaussian blur the strengths are theirs (for small images those of CIFAR-10-C, else those of ImageNet-C);
the others are ours. So figures on images made here do not compare with figures on the archives.

Each image is worked on alone and ends on 8 bits, so that it does not depend on the batch it is asked for in. Random
kinds draw from a stream keyed by (seed, kind, sample), the same at every severity: severity only makes it stronger.
"""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robustkit.errors import UsageError
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.spec import suggest

Image = Float[Tensor, "channels height width"]
SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 96  # sides below this have the strengths of CIFAR-10-C


class Kind(NamedTuple):
    """A corruption: what it does to one image with a strength, and the strengths for small and for large images."""

    make: Callable[[Image, Any, SampleDraws], Image]
    small: tuple[Any, ...]
    large: tuple[Any, ...]


def corrupt(image: Image, kind: str, severity: int, *, seed: int = 0, index: int = 0) -> Image:
    """One corrupted image.

    Args:
        image: float in [0,1], one channel or three.
        kind: one of `KINDS`.
        severity: 1 to 5.
        seed: of random kinds.
        index: the sample's, to which its random numbers belong.

    Returns:
        float32 in [0,1], on 8 bits.

    Raises:
        UsageError: for an unknown kind or severity, an image that the kind does not work on, or a missing package.
    """
    kind = kind_named(kind, KINDS)
    check_severity(severity)
    made = KINDS[kind]
    strength = (made.small if min(image.shape[1:]) < SMALL else made.large)[severity - 1]
    draws = SampleDraws(key_of("corruption", seed, kind), torch.tensor([index]))
    try:
        result = made.make(image.float().cpu(), strength, draws)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{kind} needs {error.name!r}, which is not installed: pip install 'robustkit-bench[data]'"
        ) from error
    return (result.clamp(0, 1) * 255).round() / 255


def check_severity(severity: int) -> None:
    """Refuse a severity that is not 1 to 5.

    Raises:
        UsageError: if it is not.
    """
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity} must be 1, 2, 3, 4 or 5")


def kind_named(given: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """The kind's full name: `jpeg` is jpeg-compression, `gaussian_noise` is gaussian-noise.

    Raises:
        UsageError: for an unknown one.
    """
    name = given.strip().lower().replace("_", "-")
    name = {"jpeg": "jpeg-compression", "elastic": "elastic-transform"}.get(name, name)
    if name not in known:
        raise UsageError(suggest(given, known, "corruption"))
    return name


def _gaussian_noise(x: Image, scale: float, draws: SampleDraws) -> Image:
    return x + scale * draws.normal(x.shape)[0]


def _shot_noise(x: Image, photons: float, draws: SampleDraws) -> Image:
    """Poisson counts, each the quantile of a uniform number, for one of 256 levels after the other."""
    from scipy.special import pdtr  # slow to import

    levels, chance = (x * 255).round().byte().numpy().reshape(-1), draws.uniform(x.shape).double().numpy().reshape(-1)
    counts = np.zeros(len(levels))
    by_level = np.argsort(levels, kind="stable")
    present, starts = np.unique(levels[by_level], return_index=True)
    for level, at in zip(present.tolist(), np.split(by_level, starts[1:]), strict=True):
        mean = level / 255 * photons
        counts[at] = np.searchsorted(pdtr(np.arange(mean + 12 * math.sqrt(mean) + 24), mean), chance[at])
    return torch.from_numpy(counts.reshape(x.shape) / photons).float()


def _impulse_noise(x: Image, share: float, draws: SampleDraws) -> Image:
    hit = draws.uniform(x.shape)[0] < share
    salt = draws.uniform(x.shape, step=1)[0] < 0.5
    return torch.where(hit, salt.float(), x)


def _speckle_noise(x: Image, scale: float, draws: SampleDraws) -> Image:
    return x + scale * x * draws.normal(x.shape)[0]


def _gaussian_blur(x: Image, sigma: float, draws: SampleDraws) -> Image:
    from kornia.filters import gaussian_blur2d

    return gaussian_blur2d(x[None], _sides(4 * sigma, x), (sigma, sigma))[0]


def _defocus_blur(x: Image, radius: float, draws: SampleDraws) -> Image:
    """The mean over a disc; a pixel at the rim counts by how far it is inside."""
    from kornia.filters import filter2d

    down, along = (torch.arange(-(side // 2), side // 2 + 1).double() for side in _sides(radius, x))
    disc = (radius + 0.5 - torch.hypot(down[:, None], along[None, :])).clamp(0, 1)
    return filter2d(x[None], (disc / disc.sum()).float()[None])[0]


def _motion_blur(x: Image, length: int, draws: SampleDraws) -> Image:
    """The mean along a line at an angle from −45° to 45°, its ends fading as the camera moves on."""
    from kornia.filters import motion_blur

    angle = 90 * (float(draws.uniform((1,))) - 0.5)
    side = max(3, min(_sides((length - 1) // 2, x)))
    return motion_blur(x[None], side, angle, 0.5, border_type="replicate")[0]


def _zoom_blur(x: Image, farthest: float, draws: SampleDraws) -> Image:
    """The mean of the image and of eight enlargements of its centre, up to a factor."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    factors = np.linspace(1, farthest, 9)[1:]
    zoomed = [functional.affine(x, 0.0, [0, 0], float(f), [0, 0], InterpolationMode.BILINEAR) for f in factors]
    return torch.stack([x, *zoomed]).mean(0)


def _brightness(x: Image, shift: float, draws: SampleDraws) -> Image:
    """Added to the value of hue, saturation and value."""
    if x.shape[0] != 3:
        return x + shift
    from kornia.color import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(x[None])
    hsv[:, 2] = (hsv[:, 2] + shift).clamp(0, 1)
    return hsv_to_rgb(hsv)[0]


def _contrast(x: Image, factor: float, draws: SampleDraws) -> Image:
    mean = x.mean((1, 2), keepdim=True)
    return mean + factor * (x - mean)


def _saturate(x: Image, factor: float, draws: SampleDraws) -> Image:
    """Colours moved away from grey."""
    from torchvision.transforms.v2 import functional

    if x.shape[0] != 3:
        raise UsageError("saturate needs colour images (3 channels); leave it out for grey ones")
    return functional.adjust_saturation(x, factor)  # type: ignore[no-any-return]


def _jpeg(x: Image, quality: int, draws: SampleDraws) -> Image:
    from PIL import Image as Pillow

    with io.BytesIO() as stream:
        _pillow(x).save(stream, "JPEG", quality=quality)
        with Pillow.open(stream) as image:
            return _from_pillow(image)


def _pixelate(x: Image, factor: float, draws: SampleDraws) -> Image:
    from PIL import Image as Pillow

    height, width = x.shape[1:]
    coarse = max(1, int(width * factor)), max(1, int(height * factor))
    return _from_pillow(_pillow(x).resize(coarse, Pillow.Resampling.BOX).resize((width, height), Pillow.Resampling.BOX))


def _elastic(x: Image, shift: float, draws: SampleDraws) -> Image:
    """Pixels moved by a smooth random field; `shift` is its standard deviation in sides of the image."""
    from kornia.filters import gaussian_blur2d
    from torchvision.transforms.v2 import functional

    height, width = x.shape[1:]
    field = draws.normal((2, height, width))
    sigma = max(1.0, 0.06 * min(height, width))
    smooth = gaussian_blur2d(field, _sides(3 * sigma, x), (sigma, sigma))
    smooth = smooth / smooth.std()
    # torchvision wants halves of a side: its coordinates go from −1 to 1.
    return functional.elastic(x, (2 * shift * smooth).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def _sides(reach: float, x: Image) -> tuple[int, int]:
    """The height and width of a filter that reaches so far past a pixel: libraries mirror less than a side at the rim.

    Along an axis of one pixel there is nothing to filter.
    """
    height, width = (2 * min(max(1, math.ceil(reach)), side - 1) + 1 for side in x.shape[1:])
    return height, width


def _pillow(x: Image) -> Any:
    from PIL import Image as Pillow

    pixels = (x * 255).round().byte().numpy()
    if len(pixels) not in (1, 3):
        raise UsageError(f"images of {len(pixels)} channels are neither grey nor colour; this corruption needs one")
    return Pillow.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _from_pillow(image: Any) -> Image:
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


KINDS: dict[str, Kind] = {
    "gaussian-noise": Kind(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": Kind(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse-noise": Kind(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle-noise": Kind(_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian-blur": Kind(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "defocus-blur": Kind(_defocus_blur, (0.6, 0.8, 1.0, 1.3, 1.8), (3, 4, 6, 8, 10)),
    "motion-blur": Kind(_motion_blur, (3, 5, 7, 9, 11), (9, 15, 21, 29, 39)),
    "zoom-blur": Kind(_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26), (1.11, 1.16, 1.21, 1.26, 1.33)),
    "brightness": Kind(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Kind(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": Kind(_saturate, (1.5, 2, 2.5, 3.5, 5), (2, 3, 5, 10, 20)),
    "jpeg-compression": Kind(_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "pixelate": Kind(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "elastic-transform": Kind(_elastic, (0.01, 0.015, 0.02, 0.027, 0.035), (0.01, 0.015, 0.02, 0.027, 0.035)),
}
