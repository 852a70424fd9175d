"""A torch map-style dataset, whose items are (image, label), as a robustkit dataset."""

from collections.abc import Sequence
from typing import Any

import torch

from robustkit.api import Images, Labels
from robustkit.datasets.pair import check_images


class Mapped:
    """Items are fetched when a batch is asked for; images must be float tensors (C, H, W) in [0,1]."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self.name = type(items).__name__
        self.classes = len(getattr(items, "classes", ())) or 0

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images and labels at `indices`.

        Raises:
            UsageError: if they are no images in [0,1] with labels.
        """
        pairs = [self.items[i] for i in indices]
        x = torch.stack([torch.as_tensor(image) for image, _ in pairs])
        y = torch.tensor([int(label) for _, label in pairs])
        x, y = check_images(x, y, self.name)
        return (x.float() / 255 if x.dtype == torch.uint8 else x), y
