"""Images from .npz files: `./images.npz`."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError
from robustkit.models.sources.python import typed_arguments

Split = Literal["test", "train"]


class Arrays(NamedTuple):
    """Images and labels as a file holds them."""

    x: np.ndarray
    y: np.ndarray


class Npz:
    """The source of files: any .npz with `x` (uint8 NHWC, NCHW or NHW; or float NCHW in [0,1]) and `y`."""

    def names(self) -> Sequence[str]:
        """None: the files are the user's."""
        return ()

    def make(self, name: str, options: Mapping[str, str]) -> Pair:
        """The images and labels in the file `name`; the option `classes` is the number of classes, 0 if unknown.

        Raises:
            UsageError: if there is no such file, it holds no images with labels, or an option is unknown.
        """
        file = Path(name).expanduser()
        classes = typed_arguments(_settings, options, name).get("classes", 0)
        if not file.is_file():
            raise UsageError(f"there is no file {name!r}; give an .npz with x and y, such as ./images.npz")
        return Pair(*read_npz(file), file.name, classes or None)


def _settings(classes: int = 0) -> None:
    """What may be set."""


def read_npz(file: Path, split: str | None = None) -> Arrays:
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


def _check_split(file: Path, split: str | None) -> None:
    words = re.split(r"[^a-z]+", file.stem.lower())
    if split in ("train", "extra") and split not in words:
        name = {"train": "training"}.get(split, split)
        raise UsageError(f"{file} does not say that it is {name} data; call it …_{split}.npz or its arrays x_{split}")
    if split == "test" and "train" in words and "test" not in words:
        raise UsageError(f"{file} is the train split by its name; add split=train")
