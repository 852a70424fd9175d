"""Locks between processes, by the operating system: one ends with the process that holds it, however that ends.

Beside a lock lies a note of who holds it. Several workers that share a run need something finer than `at_work`.
"""

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from robustkit.errors import UsageError

LOCK = ".lock"
_NOTE = ".json"  # after the lock's name
_MOMENT = 0.2  # seconds in which one that is just being given back is waited for
_log = logging.getLogger("robustkit")


@contextlib.contextmanager
def at_work(folder: str | os.PathLike[str] | None, advice: str = "choose another --out") -> Iterator[None]:
    """Be the only one at work in a folder, which is made if there is none; None is no folder.

    What lies there is touched only within; a folder that nobody may write to needs no lock.

    Raises:
        UsageError: if it is a file, or another process (or another thread of this one) is at work there.
    """
    if folder is None:
        yield
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; --out wants a folder")
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with held(path / LOCK, f"work in {path}", advice=advice):
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # which says that something came to be in it
                path.rmdir()


@contextlib.contextmanager
def held(lock: Path, what: str, *, advice: str = "", keep: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock, whose file lies in a folder that is there.

    Args:
        lock: its file.
        what: is at hand: "work in the folder".
        advice: what else can be done than to wait.
        keep: leave the file there when it is given back, as those need who wait for it.
        wait: until it is free; the log says for whom. Otherwise it is refused.

    Raises:
        UsageError: if it is not free.
    """
    note, found = lock.with_name(lock.name + _NOTE), FileLock(lock)
    try:
        _acquire(found, note, what, advice, wait=wait)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or lock.exists():
            raise
        yield  # nobody can write here, nor be kept from it
        return
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        note.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}), "utf-8")
        yield
    finally:
        for file in (note,) if keep else (note, lock):
            with contextlib.suppress(OSError):  # where what is open cannot be removed, it stays
                file.unlink()
        found.release()


def besides(folder: Path) -> list[Path]:
    """What lies in a folder besides its lock and what a kill can leave of a file that was being written."""
    ours = {LOCK, LOCK + _NOTE}
    return [path for path in folder.iterdir() if path.name not in ours and path not in _parts(folder)]


def sweep(folder: Path) -> None:
    """Remove what a kill left of files that were being written; only who is at work in the folder may."""
    for part in _parts(folder):
        part.unlink(missing_ok=True)


def _parts(folder: Path) -> list[Path]:
    return [*folder.glob(".*.part")]


def _acquire(found: FileLock, note: Path, what: str, advice: str, *, wait: bool) -> None:
    with contextlib.suppress(Timeout):
        found.acquire(timeout=_MOMENT, poll_interval=_MOMENT / 4)
        return
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        who = f"PID {known['pid']} on host {known['host']} has been at {what} since {known['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it was just taken, or just given back
        who = f"another process is at {what}"
    if not wait:
        raise UsageError(f"{who}; wait until it is done{advice and f', or {advice}'}")
    _log.warning("%s; waiting for it", who)
    found.acquire()
