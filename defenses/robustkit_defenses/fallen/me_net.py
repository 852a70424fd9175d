"""ME-Net. Yang, Zhang, Katabi, Xu 2019, arXiv:1905.11971, section 3.

On CIFAR-10 in Linf 8/255 with adversarial training, 1000 images (clean 85.24 %): BPDA alone leaves 49.7 %, averaged
over 40 draws 26.0 % (Tramèr et al. 2020, arXiv:2002.08347, code).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit_defenses.fallen.dress import Dress, dressed, straight
from robustkit_defenses.fallen.noise import Noise


@dataclass(frozen=True, slots=True)
class MENet:
    """Pixels stay with probability `keep`; of the rest of the image `rank` singular values, divided by `keep`.

    Channels stand side by side in one matrix, in [−1,1] (universal singular value thresholding). `back` is what the
    decomposition passes back: `svd` its own derivative, which explodes where singular values meet, or none. For
    networks trained on such images (`train behind:defense=me-net`).
    """

    keep: float = 0.5
    rank: int = 3
    back: Literal["none", "svd"] = "none"
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or self.rank < 1:
            raise UsageError("me-net: keep is from 0 to 1, rank at least 1")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind mask and estimate; the identity on the way back stands in for both."""
        step = _Estimated(self, of_images=self.dress == "sealed")
        stand_ins = {"identity": straight(step, model, randomised=True), "bare": model}
        return dressed(nn.Sequential(step, model), self.dress, stand_ins, randomised=True)


class _Estimated(nn.Module):
    def __init__(self, settings: MENet, *, of_images: bool) -> None:
        super().__init__()
        self.settings = settings
        self.of_images = of_images

    def forward(self, x: Images) -> Images:
        """The images as the matrix of low rank has them."""
        s = self.settings
        kept = Noise(x, of_images=self.of_images).uniform(1, *x.shape[2:]) < s.keep
        with torch.set_grad_enabled(torch.is_grad_enabled() and s.back == "svd"):
            wide = torch.where(kept, 2 * x - 1, 0).transpose(1, 2).flatten(2)  # (batch, height, channels·width)
            u, values, v = torch.linalg.svd(wide, full_matrices=False)
            low = (u[..., : s.rank] * values[:, None, : s.rank]) @ v[:, : s.rank]
            matrix = (low / s.keep).clamp(-1, 1).unflatten(2, (x.shape[1], x.shape[3])).transpose(1, 2)
            estimated: Images = (matrix + 1) / 2
            return estimated
