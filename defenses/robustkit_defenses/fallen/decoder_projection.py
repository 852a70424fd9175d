"""Projection on what a decoder can make. Samangouei, Kabkab, Chellappa 2018, "Defense-GAN", arXiv:1805.06605.

Claimed on MNIST at L2 0.005: 92 %, of which 55 % are left (Athalye, Carlini, Wagner 2018, arXiv:1802.00420, and
robust-ml): only partly broken, and hard to finish. The decoder here is an autoencoder's, not a GAN's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.api import Dataset, Images
from robustkit.errors import UsageError
from robustkit_defenses.fallen import autoencoders
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.dress import Dress, dressed, straight
from robustkit_defenses.fallen.surgery import searching

HIDDEN = 64


@dataclass(frozen=True, slots=True)
class DecoderProjection:
    """The network on G(z), z the best of `starts` descents of ‖G(z) − x‖² of `steps` steps with momentum.

    The decoder G and the starts are of `fitted`, see `fit`. No gradient flows through z.
    """

    fitted: str = ""
    starts: int = 2
    steps: int = 15
    rate: float = 1.0
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1 or self.rate <= 0:
            raise UsageError("decoder-projection: starts, steps and rate must be positive")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the projection; encoder and decoder, or the identity, stand in for that."""
        known = files.load(self.fitted, "decoder-projection")
        device = files.device_of(model)
        latent, pixels = known["decoder.0.weight"].shape[1], known["decoder.2.bias"].shape[0]
        decoder = autoencoders.filled((latent, HIDDEN, pixels), known, "decoder").to(device)
        encoder = autoencoders.filled((pixels, HIDDEN, latent), known, "encoder").to(device)
        step = Projected(decoder, known["starts"][: self.starts].to(device), self)
        stand_ins = {
            "encoder": nn.Sequential(Decoded(nn.Sequential(encoder, decoder)), model),
            "identity": straight(step, model),
            "bare": model,
        }
        return dressed(nn.Sequential(step, model), self.dress, stand_ins)


class Decoded(nn.Module):
    """A network of rows, for images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Images) -> Images:
        """Images of the rows' size, in [0,1]."""
        rows: Tensor = self.network(x.flatten(1))
        return rows.sigmoid().view_as(x)


class Projected(nn.Module):
    """The decoder's image nearest to each image, as far as the descents find it."""

    def __init__(self, decoder: nn.Module, starts: Tensor, settings: DecoderProjection) -> None:
        super().__init__()
        self.decoder = decoder
        self.settings = settings
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, x: Images) -> Images:
        """G(z)."""
        s = self.settings
        with searching():
            image = x.detach().clone().flatten(1)
            z = self.get_buffer("starts")[:, None].expand(-1, len(x), -1).clone()  # (starts, batch, latent)
            speed = torch.zeros_like(z)
            for _ in range(s.steps):
                z.requires_grad_(True)
                error = (self.decoder(z).sigmoid() - image).square().mean(2).sum()
                speed = 0.7 * speed + torch.autograd.grad(error, z)[0]
                z = (z - s.rate * image.shape[1] * speed).detach()
        made = self.decoder(z).sigmoid()
        best = (made - image).square().mean(2).argmin(0)
        chosen: Tensor = made[best, torch.arange(len(x), device=x.device)]
        return chosen.view_as(x)


def fit(
    data: Dataset, latent: int = 8, starts: int = 8, images: int = 2000, epochs: int = 150, seed: int = 0
) -> dict[str, Tensor]:
    """An autoencoder (batch, pixels) → latent → (batch, pixels), and starts: codes of the first images."""
    x = files.images_of(data, images)[0].flatten(1)

    def make() -> nn.Module:
        pixels = x.shape[1]
        return nn.Sequential(
            autoencoders.layers((pixels, HIDDEN, latent)), autoencoders.layers((latent, HIDDEN, pixels))
        )

    def error(network: nn.Module, rows: Tensor, noise: torch.Generator) -> Tensor:
        off: Tensor = network(rows).sigmoid() - rows
        return off.square().mean()

    found = autoencoders.fitted(make, x, error, epochs=epochs, seed=seed)
    assert isinstance(found, nn.Sequential)
    codes = found[0](x[:: max(1, len(x) // starts)][:starts])
    return autoencoders.named(found[0], "encoder") | autoencoders.named(found[1], "decoder") | {"starts": codes}
