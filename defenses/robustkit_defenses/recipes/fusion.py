"""The head of a contextual fusion, trained batch by batch. Akumalla, Haney, Bazhenov 2020, arXiv:2011.09526.

What it trains, and on which claims, stands in `robustkit_defenses.contextual_fusion`, whose `fit_head` solves the same
problem to its optimum where all features fit into memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.numerics import generators
from robustkit.training.recipes import Batch, Task, Training
from robustkit_defenses.contextual_fusion import ContextFusion, HeadPlan, new_fusion

_SEEDS = 2**23  # what a float32 draw tells apart


@dataclass(frozen=True, slots=True)
class Fusion:
    """Linear heads on the frozen features of two trained networks: of both together, and of each alone.

    `foreground` is a trained model of the architecture that is named, `background` any model with features that tell
    the context. `alpha` is the penalty α‖θ‖² on the joint head's weights for (foreground, background) features, in the
    paper of the first alone (its α is unknown to us); `dropout` the share of each branch's features that is dropped.
    What is trained holds the weights of both, but only its spec says what the background is: where a fusion is loaded,
    the background must be too.

    Raises:
        UsageError: without a foreground or a background, or for numbers that make no sense.
    """

    foreground: str = ""
    background: str = ""
    alpha: tuple[float, ...] = (0.0, 0.0)
    dropout: tuple[float, ...] = (0.0, 0.0)

    plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._plan()

    @property
    def attacked_eps(self) -> float:
        """0: it trains against nothing."""
        return 0.0

    def build(self, task: Task) -> nn.Module:
        """Both networks and heads of zeros.

        Raises:
            UsageError: if there is no foreground or background, or one has no features or does not take the images.
        """
        if not self.foreground or not self.background:
            raise UsageError(
                "fusion needs two trained networks: fusion:foreground=scenes-foreground,background=scenes-background"
            )
        foreground, background = task.start(self.foreground), task.load(self.background)[0]
        return new_fusion(foreground, background, task.classes, task.image, self._plan())

    def parts(self, network: ContextFusion) -> Sequence[nn.Module]:
        """All three heads."""
        return [network.head]

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy of each head, and the penalty on the joint one."""
        network: ContextFusion = training.network
        with torch.no_grad():
            features = network.foreground(batch.x), network.background(batch.x)
        with generators.seeded(_seed(batch), batch.x.device):  # of dropout
            joint = F.cross_entropy(network.head(*features), batch.y)
        weights = torch.split(network.head.joint.weight, list(network.head.widths), 1)
        penalty = sum(a * weight.square().sum() for a, weight in zip(self.alpha, weights, strict=True))
        heads = (network.head.foreground, network.head.background)
        alone = [F.cross_entropy(head(z), batch.y) for head, z in zip(heads, features, strict=True)]
        training.update(joint + penalty + alone[0] + alone[1])
        return {"loss": joint.detach(), "foreground": alone[0].detach(), "background": alone[1].detach()}

    def result(self, network: ContextFusion) -> nn.Module:
        """The fused network."""
        return network

    def _plan(self) -> HeadPlan:
        if len(self.alpha) != 2 or len(self.dropout) != 2:
            raise UsageError("fusion: alpha and dropout have a value for foreground and background: alpha=0.1+0")
        return HeadPlan((self.alpha[0], self.alpha[1]), (self.dropout[0], self.dropout[1]))


def _seed(batch: Batch) -> int:
    return int(float(batch.epoch_draws.at(batch.number).uniform((1,))[0, 0]) * _SEEDS)
