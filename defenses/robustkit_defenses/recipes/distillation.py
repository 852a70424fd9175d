"""Defensive distillation. Papernot, McDaniel, Wu, Jha, Swami 2016, arXiv:1511.04508; again in arXiv:2404.04245.

The student learns the teacher's softmax at a high temperature and is used at temperature 1. Its logits are then about T
times as large, the softmax saturates, and the gradient of the cross-entropy is exactly zero in float32: what looks like
robustness against FGSM is a masked gradient. Broken by Carlini and Wagner 2017 (arXiv:1608.04644): a loss on the
logits, or the cross-entropy of logits / T, undoes it. Here to be evaluated, not to be used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.training.adversarial import accuracy, cross_entropy
from robustkit.training.recipes import Batch, Task, Training


@dataclass(frozen=True, slots=True)
class Distillation:
    """`teacher` is a model spec of the same classes, best one of `standard:temperature=…` with the same temperature.

    The loss is the cross-entropy of the student's softmax against the teacher's, both at `temperature`. With `hard`
    above 0 it is (1 − hard)·T²·KL + hard·(cross-entropy with the labels at temperature 1).
    """

    teacher: str = ""
    temperature: float = 20.0
    hard: float = 0.0

    plain: ClassVar[bool] = True
    attacked_eps: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"distillation: temperature must be positive, not {self.temperature!r}; such as 20")
        if not 0 <= self.hard < 1:
            raise UsageError(f"distillation: hard is the labels' share of the loss, from 0 to 1, not {self.hard!r}")

    def build(self, task: Task) -> nn.Module:
        """The student, and the teacher.

        Raises:
            UsageError: without a teacher, or for one of other classes or images.
        """
        if not self.teacher:
            raise UsageError("distillation needs a teacher: distillation:teacher=digits-cnn, or teacher=./FOLDER")
        student = task.architecture()
        teacher, _ = task.load(self.teacher)
        try:
            with torch.no_grad():
                classes = teacher(torch.zeros(2, *task.image)).shape[1]
        except RuntimeError as error:
            line = str(error).partition("\n")[0]
            raise UsageError(f"the teacher {self.teacher} does not take the data's images: {line}") from error
        if classes != task.classes:
            raise UsageError(f"the teacher {self.teacher} has {classes} classes, the data {task.classes}; give another")
        return nn.ModuleDict({"student": student, "teacher": teacher.requires_grad_(False)})

    def parts(self, network: Any) -> Sequence[nn.Module]:
        """The student."""
        return [network["student"]]

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step of the student towards the teacher."""
        student, teacher, t = training.network["student"], training.network["teacher"].eval(), self.temperature
        with torch.no_grad():
            wanted = F.softmax(teacher(batch.x).float() / t, 1)
        logits = student(batch.x)
        if self.hard:
            soft = F.kl_div(F.log_softmax(logits.float() / t, 1), wanted, reduction="batchmean")
            loss = (1 - self.hard) * t * t * soft + self.hard * cross_entropy(logits, batch.y)
        else:
            loss = F.cross_entropy(logits.float() / t, wanted)
        training.update(loss)
        return {"loss": loss, "accuracy": accuracy(logits, batch.y)}

    def result(self, network: Any) -> nn.Module:
        """The student."""
        student: nn.Module = network["student"]
        return student
