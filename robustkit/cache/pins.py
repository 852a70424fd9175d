"""`lock.json` in the cache: the sha256 of each file as it was first fetched, and when it was last read in full."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from robustkit.errors import UsageError
from robustkit.locks import held

FILE = "lock.json"
LOCKS = ".locks"


@dataclass(frozen=True, slots=True)
class Pin:
    """What a file was when it was first used. A file whose size and time are these is not read again to be believed."""

    sha256: str
    size: int
    mtime_ns: int
    pinned: str  # the day, ISO 8601
    md5: str = ""  # only if its publisher gave one

    def unchanged(self, file: Path) -> bool:
        """Whether a file looks untouched since it was last read in full (its content is not looked at)."""
        try:
            found = file.stat()
        except FileNotFoundError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


@contextmanager
def locked(home: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Only one process and thread at a time holds the lock of a name; another waits, and says so.

    Raises:
        UsageError: without `wait`, if another holds it.
    """
    folder = home / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    short = f"{name.rpartition('/')[2][:60]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    with held(folder / short, f"work on {name} in the cache", keep=True, wait=wait):
        yield


def read(home: Path) -> dict[str, Pin]:
    """The pins, by place below the cache.

    Raises:
        UsageError: if lock.json is not what this module writes.
    """
    file = home / FILE
    try:
        return {place: Pin(**entry) for place, entry in json.loads(file.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}); delete it to pin what lies in the cache anew, or put it back"
        ) from error


def write(home: Path, place: str, file: Path, sha256: str, md5: str = "") -> None:
    """Pin a file that was just read in full. The day it was first pinned stays while its sha256 does."""
    found = file.stat()
    pin = Pin(sha256, found.st_size, found.st_mtime_ns, datetime.now(UTC).date().isoformat(), md5)
    with locked(home, FILE):
        pins = read(home)
        before = pins.get(place)
        if before and before.sha256 == sha256:
            pin = replace(pin, pinned=before.pinned, md5=md5 or before.md5)
        _save(home, {**pins, place: pin})


def forget(home: Path, place: str) -> None:
    """Drop a pin, so that the next file at this place is pinned whatever it is."""
    with locked(home, FILE):
        _save(home, {name: pin for name, pin in read(home).items() if name != place})


def _save(home: Path, pins: Mapping[str, Pin]) -> None:
    text = json.dumps({place: asdict(pins[place]) for place in sorted(pins)}, indent=1)
    fresh = home / f"{FILE}.new"
    fresh.write_text(text + "\n", encoding="utf-8")
    os.replace(fresh, home / FILE)
