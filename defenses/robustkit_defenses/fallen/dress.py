"""Three dresses of one defended network: the same answers, and less and less of how they are made.

`declared` offers what the harness asks for (`robustkit.models.capabilities`): stand-ins with an honest backward pass,
members, randomness. `undeclared` is the same network as code from elsewhere is, with its sub-modules and no word.
`sealed` has no sub-module, no parameter and no hook that would give the network inside away.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from robustkit.api import Images
from robustkit.models import capabilities
from robustkit_defenses.straight_through import StraightThrough

Dress = Literal["declared", "undeclared", "sealed"]


def dressed(
    answer: nn.Module,
    dress: Dress,
    surrogates: Mapping[str, nn.Module] | None = None,
    *,
    members: Sequence[nn.Module] = (),
    weights: Sequence[float] = (),
    randomised: bool = False,
) -> nn.Module:
    """A defended network in one of the dresses, in eval mode.

    Args:
        answer: what it does, as a module that offers nothing; it shares no state that another dress could change.
        dress: how much of it shows.
        surrogates: stand-ins to declare, made of parts of `answer`.
        members: classifiers to declare, of an ensemble or a mixture.
        weights: of a mixture, the probability of each member.
        randomised: whether two calls differ. In the dress `sealed` they do not: noise is made of the images there.
    """
    if dress == "undeclared":
        return answer.eval()
    if dress == "sealed":
        return Sealed(answer).eval()
    return Declared(answer, surrogates or {}, members, weights, randomised=randomised).eval()


def straight(step: nn.Module, network: nn.Module, *, randomised: bool = False) -> nn.Module:
    """The network behind a step that passes gradients back as the identity would (BPDA): a stand-in for both."""
    through = nn.Sequential(StraightThrough(step), network)
    through.randomised = randomised  # type: ignore[assignment]
    return through


class Declared(nn.Module):
    """A defended network that says what stands in for it, of what members it is made, and with which weights drawn."""

    def __init__(
        self,
        answer: nn.Module,
        stand_ins: Mapping[str, nn.Module],
        each: Sequence[nn.Module],
        probabilities: Sequence[float],
        *,
        randomised: bool,
    ) -> None:
        super().__init__()
        self.answer = answer
        # Parts of the answer, in plain containers: as sub-modules they would be saved twice.
        self.stand_ins = {name: module.eval() for name, module in stand_ins.items()}
        self.each = [member.eval() for member in each]
        self.probabilities = tuple(probabilities)
        self.randomised = randomised or any(capabilities.randomised(part) for part in answer.modules())

    def forward(self, x: Images) -> Tensor:
        """What the network answers."""
        logits: Tensor = self.answer(x)
        return logits

    def surrogates(self) -> dict[str, nn.Module]:
        """The stand-ins."""
        return dict(self.stand_ins)

    def members(self) -> Sequence[nn.Module]:
        """The members; none of what is no ensemble."""
        return list(self.each)

    def weights(self) -> tuple[float, ...]:
        """Of a mixture, the probability of each member; else none."""
        return self.probabilities

    def reseed(self, seed: int) -> None:
        """Reseed whatever inside has generators of its own."""
        for part in self.answer.modules():
            capabilities.reseed(part, seed)


class Sealed(nn.Module):
    """Answers as a network does, of which nothing can be found by looking through modules or by hooks."""

    def __init__(self, answer: nn.Module) -> None:
        super().__init__()
        inside = copy.deepcopy(answer).eval().requires_grad_(False)
        for part in inside.modules():
            part.__dict__["_compiled_call_impl"] = part.forward  # a call is the function alone, past every hook
        self.hidden = [inside]  # in a list, where it is no sub-module

    def forward(self, x: Images) -> Tensor:
        """What the network answers."""
        logits: Tensor = self.hidden[0].forward(x)
        return logits

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast: what is hidden comes along."""
        for inside in self.hidden:
            inside._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
