"""DVERGE: members that are not fooled alike. Yang et al. 2020 (NeurIPS), arXiv:2009.14720.

Each member learns to classify, as what they are, images in which another member sees something else: features distilled
at one of its layers. So the members stop sharing the features that adversarial images rest on. Against an attacker who
has the ensemble itself this alone does little; `dverge-at` adds adversarial training.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.models.ensembles import Ensemble
from robustkit.training.adversarial import cross_entropy, pgd, summed_cross_entropy, uniform_start
from robustkit.training.recipes import Batch, Task, Training, in_eval_mode
from robustkit_defenses.distilled_features import Distillation, distilled, others
from robustkit_defenses.taps import Tap, named_taps, taps_of


@dataclass(frozen=True, slots=True)
class Dverge:
    """`members` networks, trained together; the ensemble answers the logarithm of their mean probabilities.

    They start from the models `init=(A)+(B)+(C)`, trained as usual and each from another seed; or as new ones, which
    learn the images themselves for the first `plain_epochs` epochs (the paper starts from trained members).

    `eps`, `steps` and `step_size` (in units of eps) are of the distillation. Its layer is drawn once an epoch, the same
    for all members, from `layers`: names of modules, by default all that an activation receives, and the logits.
    BatchNorm is in eval mode while features are distilled; `faithful` leaves it in train mode, as the paper's program
    does.

    With `at_eps` above 0 each member's loss is `coefficient` times DVERGE's, plus its cross-entropy on images that PGD
    (`at_steps` steps of `at_step`, from a random start) makes against that member.

    Raises:
        UsageError: for numbers that make no sense, or fewer than two members.
    """

    members: int = 3
    init: tuple[str, ...] = ()
    plain_epochs: int = 0
    eps: float = 0.07
    steps: int = 10
    step_size: float = 0.1
    layers: tuple[str, ...] = ()
    faithful: bool = False
    at_eps: float = 0.0
    at_steps: int = 10
    at_step: float = 2 / 255
    coefficient: float = 1.0

    plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.members < 2:
            raise UsageError(f"dverge: members={self.members}: each learns from the others; it takes two or more")
        if self.init and len(self.init) != self.members:
            raise UsageError(
                f"dverge: init names {len(self.init)} models for {self.members} members; "
                "give one for each: members=3,init=(./a)+(./b)+(./c)"
            )
        if self.plain_epochs < 0 or not 0 <= self.at_eps <= 1 or self.at_steps < 1 or self.at_step <= 0:
            raise UsageError("dverge: plain_epochs and at_eps must not be negative, at_steps and at_step positive")
        if self.coefficient < 0:
            raise UsageError(f"dverge: coefficient must not be negative, not {self.coefficient}")
        self._distillation()

    @property
    def attacked_eps(self) -> float:
        """That of the adversarial training; DVERGE alone trains against no ball."""
        return self.at_eps

    def build(self, task: Task) -> nn.Module:
        """The members.

        Raises:
            UsageError: if a model of `init` is not of the architecture, or a layer is not there.
        """
        networks = [task.start(spec) for spec in self.init or [""] * self.members]
        return Members(networks, [self._taps(network, task.image) for network in networks])

    def parts(self, network: "Members") -> Sequence[nn.Module]:
        """The members: each has an optimiser of its own."""
        return list(network.networks)

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """Distil every member's features first, then take a step with each member."""
        networks: Members = training.network
        if batch.epoch < self.plain_epochs:
            return _taken(training, networks, lambda i, member: cross_entropy(member(batch.x), batch.y))
        target = batch.other(1).x
        layer = networks.layer(float(batch.epoch_draws.uniform((1,))[0, 0]))
        images = [
            distilled(member, batch.x, target, taps[layer], self._distillation())
            for member, taps in zip(networks.networks, networks.taps, strict=True)
        ]

        def loss(i: int, member: nn.Module) -> Tensor:
            apart = others(member, images, batch.y, i)
            if not self.at_eps:
                return apart
            with contextlib.nullcontext() if self.faithful else in_eval_mode(member):
                adv = pgd(
                    member, batch.x, eps=self.at_eps, steps=self.at_steps, step_size=self.at_step,
                    loss=summed_cross_entropy(batch.y), start=uniform_start(batch.x, self.at_eps, batch.draws.at(i)),
                )  # fmt: skip
            return self.coefficient * apart + cross_entropy(member(adv), batch.y)

        return _taken(training, networks, loss)

    def result(self, network: "Members") -> nn.Module:
        """The ensemble, whose members an attack may see."""
        return Ensemble(list(network.networks), "probs")

    def _distillation(self) -> Distillation:
        return Distillation(self.eps, self.steps, self.step_size, faithful=self.faithful)

    def _taps(self, network: nn.Module, image: tuple[int, int, int]) -> tuple[Tap, ...]:
        return named_taps(network, self.layers) if self.layers else taps_of(network, torch.zeros(1, *image))


def dverge_at() -> Dverge:
    """DVERGE with adversarial training, linf 8/255."""
    return Dverge(at_eps=8 / 255)


class Members(nn.Module):
    """The networks in training, and the layers of each at which features may be distilled."""

    def __init__(self, networks: Sequence[nn.Module], taps: Sequence[tuple[Tap, ...]]) -> None:
        super().__init__()
        if len(counts := {len(each) for each in taps}) > 1:
            raise UsageError(
                f"dverge: the members have different numbers of layers ({', '.join(map(str, sorted(counts)))}); "
                "name the ones to use: layers=(conv1)+(output)"
            )
        self.networks = nn.ModuleList(networks)
        self.taps = tuple(taps)

    def layer(self, u: float) -> int:
        """The place among the taps that a number in (0,1) draws."""
        return min(int(u * len(self.taps[0])), len(self.taps[0]) - 1)


def _taken(training: Training, networks: Members, loss_of: Callable[[int, nn.Module], Tensor]) -> dict[str, Tensor]:
    """One step with each member, one after another; the mean of their losses."""
    losses = []
    for i, member in enumerate(networks.networks):
        loss = loss_of(i, member)
        training.update(loss, part=i)
        losses.append(loss.detach())
    return {"loss": torch.stack(losses).mean()}
