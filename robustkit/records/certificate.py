"""The records of certifications: facts of each image in, certified accuracy out. Needs no torch.

`CertifiedRecord` is of randomised smoothing, `BoundsRecord` of bounds of the network itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from robustkit.errors import UsageError
from robustkit.records import seal
from robustkit.records.files import dumps, write_text
from robustkit.records.schema import BOUNDS, CERTIFIED
from robustkit.spec import number
from robustkit.stats import Proportion

ABSTAINED = -1
RESULT = "certificate.json"  # in the folder of a run


@dataclass(frozen=True, slots=True)
class Certified:
    """One image: its index and label, the smoothed decision (−1: abstained) and the certified radius in L2."""

    index: int
    label: int
    decision: int
    radius: float


@dataclass(frozen=True, slots=True)
class CertifiedRecord:
    """Certificates of randomised smoothing, and the radii at which their accuracy is told.

    `job` is all that decides the facts: model, data, noise and seed.
    """

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    images: tuple[Certified, ...]
    radii: tuple[float, ...]

    def accuracy(self, radius: float) -> Proportion:
        """The share of all images decided rightly with a certified radius of at least this."""
        right = [image for image in self.images if image.decision == image.label and image.radius >= radius]
        return Proportion(len(right), len(self.images))

    @property
    def abstained(self) -> int:
        """On how many images the smoothed decision is withheld."""
        return sum(image.decision == ABSTAINED for image in self.images)

    def to_json(self) -> dict[str, Any]:
        """As JSON data: the job, the accuracy at each radius, and the facts behind it."""
        return {
            "schema": CERTIFIED,
            "job": dict(self.job),
            "environment": dict(self.environment),
            "certified_accuracy": [{"radius": radius, **self.accuracy(radius).to_json()} for radius in self.radii],
            "abstained": self.abstained,
            "images": [asdict(image) for image in self.images],
        }

    def save(self, file: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_text(file, dumps(seal.sealed(self.to_json())))

    def summary(self) -> str:
        """The result in a few lines."""
        job = self.job
        behind = f" behind {job['defense']}" if job["defense"] else ""
        rows = [f"  {radius:<8.4g} {self.accuracy(radius)}" for radius in self.radii]
        ceiling = most(job["sigma"], job["draws"], job["alpha"])
        return "\n".join(
            [
                f"{job['model']}{behind} on {job['data']} (n = {len(self.images)}), smoothed with Gaussian noise of "
                f"sigma {job['sigma']:g}, seed {job['seed']}",
                "  radius   certified accuracy (L2)",
                *rows,
                f"abstained on {self.abstained} of {len(self.images)}",
                "95 % Wilson intervals over images; besides, each certificate may be wrong with probability "
                f"{job['alpha']:g}",
                "of the smoothed network, not of the network itself; "
                f"{job['draws']} copies of an image can certify at most {ceiling:.4g}",
            ]
        )


@dataclass(frozen=True, slots=True)
class Proved:
    """One image: its index and label, whether it is classified right and proved, by which rung, the margin's bound."""

    index: int
    label: int
    right: bool
    proved: bool
    rung: str
    bound: float


@dataclass(frozen=True, slots=True)
class BoundsRecord:
    """What bounds of a network prove, image by image. `job` is all that decides it: model, data, ball, method."""

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    images: tuple[Proved, ...]

    @property
    def certified_accuracy(self) -> Proportion:
        """The share of images that are classified right and proved robust."""
        return Proportion(sum(image.proved for image in self.images), len(self.images))

    @property
    def clean_accuracy(self) -> Proportion:
        """The share of images that are classified right."""
        return Proportion(sum(image.right for image in self.images), len(self.images))

    def to_json(self) -> dict[str, Any]:
        """As JSON data: the job, the accuracies, and the facts behind them."""
        images = [asdict(image) | {"bound": image.bound if image.right else None} for image in self.images]
        return {
            "schema": BOUNDS,
            "job": dict(self.job),
            "environment": dict(self.environment),
            "clean_accuracy": self.clean_accuracy.to_json(),
            "certified_accuracy": self.certified_accuracy.to_json(),
            "images": images,
        }

    def save(self, file: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_text(file, dumps(seal.sealed(self.to_json())))

    def summary(self) -> str:
        """The result in a few lines."""
        job = self.job
        behind = f" behind {job['defense']}" if job["defense"] else ""
        rungs = {image.rung: 0 for image in self.images if image.proved}
        for image in self.images:
            if image.proved:
                rungs[image.rung] += 1
        by = ", ".join(f"{count} by {rung}" for rung, count in rungs.items())
        return "\n".join(
            [
                f"{job['model']}{behind} on {job['data']} (n = {len(self.images)}), {job['norm']} eps "
                f"{job['eps']:.6g}, bounds up to {job['method']}",
                f"clean accuracy      {self.clean_accuracy}",
                f"certified accuracy  {self.certified_accuracy}" + (f" ({by})" if by else ""),
                "95 % Wilson intervals; a lower bound of the robust accuracy against any attack. What is not proved "
                "may be robust or not: robustkit eval --certify shows both bounds",
            ]
        )


def most(sigma: float, draws: int, alpha: float) -> float:
    """The largest radius that so many noisy copies can certify: all agree, and the bound is alpha^(1/draws)."""
    share = min(alpha ** (1 / draws), 1 - 2**-53)
    return sigma * NormalDist().inv_cdf(share) if share > 0.5 else 0.0


def check_settings(sigma: float, first: int, draws: int, alpha: float) -> None:
    """Refuse settings of a certificate that make no sense.

    Raises:
        UsageError: if one does not.
    """
    if not 0 < sigma < float("inf") or first < 1 or draws < 1 or not 0 < alpha < 1:
        raise UsageError("certify: sigma, first and draws must be positive, and alpha between 0 and 1")


def parse_radii(text: str | None, sigma: float, draws: int, alpha: float) -> tuple[float, ...]:
    """The radii of `0,0.25,0.5`; without a text, 0 and the multiples of sigma/2 that so many copies can certify.

    Raises:
        UsageError: for what is no such list.
    """
    if text is None:
        return tuple(step * sigma / 2 for step in range(int(2 * most(sigma, draws, alpha) / sigma) + 1))
    radii = _numbers(text.split(","))
    if min(radii) < 0 or len(set(radii)) < len(radii):
        raise UsageError(f"--radii {text!r} must be different numbers of at least 0, such as 0,0.25,0.5")
    return tuple(sorted(radii))


def _numbers(texts: Sequence[str]) -> list[float]:
    try:
        return [number(text) for text in texts]
    except UsageError as error:
        raise UsageError(f"--radii: {error}") from None
