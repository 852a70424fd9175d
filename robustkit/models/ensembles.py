"""Several classifiers as one: what specs of ensembles, and recipes that train members together, give the harness."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.numerics import rows

Mean = Literal["logits", "probs", "vote"]


class Ensemble(nn.Module):
    """Several classifiers as one.

    `logits` averages logits; `probs` averages softmax outputs and answers their logarithm; `vote` counts the members'
    decisions (of several classes with the most votes the first wins), through which no gradient flows: its declared
    stand-in is the mean of the logits.
    """

    def __init__(self, members: Sequence[nn.Module], mean: Mean = "logits") -> None:
        super().__init__()
        self.networks = nn.ModuleList(members)
        self.mean = mean
        self.randomised = any(capabilities.randomised(member) for member in members)

    def forward(self, x: Images) -> Logits:
        """The ensemble's logits."""
        return self.forward_with_members(x)[0]

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor]:
        """The ensemble's logits, and each member's (members, batch, classes).

        Raises:
            UsageError: if the members have different classes.
        """
        outputs = [capabilities.answer(network, x) for network in self.networks]
        if len(widths := {output.shape[1:] for output in outputs}) > 1:
            found = ", ".join(str(*width) for width in sorted(widths))
            raise UsageError(f"the members of the ensemble have different numbers of classes: {found}")
        members = torch.stack(outputs)
        return _averaged(outputs, self.mean), members

    def first_members(self, x: Images, n: int) -> Tensor:
        """The logits of the first n members (members, batch, classes), without a pass of the others."""
        return torch.stack([capabilities.answer(network, x) for network in self.networks[:n]])

    def members(self) -> Sequence[nn.Module]:
        """The classifiers."""
        return list(self.networks)

    def surrogates(self) -> dict[str, nn.Module]:
        """The mean of the logits, which stands in for a vote."""
        return {"mean-logits": Ensemble(list(self.networks)).eval()} if self.mean == "vote" else {}

    def reseed(self, seed: int) -> None:
        """Reseed the members that offer it, each on its own."""
        for place, network in enumerate(self.networks):
            capabilities.reseed(network, seed + place)


def _averaged(outputs: Sequence[Logits], mean: Mean) -> Logits:
    if mean == "vote":
        return rows.added([F.one_hot(output.argmax(1), output.shape[1]).to(output.dtype) for output in outputs])
    if mean == "logits":
        return rows.average(outputs)
    # The logarithm of a mean of softmaxes, by logsumexp: finite where every probability underflows.
    total = torch.log_softmax(outputs[0], 1)
    for output in outputs[1:]:
        total = torch.logaddexp(total, torch.log_softmax(output, 1))
    return total - math.log(len(outputs))
