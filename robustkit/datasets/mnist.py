"""MNIST and Fashion-MNIST: the original idx files, gzipped or not, or an .npz.

Sources: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition", 1998;
H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.
"""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from robustkit.cache import Remote
from robustkit.datasets.local import Files, Known, as_labels, load
from robustkit.datasets.npz import Arrays, Split
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError


def mnist(path: str = "", split: Split = "test") -> Pair:
    """10 classes, 1×28×28; 10,000 test and 60,000 training images.

    Args:
        path: a folder with the idx files, or an .npz; else they are looked for, then fetched.
        split: test or train.
    """
    return load(MNIST, path, split)


def fashion_mnist(path: str = "", split: Split = "test") -> Pair:
    """10 classes of clothing, 1×28×28; 10,000 test and 60,000 training images. Settings as of `mnist`."""
    return load(FASHION, path, split)


def _read_folder(folder: Path, split: str) -> Arrays | None:
    prefix = "t10k" if split == "test" else "train"
    images, labels = _find(folder, f"{prefix}-images", "idx3-ubyte"), _find(folder, f"{prefix}-labels", "idx1-ubyte")
    return Arrays(read_idx(images), as_labels(read_idx(labels))) if images and labels else None


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


def _files(name: str, mirrors: Sequence[str], md5s: Mapping[str, str], page: str) -> Files:
    def remote(part: str) -> Remote:
        file = f"{part}-ubyte.gz"
        urls = tuple(mirror + file for mirror in mirrors)
        return Remote(f"datasets/{name}/{file}", urls, md5=md5s[part], magic=(b"\x1f\x8b",), by_hand=page)

    return {
        split: (remote(f"{prefix}-images-idx3"), remote(f"{prefix}-labels-idx1"))
        for split, prefix in (("test", "t10k"), ("train", "train"))
    }


MNIST = Known(
    "mnist", 10, ("mnist", "MNIST/raw"), _read_folder,
    _files(
        "mnist",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        {
            "train-images-idx3": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        "http://yann.lecun.com/exdb/mnist/",
    ),
)  # fmt: skip
FASHION = Known(
    "fashion-mnist", 10, ("fashion-mnist", "FashionMNIST/raw"), _read_folder,
    _files(
        "fashion-mnist",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train-images-idx3": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
)  # fmt: skip
