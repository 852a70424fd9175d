"""From the facts of a transfer run to the columns of its record."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robustkit.engine.judge import gathered
from robustkit.records.evidence import IDLE, idly
from robustkit.records.schema import VIOLATED
from robustkit.records.transfer import CLEAN, RESISTED, SUCCESS
from robustkit.records.transfer_folder import Part as Kind
from robustkit.transfers.run import UNDECIDED, Bench, Facts

Found = Mapping[Kind, Mapping[tuple[str, ...], Facts]]  # joined over the shards, by `Part.key`


def samples(bench: Bench, found: Found) -> Facts:
    """One row a sample, with what each model says of it unattacked."""
    clean = {CLEAN + name: facts["prediction"] for (name,), facts in found["clean"].items()}
    return {
        "index": np.array(bench.samples.indices, dtype=np.int64),
        "label": bench.samples.labels.numpy().astype(np.int64),
        "sha256": np.array(bench.samples.hashes, dtype=np.object_),
        **clean,
    }


def attacks(bench: Bench, found: Found) -> Facts:
    """One row a (surrogate set, attack, sample)."""
    names = ("target", "violated", "distance", "forwards", "backwards")
    return _stacked(bench, {key: {n: facts[n] for n in names} for key, facts in found["adversarials"].items()})


def transfer(bench: Bench, found: Found) -> Facts:
    """One row a (surrogate set, attack, victim, sample)."""
    label = bench.samples.labels.numpy()
    blocks: dict[tuple[str, ...], Facts] = {}
    for (surrogates, attack, victim), facts in found["answers"].items():
        made, prediction = found["adversarials"][surrogates, attack], facts["prediction"]
        hit = prediction == made["target"] if bench.target else prediction != label
        outcome = np.where(hit, SUCCESS, RESISTED).astype(np.object_)
        outcome[prediction == UNDECIDED] = VIOLATED
        blocks[surrogates, attack, victim] = {
            "outcome": outcome,
            "clean_wrong": found["clean"][victim,]["prediction"] != label,
            "prediction": prediction,
            "distance": made["distance"],
        }
    return _stacked(bench, blocks)


def seconds(found: Found) -> dict[str, dict[str, float]]:
    """The wall time of each attack, by surrogate set."""
    times: dict[str, dict[str, float]] = {}
    for (surrogates, attack), facts in found["adversarials"].items():
        times.setdefault(surrogates, {})[attack] = round(sum(facts["seconds"].tolist()), 3)
    return times


def errors(bench: Bench, found: Found) -> list[dict[str, Any]]:
    """What broke the rules, and on which samples; `victim` is empty where the attack did."""
    rows: list[tuple[tuple[str, str, str], str, int]] = []
    for (surrogates, attack), facts in found["adversarials"].items():
        for index, reason in zip(bench.samples.indices, facts["reason"].tolist(), strict=True):
            rows += [((surrogates, attack, ""), reason, index)] if reason else []
    for (surrogates, attack, victim), facts in found["answers"].items():
        undecided = (facts["prediction"] == UNDECIDED) & ~found["adversarials"][surrogates, attack]["violated"]
        for index in np.array(bench.samples.indices)[undecided].tolist():
            reason = "the victim's outputs are not finite"
            rows.append(((surrogates, attack, victim), reason, index))
    return [
        {"surrogates": surrogates, "attack": attack, "victim": victim, "message": message, "indices": sorted(indices)}
        for ((surrogates, attack, victim), message), indices in gathered(rows).items()
    ]


def idle(found: Found) -> list[dict[str, Any]]:
    """What a reader must know of attacks that did nothing."""
    notes = []
    for (surrogates, attack), facts in found["adversarials"].items():
        here = ~facts["violated"]
        text = idly(
            f"{attack} on {surrogates}", facts["distance"][here], (facts["forwards"] + facts["backwards"])[here]
        )
        notes += [{"kind": IDLE, "message": text}] if text else []
    return notes


def flags(bench: Bench) -> list[dict[str, Any]]:
    """What a reader must know of the models and the samples."""
    on = "one draw for" if bench.draws == 1 else f"the vote of {bench.draws} draws on"
    noisy = f"gives different outputs for the same image; its rates rest on {on} each image, the same for all attacks"
    found: list[dict[str, Any]] = []
    for name, model in bench.models.items():
        if model.subject.facts.randomised:
            found.append({"kind": "randomised", "model": name, "message": f"{name} {noisy}"})
    for name, model in bench.models.items():
        found += [{**flag, "model": name, "message": f"{name}: {flag['message']}"} for flag in model.subject.flags
                  if flag["kind"] in ("image-size", "weights", "card")]  # fmt: skip
    if left_out := bench.samples.left_out:
        n = len(bench.samples)
        text = f"{left_out} samples already of the target class {bench.target} are left out; n = {n} are evaluated"
        found.append({"kind": "left-out", "message": text})
    return found


def _stacked(bench: Bench, blocks: Mapping[tuple[str, ...], Facts]) -> Facts:
    """The columns of all parts, one below the other, behind the sample's index and the names in the part's key."""
    index = np.array(bench.samples.indices, dtype=np.int64)
    each = []
    for key, columns in blocks.items():
        names = zip(("surrogates", "attack", "victim"), key, strict=False)
        each.append({"index": index, **{n: np.full(len(index), of, dtype=np.object_) for n, of in names}, **columns})
    return {name: np.concatenate([block[name] for block in each]) for name in each[0]}
