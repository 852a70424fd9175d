"""One file over HTTP into a `.part` that a cut transfer leaves behind and the next one continues."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkit.cache import drive
from robustkit.cache.checks import HEAD, not_a_file

Progress = Callable[[int, int | None], None]

TRIES = 4  # of one URL, as long as each brings the transfer further
TIMEOUTS = (15.0, 60.0)  # seconds to connect, and between two reads
_BLOCK = 1 << 18
_HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; robustkit)", "Accept-Encoding": "identity"}  # the bytes as stored


class RefusedError(Exception):
    """A URL does not give the file; the text says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a transfer must bring."""

    size: int | None  # bytes, if known
    magic: tuple[bytes, ...]
    hashed: bool  # its hash is known beforehand, so that a wrongly joined file cannot pass


def download(url: str, part: Path, wanted: Wanted, on_progress: Progress) -> None:
    """Bring `part` to the full length of what a URL gives, continuing what is there if that is safe.

    Raises:
        RefusedError: if the server refuses, sends a page instead of the file, or cuts the transfer time and again.
    """
    import requests
    from urllib3.exceptions import HTTPError

    cuts = (requests.RequestException, HTTPError, _CutError)
    with requests.Session() as session:
        session.headers.update(_HEADERS)
        for left in reversed(range(TRIES)):
            before = _length(part)
            try:
                return _once(session, url, part, wanted, on_progress)
            except cuts as error:
                further = _length(part) > before or isinstance(error, _RestartError)
                if not left or not further:
                    raise RefusedError(_reason(error)) from error


class _CutError(Exception):
    """The answer ended before its end."""


class _RestartError(_CutError):
    """What was there could not be continued and was discarded."""


def note_of(part: Path) -> Path:
    """Where a part remembers which URL and which version of it the bytes came from."""
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Remove a part and its note."""
    part.unlink(missing_ok=True)
    note_of(part).unlink(missing_ok=True)


def _once(session: Any, url: str, part: Path, wanted: Wanted, on_progress: Progress) -> None:
    start, version = _resumable(url, part, wanted)
    with closing(_answer(session, url, start, version)) as answer:
        status: int = answer.status_code
        if status == 416 and _total(answer, 0) == start:
            return  # nothing lies beyond what is there: it is complete
        if status == 416 or (status == 206 and _first_byte(answer) != start):
            discard(part)
            raise _RestartError("the server has not the range that was asked for")
        if status >= 400:
            raise RefusedError(f"HTTP {status} {answer.reason or ''}".strip())
        if status != 206:
            start = 0  # the server does not do ranges, or has another version by now
        total = _total(answer, start)
        answer.raw.enforce_content_length = False  # else the bytes before a cut are lost; the length is compared below
        blocks = answer.raw.stream(_BLOCK, decode_content=False)
        first = b""
        while len(first) < HEAD and (block := next(blocks, b"")):
            first += block
        if start == 0:
            _check_head(first, wanted)
        if wanted.size is not None and total is not None and total != wanted.size:
            raise RefusedError(f"it has {total} bytes there, not {wanted.size}")
        if start == 0:
            _remember(url, part, answer)
        done = start
        with part.open("ab" if start else "wb") as stream:
            while first:
                stream.write(first)
                done += len(first)
                on_progress(done, total)
                first = next(blocks, b"")
    if total is not None and done < total:
        raise _CutError(f"the transfer was cut at {done} of {total} bytes")


def _answer(session: Any, url: str, start: int, version: str) -> Any:
    """The server's answer to a request from byte `start` on; of Google Drive past its "download anyway" page."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and version:
        headers["If-Range"] = version
    answer = session.get(url, headers=headers, stream=True, timeout=TIMEOUTS)
    if not drive.is_drive(url) or not drive.is_page(answer):
        return answer
    with closing(answer):
        page = drive.read_page(answer)
    onward = drive.confirmed(page, answer.url)
    if not onward:
        raise RefusedError(drive.refusal(page, answer.status_code))
    answer = session.get(onward, headers=headers, stream=True, timeout=TIMEOUTS)
    if drive.is_page(answer):
        with closing(answer):
            raise RefusedError(drive.refusal(drive.read_page(answer), answer.status_code))
    return answer


def _check_head(head: bytes, wanted: Wanted) -> None:
    if problem := not_a_file(head):
        raise RefusedError(
            f"the answer {problem.partition(';')[0].removesuffix(' (a failed download?)')}, not the file"
        )
    if wanted.magic and not head.startswith(wanted.magic):
        raise RefusedError(f"the answer begins with {head[:8]!r}, not with {wanted.magic[0]!r} as this file does")


def _resumable(url: str, part: Path, wanted: Wanted) -> tuple[int, str]:
    """From which byte to go on, and the version (ETag or date) that must still be served."""
    start = _length(part)
    if not start:
        return 0, ""
    try:
        note = json.loads(note_of(part).read_text(encoding="utf-8"))
        version = str(note["version"]) if note["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        version = ""
    return (start, version) if version or wanted.hashed else (0, "")


def _remember(url: str, part: Path, answer: Any) -> None:
    tag = answer.headers.get("ETag", "")
    version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
    note_of(part).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _first_byte(answer: Any) -> int:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else 0


def _total(answer: Any, start: int) -> int | None:
    """The whole file's length as the server tells it."""
    if found := re.search(r"/(\d+)$", answer.headers.get("Content-Range", "")):
        return int(found[1])
    length = answer.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else None


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"its certificate is not accepted ({error})"
    if isinstance(error, requests.ConnectionError):
        return "no connection (is there a network?)"
    return " ".join(str(error).split())
