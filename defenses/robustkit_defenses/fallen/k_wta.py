"""k-winners-take-all. Xiao, Zhong, Zheng 2020, arXiv:1905.10510, section 3.

Claimed with adversarial training on CIFAR-10 at Linf 0.031: 52.4 %, of which AutoAttack leaves 18.5 % (clean 79.28 %,
the list in fra31/auto-attack); Tramèr et al. 2020 (arXiv:2002.08347) break it by gradients estimated from scores. The
set of winners changes within tiny distances, and with it the function that a gradient is of.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import with_activations
from robustkit_defenses.gaussian_smoothing import GaussianSmoothing


@dataclass(frozen=True, slots=True)
class KWinners:
    """In place of ReLU the largest `share` of each layer's values stays, for each image, and the rest is zero.

    For networks trained so (`train behind:defense=k-wta`). The declared stand-in averages `copies` noisy copies of an
    image (sigma in [0,1] units), which is what the gradient of the function over a small distance is.
    """

    share: float = 0.1
    sigma: float = 0.05
    copies: int = 64
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"k-wta: share is above 0 and below 1, not {self.share:g}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network with winners in place of its ReLUs."""
        answer = with_activations(model, lambda i: _Winners(self.share))
        smoothed = GaussianSmoothing(self.sigma, self.copies).protect(answer)
        return dressed(answer, self.dress, {"smoothed": smoothed})


class _Winners(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """The largest values of each row; of equal ones all."""
        rows = x.flatten(1)
        least = rows.topk(math.ceil(self.share * rows.shape[1]), dim=1).values[:, -1:]
        return torch.where(rows >= least, rows, 0).view_as(x)
