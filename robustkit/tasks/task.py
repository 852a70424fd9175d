"""What the judge must know of a task; `robustkit.tasks.classification` is the first."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """How the outputs of a batch of candidates are judged, one row a sample.

    The functions take the outputs (batch, …), the labels and, in a targeted run, the wanted decisions.

    Attributes:
        name: as it stands in a record.
        decision: what the model says of each candidate, stored with it.
        reached: whether a candidate is what the attack wants.
        margin: how far it is from that; below zero where it is reached.
    """

    name: str
    decision: Callable[[Tensor], Tensor]
    reached: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    margin: Callable[[Tensor, Tensor, Tensor | None], Tensor]
