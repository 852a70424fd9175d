"""pyautoattack 0.2.0, called so that its results can be put beside ours, with its passes counted."""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Result(NamedTuple):
    """Which samples still stand, CPU seconds, and the samples that went forward and backward through the model."""

    robust: np.ndarray
    seconds: float
    forwards: int
    backwards: int


class Counted(nn.Module):
    """A model that counts the samples that pass it, forward, and backward as far as their gradient is asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """The inner model's logits."""
        self.forwards += len(x)
        logits: Tensor = self.inner(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: self._count(len(grad)))
        return logits

    def _count(self, n: int) -> None:
        self.backwards += n


def run(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, attacks: list[str] | None, seed: int) -> Result:
    """The standard suite, or some attacks of it with the suite's settings."""
    from pyautoattack import AutoAttack

    counted = Counted(model).eval()
    suite = AutoAttack(counted, norm=NORMS[norm], eps=eps, seed=seed, version="standard")
    if attacks is not None:
        suite.attacks_to_run = list(attacks)
    began = time.process_time()
    adv, _ = suite.run_standard_evaluation(x, y, batch_size=len(x))
    seconds = time.process_time() - began
    with torch.no_grad():
        robust = (model(x).argmax(1) == y) & (model(adv).argmax(1) == y)
    return Result(robust.numpy(), seconds, counted.forwards, counted.backwards)
