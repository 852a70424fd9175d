"""Thermometer code. Buckman, Roy, Raffel, Goodfellow 2018, "Thermometer encoding", ICLR 2018 (OpenReview S18Su--CW).

Claimed on CIFAR-10 in Linf 8/255, with adversarial training: 79 %, of which 30 % are left (Athalye, Carlini, Wagner
2018, arXiv:1802.00420); without it 0 %. Comparisons have no gradient; a ramp in the place of each step gives one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit_defenses.fallen.dress import Dress, dressed


@dataclass(frozen=True, slots=True)
class Thermometer:
    """Each value c becomes `levels` bits [c > k/levels], k from 0: as many times the channels, for networks of those.

    `ramp` is the width of the ramps whose slopes pass back in the network itself: 0 passes none. 1 is alive, steady and
    mostly wrong. The declared stand-in has ramps of one level's width.
    """

    levels: int = 16
    ramp: float = 0.0
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256 or self.ramp < 0:
            raise UsageError("thermometer: levels is from 2 to 256, ramp at least 0")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the code."""
        answer = nn.Sequential(_Code(self.levels, self.ramp), model)
        return dressed(answer, self.dress, {"ramp": nn.Sequential(_Code(self.levels, 1 / self.levels), model)})


class _Code(nn.Module):
    def __init__(self, levels: int, ramp: float) -> None:
        super().__init__()
        self.levels = levels
        self.ramp = ramp

    def forward(self, x: Images) -> Tensor:
        """The bits (batch, channels·levels, height, width), a channel's levels one after another."""
        thresholds = torch.arange(self.levels, device=x.device, dtype=x.dtype) / self.levels
        above = x.unsqueeze(2) - thresholds.view(1, 1, -1, 1, 1)
        bits = (above > 0).to(x.dtype)
        if self.ramp:
            slope = (above / self.ramp).clamp(0, 1)
            bits = bits + (slope - slope.detach())
        return bits.flatten(1, 2)
