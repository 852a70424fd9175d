"""A torch map-style dataset, whose items are (image, label) in one form or another, as a robustkit dataset."""

import operator
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.api import Images, Labels
from robustkit.datasets import items as forms
from robustkit.datasets.pair import check_images
from robustkit.errors import UsageError


class Mapped:
    """Items are fetched when a batch is asked for; images are of one size, tensors (C, H, W) in [0,1] or bytes.

    `labels` are what torchvision calls targets, read without an image; None where the dataset does not offer them.
    """

    def __init__(self, items: Any) -> None:
        self.items = items
        self.name = type(items).__name__
        classes: Any = getattr(items, "classes", None)
        named = isinstance(classes, Sequence | np.ndarray) and not isinstance(classes, str)
        self.names: tuple[str, ...] = tuple(map(str, classes)) if named else ()
        self.class_names = self.names
        self.classes = _count(classes)
        self.labels = _targets(items)

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images and labels at `indices`.

        Raises:
            UsageError: if they are no images of one size in [0,1] with labels; it names the item.
        """
        pairs = [forms.parts(self.items[i], i, self.name) for i in indices]
        images = [forms.image(image, i, self.name) for i, (image, _) in zip(indices, pairs, strict=True)]
        labels = [forms.label(label, i, self.names, self.name) for i, (_, label) in zip(indices, pairs, strict=True)]
        x, y = self._stacked(images, indices, "image"), self._stacked(labels, indices, "label")
        x, y = check_images(x, y, self.name, places=indices)
        return (x.float() / 255 if x.dtype == torch.uint8 else x), y

    def _stacked(self, values: Sequence[Tensor], indices: Sequence[int], what: str) -> Tensor:
        for value, index in zip(values, indices, strict=True):
            if value.shape != values[0].shape:
                one, other = (list(v.shape) or "one number" for v in (values[0], value))
                advice = (
                    "bring them to one size, such as with torchvision's Resize" if what == "image" else "give numbers"
                )
                raise UsageError(
                    f"{self.name}: the {what} of item {indices[0]} is {one}, that of item {index} {other}; {advice}"
                )
        return torch.stack(list(values))


def _count(classes: Any) -> int:
    """How many classes a dataset's `classes` says there are: a number, or their names; 0 of anything else."""
    if isinstance(classes, Sized):
        return len(classes)
    try:
        return operator.index(classes)
    except TypeError:  # None, or a method
        return 0


def _targets(items: Any) -> Tensor | None:
    """The labels of all items where the dataset has them as torchvision's have; a subset has its dataset's."""
    inner, rows = getattr(items, "dataset", None), getattr(items, "indices", None)
    if inner is not None and rows is not None:
        found = _targets(inner)
        return None if found is None else found[torch.as_tensor(rows)]
    tensors: Any = getattr(items, "tensors", None)  # of a TensorDataset
    last = tensors[1] if isinstance(tensors, tuple) and len(tensors) > 1 else None
    values: Any = next((v for name in ("targets", "labels") if (v := getattr(items, name, None)) is not None), last)
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):  # nothing, or in a form of its own
        return None
    return found if found.dim() == 1 and len(found) == len(items) else None
