"""The folder of a transfer run: `transfer.json`, three tables, the matrix as .csv and .tex, `report.md`; the journal.

The journal has one file for each part of the work: the adversarials of a (surrogate set, attack, shard), and what a
model says of them or of the clean images. A part's name is the identity of all that decides it, so another command
over the same images and threat model takes from the folder what it shares with the commands before it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robustkit.errors import UsageError
from robustkit.records.folder import (
    JOB,
    JOURNAL,
    RunFolder,
    dumps,
    read_arrays,
    read_json,
    read_table,
    write_arrays,
    write_table,
    write_text,
)
from robustkit.records.schema import TRANSFER, Columns
from robustkit.records.transfer import TransferRecord

RESULT = "transfer.json"
_TABLES = ("samples", "attacks", "transfer")
_FILES = (
    JOB, JOURNAL, RESULT, *(f"{name}.parquet" for name in _TABLES), "report.md", "matrix.csv", "matrix.tex",
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
        for name in _TABLES:
            write_table(self.path / f"{name}.parquet", getattr(record, name))
        for name, text in pages.items():
            write_text(self.path / name, text)
        write_text(self.path / RESULT, dumps(record.to_json()))


def load_transfer(path: str | Path) -> TransferRecord:
    """The finished record in the folder of a transfer run.

    Raises:
        UsageError: if there is none, or it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no run folder at {folder}")
    if not (folder / RESULT).exists() and (folder / JOB).exists():
        raise UsageError(f"the run in {folder} is not finished; run its command again to continue it")
    data = read_json(folder / RESULT, ("job", "environment", "seconds", "flags", "errors"), TRANSFER)
    return TransferRecord(
        job=data["job"],
        environment=data["environment"],
        samples=_table(folder, "samples"),
        attacks=_table(folder, "attacks"),
        transfer=_table(folder, "transfer"),
        seconds=data["seconds"],
        flags=data["flags"],
        errors=data["errors"],
        folder=str(folder),
    )


def _table(folder: Path, name: str) -> Columns:
    columns = read_table(folder / f"{name}.parquet")
    return {name: column.astype(np.object_) if column.dtype.kind == "U" else column for name, column in columns.items()}
