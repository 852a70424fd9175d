"""NES: PGD along a gradient estimated from scores. Ilyas, Engstrom, Athalye, Lin 2018, arXiv:1804.08598, section 3.

Antithetic pairs of Gaussian directions; the estimate sees through steps and backward passes that are not the forward's,
for it asks for outputs only, and through plateaus that are narrower than `sigma`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Norm, Outputs
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import losses, parts


class _State(NamedTuple):
    adv: Tensor  # the iterate
    best: Tensor  # the iterate of highest loss, and that loss
    best_loss: Tensor
    place: Tensor  # the row of the whole case


@dataclass(frozen=True, slots=True)
class NES:
    """Steps along an estimate from `pairs` pairs of queries, of a loss smoothed over `sigma`.

    `sigma` is the length of a Gaussian direction in each entry, as a share of eps in Linf; in L2 so that a whole
    direction has about that share of eps.
    """

    steps: int = 100
    pairs: int = 25
    sigma: float = 0.5
    loss: losses.Name = "margin"

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "score"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.pairs < 1 or self.sigma <= 0:
            raise UsageError("nes: steps, pairs and sigma must be positive")

    def __call__(self, case: Case) -> Images:
        """The iterate of highest loss; what the judge confirms on the way leaves."""
        result = case.x.clone()
        start = case.threat.sample(case.x, case.draws)
        lowest = torch.full_like(case.x[:, 0, 0, 0], -torch.inf)
        state = _State(start, start, lowest, torch.arange(len(result), device=result.device))
        for i in range(self.steps + 1):
            outputs = case.oracle.outputs(state.adv)
            hit, value = case.reached(outputs.logits), self._value(case, outputs)
            better = value > state.best_loss
            state = state._replace(
                best=rows.pick(better, state.adv, state.best), best_loss=torch.where(better, value, state.best_loss)
            )
            broken = parts.confirmed(case, state.adv, hit)
            result[state.place] = rows.pick(broken, state.adv, state.best)
            stays = rows.positions(~broken)
            case, state = case.select(stays), parts.select(state, stays)
            if not len(state.place) or i == self.steps:
                break
            state = state._replace(adv=self._stepped(case, state.adv, i))
        return result

    def _stepped(self, case: Case, adv: Images, i: int) -> Images:
        threat = case.threat
        scale = self.sigma * threat.eps / (1 if threat.norm == "linf" else adv[0].numel() ** 0.5)
        grad = torch.zeros_like(adv)
        for pair in range(self.pairs):
            direction = case.draws.normal(adv.shape[1:], step=1 + i * self.pairs + pair).to(adv.dtype)
            values = [
                self._value(case, case.oracle.outputs(threat.clip(adv + sign * scale * direction))) for sign in (1, -1)
            ]
            grad += rows.spread(values[0] - values[1], adv) * direction
        move = norms.steepest(grad, threat.norm)
        size = 2.5 * threat.eps / self.steps
        return threat.project(case.x, adv + size * move)

    def _value(self, case: Case, outputs: Outputs) -> Tensor:
        return losses.make(self.loss, case.y, case.target)(outputs)

    def cost(self, classes: int) -> tuple[int, int]:
        """Two forwards a pair, and one at each iterate."""
        return self.steps * 2 * self.pairs + self.steps + 1, 0
