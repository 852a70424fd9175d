"""CIFAR-10 and CIFAR-100: the original python batches, or an .npz.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from robustkit.api import Images, Labels
from robustkit.datasets.npz import Arrays, Split, load_split
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError


@dataclass(frozen=True)
class Cifar10:
    """10 classes, 3×32×32. `path` is a folder (cifar-10-batches-py, or what contains it) or an .npz."""

    path: str = ""
    split: Split = "test"

    name = "cifar10"
    classes = 10

    def __len__(self) -> int:
        return len(self._pair)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`."""
        return self._pair.batch(indices)

    @cached_property
    def _pair(self) -> Pair:
        advice = "unpack cifar-10-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html into ./data"
        return load_split(self.name, self.classes, self.path, self.split, _read_cifar10, advice)


@dataclass(frozen=True)
class Cifar100:
    """100 (fine) classes, 3×32×32. `path` is a folder (cifar-100-python, or what contains it) or an .npz."""

    path: str = ""
    split: Split = "test"

    name = "cifar100"
    classes = 100

    def __len__(self) -> int:
        return len(self._pair)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`."""
        return self._pair.batch(indices)

    @cached_property
    def _pair(self) -> Pair:
        advice = "unpack cifar-100-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html into ./data"
        return load_split(self.name, self.classes, self.path, self.split, _read_cifar100, advice)


def _read_cifar10(folder: Path, split: Split) -> Arrays | None:
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    return _read_batches(folder, "cifar-10-batches-py", names, b"labels")


def _read_cifar100(folder: Path, split: Split) -> Arrays | None:
    return _read_batches(folder, "cifar-100-python", [split], b"fine_labels")


def _read_batches(folder: Path, inner: str, names: Sequence[str], labels: bytes) -> Arrays | None:
    for root in (folder, folder / inner):
        if (root / names[0]).is_file():
            batches = [_read_batch(root / name, labels) for name in names]
            return Arrays(np.concatenate([b.x for b in batches]), np.concatenate([b.y for b in batches]))
    return None


def _read_batch(file: Path, labels: bytes) -> Arrays:
    try:
        with file.open("rb") as stream:
            content = _Batch(stream, encoding="bytes").load()
        return Arrays(np.reshape(content[b"data"], (-1, 3, 32, 32)), np.asarray(content[labels], dtype=np.int64))
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
