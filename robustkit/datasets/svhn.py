"""SVHN, house numbers cropped to 32×32: the publisher's .mat files, or an .npz.

Source: Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu and A. Ng, "Reading digits in natural images with unsupervised
feature learning", 2011. The files call the digit 0 class 10; here it is class 0.
"""

from pathlib import Path
from typing import Literal

from robustkit.cache import Remote
from robustkit.datasets.local import Known, as_labels, load
from robustkit.datasets.npz import Arrays
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError

_ADDRESS = "http://ufldl.stanford.edu/housenumbers/"
_MD5 = {
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}


def svhn(path: str = "", split: Literal["test", "train", "extra"] = "test") -> Pair:
    """10 classes, 3×32×32; 26,032 test, 73,257 training and 531,131 extra images.

    Args:
        path: a folder with test_32x32.mat, or an .npz; else it is looked for, then fetched.
        split: test, train or extra.
    """
    return load(SVHN, path, split)


def _read_folder(folder: Path, split: str) -> Arrays | None:
    file = folder / f"{split}_32x32.mat"
    if not file.is_file():
        return None
    from scipy.io import loadmat  # slow to import

    try:
        content = loadmat(file, variable_names=("X", "y"))
        x, y = content["X"].transpose(3, 2, 0, 1), as_labels(content["y"]).reshape(-1)
    except Exception as error:  # a broken .mat can raise anything
        problem = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file} is no .mat file of SVHN ({problem}); download it again") from error
    if y.min(initial=1) < 1 or y.max(initial=1) > 10:
        raise UsageError(f"{file} has labels from {y.min()} to {y.max()}; SVHN's are 1 to 10; download it again")
    return Arrays(x, y % 10)


SVHN = Known(
    "svhn", 10, ("", "svhn"), _read_folder,
    {
        split: (Remote(f"datasets/svhn/{split}_32x32.mat", (f"{_ADDRESS}{split}_32x32.mat",), md5=md5,
                       magic=(b"MATLAB 5.0",), by_hand=_ADDRESS),)
        for split, md5 in _MD5.items()
    },
)  # fmt: skip
