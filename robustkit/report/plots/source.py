"""What a figure is drawn from: stored records, each with a name that tells it from the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from robustkit.errors import UsageError
from robustkit.records.findings import INVALID
from robustkit.records.folder import load_run
from robustkit.records.run import RunRecord
from robustkit.records.sweep import FILE, Sweep, load_sweep
from robustkit.records.transfer import TransferRecord
from robustkit.records.transfer_folder import RESULT, load_transfer

Stored = RunRecord | Sweep | TransferRecord


class Source(NamedTuple):
    """A stored record and what it is called in a figure."""

    name: str
    found: Stored


def read(paths: Sequence[Path], labels: Sequence[str] = ()) -> list[Source]:
    """The records in these folders, named by `labels`, or by what differs between them.

    Raises:
        UsageError: if one cannot be read, or there are not as many labels as folders.
    """
    if labels and len(labels) != len(paths):
        raise UsageError(f"{len(labels)} labels for {len(paths)} runs; give one --label for each, or none")
    found = [_load(path) for path in paths]
    return [Source(name, stored) for name, stored in zip(labels or _names(paths, found), found, strict=True)]


def _load(path: Path) -> Stored:
    if (path / RESULT).is_file():
        return load_transfer(path)
    return load_sweep(path) if (path / FILE).is_file() else load_run(path)


def _names(paths: Sequence[Path], found: Sequence[Stored]) -> list[str]:
    for key in ("model", "defense", "attack", "data", "eps"):
        names = [str(job_of(stored).get(key) or "") for stored in found]
        if len(set(names)) == len(names) and all(names):
            return names
    return [path.name or str(path) for path in paths]


def word(stored: Stored) -> str:
    """The kind of a record."""
    return "transfer run" if isinstance(stored, TransferRecord) else "sweep" if isinstance(stored, Sweep) else "run"


def job_of(stored: Stored) -> dict[str, object]:
    """The job of a record; of a sweep that of its first run."""
    return dict(stored.records[0].job if isinstance(stored, Sweep) else stored.job)


def marked(name: str, *records: RunRecord) -> str:
    """A name, with the audit's verdict behind it if that doubts one of the records: `net (suspect)`."""
    doubts = [record.verdict for record in records if record.warning]
    return f"{name} ({INVALID if INVALID in doubts else doubts[0]})" if doubts else name


def runs(sources: Sequence[Source], kind: str) -> list[tuple[str, RunRecord]]:
    """The runs among the sources, those of a sweep each with its eps.

    Raises:
        UsageError: for a transfer run.
    """
    rows: list[tuple[str, RunRecord]] = []
    for name, stored in sources:
        if isinstance(stored, TransferRecord):
            raise UsageError(f"{name} is a transfer run, which plot transfer draws; plot {kind} draws runs and sweeps")
        if isinstance(stored, Sweep):
            rows += [(f"{name}, eps {eps}", record) for eps, record in zip(stored.eps, stored.records, strict=True)]
        else:
            rows.append((name, stored))
    return rows
