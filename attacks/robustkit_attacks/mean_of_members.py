"""An ensemble's members behind the mean of their logits, whatever the ensemble itself does with them: a stand-in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from robustkit.api import Gradient, Images, Loss, Oracle, Outputs
from robustkit.numerics import rows
from robustkit_attacks.transfer import surrogates


@dataclass(frozen=True, slots=True)
class MeanOfMembers:
    """The oracle of the members' mean logits. `base` is the ensemble's.

    `joint` says that the ensemble's own outputs hold its members' logits: then a gradient is one pass of it. Else it is
    two forwards and one backward of each member, for the loss of the mean must be known before one can be pulled back.
    """

    base: Oracle
    joint: bool = False

    @classmethod
    def of(cls, base: Oracle, x: Images) -> "MeanOfMembers":
        """The mean of an ensemble's members, found out on some images. Costs a forward."""
        return cls(base, base.differentiable and base.outputs(x).members is not None)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.base.classes

    @property
    def randomised(self) -> bool:
        """As the ensemble."""
        return self.base.randomised

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow through the members."""
        return all(member.differentiable for member in self.base.members)

    @property
    def members(self) -> Sequence[Oracle]:
        """The members."""
        return self.base.members

    @property
    def surrogates(self) -> Mapping[str, Oracle]:
        """The ensemble's."""
        return self.base.surrogates

    @property
    def refusal(self) -> Oracle:
        """The ensemble's."""
        return self.base.refusal

    @property
    def module(self) -> nn.Module:
        """The ensemble's network."""
        return self.base.module

    @property
    def tile(self) -> int:
        """Width of the network's batches."""
        return self.base.tile

    def counted_module(self) -> nn.Module:
        """The ensemble's network."""
        return self.base.counted_module()

    def select(self, rows: Tensor) -> "MeanOfMembers":
        """The same for some of the samples."""
        return MeanOfMembers(self.base.select(rows), self.joint)

    def eot(self, k: int) -> Oracle:
        """The mean in expectation over k draws."""
        return MeanOfMembers(self.base.eot(k), self.joint)

    def outputs(self, x: Images) -> Outputs:
        """One forward of each member."""
        return Outputs(rows.average([member.outputs(x).logits for member in self.base.members]))

    def gradient(self, x: Images, loss: Loss) -> Gradient:
        """The gradient of the loss of the mean logits."""
        if self.joint:
            seen = self.base.gradient(x, lambda outputs: loss(_mean(outputs)))
            return seen._replace(outputs=_mean(seen.outputs))
        return surrogates.joint(self.base.members, x, surrogates.mean_logits, loss)


def _mean(outputs: Outputs) -> Outputs:
    assert outputs.members is not None
    return Outputs(surrogates.mean_logits(outputs.members))
