"""Local intrinsic dimensionality as a detector. Ma, Li, Wang, Erfani et al. 2018, arXiv:1801.02613, section 4.

On CIFAR-10 in Linf 8/255: 5 % are left by a margin attack with high confidence that ignores the detector (Athalye,
Carlini, Wagner 2018, arXiv:1802.00420). One layer here, and neighbours of a fixed batch of clean images instead of the
batch that an image happens to be in.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Dataset, Images, Logits
from robustkit.errors import UsageError
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.dknn import votes
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import trunk_and_head


@dataclass(frozen=True, slots=True)
class LID:
    """−1 / mean log(r_i / r_k) over the distances to the `neighbours` nearest clean images, in the last features.

    Above the threshold (of `fitted`, see `fit`) an image is flagged, and gets the label of its nearest clean images.
    """

    fitted: str = ""
    neighbours: int = 20
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.neighbours < 2:
            raise UsageError(f"lid: neighbours is at least 2, not {self.neighbours}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network with its detector; the network without it stands in for both."""
        answer = _Answer(model, self, files.load(self.fitted, "lid")).to(files.device_of(model))
        return dressed(answer, self.dress, {"bare": model})


class _Answer(nn.Module):
    def __init__(self, network: nn.Module, settings: LID, known: dict[str, Tensor]) -> None:
        super().__init__()
        self.trunk, self.head = trunk_and_head(network)
        self.neighbours = settings.neighbours
        for name in ("batch", "features", "y", "threshold"):
            self.register_buffer(name, known[name], persistent=False)

    def forward(self, x: Images) -> Logits:
        """The network's logits; of a flagged image the votes of its 15 nearest."""
        z = self.trunk(x).flatten(1)
        logits: Logits = self.head(z)
        flagged = dimensionality(z, self.get_buffer("batch"), self.neighbours) > self.get_buffer("threshold")
        voted = votes(F.normalize(z), self.get_buffer("features"), self.get_buffer("y"), logits.shape[1], 15, 0)
        return torch.where(flagged[:, None], voted, logits)


def dimensionality(z: Tensor, batch: Tensor, neighbours: int) -> Tensor:
    """The estimate for each row of `z` among the rows of `batch`; a row's own copy there is no neighbour."""
    far = (z[:, None] - batch).square().sum(2).clamp_min(1e-12).sqrt()
    near = far.masked_fill(far < 1e-5, torch.inf).topk(neighbours, dim=1, largest=False).values
    return -1 / (near / near[:, -1:]).log().mean(1).clamp_max(-1e-6)


def fit(
    network: nn.Module, data: Dataset, settings: LID, images: int = 1000, alarms: float = 0.05
) -> dict[str, Tensor]:
    """A batch of 100 clean images, the neighbours that relabel, and the threshold that flags `alarms` of the clean."""
    trunk, _ = trunk_and_head(network)
    x, y = files.images_of(data, images)
    device = files.device_of(network)
    with torch.no_grad():
        z = trunk(x.to(device)).flatten(1)
        measured = dimensionality(z, z[:100], settings.neighbours)
    return {
        "batch": z[:100].clone(), "features": F.normalize(z), "y": y.to(device),
        "threshold": measured.quantile(1 - alarms),
    }  # fmt: skip
