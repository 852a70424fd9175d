"""Where a command's output goes: stdout is for the result, stderr for progress and for what a model prints."""

import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from robustkit import __version__
from robustkit.cli import options
from robustkit.errors import ExitCode, RobustkitError, Terminated, UsageError

RUNS = Path("robustkit-runs")
FILES = "robustkit/files/1"  # the schema of a command's output that is what it wrote
_NARROWEST = 20  # below that a terminal may break the lines itself


class Interrupted(RobustkitError):
    """Ctrl-C or SIGTERM stopped a command; the text says what is kept."""

    def __init__(self, how: KeyboardInterrupt, kept: str) -> None:
        ended = isinstance(how, Terminated)
        super().__init__(f"{'ended by SIGTERM' if ended else 'interrupted'}; {kept}")
        self.exit_code = ExitCode.TERMINATED if ended else ExitCode.INTERRUPTED


@contextlib.contextmanager
def interruptible(folders: Sequence[Path]) -> Iterator[None]:
    """Say of Ctrl-C and SIGTERM within it that the command continues when it is run again, from which of `folders`.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt as how:
        found = next((folder for folder in folders if folder.is_dir()), None)
        kept = f"what was computed is kept in {found}; run the same command to continue" if found else "nothing is kept"
        raise Interrupted(how, kept) from None


@contextlib.contextmanager
def computing(*, threads: int | None = None, quiet: bool = False) -> Iterator[None]:
    """Within it torch has so many threads, downloads are shown unless `quiet`, and what a model prints is on stderr."""
    from robustkit.report import download

    if threads:
        import torch

        torch.set_num_threads(threads)
    with download.shown(quiet=quiet), contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def line(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line of progress on stderr: each text replaces the one before; without a terminal, each has its own line."""
    terminal = sys.stderr.isatty()
    clear = "\r\x1b[K" if terminal else ""

    def show(text: str) -> None:
        if not quiet:
            click.echo(clear + text, nl=not terminal, err=True)

    try:
        yield show
    finally:
        if not quiet:
            click.echo(clear, nl=False, err=True)


def columns() -> int | None:
    """How wide the terminal is that stdout goes to, or what COLUMNS says; None for a pipe or a file."""
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def fitted(text: str, width: int | None) -> str:
    """A text whose lines are at most so wide: broken between a table's cells, else between words, and then indented."""
    if width is None:
        return text
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, max(width, _NARROWEST)))


def _pieces(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    now = " " * min(len(line) - len(line.lstrip()), width // 4)
    next_lines, done = now + "    ", []
    for cell in re.split(r" {2,}", line.strip()):
        gap = "  " if now.strip() else ""
        if len(now + gap + cell) <= width:
            now += gap + cell
            continue
        if gap:
            done.append(now)
            now = next_lines
        *full, now = textwrap.wrap(
            cell, width, initial_indent=now, subsequent_indent=next_lines, break_on_hyphens=False
        )  # fmt: skip
        done += full
    return [*done, now]


def as_json(data: Any) -> str:
    """A record as a person reads it, too; NaN is refused, as no JSON has it."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)


def enveloped(data: Mapping[str, Any], label: str | None = None) -> dict[str, Any]:
    """A command's JSON: what it is, who wrote it, what it is called; then the data, which bring their own `schema`."""
    return {
        "schema": data["schema"],
        "robustkit": __version__,
        "command": click.get_current_context().command_path,
        "label": options.given_label() if label is None else label,
        **{key: value for key, value in data.items() if key != "schema"},
    }


def tell(data: Mapping[str, Any], text: str, json_to: str | None, label: str | None = None) -> None:
    """The JSON where --json asks for it, in its envelope; the text, unless the JSON has taken stdout.

    `label` is that of what is told, where it is not the command's own.
    """
    if json_to == "-":
        click.echo(as_json(enveloped(data, label)))
    elif text:
        click.echo(text)
    if json_to and json_to != "-":
        write_json(enveloped(data, label), json_to)


def write_json(data: Mapping[str, Any], file: str) -> None:
    """Write what --json FILE asks for, whole or not at all."""
    from robustkit.records.files import write_text

    write_text(Path(file), as_json(data) + "\n")


def tell_run(measure: Callable[[Path | None], Any], out: Path | None, json_to: str | None) -> None:
    """Make a record with the folder of its run, see `options.resumable`, or write it to FILE.json; then tell it."""
    file = out if out is not None and out.suffix == ".json" and not out.is_dir() else None
    folder = None if file else out
    if file is not None and not file.parent.is_dir():
        raise UsageError(f"--out {file}: there is no folder {file.parent}")
    with interruptible([folder] if folder else []):
        record = measure(folder)
    if file is not None:
        record.save(file)
    tell(record.to_json(), record.summary() + (f"\nin {folder}" if folder else ""), json_to)


def folder_name(words: str, id_: str) -> str:
    """A run's name as a folder's: words that every file system takes, and the start of what identifies it."""
    safe = "".join(c if c.isalnum() or c in "._=" else "-" for c in words)
    return f"{safe[:120].strip('-.')}-{id_[:10]}"
