"""The 8×8 handwritten digits that come with scikit-learn, so that something runs with no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

import numpy as np

from robustkit.datasets.npz import Split
from robustkit.datasets.pair import Pair


def digits(split: Split = "test") -> Pair:
    """1,797 images in ten classes; of each class, every fifth image in the original order is the test split."""
    from sklearn.datasets import load_digits  # slow to import

    pixels, y = load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    rows = test if split == "test" else ~test
    return Pair(x[rows], y[rows].astype(np.int64), "digits", 10)
