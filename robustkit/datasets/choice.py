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
from robustkit.datasets.subset import SEED, balanced, by_class, known_labels
from robustkit.errors import UsageError

CHUNK = 64  # images looked at together: few, since they may be large


class MissingSampleError(UsageError):
    """A sample was asked for that a dataset of fewer samples has not."""

    def __init__(self, index: int, name: str, size: int) -> None:
        super().__init__(
            f"sample {index} was asked for, but {name} has only {size} samples: indices must be different numbers from "
            f"0 to {size - 1}"
        )
        self.index, self.name, self.size = index, name, size


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a run in their order, known by their hashes; images are fetched a shard at a time.

    `rule` says how they were chosen where the dataset's first ones would not do; `left_out` counts those that a
    targeted run has no use for.
    """

    dataset: Dataset
    indices: tuple[int, ...]
    labels: Labels
    hashes: tuple[str, ...]
    left_out: int = 0
    rule: str = ""

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

    def some(self, n: int) -> "Samples":
        """At most n of them: the first, or where they lie class by class as many of each class."""
        few = n < len(self) and by_class(self.labels)
        return self.at(balanced(self.labels, n) if few else range(min(n, len(self))))

    def flags(self, classes: int) -> list[dict[str, Any]]:
        """What a record says of the choice of samples and of their images, for a model of so many classes."""
        found = [("n-rule", self.rule)] if self.rule else []
        present = len(set(self.labels.tolist())) + bool(self.left_out)
        if present < classes:
            text = (
                f"the samples are of {present} of the model's {classes} classes; the figures say nothing of the others"
            )
            found.append(("few-classes", text))
        found += [("images", note) for note in getattr(self.dataset, "notes", ())]
        return [{"kind": kind, "message": message} for kind, message in found]

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
    """Which samples: all, n of them, or those at `indices`.

    n are the first n, or, where the dataset is known to lie class by class, a class-balanced draw, see `subset`.

    Raises:
        UsageError: for a choice that the dataset cannot meet.
    """
    return _choice(dataset, n, indices)[0]


def _choice(dataset: Dataset, n: int | None, indices: Any) -> tuple[tuple[int, ...], str]:
    """The indices, and the rule behind them if it is not that they are the first ones or were named."""
    size = len(dataset)
    if n is not None and indices is not None:
        raise UsageError("give n or indices, not both")
    chosen, rule = tuple(range(size)) if indices is None else _as_indices(indices), ""
    if n is not None:
        n = spec.whole(n, "n", None)
        if not 1 <= n <= size:
            raise UsageError(f"n = {n}, but {dataset.name} has {size} samples; choose 1 to {size}")
        labels = known_labels(dataset) if n < size else None
        chosen = chosen[:n]
        if labels is not None and by_class(labels):
            chosen = tuple(balanced(labels, n))
            rule = (
                f"the data lie class by class, so n = {n} of {size} is a class-balanced draw (seed {SEED}); "
                f"indices 0-{n - 1} would be the first"
            )
    if chosen and max(chosen) >= size:
        raise MissingSampleError(max(chosen), dataset.name, size)
    if not chosen or min(chosen) < 0 or max(chosen) >= size or len(set(chosen)) != len(chosen):
        raise UsageError(f"indices must be different numbers from 0 to {size - 1}; {dataset.name} has {size} samples")
    return chosen, rule


def choose_samples(dataset: Dataset, n: int | None, indices: Any, target: str = "") -> Samples:
    """The samples of a run, see `choose_indices`; without those that are of the target class already.

    Raises:
        UsageError: for a choice that the dataset cannot meet.
    """
    chosen, rule = _choice(dataset, n, indices)
    labels, hashes = [], []
    for start in range(0, len(chosen), CHUNK):
        x, y = check_images(*dataset.batch(chosen[start : start + CHUNK]), dataset.name, dataset.classes or None)
        labels.append(y)
        hashes += [image_sha256(image) for image in x]
    whole = Samples(dataset, chosen, torch.cat(labels), tuple(hashes), rule=rule)
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
        indices = list(indices)
        if any(str(i) in ("True", "False", "tensor(True)", "tensor(False)") for i in indices):
            raise TypeError  # a mask would be read as the places 0 and 1
        return tuple(operator.index(i) for i in indices)
    except TypeError:
        given = repr(indices).replace("\n", "")
        raise UsageError(f"indices must be whole numbers or text such as '0-199,400', not {given:.60}") from None
