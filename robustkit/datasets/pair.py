"""An (x, y) pair as a dataset, and the check that every dataset's images and labels pass."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from robustkit.api import Images, Labels
from robustkit.errors import UsageError

_CHANNELS = range(1, 5)


class Pair:
    """Images and labels in memory.

    Images are floats in [0,1] of shape (N, C, H, W), or bytes (uint8, divided by 255) of shape (N, C, H, W),
    (N, H, W, C) or (N, H, W). Bytes stay bytes until a batch is asked for.
    """

    def __init__(self, x: object, y: object, name: str = "pair", classes: int | None = None) -> None:
        self.x, self.y = check_images(x, y, name, classes)
        self.name = name
        self.classes = classes or 0  # 0: unknown

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`.

        Raises:
            UsageError: for an index that is not in the dataset.
        """
        rows = as_rows(indices, len(self), self.name)
        x = self.x[rows]
        return (x.float() / 255 if x.dtype == torch.uint8 else x), self.y[rows]


def as_rows(indices: Sequence[int], n: int, what: str) -> Int[Tensor, " batch"]:
    """Indices into a dataset of n images, as a tensor.

    Raises:
        UsageError: for an index that is not in the dataset.
    """
    rows = torch.as_tensor(indices, dtype=torch.int64)
    outside = rows[(rows < 0) | (rows >= n)]
    if len(outside):
        raise UsageError(f"{what} has images 0 to {n - 1}; there is no {int(outside[0])}")
    return rows


def check_images(x: object, y: object, what: str, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Images as (N, C, H, W), float32 in [0,1] or uint8, and labels as int64.

    Raises:
        UsageError: for anything else: shape, type, range, NaN, lengths that differ, labels outside [0, classes).
    """
    images, labels = _images(_tensor(x, f"{what}: x"), what), _labels(_tensor(y, f"{what}: y"), what)
    if len(images) != len(labels):
        raise UsageError(f"{what}: {len(images)} images but {len(labels)} labels; give one label an image")
    if not images.numel():
        raise UsageError(f"{what}: no images, x has shape {tuple(images.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "" if classes is None else f" to {classes - 1}, since there are {classes} classes"
        raise UsageError(f"{what}: labels go from {low} to {high}; they must be 0{limit or ' or more'}")
    return images, labels


def _tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if not isinstance(value, np.ndarray):
        raise UsageError(f"{what} is of type {type(value).__name__}; give a torch tensor or a numpy array")
    if value.dtype.kind not in "fiub":
        raise UsageError(f"{what} holds {value.dtype}, not numbers")
    if value.dtype.itemsize > 8:
        raise UsageError(f"{what} holds {value.dtype}, which torch does not have; give x.astype('float32')")
    return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))


def _images(x: Tensor, what: str) -> Tensor:
    shape = tuple(x.shape)
    channels_last = x.dim() == 4 and shape[1] not in _CHANNELS and shape[3] in _CHANNELS
    if x.dtype == torch.uint8:
        if x.dim() == 3:
            return x.unsqueeze(1)
        if channels_last:
            return x.permute(0, 3, 1, 2)
    elif not x.is_floating_point():
        raise UsageError(f"{what}: images are {x.dtype}; give floats in [0,1], or bytes as uint8")
    if channels_last:
        raise UsageError(f"{what}: images of shape {shape} look like NHWC; give NCHW: torch's x.permute(0, 3, 1, 2)")
    if x.dim() == 3:
        raise UsageError(f"{what}: images of shape {shape} have no channel axis; give NCHW: x[:, None]")
    if x.dim() != 4 or shape[1] not in _CHANNELS:
        raise UsageError(f"{what}: images of shape {shape}; they must be (N, C, H, W) with 1 to 4 channels")
    return x if x.dtype == torch.uint8 or not x.numel() else _in_range(x.float(), what)


def _in_range(x: Tensor, what: str) -> Tensor:
    bad = int((~x.isfinite()).sum())
    if bad:
        raise UsageError(f"{what}: {bad} values of the images are NaN or infinite; mend or drop those images")
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        advice = "divide by 255" if high > 1.5 and low >= 0 else "undo the normalisation, models normalise inside"
        raise UsageError(f"{what}: images go from {low:g} to {high:g}; they must be in [0,1]: {advice}")
    return x


def _labels(y: Tensor, what: str) -> Tensor:
    if y.dim() == 2 and y.shape[1] > 1:
        raise UsageError(f"{what}: labels of shape {tuple(y.shape)} look one-hot; give class numbers: y.argmax(1)")
    if y.dim() != 1:
        raise UsageError(f"{what}: labels of shape {tuple(y.shape)}; they must be one number an image, shape (N,)")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise UsageError(f"{what}: labels are {y.dtype}; they must be whole numbers (int64)")
    return y.long()
