"""Standard training: cross-entropy on the images as they are. No defense; what defenses are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.recipes import Batch, Task, Training


@dataclass(frozen=True, slots=True)
class Standard:
    """No settings."""

    plain: ClassVar[bool] = True
    attacked_eps: ClassVar[float] = 0.0

    def build(self, task: Task) -> nn.Module:
        """The architecture."""
        return task.architecture()

    def parts(self, network: nn.Module) -> Sequence[nn.Module]:
        """The network."""
        return [network]

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the cross-entropy."""
        logits = training.network(batch.x)
        loss = F.cross_entropy(logits, batch.y)
        training.update(loss)
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch.y).float().mean()}

    def result(self, network: nn.Module) -> nn.Module:
        """The network."""
        return network
