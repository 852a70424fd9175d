"""Baselines: the record of a run in one small JSON file that is kept with the code, a sample a line.

Distances and margins are left out, and so is an attack's violation on a sample that a later attack broke.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records import consistency, places, schema, seal
from robustkit.records.files import dumps, read_json, write_text
from robustkit.records.findings import INVALID, stored
from robustkit.records.folder import load_run
from robustkit.records.run import RunRecord
from robustkit.records.schema import BROKE, BROKEN, ROBUST, SURVIVED, WRONG, Columns

COLUMNS = tuple(column.name for column in (*schema.BASELINE_SAMPLES, *schema.BASELINE_COSTS))
_DTYPES = {column.name: column.dtype for column in (*schema.BASELINE_SAMPLES, *schema.ATTACKS)}
_JOB = ("model", "model_sha256", "probe_sha256", "data", "attack", "attacks", "attack_sources", "norm", "eps", "target",
        "seed", "outputs", "device", "threads", "tile", "precision", "versions")  # fmt: skip


def save(record: RunRecord, path: Path, entry: str = "") -> None:
    """Write a record as a baseline; `forwards` and `backwards` of a sample hold one number for each attack it met.

    `entry` is its name on a board, if it is for one.

    Raises:
        UsageError: for a run of a sweep, which did not attack what a smaller eps broke.
        NotEstablishedError: if its robust accuracy is not established, or its audit is invalid.
    """
    if record.job.get("carried"):
        raise UsageError(
            "a run of a sweep is no baseline: what a smaller eps broke was not attacked; run its eps alone"
        )
    if record.robust_accuracy is None:
        raise NotEstablishedError(f"no baseline was written to {path}: {record.why_no_robust_accuracy}")
    if record.verdict == INVALID:
        raise NotEstablishedError(f"no baseline was written to {path}: the audit says {record.warning}")
    costs: dict[int, tuple[list[int], list[int]]] = {int(i): ([], []) for i in record.samples["index"]}
    for index, *paid in _rows(record.attacks, ("index", "forwards", "backwards")):
        for column, passes in zip(costs[index], paid, strict=True):
            column.append(passes)
    rows = [[*facts, *costs[facts[0]]] for facts in _rows(record.samples, COLUMNS[:5])]
    head = {
        "schema": schema.BASELINE,
        **({"entry": entry} if entry else {}),
        "job": {key: value for key, value in record.job.items() if key not in ("indices", "id")},
        "environment": {key: record.environment[key] for key in ("device",) if key in record.environment},
        "summary": {
            "n": record.n,
            "clean_accuracy": float(record.clean_accuracy),
            "robust_accuracy": float(record.robust_accuracy),
            "counts": record.counts,
        },
        "seconds": {name: round(value, 3) for name, value in record.seconds.items()},
        "flags": list(record.flags),
        **({"audit": dict(record.audit)} if record.audit else {}),
        **_proofs(record),
        "columns": COLUMNS,
    }
    head[seal.DIGEST] = seal.sealed({**head, "samples": rows})[seal.DIGEST]
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    opened = dumps(head).removesuffix("\n}\n")
    write_text(path, f'{opened},\n "samples": [\n{lines}\n ]\n}}\n')


def _proofs(record: RunRecord) -> dict[str, Any]:
    """How samples were proved, and which; nothing without certificates."""
    if record.certified_accuracy is None or record.certificates is None:
        return {}
    proved = record.samples["index"][record.certified].tolist()
    return {"certificates": {**record.certificates, "proved": proved}}


def load(path: Path) -> RunRecord:
    """The record in a baseline file.

    Raises:
        UsageError: if it cannot be read, is no baseline, is not as it was written, or contradicts itself.
    """
    return load_entry(path)[0]


def load_entry(path: Path) -> tuple[RunRecord, str]:
    """The record in a baseline file, and its name on a board, empty if it has none.

    Raises:
        UsageError: as `load`.
    """
    if path.is_dir() or places.is_part(path):
        folder = path if path.is_dir() else path.parent
        raise UsageError(
            f"{path} is no baseline; make one of a run: robustkit gate --baseline FILE.json --update --run "
            f"{quote(str(folder))}"
        )
    data = read_json(path, ("job", "environment", "seconds", "flags", "columns", "samples"), schema.BASELINE)
    with consistency.readable(path):
        return _record(data, path), str(data.get("entry", ""))


def _record(data: Mapping[str, Any], path: Path) -> RunRecord:
    if missing := [key for key in _JOB if key not in data["job"]]:
        raise UsageError(f"{path} is no robustkit baseline: its job lacks {', '.join(missing)}")
    if tuple(data["columns"]) != COLUMNS or not data["samples"]:
        raise UsageError(f"{path} is no robustkit baseline: it needs samples, with the columns {', '.join(COLUMNS)}")
    names, proofs = data["job"]["attacks"], data.get("certificates")
    proved = set(proofs["proved"]) if proofs else set()
    met_by = []
    for number, row in enumerate(data["samples"]):
        met = _met(row, names, proofs["after"] if proofs and row[0] in proved else len(names))
        if met is None:
            raise UsageError(f"{path}: row {number} of the samples contradicts itself; write the baseline anew")
        index, _, _, broken_by, _, *paid = row
        met_by += [
            (index, name, BROKE if name == broken_by else SURVIVED, *cost)
            for name, *cost in zip(names[:met], *paid, strict=True)
        ]
    samples = _columns([row[:5] for row in data["samples"]], COLUMNS[:5])
    if proofs:
        samples["certified"] = np.isin(samples["index"], list(proved))
    record = RunRecord(
        job={**data["job"], "indices": samples["index"].tolist()},
        environment=data["environment"],
        samples=samples,
        attacks=_columns(met_by, ("index", "attack", "outcome", "forwards", "backwards")),
        seconds=data["seconds"],
        flags=data["flags"],
        audit=stored(data.get("audit")),
        certificates={key: value for key, value in proofs.items() if key != "proved"} if proofs else None,
        notes=() if seal.DIGEST in data else (f"{path.name} is {seal.UNSEALED}",),
    )
    if len(set(record.job["indices"])) != record.n:
        raise UsageError(f"{path} has a sample twice; write the baseline anew")
    if (counts := data.get("summary", {}).get("counts", record.counts)) != record.counts:
        raise UsageError(f"{path}: its summary counts {counts}, its samples {record.counts}; write the baseline anew")
    return record


def _met(row: Any, names: Sequence[str], all_: int) -> int | None:
    """How many attacks a sample met, by its row, of `all_` if it stands; None if the row contradicts itself."""
    try:
        _, _, status, broken_by, _, forwards, backwards = row
        met = 0 if status == WRONG else all_ if status == ROBUST else names.index(broken_by) + 1
    except (ValueError, TypeError):
        return None
    sound = status in (WRONG, BROKEN, ROBUST) and met == len(forwards) == len(backwards)
    named = bool(broken_by) == (status == BROKEN)
    paid = all(isinstance(passes, int) and passes >= 0 for passes in (*forwards, *backwards))
    return met if sound and named and paid else None


def _rows(columns: Columns, names: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    return zip(*(columns[name].tolist() for name in names), strict=True)


def _columns(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.array([row[k] for row in rows], dtype=_DTYPES[name]) for k, name in enumerate(names)}


def read(path: Path) -> RunRecord:
    """The record at a path: a run's folder, or a baseline file.

    Raises:
        UsageError: if there is neither.
    """
    if path.is_dir():
        return load_run(path)
    if not path.is_file() or places.is_part(path):
        raise places.refuse(path, "run")
    return load(path)
