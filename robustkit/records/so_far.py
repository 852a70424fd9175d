"""What stands so far of a run that is not finished, from its journal. Needs no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.records.about import About, day
from robustkit.records.certificate import Certified
from robustkit.records.consistency import readable
from robustkit.records.files import read_arrays, read_json
from robustkit.records.folder import JOB, JOURNAL
from robustkit.records.kinds import Place
from robustkit.records.schema import BOUNDS, BROKE_CODE, CERTIFIED, CORRUPTIONS, RUN, SWEEP, TRANSFER, VIOLATED_CODE
from robustkit.records.sweep import run_folder
from robustkit.records.text import heading_of
from robustkit.stats import Proportion


@dataclass(frozen=True, slots=True)
class Row:
    """What one attack has met and done so far."""

    name: str
    met: int
    broken: int
    violated: int
    forwards: int
    backwards: int


@dataclass(frozen=True, slots=True)
class SoFar:
    """A run that is not finished: what it is, and lines on what its journal holds."""

    kind: str
    heading: str
    job: Mapping[str, Any]
    started: str
    figures: Mapping[str, Proportion | None]
    rows: Sequence[Row]
    lines: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "schema": f"robustkit/{self.kind}-so-far/1",
            "finished": False,
            "job": dict(self.job),
            "started": self.started or None,
            "figures": {name: share.to_json() if share else None for name, share in self.figures.items()},
            "attacks": [asdict(row) for row in self.rows],
        }

    def summary(self) -> str:
        """All of it as text."""
        begun = f", begun {day(self.started)}" if self.started else ""
        last = f"NOT FINISHED{begun}: what stands so far; run its command again to continue"
        return "\n".join([self.heading, *self.lines, last])


def read(place: Place) -> SoFar:
    """What the folder of an unfinished run holds so far.

    Raises:
        UsageError: if its files cannot be read.
    """
    with readable(place.path):
        if place.kind == SWEEP:
            return _sweep(place.path)
        known = read_json(place.path / JOB, ("job", "plan"), place.kind)
        readers = {
            RUN: _run, CORRUPTIONS: _corruptions, CERTIFIED: _certificate, BOUNDS: _bounds, TRANSFER: _transfer,
        }  # fmt: skip
        return readers[place.kind](place.path, known["job"], str(known["plan"].get("started") or ""))


def _run(folder: Path, job: Mapping[str, Any], started: str) -> SoFar:
    looked = correct = 0
    rows = []
    for facts in _parts(folder, 0):
        looked, correct = looked + len(facts["correct"]), correct + int(facts["correct"].sum())
    for step, name in enumerate(job["attacks"], start=1):
        parts = list(_parts(folder, step))
        outcome = np.concatenate([facts["outcome"] for facts in parts]) if parts else np.zeros(0, dtype=np.int64)
        passes = [sum(int(facts[what].sum()) for facts in parts) for what in ("forwards", "backwards")]
        broken, violated = (int((outcome == code).sum()) for code in (BROKE_CODE, VIOLATED_CODE))
        rows.append(Row(name, len(outcome), broken, violated, *passes))
    n = len(job["indices"])
    clean = Proportion(correct, looked) if looked else None
    standing = Proportion(correct - sum(row.broken for row in rows), looked) if looked else None
    lines = [f"clean accuracy   {clean} of the {looked} of {n} samples looked at so far" if clean else "nothing yet"]
    for row in rows:
        state = f"{row.name:<28} broke {row.broken} of {row.met} met so far" if row.met else f"{row.name:<28} not begun"
        more = f", {row.violated} violated" if row.violated else ""
        lines.append(
            f"  {state}{more}; {row.forwards} forwards, {row.backwards} backwards" if row.met else f"  {state}"
        )
    if standing:
        lines.append(f"robust accuracy  at most {standing} of these; attacks that are left can only lower it")
    figures = {"clean_accuracy": clean, "robust_accuracy_at_most": standing}
    return SoFar("run", heading_of(job, n, About()), job, started, figures, rows, lines)


def _sweep(folder: Path) -> SoFar:
    """The runs of a sweep in their order; the last begun is the one at work."""
    texts: list[str] = []
    runs = []
    place = 0
    while (run_folder(folder, place) / JOB).is_file():
        known = read_json(run_folder(folder, place) / JOB, ("job", "plan"), RUN)
        runs.append(_run(run_folder(folder, place), known["job"], str(known["plan"].get("started") or "")))
        texts += [f"eps {About().written(known['job']['eps'])}", *(f"  {line}" for line in runs[-1].lines)]
        place += 1
    first = runs[0]
    figures = {
        f"{name} at eps {About().written(run.job['eps'])}": share for run in runs for name, share in run.figures.items()
    }
    return SoFar("sweep", first.heading, first.job, first.started, figures, runs[-1].rows, texts)


def _corruptions(folder: Path, job: Mapping[str, Any], started: str) -> SoFar:
    n, figures = len(job["indices"]), {}
    for facts in _parts(folder, 0):
        what = f"{facts['kind']} {facts['severity']}" if str(facts["kind"]) else "clean"
        figures[what] = Proportion(n - len(np.atleast_1d(facts["wrong"])), n)
    lines = [f"  {what:<28} {share}" for what, share in figures.items()]
    lines.append(f"{len(figures)} of {len(job['cells'])} cells are done")
    return SoFar("corruptions", f"{job['model']} · {job['data']} · n = {n}", job, started, figures, (), lines)


def _certificate(folder: Path, job: Mapping[str, Any], started: str) -> SoFar:
    known = [Certified(**{key: facts[key].item() for key in Certified.__slots__}) for facts in _parts(folder, 0)]
    n = len(job["indices"])
    right = [image for image in known if image.decision == image.label]
    figures: dict[str, Proportion | None] = {}
    for radius in (0.0, job["sigma"] / 2, job["sigma"]) if known else ():
        figures[f"certified at {radius:g}"] = Proportion(sum(each.radius >= radius for each in right), len(known))
    lines = [f"  {name:<28} {share}" for name, share in figures.items()]
    lines.append(f"{len(known)} of {n} images are certified so far")
    text = f"{job['model']} on {job['data']} (n = {n}), smoothed with Gaussian noise of sigma {job['sigma']:g}"
    return SoFar("certificate", text, job, started, figures, (), lines)


def _bounds(folder: Path, job: Mapping[str, Any], started: str) -> SoFar:
    parts = list(_parts(folder, 0))
    looked, n = sum(len(facts["proved"]) for facts in parts), len(job["indices"])
    figures: dict[str, Proportion | None] = {
        name: Proportion(sum(int(facts[what].sum()) for facts in parts), looked) if looked else None
        for name, what in (("clean accuracy", "right"), ("certified accuracy", "proved"))
    }
    lines = [f"  {name:<28} {share}" for name, share in figures.items() if share is not None]
    lines.append(f"{looked} of {n} images were looked at so far")
    text = (
        f"{job['model']} on {job['data']} (n = {n}), {job['norm']} eps {About().written(job['eps'])}, bounds up to "
        f"{job['method']}"
    )
    return SoFar("bounds", text, job, started, figures, (), lines)


def _transfer(folder: Path, job: Mapping[str, Any], started: str) -> SoFar:
    """Its parts are named by what decides them, so that the journal tells how many there are, not whose they are."""
    counts = {
        kind: len(list((folder / JOURNAL).glob(f"{kind}-*.npz"))) for kind in ("clean", "adversarials", "answers")
    }
    n = len(job["indices"])
    lines = [
        f"  {counts['clean']} parts of clean answers, {counts['adversarials']} of adversarials, {counts['answers']} of "
        "answers to them"
    ]
    text = f"transfer (n = {n}), {job['norm']} eps {About().written(job['eps'])}, seed {job['seed']}"
    return SoFar("transfer", text, job, started, {}, (), lines)


def _parts(folder: Path, step: int) -> Iterator[dict[str, np.ndarray]]:
    for file in sorted((folder / JOURNAL).glob(f"shard-*-{step:02d}.npz")):
        facts = read_arrays(file, ("adv",))
        if facts is not None:
            yield facts
