"""PGD, projected gradient descent. Madry, Makelov, Schmidt, Tsipras, Vladu 2018, arXiv:1706.06083, section 2.1.

In L1 the step is sparse (SLIDE, Tramèr & Boneh 2019, arXiv:1904.13000), among the entries that the box lets move. With
`random_start=false` and `step` = eps/steps it is BIM (Kurakin, Goodfellow, Bengio 2017, arXiv:1607.02533).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Norm, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import apgd_l1, losses, parts


class _State(NamedTuple):
    adv: Tensor  # the iterate
    found: Tensor  # the latest iterate that fooled the model
    hit: Tensor  # whether `found` holds one that the judge has not seen
    place: Tensor  # the row of the whole case


@dataclass(frozen=True, slots=True)
class PGD:
    """Steps along the gradient of a loss, projected back; each restart starts at another point of the ball.

    `step` is absolute, in [0,1] units (0.01); by default 2.5·eps/steps, which can cross the ball. A step in L1 moves
    only a share `density` of the entries, those of largest gradient, all by the same amount.
    """

    steps: int = 40
    restarts: int = 1
    step: float | None = None
    loss: losses.Name = "ce"
    random_start: bool = True
    density: float = 0.05

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or (self.step is not None and self.step <= 0):
            raise UsageError("pgd: steps, restarts and step must be positive")
        if not 0 < self.density <= 1:
            raise UsageError(f"pgd: density is a share of the entries, above 0 and at most 1, not {self.density}")

    def __call__(self, case: Case) -> Images:
        """The last candidate of each sample; what the judge confirms on the way leaves."""
        result = case.x.clone()
        place = torch.arange(len(result), device=result.device)
        for restart in range(self.restarts):
            if not len(place):
                break
            start = case.threat.sample(case.x, case.draws.at(restart)) if self.random_start else case.x
            case, place, ended = self.climb(case, place, start)
            result[place] = ended
            if restart + 1 < self.restarts:
                stays = rows.positions(~case.submit(ended))
                case, place = case.select(stays), place[stays]
        return result

    def climb(self, case: Case, place: Tensor, start: Images) -> tuple[Case, Tensor, parts.Left]:
        """One run from `start`: the case, places and candidates of what is not confirmed broken before its end."""
        size = self.step or 2.5 * case.threat.eps / self.steps
        state = _State(start, start, torch.zeros_like(place, dtype=torch.bool), place)
        for i in range(1, self.steps + 1):
            loss = losses.make(self.loss, case.y, case.target)
            outputs, _, grad = case.oracle.gradient(state.adv, loss)
            hit = case.reached(outputs.logits)
            state = _State(
                adv=case.threat.project(case.x, state.adv + size * self._direction(case.threat, state.adv, grad)),
                found=rows.pick(hit, state.adv, state.found),
                hit=state.hit | hit,
                place=state.place,
            )
            if parts.checkpoint(i):
                case, state, _ = parts.leave(case, state)
                if not len(state.place):
                    break
        return case, state.place, rows.pick(state.hit, state.found, state.adv)

    def _direction(self, threat: ThreatModel, adv: Images, grad: Images) -> Images:
        """A step of length 1 in the norm."""
        if threat.norm != "l1":
            return norms.steepest(grad, threat.norm)
        keep = math.ceil(self.density * grad[0].numel())
        return apgd_l1.sparse(threat, adv, grad, torch.full((len(grad),), keep, device=grad.device))

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward and backward a step."""
        return self.steps * self.restarts, self.steps * self.restarts
