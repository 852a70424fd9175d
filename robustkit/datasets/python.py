"""Datasets from a callable of the user's: `python/package.module.callable:key=value`."""

from collections.abc import Mapping

from robustkit.api import Dataset
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError
from robustkit.sources.python import call


def from_callable(dotted: str, options: Mapping[str, str]) -> Dataset:
    """What the callable returns: a dataset, or an (x, y) pair as one.

    Raises:
        UsageError: if the callable cannot be found, does not take the options, or returns neither.
    """
    made = call(dotted, options, "dataset")
    if isinstance(made, Dataset):
        return made
    if isinstance(made, tuple) and len(made) == 2:
        return Pair(*made, name=dotted)
    raise UsageError(f"{dotted} returned {type(made).__name__}; it must return a Dataset or an (x, y) pair of tensors")
