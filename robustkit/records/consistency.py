"""Whether a record agrees with itself: what follows from its facts must be what it says. Needs no torch.

This finds what was edited with the digest made anew, or in a record from before digests, as far as the facts tell it.
Whether they are the truth, only another evaluation tells.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkit import spec
from robustkit.errors import UsageError
from robustkit.records.schema import (
    BROKE,
    BROKEN,
    OUTCOMES,
    ROBUST,
    STATUSES,
    UNKNOWN,
    VIOLATED,
    WRONG,
    Columns,
)
from robustkit.records.seal import AGAIN
from robustkit.records.transfer import CLEAN, RESISTED, SUCCESS
from robustkit.records.votes import reevaluations

if TYPE_CHECKING:
    from robustkit.records.run import RunRecord
    from robustkit.records.transfer import TransferRecord

_COUNTED = ("name", "attacked", "broken", "violated", "forwards", "backwards")  # of an attack, in the summary


@contextlib.contextmanager
def readable(where: Path) -> Iterator[None]:
    """Say of what a reader trips over, such as a key that is not there, that the record is none.

    Raises:
        UsageError: in place of it.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"{where} holds no whole record ({what}); {AGAIN}") from error


def check_run(record: "RunRecord", summary: Mapping[str, Any]) -> None:
    """Refuse a run that contradicts itself; `summary` is what its file says of the figures.

    Raises:
        UsageError: naming the first contradiction.
    """
    _refuse(record.folder or "", _run_faults(record, summary))


def check_transfer(record: "TransferRecord", summary: Mapping[str, Any]) -> None:
    """Refuse a transfer run that contradicts itself.

    Raises:
        UsageError: naming the first contradiction.
    """
    _refuse(record.folder or "", _transfer_faults(record, summary))


def _refuse(where: str, faults: Iterator[str]) -> None:
    fault = next(faults, "")
    if fault:
        raise UsageError(f"{where} contradicts itself: {fault}; {AGAIN}")


def _run_faults(record: "RunRecord", summary: Mapping[str, Any]) -> Iterator[str]:
    job, samples, attacks = record.job, record.samples, record.attacks
    yield from _identity(job)
    yield from _samples(job, samples)
    names = list(job["attacks"])
    for column, known, of in (
        ("status", STATUSES, samples),
        ("outcome", OUTCOMES, attacks),
        ("attack", names, attacks),
    ):
        if other := sorted(set(of[column].tolist()) - set(known)):
            yield f"{column} {other[0]!r} is none of {', '.join(known)}"
    for column in ("forwards", "backwards"):
        if (attacks[column] < 0).any():
            yield f"{column} are {attacks[column].min()} on a sample"
    if not np.isin(attacks["index"], samples["index"]).all():
        yield "an attack met a sample that is not there"
    yield from _met(record)
    yield from _noise(record)
    if "certified" in samples:
        low = ~(samples["bound"] > samples["needed"])
        for position in np.flatnonzero(samples["certified"] & low)[:1]:
            yield f"sample {samples['index'][position]} is proved by a bound that is not above what it needs"
        share = record.certified_accuracy
        if share is not None and dict(summary.get("certified_accuracy", share.to_json())) != share.to_json():
            yield "its summary has another certified accuracy than its samples"
    counts = summary.get("counts", record.counts)
    if dict(counts) != record.counts:
        yield f"its summary counts {dict(counts)}, its samples {record.counts}"
    computed = [row.to_json() for row in record.by_attack]
    for row, found in zip(summary.get("attacks", computed), computed, strict=True):
        if other := [key for key in _COUNTED if row[key] != found[key]]:
            yield f"{other[0]} of {found['name']} is {row[other[0]]} in its summary, {found[other[0]]} by its samples"


def _identity(job: Mapping[str, Any]) -> Iterator[str]:
    if job["id"] != spec.digest({key: value for key, value in job.items() if key != "id"}):
        yield "its job has another id than its content makes"


def _samples(job: Mapping[str, Any], samples: Columns) -> Iterator[str]:
    index = samples["index"].tolist()
    if index != list(job["indices"]) or len(set(index)) != len(index):
        yield f"its {len(index)} samples are not the {len(job['indices'])} of its job"
    if spec.digest([samples["sha256"].tolist(), samples["label"].tolist()]) != job["data_sha256"]:
        yield "the hashes and labels of its samples do not make its data_sha256"


def _met(record: "RunRecord") -> Iterator[str]:
    """Each attack meets what stands after those before it; how a sample ended follows from how they went."""
    job, samples, attacks = record.job, record.samples, record.attacks
    index, status = samples["index"], samples["status"]
    carried = samples["broken_at"] < job["eps"] if job.get("carried") else np.zeros(record.n, dtype=bool)
    ended, by, distance = np.where(status == WRONG, WRONG, ROBUST).astype("<U7"), [""] * record.n, samples["distance"]
    ended[carried] = BROKEN
    order = np.argsort(index)
    certified, after = _proofs(record)
    for step, name in enumerate(job["attacks"]):
        rows = np.flatnonzero(attacks["attack"] == name)
        at = order[np.searchsorted(index, attacks["index"][rows], sorter=order)]
        standing = np.flatnonzero(((ended == ROBUST) | (ended == UNKNOWN)) & ~carried & ~(certified & (step >= after)))
        if not np.array_equal(np.sort(at), standing):
            yield f"{name} met {len(at)} samples, which are not the {len(standing)} that stood"
            return
        outcome = attacks["outcome"][rows]
        for row, position in zip(rows[outcome == BROKE], at[outcome == BROKE], strict=True):
            by[position] = name
            reached = attacks["distance"][row]
            if not (reached == distance[position] or np.isnan([reached, distance[position]]).all()):
                yield f"sample {index[position]} has two distances"
            if reached > spec.limit(job["eps"]):
                yield f"sample {index[position]} is broken at distance {reached:g}, beyond eps {job['eps']:g}"
        ended[at[outcome == VIOLATED]] = UNKNOWN
        ended[at[outcome == BROKE]] = BROKEN
    for position in np.flatnonzero(certified & (ended != ROBUST) & (ended != UNKNOWN))[:1]:
        yield f"sample {index[position]} is proved robust, its attacks make it {ended[position]}"
    for position in np.flatnonzero(ended != status)[:1]:
        yield f"sample {index[position]} is {status[position]}, its attacks make it {ended[position]}"
    who = np.where(carried, samples["broken_by"], np.array(by, dtype=np.str_))
    for position in np.flatnonzero(who != samples["broken_by"])[:1]:
        said, made = str(samples["broken_by"][position]), str(who[position])
        yield f"sample {index[position]} is broken by {said!r}, its attacks say {made!r}"
    if "quantized_status" in samples:
        yield from _quantized(record, order)


def _proofs(record: "RunRecord") -> tuple[np.ndarray, int]:
    """Which samples are proved, and after how many attacks they were."""
    return record.certified, int(record.certificates["after"]) if record.certificates else len(record.job["attacks"])


def _quantized(record: "RunRecord", order: np.ndarray) -> Iterator[str]:
    samples, attacks = record.samples, record.attacks
    lost = attacks["index"][attacks["quantized"] == BROKE]
    ended = np.where(samples["status"] == WRONG, WRONG, ROBUST).astype("<U7")
    ended[order[np.searchsorted(samples["index"], lost, sorter=order)]] = BROKEN
    ended[samples["status"] == UNKNOWN] = UNKNOWN
    for position in np.flatnonzero(ended != samples["quantized_status"])[:1]:
        said = samples["quantized_status"][position]
        yield f"sample {samples['index'][position]} is {said} after rounding, its attacks make it {ended[position]}"


def _noise(record: "RunRecord") -> Iterator[str]:
    """A model that was voted on, or whose noise is known, is flagged as randomised, and its patterns are whole."""
    if (record.draws or record.job.get("noisy_sha256")) and not record.randomised:
        yield "its model was voted on as randomised, and no flag says so"
    if not record.draws:
        return
    whole = reevaluations(record.draws)
    for table, empty in ((record.samples, False), (record.attacks, True)):
        for pattern in set(table["draws"].tolist()):
            if not (pattern == "" and empty) and (len(pattern) != whole or set(pattern) - {"0", "1"}):
                yield f"draws {pattern[:40]!r} are no pattern of {whole} draws"


def _transfer_faults(record: "TransferRecord", summary: Mapping[str, Any]) -> Iterator[str]:
    job, samples, attacks, told = record.job, record.samples, record.attacks, record.transfer
    yield from _identity(job)
    yield from _samples(job, samples)
    sets, labels, models = list(job["surrogates"]), list(job["attacks"]), list(job["models"])
    index = samples["index"].tolist()
    yield from _grid(attacks, ("surrogates", "attack", "index"), (sets, labels, index))
    yield from _grid(told, ("surrogates", "attack", "victim", "index"), (sets, labels, models, index))
    for column in ("forwards", "backwards"):
        if (attacks[column] < 0).any():
            yield f"{column} are {attacks[column].min()} on a sample"
    place = {value: row for row, value in enumerate(index)}
    label = samples["label"]
    target = {(s, a, i): t for s, a, i, t in _rows(attacks, "surrogates", "attack", "index", "target")}
    names = ("surrogates", "attack", "victim", "index", "outcome", "clean_wrong", "prediction")
    for surrogates, attack, victim, i, outcome, wrong, said in _rows(told, *names):
        at = place[i]
        hit = said == target[surrogates, attack, i] if job["target"] else said != label[at]
        right = VIOLATED if said == -1 else SUCCESS if hit else RESISTED
        if outcome != right or bool(wrong) != (samples[CLEAN + victim][at] != label[at]):
            yield f"of sample {i}, {victim} decides {said} under {attack}, which is not {outcome!r}"
    matrix = {(row["surrogates"], row["attack"], row["victim"]): row for row in summary.get("matrix", [])}
    for key, row in matrix.items():
        share, found = row["success_rate_of_all"], record.cells[key].of_all
        if (share and share["value"]) != (float(found) if found is not None else None):
            yield f"its summary has another success rate of {key[1]} on {key[2]} than its samples"


def _grid(columns: Columns, names: Sequence[str], axes: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Every combination has one row."""
    found = set(_rows(columns, *names))
    whole = int(np.prod([len(axis) for axis in axes]))
    inside = all(set(columns[name].tolist()) <= set(axis) for name, axis in zip(names, axes, strict=True))
    if len(found) != whole or len(columns[names[0]]) != whole or not inside:
        yield f"it has {len(columns[names[0]])} rows of {', '.join(names)}, not the {whole} of its job"


def _rows(columns: Columns, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(columns[name].tolist() for name in names), strict=True))
