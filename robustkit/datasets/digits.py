"""The 8×8 handwritten digits that come with scikit-learn, so that something runs with no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from robustkit.api import Images, Labels
from robustkit.datasets.pair import Pair


@dataclass(frozen=True)
class Digits:
    """1,797 images in ten classes; of each class, every fifth image in the original order is the test split."""

    split: Literal["test", "train"] = "test"

    name = "digits"
    classes = 10

    def __len__(self) -> int:
        return len(self._pair)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`."""
        return self._pair.batch(indices)

    @cached_property
    def _pair(self) -> Pair:
        from sklearn.datasets import load_digits  # slow to import

        pixels, y = load_digits(return_X_y=True)
        x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        test = np.zeros(len(y), dtype=bool)
        for label in range(10):
            test[np.flatnonzero(y == label)[4::5]] = True
        rows = test if self.split == "test" else ~test
        return Pair(x[rows], y[rows].astype(np.int64), self.name, self.classes)
