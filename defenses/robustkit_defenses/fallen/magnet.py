"""Autoencoders that reject and reform. Meng, Chen 2017, "MagNet", arXiv:1705.09064, section 4.

Claimed on CIFAR-10 at L2 0.5: 83 % of what was right, of which 0 % are left (Carlini, Wagner 2017, arXiv:1711.08478,
and robust-ml), by an attack on all autoencoders together with each detector's excess as a penalty.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Dataset, Images, Logits
from robustkit.errors import UsageError
from robustkit_defenses.fallen import autoencoders
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.decoder_projection import Decoded
from robustkit_defenses.fallen.dknn import votes
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.noise import Noise
from robustkit_defenses.fallen.surgery import trunk_and_head

HIDDEN = 32


@dataclass(frozen=True, slots=True)
class MagNet:
    """An autoencoder drawn from those of `fitted` (see `fit`) reforms the image; the network decides on what it makes.

    An image that it reforms by more than the threshold, or whose decision it changes much, is flagged, and gets the
    label of its nearest clean images: a classifier for the harness, and no class of its own for what is rejected.
    """

    fitted: str = ""
    temperature: float = 10.0
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError("magnet: temperature must be positive")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network with its detectors; each autoencoder and the network, without rejection, stand in for it."""
        known = files.load(self.fitted, "magnet")
        answer = Guarded(model, self, known, of_images=self.dress == "sealed").to(files.device_of(model))
        stand_ins = {
            f"autoencoder-{i}": nn.Sequential(Decoded(network), model) for i, network in enumerate(answer.pool, 1)
        }
        return dressed(answer, self.dress, {**stand_ins, "bare": model}, randomised=len(answer.pool) > 1)


class Guarded(nn.Module):
    """The network behind a drawn autoencoder, with detectors."""

    def __init__(self, network: nn.Module, settings: MagNet, known: dict[str, Tensor], *, of_images: bool) -> None:
        super().__init__()
        self.trunk, self.head = trunk_and_head(network)
        self.settings = settings
        self.of_images = of_images
        pixels = known["pool-0.0.weight"].shape[1]
        count = sum(name.endswith("0.weight") and name.startswith("pool-") for name in known)
        self.pool = nn.ModuleList(
            autoencoders.filled((pixels, HIDDEN, pixels), known, f"pool-{i}") for i in range(count)
        )
        for name in ("features", "y", "thresholds"):
            self.register_buffer(name, known[name], persistent=False)

    def forward(self, x: Images) -> Logits:
        """Logits of the reformed image; of a flagged one the votes of its 15 nearest."""
        drawn = (Noise(x, of_images=self.of_images).uniform(1)[:, 0] * len(self.pool)).long()
        logits, scores = self.judged(x)
        rows = torch.arange(len(x), device=x.device)
        flagged = (scores[drawn, rows] > self.get_buffer("thresholds")[drawn]).any(1)
        z = F.normalize(self.trunk(x).flatten(1))
        voted = votes(z, self.get_buffer("features"), self.get_buffer("y"), logits.shape[2], 15, 0)
        return torch.where(flagged[:, None], voted, logits[drawn, rows])

    def judged(self, x: Images) -> tuple[Tensor, Tensor]:
        """For each autoencoder logits (pool, batch, classes) and scores: error and divergence (pool, batch, 2)."""
        own = self.head(self.trunk(x).flatten(1))
        logits, scores = [], []
        for network in self.pool:
            made = network(x.flatten(1)).sigmoid().view_as(x)
            logits.append(self.head(self.trunk(made).flatten(1)))
            error = (made - x).abs().flatten(1).mean(1)
            scores.append(torch.stack([error, divergence(own, logits[-1], self.settings.temperature)], 1))
        return torch.stack(logits), torch.stack(scores)


def divergence(a: Logits, b: Logits, temperature: float) -> Tensor:
    """Jensen and Shannon's, of the softmaxes at a temperature."""
    p, q = (a / temperature).log_softmax(1), (b / temperature).log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.tensor(2.0).log()
    return ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2


def fit(
    network: nn.Module, data: Dataset, settings: MagNet, *, pool: int = 4, images: int = 1000, epochs: int = 120,
    alarms: float = 0.02, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Autoencoders trained on clean images with a little noise, and thresholds that flag `alarms` of the clean each."""
    x, y = files.images_of(data, images)
    trunk, _ = trunk_and_head(network)
    flat = x.flatten(1)

    def error(made: nn.Module, rows: Tensor, noise: torch.Generator) -> Tensor:
        noisy = rows + 0.1 * torch.randn(rows.shape, generator=noise)
        off: Tensor = made(noisy).sigmoid() - rows
        return off.square().mean()

    known: dict[str, Tensor] = {}
    for i in range(pool):
        made = autoencoders.fitted(
            lambda: autoencoders.layers((flat.shape[1], HIDDEN, flat.shape[1])),
            flat,
            error,
            epochs=epochs,
            seed=seed + i,
        )
        known |= autoencoders.named(made, f"pool-{i}")
    device = files.device_of(network)
    with torch.no_grad():
        known |= {"features": F.normalize(trunk(x.to(device)).flatten(1)), "y": y.to(device)}
        guarded = Guarded(network, settings, known | {"thresholds": torch.zeros(pool, 2)}, of_images=False).to(device)
        scores = guarded.judged(x.to(device))[1]
    return known | {"thresholds": scores.quantile(1 - alarms, dim=1)}
