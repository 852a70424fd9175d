"""What a path holds, in words, and what to do with it: for a reader that wanted another kind of record. No torch."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from robustkit.errors import UsageError
from robustkit.records import schema

_RESUME = "run its command again to continue it"
_PAGES = (".html", ".md", ".tex", ".csv", ".parquet", ".safetensors", ".npz")


class _Kind(NamedTuple):
    """A kind of folder: the schema of what is written last, what it is called, and what to do with it."""

    schema: str
    called: str
    advice: str


_BY_FILE: Mapping[str, _Kind] = {  # a study's and a sweep's folder hold runs besides
    "study.json": _Kind(schema.STUDY, "a study", "robustkit show takes it whole; its runs are below {place}/runs"),
    "sweep.json": _Kind(
        schema.SWEEP, "a sweep over eps", "give the folder of one of its runs, {place}/eps-01 …"
    ),
    "transfer.json": _Kind(
        schema.TRANSFER, "a transfer run", "robustkit show, report and plot transfer take it"
    ),
    "corruptions.json": _Kind(
        schema.CORRUPTIONS, "a corruption run",
        "robustkit show and report take it, and corruptions --baseline {quoted} compares with it",
    ),
    "certificate.json": _Kind(
        schema.CERTIFIED, "a certificate", "robustkit show and report take it"
    ),
    "bounds.json": _Kind(schema.BOUNDS, "a run of bounds", "robustkit show and report take it"),
    "audit.json": _Kind(schema.AUDITED, "an audit", "robustkit show and report take it"),
    "run.json": _Kind(schema.RUN, "a run", "robustkit show, report, compare, plot and gate --run take it"),
    "card.json": _Kind("", "a trained network", "evaluate it: robustkit eval --model {model}"),
    "recipe.json": _Kind("", "a training that is not finished", _RESUME),
    "board.toml": _Kind("", "a leaderboard", "robustkit leaderboard render {quoted}"),
}  # fmt: skip


def refuse(path: Path, wanted: str) -> UsageError:
    """Why a path is no `wanted` ("run", "transfer run"), by what it is, and what to do."""
    if not path.exists():
        near = difflib.get_close_matches(path.name, _siblings(path), n=1, cutoff=0.6)
        hint = f"; did you mean {path.parent / near[0]}?" if near else f"; give the folder of a {wanted}"
        return UsageError(f"no run folder at {path}: there is nothing of that name{hint}")
    if path.is_file():
        return UsageError(f"{path} is {_file(path)}")
    if (kind := _unfinished(path)) is not None:
        return UsageError(f"the {kind.called.removeprefix('a ')} in {path} is not finished; {_RESUME}")
    found = next((each for name, each in _BY_FILE.items() if (path / name).is_file()), None)
    if found is not None and found.called.removeprefix("a ") != wanted:
        asked = "run of eval" if wanted == "run" else wanted
        return UsageError(f"{path} holds {found.called}, and a {asked} is needed; {_advice(found, path)}")
    what = "holds nothing that robustkit wrote" if any(path.iterdir()) else "is empty"
    return UsageError(f"{path} {what}; give the folder of a {wanted}, as --out or 'in …' named it")


def _unfinished(path: Path) -> _Kind | None:
    """The kind of run that was begun in a folder and has no result there."""
    if any((path / name).is_file() for name in _BY_FILE if name != "recipe.json"):
        return None
    if any((path / "eps-01" / name).is_file() for name in ("job.json", "run.json")):
        return _BY_FILE["sweep.json"]
    kind = schema_of(path / "job.json")
    return next((each for each in _BY_FILE.values() if kind and each.schema == kind), None)


def _file(path: Path) -> str:
    """What a file is, and what to give in its place."""
    if is_part(path):
        return f"only a part of what lies in a folder; give the folder: {path.parent}"
    if schema_of(path) == schema.BASELINE:
        return "a baseline; robustkit compare and gate take it, and its run's folder the others"
    return "no folder; give the folder of a run"


def is_part(path: Path) -> bool:
    """Whether a file is, by its name, one of those that lie in a run's folder."""
    return path.name in (*_BY_FILE, "job.json") or path.suffix in _PAGES


def schema_of(file: Path) -> str:
    """What a JSON file says it is; empty if it is none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(data.get("schema", "")) if isinstance(data, dict) else ""


def _siblings(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []


def _advice(kind: _Kind, path: Path) -> str:
    model = str(path) if path.is_absolute() or str(path).startswith(".") else f"./{path}"
    return kind.advice.format(place=path, quoted=quote(str(path)), model=quote(model))
