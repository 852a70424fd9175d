"""Concurrent adversarial learning. Liu, Chen, Zhao, Yu, You, Hsieh 2022, arXiv:2106.00221.

One-step adversarial training whose adversarial images are made with the weights of `staleness` updates ago, so that
making the images of a batch need not wait for the update before: with enough devices both go on at once. It is meant as
a regulariser for very large batches, not as a defense. Here the order of computation is sequential; the numbers are
those of the concurrent one. With staleness 0 it is one-step adversarial training.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.training.adversarial import accuracy, check_ball, cross_entropy
from robustkit.training.recipes import Batch, Task, Training
from robustkit_defenses.recipes.dual_norm import choose, dual, single
from robustkit_defenses.recipes.fast_at import one_step


@dataclass(frozen=True, slots=True)
class ConcurrentAdversarial:
    """One step of `step_size` (0: 1.25·eps) from a random start, by the weights of `staleness` updates ago.

    The loss is that of the adversarial images + `clean` · that of the clean ones. With `dual_norm` the two have
    BatchNorm statistics and weights of their own; the trained network has those of the clean images.
    """

    eps: float = 8 / 255
    step_size: float = 0.0
    staleness: int = 1
    clean: float = 1.0
    dual_norm: bool = True

    plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ball("conadv", self.eps, 1, self.step_size)
        if self.staleness < 0:
            raise UsageError(f"conadv: staleness is a number of updates, 0 or more, not {self.staleness}")
        if not 0 <= self.clean < float("inf") or (self.dual_norm and not self.clean):
            raise UsageError(
                f"conadv: clean={self.clean!r} is the weight of the loss on clean images: 0 or more, and above 0 with "
                "dual_norm, since the trained network uses their statistics"
            )

    @property
    def attacked_eps(self) -> float:
        """The radius."""
        return self.eps

    def build(self, task: Task) -> nn.Module:
        """The network, `staleness` copies of what it was, and which of them is the oldest."""
        network = task.architecture()
        if self.dual_norm:
            network = dual(network)
        stale = [copy.deepcopy(network).requires_grad_(False) for _ in range(self.staleness)]
        return _Learner(network, stale)

    def parts(self, network: Any) -> Sequence[nn.Module]:
        """The network."""
        return [network.network]

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the loss; the weights before it replace the oldest copy."""
        learner: _Learner = training.network
        network, maker = learner.network, learner.oldest()
        choose(maker, adversarial=True)
        adv = one_step(maker, batch, self.eps, self.step_size)
        learner.remember()
        choose(network, adversarial=True)
        logits = network(adv)
        loss = cross_entropy(logits, batch.y)
        choose(network, adversarial=False)
        if self.clean:
            loss = loss + self.clean * cross_entropy(network(batch.x), batch.y)
        training.update(loss)
        return {"loss": loss, "accuracy": accuracy(logits, batch.y)}

    def result(self, network: Any) -> nn.Module:
        """The network with the statistics of the clean images."""
        trained: nn.Module = single(network.network) if self.dual_norm else network.network
        return trained


class _Learner(nn.Module):
    """A network and a ring of copies of what it was; all of it is in the state dict."""

    turn: Tensor

    def __init__(self, network: nn.Module, stale: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.stale = nn.ModuleList(stale)
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def oldest(self) -> nn.Module:
        """The copy from the most updates ago; the network itself without copies."""
        return self.stale[int(self.turn)] if len(self.stale) else self.network

    def remember(self) -> None:
        """Put what the network is in the place of the oldest copy."""
        if len(self.stale):
            self.oldest().load_state_dict(self.network.state_dict())
            self.turn.copy_((self.turn + 1) % len(self.stale))
