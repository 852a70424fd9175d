"""One-step adversarial training from a random start. Wong, Rice, Kolter 2020, arXiv:2001.03994.

FGSM's step from a uniform start in the ball, 1.25·eps long. It costs a third of what PGD with few steps does, and can
fail suddenly ("catastrophic overfitting": robust against one step, not against PGD), which its curves would show.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.training.adversarial import accuracy, check_ball, cross_entropy, pgd, summed_cross_entropy, uniform_start
from robustkit.training.recipes import Batch, OneNetwork, Training, in_eval_mode


@dataclass(frozen=True, slots=True)
class FastAdversarialTraining(OneNetwork):
    """One step of `step_size` (0: 1.25·eps), made in eval mode.

    The loss is that of the adversarial images + `clean` · that of the clean ones.
    """

    eps: float = 8 / 255
    step_size: float = 0.0
    clean: float = 0.0

    def __post_init__(self) -> None:
        check_ball("fast-at", self.eps, 1, self.step_size)
        if not 0 <= self.clean < float("inf"):
            raise UsageError(f"fast-at: clean is the weight of the loss on clean images, 0 or more, not {self.clean!r}")

    @property
    def attacked_eps(self) -> float:
        """The radius."""
        return self.eps

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the loss."""
        network = training.network
        adv = one_step(network, batch, self.eps, self.step_size)
        logits = network(adv)
        loss = cross_entropy(logits, batch.y)
        if self.clean:
            loss = loss + self.clean * cross_entropy(network(batch.x), batch.y)
        training.update(loss)
        return {"loss": loss, "accuracy": accuracy(logits, batch.y)}


def one_step(network: nn.Module, batch: Batch, eps: float, step_size: float) -> Images:
    """The adversarial images of a batch, made with the network in eval mode."""
    with in_eval_mode(network):
        return pgd(
            network, batch.x, eps=eps, steps=1, step_size=step_size or 1.25 * eps,
            loss=summed_cross_entropy(batch.y), start=uniform_start(batch.x, eps, batch.draws),
        )  # fmt: skip
