"""A mixture of networks, one of which answers. Pinot, Ettedgui, Rizk, Chevaleyre, Atif 2020, arXiv:2002.11565 (BAT).

On CIFAR-10 in Linf 8/255, ResNet-18: adversarial training alone keeps 51.73 %, the mixture 61.61 % under PGD on the
expected loss, and 47.43 % under ARC (Dbouk, Shanbhag, ICML 2022).
"""

from dataclasses import dataclass

import torch
from torch import nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.noise import Noise


@dataclass(frozen=True, slots=True)
class RandomMixture:
    """For each image a member of an ensemble is drawn, by its weight, and answers."""

    weights: tuple[float, ...] = (0.8, 0.2)
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if min(self.weights, default=-1) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise UsageError(f"random-mixture: weights are probabilities that add up to 1, not {self.weights}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The mixture; the logarithm of its expected probabilities stands in for it.

        Raises:
            UsageError: if the network offers other than as many members as there are weights.
        """
        members = capabilities.members(model)
        if len(members) != len(self.weights):
            raise UsageError(
                f"random-mixture: {len(self.weights)} weights are given, and this model offers {len(members)} members; "
                "write --model 'ensemble/(A)+(B)'"
            )
        answer = _Drawn(members, self.weights, of_images=self.dress == "sealed")
        expected = _Expected(members, self.weights)
        return dressed(
            answer, self.dress, {"expected": expected}, members=members, weights=self.weights, randomised=True
        )


class _Drawn(nn.Module):
    def __init__(self, members: list[nn.Module], weights: tuple[float, ...], *, of_images: bool) -> None:
        super().__init__()
        self.networks = nn.ModuleList(members)
        self.weights = weights
        self.of_images = of_images

    def forward(self, x: Images) -> Logits:
        """The logits of the member drawn for each image."""
        z = torch.stack([network(x) for network in self.networks])
        bounds = torch.tensor(self.weights, device=x.device).cumsum(0)[:-1].contiguous()
        drawn = torch.bucketize(Noise(x, of_images=self.of_images).uniform(1)[:, 0], bounds, right=True)
        return z[drawn, torch.arange(len(x), device=x.device)]


class _Expected(nn.Module):
    def __init__(self, members: list[nn.Module], weights: tuple[float, ...]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(members)
        self.weights = weights

    def forward(self, x: Images) -> Logits:
        """The logarithm of the expected probabilities."""
        logs = [network(x).log_softmax(1) for network in self.networks]
        weights = torch.tensor(self.weights, device=x.device).log()
        return (torch.stack(logs) + weights.view(-1, 1, 1)).logsumexp(0)
