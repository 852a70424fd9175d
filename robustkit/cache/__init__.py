"""Files fetched once and checked: below `ROBUSTKIT_HOME`, each pinned by its sha256 in `lock.json`. No torch here."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shlex import quote

from robustkit.cache import checks, pins, transfer
from robustkit.errors import UsageError

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to be fetched: where it lies below the cache, where it comes from, and how it is known."""

    place: str  # path below home(), such as "datasets/cifar10/cifar-10-python.tar.gz"
    urls: tuple[str, ...]  # mirrors, tried in order
    sha256: str = ""  # empty: pinned on first use in home()/lock.json, and compared ever after
    md5: str = ""  # what some publishers give instead
    size: int | None = None  # bytes, if known
    magic: tuple[bytes, ...] = ()  # the file must begin with one of these; an HTML page is always refused
    by_hand: str = ""  # the page a person would download it from


progress: ContextVar[Callable[[Remote], AbstractContextManager[Progress]] | None] = ContextVar("progress", default=None)
"""How a download is shown when `fetch` is given no `on_progress`. The command line sets it; a library shows nothing."""


def home() -> Path:
    """The cache's folder: `ROBUSTKIT_HOME`, or `robustkit` in the platform's cache folder. It may not exist yet."""
    if chosen := os.environ.get("ROBUSTKIT_HOME"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("robustkit", appauthor=False)


def offline() -> bool:
    """Whether nothing may be downloaded: `ROBUSTKIT_OFFLINE=1`."""
    return os.environ.get("ROBUSTKIT_OFFLINE", "").lower() not in ("", "0", "false", "no")


def fetch(remote: Remote, on_progress: Progress | None = None) -> Path:
    """The file of a remote, downloaded if it is not in the cache, and checked before it gets its name.

    A file that looks untouched since it was last read in full is returned without reading it. Another, such as one put
    there by hand, is checked and pinned. A cut transfer leaves NAME.part, and the next one goes on from it.

    Args:
        remote: The file.
        on_progress: Called with the bytes that are here and the bytes there are (None if unknown).

    Raises:
        UsageError: if it cannot be had, offline or not; it says why and where to put the file by hand.
    """
    file = place_of(remote)
    try:
        if _trusted(remote, file):
            return file
        with pins.locked(home(), remote.place):
            reasons = _obtain(remote, file, on_progress)
    except OSError as error:
        text = f"{error.filename or home()}: {error.strerror or error} (ROBUSTKIT_HOME names another cache)"
        raise UsageError(_missing(remote, file, [text])) from error
    if reasons:
        raise UsageError(_missing(remote, file, reasons))
    return file


def _obtain(remote: Remote, file: Path, on_progress: Progress | None) -> list[str]:
    """Accept the file that is there, or download it: why neither worked, or nothing."""
    if _trusted(remote, file):  # fetched by another process while this one waited for the lock
        return []
    reasons = []
    if file.is_file():
        if not (problem := _accept(remote, file, file)):
            return []
        reasons.append(f"the file there {problem}")
    if offline():
        return [*(reasons or ["it is not in the cache"]), "offline (ROBUSTKIT_OFFLINE), so nothing is downloaded"]
    file.parent.mkdir(parents=True, exist_ok=True)
    shown = progress.get()
    with nullcontext(on_progress) if on_progress else shown(remote) if shown else nullcontext(_silent) as report:
        failures = _download(remote, file, report)
    return [*reasons, *failures] if failures else []


def place_of(remote: Remote) -> Path:
    """Where a remote's file lies, or will lie.

    Raises:
        ValueError: if that is not below the cache.
    """
    parts = PurePosixPath(remote.place).parts
    if not parts or remote.place.startswith("/") or ".." in parts or "\\" in remote.place:
        raise ValueError(f"{remote.place!r} is no place below the cache")
    return home().joinpath(*parts)


def _silent(done: int, total: int | None) -> None:
    """Shows nothing."""


def _trusted(remote: Remote, file: Path) -> bool:
    """Whether the file was read in full before, as what is asked for now, and looks untouched since."""
    pin = pins.read(home()).get(remote.place)
    return (
        pin is not None
        and pin.unchanged(file)
        and remote.sha256.lower() in ("", pin.sha256)
        and remote.md5.lower() in ("", pin.md5)
    )


def _accept(remote: Remote, content: Path, file: Path) -> str:
    """Check a content, give it its final name and pin it; or say what is wrong with it."""
    head = checks.read_head(content)
    if problem := checks.not_a_file(head):
        return problem
    if remote.magic and not head.startswith(remote.magic):
        return f"begins with {head[:8]!r}, not with {remote.magic[0]!r} as it should"
    if remote.size is not None and content.stat().st_size != remote.size:
        return f"has {content.stat().st_size} bytes, not {remote.size}"
    if checks.is_cut_zip(content):
        return "is a zip archive that was cut short"
    sha256, md5 = checks.hashes(content, md5=bool(remote.md5))
    if remote.sha256 and sha256 != remote.sha256.lower():
        return f"has the sha256 {sha256}, not {remote.sha256.lower()}"
    if md5 != remote.md5.lower():
        return f"has the md5 {md5}, not {remote.md5.lower()}"
    pin = pins.read(home()).get(remote.place)
    if pin and not remote.sha256 and sha256 != pin.sha256:
        kind = remote.place.partition("/")[0]
        command = f"robustkit {'data' if kind == 'datasets' else 'models'} rm --forget {quote(remote.place)}"
        return (
            f"has the sha256 {sha256}, not {pin.sha256} as on {pin.pinned} when it was pinned; "
            f"if it was changed on purpose: {command}"
        )
    os.replace(content, file)
    pins.write(home(), remote.place, file, sha256, md5)
    return ""


def _download(remote: Remote, file: Path, report: Progress) -> list[str]:
    """Try the mirrors in order: why each failed, or nothing once one gave the file."""
    part = file.with_name(file.name + ".part")
    hashed = bool(remote.sha256 or remote.md5 or remote.place in pins.read(home()))
    wanted = transfer.Wanted(remote.size, remote.magic, hashed)
    failures = []
    for url in remote.urls:
        resumed = part.is_file()
        for again in (True, False) if resumed else (False,):
            try:
                transfer.download(url, part, wanted, report)
            except transfer.RefusedError as error:
                failures.append(f"{url}: {error}")
                break
            problem = _accept(remote, part, file)
            transfer.discard(part)  # what passed has its own name by now
            if not problem:
                return []
            if not again:  # else it may have been joined from pieces of two versions: once more, from the beginning
                failures.append(f"{url}: what came {problem}")
    return failures or ["no address is known for it"]


def _missing(remote: Remote, file: Path, reasons: list[str]) -> str:
    source = remote.by_hand or next(iter(remote.urls), "")
    hint = f" (from {source})" if source else ""
    return f"cannot get {remote.place}: {'; '.join(reasons)}. Put the file by hand at {file}{hint} and run this again"
