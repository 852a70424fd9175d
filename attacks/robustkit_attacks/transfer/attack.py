"""The composed transfer attack: a momentum method whose gradient, transforms and ensemble rule are parts.

Momentum: Dong et al. 2018, arXiv:1710.06081. The parts name their own sources.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from robustkit.api import Access, Case, Goal, Images, Norm
from robustkit.errors import UsageError
from robustkit_attacks import losses
from robustkit_attacks.transfer import ensembles, inputs, parts
from robustkit_attacks.transfer.gradients import RULES, Rule
from robustkit_attacks.transfer.surrogates import Surrogates


@dataclass(frozen=True, slots=True)
class Transfer:
    """Steps along the momentum of a gradient of the surrogates: `transfer:gradient=vmi,input=di+ti,ensemble=svre`.

    A part may have settings: `input=(di:prob=0.7)+ti`. `step` is in units of eps, by default 1/steps. `budget` counts
    member gradients for each image (one forward and backward of one surrogate); above 0 it replaces `steps` by as
    many as it pays for, at least one.
    """

    gradient: str = "mi"
    input: tuple[str, ...] = ()
    ensemble: str = "logit"
    steps: int = 10
    momentum: float = 1.0
    step: float | None = None
    loss: losses.Name = "ce"
    budget: int = 0

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "transfer"

    def __post_init__(self) -> None:
        check_numbers("transfer", self.steps, self.momentum, self.step, self.budget)
        self._rule()
        self._chain()
        self._ensemble()

    def __call__(self, case: Case) -> Images:
        """The last iterate of each sample; nothing is asked of the judge, since the victim is another."""
        surrogates = Surrogates.of(case, self.loss)
        steps, ensemble = self.steps_for(len(surrogates)), self._ensemble()
        climb = ensembles.Climb(
            case, surrogates, self._chain(), self._rule(), self.momentum, 1 / steps if self.step is None else self.step
        )
        still = torch.zeros_like(case.x)
        state = ensembles.State(case.x, still, still, case.x.new_ones(len(case.x), len(surrogates)))
        for t in range(steps):
            grad, state = ensemble(climb, state, case.draws.at(t))
            momentum = climb.accumulated(state.momentum, grad)
            state = state._replace(momentum=momentum, adv=climb.moved(state.adv, momentum))
        return state.adv

    def steps_for(self, members: int) -> int:
        """The steps it takes on so many surrogates."""
        return affordable(self.steps, self.budget, self._passes(members).gradients)

    def gradients(self, members: int) -> int:
        """The member gradients of each image; above `budget` only where that does not pay for one step."""
        return self.steps_for(members) * self._passes(members).gradients

    def cost(self, classes: int, members: int = 1) -> tuple[int, int]:
        """Passes of `members` surrogates together; the contract asks for one."""
        found, steps = self._passes(members), self.steps_for(members)
        return steps * (found.gradients + found.forwards), steps * found.gradients

    def _passes(self, members: int) -> ensembles.Passes:
        return self._ensemble().passes(members, self._chain().copies, self._rule().calls)

    def _rule(self) -> Rule:
        rule: Rule = parts.make(RULES, self.gradient, "gradient")
        return rule

    def _chain(self) -> inputs.Chain:
        return inputs.Chain(parts.made(inputs.TRANSFORMS, self.input, "input"))

    def _ensemble(self) -> ensembles.Ensemble:
        ensemble: ensembles.Ensemble = parts.make(ensembles.RULES, self.ensemble, "ensemble")
        return ensemble


def affordable(steps: int, budget: int, gradients: int) -> int:
    """The steps, or as many as the budget pays for at so many gradients each."""
    return max(1, budget // gradients) if budget else steps


def check_numbers(name: str, steps: int, momentum: float, step: float | None, budget: int) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UsageError: naming the attack.
    """
    if steps < 1 or (step is not None and step <= 0):
        raise UsageError(f"{name}: steps and step must be positive; step is in units of eps")
    if momentum < 0 or budget < 0:
        raise UsageError(f"{name}: momentum and budget must not be negative")
