"""The samples of a measurement: chosen from a dataset, known by the hashes of their images."""

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustkit import spec
from robustkit.api import Dataset, Images, Labels
from robustkit.datasets.pair import check_images
from robustkit.errors import UsageError

CHUNK = 64  # images looked at together: few, since they may be large


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a run in their order, known by their hashes; images are fetched a shard at a time."""

    dataset: Dataset
    indices: tuple[int, ...]
    labels: Labels
    hashes: tuple[str, ...]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sha256(self) -> str:
        """Hash of all images and labels."""
        return spec.digest([list(self.hashes), self.labels.tolist()])

    def at(self, positions: Sequence[int]) -> "Samples":
        """Some of the samples, by their positions here."""
        return replace(
            self,
            indices=tuple(self.indices[i] for i in positions),
            labels=self.labels[list(positions)],
            hashes=tuple(self.hashes[i] for i in positions),
        )

    def first(self) -> tuple[Images, Labels]:
        """The images and labels that a model is examined on: the first 64, or all if there are fewer."""
        return self.batch(0, min(len(self), CHUNK))

    def batch(self, start: int, stop: int) -> tuple[Images, Labels]:
        """The images and labels from position `start` to `stop`.

        Raises:
            UsageError: if the dataset gives other images than when their hashes were taken.
        """
        x, y = self.dataset.batch(self.indices[start:stop])
        for index, image, known in zip(self.indices[start:stop], x, self.hashes[start:stop], strict=True):
            if image_sha256(image) != known:
                raise UsageError(
                    f"{self.dataset.name} gave another image for sample {index} the second time; an evaluation needs "
                    "fixed images, without random augmentation"
                )
        return x, y


def image_sha256(image: Tensor) -> str:
    """sha256 of an image's float32 bytes."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def choose_indices(dataset: Dataset, n: int | None, indices: Any) -> tuple[int, ...]:
    """Which samples: all, the first n, or those at `indices`.

    Raises:
        UsageError: for a choice that the dataset cannot meet.
    """
    size = len(dataset)
    if n is not None and indices is not None:
        raise UsageError("give n or indices, not both")
    chosen = None if indices is None else _as_indices(indices)
    if n is not None:
        if not 1 <= n <= size:
            raise UsageError(f"n = {n}, but {dataset.name} has {size} samples; choose 1 to {size}")
        chosen = tuple(range(n))
    if chosen is None:
        chosen = tuple(range(size))
    if not chosen or min(chosen) < 0 or max(chosen) >= size or len(set(chosen)) != len(chosen):
        raise UsageError(f"indices must be different numbers from 0 to {size - 1}; {dataset.name} has {size} samples")
    return chosen


def choose_samples(dataset: Dataset, n: int | None, indices: Any, target: str = "") -> Samples:
    """The samples of a run, see `choose_indices`; without those that are of the target class already.

    Raises:
        UsageError: for a choice that the dataset cannot meet.
    """
    chosen = choose_indices(dataset, n, indices)
    labels, hashes = [], []
    for start in range(0, len(chosen), CHUNK):
        x, y = check_images(*dataset.batch(chosen[start : start + CHUNK]), dataset.name, dataset.classes or None)
        labels.append(y)
        hashes += [image_sha256(image) for image in x]
    whole = Samples(dataset, chosen, torch.cat(labels), tuple(hashes))
    if not target.isdecimal():
        return whole
    keep = (whole.labels != int(target)).nonzero()[:, 0].tolist()
    if not keep:
        raise UsageError(f"every sample already has the target class {target}")
    return replace(whole.at(keep), left_out=len(chosen) - len(keep))


def _as_indices(indices: Any) -> tuple[int, ...]:
    if isinstance(indices, str):
        return spec.parse_indices(indices)
    try:
        return tuple(operator.index(i) for i in indices)
    except TypeError:
        raise UsageError(f"indices must be whole numbers or text such as '0-199,400', not {indices!r:.60}") from None
