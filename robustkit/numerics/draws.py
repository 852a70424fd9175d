"""Random numbers that belong to samples: what attacks and random starts ask for them; `streams` makes them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Draws(Protocol):
    """Random numbers that belong to samples: the same for a sample whatever batch it is in.

    A number is fixed by the run's seed, the attack, the sample's index, `stream` (a restart, a target), `step`
    and its place in the drawn shape; drawing twice with the same arguments gives the same numbers.
    """

    def select(self, rows: Tensor) -> "Draws":
        """The draws of some of the samples (a mask or indices)."""

    def at(self, stream: int) -> "Draws":
        """An independent stream of draws for the same samples."""

    def uniform(self, shape: Sequence[int], *, step: int = 0) -> Tensor:
        """Numbers in (0,1), shape (batch, *shape)."""

    def normal(self, shape: Sequence[int], *, step: int = 0) -> Tensor:
        """Standard normal numbers, shape (batch, *shape)."""
