"""The certificate of randomised smoothing: a radius in L2 within which the smoothed decision cannot change.

Source: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, algorithm 2. It holds with probability 1 − alpha for each
image, over the noise; it is about the smoothed network, not about the network itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.streams import SampleDraws, key_of

ABSTAINED = -1
BATCH = 256  # noisy copies at a time


class Certificates(NamedTuple):
    """For each image the smoothed decision (−1: abstained) and its certified radius in L2, in [0,1] pixel units."""

    decision: Tensor
    radius: Tensor


def certify(
    network: nn.Module,
    x: Images,
    *,
    sigma: float = 0.25,
    first: int = 100,
    draws: int = 10_000,
    alpha: float = 0.001,
    seed: int = 0,
    indices: Tensor | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Certificates:
    """Certify a network smoothed with Gaussian noise.

    Args:
        network: takes [0,1] images; the bare network, not one that adds noise itself.
        x: images.
        sigma: standard deviation of the noise.
        first: noisy copies that choose the class.
        draws: further copies that bound its probability from below.
        alpha: the share of certificates that may be wrong.
        seed: of the noise, which is an image's own whatever the others are.
        indices: each image's place in its dataset, by which its noise is drawn; by default 0, 1, 2 …
        on_image: told of each image that is done.

    Raises:
        UsageError: for settings that make no sense, a network in training mode, or outputs that are not finite.
    """
    if any(part.training for part in network.modules()):
        raise UsageError("certify: the network is in training mode, where its answers are others; call network.eval()")
    if sigma <= 0 or first < 1 or draws < 1 or not 0 < alpha < 1:
        raise UsageError("certify: sigma, first and draws must be positive, and alpha between 0 and 1")
    places = torch.arange(len(x)) if indices is None else indices
    decisions, radii = [], []
    for i in range(len(x)):
        noise = SampleDraws(key_of(seed, "certify"), places[i : i + 1])
        counts = _counts(network, x[i], sigma, first, noise, 0)
        best = int(counts.argmax())
        votes = int(_counts(network, x[i], sigma, draws, noise, 1)[best])
        lower = lower_bound(votes, draws, alpha)
        decisions.append(best if lower > 0.5 else ABSTAINED)
        radii.append(sigma * float(norm.ppf(lower)) if lower > 0.5 else 0.0)
        if on_image is not None:
            on_image(i)
    return Certificates(torch.tensor(decisions), torch.tensor(radii))


def lower_bound(votes: int, draws: int, alpha: float) -> float:
    """The one-sided Clopper–Pearson bound of a share: below it lies the truth with probability at most alpha."""
    return float(beta.ppf(alpha, votes, draws - votes + 1)) if votes else 0.0


def _counts(network: nn.Module, image: Tensor, sigma: float, n: int, noise: SampleDraws, stream: int) -> Tensor:
    """How often each class is decided for over n noisy copies."""
    total: Tensor | None = None
    with torch.no_grad():
        for step, start in enumerate(range(0, n, BATCH)):
            copies = min(BATCH, n - start)
            added = noise.at(stream).normal((copies, *image.shape), step=step)[0].to(image)
            logits = network(image + sigma * added)
            if not torch.isfinite(logits).all():
                raise UsageError("certify: the network's outputs on noisy copies are not finite (NaN or inf)")
            found = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
            total = found if total is None else total + found
    assert total is not None
    return total
