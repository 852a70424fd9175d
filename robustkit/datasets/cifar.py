"""CIFAR-10 and CIFAR-100: the original python batches, in a folder or in their archive, or an .npz.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robustkit.cache import Remote
from robustkit.datasets.local import Known, as_labels, from_archive, load
from robustkit.datasets.npz import Arrays, Split
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def cifar10(path: str = "", split: Split = "test") -> Pair:
    """10 classes, 3×32×32; 10,000 test and 50,000 training images.

    Args:
        path: a folder with cifar-10-python.tar.gz or what is in it, or an .npz; else it is looked for, then fetched.
        split: test or train.
    """
    return load(CIFAR10, path, split)


def cifar100(path: str = "", split: Split = "test") -> Pair:
    """100 (fine) classes, 3×32×32; 10,000 test and 50,000 training images. Settings as of `cifar10`."""
    return load(CIFAR100, path, split)


def _read_cifar10(folder: Path, split: str) -> Arrays | None:
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    return _read_batches(folder, "cifar-10-python.tar.gz", "cifar-10-batches-py", names, b"labels")


def _read_cifar100(folder: Path, split: str) -> Arrays | None:
    return _read_batches(folder, "cifar-100-python.tar.gz", "cifar-100-python", [split], b"fine_labels")


def _read_batches(folder: Path, archive: str, inner: str, names: Sequence[str], labels: bytes) -> Arrays | None:
    if (folder / names[0]).is_file():
        contents = [(folder / name).read_bytes() for name in names]
        where = folder
    else:
        where = folder if folder.name == archive else folder / archive
        found = from_archive(where, [f"{inner}/{name}" for name in names])
        if found is None:
            return None
        contents = found
    batches = [_read_batch(where / name, raw, labels) for name, raw in zip(names, contents, strict=True)]
    return Arrays(np.concatenate([b.x for b in batches]), np.concatenate([b.y for b in batches]))


def _read_batch(file: Path, raw: bytes, labels: bytes) -> Arrays:
    try:
        content = _Batch(io.BytesIO(raw), encoding="bytes").load()
        return Arrays(np.reshape(content[b"data"], (-1, 3, 32, 32)), as_labels(content[labels]))
    except UsageError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        problem = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file} is no batch of the original CIFAR ({problem}); download it again") from error


class _Batch(pickle.Unpickler):
    """Reads arrays, lists, dicts and bytes; refuses every other class, so that a batch cannot run code."""

    def find_class(self, module: str, name: str) -> object:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise UsageError(f"the file asks for {module}.{name}, which no CIFAR batch needs; it was not loaded")


_TEN = Remote(
    "datasets/cifar10/cifar-10-python.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    md5="c58f30108f718f92721af3b95e74349a",
    by_hand=_PAGE,
)
_HUNDRED = Remote(
    "datasets/cifar100/cifar-100-python.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    by_hand=_PAGE,
)
CIFAR10 = Known(
    "cifar10", 10, ("", "cifar-10-batches-py"), _read_cifar10, {"test": (_TEN,), "train": (_TEN,)}
)  # fmt: skip
CIFAR100 = Known(
    "cifar100", 100, ("", "cifar-100-python"), _read_cifar100, {"test": (_HUNDRED,), "train": (_HUNDRED,)}
)  # fmt: skip
