"""What the attacks made by hand for one defense each share: a step in the ball, and how they are declared.

They see the defense as its author does: `Known` puts the declared dress, with its insides, beside the model that is
judged. Those that are an attack of this toolkit on a stand-in have no file here; `cases.py` names them by their specs.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustkit.api import Access, Case, Goal, Images, Norm
from robustkit.models import capabilities


class Known(nn.Module):
    """A model as it is judged, whatever it wears, beside the same defense in the dress `declared`."""

    def __init__(self, judged: nn.Module, declared: nn.Module) -> None:
        super().__init__()
        self.judged = judged
        self.declared = declared
        self.randomised = judged is declared and capabilities.randomised(declared)

    def forward(self, x: Images) -> Tensor:
        return self.judged(x)

    def surrogates(self) -> dict[str, nn.Module]:
        """Those declared, and the declared defense itself."""
        return {**capabilities.surrogates(self.declared), "itself": self.declared}

    def members(self) -> list[nn.Module]:
        return capabilities.members(self.declared)


class ByHand:
    """What a class of settings needs to be an attack: in linf, bounded, with the whole model at hand."""

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def cost(self, classes: int) -> tuple[int, int]:
        """Its passes are not those of the model, and are not counted."""
        return 0, 0


def declared(case: Case) -> Any:
    """The defense in the dress `declared`."""
    return case.oracle.module.declared


def climbed(case: Case, adv: Images, loss: Tensor, at: Images, step: float) -> Images:
    """A signed step up a loss of `at`, back in the ball and the box."""
    (grad,) = torch.autograd.grad(loss.sum(), at)
    return case.threat.project(case.x, adv + step * grad.sign())


def lead(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the best wrong class leads."""
    hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, y[:, None], True)
    return logits.masked_fill(hidden, -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]


def offer(case: Case, adv: Images, result: Images, broken: Tensor) -> None:
    """Hand in what is not broken yet; `result` and `broken` are brought up to date."""
    left = (~broken).nonzero()[:, 0]
    if len(left):
        result[left] = adv[left]
        broken[left] = case.select(left).submit(adv[left])
