"""Against a model that may refuse: an image must be wrong and accepted, so it climbs on one of the two at a time.

While the decision is right, a step on the margin; while it is wrong and refused, one on the score of refusal; each
along its gradient less what the other's gradient has of it, so that what was won is not given up. Orthogonal steps:
Bryniarski, Hingun, Pachuca, Wang, Carlini 2021, arXiv:2106.15023.
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
    found: Tensor  # the latest iterate that was wrong and accepted
    hit: Tensor  # whether `found` holds one that the judge has not seen
    place: Tensor  # the row of the whole case


@dataclass(frozen=True, slots=True)
class Accepted:
    """Steps of 2.5·eps/steps; the first run begins at the image, each further one at a random point of the ball.

    On a model that refuses nothing it is PGD on the margin.
    """

    steps: int = 100
    restarts: int = 2

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1:
            raise UsageError("accepted: steps and restarts must be positive")

    def __call__(self, case: Case) -> Images:
        """The last candidate of each sample; what the judge confirms on the way leaves."""
        result = case.x.clone()
        place = torch.arange(len(result), device=result.device)
        for restart in range(self.restarts):
            if not len(place):
                break
            start = case.threat.sample(case.x, case.draws.at(restart)) if restart else case.x
            state = _State(start, start, torch.zeros_like(place, dtype=torch.bool), place)
            for step in range(1, self.steps + 1):
                state = self._step(case, state)
                if parts.checkpoint(step) or step == self.steps:
                    case, state, _ = parts.leave(case, state)
                    if not len(state.place):
                        break
            result[state.place], place = state.adv, state.place
        return result

    def _step(self, case: Case, state: _State) -> _State:
        margin = losses.make("margin", case.y, case.target)
        outputs, _, wrong = case.oracle.gradient(state.adv, margin)
        refusal = case.oracle.refusal.gradient(state.adv, _accepting)
        misled, refused = case.reached(outputs.logits), refusal.loss < 0
        along = rows.pick(misled, _beside(refusal.grad, wrong), _beside(wrong, refusal.grad))
        move = norms.steepest(along, case.threat.norm)
        hit = misled & ~refused
        return state._replace(
            adv=case.threat.project(case.x, state.adv + 2.5 * case.threat.eps / self.steps * move),
            found=rows.pick(hit, state.adv, state.found),
            hit=state.hit | hit,
        )

    def cost(self, classes: int) -> tuple[int, int]:
        """Two forwards and backwards a step: of the logits, and of the score."""
        passes = 2 * self.steps * self.restarts
        return passes, passes


def _accepting(outputs: Outputs) -> Tensor:
    """Minus the score of refusal."""
    return outputs.logits[:, 0] - outputs.logits[:, 1]


def _beside(grad: Images, other: Images) -> Images:
    """A gradient without its part along another; as it is, where that leaves next to nothing."""
    size = rows.dot(other, other)
    share = torch.where(size > 0, rows.dot(grad, other) / torch.where(size > 0, size, torch.ones_like(size)), 0 * size)
    rest = grad - rows.spread(share, other) * other
    return rows.pick(rows.dot(rest, rest) > 1e-6 * rows.dot(grad, grad), rest, grad)
