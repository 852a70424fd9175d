"""The facts of eighteen runs of every kind, as hashes a column: bit-identical before and after what must change none.

    python -m benchmarks.golden_facts --out facts.json            write them
    python -m benchmarks.golden_facts --against facts.json        name what differs; exit 1 if anything does

Facts depend on the processor and on torch, so the file is made and compared on one machine.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

import robustkit

AT, N = "digits-cnn-at", 96


@dataclass(frozen=True)
class Cheat:
    """Leaves the ball on every third sample: violations are facts too."""

    norms, goal, access = frozenset({"linf"}), "bounded", "white-box"

    def cost(self, classes: int) -> tuple[int, int]:
        """One pass."""
        return (1, 0)

    def __call__(self, case: Any) -> Any:
        """Random images, some of them outside."""
        adv = case.threat.sample(case.x, case.draws)
        third = case.draws.uniform((1,))[:, 0] < 1 / 3
        return torch.where(third[:, None, None, None], 1 - case.x, adv)


@dataclass(frozen=True)
class Sampled(Cheat):
    """The best of a few random images of the ball."""

    norms: ClassVar = frozenset({"linf", "l2", "l1", "l0"})

    def __call__(self, case: Any) -> Any:
        """The last of them; the judge keeps the best."""
        for stream in range(8):
            adv = case.threat.sample(case.x, case.draws.at(stream))
            case.submit(adv)
        return adv


def of_run(record: Any) -> dict[str, Any]:
    tables = {f"samples.{k}": v for k, v in record.samples.items()} | {
        f"attacks.{k}": v for k, v in record.attacks.items()
    }
    return {
        **{name: hashed(values) for name, values in tables.items()},
        "flags": digest(record.flags),
        "errors": digest(record.errors),
        "audit": digest(record.audit and {**record.audit}),
        "counts": str(record.counts),
    }


def of_transfer(record: Any) -> dict[str, Any]:
    found = {
        f"{table}.{k}": hashed(v)
        for table in ("samples", "attacks", "transfer")
        for k, v in getattr(record, table).items()
    }
    return {**found, "flags": digest(record.flags), "errors": digest(record.errors)}


def hashed(values: Any) -> str:
    values = np.asarray(values)
    raw = values.tobytes() if values.dtype.kind not in "OU" else "\x1f".join(map(str, values.tolist())).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def evaluate(*attack: Any, **more: Any) -> dict[str, Any]:
    model, data = more.pop("model", AT), more.pop("data", "digits")
    return of_run(
        robustkit.evaluate(model, data, list(attack) if len(attack) > 1 else attack[0], **{"n": N, "eps": 0.2, **more})
    )


def sweep() -> dict[str, Any]:
    first = robustkit.evaluate(AT, "digits", "apgd:steps=10+square:queries=50", eps=0.1, n=N)
    second = robustkit.evaluate(AT, "digits", "apgd:steps=10+square:queries=50", eps=0.2, n=N, carry=first)
    return {f"1.{k}": v for k, v in of_run(first).items()} | {f"2.{k}": v for k, v in of_run(second).items()}


def transfer() -> dict[str, Any]:
    return of_transfer(
        robustkit.transfer(
            ["digits-cnn", "digits-teacher"],
            [AT, "digits-trades"],
            ["mi:steps=5", "mi-cwa:steps=3", "apgd:steps=10"],
            "digits",
            sets={"one": ["digits-cnn"], "both": ["digits-cnn", "digits-teacher"]},
            eps=0.2,
            n=N,
            target="random",
        )
    )


def corruptions() -> dict[str, Any]:
    from robustkit.corruptions import evaluate_corruptions

    record = evaluate_corruptions("digits-cnn", "digits", ["gaussian-noise", "contrast", "pixelate"], (1, 3), n=N)
    return {"cells": digest([list(c) for c in record.cells]), "clean": digest(list(record.clean))}


def certificate() -> dict[str, Any]:
    from robustkit.certificates.smoothing import evaluate_certificate

    record = evaluate_certificate("digits-cnn", "digits", sigma=0.25, draws=500, n=12)
    return {"images": digest([[i.index, i.label, i.decision, i.radius] for i in record.images])}


RUNS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "linf-autoattack": lambda: evaluate("autoattack", n=64),
    "linf-pgd-saved-small-shards": lambda: evaluate(
        "fgsm+pgd:steps=5,restarts=2", shard_size=40, tile=16, batch_size=32
    ),
    "l2": lambda: evaluate("apgd:steps=10+fab:steps=5+cw:steps=10,searches=2", norm="l2", eps=1.0),
    "l1": lambda: evaluate("apgd:steps=10+square:queries=50", norm="l1", eps=8),
    "l0": lambda: evaluate(Sampled(), norm="l0", eps=30),
    "targeted-random": lambda: evaluate("apgd:steps=10,restarts=2+square:queries=30", target="random"),
    "targeted-least-likely": lambda: evaluate("pgd:steps=10", target="least-likely", quantize="8bit"),
    "randomised": lambda: evaluate(
        "apgd:steps=5+fgsm", model="digits-cnn", defense="random-resize-pad", n=40, draws=5, quantize="8bit", eps=0.1
    ),
    "ensemble-mora": lambda: evaluate("mora:steps=5+apgd:steps=5", model="digits-dverge", eps=0.1),
    "foreign": lambda: evaluate("torchattacks/PGD:steps=5+foolbox/LinfBasicIterativeAttack:steps=5", eps=0.1),
    "violations": lambda: evaluate(Cheat(), "fgsm", n=64, shard_size=32, tile=16),
    "sweep": sweep,
    "audit": lambda: evaluate("apgd:steps=20", n=32, audit=True),
    "audit-defended": lambda: evaluate(
        "apgd:steps=10", model="digits-cnn", defense="bit-depth:bits=2", n=24, eps=0.1, audit=True
    ),
    "adaptive": lambda: evaluate("adaptive:budget=quick", model="digits-self-ensemble", n=8, eps=0.1, draws=3),
    "transfer": transfer,
    "corruptions": corruptions,
    "certificate": certificate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, run in RUNS.items():
        if asked.only and name not in asked.only.split(","):
            continue
        found[name] = run()
        print(name, found[name].get("counts", ""), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if asked.against:
        known = json.loads(asked.against.read_text())
        other = [
            f"{name}: {column}"
            for name, facts in found.items()
            for column in sorted({*facts, *known[name]})
            if facts.get(column) != known[name].get(column)
        ]
        print("\n".join(["differs:", *other]) if other else f"the facts of {len(found)} runs are bit-identical")
        sys.exit(bool(other))


if __name__ == "__main__":
    main()
