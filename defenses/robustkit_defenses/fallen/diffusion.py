"""Diffusion purification. Nie, Guo, Huang, Xiao, Vahdat, Anandkumar 2022, "DiffPure", arXiv:2205.07460, section 3.

With fixed randomness the gain on CIFAR-10 is about 24 %, where about 70 % had been claimed (arXiv:2505.22839,
abstract). The attack that fits is Lee and Kim's (arXiv:2303.09051): gradients of the same reverse process in fewer and
larger steps, averaged over draws.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from robustkit.api import Dataset, Images
from robustkit.errors import UsageError
from robustkit_defenses.fallen import autoencoders
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.dress import Dress, dressed, straight
from robustkit_defenses.fallen.noise import Noise

TIMES = 50  # steps of the whole process; a cosine schedule, Nichol and Dhariwal 2021, arXiv:2102.09672
HIDDEN = 128


@dataclass(frozen=True, slots=True)
class Diffusion:
    """Noise is added up to `time` of 50, and the reverse process (DDPM) takes it off again, step by step.

    The denoiser is of `fitted`, see `fit`. `back` is what the process passes back itself: `exact` its whole derivative
    under its own noise, or none. The declared stand-ins are the same process in three large steps, and the identity.
    """

    fitted: str = ""
    time: int = 15
    back: Literal["exact", "none"] = "none"
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if not 1 <= self.time < TIMES:
            raise UsageError(f"diffusion: time is from 1 to {TIMES - 1}, not {self.time}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind noise and its removal."""
        known = files.load(self.fitted, "diffusion")
        pixels = known["denoiser.4.bias"].shape[0]
        denoiser = autoencoders.filled((pixels + 2, HIDDEN, HIDDEN, pixels), known, "denoiser")
        denoiser = denoiser.to(files.device_of(model))
        step = Purified(denoiser, self.time, self.back, of_images=self.dress == "sealed")
        few = nn.Sequential(Purified(denoiser, self.time, "exact", steps=3), model)
        few.randomised = True  # type: ignore[assignment]
        stand_ins = {"three-steps": few, "identity": straight(step, model, randomised=True), "bare": model}
        return dressed(nn.Sequential(step, model), self.dress, stand_ins, randomised=True)


class Purified(nn.Module):
    """Images with noise added and taken off: at each of the times by DDPM, or in `steps` large ones by DDIM."""

    def __init__(self, denoiser: nn.Module, time: int, back: str, *, steps: int = 0, of_images: bool = False) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.time = time
        self.back = back
        self.steps = steps
        self.of_images = of_images

    def forward(self, x: Images) -> Images:
        """The purified images, in [0,1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.back == "exact"):
            noise, start = Noise(x, of_images=self.of_images), 2 * x.flatten(1) - 1
            kept = alpha(self.time)
            z = math.sqrt(kept) * start + math.sqrt(1 - kept) * noise.normal(start.shape[1]).to(x)
            if self.steps:
                times = [round(self.time * (1 - i / self.steps)) for i in range(self.steps + 1)]
                for now, after in pairwise(times):
                    z = ddim(z, predicted(self.denoiser, z, now), now, after)
            else:
                for now in range(self.time, 0, -1):
                    mean, deviation = ddpm(z, predicted(self.denoiser, z, now), now)
                    z = mean + deviation * noise.normal(start.shape[1]).to(x) if now > 1 else mean
            return ((z + 1) / 2).clamp(0, 1).view_as(x)


def alpha(time: int) -> float:
    """The share of variance that is the image's after so many steps: 1 at 0."""
    return math.cos((time / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


def predicted(denoiser: nn.Module, z: Tensor, time: int) -> Tensor:
    """The noise in z at a time, as the denoiser says; it is told the time as two numbers."""
    told = z.new_tensor([time / TIMES, math.sqrt(1 - alpha(time))]).expand(len(z), 2)
    noise: Tensor = denoiser(torch.cat([z, told], 1))
    return noise


def ddpm(z: Tensor, noise: Tensor, time: int) -> tuple[Tensor, float]:
    """Mean and deviation of the step from a time to the one before. Ho, Jain, Abbeel 2020, arXiv:2006.11239, alg. 2."""
    kept = alpha(time) / alpha(time - 1)
    mean = (z - (1 - kept) / math.sqrt(1 - alpha(time)) * noise) / math.sqrt(kept)
    return mean, math.sqrt((1 - kept) * (1 - alpha(time - 1)) / (1 - alpha(time)))


def ddim(z: Tensor, noise: Tensor, now: int, after: int) -> Tensor:
    """The deterministic step between two times. Song, Meng, Ermon 2021, arXiv:2010.02502, equation 12."""
    image = (z - math.sqrt(1 - alpha(now)) * noise) / math.sqrt(alpha(now))
    return math.sqrt(alpha(after)) * image + math.sqrt(1 - alpha(after)) * noise


def fit(data: Dataset, images: int = 2000, epochs: int = 300, seed: int = 0) -> dict[str, Tensor]:
    """A denoiser: (batch, pixels + 2) → the noise (batch, pixels), trained at all times alike."""
    x = 2 * files.images_of(data, images)[0].flatten(1) - 1
    shares = torch.tensor([alpha(time) for time in range(TIMES)])

    def error(network: nn.Module, rows: Tensor, noise: torch.Generator) -> Tensor:
        times = torch.randint(1, TIMES, (len(rows),), generator=noise)
        drawn = torch.randn(rows.shape, generator=noise)
        kept = shares[times][:, None]
        told = torch.cat([times[:, None] / TIMES, (1 - kept).sqrt()], 1)
        guess = network(torch.cat([kept.sqrt() * rows + (1 - kept).sqrt() * drawn, told], 1))
        off: Tensor = guess - drawn
        return off.square().mean()

    def make() -> nn.Module:
        return autoencoders.layers((x.shape[1] + 2, HIDDEN, HIDDEN, x.shape[1]))

    return autoencoders.named(autoencoders.fitted(make, x, error, epochs=epochs, seed=seed), "denoiser")
