"""The audit on a zoo of broken defenses and on honest networks: does it find the first, and leave the others alone?

    python -m benchmarks.audit broken --half held-out
    python -m benchmarks.audit honest --half held-out

One Markdown row each, and one JSON line with the values of all checks in .benchmarks/. What is not given away by the
audit must be broken by `adaptive` down to the bare network, which is run for those alone.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import robustkit
from benchmarks import kit, masking_zoo
from benchmarks.masking_variations import VARIATIONS
from robustkit.audit.run import audit
from robustkit.datasets import resolve

CACHE = Path(".benchmarks")
N, FEW = 128, 64  # digits, and images of the kit
WHITE_BOX = "(apgd:steps=50)+(apgd:loss=dlr-targeted,steps=50)"
NAIVE = "pgd"


def robust(model, data, n, eps, attack):
    """The robust accuracy in percent on the first n images, or a dash where it is not established."""
    found = robustkit.evaluate(model, data, attack, eps=eps, n=n, doctor=False).robust_accuracy
    return f"{100 * float(found):.1f}" if found else "–"


def judged(found):
    """The names of the checks that decided."""
    return (
        ", ".join(f"{one.name} {one.outcome}" for one in found.checks if one.outcome in ("suspect", "invalid")) or "–"
    )


def kept(kind, half, name, found, seconds):
    """Keep every value, for the report."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "audit.jsonl").open("a", encoding="utf-8") as file:
        row = {"kind": kind, "half": half, "name": name, "seconds": seconds, "audit": found.to_json()}
        file.write(json.dumps(row) + "\n")


def broken(half, only):
    """A row for each broken defense."""
    print("| defense | bare % | clean % | PGD-40 % | verdict | because | adaptive % | CPU s |\n" + "|---" * 8 + "|")
    halves = {"calibration": masking_zoo.CALIBRATION, "held-out": masking_zoo.HELD_OUT, "variations": VARIATIONS}
    for one in halves[half]:
        if only not in one.name:
            continue
        n = N if one.images == "digits" else FEW
        data = one.data(n)
        x, y = resolve(data).batch(range(n))
        model, began = one.make(), time.process_time()
        found = audit(model, data, eps=one.eps, n=n)
        seconds = time.process_time() - began
        kept("broken", half, one.name, found, seconds)
        clean = 100 * float((model(x).argmax(1) == y).double().mean())
        where = (data, n, one.eps)
        adaptive = robust(model, *where, "adaptive:budget=quick") if found.verdict == "valid" else "not needed"
        cells = (one.name, robust(one.bare(), *where, WHITE_BOX), f"{clean:.1f}", robust(model, *where, NAIVE),
                 found.verdict, judged(found), adaptive, f"{seconds:.0f}")  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def honest(half, only):
    """A row for each honest network."""
    print("| network | norm, eps | n | stands % | verdict | because | CPU s |\n" + "|---" * 7 + "|")
    for one in {"calibration": masking_zoo.HONEST_CALIBRATION, "held-out": masking_zoo.HONEST_HELD_OUT}[half]:
        if only not in one.name or (one.model is None and not (kit.ROOT / "manifest.json").is_file()):
            continue
        began = time.process_time()
        found = audit(one.make(), one.data(), defense=one.defense, norm=one.norm, eps=one.eps, n=one.n)
        seconds = time.process_time() - began
        kept("honest", half, f"{one.name} {one.defense}".strip(), found, seconds)
        stands = next(100 * check.series.y[-1] for check in found.checks if check.name == "step-convergence")
        name = f"{one.name} behind {one.defense}" if one.defense else one.name
        cells = (name, f"{one.norm} {one.eps:.4g}", str(one.n), f"{stands:.1f}", found.verdict, judged(found),
                 f"{seconds:.0f}")  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["broken", "honest"])
    parser.add_argument("--half", choices=["calibration", "held-out", "variations"], required=True)
    parser.add_argument("--only", default="", help="those with this in their name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"broken": broken, "honest": honest}[given.kind](given.half, given.only)


if __name__ == "__main__":
    main()
