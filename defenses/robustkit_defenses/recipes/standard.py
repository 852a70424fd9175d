"""Standard training: cross-entropy on the images as they are. No defense; what defenses are compared with.

With a temperature T it is the first half of defensive distillation (arXiv:1511.04508): the teacher.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustkit.errors import UsageError
from robustkit.training.adversarial import accuracy, cross_entropy
from robustkit.training.recipes import Batch, OneNetwork, Training


@dataclass(frozen=True, slots=True)
class Standard(OneNetwork):
    """Cross-entropy of softmax(logits / temperature)."""

    temperature: float = 1.0

    attacked_eps: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(
                f"standard: temperature must be positive, not {self.temperature!r}; 1 is the usual softmax"
            )

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the cross-entropy."""
        logits = training.network(batch.x)
        loss = cross_entropy(logits / self.temperature, batch.y)
        training.update(loss)
        return {"loss": loss, "accuracy": accuracy(logits, batch.y)}
