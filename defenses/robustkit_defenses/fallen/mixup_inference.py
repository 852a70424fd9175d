"""Mixup inference. Pang, Xu, Zhu 2020, "Mixup inference", ICLR 2020 (OpenReview ByxtC2VtPB), section 3 (MI-OL).

What an attack through the very average leaves of it is in no record that was kept (Tramèr et al. 2020,
arXiv:2002.08347, attack it so).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.api import Dataset, Images, Logits
from robustkit.errors import UsageError
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.noise import Noise


@dataclass(frozen=True, slots=True)
class MixupInference:
    """The mean of `mixes` softmaxes of share·x + (1 − share)·clean, each clean image of a class other than decided.

    Clean images are of the pool (`fitted`, see `fit`). For networks trained by mixup.
    """

    fitted: str = ""
    share: float = 0.6
    mixes: int = 15
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.mixes < 1:
            raise UsageError("mixup-inference: share is from 0 to 1, mixes at least 1")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network's average over mixes; the network on a mix with the mean image stands in for it."""
        known = files.load(self.fitted, "mixup-inference")
        device = files.device_of(model)
        answer = _Mixed(model, self, known, of_images=self.dress == "sealed").to(device)
        mean = _WithMean(model, self.share, known["x"].mean(0)).to(device)
        return dressed(answer, self.dress, {"mean-image": mean, "bare": model}, randomised=True)


class _Mixed(nn.Module):
    def __init__(
        self, network: nn.Module, settings: MixupInference, known: dict[str, Tensor], *, of_images: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.of_images = of_images
        self.register_buffer("x", known["x"], persistent=False)  # sorted by class
        self.register_buffer("starts", known["starts"], persistent=False)  # of each class, and the end

    def forward(self, x: Images) -> Logits:
        """The logarithm of the mean probabilities."""
        s, pool, starts = self.settings, self.get_buffer("x"), self.get_buffer("starts")
        own = self.network(x).argmax(1)
        first, after = starts[own], starts[own + 1]
        drawn = Noise(x, of_images=self.of_images).uniform(s.mixes)
        others = (len(pool) - (after - first)).clamp_min(1)
        place = (drawn * others[:, None]).long()
        place = torch.where(place < first[:, None], place, place + (after - first)[:, None]).clamp_max(len(pool) - 1)
        logs = [self.network(s.share * x + (1 - s.share) * pool[place[:, i]]).log_softmax(1) for i in range(s.mixes)]
        return torch.stack(logs).logsumexp(0)


class _WithMean(nn.Module):
    def __init__(self, network: nn.Module, share: float, mean: Tensor) -> None:
        super().__init__()
        self.network = network
        self.share = share
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, x: Images) -> Logits:
        """The logits of the mix."""
        logits: Logits = self.network(self.share * x + (1 - self.share) * self.get_buffer("mean"))
        return logits


def fit(data: Dataset, classes: int, images: int = 200) -> dict[str, Tensor]:
    """The pool, sorted by class, and where each class begins."""
    x, y = files.images_of(data, images)
    order = y.argsort(stable=True)
    counts = torch.bincount(y, minlength=classes)
    return {"x": x[order].clone(), "starts": torch.cat([counts.new_zeros(1), counts.cumsum(0)])}
