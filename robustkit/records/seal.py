"""Whether what is stored is as it was written: a digest in each JSON file, and in it those of the files beside it.

A digest finds what a disk, a transfer or an editor changed. It stops nobody who writes it anew. Needs no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from robustkit.errors import UsageError
from robustkit.spec import digest

DIGEST, FILES = "digest", "files"
UNSEALED = "from before records had digests, so that nobody can tell whether it is as it was written"
AGAIN = "take it from a copy, or make it again"
REBUILD = "run its command again, which makes it anew from the journal there (with --fresh all is computed again)"


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON data with the digest of its content: the same content in another order or layout has the same."""
    return {**data, DIGEST: _content(data)}


def is_sealed(data: Mapping[str, Any], file: Path) -> bool:
    """Whether JSON data read from a file has a digest, as what older versions wrote has not.

    Raises:
        UsageError: if the digest is of another content.
    """
    if DIGEST not in data and FILES not in data:
        return False
    try:
        same = data.get(DIGEST) == _content(data)
    except ValueError:  # NaN, which nothing of ours writes
        same = False
    if not same:
        raise UsageError(f"{file} is not as it was written: its content has another digest; {AGAIN}")
    return True


def check_file(path: Path, expected: str, what_to_do: str = AGAIN) -> None:
    """Refuse a file that is not as it was written.

    Raises:
        UsageError: if its bytes have another sha256, or it cannot be read.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}; {what_to_do}") from error
    if found != expected:
        raise UsageError(f"{path} is not as it was written: its sha256 is another; {what_to_do}")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_before(file: BinaryIO, stop: int) -> str:
    """sha256 of a file's first `stop` bytes."""
    found = hashlib.sha256()
    while stop > 0 and (chunk := file.read(min(stop, 1 << 20))):
        found.update(chunk)
        stop -= len(chunk)
    return found.hexdigest()


def _content(data: Mapping[str, Any]) -> str:
    """Of the data as a reader will have it: tuples are lists then, and keys texts."""
    return digest(json.loads(json.dumps({key: value for key, value in data.items() if key != DIGEST})))
