"""Published defenses that fell: what AutoAttack says of each, what `adaptive` leaves, and what it should.

    python -m benchmarks.fallen --out reports/fallen
    python -m benchmarks.fallen --out reports/fallen --only sap,hedge          (some of them)

Each defense is measured in three dresses. A row that was measured with the present code is not measured again, so a
killed command goes on, and several may share the work (each with its own --only). Networks and rows are kept in
.benchmarks/fallen.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import robustkit_attacks
import robustkit_defenses
import torch

import robustkit
from benchmarks.fallen import networks as nets
from benchmarks.fallen.by_hand import Known
from benchmarks.fallen.cases import CASES, HEAVY, Case
from benchmarks.fallen.page import write
from robustkit.models import capabilities
from robustkit.records import schema

DRESSES = ("declared", "undeclared", "sealed")
N, FEWER = 64, 32
RUNS = {"careless": "pgd:steps=40", "autoattack": "autoattack", "adaptive": "adaptive:budget=quick"}
SHORT = "autoattack:steps=50,targets=3,queries=1000"  # for what is heavy; as long as adaptive's own at this budget


def measured(name: str, dress: str, run: str) -> dict[str, Any]:
    """One row: what a run finds of a defense in a dress."""
    case, heavy = CASES[name], name in HEAVY
    network = case.network()
    asked = {"eps": case.eps, "n": FEWER if heavy else N, "doctor": False}
    attack = SHORT if heavy and run == "autoattack" else RUNS.get(run, "")
    began = time.process_time()
    if run == "by-hand":
        record = robustkit.evaluate(known(case, network, dress), case.data, list(case.by_hand), **asked)
    elif dress == "declared" and case.defense:
        record = robustkit.evaluate(
            network, case.data, attack, defense=case.defense(dress=dress), audit=run == "adaptive", **asked
        )
    else:  # as it would come from elsewhere: one module, of which nothing is known
        module = case.defense(dress=dress).protect(network) if case.defense else network
        record = robustkit.evaluate(module, case.data, attack, audit=run == "adaptive", **asked)
    checks = record.audit["checks"] if record.audit else []
    return {
        "n": record.n,
        "clean": 100 * float(record.clean_accuracy),
        "robust": left(record, expected=case.expected),
        "verdict": record.verdict if record.audit else "",
        "signs": [check["name"] for check in checks if check["outcome"] in ("suspect", "invalid")],
        "flags": sorted({flag["kind"] for flag in record.flags}),
        "forwards": sum(each.forwards for each in record.by_attack) / record.n,
        "backwards": sum(each.backwards for each in record.by_attack) / record.n,
        "seconds": time.process_time() - began,
        "why": record.why_no_robust_accuracy,
    }


def known(case: Case, network: torch.nn.Module, dress: str) -> torch.nn.Module:
    """The defense as the attack made by hand sees it."""
    if not case.defense:
        return network
    declared = case.defense(dress="declared").protect(network)
    judged = declared if dress == "declared" else case.defense(dress=dress).protect(network)
    return Known(judged, declared).eval()


def left(record: Any, *, expected: bool) -> float | None:
    """The robust accuracy in %, or of a mixture the expected one; what no attack could decide counts as standing."""
    if expected and record.randomised:
        return 100 * float(record.mean_accuracy.value)
    status = record.samples["status"]
    return 100 * float(((status == schema.ROBUST) | (status == schema.UNKNOWN)).sum()) / record.n


def code() -> str:
    """A hash of all code that decides the rows."""
    found = hashlib.sha256()
    roots = [Path(module.__file__).parent for module in (robustkit, robustkit_attacks, robustkit_defenses)]
    for root in (*roots, Path(__file__).parent):
        for file in sorted(root.rglob("*.py")):
            if file.name != "page.py" and "report" not in file.parts and "cli" not in file.parts:
                found.update(file.read_bytes())
    return found.hexdigest()[:16]


def wanted(case: Case, network: torch.nn.Module) -> list[tuple[str, str]]:
    """The rows of a case. Only `adaptive` looks at what is declared: the others run once for each function there is."""
    random = bool(case.defense) and capabilities.randomised(case.defense(dress="declared").protect(network))
    functions = ("declared", "sealed") if random else ("declared",)
    once = [(dress, run) for run in ("by-hand", "careless") for dress in functions]
    once += [(dress, "adaptive") for dress in (DRESSES if case.defense else functions)]
    return [*once, *((dress, "autoattack") for dress in functions)]


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="some of: " + ", ".join(CASES))
    parser.add_argument("--runs", default="", help="some of: by-hand, " + ", ".join(RUNS))
    parser.add_argument("--page", action="store_true", help="only write the page from the rows that there are")
    parser.add_argument("--any-code", action="store_true", help="take rows of other code too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    version, names = code(), [name for name in given.only.split(",") if name] or list(CASES)
    for name in () if given.page else names:
        case = CASES[name]
        network = case.network()
        for dress, run in wanted(case, network):
            if given.runs and run not in given.runs.split(","):
                continue
            file = nets.CACHE / "rows" / f"{name}-{dress}-{run}.json"
            if file.exists() and (given.any_code or json.loads(file.read_text())["code"] == version):
                continue
            row = {"name": name, "dress": dress, "run": run, "code": version, **measured(name, dress, run)}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row, indent=1))
            what = f"{name} {dress} {run}: {row['robust']:.1f} {row['verdict']} {','.join(row['signs'])}"
            print(f"{what} ({row['seconds']:.0f} s) {row['why']}", flush=True)
    write(given.out, [json.loads(file.read_text()) for file in sorted((nets.CACHE / "rows").glob("*.json"))])


if __name__ == "__main__":
    main()
