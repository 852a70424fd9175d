"""What lies in the cache: listed, read again in full, removed."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from robustkit.cache import checks, home, pins, transfer

Kind = Literal["datasets", "models"]


@dataclass(frozen=True, slots=True)
class Item:
    """A file in the cache."""

    place: str  # below home()
    size: int  # bytes
    pin: pins.Pin | None  # None: put or unpacked there, not pinned (yet)

    @property
    def partial(self) -> bool:
        """Whether it is the beginning of a transfer that was cut."""
        return self.place.endswith(".part")


def items(kind: Kind, pattern: str = "") -> list[Item]:
    """The files of a kind, sorted by place. A pattern is a glob, a path or a folder, with or without the kind."""
    pinned = pins.read(home())
    found = sorted(_places(home() / kind))
    return [
        Item(place, (home() / place).stat().st_size, pinned.get(place)) for place in found if _matches(place, pattern)
    ]


def verify(item: Item) -> str:
    """Read a pinned file in full: what is wrong with it, or "" (then it is known to be what it was pinned as)."""
    if item.pin is None:
        raise ValueError(f"{item.place} is not pinned")
    file = home() / item.place
    sha256, _ = checks.hashes(file)
    if sha256 != item.pin.sha256:
        return f"has the sha256 {sha256}, not {item.pin.sha256} as on {item.pin.pinned} when it was pinned"
    pins.write(home(), item.place, file, sha256)
    return ""


def remove(found: Iterable[Item]) -> None:
    """Remove files, the notes of partial ones, and the folders that are empty then. Pins stay.

    Raises:
        UsageError: if another process is fetching one of them; then none is removed.
    """
    with ExitStack() as stack:
        found = list(found)
        for item in found:
            if item.partial:
                stack.enter_context(pins.locked(home(), item.place.removesuffix(".part"), wait=False))
        _remove(found)


def _remove(found: Iterable[Item]) -> None:
    for item in found:
        file = home() / item.place
        if item.partial:
            transfer.discard(file)
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == home() or any(folder.iterdir()):
                break
            folder.rmdir()


def forget(kind: Kind, pattern: str) -> list[str]:
    """Drop the pins of the places that match, also of those that hold no file: these places."""
    gone = [place for place in pins.read(home()) if place.startswith(f"{kind}/") and _matches(place, pattern)]
    for place in gone:
        pins.forget(home(), place)
    return gone


def _places(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):  # does not follow links to folders: what they hold is not the cache's
        for name in names:
            file = Path(root, name)
            note = name.endswith(".part.json") and file.with_suffix("").exists()
            if file.is_file() and not note:
                yield file.relative_to(home()).as_posix()


def _matches(place: str, pattern: str) -> bool:
    wanted = pattern.rstrip("/")
    short = place.partition("/")[2]
    return not wanted or any(
        name == wanted or name.startswith(f"{wanted}/") or fnmatchcase(name, wanted) for name in (place, short)
    )
