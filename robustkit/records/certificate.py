"""The record of a certification: facts of each image in, certified accuracy over radii out. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

from robustkit.errors import UsageError
from robustkit.records import consistency, seal
from robustkit.records.about import About
from robustkit.records.files import read_json, save_record
from robustkit.records.schema import CERTIFIED
from robustkit.records.shown import Shown
from robustkit.records.text import labelled_as
from robustkit.spec import digest, number
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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CertifiedRecord(Shown):
    """Certificates of randomised smoothing, and the radii at which their accuracy is told.

    `job` is all that decides the facts: model, data, noise and seed.
    """

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    images: tuple[Certified, ...]
    radii: tuple[float, ...]
    about: About = field(default_factory=About)

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
            "about": self.about.to_json(),
            "job": dict(self.job),
            "environment": dict(self.environment),
            "certified_accuracy": [{"radius": radius, **self.accuracy(radius).to_json()} for radius in self.radii],
            "abstained": self.abstained,
            "images": [asdict(image) for image in self.images],
        }

    def save(self, file: Path, pages: Mapping[str, str] | None = None) -> None:
        """Write the record as JSON, and beside it its reports by their names: whole or not at all."""
        save_record(file, self.to_json(), pages)

    def summary(self) -> str:
        """The result in a few lines."""
        job = self.job
        rows = [f"  {radius:<8.4g} {self.accuracy(radius)}" for radius in self.radii]
        ceiling = most(job["sigma"], job["draws"], job["alpha"])
        return "\n".join(
            [
                self.heading(),
                "  radius   certified accuracy (L2)",
                *rows,
                f"abstained on {self.abstained} of {len(self.images)}",
                "95 % Wilson intervals over images; besides, each certificate may be wrong with probability "
                f"{job['alpha']:g}",
                "of the smoothed network, not of the network itself; "
                f"{job['draws']} copies of an image can certify at most {ceiling:.4g}",
            ]
        )

    def heading(self) -> str:
        """What was certified, on what, under which noise."""
        job = self.job
        return (
            f"{labelled_as(self.about.label)}{self.model} on {job['data']} (n = {len(self.images)}), smoothed with "
            f"Gaussian noise of sigma {job['sigma']:g}, seed {job['seed']}"
        )

    @property
    def model(self) -> str:
        """The model's name, and what stands before it."""
        behind = f" behind {self.job['defense']}" if self.job.get("defense") else ""
        return f"{self.job['model']}{behind}"

    def in_brief(self) -> list[tuple[str, str]]:
        """Four lines: the accuracy at the first and the middle radius, abstentions, and what it holds of."""
        first, middle = self.radii[0], self.radii[len(self.radii) // 2]
        job = self.job
        return [
            (f"certified at {first:g}", str(self.accuracy(first))),
            (f"certified at {middle:g}", str(self.accuracy(middle))),
            ("abstained", f"on {self.abstained} of {len(self.images)}"),
            (
                "L2 radii",
                f"of the smoothed network; each wrong with probability {job['alpha']:g}, {job['draws']} copies",
            ),
        ]

    @property
    def identity(self) -> str:
        """The sha256 of the job and the facts; at which radii they are told is none."""
        return digest([dict(self.job), [asdict(image) for image in self.images]])


def load(file: Path) -> CertifiedRecord:
    """A record that `save` wrote, also in the folder of its run.

    Raises:
        UsageError: if the file is none, or is not as it was written, or contradicts itself.
    """
    file = file / RESULT if file.is_dir() else file
    data = read_json(file, ("job", "environment", "certified_accuracy", "images"), CERTIFIED)
    with consistency.readable(file):
        images = tuple(Certified(**{key: row[key] for key in Certified.__slots__}) for row in data["images"])
        radii = tuple(float(row["radius"]) for row in data["certified_accuracy"])
        record = CertifiedRecord(data["job"], data["environment"], images, radii, About.from_json(data.get("about")))
        if not images or len({image.index for image in images}) != len(images) or not radii:
            raise UsageError(f"{file} contradicts itself: it has no images or radii, or an image twice; {seal.AGAIN}")
        told = [record.accuracy(radius).to_json() for radius in radii]
        if told != [{key: row[key] for key in told[0]} for row in data["certified_accuracy"]]:
            raise UsageError(f"{file} contradicts itself: its accuracies are not what its images give; {seal.AGAIN}")
    return record


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
