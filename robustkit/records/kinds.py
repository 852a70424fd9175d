"""What a folder or a file holds: which kind of record, and whether it is finished. Needs no torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from robustkit.errors import UsageError
from robustkit.records import bounds, certificate, corruption, findings, places
from robustkit.records.folder import JOB, RESULT, SWEEP_FILE, load_run
from robustkit.records.run import RunRecord
from robustkit.records.schema import AUDITED, BASELINE, BOUNDS, CERTIFIED, CORRUPTIONS, RUN, STUDY, SWEEP, TRANSFER
from robustkit.records.sweep import Sweep, load_sweep, run_folder
from robustkit.records.transfer import TransferRecord
from robustkit.records.transfer_folder import RESULT as TRANSFER_RESULT
from robustkit.records.transfer_folder import load_transfer

Record = (
    RunRecord
    | Sweep
    | TransferRecord
    | corruption.CorruptionRecord
    | certificate.CertifiedRecord
    | bounds.BoundsRecord
    | findings.Audited
)
STUDY_FILE = "study.json"
WORDS: Mapping[str, str] = {
    RUN: "run", SWEEP: "sweep", TRANSFER: "transfer", CORRUPTIONS: "corruptions", CERTIFIED: "certificate",
    BOUNDS: "bounds",
    AUDITED: "audit", STUDY: "study", BASELINE: "baseline",
}  # fmt: skip
_RESULTS: Mapping[str, str] = {  # by the file that is written last; a sweep's and a study's folders hold runs besides
    STUDY_FILE: STUDY, SWEEP_FILE: SWEEP, TRANSFER_RESULT: TRANSFER, corruption.RESULT: CORRUPTIONS,
    certificate.RESULT: CERTIFIED, bounds.RESULT: BOUNDS, findings.RESULT: AUDITED, RESULT: RUN,
}  # fmt: skip
_LOADERS: Mapping[str, Callable[[Path], Record]] = {
    RUN: load_run, SWEEP: load_sweep, TRANSFER: load_transfer, CORRUPTIONS: corruption.load,
    CERTIFIED: certificate.load, BOUNDS: bounds.load, AUDITED: findings.load,
}  # fmt: skip


class Place(NamedTuple):
    """A record's place: its kind, as its `schema`; whether it is finished; the file that says so."""

    path: Path
    kind: str
    finished: bool
    file: Path

    @property
    def word(self) -> str:
        """The kind in a word."""
        return WORDS[self.kind]


def find(path: Path) -> Place | None:
    """What lies in a folder or is a file of ours; None if it is nothing of ours."""
    if path.is_file():
        kind = places.schema_of(path)
        return Place(path, kind, True, path) if kind in WORDS else None
    for name, kind in _RESULTS.items():
        if (path / name).is_file():
            return Place(path, kind, kind != STUDY or _ended(path / name), path / name)
    first = run_folder(path, 0) / JOB
    if first.is_file():
        return Place(path, SWEEP, False, first)
    kind = places.schema_of(path / JOB) if (path / JOB).is_file() else ""
    return Place(path, kind, False, path / JOB) if kind in WORDS else None


def load(path: Path) -> Record:
    """The finished record at a path; a study's is `robustkit.study.results.load`.

    Raises:
        UsageError: if there is none, it is not finished, or it cannot be read.
    """
    found = find(path)
    if found is None:
        raise places.refuse(path, "run")
    if not found.finished:
        raise UsageError(f"the {found.word} in {path} is not finished; run its command again to continue it")
    if path.is_file() and path.name in _RESULTS:
        return load(path.parent)  # the record is the folder's
    if found.kind not in _LOADERS or (path.is_file() and found.kind in (RUN, SWEEP, TRANSFER)):
        raise UsageError(f"{path} is a {found.word} without its facts; give the folder of the run")
    return _LOADERS[found.kind](path)


def _ended(file: Path) -> bool:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("outcomes") is not None
    except (OSError, ValueError, AttributeError):
        return True  # damaged, which its reader will say
