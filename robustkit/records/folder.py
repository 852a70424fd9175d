"""Run folders: `run.json`, `samples.parquet`, `attacks.parquet`, reports, and the journal of a run under way.

Every file appears whole or not at all: it is written beside its place and then moved there. What is read is as it was
written, by its digest, and agrees with itself, or it is refused.
"""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.errors import UsageError
from robustkit.records import consistency, seal
from robustkit.records.files import (
    Stored,
    dumps,
    mapped,
    parquet,
    read_arrays,
    read_json,
    tensors,
    text_file,
    write_arrays,
    write_record,
    write_text,
)
from robustkit.records.findings import stored
from robustkit.records.run import RunRecord
from robustkit.records.schema import RUN

JOB, JOURNAL = "job.json", "journal"
SWEEP_FILE = "sweep.json"
_OURS = (
    JOB, JOURNAL, "run.json", "samples.parquet", "attacks.parquet", "report.md", "report.html", "tables.tex",
    "tables.csv", "adversarial.safetensors",
)  # fmt: skip


class RunFolder:
    """The folder of one run. `schema` says of which kind, and `files` what such a run leaves in it.

    Raises:
        UsageError: if the folder holds something else, or a run of another job.
    """

    def __init__(self, path: Path, schema: str = RUN, files: Sequence[str] = _OURS) -> None:
        self.path, self.schema, self.files = path, schema, files

    def open(self, job: Mapping[str, Any], plan: Mapping[str, Any], *, fresh: bool) -> dict[str, Any]:
        """Start or continue the job's run here; returns the plan that holds (the one it was started with)."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; --out wants a folder")
        if self.path.is_dir() and not self._blank():
            known = self._read_job()
            if fresh:
                self._clear()
            elif known["job"]["id"] != job["id"]:
                raise UsageError(
                    f"{self.path} holds another run ({_difference(known['job'], job)}); choose another --out, or "
                    "--fresh to overwrite it"
                )
            else:
                (self.path / JOURNAL).mkdir(exist_ok=True)
                held: dict[str, Any] = known["plan"]
                return held
        # job.json first: what has it is ours, and a kill at any moment leaves a folder that can be used again.
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"schema": self.schema, "job": dict(job), "plan": dict(plan)}
        write_text(self.path / JOB, dumps(seal.sealed(content)))
        (self.path / JOURNAL).mkdir(exist_ok=True)
        return dict(plan)

    def _blank(self) -> bool:
        """Whether nothing is there but what a kill can leave behind; that is removed."""
        found = list(self.path.iterdir())
        for part in [*self.path.glob(".*.part"), *(self.path / JOURNAL).glob(".*.part")]:
            part.unlink(missing_ok=True)
        return all(path.name.endswith(".part") and path.name.startswith(".") for path in found)

    def discard(self) -> None:
        """Take back a folder in which nothing came to be."""
        self._clear()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def finished(self) -> bool:
        """Whether a whole result is here."""
        return (self.path / "run.json").exists()

    def begin(self) -> None:
        """Forget an older result: until the new one is whole there is none."""
        (self.path / "run.json").unlink(missing_ok=True)

    def _read_job(self) -> dict[str, Any]:
        file = self.path / JOB
        if not file.is_file():
            raise UsageError(f"{self.path} is not empty and holds no robustkit run; choose another --out")
        return read_json(file, ("job", "plan"), self.schema)

    def _clear(self) -> None:
        for name in reversed(self.files):  # job.json last
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def has_parts(self) -> bool:
        """Whether anything of the run was computed before."""
        return any((self.path / JOURNAL).glob("shard-*.npz"))

    def read_part(self, shard: int, step: int) -> dict[str, np.ndarray] | None:
        """The journal's facts of one (shard, attack), or None if there are none yet."""
        return read_arrays(self._part(shard, step))

    def write_part(self, shard: int, step: int, facts: Mapping[str, np.ndarray]) -> None:
        """Journal the facts of one (shard, attack)."""
        write_arrays(self._part(shard, step), facts)

    def _part(self, shard: int, step: int) -> Path:
        return self.path / JOURNAL / f"shard-{shard:05d}-{step:02d}.npz"

    def save(self, record: RunRecord, pages: Mapping[str, str]) -> None:
        """Write the finished record; `run.json` last, so that its presence means the rest is there.

        Args:
            record: what `load_run` will give.
            pages: the text of each report to write beside it, by its name; see `robustkit.report.files.of_run`.
        """
        files = {
            "samples.parquet": parquet(record.samples),
            "attacks.parquet": parquet(record.attacks),
            **{name: text_file(text) for name, text in pages.items()},
        }
        if record.adversarial is not None:
            files["adversarial.safetensors"] = tensors(dict(record.adversarial))
        write_record(self.path / "run.json", record.to_json(), files)


def load_run(path: str | Path) -> RunRecord:
    """The finished record in a run folder.

    Raises:
        UsageError: if there is none, it cannot be read, is not as it was written, or contradicts itself.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no run folder at {folder}")
    if (folder / SWEEP_FILE).exists():
        raise UsageError(f"{folder} holds a sweep over eps; give the folder of one of its runs, {folder / 'eps-01'} …")
    if not (folder / "run.json").exists() and (folder / JOB).exists():
        raise UsageError(f"the run in {folder} is not finished; run its command again to continue it")
    found = Stored.read(folder / "run.json", ("job", "environment", "flags", "errors"), RUN)
    data = found.data
    with consistency.readable(folder):
        record = RunRecord(
            job=data["job"],
            environment=data["environment"],
            samples=found.table("samples.parquet"),
            attacks=found.table("attacks.parquet"),
            seconds=data.get("seconds", {}),
            flags=data["flags"],
            errors=data["errors"],
            predicted=data.get("predicted"),
            goals=data.get("goals", {}),
            audit=stored(data.get("audit")),
            adversarial=mapped(found, "adversarial.safetensors"),
            folder=str(folder),
            notes=found.notes,
        )
        consistency.check_run(record, data.get("summary", {}))
    return record


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    changed = [key for key in wanted if key != "id" and known.get(key) != wanted[key]]
    first = changed[0] if changed else "id"
    return f"{first} differs: {str(known.get(first))[:60]} there, {str(wanted[first])[:60]} asked"
