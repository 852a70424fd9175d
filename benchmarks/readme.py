"""Puts measured tables into a README, between the marks that say what wrote them."""

from pathlib import Path

from robustkit.records.files import write_text


def write_between(file: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between the lines `begin` and `end` of a file."""
    before, found, rest = file.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{file} has no place for the tables: the lines {begin} and {end}")
    write_text(file, f"{before}{begin}\n\n{text}\n\n{end}{after}")
