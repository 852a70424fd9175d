"""Activations that jump: the step carries the signal, and the slope beside it the gradient.

The re-creations of google-research/selfstudy-adversarial-robustness tell of it (Goodfellow 2018, unpublished): a leaky
ReLU and a step of height 5; their best attack succeeds on 92 % of it. A related one is JumpReLU (Erichson, Yao, Mahoney
2019), of which no independent break is known. Here the stand-in has a sigmoid's slope in place of the step's.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import with_activations


@dataclass(frozen=True, slots=True)
class Jump:
    """leaky(x) + `height`·[x > 0] in place of ReLU, for networks trained so (`train behind:defense=jump`)."""

    height: float = 20.0
    slope: float = 0.2
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.height < 0 or not 0 <= self.slope <= 1:
            raise UsageError("jump: height is at least 0, slope from 0 to 1")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network with activations that jump."""

        def jumping(*, soft: bool) -> nn.Module:
            return with_activations(model, lambda i: _Jumping(self, soft=soft))

        return dressed(jumping(soft=False), self.dress, {"sigmoid-step": jumping(soft=True)})


class _Jumping(nn.Module):
    def __init__(self, settings: Jump, *, soft: bool) -> None:
        super().__init__()
        self.settings = settings
        self.soft = soft

    def forward(self, x: Tensor) -> Tensor:
        """The activation; where `soft` the step passes a sigmoid's gradient back."""
        step = (x > 0).to(x.dtype)
        if self.soft:
            smooth = x.sigmoid()
            step = step + (smooth - smooth.detach())
        return F.leaky_relu(x, self.settings.slope) + self.settings.height * step
