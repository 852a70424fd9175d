"""Datasets: labelled images in a fixed order, found by name, in a file or behind a callable of the user's."""

from pathlib import Path

from robustkit import plugins
from robustkit.api import Dataset
from robustkit.datasets.mapped import Mapped
from robustkit.datasets.pair import Pair, check_images
from robustkit.errors import UsageError
from robustkit.spec import build, parse

__all__ = ["Pair", "check_images", "load_dataset", "resolve"]


def load_dataset(spec: str) -> Dataset:
    """The dataset of a spec: `digits`, `cifar10:path=…`, `./images.npz`, `python/package.module.callable:key=value`.

    Raises:
        UsageError: for an unknown name or option, or data that cannot be read as images with labels.
    """
    parsed = parse(spec)
    if parsed.source == "file":
        options = {"path": parsed.name, **parsed.options}
        dataset: Dataset = build(plugins.load("datasets", "file"), options, parsed.name)
        return dataset
    if parsed.source == "python":
        dataset = plugins.load("datasets", "python")(parsed.name, parsed.options)
        return dataset
    head = f"{parsed.source}/{parsed.name}" if parsed.source else parsed.name
    if Path(head).is_file():
        raise UsageError(f"{head!r} is no dataset's name; to read the file, write ./{head}")
    if parsed.source:
        raise UsageError(
            f"no dataset source called {parsed.source!r}; write a name such as digits, a file such as ./images.npz, "
            "or python/package.module.callable"
        )
    if parsed.name in ("file", "python"):
        raise UsageError(f"{parsed.name!r} alone names no data; write ./images.npz or python/package.module.callable")
    dataset = build(plugins.load("datasets", parsed.name), parsed.options, parsed.name)
    return dataset


def resolve(data: object) -> Dataset:
    """A dataset from whatever a caller gives: a spec, a dataset, an (x, y) pair, or a torch map-style dataset.

    Raises:
        UsageError: if it is none of these, or cannot be read as images with labels.
    """
    if isinstance(data, str):
        return load_dataset(data)
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return Pair(*data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return Mapped(data)
    raise UsageError(
        f"data is of type {type(data).__name__}; give a spec such as 'digits', an (x, y) pair of tensors, or a dataset"
    )
