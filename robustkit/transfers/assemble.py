"""From the journal's facts of a transfer run to the columns of its record."""

from typing import Any

import numpy as np

from robustkit.records.schema import VIOLATED
from robustkit.records.transfer import CLEAN, RESISTED, SUCCESS
from robustkit.transfers.run import UNDECIDED, Run

Table = dict[str, np.ndarray]


def samples(run: Run) -> Table:
    """One row a sample, with what each model says of it unattacked."""
    clean = {CLEAN + name: _joined(facts, "prediction") for name, facts in run.clean.items()}
    return {
        "index": np.array(run.samples.indices, dtype=np.int64),
        "label": run.samples.labels.numpy().astype(np.int64),
        "sha256": np.array(run.samples.hashes, dtype=np.object_),
        **clean,
    }


def attacks(run: Run) -> Table:
    """One row a (surrogate set, attack, sample)."""
    index = np.array(run.samples.indices, dtype=np.int64)
    names = ("target", "violated", "distance", "forwards", "backwards")
    return _stacked(
        [
            {
                "index": index,
                "surrogates": _repeated(surrogates, len(index)),
                "attack": _repeated(attack, len(index)),
                **{name: _joined(facts, name) for name in names},
            }
            for (surrogates, attack), facts in run.made.items()
        ]
    )


def transfer(run: Run) -> Table:
    """One row a (surrogate set, attack, victim, sample)."""
    index, label = np.array(run.samples.indices, dtype=np.int64), run.samples.labels.numpy()
    blocks = []
    for (surrogates, attack, victim), facts in run.answers.items():
        made = run.made[surrogates, attack]
        prediction = _joined(facts, "prediction")
        hit = prediction == _joined(made, "target") if run.target else prediction != label
        outcome = np.where(hit, SUCCESS, RESISTED).astype(np.object_)
        outcome[prediction == UNDECIDED] = VIOLATED
        blocks.append(
            {
                "index": index,
                "surrogates": _repeated(surrogates, len(index)),
                "attack": _repeated(attack, len(index)),
                "victim": _repeated(victim, len(index)),
                "outcome": outcome,
                "clean_wrong": _joined(run.clean[victim], "prediction") != label,
                "prediction": prediction,
                "distance": _joined(made, "distance"),
            }
        )
    return _stacked(blocks)


def seconds(run: Run) -> dict[str, dict[str, float]]:
    """The wall time of each attack, by surrogate set."""
    found: dict[str, dict[str, float]] = {}
    for (surrogates, attack), facts in run.made.items():
        found.setdefault(surrogates, {})[attack] = round(sum(float(each["seconds"]) for each in facts), 3)
    return found


def errors(run: Run) -> list[dict[str, Any]]:
    """What broke the rules, and on which samples; `victim` is empty where the attack did."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for (surrogates, attack), facts in run.made.items():
        for index, reason in zip(run.samples.indices, _joined(facts, "reason").tolist(), strict=True):
            if reason:
                found.setdefault((surrogates, attack, "", reason), []).append(index)
    for (surrogates, attack, victim), facts in run.answers.items():
        undecided = (_joined(facts, "prediction") == UNDECIDED) & ~_joined(run.made[surrogates, attack], "violated")
        for index in np.array(run.samples.indices)[undecided].tolist():
            reason = "the victim's outputs are not finite"
            found.setdefault((surrogates, attack, victim, reason), []).append(index)
    return [
        {"surrogates": surrogates, "attack": attack, "victim": victim, "message": message, "indices": sorted(indices)}
        for (surrogates, attack, victim, message), indices in found.items()
    ]


def flags(run: Run, n: int, left_out: int) -> list[dict[str, Any]]:
    """What a reader must know of the models and the samples."""
    found: list[dict[str, Any]] = [
        {
            "kind": "randomised",
            "model": name,
            "message": f"{name} gives different outputs for the same image; its rates rest on one draw for each image, "
            "the same for all attacks",
        }
        for name, model in run.models.items()
        if model.subject.facts.randomised
    ]
    for name, model in run.models.items():
        found += [{**flag, "model": name, "message": f"{name}: {flag['message']}"} for flag in model.subject.flags
                  if flag["kind"] == "image-size"]  # fmt: skip
    if left_out:
        text = f"{left_out} samples already of the target class {run.target} are left out; n = {n} are evaluated"
        found.append({"kind": "left-out", "message": text})
    return found


def _joined(facts: "list[Table]", name: str) -> np.ndarray:
    return np.concatenate([each[name] for each in facts])


def _repeated(text: str, n: int) -> np.ndarray:
    return np.full(n, text, dtype=np.object_)


def _stacked(blocks: "list[Table]") -> Table:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
