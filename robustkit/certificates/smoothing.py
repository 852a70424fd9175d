"""The certificate of randomised smoothing: a radius in L2 within which the smoothed decision cannot change.

Source: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, algorithm 2. It holds with probability 1 − alpha for each
image, over the noise; it is about the smoothed network, not about the network itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from robustkit import datasets
from robustkit.api import Dataset, Defense, Images
from robustkit.datasets.choice import choose_samples
from robustkit.engine import plan
from robustkit.errors import UsageError
from robustkit.models import defended, sources
from robustkit.models.examination import as_module, check_labels, examine, lent
from robustkit.models.opening import choose_device, model_name
from robustkit.models.sources.evaluating import evaluating
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records.certificate import ABSTAINED, Certified, CertifiedRecord, check_settings, parse_radii

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
    check_settings(sigma, first, draws, alpha)
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


class ImageDone(NamedTuple):
    """An image is certified; `done` of `total`."""

    image: Certified
    done: int
    total: int


def evaluate_certificate(
    model: str | nn.Module | Callable[[Tensor], Tensor],
    data: str | Dataset | tuple[Any, Any],
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    sigma: float = 0.25,
    first: int = 100,
    draws: int = 10_000,
    alpha: float = 0.001,
    radii: str | None = None,
    n: int | None = None,
    indices: str | Sequence[int] | None = None,
    seed: int = 0,
    outputs: str = "logits",
    trust: bool = False,
    device: str = "auto",
    on_event: Callable[[ImageDone], None] | None = None,
) -> CertifiedRecord:
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
        outputs: what the model returns, logits or probs.
        trust: unpickle checkpoints that are more than weights, which runs code from them.
        device: "auto" is the module's own, or CUDA if there is one for a model named by a spec.
        on_event: told of each image that is done.

    Raises:
        UsageError: for anything that cannot be run as given; a model that is randomised already.
    """
    check_settings(sigma, first, draws, alpha)
    told = parse_radii(radii, sigma, draws, alpha)
    dataset = datasets.resolve(data)
    defenses = defended.resolve(defense)
    with evaluating(dataset.name, "l2"):
        module = sources.load_model(model, trust=trust)[0] if isinstance(model, str) else as_module(model)
    where = choose_device(device, module, named=isinstance(model, str))
    if isinstance(model, str):
        module.to(where)
    name = model if isinstance(model, str) else model_name(module)
    chosen = choose_samples(dataset, n, indices)
    with lent(module):
        module = defended.protect(module, defenses)
        with lent(module):
            x, y = chosen.first()
            subject = examine(
                module, x, y, classes=dataset.classes or None, outputs=outputs, tile=None, seed=seed, device=where
            )
            check_labels(chosen.labels, subject.facts.classes)
            if subject.facts.randomised:
                raise UsageError("certify: the model draws random numbers itself; certify the network behind the noise")
            images: list[Certified] = []
            for i, index in enumerate(chosen.indices):
                x, y = chosen.batch(i, i + 1)
                found = certify(
                    module, x.to(where, subject.reference.dtype), sigma=sigma, first=first, draws=draws, alpha=alpha,
                    seed=seed, indices=torch.tensor([index], device=where),
                )  # fmt: skip
                images.append(Certified(index, int(y), int(found.decision), float(found.radius)))
                if on_event is not None:
                    on_event(ImageDone(images[-1], len(images), len(chosen.indices)))
    job = {
        "model": name,
        "defense": defended.text(defenses),
        "model_sha256": subject.weights_sha256,
        "probe_sha256": subject.probe_sha256,
        "data": data if isinstance(data, str) else dataset.name,
        "data_sha256": chosen.sha256,
        "indices": list(chosen.indices),
        "sigma": sigma,
        "first": first,
        "draws": draws,
        "alpha": alpha,
        "seed": seed,
        "outputs": outputs,
        "device": where.type,
        "threads": torch.get_num_threads(),
        "copies_at_once": BATCH,
        "versions": plan.versions(),
    }
    return CertifiedRecord(job, plan.environment(where), tuple(images), told)
