"""CrossMax shown for what it is: attacked directly, and by what its members have in common.

    python -m benchmarks.crossmax                                  (all; continues what --out holds)
    python -m benchmarks.crossmax --only self,noisy                (some of the defended models)

The networks are the kit's; the probes of the self-ensembles are fitted here, on the first images of its training part.
Writes the table of reports/paper/crossmax/README.md between its marks. Each row is an ordinary run in --out.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from robustkit_defenses.fit_probes import Fit, fit_probes
from robustkit_defenses.probes import save_probes

import robustkit
from benchmarks import kit
from benchmarks.readme import write_between
from robustkit import datasets
from robustkit.records.folder import load_run
from robustkit.records.run import RunRecord

HERE = Path(__file__).parent.parent / "reports/paper/crossmax"
BEGIN, END = "<!-- table: written by benchmarks/crossmax.py -->", "<!-- end of table -->"
BACKBONE = "cifar10_resnet56_std"
LAYERS = ("layer2.2", "layer2.5", "layer2.8", "layer3.1", "layer3.3", "layer3.5", "layer3.7")
IMAGES = 3000  # of the training part, to fit probes on
FIT = Fit(pool=4, epochs=8, rate=1e-3)
EPS = "2/255"


@dataclass(frozen=True, slots=True)
class Case:
    """A defended model, and the attacks on it: each with the number of images and the width of a tile."""

    title: str
    model: str
    defense: tuple[str, ...]
    attacks: tuple[tuple[str, int, int], ...]


def swap(only: str, more: str = "", steps: int = 30) -> str:
    """Adversarials of one stand-in, judged on the model."""
    return f"surrogate-swap:only={only},steps={steps},direct=0{more}"


def cases(probes: Path) -> dict[str, Case]:
    """The models by the names that --only takes.

    Few samples survive the long suites: there a narrow tile pays for little padding.
    """
    one = f"python/benchmarks.kit.model:name={BACKBONE}"
    four = "+".join(f"(python/benchmarks.kit.model:name=cifar10_resnet{depth}_std)" for depth in (20, 32, 44, 56))
    layered = f"probes:weights={probes}"
    direct = "apgd:steps=30"
    adaptive, autoattack = "adaptive:budget=quick", "autoattack:steps=20,targets=2,queries=200"
    return {
        "self": Case(
            "self-ensemble: 7 probes and the network, 3rd largest",
            one,
            (layered, "crossmax:by=kth"),
            (
                (direct, 100, 8),
                (swap("mean-logits"), 100, 8),
                (swap("early"), 100, 8),
                (adaptive, 50, 4),
                (autoattack, 32, 4),
            ),
        ),
        "mean": Case("the same members, joined by their mean", one, (layered,), ((direct, 100, 8),)),
        "noisy": Case(
            "the self-ensemble behind Gaussian noise (0.03)",
            one,
            ("gaussian-smoothing:sigma=0.03,draws=1", layered, "crossmax:by=kth"),
            (
                ("apgd:steps=20", 24, 8),
                ("apgd:steps=20,eot=5", 24, 8),
                (swap("mean-logits", ",eot=5", 20), 24, 8),
                (swap("early", ",eot=5", 20), 24, 8),
            ),
        ),
        "ensemble": Case(
            "four networks, untrained, median",
            f"ensemble/{four}",
            ("crossmax",),
            ((direct, 100, 8), (swap("mean-logits"), 100, 8), (adaptive, 32, 4)),
        ),
    }


def fit(file: Path) -> None:
    """Fit the probes and write them to a file, unless it is there."""
    if file.exists():
        return
    x, y = kit.images("cifar10_train_batch1")
    pixels = torch.from_numpy(x[:IMAGES]).permute(0, 3, 1, 2).float() / 255
    data = datasets.resolve((pixels, torch.from_numpy(y[:IMAGES])))
    save_probes(fit_probes(kit.model(BACKBONE), data, LAYERS, FIT, on_event=print), file)


def measure(case: Case, attack: str, n: int, tile: int, out: Path) -> RunRecord:
    """The record of one row; continues what `out` holds."""
    data = f"cifar10:path={kit.ROOT / 'cifar10_test.npz'}"
    return robustkit.evaluate(
        case.model, data, attack, defense=case.defense, eps=EPS, n=n, tile=tile, out=out, doctor=False
    )


def table(found: list[tuple[Case, str, RunRecord]]) -> str:
    """What README.md shows."""
    rows = [_row(case, attack, record) for case, attack, record in found]
    job = found[0][2].job
    facts = (
        f"First n CIFAR-10 test images, Linf {EPS}, seed {job['seed']}, {job['device']}, tiles of 8 (suites: 4), "
        f"torch {job['versions']['torch']}; in percent with 95 % Wilson intervals."
    )
    head = (
        "| defended model | attack | n | clean | robust | fresh draws, mean ± std; worst case | gradients an image | "
        "audit |\n|---|---|---:|---:|---:|---|---:|---|\n"
    )
    printed = [
        f"What `{attack}` prints on *{case.title}*:\n\n```\n{_printed(record)}\n```"
        for case, attack, record in found
        if len(record.by_attack) > 1
    ]
    return "\n\n".join([f"{facts}\n\n{head}" + "\n".join(rows), *printed])


def _row(case: Case, attack: str, record: RunRecord) -> str:
    draws = f"{record.mean_accuracy}; {record.worst_case_accuracy}" if record.draws else ""
    gradients = sum(row.backwards for row in record.by_attack) / record.n
    cells = [case.title, f"`{attack}`", str(record.n), str(record.clean_accuracy), str(record.robust_accuracy), draws,
             f"{gradients:.0f}", record.to_json()["summary"]["verdict"]]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _printed(record: RunRecord) -> str:
    """The summary without the line that names the model, and without the attacks that had nothing left to break."""
    lines = record.summary().splitlines()[1:]
    kept = [line for line in lines if "broke 0 of 0;" not in line]
    idle = len(lines) - len(kept)
    return "\n".join([*kept, *([f"({idle} further attacks found nothing standing)"] if idle else [])])


def write(text: str) -> None:
    """Put the table into README.md."""
    file = HERE / "README.md"
    write_between(file, BEGIN, END, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="self,mean,noisy,ensemble")
    parser.add_argument("--attacks", default="", help="only attacks whose spec begins so, separated by ;")
    parser.add_argument("--out", type=Path, default=Path("robustkit-runs/paper-crossmax"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="measure nothing; print the table of what is there")
    parser.add_argument("--keep-readme", action="store_true", help="leave README.md as it is")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    probes = asked.out / "probes.safetensors"
    fit(probes)
    found = []
    for name, case in cases(probes).items():
        for number, (attack, n, tile) in enumerate(case.attacks):
            folder = asked.out / f"{name}-{number}"
            wanted = name in asked.only.split(",") and attack.startswith(tuple(asked.attacks.split(";")))
            if wanted and not asked.dry:
                print(measure(case, attack, n, tile, folder).summary(), flush=True)
            if (folder / "run.json").exists():
                found.append((case, attack, load_run(folder)))
    print(table(found))
    if not (asked.dry or asked.keep_readme):
        write(table(found))


if __name__ == "__main__":
    main()
