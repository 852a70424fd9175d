"""What a downloaded file must not be, told from its first bytes, and its hashes. Loads nothing heavy."""

import hashlib
import re
import zipfile
from pathlib import Path

HEAD = 512  # bytes that the checks below want to see
_MARKUP = re.compile(rb"\s*<[!?/a-zA-Z]")
_POINTER = b"version https://git-lfs"


def is_markup(head: bytes) -> bool:
    """Whether bytes begin like an HTML (or XML) page, as servers send instead of a file when something is wrong."""
    return _MARKUP.match(head.removeprefix(b"\xef\xbb\xbf")) is not None


def not_a_file(head: bytes) -> str:
    """What the first bytes show instead of a file's content and what to do, or "" if they may be its content."""
    if not head.strip():
        return "is empty (a failed download?); get it again"
    if is_markup(head):
        return "is an HTML page (a failed download?); download the file itself"
    if head.lstrip().startswith(_POINTER):
        return "is a git-lfs pointer, not the content; run git lfs pull"
    return ""


def is_cut_zip(file: Path) -> bool:
    """Whether a file begins as a zip archive (as torch and NumPy write) but has not the index at its end."""
    return read_head(file).startswith(b"PK\x03\x04") and not zipfile.is_zipfile(file)


def read_head(file: Path) -> bytes:
    """The first bytes of a file."""
    with file.open("rb") as stream:
        return stream.read(HEAD)


def hashes(file: Path, *, md5: bool = False) -> tuple[str, str]:
    """The sha256 of a file in hex, and its md5 if that is wanted (else ""), read once."""
    first, second = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            first.update(block)
            if md5:
                second.update(block)
    return first.hexdigest(), second.hexdigest() if md5 else ""
