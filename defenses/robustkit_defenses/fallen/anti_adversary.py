"""The anti-adversary layer. Alfarra, Pérez, Thabet, Bibi, Torr, Ghanem 2022, arXiv:2103.14347, algorithm 1.

Around an adversarially trained network (AWP) on CIFAR-10 at Linf 0.031, 100 images: APGD on the whole leaves 81 %, and
what APGD makes of the network inside leaves 62 %, as of that network alone (Croce, Gowal, Brunner et al. 2022,
arXiv:2202.13711, code).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import searching


@dataclass(frozen=True, slots=True)
class AntiAdversary:
    """`steps` signed steps of `rate` towards the network's own decision, then the network: a pass costs 2·steps + 2."""

    steps: int = 2
    rate: float = 0.15
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rate <= 0:
            raise UsageError("anti-adversary: steps and rate must be positive")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the layer; the network itself stands in for it."""
        return dressed(_Answer(model, self), self.dress, {"bare": model})


class _Answer(nn.Module):
    def __init__(self, network: nn.Module, settings: AntiAdversary) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, x: Images) -> Logits:
        """The logits at x + d; no gradient flows through d."""
        with searching():
            image = x.detach().clone()
            moved = torch.zeros_like(image)
            own = self.network(image).argmax(1)
            for _ in range(self.settings.steps):
                at = (image + moved).requires_grad_(True)
                loss = F.cross_entropy(self.network(at), own, reduction="sum")
                moved = moved - self.settings.rate * torch.autograd.grad(loss, at)[0].sign()
        logits: Logits = self.network(x + moved.detach())
        return logits
