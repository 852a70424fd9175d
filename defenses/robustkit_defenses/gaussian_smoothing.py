"""Randomised smoothing. Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918; `robustkit certify` gives its certificate."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities


@dataclass(frozen=True, slots=True)
class GaussianSmoothing:
    """The decision over `draws` copies of an image with Gaussian noise of standard deviation `sigma` added.

    `probs` averages the copies' softmax outputs, `vote` counts their decisions, as the certificate does; no gradient
    flows through votes, so the average is declared as their stand-in.
    """

    sigma: float = 0.25
    draws: int = 16
    by: Literal["probs", "vote"] = "probs"

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.draws < 1:
            raise UsageError("gaussian-smoothing: sigma and draws must be positive")

    def protect(self, model: nn.Module) -> nn.Module:
        """The smoothed network."""
        return Smoothed(model, self).eval()


class Smoothed(nn.Module):
    """A network smoothed with noise from the global generator, which the harness seeds for each call."""

    randomised = True

    def __init__(self, network: nn.Module, settings: GaussianSmoothing) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, x: Images) -> Logits:
        """The logarithm of the mean probabilities, or the number of votes for each class."""
        sigma, draws = self.settings.sigma, self.settings.draws
        outputs = [capabilities.answer(self.network, x + sigma * torch.randn_like(x)) for _ in range(draws)]
        if self.settings.by == "vote":
            return torch.stack([F.one_hot(z.argmax(1), z.shape[1]).to(z) for z in outputs]).sum(0)
        return torch.stack([F.log_softmax(z, 1) for z in outputs]).logsumexp(0) - math.log(draws)

    def reseed(self, seed: int) -> None:
        """Reseed the network, if it offers that."""
        capabilities.reseed(self.network, seed)

    def surrogates(self) -> dict[str, nn.Module]:
        """The average of probabilities, which stands in for a vote."""
        if self.settings.by == "probs":
            return {}
        averaged = GaussianSmoothing(self.settings.sigma, self.settings.draws)
        return {"mean-probs": Smoothed(self.network, averaged).eval()}
