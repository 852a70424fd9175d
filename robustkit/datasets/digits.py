"""8×8 handwritten digits that come with the package, so that something runs with no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, its test
part as scikit-learn has it, value for value. `digits-LICENSE.txt` beside the file says under which terms.
"""

from pathlib import Path

import numpy as np

from robustkit.datasets.npz import Split
from robustkit.datasets.pair import Pair

_FILE = Path(__file__).with_name("digits.npz")
_INK = 16  # how many of a cell's 4×4 points may be ink


def digits(split: Split = "test") -> Pair:
    """1,797 images in ten classes; of each class, every fifth image in the original order is the test split."""
    with np.load(_FILE, allow_pickle=False) as stored:
        pixels, y = stored["pixels"], stored["labels"]
    x = (pixels / _INK).astype(np.float32).reshape(-1, 1, 8, 8)
    test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    rows = test if split == "test" else ~test
    return Pair(x[rows], y[rows].astype(np.int64), "digits", 10)
