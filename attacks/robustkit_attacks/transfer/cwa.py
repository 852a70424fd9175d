"""CWA, the common weakness attack, and its two halves. Chen et al. 2024, arXiv:2303.09105, section 3.

Each step from x₀: SAM goes a small step *against* the joint loss; CSE goes a long normalised step along each member's
gradient in turn, the momentum of which persists; the displacement from x₀ is the direction of the outer momentum. The
members' order is fixed. In the published results CSE carries nearly all of the gain.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Draws, Goal, Images, Norm
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import losses
from robustkit_attacks.transfer import gradients, inputs, parts
from robustkit_attacks.transfer.attack import affordable, check_numbers
from robustkit_attacks.transfer.surrogates import Combine, Field, Surrogates, mean_logits

_SIDE = math.sqrt(3 * 224 * 224)  # β is published for this many entries, as a length: √D


class _Published(NamedTuple):
    """Settings that go together; lengths are in units of eps, `beta` in units of √D."""

    reverse: float
    reverse_alone: float  # without CSE
    beta: float
    beta_alone: float  # without SAM
    step: float
    rate: float  # Adam's
    combine: Combine
    level: bool  # whether the displacement is divided by its L1 norm before the momentum
    clips: bool  # whether the reversed point is projected
    targeted: bool  # whether a targeted attack reverses too
    spectral: bool  # whether SSA-CWA reverses


_ADAM = 1e-3 / (16 / 255)
_SETTINGS = {
    "robustkit": _Published(
        1 / 15, 1 / 15, 250 / _SIDE, 250 / _SIDE, 1 / 5, 1 / 5, mean_logits, True, True, True, True
    ),
    "paper": _Published(1 / 15, 1 / 15, 50 / _SIDE, 50 / _SIDE, 1 / 5, _ADAM, mean_logits, False, True, True, True),
    "code": _Published(
        1 / 15, 1 / 10, 250 / _SIDE, 50 / _SIDE, 1 / 5, _ADAM, lambda z: rows.added(z.unbind()), True,
        False, False, False,
    ),
}  # fmt: skip


class _State(NamedTuple):
    adv: Images
    inner: Images  # CSE's momentum
    outer: Images
    square: Images  # Adam's second moment


@dataclass(frozen=True, slots=True)
class CWA:
    """MI-CWA by default; without `cse` it is MI-SAM, without `sam` MI-CSE.

    `neighbours` above 0 replaces each member's gradient by the mean over so many points of its neighbourhood
    (VMI-CWA); `input` sees the members through transforms (SSA-CWA: `ssa`); `outer` = adam is Adam-CWA.

    `settings` are the lengths and habits of the paper, of its authors' code (joint loss of summed logits; the reversed
    point not projected; no reversal towards a target or with SSA), or ours: the paper's form with the code's longer
    inner step, the same with and without SAM, and outer steps that reach eps even if they are few. `reverse`, `step`
    and `rate` (Adam's) are in units of eps; `beta_rel` is the inner step over √D, D the entries of an image: 250 and
    50 at 3×224×224 are 0.644 and 0.129. Each of them overrides its setting. `budget` is as in `transfer`.

    All published norms over a batch are norms of each sample here, and a zero gradient moves nothing.
    """

    steps: int = 10
    settings: Literal["robustkit", "paper", "code"] = "robustkit"
    sam: bool = True
    cse: bool = True
    outer: Literal["momentum", "adam"] = "momentum"
    neighbours: int = 0
    input: tuple[str, ...] = ()
    reverse: float | None = None
    beta_rel: float | None = None
    step: float | None = None
    rate: float | None = None
    momentum: float = 1.0
    loss: losses.Name = "ce"
    budget: int = 0

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "transfer"

    def __post_init__(self) -> None:
        check_numbers("cwa", self.steps, self.momentum, self.step, self.budget)
        if self.settings not in _SETTINGS:
            raise UsageError(f"cwa: settings must be one of {', '.join(_SETTINGS)}, not {self.settings!r}")
        if self.outer not in ("momentum", "adam"):
            raise UsageError(f"cwa: outer must be momentum or adam, not {self.outer!r}")
        if not (self.sam or self.cse):
            raise UsageError("cwa: without sam and cse nothing is left of it; use mi")
        if any(value is not None and value <= 0 for value in (self.reverse, self.beta_rel, self.rate)):
            raise UsageError("cwa: reverse, beta_rel and rate must be positive")
        if self.neighbours < 0:
            raise UsageError("cwa: neighbours must not be negative")
        self._chain()

    def __call__(self, case: Case) -> Images:
        """The last iterate of each sample; nothing is asked of the judge, since the victim is another."""
        surrogates = Surrogates.of(case, self.loss)
        still = torch.zeros_like(case.x)
        state = _State(case.x, still, still, still)
        steps = self.steps_for(len(surrogates), targeted=case.target is not None)
        for t in range(steps):
            draws = case.draws.at(t)
            start = self._reversed(case, surrogates, state.adv)
            if self.cse:
                end, inner = self._encouraged(case, surrogates, start, state.inner, draws)
                ahead, state = end - state.adv, state._replace(inner=inner)
            else:
                ahead = self._seen(case, lambda x, _: surrogates.joint(x, self._combine))(start, draws)
            state = self._outer(case, state, ahead, t, steps)
        return state.adv

    def _reversed(self, case: Case, surrogates: Surrogates, x: Images) -> Images:
        """SAM: a sign step down the joint loss."""
        if not self._reverses(targeted=case.target is not None):
            return x
        size = self._or(self.reverse, "reverse" if self.cse else "reverse_alone") * case.threat.eps
        start = x - size * surrogates.joint(x, self._combine).sign()
        return case.threat.project(case.x, start) if _SETTINGS[self.settings].clips else start

    def _encouraged(
        self, case: Case, surrogates: Surrogates, x: Images, momentum: Images, draws: Draws
    ) -> tuple[Images, Images]:
        """CSE: a step of length β along the momentum of each member's normalised gradient, one after the other."""
        beta = self._or(self.beta_rel, "beta" if self.sam else "beta_alone") * math.sqrt(x[0].numel())
        for k in range(len(surrogates)):
            grad = self._seen(case, surrogates.field(k))(x, draws.at(k))
            # By the largest entry first: the squares of a saturated network's gradient underflow.
            momentum = self.momentum * momentum + norms.unit(norms.unit(grad, "linf"))
            x = case.threat.project(case.x, x + beta * momentum)
        return x, momentum

    def _outer(self, case: Case, state: _State, ahead: Images, t: int, steps: int) -> _State:
        """The outer step from x₀ along the displacement, or along the gradient where there is no CSE."""
        if self.outer == "adam":
            first, square = 0.9 * state.outer + 0.1 * ahead, 0.999 * state.square + 0.001 * (ahead * ahead)
            size = self._long_enough(self.rate, "rate", steps) * case.threat.eps
            step = size * (first / (1 - 0.9 ** (t + 1))) / ((square / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
            return state._replace(adv=case.threat.project(case.x, state.adv + step), outer=first, square=square)
        leveled = gradients.levelled(ahead) if _SETTINGS[self.settings].level or not self.cse else ahead
        outer = self.momentum * state.outer + leveled
        size = self._long_enough(self.step, "step", steps) * case.threat.eps
        return state._replace(adv=case.threat.project(case.x, state.adv + size * outer.sign()), outer=outer)

    def _seen(self, case: Case, field: Field) -> Field:
        """A gradient through the transforms, over the neighbourhood."""
        eps = case.threat.eps
        field = self._chain().around(field, inputs.Scene(case.x, case.threat, eps))
        if not self.neighbours:
            return field
        radius = gradients.Neighbours().radius * eps
        return lambda x, draws: gradients.neighbourhood(field, x, self.neighbours, radius, draws)

    def steps_for(self, members: int, *, targeted: bool = False) -> int:
        """The steps it takes on so many surrogates."""
        return affordable(self.steps, self.budget, self._a_step(members, targeted=targeted)[0])

    def gradients(self, members: int) -> int:
        """The member gradients of each image, in an untargeted attack; above `budget` only for the one step due."""
        return self.steps_for(members) * self._a_step(members)[0]

    def cost(self, classes: int, members: int = 1) -> tuple[int, int]:
        """Passes of `members` surrogates together; the contract asks for one."""
        found, forwards = self._a_step(members)
        return self.steps_for(members) * (found + forwards), self.steps_for(members) * found

    def _a_step(self, members: int, *, targeted: bool = False) -> tuple[int, int]:
        """Member gradients of one step, and forwards beside them: one of each member for each joint gradient."""
        seen = members * self._chain().copies * max(1, self.neighbours)
        back = members * self._reverses(targeted=targeted)
        joint = back if self.cse else back + seen
        return back + seen, joint if members > 1 else 0

    def _reverses(self, *, targeted: bool) -> bool:
        published = _SETTINGS[self.settings]
        spectral = any(isinstance(part, inputs.SSA) for part in self._chain().parts)
        return self.sam and (published.targeted or not targeted) and (published.spectral or not spectral)

    def _chain(self) -> inputs.Chain:
        return inputs.Chain(parts.made(inputs.TRANSFORMS, self.input, "input"))

    def _combine(self, logits: Tensor) -> Tensor:
        return _SETTINGS[self.settings].combine(logits)

    def _long_enough(self, given: float | None, name: str, steps: int) -> float:
        """An outer step; of our own settings at least such that few steps can cross the ball."""
        least = 1 / steps if given is None and self.settings == "robustkit" else 0.0
        return max(self._or(given, name), least)

    def _or(self, given: float | None, name: str) -> float:
        """A length as given, or as published."""
        return float(getattr(_SETTINGS[self.settings], name)) if given is None else given
