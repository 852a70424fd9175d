"""The record of a corruption evaluation: which samples were wrong under each corruption. Figures are computed from it.

Needs no torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustkit.errors import UsageError
from robustkit.records import seal
from robustkit.records.about import About
from robustkit.records.files import save_record
from robustkit.records.schema import CORRUPTIONS
from robustkit.records.shown import Shown
from robustkit.records.text import labelled_as
from robustkit.spec import digest
from robustkit.stats import Proportion, mean_interval

# AlexNet's error on ImageNet-C, the mean over the five severities: the reference of mCE. The published figures of
# Hendrycks and Dietterich (ICLR 2019), from their repository hendrycks/robustness.
ALEXNET: Mapping[str, float] = {
    "gaussian-noise": 0.886428,
    "shot-noise": 0.894468,
    "impulse-noise": 0.922640,
    "defocus-blur": 0.819880,
    "glass-blur": 0.826268,
    "motion-blur": 0.785948,
    "zoom-blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic-transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg-compression": 0.606500,
}
RESULT = "corruptions.json"  # in the folder of a run
STANDARD = tuple(ALEXNET)  # the fifteen kinds that mCE is defined on; the archives' other kinds are extras


class Cell(NamedTuple):
    """One kind at one severity: the dataset indices that were classified wrongly, and the hash of its images."""

    kind: str
    severity: int
    wrong: tuple[int, ...]
    sha256: str


class Estimate(NamedTuple):
    """A mean over images with its 95 % interval, see `stats.mean_interval`; a baseline's errors count as known.

    The images are the sample: all corruptions of one image count together, since they depend on each other.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """`value`, `low` and `high`."""
        return self._asdict()

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


@dataclass(frozen=True, eq=False, repr=False)
class CorruptionRecord(Shown):
    """One evaluation. `clean` is None where there are no clean images; `reference` maps a kind to the baseline's error.

    `baseline` is what the reference belongs to; both are empty without one. `notes` say what a reader must know of the
    choice of images; records of before have none.
    """

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    indices: tuple[int, ...]
    cells: tuple[Cell, ...]
    clean: Cell | None = None
    baseline: str = ""
    reference: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    about: About = field(default_factory=About)

    @property
    def model(self) -> str:
        """The model's name, and what stands before it."""
        behind = self.job.get("defense")  # a record of an older version has none
        return f"{self.job['model']} behind {behind}" if behind else str(self.job["model"])

    @property
    def n(self) -> int:
        """How many images were looked at under each corruption."""
        return len(self.indices)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds, in order."""
        return tuple(dict.fromkeys(cell.kind for cell in self.cells))

    @property
    def severities(self) -> tuple[int, ...]:
        """The severities, in order."""
        return tuple(dict.fromkeys(cell.severity for cell in self.cells))

    def accuracy(self, cell: Cell) -> Proportion:
        """The share of images that a cell got right."""
        return Proportion(self.n - len(cell.wrong), self.n)

    @property
    def mean_accuracy(self) -> Estimate:
        """Over all kinds and severities."""
        value, low, high = self._mean({kind: 1.0 for kind in self.kinds})
        return Estimate(1 - value, 1 - high, 1 - low)

    @property
    def mce(self) -> Estimate | None:
        """Mean corruption error: of each kind the error over the baseline's, then their mean; None without a baseline.

        A share: 1 is as many errors as the baseline (100 in the literature).
        """
        return self._mean(self.reference) if self.reference else None

    @property
    def mean_error(self) -> Estimate:
        """The unnormalised mCE: the mean of the kinds' errors, for want of a baseline."""
        return self._mean({kind: 1.0 for kind in self.kinds})

    def check_comparable(self, indices: Sequence[int], cells: Iterable[Cell]) -> None:
        """Refuse to be the baseline of what was measured on other images.

        Raises:
            UsageError: if the samples differ, or a cell that both have is of other images, by their hashes.
        """
        other = "measure it on the same data, with the same -n or --indices and the same seed"
        if self.indices != tuple(indices):
            raise UsageError(f"the baseline was measured on {self.n} samples, these are {len(indices)} others; {other}")
        own = {(cell.kind, cell.severity): cell.sha256 for cell in [*self.cells, *([self.clean] if self.clean else [])]}
        for cell in cells:
            if own.get((cell.kind, cell.severity), cell.sha256) != cell.sha256:
                under = f" under {cell.kind} at severity {cell.severity}" if cell.kind else ""
                what = f"the baseline was measured on other images ({self.job['data']})"
                raise UsageError(f"{what}, their hash differs{under}; {other}")

    def errors(self) -> dict[str, float]:
        """The error of each kind, over its severities: what makes this record another's baseline."""
        wrong: dict[str, list[int]] = {}
        for cell in self.cells:
            wrong.setdefault(cell.kind, []).append(len(cell.wrong))
        return {kind: sum(counts) / (self.n * len(counts)) for kind, counts in wrong.items()}

    def _mean(self, reference: Mapping[str, float]) -> Estimate:
        """The mean over images of each image's errors, those of a kind divided by the reference."""
        place = {index: row for row, index in enumerate(self.indices)}
        per_image = np.zeros(self.n)
        for cell in self.cells:
            rows = [place[index] for index in cell.wrong]
            per_image[rows] += 1 / (reference[cell.kind] * len(self.severities) * len(self.kinds))
        most = sum_of(reference, self.kinds)
        low, high = mean_interval(per_image / most)
        return Estimate(float(per_image.mean()), most * low, most * high)

    def to_json(self) -> dict[str, Any]:
        """The facts, and the figures computed from them."""
        mce = self.mce
        return {
            "schema": CORRUPTIONS,
            "about": self.about.to_json(),
            "job": dict(self.job),
            "environment": dict(self.environment),
            "n": self.n,
            "clean_accuracy": self.accuracy(self.clean).to_json() if self.clean else None,
            "mean_accuracy": self.mean_accuracy.to_json(),
            "mce": {**mce.to_json(), "baseline": self.baseline} if mce else None,
            "unnormalised_mce": self.mean_error.to_json(),
            "kinds": self.errors(),
            "reference": dict(self.reference) if self.reference else None,
            "notes": list(self.notes),
            "indices": list(self.indices),
            "clean": _cell_json(self.clean, self) if self.clean else None,
            "cells": [_cell_json(cell, self) for cell in self.cells],
        }

    def save(self, file: Path, pages: Mapping[str, str] | None = None) -> None:
        """Write the record as JSON, and beside it its reports by their names: whole or not at all."""
        save_record(file, self.to_json(), pages)

    def summary(self) -> str:
        """A table of accuracies in percent, and the figures."""
        lines = [self.heading()]
        if self.clean:
            lines.append(f"clean accuracy      {self.accuracy(self.clean)}")
        lines.append(f"{'corruption':<18}  " + "  ".join(f"sev {s}" for s in self.severities) + "   mean")
        for kind in self.kinds:
            shares = [100 * float(self.accuracy(cell)) for cell in self.cells if cell.kind == kind]
            numbers = "  ".join(f"{share:5.1f}" for share in shares)
            lines.append(f"{kind:<18}  {numbers}  {sum(shares) / len(shares):5.1f}")
        lines.append(f"mean accuracy       {self.mean_accuracy}")
        lines.append("{:<18}  {}".format(*self.mce_in_words))
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    @property
    def mce_in_words(self) -> tuple[str, str]:
        """The mean corruption error with its interval, and what it is called with or without a baseline."""
        if (mce := self.mce) is None:
            return "unnormalised mCE", f"{self.mean_error} (the mean error: no baseline was given)"
        value, low, high = (100 * part for part in mce)
        some = "" if set(self.kinds) >= set(STANDARD) else f", over {len(self.kinds)} kinds only"
        return "mCE", f"{value:.2f} [{low:.2f}, {high:.2f}] ({self.baseline} = 100{some})"

    def heading(self) -> str:
        """What was measured, on what."""
        vote = f" · majority of {draws} draws" if (draws := self.job.get("draws", 0)) > 1 else ""
        label = labelled_as(self.about.label)
        return f"{label}{self.model} · {self.job.get('data', '')} · n = {self.n}{vote}"

    def in_brief(self) -> list[tuple[str, str]]:
        """Four lines: both accuracies, the mean corruption error, and the hardest kind."""
        errors = self.errors()
        hardest = max(errors, key=errors.__getitem__)
        return [
            ("clean accuracy", str(self.accuracy(self.clean)) if self.clean else "not measured"),
            ("mean accuracy", str(self.mean_accuracy)),
            self.mce_in_words,
            ("hardest", f"{hardest}: {100 * errors[hardest]:.1f} % wrong, of {len(errors)} kinds"),
        ]

    @property
    def identity(self) -> str:
        """The sha256 of the job and the facts."""
        cells = [*self.cells, *([self.clean] if self.clean else [])]
        return digest([dict(self.job), self.indices, [list(cell) for cell in cells]])


def sum_of(reference: Mapping[str, float], kinds: Sequence[str]) -> float:
    """The mean corruption error of a model that is always wrong: the most there can be."""
    return sum(1 / reference[kind] for kind in kinds) / len(kinds)


def load(file: Path) -> CorruptionRecord:
    """A record that `save` wrote, also in the folder of its run.

    Raises:
        UsageError: if the file is none, or is not as it was written.
    """
    file = file / RESULT if file.is_dir() else file
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["schema"] != CORRUPTIONS:
            raise ValueError(f"schema {data['schema']}")
        seal.is_sealed(data, file)
        baseline = (data["mce"] or {}).get("baseline", "")
        record = CorruptionRecord(
            job=data["job"],
            environment=data["environment"],
            indices=tuple(data["indices"]),
            cells=tuple(_cell(entry) for entry in data["cells"]),
            clean=_cell(data["clean"]) if data["clean"] else None,
            baseline=baseline,
            reference=data["reference"],
            notes=tuple(data.get("notes", ())),
            about=About.from_json(data.get("about")),
        )
        _check(record)
        return record
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}; give a record of `robustkit corruptions`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is no record of `robustkit corruptions` ({error})") from error


def _check(record: CorruptionRecord) -> None:
    """Refuse a record that contradicts itself.

    Raises:
        ValueError: naming what does.
    """
    images, pairs = set(record.indices), {cell[:2] for cell in record.cells}
    if len(images) != record.n or not record.n:
        raise ValueError("it has no images, or one of them twice")
    if len(pairs) != len(record.cells) or len(pairs) != len(record.kinds) * len(record.severities):
        raise ValueError("it is not of each kind at each severity once")
    for cell in record.cells:
        if len(set(cell.wrong)) != len(cell.wrong) or not images.issuperset(cell.wrong):
            raise ValueError(f"{cell.kind} {cell.severity} is wrong on images that are not its own")


def _cell_json(cell: Cell, record: CorruptionRecord) -> dict[str, Any]:
    return {**cell._asdict(), "wrong": list(cell.wrong), "accuracy": record.accuracy(cell).to_json()}


def _cell(entry: Mapping[str, Any]) -> Cell:
    return Cell(entry["kind"], entry["severity"], tuple(entry["wrong"]), entry["sha256"])
