"""Reading what torch saved, checked before a byte of it is unpickled, and unpickled only as far as it is trusted."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from robustkit.cache.checks import not_a_file, read_head
from robustkit.errors import UsageError
from robustkit.models.sources.trust import trusted

MAGIC = (b"PK\x03\x04", b"\x80")  # torch.save's zip, and the pickle that it wrote before torch 1.6
_REFUSED = re.compile(r"GLOBAL (\S+)|Unsupported class (\S+)")


class BrokenError(UsageError):
    """A file is no checkpoint, or only the beginning of one."""


def broken(file: Path) -> str:
    """What the bytes show to be wrong with a checkpoint, or "" (a pickle that was cut short does not show)."""
    head = read_head(file)
    if problem := not_a_file(head):
        return problem
    if not head.startswith(MAGIC):
        return f"begins with {head[:8]!r}, which no file saved by torch does"
    if head.startswith(MAGIC[0]) and not zipfile.is_zipfile(file):
        return "is a zip archive that was cut short (a failed download?); get it again"
    return ""


def read(file: Path) -> object:
    """What torch.save wrote, on the CPU. Code in it runs only inside `trusting(True)`.

    Raises:
        BrokenError: if it is no checkpoint, or only the beginning of one.
        UsageError: if it holds more than weights and is not trusted.
    """
    if problem := broken(file):
        raise BrokenError(f"{file} {problem}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of formats that it still reads
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can make it raise anything
        refused = _REFUSED.search(str(error))
        if not (isinstance(error, pickle.UnpicklingError) and refused):
            raise BrokenError(f"{file} is no checkpoint that torch can read (cut short?): {_line(error)}") from error
        if not trusted():
            raise UsageError(
                f"{file} holds more than weights: it needs {refused[1] or refused[2]}, and unpickling that could run "
                "any code; if you trust its author, add --trust (trust=True in Python)"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:  # the code in a pickle can raise anything
        raise UsageError(f"{file} does not unpickle: {_line(error)}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
