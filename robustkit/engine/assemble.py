"""From the facts of a run's shards to the columns of its record."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from robustkit.certificates import ladder
from robustkit.engine import proofs
from robustkit.engine.judge import BROKEN, VIOLATED, gathered
from robustkit.engine.shard import CLEAN, Bench, Facts
from robustkit.records import schema as record
from robustkit.records.folder import CERTIFIED

Parts = Mapping[tuple[int, int], Facts]  # by (shard, step)
_OUTCOMES = np.array(record.OUTCOMES)  # by the judge's codes


def columns(bench: Bench, parts: Parts) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]:
    """The samples' columns, the attacks' columns, and the seconds of each attack."""
    chosen = bench.opened.samples
    n = len(chosen)
    index = np.array(chosen.indices, dtype=np.int64)
    starts = {shard: shard * bench.shard_size for shard, step in parts if step == CLEAN}
    clean = {
        name: np.concatenate([parts[shard, CLEAN][name] for shard in sorted(starts)])
        for name in ("correct", "prediction", "margin", "target")
    }
    status = np.where(clean["correct"], record.ROBUST, record.WRONG).astype("<U7")
    quantized = status.copy()
    broken_by = np.full(n, "", dtype=np.object_)
    distance, broken_at = np.full(n, np.nan), np.full(n, np.nan)
    for position, i in enumerate(chosen.indices):
        if i in bench.carried:
            status[position] = record.BROKEN
            broken_by[position], distance[position], broken_at[position] = bench.carried[i]
    rows: list[dict[str, np.ndarray]] = []
    seconds: dict[str, float] = {}
    for step, named in enumerate(bench.attacks, start=1):
        for shard, start in sorted(starts.items()):
            facts = parts[shard, step]
            at = facts["position"].astype(np.int64) + start
            broken, violated = facts["outcome"] == BROKEN, facts["outcome"] == VIOLATED
            status[at[broken]] = record.BROKEN
            broken_by[at[broken]], broken_at[at[broken]] = named.name, bench.threat.eps
            distance[at[broken]] = facts["distance"][broken]
            open_rows = at[violated]
            status[open_rows[status[open_rows] == record.ROBUST]] = record.UNKNOWN
            quantized[at[facts["quantized"] == BROKEN]] = record.BROKEN
            rows.append(
                {
                    "index": index[at],
                    "attack": np.full(len(at), named.name, dtype=np.object_),
                    "outcome": _OUTCOMES[facts["outcome"].astype(np.int64)],
                    "distance": facts["distance"],
                    "margin": facts["margin"],
                    "forwards": facts["forwards"],
                    "backwards": facts["backwards"],
                    "prediction": facts["decision"],
                    **{name: facts[name] for name in ("flat", "first_loss", "last_loss")},
                    "log": facts["log"].astype(np.object_),
                    **({"quantized": _OUTCOMES[facts["quantized"].astype(np.int64)]} if bench.quantize else {}),
                    **({"draws": facts["draws"].astype(np.object_)} if bench.draws else {}),
                    **({name: facts[name] for name in ("ever", "expected")} if bench.draws else {}),
                }
            )
            seconds[named.name] = seconds.get(named.name, 0.0) + float(facts["seconds"].sum())
    samples = {
        "index": index,
        "label": chosen.labels.numpy().astype(np.int64),
        "status": status.astype(np.str_),
        "broken_by": broken_by.astype(np.str_),
        "distance": distance,
        "sha256": np.array(chosen.hashes, dtype=np.str_),
        "prediction": clean["prediction"],
        "margin": clean["margin"],
        "target": clean["target"],
        "broken_at": broken_at,
    }
    if bench.quantize:
        samples["quantized_status"] = np.where(status == record.UNKNOWN, record.UNKNOWN, quantized).astype(np.str_)
    if bench.draws:
        votes = [parts[shard, CLEAN]["draws"] for shard in sorted(starts)]
        samples["draws"] = np.concatenate(votes).astype(np.str_)
        samples["expected"] = np.concatenate([parts[shard, CLEAN]["expected"] for shard in sorted(starts)])
    if bench.opened.subject.facts.rejects:
        samples["refused"] = np.concatenate([parts[shard, CLEAN]["refused"] for shard in sorted(starts)])
    joined = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    for name in {"attack", "outcome", "draws", "log"} & joined.keys():
        joined[name] = joined[name].astype(np.str_)
    return samples, joined, seconds


def proved(bench: Bench, parts: Parts) -> dict[str, np.ndarray]:
    """The certificates' columns, as far as the shards have them; empty without proofs."""
    if bench.proving is None:
        return {}
    shards = sorted(shard for shard, step in parts if step == CERTIFIED)
    names = [column.name for column in record.CERTIFICATE_FACTS]
    return {name: np.concatenate([parts[shard, CERTIFIED][name] for shard in shards]) for name in names}


def certificates(bench: Bench, parts: Parts, checked: Facts | None) -> dict[str, np.ndarray]:
    """The certificates' columns and which of the proved samples were attacked all the same."""
    found = proved(bench, parts)
    if found:
        met = np.zeros(len(found["certified"]), dtype=np.bool_)
        if checked is not None:
            met[checked["position"]] = True
        found["checked"] = met
    return found


def how_proved(bench: Bench, parts: Parts, checked: Facts | None) -> dict[str, Any] | None:
    """What a record says of its proofs besides the samples' columns."""
    how = bench.proving
    if how is None:
        return None
    spent = sum(float(facts["seconds"].sum()) for (_, step), facts in parts.items() if step == CERTIFIED)
    return {
        "method": how.asked.method, "order": how.asked.order, "after": how.after,
        "tried": {"share": how.share, "passes": how.passes},
        "margin": f"{ladder.SHARE:g} (1 + S), S what a bound was summed from; empirical",
        "dtype": str(how.graph.dtype).removeprefix("torch."), "seconds": round(spent, 3),
        "check": {
            "attack": proofs.CHECK, "samples": 0 if checked is None else len(checked["position"]),
            "passes": 0 if checked is None else int(checked["forwards"].sum() + checked["backwards"].sum()),
        },
    }  # fmt: skip


def adversarial(bench: Bench, parts: Parts) -> Mapping[str, Any] | None:
    """The valid adversarial images of the broken samples, their indices and their originals, if they were kept."""
    if not bench.keep_adversarial:
        return None
    chosen = bench.opened.samples
    found: dict[int, np.ndarray] = {}
    for (shard, step), facts in sorted(parts.items()):
        if step <= CLEAN or "adv" not in facts:
            continue
        for position, adv in zip(facts["adv_position"], facts["adv"], strict=True):
            found[chosen.indices[int(position) + shard * bench.shard_size]] = adv
    place = {index: position for position, index in enumerate(chosen.indices)}
    clean = [chosen.batch(place[index], place[index] + 1)[0][0].numpy() for index in found]
    return {"index": np.array(list(found), dtype=np.int64), "adv": _stacked(found.values()), "clean": _stacked(clean)}


def errors(bench: Bench, parts: Parts) -> list[dict[str, Any]]:
    """Which rules each attack broke, and on which samples: in the order of shards, attacks and samples."""
    chosen = bench.opened.samples.indices
    rows = (
        (bench.attacks[step - 1].name, reason, chosen[position + shard * bench.shard_size])
        for (shard, step), facts in sorted(parts.items(), key=lambda part: part[0])
        if step > CLEAN
        for position, reasons in zip(facts["position"].tolist(), facts["reason"].tolist(), strict=True)
        for reason in reasons.splitlines()
    )
    return [
        {"attack": attack, "message": message, "indices": sorted(indices)}
        for (attack, message), indices in gathered(rows).items()
    ]


def _stacked(images: Iterable[np.ndarray]) -> np.ndarray:
    listed = list(images)
    return np.ascontiguousarray(np.stack(listed)) if listed else np.zeros((0, 1, 1, 1), dtype=np.float32)
