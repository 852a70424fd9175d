"""Run folders: `run.json`, `samples.parquet`, `attacks.parquet`, reports, and the journal of a run under way.

Every file appears whole or not at all: it is written beside its place and then moved there. What is read is as it was
written, by its digest, and agrees with itself, or it is refused.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.errors import UsageError
from robustkit.locks import besides, sweep
from robustkit.records import consistency, seal
from robustkit.records.about import About, now
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
from robustkit.records.places import refuse
from robustkit.records.run import RunRecord
from robustkit.records.schema import RUN
from robustkit.spec import digest

JOB, JOURNAL, RESULT = "job.json", "journal", "run.json"
SWEEP_FILE = "sweep.json"
CERTIFIED, CHECKED = -1, -2  # steps of the journal that are no attack of the job: proofs, and proofs put to the test
PAGES = ("report.md", "report.html", "tables.tex", "tables.csv")
_OURS = (JOB, JOURNAL, RESULT, "samples.parquet", "attacks.parquet", *PAGES, "adversarial.safetensors")


class RunFolder:
    """The folder of one run. `schema` says of which kind, `files` what such a run leaves in it, `result` which is last.

    Who opens it must be `at_work` in it.

    Raises:
        UsageError: if the folder holds something else, or a run of another job.
    """

    def __init__(self, path: Path, schema: str = RUN, files: Sequence[str] = _OURS, result: str = RESULT) -> None:
        self.path, self.schema, self.files, self.result = path, schema, files, result

    def open(self, job: Mapping[str, Any], plan: Mapping[str, Any], *, fresh: bool) -> dict[str, Any]:
        """Start or continue the job's run here; returns the plan that holds (the one it was started with)."""
        if self.path.is_dir() and besides(self.path):
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

    def discard(self) -> None:
        """Take back a folder in which nothing came to be."""
        self._clear()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def finished(self) -> bool:
        """Whether a whole result is here."""
        return (self.path / self.result).exists()

    def begin(self) -> None:
        """Forget an older result: until the new one is whole there is none; and what a kill left half written."""
        (self.path / self.result).unlink(missing_ok=True)
        sweep(self.path)
        sweep(self.path / JOURNAL)

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
        name = f"{step:02d}" if step >= 0 else {CERTIFIED: "certified", CHECKED: "checked"}[step]
        return self.path / JOURNAL / f"shard-{shard:05d}-{name}.npz"

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
        write_record(self.path / RESULT, record.to_json(), files)


def resume(
    out: str | os.PathLike[str] | None, schema: str, result: str, job: Mapping[str, Any], parts: int,
    make: Callable[[int], Mapping[str, Any]], *, fresh: bool,
) -> Iterator[Mapping[str, Any]]:  # fmt: skip
    """The facts of a run's parts, one after another: from the journal of its folder where it has them, else made.

    Whose folder it is must be `at_work` in it.

    Args:
        out: the folder; None keeps nothing.
        schema: of the run's kind.
        result: the file that the caller writes when all is there; an older one is forgotten first.
        job: all that decides the facts, as JSON data.
        parts: how many there are.
        make: the facts of one part, numbers, texts or lists of numbers by name; called only for those that lack.
        fresh: forget what the folder holds.

    Raises:
        UsageError: if the folder holds something else, or a run of another job.
    """
    if out is None:
        yield from map(make, range(parts))
        return
    folder = RunFolder(Path(out), schema, (JOB, JOURNAL, result, *PAGES), result)
    folder.open({**job, "id": digest(job)}, {"started": now()}, fresh=fresh)
    folder.begin()
    try:
        for number in range(parts):
            known = folder.read_part(number, 0)
            if known is None:
                known = {name: np.asarray(value) for name, value in make(number).items()}
                folder.write_part(number, 0, known)
            yield {name: value.tolist() for name, value in known.items()}
    except UsageError:
        if not folder.has_parts():
            folder.discard()
        raise


def load_run(path: str | Path) -> RunRecord:
    """The finished record in a run folder.

    Raises:
        UsageError: if there is none, it cannot be read, is not as it was written, or contradicts itself.
    """
    folder = Path(path)
    if not (folder / RESULT).is_file() or (folder / SWEEP_FILE).exists():
        raise refuse(folder, "run")
    found = Stored.read(folder / RESULT, ("job", "environment", "flags", "errors"), RUN)
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
            certificates=data.get("certificates"),
            adversarial=mapped(found, "adversarial.safetensors"),
            folder=str(folder),
            notes=found.notes,
            about=About.from_json(data.get("about")),
        )
        consistency.check_run(record, data.get("summary", {}))
    return record


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    changed = [key for key in wanted if key != "id" and known.get(key) != wanted[key]]
    first = changed[0] if changed else "id"
    return f"{first} differs: {str(known.get(first))[:60]} there, {str(wanted[first])[:60]} asked"
