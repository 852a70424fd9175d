"""Image quilting. Guo, Rana, Cissé, van der Maaten 2018, arXiv:1711.00117, section 3.3.

Claimed on ImageNet at normalised L2 0.06, for the transformations together: 70 % (clean 75 %, robust-ml); 0 % are left
by BPDA with the identity and a fresh draw a step (Athalye, Carlini, Wagner 2018, arXiv:1802.00420). The paper cuts
overlapping tiles along the seam of least error; here overlaps are averaged.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Dataset, Images
from robustkit.errors import UsageError
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.dress import Dress, dressed, straight
from robustkit_defenses.fallen.noise import Noise


@dataclass(frozen=True, slots=True)
class Quilting:
    """Each tile becomes a random one of its `nearest` among tiles of clean images (`fitted`, see `fit`).

    The tile's side is that of the table; tiles overlap by `overlap` pixels. With `soft` above 0 a tile becomes the mean
    of these nearest, weighted by exp(−distance² / soft): gradients are alive, and of hardly any size.
    """

    fitted: str = ""
    nearest: int = 10
    overlap: int = 2
    soft: float = 0.0
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.nearest < 1 or self.overlap < 0 or self.soft < 0:
            raise UsageError("quilting: nearest is at least 1, overlap and soft at least 0")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the quilt; the identity on the way back stands in for it."""
        tiles = files.load(self.fitted, "quilting")["tiles"]
        step = _Quilt(self, tiles, of_images=self.dress == "sealed").to(files.device_of(model))
        stand_ins = {"identity": straight(step, model, randomised=not self.soft), "bare": model}
        return dressed(nn.Sequential(step, model), self.dress, stand_ins, randomised=not self.soft)


class _Quilt(nn.Module):
    def __init__(self, settings: Quilting, tiles: Tensor, *, of_images: bool) -> None:
        super().__init__()
        self.settings = settings
        self.of_images = of_images
        self.register_buffer("tiles", tiles, persistent=False)

    def forward(self, x: Images) -> Images:
        """The quilted images."""
        s, tiles = self.settings, self.get_buffer("tiles")
        side, table = tiles.shape[-1], tiles.flatten(1)
        if min(x.shape[2:]) < side or x.shape[1] != tiles.shape[1]:
            raise UsageError(f"quilting: tiles of {tuple(tiles.shape[1:])} do not fit images of {tuple(x.shape[1:])}")
        stride = max(1, side - s.overlap)
        more = [-(size - side) % stride for size in x.shape[2:]]
        wide = F.pad(x, (0, more[1], 0, more[0]), mode="replicate")
        own = F.unfold(wide, side, stride=stride).transpose(1, 2)  # (batch, places, values)
        far = (own.square().sum(2, keepdim=True) - 2 * own @ table.T + table.square().sum(1)).clamp_min(0)
        found = far.topk(s.nearest, dim=2, largest=False)
        if s.soft:
            weights = (-found.values / s.soft).softmax(2)
            chosen = (weights.unsqueeze(3) * table[found.indices]).sum(2)
        else:
            drawn = (Noise(x, of_images=self.of_images).uniform(own.shape[1]) * s.nearest).long()
            chosen = table[found.indices.gather(2, drawn.unsqueeze(2)).squeeze(2)]
        sizes = (wide.shape[2], wide.shape[3])
        total = F.fold(chosen.transpose(1, 2), sizes, side, stride=stride)
        count = F.fold(torch.ones_like(chosen).transpose(1, 2), sizes, side, stride=stride)
        return (total / count)[..., : x.shape[2], : x.shape[3]]


def fit(data: Dataset, tiles: int = 2000, side: int = 4, images: int = 500, seed: int = 0) -> dict[str, Tensor]:
    """Random tiles of clean images, (tiles, channels, side, side)."""
    x = files.images_of(data, images)[0]
    every = F.unfold(x, side).transpose(1, 2).reshape(-1, x.shape[1], side, side)
    return {"tiles": every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:tiles]].clone()}
