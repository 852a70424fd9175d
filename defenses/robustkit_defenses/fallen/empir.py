"""EMPIR, an ensemble of mixed precision. Sen, Ravindran, Raghunathan 2020, ICLR 2020 (OpenReview HJem3yHKwH).

On CIFAR-10 its authors' PGD leaves 13.55 % (a float network alone 10.69 %), Carlini and Wagner's attack 48.51 %
(13.38 %; clean 72.56 % against 74.54 %). Tramèr et al. 2020 (arXiv:2002.08347) attack the mean of the members'
probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.numerics import rows
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import with_activations


@dataclass(frozen=True, slots=True)
class EMPIR:
    """Members of an ensemble, each with activations of so many `bits` (32: as they are), vote.

    The winner gets its number of votes and `mean` times the mean probabilities of those that voted for it; without a
    majority the last member decides. For members trained so (`train behind:defense=empir`).
    """

    bits: tuple[int, ...] = (2, 4, 32)
    mean: float = 0.01
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if any(not 1 <= bits <= 32 for bits in self.bits) or self.mean < 0:
            raise UsageError("empir: bits are from 1 to 32, mean at least 0")

    def protect(self, model: nn.Module) -> nn.Module:
        """The ensemble's vote; the mean of its members' probabilities stands in for it.

        Raises:
            UsageError: if the network offers other than as many members as there are bits.
        """
        members = capabilities.members(model)
        if len(members) != len(self.bits):
            raise UsageError(
                f"empir: bits are given for {len(self.bits)} members, and this model offers {len(members)}; "
                "write --model 'ensemble/(A)+(B)+(C)'"
            )
        each = [
            member if bits == 32 else with_activations(member, lambda i, bits=bits: Quantised(bits))  # type: ignore[misc]
            for member, bits in zip(members, self.bits, strict=True)
        ]
        return dressed(_Vote(each, self.mean), self.dress, {"mean-probs": _MeanProbs(each)}, members=each)


class Quantised(nn.Module):
    """Values clipped to [0, 4] on the nearest of 2^bits levels; gradients pass the rounding unchanged."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = float(2**bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        """The rounded values."""
        inside = x.clamp(0, 4)
        rounded: Tensor = (inside.detach() / 4 * self.most).round() / self.most * 4
        return rounded + (inside - inside.detach())


class _Vote(nn.Module):
    def __init__(self, networks: Sequence[nn.Module], mean: float) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.mean = mean

    def forward(self, x: Images) -> Logits:
        """Votes, and a little of the probabilities of those that voted for the winner."""
        p = torch.stack([network(x).softmax(1) for network in self.networks])
        decided = F.one_hot(p.argmax(2), p.shape[2]).to(p)  # (members, batch, classes)
        counts = decided.sum(0)
        alone = counts.amax(1, keepdim=True) <= len(p) / 2
        counts = torch.where(alone, counts + len(p) * decided[-1], counts)
        with_winner = decided.gather(2, counts.argmax(1).expand(len(p), -1).unsqueeze(2))
        share = (p * with_winner).sum(0) / with_winner.sum(0).clamp_min(1)
        return counts + self.mean * share


class _MeanProbs(nn.Module):
    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Images) -> Logits:
        """The logarithm of the mean probabilities."""
        return rows.average([network(x).softmax(1) for network in self.networks]).clamp_min(1e-12).log()
