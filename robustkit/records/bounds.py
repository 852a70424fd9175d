"""The record of what bounds of a network prove: facts of each image in, certified accuracy out. Needs no torch."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustkit.errors import UsageError
from robustkit.records import consistency, seal
from robustkit.records.about import About
from robustkit.records.files import read_json, save_record
from robustkit.records.schema import BOUNDS
from robustkit.records.shown import Shown
from robustkit.records.text import labelled_as
from robustkit.spec import digest
from robustkit.stats import Proportion

RESULT = "bounds.json"  # in the folder of a run
MEANS = (
    "A lower bound of the robust accuracy, against any attack in the ball. What is not proved may be robust or not: "
    "robustkit eval --certify shows both bounds."
)


@dataclass(frozen=True, slots=True)
class Proved:
    """One image: its index and label, whether it is right and proved, by which rung, the margin's bound.

    Of one that is wrong unperturbed the bound is NaN.
    """

    index: int
    label: int
    right: bool
    proved: bool
    rung: str
    bound: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BoundsRecord(Shown):
    """What bounds of a network prove, image by image. `job` is all that decides it: model, data, ball, method."""

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    images: tuple[Proved, ...]
    about: About = field(default_factory=About)

    @property
    def certified_accuracy(self) -> Proportion:
        """The share of images that are classified right and proved robust."""
        return Proportion(sum(image.proved for image in self.images), len(self.images))

    @property
    def clean_accuracy(self) -> Proportion:
        """The share of images that are classified right."""
        return Proportion(sum(image.right for image in self.images), len(self.images))

    @property
    def rungs(self) -> Mapping[str, int]:
        """How many images each rung proved, the cheapest that sufficed."""
        return Counter(image.rung for image in self.images if image.proved)

    @property
    def model(self) -> str:
        """The model's name, and what stands before it."""
        behind = f" behind {self.job['defense']}" if self.job.get("defense") else ""
        return f"{self.job['model']}{behind}"

    def to_json(self) -> dict[str, Any]:
        """As JSON data: the job, the accuracies, and the facts behind them."""
        return {
            "schema": BOUNDS,
            "about": self.about.to_json(),
            "job": dict(self.job),
            "environment": dict(self.environment),
            "clean_accuracy": self.clean_accuracy.to_json(),
            "certified_accuracy": self.certified_accuracy.to_json(),
            "images": self._facts(),
        }

    def save(self, file: Path, pages: Mapping[str, str] | None = None) -> None:
        """Write the record as JSON, and beside it its reports by their names: whole or not at all."""
        save_record(file, self.to_json(), pages)

    def heading(self) -> str:
        """What was certified, on what, in which ball."""
        job = self.job
        return (
            f"{labelled_as(self.about.label)}{self.model} on {job['data']} (n = {len(self.images)}), {job['norm']} eps "
            f"{self.about.written(job['eps'])}, bounds up to {job['method']}"
        )

    def in_brief(self) -> list[tuple[str, str]]:
        """Four lines: the accuracies, what each rung proved, and what they hold of."""
        return [
            ("clean accuracy", str(self.clean_accuracy)),
            ("certified accuracy", str(self.certified_accuracy)),
            ("proved by", self._by() or "none"),
            ("holds", "against any attack in the ball: a lower bound of the robust accuracy"),
        ]

    @property
    def identity(self) -> str:
        """The sha256 of the job and the facts."""
        return digest([dict(self.job), self._facts()])

    def summary(self) -> str:
        """The result in a few lines."""
        by = f" ({self._by()})" if self.rungs else ""
        return (
            f"{self.heading()}\nclean accuracy      {self.clean_accuracy}\n"
            f"certified accuracy  {self.certified_accuracy}{by}\n95 % Wilson intervals. {MEANS}"
        )

    def _by(self) -> str:
        return ", ".join(f"{count} by {rung}" for rung, count in self.rungs.items())

    def _facts(self) -> list[dict[str, Any]]:
        return [{**asdict(image), "bound": image.bound if image.right else None} for image in self.images]


def load(file: Path) -> BoundsRecord:
    """A record that `save` wrote, also in the folder of its run.

    Raises:
        UsageError: if the file is none, or is not as it was written, or contradicts itself.
    """
    file = file / RESULT if file.is_dir() else file
    data = read_json(file, ("job", "environment", "certified_accuracy", "clean_accuracy", "images"), BOUNDS)
    with consistency.readable(file):
        images = tuple(
            Proved(**{**{name: row[name] for name in Proved.__slots__}, "bound": _number(row["bound"])})
            for row in data["images"]
        )
        record = BoundsRecord(data["job"], data["environment"], images, About.from_json(data.get("about")))
        if not images or len({image.index for image in images}) != len(images):
            raise UsageError(f"{file} contradicts itself: it has no images, or one twice; {seal.AGAIN}")
        if any(image.proved and not (image.right and image.rung and image.bound > 0) for image in images):
            raise UsageError(
                f"{file} contradicts itself: an image is proved that is wrong, or by nothing; {seal.AGAIN}"
            )
        told = {name: data[name] for name in ("clean_accuracy", "certified_accuracy")}
        if told != {name: getattr(record, name).to_json() for name in told}:
            raise UsageError(f"{file} contradicts itself: its accuracies are not what its images give; {seal.AGAIN}")
    return record


def _number(value: float | None) -> float:
    return math.nan if value is None else value
