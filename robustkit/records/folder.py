"""Run folders: `run.json`, `samples.parquet`, `attacks.parquet`, reports, and the journal of a run under way.

Every file appears whole or not at all: it is written beside its place and then moved there.
"""

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.errors import UsageError
from robustkit.locks import besides, sweep
from robustkit.records.findings import stored
from robustkit.records.run import RunRecord
from robustkit.records.schema import RUN, Columns
from robustkit.spec import digest

JOB, JOURNAL, RESULT = "job.json", "journal", "run.json"
_OURS = (
    JOB, JOURNAL, RESULT, "samples.parquet", "attacks.parquet", "report.md", "report.html", "tables.tex",
    "tables.csv", "adversarial.safetensors",
)  # fmt: skip


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there, durably."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)  # mkstemp is private; a run folder is as readable as any file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz atomically."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomic(path, write)


def read_arrays(path: Path, without: Sequence[str] = ()) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz, or None if there is none; those in `without` are left in the file.

    Raises:
        UsageError: if it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name not in without}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read ({error}); delete it to compute it again, or use --fresh") from error


def dumps(data: Any) -> str:
    """JSON for people and machines; NaN is refused."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


_KINDS = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}  # of what a run keeps, as safetensors writes it


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
        write_text(self.path / JOB, dumps({"schema": self.schema, "job": dict(job), "plan": dict(plan)}))
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
        return self.path / JOURNAL / f"shard-{shard:05d}-{step:02d}.npz"

    def save(self, record: RunRecord, pages: Mapping[str, str]) -> None:
        """Write the finished record; `run.json` last, so that its presence means the rest is there.

        Args:
            record: what `load_run` will give.
            pages: the text of each report to write beside it, by its name; see `robustkit.report.files.of_run`.
        """
        write_table(self.path / "samples.parquet", record.samples)
        write_table(self.path / "attacks.parquet", record.attacks)
        for name, text in pages.items():
            write_text(self.path / name, text)
        if record.adversarial is not None:
            from safetensors.numpy import save_file

            arrays = dict(record.adversarial)
            write_atomic(self.path / "adversarial.safetensors", lambda part: save_file(arrays, part))
        write_text(self.path / RESULT, dumps(record.to_json()))


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
    folder = RunFolder(Path(out), schema, (JOB, JOURNAL, result), result)
    folder.open({**job, "id": digest(job)}, {}, fresh=fresh)
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


def read_json(file: Path, keys: tuple[str, ...], schema: str = RUN) -> dict[str, Any]:
    """A JSON object of a run folder, or another file of ours with a `schema`.

    Raises:
        UsageError: if it is absent, is no JSON, lacks a key, or is of a schema this version does not know.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}") from error
    if isinstance(data, dict) and data.get("schema", schema) != schema:
        raise UsageError(f"{file} has schema {data['schema']!r}; here this version reads {schema!r}")
    missing = [key for key in ("schema", *keys) if not isinstance(data, dict) or key not in data]
    if missing:
        raise UsageError(f"{file} is no robustkit {schema.split('/')[1]}: it lacks {', '.join(missing)}")
    return dict(data)


def load_run(path: str | Path) -> RunRecord:
    """The finished record in a run folder.

    Raises:
        UsageError: if there is none, or it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no run folder at {folder}")
    if not (folder / RESULT).exists() and (folder / JOB).exists():
        read_json(folder / JOB, ("job",))  # which refuses the folder of another kind of run
        raise UsageError(f"the run in {folder} is not finished; run its command again to continue it")
    data = read_json(folder / RESULT, ("job", "environment", "flags", "errors"))
    return RunRecord(
        job=data["job"],
        environment=data["environment"],
        samples=read_table(folder / "samples.parquet"),
        attacks=read_table(folder / "attacks.parquet"),
        seconds=data.get("seconds", {}),
        flags=data["flags"],
        errors=data["errors"],
        predicted=data.get("predicted"),
        goals=data.get("goals", {}),
        audit=stored(data.get("audit")),
        adversarial=_adversarial(folder / "adversarial.safetensors"),
        folder=str(folder),
    )


def _adversarial(file: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a .safetensors file, mapped: what is not looked at is not read, for it may be gigabytes."""
    if not file.exists():
        return None
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            head = json.loads(handle.read(size))
        found = {}
        for name in head.keys() - {"__metadata__"}:
            start, stop = head[name]["data_offsets"]
            kind, shape = np.dtype(_KINDS[head[name]["dtype"]]), tuple(head[name]["shape"])
            if stop == start:
                found[name] = np.zeros(shape, dtype=kind)
            else:
                found[name] = np.memmap(file, kind, "c", 8 + size + start, shape)
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def write_table(path: Path, columns: Columns) -> None:
    """Write columns as parquet; NaN becomes null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values, from_pandas=values.dtype.kind == "f") for name, values in columns.items()}
    write_atomic(path, lambda part: pq.write_table(pa.table(arrays), part))


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Read columns from parquet; null becomes NaN, and an absent text the empty text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        columns[name] = np.array(column.to_pylist(), dtype=np.str_) if text else column.to_numpy(zero_copy_only=False)
    return columns


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    changed = [key for key in wanted if key != "id" and known.get(key) != wanted[key]]
    first = changed[0] if changed else "id"
    return f"{first} differs: {str(known.get(first))[:60]} there, {str(wanted[first])[:60]} asked"
