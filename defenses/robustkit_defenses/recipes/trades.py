"""TRADES: accuracy and robustness, traded by one weight. Zhang, Yu, Jiao, Xing et al. 2019, arXiv:1901.08573.

Cross-entropy on clean images + beta · KL(p(x) ‖ p(x')), x' made to maximise that divergence (no label in it).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.errors import UsageError
from robustkit.training.adversarial import accuracy, check_ball, cross_entropy, pgd
from robustkit.training.recipes import Batch, OneNetwork, Training, in_eval_mode

_START = 1e-3  # the start's standard deviation: at x itself the divergence has no gradient


@dataclass(frozen=True, slots=True)
class Trades(OneNetwork):
    """`steps` steps of `step_size` (0: 2.5·eps/steps) in the linf ball, from x + 0.001·N(0, 1).

    `beta` weighs robustness.
    """

    eps: float = 8 / 255
    beta: float = 6.0
    steps: int = 10
    step_size: float = 0.0

    def __post_init__(self) -> None:
        check_ball("trades", self.eps, self.steps, self.step_size)
        if not 0 < self.beta < float("inf"):
            raise UsageError(f"trades: beta must be positive, such as 6, not {self.beta!r}")

    @property
    def attacked_eps(self) -> float:
        """The radius."""
        return self.eps

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the loss; the images are made with the network in eval mode."""
        network, x = training.network, batch.x
        with in_eval_mode(network):
            with torch.no_grad():
                clean = F.log_softmax(network(x).float(), 1)
            adv = pgd(
                network,
                x,
                eps=self.eps,
                steps=self.steps,
                step_size=self.step_size or 2.5 * self.eps / self.steps,
                loss=lambda logits: _divergence(clean, logits, "sum"),
                start=_START * batch.draws.normal(x.shape[1:]),
            )
        logits, moved = network(x), network(adv)
        natural = cross_entropy(logits, batch.y)
        robust = _divergence(F.log_softmax(logits.float(), 1), moved, "batchmean")
        loss = natural + self.beta * robust
        training.update(loss)
        return {"loss": loss, "natural": natural, "robust_loss": robust, "accuracy": accuracy(moved, batch.y)}


def _divergence(clean: Tensor, logits: Tensor, reduction: str) -> Tensor:
    """KL(p ‖ q), p by its logarithm, q by its logits."""
    return F.kl_div(F.log_softmax(logits.float(), 1), clean, reduction=reduction, log_target=True)
