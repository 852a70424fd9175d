"""The networks a transfer attack climbs on: gradients of one, of each sample's choice, and of all together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit import rows
from robustkit.api import Case, Draws, Gradient, Images, Loss, Oracle, Outputs
from robustkit_attacks import losses

Field = Callable[[Images, Draws], Images]  # the gradient of a loss as a function of the image
Combine = Callable[[Tensor], Tensor]  # logits (members, batch, classes) to logits (batch, classes)


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

    def picked(self, x: Images, choice: Tensor, scales: Tensor | None = None) -> Images:
        """The gradient of each sample's own member, `choice` (batch). Costs 1 member gradient.

        `scales` (batch, members) multiply the logits of the member they belong to.
        """
        grad = torch.zeros_like(x)
        for k, member in enumerate(self.members):
            chosen = (choice == k).nonzero()[:, 0]
            if not len(chosen):
                continue
            loss = self.climb(chosen)
            if scales is not None:
                loss = scaled(loss, scales[chosen, k])
            grad[chosen] = member.select(chosen).gradient(x[chosen], loss).grad
        return grad

    def mean(self, x: Images) -> Images:
        """The gradient of the members' mean loss. Costs a member gradient of each."""
        return average([self.one(k, x).grad for k in range(len(self))])

    def joint(self, x: Images, combine: Combine) -> Images:
        """The gradient of the loss of the combined logits, by the chain rule over the members' own gradients.

        Costs a member gradient of each, and of several members one forward more: the combined loss must be known
        before any of them can be pulled back.
        """
        if len(self) == 1:
            loss = self.climb()
            return self.members[0].gradient(x, lambda o: loss(Outputs(combine(o.logits[None])))).grad
        with torch.enable_grad():
            logits = self.logits(x).requires_grad_(True)
            (weights,) = torch.autograd.grad(self.climb()(Outputs(combine(logits))).sum(), logits)
        return total([m.gradient(x, _linear(w)).grad for m, w in zip(self.members, weights, strict=True)])

    def logits(self, x: Images) -> Tensor:
        """The logits of all members, (members, batch, classes). Costs a forward of each."""
        return torch.stack([member.outputs(x).logits for member in self.members])


def scaled(loss: Loss, scales: Tensor) -> Loss:
    """The same loss of logits multiplied by one scale a sample."""
    return lambda outputs: loss(Outputs(rows.spread(scales, outputs.logits) * outputs.logits))


def _linear(weights: Tensor) -> Loss:
    """⟨weights, logits⟩ of each sample, whose gradient by the logits is `weights`."""
    return lambda outputs: (weights * outputs.logits).sum(1)


def total(values: Sequence[Tensor]) -> Tensor:
    """The sum, one after another: a reduction over a stack rounds an entry by its place in the batch."""
    return sum(values[1:], values[0])


def average(values: Sequence[Tensor]) -> Tensor:
    """The mean, summed one after another."""
    return total(values) / len(values)


def mean_logits(logits: Tensor) -> Tensor:
    """The members' mean logits."""
    return average(logits.unbind())


def mean_probabilities(logits: Tensor) -> Tensor:
    """The logarithm of the members' mean probabilities, which serves as logits."""
    shares = logits.log_softmax(-1)
    top = shares.detach().amax(0)
    return average((shares - top).exp().unbind()).log() + top
