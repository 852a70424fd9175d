"""Datasets of the Hugging Face hub or in its formats on disk: `hf/ORG/NAME:split=test`, `hf/./folder`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustkit import cache
from robustkit.api import Images, Labels
from robustkit.datasets.images import Framing, need_pillow, stacked
from robustkit.datasets.pair import as_rows
from robustkit.errors import UsageError
from robustkit.models.sources.python import typed_arguments
from robustkit.spec import suggest


class HuggingFace:
    """The source of what the package `datasets` reads."""

    def names(self) -> Sequence[str]:
        """None: whatever is on the hub or on disk."""
        return ()

    def make(self, name: str, options: Mapping[str, str]) -> "Table":
        """The images and labels of a table; for the options see `load`.

        Raises:
            UsageError: if it cannot be had, or has no column of images or of labels.
        """
        return load(name, **typed_arguments(_settings, options, f"hf/{name}"))


def _settings(
    split: str = "test", image: str = "", label: str = "", config: str = "", size: int = 0, grey: bool = False
) -> None:
    """What may be set."""


class Table:
    """A table of images and labels; a batch decodes only its own rows. `labels` are known without that."""

    def __init__(self, rows: Any, name: str, image: str = "", label: str = "", framing: Framing | None = None) -> None:
        kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
        label = _column(name, kinds, label, "label", "ClassLabel")
        self.rows, self.name, self.image = rows, name, _column(name, kinds, image, "image", "Image")
        self.framing = framing or Framing()
        labels = rows[label][:]
        if not labels or not all(isinstance(value, int) and not isinstance(value, bool) for value in labels):
            odd = next((f": row {i} has {v!r}" for i, v in enumerate(labels) if not isinstance(v, int)), "")
            raise UsageError(
                f"{name}: the column {label!r} holds no class numbers{odd:.60}; name another with label=, or "
                f"make it one of numbers: class_encode_column({label!r})"
            )
        self.labels: Labels = torch.tensor(labels, dtype=torch.int64)
        self.classes = int(getattr(rows.features[label], "num_classes", 0) or 0)
        self.class_names = tuple(getattr(rows.features[label], "names", None) or ())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`.

        Raises:
            UsageError: for an index that is not there, or images of different sizes.
        """
        wanted = as_rows(indices, len(self), self.name)
        images = self.rows[wanted.tolist()][self.image] if len(wanted) else []
        read = [self._read(image, int(row)) for image, row in zip(images, wanted, strict=True)]
        return stacked(read, self.name), self.labels[wanted]

    def _read(self, image: Any, row: int) -> np.ndarray:
        if not hasattr(image, "convert"):
            raise UsageError(
                f"{self.name}: row {row} of the column {self.image!r} is {type(image).__name__}, no image; cast it: "
                f"cast_column({self.image!r}, datasets.Image())"
            )
        try:
            return self.framing.apply(image)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them on a broken image
            raise UsageError(f"{self.name}: row {row} cannot be read as an image: {error}") from error


def load(
    name: str, split: str = "test", image: str = "", label: str = "", config: str = "", size: int = 0,
    grey: bool = False,
) -> Table:  # fmt: skip
    """A table of the hub (its cache and tokens are the package's own), or of a folder on disk.

    Args:
        name: ORG/NAME; or a folder that `save_to_disk` wrote or that holds .parquet files, beginning with . / or ~.
        split: of the dataset.
        image: the column of images; by default the only one of that type.
        label: the column of labels; by default `label`, or the only one of class labels.
        config: of a dataset that has several.
        size: bring images to this size (short side, then the central square; bilinear); 0 leaves them.
        grey: one channel instead of three.

    Raises:
        UsageError: if it cannot be had, or has no such columns.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UsageError("hf/… needs the package 'datasets': pip install 'robustkit-bench[data]'") from error
    need_pillow(f"hf/{name}")
    try:
        found = _on_disk(datasets, Path(name).expanduser(), split) if name[:1] in "./~" else None
        if found is None:
            if cache.offline() and not datasets.config.HF_HUB_OFFLINE:
                raise UsageError(
                    f"hf/{name}: offline; give a folder that save_to_disk wrote (hf/./folder), or set HF_HUB_OFFLINE=1 "
                    "too, to read what the package has in its own cache"
                )
            found = datasets.load_dataset(name, config or None, split=split)
    except UsageError:
        raise
    except Exception as error:  # the package raises what its many back ends raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"hf/{name} ({split}) cannot be had: {first}") from error
    return Table(found, f"hf/{name}", image, label, Framing(size, size, "bilinear", grey))


def _on_disk(datasets: Any, folder: Path, split: str) -> Any:
    """A split from a folder.

    Raises:
        UsageError: if the folder holds nothing that can be read, or not this split.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}; write hf/ORG/NAME for a dataset of the hub")
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(folder))
        if split not in splits:
            raise UsageError(suggest(split, splits, f"split of {folder}"))
        return splits[split]
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(str(folder))
    files = sorted(str(file) for file in folder.rglob("*.parquet"))
    named = [file for file in files if Path(file).name.startswith(split) or Path(file).parent.name == split]
    if not named:
        has = f"its .parquet files are not called {split}…" if files else "no .parquet files"
        raise UsageError(f"{folder} is not of save_to_disk, and {has}; choose with split=")
    return datasets.load_dataset("parquet", data_files=named, split="train")  # its name for files given one by one


def _column(name: str, kinds: Mapping[str, str], given: str, usual: str, kind: str) -> str:
    """The column that is given, or the usual one, or the only one of a kind."""
    if given:
        if given not in kinds:
            raise UsageError(suggest(given, kinds, f"column of {name}"))
        return given
    of_kind = [column for column, found in kinds.items() if found == kind]
    if usual in kinds:
        return usual
    if len(of_kind) == 1:
        return of_kind[0]
    columns = ", ".join(f"{column} ({found})" for column, found in kinds.items())
    raise UsageError(f"{name}: which column is the {usual}? add {usual}=; there are: {columns}")
