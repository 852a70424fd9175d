"""A folder with one folder of images a class: `folder/PATH`, the layout of torchvision's ImageFolder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from robustkit.datasets.images import Framing, ImageFiles, Interpolation, hidden, images_in
from robustkit.errors import UsageError
from robustkit.models.sources.python import typed_arguments


class Folder:
    """The source of class folders: classes are the folders' names, sorted, or as a class list numbers them."""

    def names(self) -> Sequence[str]:
        """None: the folders are the user's."""
        return ()

    def make(self, name: str, options: Mapping[str, str]) -> ImageFiles:
        """The images below the folder `name`; for the options see `image_folder`.

        Raises:
            UsageError: if there is no such folder, it holds no class folders, or an option is unknown.
        """
        return image_folder(name, **typed_arguments(_settings, options, f"folder/{name}"))


def _settings(size: int = 0, classes: str = "", interpolation: Interpolation = "bilinear", grey: bool = False) -> None:
    """What may be set."""


def image_folder(
    path: str, size: int = 0, classes: str = "", interpolation: Interpolation = "bilinear", grey: bool = False
) -> ImageFiles:
    """The images of class folders; a batch reads only its own files.

    Args:
        path: the folder of the class folders.
        size: bring images to this size: the short side resized to it, then the central square; 0 leaves them.
        classes: a file that numbers the classes, see `read_classes`; else the sorted folders are 0, 1, 2 …
        interpolation: of the resizing, bilinear or bicubic.
        grey: one channel instead of three.

    Raises:
        UsageError: if there is no such folder, or its folders do not fit the class list.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UsageError(f"there is no folder {path!r}; give one that holds a folder of images for each class")
    folders = class_folders(root)
    if not folders:
        raise UsageError(f"{path} holds no class folders; {_instead(root, path)}")
    numbers = read_classes(Path(classes)) if classes else {name: i for i, name in enumerate(folders)}
    found = numbered_files(root, folders, numbers, classes or "the class list")
    notes = found.notes
    if not classes and all(name.isdecimal() for name in folders) and folders != sorted(folders, key=int):
        odd = next(name for i, name in enumerate(folders) if int(name) != i)
        notes += (
            f"the class folders are numbers, and sorted as text, as torchvision's ImageFolder does: {odd} is class "
            f"{numbers[odd]}; classes=FILE numbers them otherwise",
        )
    framing = Framing(size, size, interpolation, grey)
    count = max(numbers.values()) + 1
    names = dict.fromkeys(range(count), "") | {number: name for name, number in numbers.items()}
    return ImageFiles(root.name or path, found.files, found.labels, count, framing, notes, tuple(names.values()))


def _instead(root: Path, path: str) -> str:
    """What to do with a folder that holds other things than class folders."""
    arrays = sorted(file.name for file in root.glob("*.npz"))
    if arrays:
        return f"give one of the files in it: {path.rstrip('/')}/{arrays[0]}"
    if any(root.glob("*.parquet")) or any(root.glob("*.arrow")) or (root / "dataset_dict.json").is_file():
        return f"data of Hugging Face are named hf/{path}"
    return f"images go into one folder a class: {path.rstrip('/')}/cat/1.png"


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones left out."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not hidden(entry, root))


class Found(NamedTuple):
    """The files of class folders, their labels, and how many files in them are hidden and were skipped."""

    files: list[str]
    labels: list[int]
    hidden: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What a dataset of them has to say."""
        return (f"hidden image files in the class folders are skipped ({self.hidden})",) if self.hidden else ()


def numbered_files(root: Path, folders: Sequence[str], numbers: Mapping[str, int], listed: str) -> Found:
    """The image files of class folders and their labels, by folder and then by name.

    Raises:
        UsageError: for a folder that has no number.
    """
    if unknown := [name for name in folders if name not in numbers]:
        raise UsageError(f"{root / unknown[0]} is no class of {listed}; remove the folder or add it there")
    files: list[str] = []
    labels: list[int] = []
    skipped = 0
    for folder in folders:
        found, unseen = images_in(root / folder)
        files += found
        labels += [numbers[folder]] * len(found)
        skipped += unseen
    return Found(files, labels, skipped)


def read_classes(file: Path) -> dict[str, int]:
    """The class number of each folder name, from a text with one name a line, or JSON.

    JSON may be a list of names, {name: number}, or {number: name} where a name may lead a list ([wnid, word]).

    Raises:
        UsageError: if it is none of these, or two names share a number.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}; classes= names a JSON or text file") from error
    try:
        found = _numbered(json.loads(text) if file.suffix == ".json" else text.split("\n"))
    except (ValueError, TypeError, IndexError) as error:
        raise UsageError(f"{file} is no class list ({error}); write one folder name a line, or JSON") from error
    if not found or len(set(found.values())) != len(found) or min(found.values()) < 0:
        raise UsageError(f"{file} is no class list: each class needs a number of its own, from 0")
    return found


def _numbered(content: object) -> dict[str, int]:
    if isinstance(content, list):
        names = [str(name).strip() for name in content]
        return {name: i for i, name in enumerate(name for name in names if name)}
    if not isinstance(content, dict):
        raise ValueError("neither a list nor an object")
    if all(isinstance(value, int) for value in content.values()):
        return dict(content)
    return {str(value[0] if isinstance(value, list) else value): int(key) for key, value in content.items()}
