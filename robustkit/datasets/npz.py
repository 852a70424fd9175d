"""Images from .npz files, and where the datasets that are not bundled are looked for."""

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from robustkit.api import Images, Labels
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError

Split = Literal["test", "train"]


class Arrays(NamedTuple):
    """Images and labels as a file holds them."""

    x: np.ndarray
    y: np.ndarray


@dataclass
class Npz:
    """Any .npz with `x` (uint8 NHWC, NCHW or NHW; or float NCHW in [0,1]) and `y`.

    `classes` is the number of classes, 0 if it is not known.
    """

    path: str = ""
    classes: int = 0

    def __post_init__(self) -> None:
        file = Path(self.path).expanduser()
        if not self.path or not file.is_file():
            raise UsageError(f"there is no file {self.path!r}; give an .npz with x and y, such as ./images.npz")
        self.name = file.name
        self._pair = Pair(*read_npz(file), file.name, self.classes or None)

    def __len__(self) -> int:
        return len(self._pair)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`."""
        return self._pair.batch(indices)


def read_npz(file: Path, split: Split | None = None) -> Arrays:
    """The arrays `x` and `y`, or of a split `x_test` and `y_test` where the file has them.

    Raises:
        UsageError: if the file is no .npz, lacks the arrays, needs pickle, or is of the other split by its name.
    """
    if not zipfile.is_zipfile(file):
        raise UsageError(f"{file} is no .npz file; write one with numpy.savez(file, x=images, y=labels)")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            both = (f"x_{split}", f"y_{split}")
            if split is None or not all(key in arrays for key in both):
                both = ("x", "y")
                _check_split(file, split)
            missing = [key for key in both if key not in arrays]
            if missing:
                found = ", ".join(arrays.files) or "nothing"
                raise UsageError(f"{file} has no {' and no '.join(missing)}; it holds {found}; name the arrays x and y")
            return Arrays(arrays[both[0]], arrays[both[1]])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{file} cannot be read: {error}; write it with numpy.savez(file, x=images, y=labels)"
        ) from error


def _check_split(file: Path, split: Split | None) -> None:
    words = re.split(r"[^a-z]+", file.stem.lower())
    other = "train" if split == "test" else "test"
    if split == "train" and "train" not in words:
        raise UsageError(f"{file} does not say that it is training data; call it …_train.npz or its arrays x_train")
    if split is not None and other in words and split not in words:
        raise UsageError(f"{file} is the {other} split by its name; add split={other}")


def load_split(
    name: str, classes: int, path: str, split: Split, read_folder: Callable[[Path, Split], Arrays | None], advice: str
) -> Pair:
    """A split of a known dataset from `path`, or from where such data usually is.

    Looked through, without a path: the folders ROBUSTKIT_DATA and ROBUSTKIT_KIT name, then ./data; in each,
    `<name>_<split>.npz`, `<name>.npz`, and the original files as `read_folder` knows them.

    Raises:
        UsageError: if nothing is there; the message tells how to get it.
    """
    folders = [os.environ.get("ROBUSTKIT_DATA", ""), os.environ.get("ROBUSTKIT_KIT", ""), "data"]
    places = [Path(path).expanduser()] if path else [Path(f) / sub for f in folders if f for sub in ("", name)]
    for place in places:
        files = [place, place / f"{name}_{split}.npz", place / f"{name}.npz"]
        file = next((f for f in files if f.is_file()), None)
        arrays = read_npz(file, split) if file else read_folder(place, split)
        if arrays:
            return Pair(*arrays, name, classes)
    where = f"not at {path}" if path else "not in the folders ROBUSTKIT_DATA, ROBUSTKIT_KIT or ./data"
    raise UsageError(f"{name} ({split}) is {where}; {advice}, or give an .npz with x and y: {name}:path=./{name}.npz")
