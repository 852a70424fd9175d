"""Where datasets that are not bundled are looked for, and how those that are arrays in files are fetched and read."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from robustkit.cache import Remote, fetch
from robustkit.datasets.npz import Arrays, Split, read_npz
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError

SEARCHED = "the folders ROBUSTKIT_DATA, ROBUSTKIT_KIT or ./data"
Files = Mapping[str, tuple[Remote, ...]]


class Known(NamedTuple):
    """A dataset of arrays that people keep as files."""

    name: str
    classes: int
    folders: tuple[str, ...]  # where its files usually lie, below a data folder; "" is the data folder itself
    read: Callable[[Path, str], Arrays | None]  # a split from the files of one folder; None if they are not there
    files: Files  # by split: the publisher's files, to be fetched


def load(known: Known, path: str, split: Split | Literal["extra"]) -> Pair:
    """A split of a known dataset from `path`; without a path from where such data usually is, or fetched.

    Looked through: `<name>_<split>.npz`, `<name>.npz`, `<name>_<split>_batch1.npz` and so on, and the original files,
    in each place.

    Raises:
        UsageError: if it is in none of the places and cannot be fetched; the message tells where to put it.
    """
    what = f"{known.name} ({split})"
    for place in places(known.name, path, known.folders):
        npz = next((f for f in _npz_files(place, known.name, split) if f.is_file()), None)
        arrays = read_npz(npz, split) if npz else _read_parts(place, known.name, split) or known.read(place, split)
        if arrays:
            return Pair(*arrays, known.name, known.classes)
    if path:
        wanted = ", ".join(Path(remote.place).name for remote in known.files[split])
        raise UsageError(
            f"{what} is not at {path}; put {wanted} there, or give an .npz with x and y: "
            f"{known.name}:path=./{known.name}.npz"
        )
    try:
        fetched = [fetch(remote) for remote in known.files[split]]
    except UsageError as error:
        raise UsageError(f"{what} is not in {SEARCHED}; {error}; or give its folder: {known.name}:path=…") from error
    arrays = known.read(fetched[0].parent, split)
    if arrays is None:
        raise UsageError(f"{what} was fetched to {fetched[0].parent}, but its files are not what they should be")
    return Pair(*arrays, known.name, known.classes)


def places(name: str, path: str, folders: Sequence[str] = ("",)) -> Iterator[Path]:
    """The folders (or the file) to look in: `path`, or without one those of ROBUSTKIT_DATA, ROBUSTKIT_KIT and ./data.

    In each, the subfolders that usually hold the dataset come along.
    """
    if path:
        roots = [Path(path).expanduser()]
    else:
        given = [os.environ.get("ROBUSTKIT_DATA", ""), os.environ.get("ROBUSTKIT_KIT", ""), "data"]
        roots = [Path(folder) for folder in given if folder]
    for root in roots:
        subfolders = dict.fromkeys(["", *folders] if path else [*folders, name])
        yield from (root / subfolder for subfolder in subfolders)


def find_folder(name: str, path: str, folders: Sequence[str], advice: str) -> Path:
    """The first place that is a folder, for datasets of image files.

    Raises:
        UsageError: if there is none; it says where to put the data.
    """
    for place in places(name, path, folders):
        if place.is_dir():
            return place
    where = f"not at {path}" if path else f"not in {SEARCHED}"
    raise UsageError(f"{name} is {where}; {advice}; then {name}:path=…, or put it into ./data/{name}")


def _npz_files(place: Path, name: str, split: str) -> list[Path]:
    itself = [place] if place.suffix not in (".gz", ".tar", ".mat") else []
    return [*itself, place / f"{name}_{split}.npz", place / f"{name}.npz"]


def _read_parts(place: Path, name: str, split: str) -> Arrays | None:
    """A split that is kept in several .npz files, numbered from 1, all that are there; None if there are none."""
    files = list(takewhile(Path.is_file, (place / f"{name}_{split}_batch{i}.npz" for i in count(1))))
    parts = [read_npz(file, split) for file in files]
    return Arrays(*map(np.concatenate, zip(*parts, strict=True))) if parts else None


def from_archive(archive: Path, members: Sequence[str]) -> list[bytes] | None:
    """The content of some members of a tar archive, in their order; None if there is no such archive.

    Raises:
        UsageError: if it is no archive, is cut short, or lacks one of them.
    """
    import tarfile
    import zlib

    if not archive.is_file():
        return None
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name in members and (stream := tar.extractfile(member)):
                    found[member.name] = stream.read()
                if len(found) == len(members):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{archive} cannot be read ({error}); delete it and get it again") from error
    if missing := [name for name in members if name not in found]:
        raise UsageError(f"{archive} has no {missing[0]}; delete it and get it again")
    return [found[name] for name in members]


def as_labels(values: object) -> np.ndarray:
    """Labels as int64."""
    return np.asarray(values, dtype=np.int64)
