"""ImageNet's validation images and Tiny ImageNet, from folders of the user's: their licences forbid fetching them here.

Sources: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, arXiv:1409.0575; Tiny
ImageNet, Stanford's CS231N, http://cs231n.stanford.edu/tiny-imagenet-200.zip. RobustBench's list of 5,000 images is
read from the installed robustbench package (MIT licence), by file name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from robustkit.datasets.folder import class_folders, numbered_files
from robustkit.datasets.images import Framing, ImageFiles, Interpolation, hidden
from robustkit.datasets.local import find_folder
from robustkit.datasets.names import imagenet_names
from robustkit.datasets.npz import Split
from robustkit.errors import UsageError

CLASSES = 1000
Subset = Literal["all", "robustbench"]
_WNID = re.compile(r"n\d{8}")


def imagenet(
    path: str = "",
    subset: Subset = "all",
    labels: str = "",
    resize: int = 256,
    crop: int = 224,
    interpolation: Interpolation = "bilinear",
) -> ImageFiles:
    """The 50,000 validation images in 1,000 classes, numbered by sorted WordNet id as usual.

    Standard preprocessing: the short side resized to 256 (bilinear, antialiased), the central 224×224. Some networks
    were made for others (timm's cards tell): resize=, crop=, interpolation=.

    Args:
        path: the folder of the images (or what contains `val`): folders by WordNet id, or flat with `labels`.
        subset: all, or robustbench: the 5,000 images of its leaderboard, in its order.
        labels: of a flat folder: a file with `<image> <class>` a line, or one class a line in the images' order (a
            WordNet id; or a number from 0 beside the image's name), or the devkit's ground truth (see `read_truth`).
        resize: pixels of the short side.
        crop: pixels of the central square.
        interpolation: bilinear or bicubic.

    Raises:
        UsageError: if the images or their labels are not there.
    """
    advice = "it must be asked for at image-net.org: unpack ILSVRC2012_img_val.tar"
    root = find_folder("imagenet", path, ("val", "imagenet/val", "ILSVRC2012/val"), advice)
    root = root / "val" if (root / "val").is_dir() else root
    folders = [name for name in class_folders(root) if _WNID.fullmatch(name)]
    notes: tuple[str, ...] = ()
    if folders:
        found = numbered_files(root, folders, class_numbers(folders), "ImageNet's 1,000 classes")
        files, classes, notes = found.files, found.labels, found.notes
    else:
        files = sorted(str(file) for file in root.glob("*.JPEG") if not hidden(file, root))
        if not files:
            raise UsageError(f"{root} has neither class folders (n01440764 …) nor ILSVRC2012_val_….JPEG files")
        classes = read_truth(labels, [Path(file).name for file in files])
    if subset == "robustbench":
        files, classes = pick(files, classes, robustbench_list(), str(root))
    framing = Framing(resize, crop, interpolation)
    return ImageFiles("imagenet", files, classes, CLASSES, framing, notes, imagenet_names())


def tiny_imagenet(path: str = "", split: Split = "test", size: int = 0) -> ImageFiles:
    """200 classes, 3×64×64, numbered by sorted WordNet id; test is the 10,000 validation images, train the 100,000.

    Args:
        path: the folder tiny-imagenet-200.
        split: test or train.
        size: bring the images to this size; 0 leaves 64×64.

    Raises:
        UsageError: if the images or their annotations are not there.
    """
    advice = "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    root = find_folder("tiny-imagenet", path, ("tiny-imagenet-200",), advice)
    if not (root / "wnids.txt").is_file():
        raise UsageError(f"{root} has no wnids.txt; give the folder tiny-imagenet-200 as it was unpacked")
    numbers = {wnid: i for i, wnid in enumerate(sorted((root / "wnids.txt").read_text().split()))}
    framing = Framing(size, size)
    if split == "train":
        found = numbered_files(root / "train", class_folders(root / "train"), numbers, "wnids.txt")
        return ImageFiles("tiny-imagenet", found.files, found.labels, len(numbers), framing, found.notes)
    truth = root / "val" / "val_annotations.txt"
    if not truth.is_file():
        raise UsageError(f"there is no {truth}; give the folder tiny-imagenet-200 as it was unpacked")
    rows = [line.split("\t") for line in truth.read_text().splitlines() if line.strip()]
    if bad := [row for row in rows if len(row) < 2 or row[1] not in numbers]:
        raise UsageError(f"{truth}: {bad[0][:2]} is no image with a class of wnids.txt")
    rows.sort()
    files = [str(root / "val" / "images" / row[0]) for row in rows]
    return ImageFiles("tiny-imagenet", files, [numbers[row[1]] for row in rows], len(numbers), framing)


def class_numbers(wnids: Sequence[str] = ()) -> dict[str, int]:
    """The number of each of ImageNet's WordNet ids: their order, if all 1,000 are given, else as robustbench has it.

    Raises:
        UsageError: if some are missing and robustbench is not installed.
    """
    if len(wnids) == CLASSES:
        return {wnid: i for i, wnid in enumerate(sorted(wnids))}
    what = f"{len(wnids)} of 1,000 class folders are there, so that their numbers must be looked up, which"
    numbers: dict[str, int] = json.loads(_robustbench_file("imagenet_class_to_id_map.json", what).read_text())
    return numbers


def robustbench_list() -> list[str]:
    """RobustBench's 5,000 images as `<WordNet id>/<file name>`, in its order.

    Raises:
        UsageError: if robustbench is not installed.
    """
    return _robustbench_file("imagenet_test_image_ids.txt", "subset=robustbench").read_text().split()


def _robustbench_file(name: str, what: str) -> Path:
    """A file of the robustbench package, which is not imported: that would need what it does not install."""
    spec = find_spec("robustbench")
    files = [Path(root) / "helper_files" / name for root in (spec.submodule_search_locations or ())] if spec else []
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UsageError(f"{what} needs the list in the package robustbench: pip install 'robustkit-bench[zoo]'")
    return found


def pick(files: Sequence[str], labels: Sequence[int], wanted: Sequence[str], where: str) -> tuple[list[str], list[int]]:
    """Some of the files by their names, in the wanted order.

    Raises:
        UsageError: if any is missing.
    """
    by_name = {Path(file).name: i for i, file in enumerate(files)}
    names = [entry.rpartition("/")[2] for entry in wanted]
    if missing := [name for name in names if name not in by_name]:
        raise UsageError(f"{where} lacks {len(missing)} of the {len(names)} images, such as {missing[0]}")
    rows = [by_name[name] for name in names]
    return [files[row] for row in rows], [labels[row] for row in rows]


def read_truth(labels: str, names: Sequence[str]) -> list[int]:
    """The class of each image of a flat folder, from a ground-truth file.

    The devkit's ILSVRC2012_validation_ground_truth.txt has numbers of its own, which meta.mat beside it explains; give
    the devkit's folder, or that file.

    Raises:
        UsageError: if there is no such file, or it does not fit the images.
    """
    if not labels:
        raise UsageError("a flat folder needs its ground truth: add labels=FILE, with `<image> <class>` a line")
    file = Path(labels).expanduser()
    if file.is_dir():
        file = next(iter(sorted(file.rglob("ILSVRC2012_validation_ground_truth.txt"))), file)
    if not file.is_file():
        raise UsageError(f"there is no ground truth at {labels!r}; give a file with `<image> <class>` a line")
    rows = [line.replace(",", " ").split() for line in file.read_text().splitlines() if line.strip()]
    if rows and len(rows[0]) > 1:
        by_name = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
        if missing := [name for name in names if Path(name).stem not in by_name]:
            raise UsageError(f"{file} has no class for {len(missing)} of the images, such as {missing[0]}")
        return _as_numbers([by_name[Path(name).stem] for name in names], {}, file)
    if len(rows) != len(names):
        raise UsageError(f"{file} has {len(rows)} lines, but there are {len(names)} images; name the image in each")
    return _as_numbers([row[0] for row in rows], _devkit_numbers(file), file)


def _as_numbers(values: Sequence[str], devkit: Mapping[str, int], file: Path) -> list[int]:
    wnids = class_numbers() if any(_WNID.fullmatch(value) for value in values) else {}
    known = devkit or {**{str(i): i for i in range(CLASSES)}, **wnids}
    if unknown := [value for value in values if value not in known]:
        raise UsageError(f"{file}: {unknown[0]!r} is no WordNet id of ImageNet and no class from 0 to {CLASSES - 1}")
    return [known[value] for value in values]


def _devkit_numbers(file: Path) -> dict[str, int]:
    """The class number of the devkit's own ids (1 to 1,000), from its meta.mat; empty where the file has WordNet ids.

    Raises:
        UsageError: if the file has bare numbers and there is no meta.mat beside it.
    """
    first = file.read_text().split()[0]
    if _WNID.fullmatch(first):
        return {}
    meta = file.parent / "meta.mat"
    if not meta.is_file():
        raise UsageError(
            f"{file} has bare numbers, which the devkit counts otherwise than networks do; keep its meta.mat beside it"
        )
    from scipy.io import loadmat  # slow to import

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        ids, wnids = synsets["ILSVRC2012_ID"], synsets["WNID"]
        leaves = {str(int(i)): str(wnid) for i, wnid in zip(ids, wnids, strict=True) if int(i) <= CLASSES}
    except Exception as error:  # a broken .mat can raise anything
        raise UsageError(f"{meta} is not the devkit's meta.mat ({type(error).__name__}: {error})") from error
    numbers = {wnid: i for i, wnid in enumerate(sorted(leaves.values()))}
    return {devkit: numbers[wnid] for devkit, wnid in leaves.items()}
