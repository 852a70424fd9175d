"""Which runs lie in a folder: date, model, attack, number, verdict, and whether they are finished. Needs no torch."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustkit.errors import RobustkitError
from robustkit.records import kinds, so_far
from robustkit.records.about import day
from robustkit.records.bounds import BoundsRecord
from robustkit.records.certificate import CertifiedRecord
from robustkit.records.corruption import CorruptionRecord
from robustkit.records.files import read_json
from robustkit.records.findings import Audited
from robustkit.records.run import RunRecord
from robustkit.records.schema import BASELINE, STUDY
from robustkit.records.sweep import Sweep
from robustkit.records.transfer import TransferRecord
from robustkit.stats import Proportion

DEEP = 4  # folders below the one that is asked for


@dataclass(frozen=True, slots=True)
class Row:
    """One run. `number` is its headline in words, `state` is finished, unfinished, or why it cannot be read."""

    folder: str
    kind: str
    date: str
    model: str = ""
    attack: str = ""
    number: str = ""
    verdict: str = ""
    state: str = "finished"
    label: str = ""

    @property
    def finished(self) -> bool:
        """Whether its record is whole."""
        return self.state == "finished"

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "finished": self.finished}


def runs(folder: Path) -> list[Row]:
    """The runs in a folder and the folders below it, or that it is itself, the latest first; a study's are in it."""
    rows = [_row(place) for place in _places(folder, DEEP)]
    return sorted(rows, key=lambda row: (row.date, row.folder), reverse=True)


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    names = ["date", "kind", "model", "attack", "number", "verdict", "state", "folder", "label"]
    names = names if any(row.label for row in rows) else names[:-1]
    lines = [names, *([str(getattr(row, name)) for name in names] for row in rows)]
    cut = [[_cut(cell, 36) if place in (2, 3) else cell for place, cell in enumerate(line)] for line in lines]
    widths = [max(len(line[place]) for line in cut) for place in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cut
    )


def _places(folder: Path, depth: int) -> Iterator[kinds.Place]:
    found = kinds.find(folder)
    if found is not None:
        yield found
        return
    with os.scandir(folder) as entries:
        inner = sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for path in inner if depth else ():
        yield from _places(Path(path), depth - 1)


def _row(place: kinds.Place) -> Row:
    written = datetime.fromtimestamp(place.file.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    first = Row(str(place.path), place.word, day(written))
    try:
        if place.kind in (STUDY, BASELINE):
            return _study(place, first)
        if not place.finished:
            return _unfinished(place, first)
        return _finished(kinds.load(place.path), first)
    except RobustkitError as error:
        return replace(first, state=f"cannot be read: {' '.join(str(error).split())}")


def _study(place: kinds.Place, row: Row) -> Row:
    data = read_json(place.file, ())
    outcomes = data.get("outcomes") or []
    failed = sum(bool(each.get("failed")) for each in outcomes)
    number = f"{len(outcomes) - failed} of {len(outcomes)} cells" if outcomes else ""
    title = str((data.get("study") or {}).get("title") or data.get("name") or "")
    return replace(row, model=title, number=number, state="finished" if place.finished else "unfinished")


def _unfinished(place: kinds.Place, row: Row) -> Row:
    found = so_far.read(place)
    known = [(name, share) for name, share in found.figures.items() if share is not None]
    number = f"{known[-1][0].replace('_', ' ')} {_percent(known[-1][1])}" if known else ""
    attack = str(found.job.get("attack", ""))
    return replace(
        row, date=day(found.started) or row.date, model=_model(found.job), attack=attack, state="unfinished",
        number=f"at most {_percent(known[-1][1])} so far" if known and "at_most" in known[-1][0] else number,
    )  # fmt: skip


def _finished(record: kinds.Record, row: Row) -> Row:
    about = record.records[0].about if isinstance(record, Sweep) else record.about
    row = replace(row, date=about.date or row.date, label=about.label)
    match record:
        case RunRecord():
            number = _percent(record.robust_accuracy)
            return replace(row, model=_model(record.job), attack=record.job["attack"], number=number,
                           verdict=record.verdict)  # fmt: skip
        case Sweep():
            job = record.records[0].job
            shares = [_percent(each.robust_accuracy) for each in record.records]
            verdicts = dict.fromkeys(each.verdict for each in record.records)
            number = " → ".join([shares[0], shares[-1]] if len(shares) > 1 else shares)
            return replace(row, model=_model(job), attack=job["attack"], number=number, verdict=", ".join(verdicts))
        case TransferRecord():
            black = [float(cell.of_all) for cell in record.cells.values() if cell.of_all and not cell.white_box]
            names = " | ".join(record.job["surrogates"])
            number = f"success up to {100 * max(black):.1f} %" if black else ""
            return replace(row, model=names, attack=", ".join(record.job["attacks"]), number=number)
        case CorruptionRecord():
            number = f"mean {100 * record.mean_accuracy.value:.1f} %"
            return replace(row, model=record.model, attack=f"{len(record.kinds)} kinds", number=number)
        case CertifiedRecord():
            radius = record.radii[len(record.radii) // 2]
            number = f"{_percent(record.accuracy(radius))} at {radius:g}"
            return replace(row, model=record.model, attack=f"sigma {record.job['sigma']:g}", number=number)
        case BoundsRecord():
            number = f"{_percent(record.certified_accuracy)} at {record.about.written(record.job['eps'])}"
            return replace(row, model=record.model, attack=record.job["method"], number=number)
        case Audited():
            return replace(row, model=record.model, attack=record.job["norm"], verdict=record.audit.verdict)


def _model(job: Any) -> str:
    behind = f" behind {job['defense']}" if job.get("defense") else ""
    return f"{job.get('model', '')}{behind}"


def _percent(share: Proportion | None) -> str:
    return "not established" if share is None else f"{100 * float(share):.1f} %"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
