"""CrossMax, an aggregation of several classifiers. Fort & Lakshminarayanan 2024, arXiv:2408.05446, algorithm 1.

Claimed there, for multi-resolution self-ensembles in Linf 8/255: 72 % (CIFAR-10, three of them) and 48 % (CIFAR-100).
Evaluated again with an attack that fits it (Zhang, Nikolić, Carlini, Tramèr 2024/25, arXiv:2411.14834, version 2): 11 %
and 14 %, where 62 % and 48 % had been claimed of the variants that were attacked. The two subtractions and the order
statistic hide gradients; the stand-ins declared here are what takes them away. reports/paper/crossmax shows it on small
networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.numerics import rows

EARLY = 3  # the first members of a self-ensemble, the probes of its early layers, are its weakest spot


@dataclass(frozen=True, slots=True)
class CrossMax:
    """Each member's logits less their maximum, then each class less its maximum over members, then one of the members.

    `median` takes the median (the lower of the two middle ones), `kth` the `k`-th largest, for each class. The network
    must offer `members()`: an ensemble (`ensemble/(A)+(B)+(C)`) or a backbone behind the defense `probes`.
    """

    by: Literal["median", "kth"] = "median"
    k: int = 3

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"crossmax: k counts members from 1, not {self.k}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The same members, joined by CrossMax.

        Raises:
            UsageError: if the network offers no members, or fewer than k.
        """
        members = capabilities.members(model)
        if len(members) < 2:
            raise UsageError(
                "crossmax joins the members of an ensemble, and this model offers none; "
                "write --model 'ensemble/(A)+(B)+(C)', or --defense probes:weights=… before --defense crossmax, "
                "or give the module a method members()"
            )
        if self.by == "kth" and self.k > len(members):
            raise UsageError(f"crossmax: k is {self.k} but there are {len(members)} members")
        return Joined(model, self).eval()


class Joined(nn.Module):
    """An ensemble whose members' logits are joined by CrossMax; all outputs are at most 0."""

    def __init__(self, ensemble: nn.Module, settings: CrossMax) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.settings = settings
        self.randomised = capabilities.randomised(ensemble)

    def forward(self, x: Images) -> Logits:
        """The joined logits."""
        return self.forward_with_members(x)[0]

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor]:
        """The joined logits, and each member's (members, batch, classes)."""
        z = capabilities.member_outputs(self.ensemble, x)
        return joined(z, self.settings), z

    def members(self) -> Sequence[nn.Module]:
        """The ensemble's members."""
        return capabilities.members(self.ensemble)

    def surrogates(self) -> dict[str, nn.Module]:
        """The same members, joined smoothly: their mean logits or log-probabilities, the early ones', each alone."""
        members = self.members()
        found: dict[str, nn.Module] = {
            "mean-logits": Mean(self.ensemble).eval(),
            "mean-log-softmax": Mean(self.ensemble, log_softmax=True).eval(),
        }
        if len(members) > EARLY:
            found["early"] = Mean(self.ensemble, first=EARLY).eval()
        return found | {f"member-{i}": member for i, member in enumerate(members, 1)}

    def reseed(self, seed: int) -> None:
        """Reseed the ensemble, if it offers that."""
        capabilities.reseed(self.ensemble, seed)


class Mean(nn.Module):
    """The mean logits or log-probabilities of an ensemble's members, or of its first ones."""

    def __init__(self, ensemble: nn.Module, *, log_softmax: bool = False, first: int | None = None) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.log_softmax = log_softmax
        self.first = first
        self.randomised = capabilities.randomised(ensemble)

    def forward(self, x: Images) -> Logits:
        """The mean."""
        return self.forward_with_members(x)[0]

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor]:
        """The mean, and what it was taken of."""
        z = capabilities.member_outputs(self.ensemble, x, self.first)
        z = z.log_softmax(-1) if self.log_softmax else z
        return rows.average(z.unbind()), z

    def reseed(self, seed: int) -> None:
        """Reseed the ensemble, if it offers that."""
        capabilities.reseed(self.ensemble, seed)


def joined(z: Tensor, settings: CrossMax) -> Logits:
    """Algorithm 1 on the members' logits (members, batch, classes)."""
    z = z - z.amax(2, keepdim=True)
    z = z - z.amax(0, keepdim=True)
    if settings.by == "median":
        return z.median(0).values
    return z.topk(settings.k, dim=0).values[-1]
