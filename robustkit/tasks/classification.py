"""Classification: outputs are logits (batch, classes), one label an image."""

from torch import Tensor

from robustkit.numerics import rows
from robustkit.tasks.task import Task


def _decision(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


CLASSIFICATION = Task("classification", _decision, rows.reached, rows.margin)
