"""What a caller, or a callable of the user's, gives as data, as a dataset."""

import operator
from collections.abc import Mapping
from typing import Any

from robustkit.api import Dataset
from robustkit.datasets.items import keyed
from robustkit.datasets.mapped import Mapped
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError


def as_dataset(data: Any, name: str = "") -> Dataset:
    """A dataset from an object: one already, a batch of a DataLoader, a table of Hugging Face, a map-style dataset.

    Args:
        data: a Dataset; (x, y), as a tuple, a list or a dict; a `datasets.Dataset`; or what has items and a length.
        name: what a pair is called.

    Raises:
        UsageError: if it is none of these, or cannot be read as images with labels.
    """
    if isinstance(data, Dataset):
        return _checked(data)
    if isinstance(data, Mapping):
        first = next(iter(data.values()), None)
        if hasattr(first, "features") or isinstance(first, Dataset):
            raise UsageError(f"the data are {len(data)} splits: {', '.join(map(str, data))}; give one of them")
        x, y = keyed(data, "the data")
        return Pair(x, y, name or "pair")
    if isinstance(data, tuple | list) and data and getattr(data[0], "ndim", 0) == 4:  # a batch
        if len(data) != 2:
            raise UsageError(f"a batch of {len(data)} parts; give its images and its labels: (x, y)")
        return Pair(data[0], data[1], name or "pair")
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple | Mapping):
        return Pair(data[0], data[1], name or "pair")
    if isinstance(data, list) and len(data) == 2 and hasattr(data[0], "__array__"):
        return Pair(data[0], data[1], name or "pair")
    if hasattr(data, "features") and hasattr(data, "with_format"):
        return _table(data, name)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return Mapped(data)
    kind = type(data).__name__
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        raise UsageError(f"data is a {kind}; give the dataset behind it, loader.dataset, or one batch of it")
    raise UsageError(f"data is of type {kind}; give a spec such as 'digits', an (x, y) pair of tensors, or a dataset")


def _table(data: Any, name: str) -> Dataset:
    """A table of Hugging Face; one with a format or a transform of its own gives its items itself."""
    if not hasattr(data, "__len__"):
        raise UsageError("data is a stream of Hugging Face; load it without streaming=True")
    if data.format["type"] is not None:
        return Mapped(data)
    from robustkit.datasets.hf import Table

    return Table(data, name or "table")


def _checked(data: Dataset) -> Dataset:
    """A dataset of the user's own whose `classes` is a number.

    Raises:
        UsageError: if it is something else.
    """
    classes: Any = data.classes
    try:
        if classes is not None:
            operator.index(classes)
    except TypeError:
        raise UsageError(
            f"{data.name}: classes is of type {type(classes).__name__}; it must be the number of classes, 0 if unknown"
        ) from None
    return data
