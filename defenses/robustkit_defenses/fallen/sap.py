"""Stochastic activation pruning. Dhillon, Azizzadenesheli, Lipton, Bernstein et al. 2018, arXiv:1803.01442, section 3.

Claimed on CIFAR-10: 51 % in Linf 4/255; Athalye, Carlini and Wagner (arXiv:1802.00420) left 0 %, by gradients averaged
over draws. An erratum on that attack exists (arXiv:2010.00071). Survivors are divided by the probability of being kept,
which makes gradients heavy-tailed; what is learnt through the network without pruning breaks it at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.noise import Noise
from robustkit_defenses.fallen.surgery import with_activations


@dataclass(frozen=True, slots=True)
class SAP:
    """After each ReLU `share` times as many draws as there are units say which stay: by size, with replacement."""

    share: float = 1.0
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1000:
            raise UsageError(f"sap: share is how many draws a unit, above 0, not {self.share:g}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network with pruned activations."""
        pruned = with_activations(model, lambda i: _Pruned(self.share, of_images=self.dress == "sealed"))
        return dressed(pruned, self.dress, {"not-pruned": model}, randomised=True)


class _Pruned(nn.Module):
    def __init__(self, share: float, *, of_images: bool) -> None:
        super().__init__()
        self.share = share
        self.of_images = of_images

    def forward(self, x: Tensor) -> Tensor:
        """ReLU, pruned and scaled up by 1 / (1 − (1 − p)^draws)."""
        rows = x.relu().flatten(1)
        draws = max(1, round(self.share * rows.shape[1]))
        p = rows / rows.sum(1, keepdim=True).clamp_min(1e-12)
        places = Noise(x, of_images=self.of_images).uniform(draws) * p.detach().sum(1, keepdim=True)
        drawn = torch.searchsorted(p.detach().cumsum(1), places, right=True).clamp_max(rows.shape[1] - 1)
        stays = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, drawn, True)
        kept = -torch.expm1(draws * torch.log1p(-p.clamp_max(1 - 1e-6)))
        return torch.where(stays & (p > 0), rows / kept.clamp_min(1e-12), 0).view_as(x)
