"""The folder of a transfer run: `transfer.json`, three tables, the matrix as .csv and .tex, `report.md`; the journal.

The journal has one file for each part of the work: the adversarials of a (surrogate set, attack, shard), and what a
model says of them or of the clean images. A part's name is the identity of all that decides it, so another command
over the same images and threat model takes from the folder what it shares with the commands before it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robustkit.records import consistency
from robustkit.records.about import About
from robustkit.records.files import Stored, parquet, read_arrays, text_file, write_arrays, write_record
from robustkit.records.folder import JOB, JOURNAL, RunFolder
from robustkit.records.places import refuse
from robustkit.records.schema import TRANSFER, Columns
from robustkit.records.transfer import TransferRecord

RESULT = "transfer.json"
_TABLES = ("samples", "attacks", "transfer")
_FILES = (
    JOB, JOURNAL, RESULT, *(f"{name}.parquet" for name in _TABLES), "report.md", "report.html",
    "matrix.csv", "matrix.tex",
)  # fmt: skip
Part = Literal["adversarials", "answers", "clean"]


class TransferFolder:
    """The folder of one transfer run, or of several over the same images and threat model, one after another.

    Who opens it must be `at_work` in it.

    Raises:
        UsageError: if the folder holds something else, or other images or another threat model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, base: Mapping[str, Any], shard_size: int, *, fresh: bool) -> int:
        """Start or continue here; `base` is what every part shares. Returns the shard size that holds."""
        held = RunFolder(self.path, TRANSFER, _FILES).open(base, {"shard_size": shard_size}, fresh=fresh)
        return int(held["shard_size"])

    def begin(self) -> None:
        """Forget an older result: until the new one is whole there is none; and what a kill left half written."""
        RunFolder(self.path, TRANSFER, _FILES, RESULT).begin()

    def has_parts(self) -> bool:
        """Whether anything was computed here before."""
        return any((self.path / JOURNAL).glob("*.npz"))

    def read(self, part: Part, identity: str, shard: int, without: Sequence[str] = ()) -> dict[str, np.ndarray] | None:
        """The facts of a part less the arrays in `without`, or None if there are none yet."""
        return read_arrays(self._file(part, identity, shard), without)

    def write(self, part: Part, identity: str, shard: int, facts: Mapping[str, np.ndarray]) -> None:
        """Journal the facts of a part."""
        write_arrays(self._file(part, identity, shard), facts)

    def _file(self, part: Part, identity: str, shard: int) -> Path:
        return self.path / JOURNAL / f"{part}-{identity[:24]}-{shard:05d}.npz"

    def save(self, record: TransferRecord, pages: Mapping[str, str]) -> None:
        """Write the finished record; `transfer.json` last, so that its presence means the rest is there.

        Args:
            record: what `load_transfer` will give.
            pages: the text of each report to write beside it, by its name; see `robustkit.report.files.of_transfer`.
        """
        tables = {f"{name}.parquet": parquet(getattr(record, name)) for name in _TABLES}
        files = {**tables, **{name: text_file(text) for name, text in pages.items()}}
        write_record(self.path / RESULT, record.to_json(), files)


def load_transfer(path: str | Path) -> TransferRecord:
    """The finished record in the folder of a transfer run.

    Raises:
        UsageError: if there is none, it cannot be read, is not as it was written, or contradicts itself.
    """
    folder = Path(path)
    if not (folder / RESULT).is_file():
        raise refuse(folder, "transfer run")
    found = Stored.read(folder / RESULT, ("job", "environment", "seconds", "flags", "errors"), TRANSFER)
    data = found.data
    with consistency.readable(folder):
        record = TransferRecord(
            job=data["job"],
            environment=data["environment"],
            samples=_table(found, "samples"),
            attacks=_table(found, "attacks"),
            transfer=_table(found, "transfer"),
            seconds=data["seconds"],
            flags=data["flags"],
            errors=data["errors"],
            folder=str(folder),
            notes=found.notes,
            about=About.from_json(data.get("about")),
        )
        consistency.check_transfer(record, data.get("summary", {}))
    return record


def _table(found: Stored, name: str) -> Columns:
    columns = found.table(f"{name}.parquet")
    return {name: column.astype(np.object_) if column.dtype.kind == "U" else column for name, column in columns.items()}
