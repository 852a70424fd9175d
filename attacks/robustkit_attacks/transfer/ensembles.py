"""How several surrogates make one direction: jointly, by stochastic steps over them, or weighted by how they agree.

Each rule is frozen settings that can be called with the climb and its state. All weights, orders and momenta are each
sample's own (published implementations take one for the batch). With one surrogate `logit`, `loss`, `probs` and
`adaea` are that surrogate's plain gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robustkit.api import Case, Draws, Images
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks.transfer import gradients, inputs
from robustkit_attacks.transfer.surrogates import (
    Choice,
    Combine,
    Field,
    Surrogates,
    choices,
    mean_logits,
    mean_probabilities,
)

_TINY = 1e-6  # keeps a ratio of losses finite where a surrogate is sure


class State(NamedTuple):
    """What is carried from step to step."""

    adv: Images
    momentum: Images
    variance: Images  # VMI's
    scales: Tensor  # SMER's, (batch, members)


class Passes(NamedTuple):
    """What one sample takes: member gradients (a forward and a backward of one member), and forwards beside them."""

    gradients: int
    forwards: int


class Climb(NamedTuple):
    """What a rule climbs with: the surrogates, the transforms, the gradient rule, and the length of a step."""

    case: Case
    surrogates: Surrogates
    chain: inputs.Chain
    rule: gradients.Rule
    decay: float
    step: float  # in units of eps

    @property
    def reach(self) -> float:
        """The eps of one entry of the image: eps itself, in l2 that of a change spread evenly."""
        threat = self.case.threat
        return threat.eps if threat.norm == "linf" else float(threat.eps / self.case.x[0].numel() ** 0.5)

    @property
    def scene(self) -> inputs.Scene:
        """What transforms may know."""
        return inputs.Scene(self.case.x, self.case.threat, self.reach)

    def estimate(
        self, field: Field, x: Images, momentum: Images, variance: Images, draws: Draws
    ) -> tuple[Images, Images]:
        """The gradient rule on the field seen through the transforms."""
        here = gradients.Here(momentum, self.decay, self.step * self.reach, self.reach)
        return self.rule(self.chain.around(field, self.scene), x, variance, here, draws)

    def accumulated(self, momentum: Images, grad: Images) -> Images:
        """The momentum after this gradient."""
        return self.decay * momentum + gradients.levelled(grad)

    def moved(self, x: Images, direction: Images) -> Images:
        """One step: signs in linf, the normalised direction in l2."""
        threat = self.case.threat
        step = norms.steepest(direction, threat.norm)
        return threat.project(self.case.x, x + self.step * threat.eps * step)


class Ensemble(Protocol):
    """An ensemble rule: frozen settings that can be called."""

    def __call__(self, climb: Climb, state: State, draws: Draws) -> tuple[Images, State]:
        """The direction to accumulate, and the state with what the rule keeps."""

    def passes(self, members: int, copies: int, calls: int) -> Passes:
        """What one step takes, with so many transformed copies and calls of the gradient rule."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The mean of the members' losses."""

    def __call__(self, climb: Climb, state: State, draws: Draws) -> tuple[Images, State]:
        """The gradient rule on the mean gradient."""
        return _jointly(climb, state, lambda x, _: climb.surrogates.mean(x), draws)

    def passes(self, members: int, copies: int, calls: int) -> Passes:
        """Every member at every call."""
        return Passes(members * copies * calls, 0)


@dataclass(frozen=True, slots=True)
class Logit:
    """The loss of the members' mean logits. Dong et al. 2018, arXiv:1710.06081, section 3.4."""

    def __call__(self, climb: Climb, state: State, draws: Draws) -> tuple[Images, State]:
        """The gradient rule on the joint gradient."""
        return _jointly(climb, state, _joint_field(climb, mean_logits), draws)

    def passes(self, members: int, copies: int, calls: int) -> Passes:
        """Every member at every call, and a forward more."""
        return _joint_passes(members, copies * calls)


@dataclass(frozen=True, slots=True)
class Probs:
    """The loss of the members' mean probabilities."""

    def __call__(self, climb: Climb, state: State, draws: Draws) -> tuple[Images, State]:
        """The gradient rule on the joint gradient."""
        return _jointly(climb, state, _joint_field(climb, mean_probabilities), draws)

    def passes(self, members: int, copies: int, calls: int) -> Passes:
        """Every member at every call, and a forward more."""
        return _joint_passes(members, copies * calls)


@dataclass(frozen=True, slots=True)
class SVRE:
    """Inner steps by single members, with the variance of their choice reduced. Xiong et al. 2022, arXiv:2111.10752.

    `rounds` visits of every member, in random orders. The gradient rule shapes the joint gradient at x; the members'
    own gradients, at x and at the inner point, go through the same draw of the transforms, so that they are gradients
    of one function. Those at x are computed once a step (published code computes them at each inner step).
    """

    rounds: int = 4

    def __post_init__(self) -> None:
        _check_rounds("svre", self.rounds)

    def __call__(self, climb: Climb, state: State, draws: Draws) -> tuple[Images, State]:
        """The last inner momentum."""
        surrogates, same = climb.surrogates, draws.at(1)
        joint, state = _jointly(climb, state, _joint_field(climb, mean_logits), draws.at(0))
        at_x = [climb.chain.around(surrogates.field(k), climb.scene)(state.adv, same) for k in range(len(surrogates))]
        x, momentum = state.adv, torch.zeros_like(state.adv)
        for choice in _orders(len(surrogates), self.rounds, draws.at(2)):
            field = climb.chain.around(_picked(climb, choice), climb.scene)
            own = _chosen(at_x, choice)
            momentum = climb.accumulated(momentum, field(x, same) - (own - joint))
            x = climb.moved(x, momentum)
        return momentum, state

    def passes(self, members: int, copies: int, calls: int) -> Passes:
        """The joint gradient, every member at x, and the inner steps."""
        joint = _joint_passes(members, copies * calls)
        return Passes(joint.gradients + members * copies + self.rounds * members * copies, joint.forwards)


@dataclass(frozen=True, slots=True)
class AdaEA:
    """Members weighted by how their steps fool the others; pixels they disagree on are left out. arXiv:2308.02897.

    Weights: softmax of `sharpness`·Σ of the other members' loss after this member's step over that after their own
    (towards a target: the inverse ratio). Left out: pixels whose mean cosine between members' gradients is below
    `agreement`.
    """

    sharpness: float = 10.0
    agreement: float = -0.3

    def __call__(self, climb: Climb, state: State, draws: Draws) -> tuple[Images, State]:
        """The gradient of the weighted logits, masked."""
        surrogates, n = climb.surrogates, len(climb.surrogates)
        if n == 1:
            return _jointly(climb, state, _joint_field(climb, mean_logits), draws.at(1))
        grads = [climb.chain.around(surrogates.field(k), climb.scene)(state.adv, draws.at(0)) for k in range(n)]
        weights = self.weights(climb, state.adv, grads)
        field = _joint_field(climb, lambda z: rows.added([z[k] * weights[:, k, None] for k in range(n)]))
        grad, state = _jointly(climb, state, field, draws.at(1))
        return grad * agreed(grads, self.agreement), state

    def weights(self, climb: Climb, x: Images, grads: list[Images]) -> Tensor:
        """Each member's share, (batch, members). Costs a forward of every member at every member's step."""
        n = len(grads)
        losses = [
            [climb.surrogates.cross_entropy(z) + _TINY for z in climb.surrogates.logits(climb.moved(x, grad))]
            for grad in grads
        ]  # losses[j][i]: member i after the step of member j
        fooled = [
            rows.added(
                [losses[j][i] / losses[i][i] if climb.case.target is None else losses[i][i] / losses[j][i]
                 for i in range(n) if i != j]
            )
            for j in range(n)
        ]  # fmt: skip
        return (self.sharpness * torch.stack(fooled, 1)).softmax(1)

    def passes(self, members: int, copies: int, calls: int) -> Passes:
        """Every member, the weighted gradient, and the forwards of the weights."""
        joint = _joint_passes(members, copies * calls)
        if members == 1:
            return joint
        return Passes(joint.gradients + members * copies, joint.forwards + members**2)


@dataclass(frozen=True, slots=True)
class SMER:
    """Inner steps by single members, whose logits are scaled so that the ensemble loses most. Tang, CVPR 2024.

    `rounds` visits of every member in random orders. The scales, one a member and sample, begin at 1 and climb
    ln CE(mean of scaled logits) at each inner step: rate `rate`, weight decay `shrink`.
    """

    rounds: int = 4
    rate: float = 2e-2
    shrink: float = 2e-3

    def __post_init__(self) -> None:
        _check_rounds("smer", self.rounds)
        if self.rate < 0 or self.shrink < 0:
            raise UsageError("smer: rate and shrink must not be negative")

    def __call__(self, climb: Climb, state: State, draws: Draws) -> tuple[Images, State]:
        """The last inner momentum."""
        x, momentum = state.adv, torch.zeros_like(state.adv)
        variance, scales = state.variance, state.scales
        for i, choice in enumerate(_orders(len(climb.surrogates), self.rounds, draws.at(0))):
            field = _picked(climb, choice, scales)
            grad, variance = climb.estimate(field, x, momentum, variance, draws.at(1).at(i))
            scales = self.reweighed(climb, x, scales)
            momentum = climb.accumulated(momentum, grad)
            x = climb.moved(x, momentum)
        return momentum, state._replace(variance=variance, scales=scales)

    def reweighed(self, climb: Climb, x: Images, scales: Tensor) -> Tensor:
        """The scales after one step. Costs a forward of every member."""
        logits = climb.surrogates.logits(x)
        with torch.enable_grad():
            leaf = scales.detach().requires_grad_(True)
            mean = rows.average([logits[k] * leaf[:, k, None] for k in range(len(logits))])
            loss = climb.surrogates.cross_entropy(mean).clamp_min(1e-12).log()
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        climbed = slope if climb.case.target is None else -slope
        return scales + self.rate * (climbed - self.shrink * scales)

    def passes(self, members: int, copies: int, calls: int) -> Passes:
        """The inner steps, and every member's forward at each."""
        steps = self.rounds * members
        return Passes(steps * copies * calls, steps * members)


def agreed(grads: list[Images], least: float) -> Tensor:
    """1 at pixels where the members' gradients point alike, mean cosine at least `least`: (batch, 1, height, width)."""
    units = []
    for grad in grads:
        size = rows.added([channel * channel for channel in grad.unbind(1)]).sqrt()[:, None]
        units.append(grad / torch.where(size > 0, size, torch.ones_like(size)))
    pairs = [(units[i] * units[j]).unbind(1) for i in range(len(units)) for j in range(i)]
    return (rows.average([rows.added(channels) for channels in pairs]) >= least)[:, None].to(grads[0].dtype)


def _jointly(climb: Climb, state: State, field: Field, draws: Draws) -> tuple[Images, State]:
    """The gradient rule at the iterate."""
    grad, variance = climb.estimate(field, state.adv, state.momentum, state.variance, draws)
    return grad, state._replace(variance=variance)


def _joint_field(climb: Climb, combine: Combine) -> Field:
    return lambda x, _: climb.surrogates.joint(x, combine)


def _picked(climb: Climb, choice: Choice, scales: Tensor | None = None) -> Field:
    return lambda x, _: climb.surrogates.picked(x, choice, scales)


def _joint_passes(members: int, calls: int) -> Passes:
    return Passes(members * calls, members * calls if members > 1 else 0)


def _orders(members: int, rounds: int, draws: Draws) -> list[Choice]:
    """Which member each sample visits at each inner step: `rounds` random orders of all."""
    orders = draws.uniform((rounds, members)).argsort(dim=2, stable=True)
    return choices(members, orders.flatten(1).T)


def _chosen(values: list[Images], choice: Choice) -> Images:
    """Each sample's entry of a list over members."""
    found = values[0]
    for k in range(1, len(values)):
        found = rows.pick(choice.member == k, values[k], found)
    return found


def _check_rounds(name: str, rounds: int) -> None:
    if rounds < 1:
        raise UsageError(f"{name}: rounds must be positive, not {rounds}")


RULES: Mapping[str, type] = {
    "logit": Logit, "loss": Loss, "probs": Probs, "svre": SVRE, "adaea": AdaEA, "smer": SMER,
}  # fmt: skip
