"""The certificate of randomised smoothing: a radius in L2 within which the smoothed decision cannot change.

Source: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, algorithm 2. It holds with probability 1 − alpha for each
image, over the noise; it is about the smoothed network, not about the network itself.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from robustkit import datasets
from robustkit.api import Dataset, Defense, Images
from robustkit.datasets.choice import choose_samples
from robustkit.datasets.names import names_of
from robustkit.engine import plan
from robustkit.engine.identity import harness_sha256, source_hashes
from robustkit.engine.request import check_counts
from robustkit.errors import UsageError
from robustkit.locks import at_work
from robustkit.models import defended
from robustkit.models.opening import Model, check_model, load, open_model
from robustkit.models.oracle import Network
from robustkit.models.turns import one_at_a_time
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records.about import About, now
from robustkit.records.certificate import ABSTAINED, RESULT, Certified, CertifiedRecord, check_settings, parse_radii
from robustkit.records.folder import resume
from robustkit.records.schema import CERTIFIED
from robustkit.report import files

BATCH = 256  # noisy copies that are drawn together: the noise depends on it


class Certificates(NamedTuple):
    """For each image the smoothed decision (−1: abstained) and its certified radius in L2, in [0,1] pixel units."""

    decision: Tensor
    radius: Tensor


class _Smoothing(NamedTuple):
    """The settings of `certify`."""

    sigma: float
    first: int
    draws: int
    alpha: float
    seed: int


def certify(
    network: nn.Module, x: Images, *, sigma: float = 0.25, first: int = 100, draws: int = 10_000, alpha: float = 0.001,
    seed: int = 0, indices: Tensor | None = None,
) -> Certificates:  # fmt: skip
    """Certify a network smoothed with Gaussian noise.

    Args:
        network: takes [0,1] images to logits; the bare network, not one that adds noise itself.
        x: images, on the network's device and of its dtype.
        sigma: standard deviation of the noise.
        first: noisy copies that choose the class.
        draws: further copies that bound its probability from below.
        alpha: the share of certificates that may be wrong.
        seed: of the noise, which is an image's own whatever the others are.
        indices: each image's place in its dataset, by which its noise is drawn; by default 0, 1, 2 …

    Raises:
        UsageError: for settings that make no sense, a network in training mode, or outputs that are not finite.
    """
    if any(part.training for part in network.modules()):
        raise UsageError("certify: the network is in training mode, where its answers are others; call network.eval()")
    check_settings(sigma, first, draws, alpha)
    batched, asked = Network(network, BATCH, x.device, x.dtype), _Smoothing(sigma, first, draws, alpha, seed)
    places = torch.arange(len(x)) if indices is None else indices
    found = [_certificate(batched, image, places[i : i + 1], asked) for i, image in enumerate(x)]
    return Certificates(torch.tensor([one[0] for one in found]), torch.tensor([one[1] for one in found]))


def _certificate(network: Network, image: Tensor, index: Tensor, asked: _Smoothing) -> tuple[int, float]:
    """The smoothed decision on the image at `index`, shape (1), of its dataset, and its radius."""
    noise = SampleDraws(key_of(asked.seed, "certify"), index)
    best = int(_counts(network, image, asked.sigma, asked.first, noise.at(0)).argmax())
    votes = int(_counts(network, image, asked.sigma, asked.draws, noise.at(1))[best])
    lower = lower_bound(votes, asked.draws, asked.alpha)
    return (best, asked.sigma * float(norm.ppf(lower))) if lower > 0.5 else (ABSTAINED, 0.0)


def lower_bound(votes: int, draws: int, alpha: float) -> float:
    """The one-sided Clopper–Pearson bound of a share: below it lies the truth with probability at most alpha."""
    return float(beta.ppf(alpha, votes, draws - votes + 1)) if votes else 0.0


def _counts(network: Network, image: Tensor, sigma: float, n: int, noise: SampleDraws) -> Tensor:
    """How often each class is decided for over n noisy copies."""
    decisions, classes = [], 0
    for step, start in enumerate(range(0, n, BATCH)):
        added = noise.normal((min(BATCH, n - start), *image.shape), step=step)[0].to(image)
        # The rows as they are, without padding: n and the width alone decide which copies share a call.
        for copies in torch.split(image + sigma * added, network.tile):
            with torch.no_grad():
                logits = network.call(copies).logits
            if not torch.isfinite(logits).all():
                raise UsageError("certify: the network's outputs on noisy copies are not finite (NaN or inf)")
            decisions.append(logits.argmax(1))
            classes = logits.shape[1]
    return torch.cat(decisions).bincount(minlength=classes)


class ImageDone(NamedTuple):
    """An image is certified; `done` of `total`."""

    image: Certified
    done: int
    total: int


@one_at_a_time()
def evaluate_certificate(
    model: Model,
    data: str | Dataset | tuple[Any, Any],
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    sigma: float = 0.25, first: int = 100, draws: int = 10_000, alpha: float = 0.001, radii: str | None = None,
    n: int | None = None, indices: str | Sequence[int] | None = None, seed: int = 0,
    outputs: Literal["logits", "probs"] = "logits", trust: bool = False, device: str = "auto", tile: int | None = None,
    out: str | os.PathLike[str] | None = None, fresh: bool = False,
    on_event: Callable[[ImageDone], None] | None = None, label: str = "",
) -> CertifiedRecord:  # fmt: skip
    """Certify a network smoothed with Gaussian noise on the images of a dataset; see `certify`.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits. It is put in eval mode and restored.
        data: a spec, a Dataset, or a pair (x, y).
        defense: what stands before the model (a denoiser, jpeg); nothing that is random itself.
        sigma: as for `certify`, like the next three.
        first: copies that choose the class.
        draws: copies that bound its probability.
        alpha: the share of certificates that may be wrong.
        radii: at which the certified accuracy is told, `0,0.25,0.5`; by default multiples of sigma/2.
        n: the first n samples.
        indices: these samples, instead of n.
        seed: of the noise.
        outputs: what the model returns; probabilities must be declared.
        trust: unpickle checkpoints that are more than weights, which runs code from them.
        device: "auto" is the module's own; for a model named by a spec CUDA, MPS or XPU if there is one.
        tile: most noisy copies that the model sees at once; None is 256.
        out: a folder that is continued, image by image, if it holds this very run; None writes nothing.
        fresh: forget what `out` holds.
        on_event: told of each image that is done.
        label: what the run is called in its record and report; it decides nothing.

    Raises:
        UsageError: for anything that cannot be run as given; a model that is randomised already.
    """
    started = now()
    check_settings(sigma, first, draws, alpha)
    check_counts(tile=tile)
    asked, told = _Smoothing(sigma, first, draws, alpha, seed), parse_radii(radii, sigma, draws, alpha)
    check_model(model, data, "l2")
    defenses = defended.resolve(defense)
    dataset = datasets.resolve(data)
    loaded = load(model, dataset.name, "l2", outputs=outputs, trust=trust, device=device)
    samples = choose_samples(dataset, n, indices)
    opening = open_model(loaded, samples, defenses=defenses, tile=tile, seed=seed)
    with opening as opened, at_work(out):
        if opened.subject.facts.randomised:
            raise UsageError("certify: the model draws random numbers itself; certify the network behind the noise")
        network = replace(opened.subject.reference, tile=min(tile or BATCH, BATCH))
        room = {"certificates": harness_sha256("robustkit.certificates.*")}
        job = {
            **opened.identity,
            **asked._asdict(),
            "data": data if isinstance(data, str) else dataset.name,
            "copies_at_once": BATCH,
            "tile": network.tile,
            "sources": {**source_hashes((), opened.defenses), **room},
            "versions": plan.versions(),
        }

        def certified(position: int) -> dict[str, Any]:
            x, y = samples.batch(position, position + 1)
            place = torch.tensor([samples.indices[position]], device=opened.device)
            decision, radius = _certificate(network, x[0].to(opened.device, network.dtype), place, asked)
            # A float32, as `certify` gives it.
            return asdict(Certified(samples.indices[position], int(y), decision, float(torch.tensor(radius))))

        images: list[Certified] = []
        for facts in resume(out, CERTIFIED, RESULT, job, len(samples), certified, fresh=fresh):
            images.append(Certified(**facts))
            if on_event is not None:
                on_event(ImageDone(images[-1], len(images), len(samples)))
        about = About(label, "", started, now(), names_of(dataset))
        record = CertifiedRecord(job, plan.environment(opened.device), tuple(images), told, about)
        if out is not None:
            record.save(Path(out) / RESULT, files.of_certificate(record))
    return record
