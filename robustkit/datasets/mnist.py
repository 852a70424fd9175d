"""MNIST: the original idx files, gzipped or not, or an .npz.

Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition", 1998.
"""

import gzip
import zlib
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
class Mnist:
    """10 classes, 1×28×28. `path` is a folder (of the idx files, or what contains MNIST/raw) or an .npz."""

    path: str = ""
    split: Split = "test"

    name = "mnist"
    classes = 10

    def __len__(self) -> int:
        return len(self._pair)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`."""
        return self._pair.batch(indices)

    @cached_property
    def _pair(self) -> Pair:
        advice = "put t10k-images-idx3-ubyte.gz and the other three idx files into ./data/mnist"
        return load_split(self.name, self.classes, self.path, self.split, _read_folder, advice)


def _read_folder(folder: Path, split: Split) -> Arrays | None:
    prefix = "t10k" if split == "test" else "train"
    for root in (folder, folder / "MNIST" / "raw"):
        images, labels = _find(root, f"{prefix}-images", "idx3-ubyte"), _find(root, f"{prefix}-labels", "idx1-ubyte")
        if images and labels:
            return Arrays(read_idx(images), read_idx(labels).astype(np.int64))
    return None


def _find(root: Path, head: str, tail: str) -> Path | None:
    files = [root / f"{head}{dot}{tail}{gz}" for dot in "-." for gz in ("", ".gz")]
    return next((f for f in files if f.is_file()), None)


def read_idx(file: Path) -> np.ndarray:
    """The bytes of an idx file, in its shape.

    Raises:
        UsageError: if the file is not of that format, or cut short.
    """
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin with the mark of idx bytes")
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()
    except (ValueError, IndexError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{file} is no idx file ({error}); download it again") from error
