"""Adversarial training on PGD images. Madry, Makelov, Schmidt, Tsipras, Vladu 2018, arXiv:1706.06083.

It minimises the cross-entropy on images that PGD makes to maximise it, from a random start in the ball. The one kind of
training-time defense that has kept its word under every attack since.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustkit.training.adversarial import accuracy, check_ball, cross_entropy, pgd, summed_cross_entropy, uniform_start
from robustkit.training.recipes import Batch, OneNetwork, Training, in_eval_mode


@dataclass(frozen=True, slots=True)
class AdversarialTraining(OneNetwork):
    """PGD of `steps` steps of `step_size` (0: 2.5·eps/steps) in the linf ball.

    The images are made with the network in eval mode, so that its BatchNorm statistics are of the updates alone.
    """

    eps: float = 8 / 255
    steps: int = 10
    step_size: float = 0.0

    def __post_init__(self) -> None:
        check_ball("at", self.eps, self.steps, self.step_size)

    @property
    def attacked_eps(self) -> float:
        """The radius."""
        return self.eps

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the cross-entropy on the adversarial images."""
        network = training.network
        with in_eval_mode(network):
            adv = pgd(
                network,
                batch.x,
                eps=self.eps,
                steps=self.steps,
                step_size=self.step_size or 2.5 * self.eps / self.steps,
                loss=summed_cross_entropy(batch.y),
                start=uniform_start(batch.x, self.eps, batch.draws),
            )
        logits = network(adv)
        loss = cross_entropy(logits, batch.y)
        training.update(loss)
        return {"loss": loss, "accuracy": accuracy(logits, batch.y)}
