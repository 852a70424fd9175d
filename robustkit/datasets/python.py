"""Datasets from a callable of the user's: `python/package.module.callable:key=value`."""

from collections.abc import Mapping, Sequence

from torch import nn

from robustkit.api import Dataset
from robustkit.datasets.objects import as_dataset
from robustkit.errors import UsageError
from robustkit.models.sources.python import call, imported


class Python:
    """Datasets that a callable of the user's returns, or that a module holds."""

    def names(self) -> Sequence[str]:
        """None: whatever can be imported."""
        return ()

    def make(self, name: str, options: Mapping[str, str]) -> Dataset:
        """What the callable returns, or the object itself: whatever `robustkit.evaluate` takes as data.

        Raises:
            UsageError: if it cannot be found, does not take the options, or is no data.
        """
        found = imported(name)
        made = call(name, options, "dataset") if callable(found) and not isinstance(found, Dataset) else found
        if options and made is found:
            raise UsageError(f"{name} is a dataset already, which takes no options")
        if isinstance(made, str | int | float | nn.Module):
            raise UsageError(
                f"{name} returned {type(made).__name__}; it must return a Dataset or an (x, y) pair of tensors"
            )
        return as_dataset(made, name)
