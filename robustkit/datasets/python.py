"""Datasets from a callable of the user's: `python/package.module.callable:key=value`."""

from collections.abc import Mapping, Sequence

from robustkit.api import Dataset
from robustkit.datasets.pair import Pair
from robustkit.errors import UsageError
from robustkit.models.sources.python import call


class Python:
    """Datasets that a callable of the user's returns."""

    def names(self) -> Sequence[str]:
        """None: whatever can be imported."""
        return ()

    def make(self, name: str, options: Mapping[str, str]) -> Dataset:
        """What the callable returns: a dataset, or an (x, y) pair as one.

        Raises:
            UsageError: if the callable cannot be found, does not take the options, or returns neither.
        """
        made = call(name, options, "dataset")
        if isinstance(made, Dataset):
            return made
        if isinstance(made, tuple) and len(made) == 2:
            return Pair(*made, name=name)
        raise UsageError(
            f"{name} returned {type(made).__name__}; it must return a Dataset or an (x, y) pair of tensors"
        )
