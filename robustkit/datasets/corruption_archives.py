"""The published corruption archives: CIFAR-10-C, CIFAR-100-C and ImageNet-C.

Source: D. Hendrycks and T. Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019; the archives are on zenodo.org (records 2535967, 3555552 and 2235448).
"""

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from robustkit.api import Images, Labels
from robustkit.cache import Remote, fetch
from robustkit.corruptions.images import SEVERITIES, check_severity, kind_named
from robustkit.datasets.folder import class_folders, numbered_files
from robustkit.datasets.imagenet import Subset, class_numbers, pick, robustbench_list
from robustkit.datasets.images import Framing, ImageFiles, hidden
from robustkit.datasets.local import SEARCHED, find_folder, places
from robustkit.datasets.pair import as_rows
from robustkit.errors import UsageError


class _Stored(NamedTuple):
    """Where the bytes of an array lie: in a .npy file, or inside an (uncompressed) tar archive."""

    file: Path
    offset: int


@dataclass(frozen=True)
class CifarC:
    """CIFAR's 10,000 test images under a corruption: arrays that are mapped, not loaded."""

    name: str
    classes: int
    stored: Mapping[str, _Stored] = field(repr=False)
    kind: str = ""
    severity: int = 0

    clean = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The corruptions whose arrays are there."""
        return tuple(sorted(kind for kind in self.stored if kind != "labels"))

    @property
    def labels(self) -> Labels:
        """The images' classes, without reading one."""
        return torch.from_numpy(self._labels[: len(self)].astype(np.int64))

    def at(self, kind: str, severity: int) -> "CifarC":
        """The same images under another corruption.

        Raises:
            UsageError: for a kind that is not there, or no severity from 1 to 5.
        """
        check_severity(severity)
        return replace(self, kind=kind_named(kind, self.kinds), severity=severity)

    def __len__(self) -> int:
        return len(self._labels) // len(SEVERITIES)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels at `indices`; only they are read.

        Raises:
            UsageError: if no kind was chosen, or for an index that is not there.
        """
        rows = as_rows(indices, len(self), self.name)
        if not self.kind:
            raise UsageError(
                f"{self.name}: choose one: kind=gaussian-noise,severity=3; there are: {', '.join(self.kinds)}"
            )
        at = rows.numpy() + (self.severity - 1) * len(self)
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels[at].transpose(0, 3, 1, 2)))
        return pixels.float() / 255, torch.from_numpy(self._labels[at].astype(np.int64))

    @cached_property
    def _pixels(self) -> np.ndarray:
        pixels = _mapped(self.stored[self.kind])
        if pixels.dtype != np.uint8 or pixels.shape != (len(self._labels), 32, 32, 3):
            raise UsageError(
                f"{self.name}: {self.kind} is {pixels.dtype} of shape {pixels.shape}, not bytes of "
                f"{len(self._labels)}×32×32×3; get the archive again"
            )
        return pixels

    @cached_property
    def _labels(self) -> np.ndarray:
        labels = _mapped(self.stored["labels"])
        if labels.ndim != 1 or len(labels) % len(SEVERITIES) or not len(labels):
            raise UsageError(f"{self.name}: labels of shape {labels.shape} are not five times as many as images")
        return labels


def cifar10_c(path: str = "", kind: str = "", severity: int = 0) -> CifarC:
    """CIFAR-10-C: 10 classes, 3×32×32, 19 kinds of corruption, 10,000 images at each of five severities.

    Args:
        path: the folder CIFAR-10-C, or CIFAR-10-C.tar (which is read as it is); else it is looked for, then fetched.
        kind: of corruption.
        severity: 1 to 5.
    """
    return _cifar_c("cifar10-c", 10, "CIFAR-10-C", path, kind, severity)


def cifar100_c(path: str = "", kind: str = "", severity: int = 0) -> CifarC:
    """CIFAR-100-C: 100 classes, 3×32×32. Settings as of `cifar10_c`."""
    return _cifar_c("cifar100-c", 100, "CIFAR-100-C", path, kind, severity)


@dataclass(frozen=True)
class ImageNetC:
    """ImageNet's validation images under a corruption, as files; without a kind nothing can be read."""

    root: Path
    folders: Mapping[str, Path] = field(repr=False)  # of each kind
    subset: Subset = "all"
    crop: int = 224

    name = "imagenet-c"
    classes = 1000
    clean = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The corruptions whose folders are there."""
        return tuple(self.folders)

    def at(self, kind: str, severity: int) -> ImageFiles:
        """The images under one corruption.

        Raises:
            UsageError: for a kind or a severity that is not there.
        """
        check_severity(severity)
        folder = self.folders[kind_named(kind, self.kinds)] / str(severity)
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}; unpack the whole archive of {kind}")
        wnids = class_folders(folder)
        found = numbered_files(folder, wnids, class_numbers(wnids), "ImageNet's 1,000 classes")
        files, labels = found.files, found.labels
        if self.subset == "robustbench":
            files, labels = pick(files, labels, robustbench_list(), str(folder))
        name = f"imagenet-c {kind} {severity}"
        return ImageFiles(name, files, labels, self.classes, Framing(0, self.crop), found.notes)

    def __len__(self) -> int:
        return len(self.at(self.kinds[0], SEVERITIES[0]))

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """Refused: no kind was chosen.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"imagenet-c: choose one: kind=gaussian-noise,severity=3; there are: {', '.join(self.kinds)}")


def imagenet_c(
    path: str = "", kind: str = "", severity: int = 0, subset: Subset = "all", crop: int = 224
) -> ImageNetC | ImageFiles:
    """ImageNet-C: 1,000 classes, 50,000 images of 224×224 at each of five severities.

    Args:
        path: the folder with one folder for each kind (or with the groups noise, blur, weather, digital and extra).
        kind: of corruption.
        severity: 1 to 5.
        subset: all, or robustbench: the 5,000 images of its leaderboard.
        crop: pixels of the central square.
    """
    advice = "unpack the archives of zenodo.org/records/2235448 (noise.tar, blur.tar …)"
    root = find_folder("imagenet-c", path, ("imagenet-c", "ImageNet-C"), advice)
    folders = {place.parent.name.replace("_", "-"): place.parent for place in sorted(root.glob("*/1"))}
    folders |= {place.parent.name.replace("_", "-"): place.parent for place in sorted(root.glob("*/*/1"))}
    folders = {
        kind: folder
        for kind, folder in folders.items()
        if (folder / "1").is_dir() and not kind.isdecimal() and not hidden(folder, root)
    }
    if not folders:
        raise UsageError(f"{root} holds no corruptions; their images lie in KIND/SEVERITY/WNID, as they were unpacked")
    found = ImageNetC(root, folders, subset, crop)
    return found.at(kind, severity) if kind else found


def _cifar_c(name: str, classes: int, folder: str, path: str, kind: str, severity: int) -> CifarC:
    archive = f"{folder}.tar"
    stored = next((s for place in places(name, path, ("", folder)) if (s := _find(place, archive))), None)
    if stored is None and path:
        raise UsageError(f"{name} is not at {path}; give the folder {folder} with labels.npy, or {archive}")
    if stored is None:
        try:
            stored = _in_archive(fetch(ARCHIVES[name]))
        except UsageError as error:
            raise UsageError(f"{name} is not in {SEARCHED}; {error}; or give its folder: {name}:path=…") from error
    found = CifarC(name, classes, stored)
    return found.at(kind, severity) if kind else found


def _find(place: Path, archive: str) -> dict[str, _Stored] | None:
    """The arrays of a folder or an archive; None if there are none."""
    if (place / "labels.npy").is_file():
        return {_kind(file.stem): _Stored(file, 0) for file in sorted(place.glob("*.npy")) if not hidden(file, place)}
    file = place if place.suffix == ".tar" else place / archive
    return _in_archive(file) if file.is_file() else None


def _in_archive(file: Path) -> dict[str, _Stored]:
    try:
        with tarfile.open(file, "r:") as tar:
            found = {
                _kind(Path(m.name).stem): _Stored(file, m.offset_data)
                for m in tar
                if m.name.endswith(".npy") and not Path(m.name).name.startswith(".")
            }
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"{file} cannot be read ({error}); delete it and get it again") from error
    if "labels" not in found:
        raise UsageError(f"{file} has no labels.npy; delete it and get it again")
    return found


def _kind(stem: str) -> str:
    return stem.replace("_", "-")


def _mapped(stored: _Stored) -> np.ndarray:
    """An array of a .npy file, at an offset of the file, mapped into memory."""
    try:
        with stored.file.open("rb") as stream:
            stream.seek(stored.offset)
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, in_columns, dtype = read(stream)
            at = stream.tell()
        if dtype.hasobject:
            raise ValueError("it holds objects, not numbers")
        return np.memmap(stored.file, dtype, "r", at, shape, "F" if in_columns else "C")
    except (ValueError, OSError) as error:
        raise UsageError(f"{stored.file} cannot be read ({error}); get it again") from error


ARCHIVES = {
    name: Remote(
        f"datasets/{name}/{file}",
        (f"https://zenodo.org/records/{record}/files/{file}?download=1",),
        md5=md5,
        by_hand=f"https://zenodo.org/records/{record}",
    )
    for name, file, record, md5 in (
        ("cifar10-c", "CIFAR-10-C.tar", 2535967, "56bf5dcef84df0e2308c6dcbcbbd8499"),
        ("cifar100-c", "CIFAR-100-C.tar", 3555552, "11f0ed0f1191edbf9fa23466ae6021d3"),
    )
}
