"""Files of records: written whole or not at all, read as they were written or not at all. Needs no torch.

A file is written beside its place and then moved there. A record is one JSON file with its digest, and in it the sha256
of each file beside it; a part of the journal ends in its own.
"""

import contextlib
import errno
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.errors import UsageError
from robustkit.records import seal
from robustkit.records.schema import RUN, Columns

FACTS = (".parquet", ".safetensors")  # what a record is read from; its other files only people read
_KINDS = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}  # of what a run keeps, as safetensors writes it
_HEX = 64  # characters of a sha256

Write = Callable[[Path], None]


@contextlib.contextmanager
def _staged(path: Path, write: Write) -> Iterator[Path]:
    """A file beside `path`, whole and on the disk, that `write` has filled; what is not moved from there is removed."""
    part = None
    try:
        with _named(path):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            os.close(handle)
            part = Path(name)
            write(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            part.chmod(0o666 & ~mask)  # mkstemp is private; a run folder is as readable as any file
        yield part
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of the file system name the file that was meant, not the temporary one or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def write_atomic(path: Path, write: Write) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there, durably. A device or a pipe is written to.

    Raises:
        OSError: naming `path`; what was there is there still.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # /dev/stdout
        with _named(path):
            write(path)
        return
    place = path.resolve() if path.is_symlink() else path  # a link stays a link
    with _staged(place, write) as part, _named(path):
        part.replace(place)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, text_file(text))


def text_file(text: str) -> Write:
    """Writes a text."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz atomically; its last bytes, a comment to the archive, are the sha256 of all before them."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        with zipfile.ZipFile(part, "a") as archive:
            archive.comment = b"0" * _HEX
        with part.open("r+b") as file:
            stop = file.seek(-_HEX, os.SEEK_END)
            file.seek(0)
            digest = seal.sha256_before(file, stop)
            file.seek(stop)
            file.write(digest.encode())

    write_atomic(path, write)


def read_arrays(path: Path, without: Sequence[str] = ()) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz, or None if there is none; those in `without` are left in the file.

    Raises:
        UsageError: if it cannot be read, or is not as `write_arrays` left it.
    """
    if not path.exists():
        return None
    again = "delete it to compute it again, or use --fresh"
    try:
        with path.open("rb") as handle:
            stop = max(0, handle.seek(0, os.SEEK_END) - _HEX)
            handle.seek(0)
            if seal.sha256_before(handle, stop).encode() != handle.read():
                raise UsageError(f"{path} is not as it was written, or it is from before parts had a digest; {again}")
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files if name not in without}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read ({error}); {again}") from error


def dumps(data: Any) -> str:
    """JSON for people and machines; NaN is refused."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_record(file: Path, data: Mapping[str, Any], files: Mapping[str, Write]) -> None:
    """Write the files of a record, then `file`: its JSON data, sealed, with the sha256 of each of them.

    All are written beside their places before the first is moved, so that a full disk leaves what was there.
    """
    with contextlib.ExitStack() as stack:
        parts = {name: stack.enter_context(_staged(file.parent / name, write)) for name, write in files.items()}
        digests = {**data.get(seal.FILES, {}), **{name: seal.sha256_of(part) for name, part in parts.items()}}
        text = dumps(seal.sealed({**data, seal.FILES: digests}))
        parts[file.name] = stack.enter_context(_staged(file, text_file(text)))
        if any(name.endswith(FACTS) for name in files):
            file.unlink(missing_ok=True)  # between two moves there is no record, rather than one of other facts
        for name, part in parts.items():
            with _named(file.parent / name):
                part.replace(file.parent / name)


def save_record(file: Path, data: Mapping[str, Any], pages: Mapping[str, str] | None) -> None:
    """Write a record that is one JSON file, and beside it its reports by their names, if there are any."""
    if pages is None:
        write_text(file, dumps(seal.sealed(data)))
    else:
        write_record(file, data, {name: text_file(text) for name, text in pages.items()})


def rewrite_pages(file: Path, pages: Mapping[str, str]) -> None:
    """Write reports anew beside a record's JSON `file`, which gets their digests, if it has any.

    Raises:
        UsageError: if the record is not as it was written, or its folder may only be read.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    try:
        if seal.is_sealed(data, file):
            write_record(file, data, {name: text_file(text) for name, text in pages.items()})
            return
        for name, text in pages.items():
            write_text(file.parent / name, text)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        said = error.strerror or error
        raise UsageError(
            f"{file.parent} cannot be written to ({said}); write the reports elsewhere: --out DIR"
        ) from error


@dataclass(frozen=True, slots=True)
class Stored:
    """A record's JSON as it was read, and what it says of the files beside it; `notes` are for who reads the record."""

    file: Path
    data: Mapping[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, file: Path, keys: tuple[str, ...], schema: str) -> "Stored":
        """The record in `file`.

        Raises:
            UsageError: as `read_json`.
        """
        data = read_json(file, keys, schema)
        if seal.DIGEST not in data:
            return cls(file, data, (f"this record is {seal.UNSEALED}",))
        if not isinstance(data.get(seal.FILES), dict):
            raise UsageError(f"{file} contradicts itself: it names no files; {seal.AGAIN}")
        pages = {file.parent / name: known for name, known in data[seal.FILES].items() if not name.endswith(FACTS)}
        other = [page.name for page, known in pages.items() if page.is_file() and seal.sha256_of(page) != known]
        text = f"{', '.join(other)}: changed since; `robustkit report` writes it again from the facts"
        return cls(file, data, (text,) if other else ())

    def expected(self, name: str) -> str | None:
        """The sha256 that a file beside the record must have; None for a record from before digests.

        Raises:
            UsageError: if the record names no such file.
        """
        if seal.DIGEST not in self.data:
            return None
        if name not in self.data[seal.FILES]:
            raise UsageError(f"{self.file.parent / name} is none of the record's files; {seal.AGAIN}")
        return str(self.data[seal.FILES][name])

    def table(self, name: str) -> dict[str, np.ndarray]:
        """A table beside the record.

        Raises:
            UsageError: if it is not as it was written, or cannot be read.
        """
        return read_table(self.file.parent / name, self.expected(name))


def read_json(file: Path, keys: tuple[str, ...], schema: str = RUN) -> dict[str, Any]:
    """A JSON object of a run folder, or another file of ours with a `schema`.

    Raises:
        UsageError: if it is absent, is no JSON, lacks a key, is of a schema this version does not know, or is not as
            it was written.
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
    seal.is_sealed(data, file)
    return dict(data)


class _Mapped(Mapping[str, np.ndarray]):
    """The arrays of a file, mapped: what is not looked at is not read, for it may be gigabytes; nor is its digest."""

    def __init__(self, file: Path, arrays: Mapping[str, np.ndarray], expected: str | None) -> None:
        self._file, self._arrays, self._expected = file, arrays, expected

    def _checked(self) -> Mapping[str, np.ndarray]:
        if self._expected is not None:
            seal.check_file(self._file, self._expected)
            self._expected = None
        return self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self._checked()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checked())

    def __len__(self) -> int:
        return len(self._checked())


def mapped(found: Stored, name: str) -> Mapping[str, np.ndarray] | None:
    """The arrays of a .safetensors file beside a record; they are checked when they are first looked at."""
    file = found.file.parent / name
    if not file.exists():
        return None
    expected = found.expected(name)
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            head = json.loads(handle.read(size))
        arrays: dict[str, np.ndarray] = {}
        for key in head.keys() - {"__metadata__"}:
            start, stop = head[key]["data_offsets"]
            kind, shape = np.dtype(_KINDS[head[key]["dtype"]]), tuple(head[key]["shape"])
            if stop == start:
                arrays[key] = np.zeros(shape, dtype=kind)
            else:
                arrays[key] = np.memmap(file, kind, "c", 8 + size + start, shape)
        return _Mapped(file, arrays, expected)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def tensors(arrays: dict[str, np.ndarray]) -> Write:
    """Writes arrays as .safetensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    def write(path: Path) -> None:
        try:
            save_file(arrays, path)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(errno.EIO, str(error)) from error

    return write


def parquet(columns: Columns) -> Write:
    """Writes columns as parquet; NaN becomes null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values, from_pandas=values.dtype.kind == "f") for name, values in columns.items()}
    return lambda path: pq.write_table(pa.table(arrays), path)


def read_table(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read columns from parquet; null becomes NaN, and an absent text the empty text.

    Raises:
        UsageError: if it cannot be read, or its bytes do not have this sha256.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if sha256 is not None:
        seal.check_file(path, sha256, seal.REBUILD)
    columns = {}
    try:
        found = pq.ParquetFile(path).read()
        for name in found.column_names:
            column = found.column(name)
            text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            values = column.to_pylist() if text else column.to_numpy(zero_copy_only=False)
            columns[name] = np.array(values, dtype=np.str_) if text else values
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return columns
