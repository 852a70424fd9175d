"""Where a command's output goes: stdout is for the result, stderr for progress and for what a model prints."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from robustkit import __version__
from robustkit.cli import options
from robustkit.errors import ExitCode, RobustkitError, UsageError

RUNS = Path("robustkit-runs")
FILES = "robustkit/files/1"  # the schema of a command's output that is what it wrote


class Interrupted(RobustkitError):
    """Ctrl-C stopped a command; the text says what is kept."""

    exit_code = ExitCode.INTERRUPTED


@contextlib.contextmanager
def interruptible(folders: Sequence[Path]) -> Iterator[None]:
    """Say of Ctrl-C within it that the command continues when it is run again, from the first of `folders` there is.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = next((folder for folder in folders if folder.is_dir()), None)
        text = f"what was computed is kept in {kept}; run the same command to continue" if kept else "nothing is kept"
        raise Interrupted(f"interrupted; {text}") from None


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
