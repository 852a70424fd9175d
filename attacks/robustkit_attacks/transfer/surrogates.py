"""The networks a transfer attack climbs on: gradients of one, of each sample's choice, and of all together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Case, Draws, Gradient, Images, Loss, Oracle, Outputs
from robustkit.numerics import rows
from robustkit_attacks import losses

Field = Callable[[Images, Draws], Images]  # the gradient of a loss as a function of the image
Combine = Callable[[Tensor], Tensor]  # logits (members, batch, classes) to logits (batch, classes)


class Choice(NamedTuple):
    """A member for each sample: its number, and of each member the samples that chose it, in their order."""

    member: Tensor
    samples: Sequence[Tensor]


def choices(members: int, chosen: Tensor) -> list[Choice]:
    """The choices (choices, batch) of some steps, of which the device is asked once: how many chose each member."""
    if members == 1:
        return [Choice(one, [torch.arange(len(one), device=one.device)]) for one in chosen]
    order = chosen.argsort(dim=1, stable=True)
    sizes = torch.stack([(chosen == k).sum(1) for k in range(members)], 1).tolist()
    return [Choice(one, places.split(size)) for one, places, size in zip(chosen, order, sizes, strict=True)]


@dataclass(frozen=True, slots=True)
class Surrogates:
    """The surrogates for some samples, with the loss that leads away from y or towards the target.

    A *member gradient* is one forward and one backward pass of one member: the unit in which costs are compared.
    """

    members: Sequence[Oracle]
    y: Tensor
    target: Tensor | None
    loss: losses.Name

    @classmethod
    def of(cls, case: Case, loss: losses.Name) -> "Surrogates":
        """Those of a case: the oracle's members, or the oracle itself if it has none."""
        return cls(list(case.oracle.members) or [case.oracle], case.y, case.target, loss)

    def __len__(self) -> int:
        return len(self.members)

    def climb(self, chosen: Tensor | None = None) -> Loss:
        """The loss to climb, for all samples or for some."""
        if chosen is None:
            return losses.make(self.loss, self.y, self.target)
        return losses.make(self.loss, self.y[chosen], None if self.target is None else self.target[chosen])

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """CE of the true class, or of the target: what several rules weigh members by."""
        return losses.cross_entropy(logits, self.y if self.target is None else self.target, None)

    def one(self, member: int, x: Images) -> Gradient:
        """One member's gradient. Costs 1 member gradient."""
        return self.members[member].gradient(x, self.climb())

    def field(self, member: int) -> Field:
        """One member's gradient as a field."""
        return lambda x, _: self.one(member, x).grad

    def picked(self, x: Images, choice: Choice, scales: Tensor | None = None) -> Images:
        """The gradient of each sample's own member. Costs 1 member gradient.

        `scales` (batch, members) multiply the logits of the member they belong to.
        """
        grad = torch.zeros_like(x)
        for k, member in enumerate(self.members):
            chosen = choice.samples[k]
            if not len(chosen):
                continue
            loss = self.climb(chosen)
            if scales is not None:
                loss = scaled(loss, scales[chosen, k])
            grad[chosen] = member.select(chosen).gradient(x[chosen], loss).grad
        return grad

    def mean(self, x: Images) -> Images:
        """The gradient of the members' mean loss. Costs a member gradient of each."""
        return rows.average([self.one(k, x).grad for k in range(len(self))])

    def joint(self, x: Images, combine: Combine) -> Images:
        """The gradient of the loss of the combined logits. Costs as the function `joint`."""
        return joint(self.members, x, combine, self.climb()).grad

    def logits(self, x: Images) -> Tensor:
        """The logits of all members, (members, batch, classes). Costs a forward of each."""
        return _logits(self.members, x)


def joint(members: Sequence[Oracle], x: Images, combine: Combine, loss: Loss) -> Gradient:
    """The loss of the members' combined logits and its gradient, by the chain rule over the members' own gradients.

    Costs a member gradient of each, and of several members one forward more: the combined loss must be known before any
    of them can be pulled back.
    """
    if len(members) == 1:
        seen = members[0].gradient(x, lambda outputs: loss(Outputs(combine(outputs.logits[None]))))
        return seen._replace(outputs=Outputs(combine(seen.outputs.logits[None])))
    with torch.enable_grad():
        logits = _logits(members, x).requires_grad_(True)
        combined = combine(logits)
        values = loss(Outputs(combined))
        each = values if values.dim() == 2 else values[None]
        found = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in each]
    weights = torch.stack(found, 1) if values.dim() == 2 else found[0]
    grads = [member.gradient(x, _linear(own)).grad for member, own in zip(members, weights, strict=True)]
    return Gradient(Outputs(combined.detach()), values.detach().to(x.dtype), rows.added(grads))


def _logits(members: Sequence[Oracle], x: Images) -> Tensor:
    return torch.stack([member.outputs(x).logits for member in members])


def scaled(loss: Loss, scales: Tensor) -> Loss:
    """The same loss of logits multiplied by one scale a sample."""
    return lambda outputs: loss(Outputs(rows.spread(scales, outputs.logits) * outputs.logits))


def _linear(weights: Tensor) -> Loss:
    """⟨weights, logits⟩ of each sample, whose gradient by the logits is `weights` (*losses, batch, classes)."""
    return lambda outputs: (weights * outputs.logits).sum(-1)


def mean_logits(logits: Tensor) -> Tensor:
    """The members' mean logits."""
    return rows.average(logits.unbind())


def mean_probabilities(logits: Tensor) -> Tensor:
    """The logarithm of the members' mean probabilities, which serves as logits."""
    shares = logits.log_softmax(-1)
    top = shares.detach().amax(0)
    return rows.average((shares - top).exp().unbind()).log() + top
