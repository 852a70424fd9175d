"""CWA and its peers at equal gradient evaluations, from surrogates with and without a robust one among them.

    python -m benchmarks.cwa -n 1000 --budget 420
    python -m benchmarks.cwa -n 1000 --budget 420 --attacks MI,MI-CSE,MI-CWA        (fewer; the folder keeps all)

`budget` counts gradient evaluations of single surrogates for each image, the same for every attack up to the last step
that it does not pay for. The run is resumable, in --out. Writes the tables of reports/paper/cwa/README.md between its
marks, and beside it matrix.csv, matrix.tex and heatmap.png.
"""

import argparse
import contextlib
from pathlib import Path

import torch

import robustkit
from robustkit.report import transfer as report
from robustkit.report.transfer_live import Line
from robustkit.store import write_text
from robustkit.transfer_record import TransferRecord
from tests import kit

HERE = Path(__file__).parent.parent / "reports/paper/cwa"
BEGIN, END = "<!-- tables: written by benchmarks/cwa.py -->", "<!-- end of tables -->"
NORMAL, ROBUST = ("resnet20_std", "resnet32_std", "resnet44_std"), "resnet2b_adv2"
VICTIMS = ("resnet56_std", "cnn_a_std", "marabou_small", "sri_resnet_a_adv4", "vit_ibp_3_3_8", "kw_base_2px")
# TI's published kernel of 15 pixels is for images of 299; at 32 it blurs the gradient away.
ATTACKS = {
    "MI": "mi", "DI": "di", "TI": "ti:input=(ti:kernel=3)", "VMI": "vmi", "SSA": "ssa", "logit": "logit-ensemble",
    "SVRE": "svre", "AdaEA": "adaea", "SMER": "smer", "MI-SAM": "mi-sam", "MI-CSE": "mi-cse", "MI-CWA": "mi-cwa",
    "VMI-CWA": "vmi-cwa",
}  # fmt: skip


def measure(n: int, budget: int, attacks: list[str], out: Path, *, quiet: bool = False) -> TransferRecord:
    """The record of the comparison; continues what `out` holds."""
    specs = {name: f"python/tests.kit.model:name=cifar10_{name}" for name in (*NORMAL, ROBUST, *VICTIMS)}
    line = Line()
    with contextlib.nullcontext() if quiet else line:
        return robustkit.transfer(
            surrogates={name: specs[name] for name in (*NORMAL, ROBUST)},
            sets={"normal": NORMAL, "normal + robust": (*NORMAL, ROBUST)},
            victims={name: specs[name] for name in VICTIMS},
            attacks={label: with_budget(ATTACKS[label], budget) for label in attacks},
            data=f"cifar10:path={kit.ROOT / 'cifar10_test.npz'}",
            norm="linf",
            eps="8/255",
            n=n,
            out=out,
            on_event=None if quiet else line,
        )


def with_budget(attack: str, budget: int) -> str:
    """The attack's spec with the budget among its options."""
    return f"{attack}{',' if ':' in attack else ':'}budget={budget}"


def tables(record: TransferRecord) -> str:
    """What README.md shows: both matrices, and what each attack spent."""
    rows = [
        f"| {surrogates} | {attack} | {cost.backwards:.0f} | {cost.forwards:.0f} |"
        for (surrogates, attack), cost in record.costs.items()
    ]
    spent = "| surrogates | attack | gradients an image | forwards an image |\n|---|---|---:|---:|\n" + "\n".join(rows)
    job, versions = record.job, record.job["code"]["versions"]
    facts = (
        f"First {record.n} CIFAR-10 test images, Linf 8/255, seed {job['seed']}, {job['device']}, "
        f"torch {versions['torch']}, robustkit {versions['robustkit']}."
    )
    parts = [facts]
    parts += [f"{report.denominator(record, of)} In percent, with 95 % Wilson intervals; \\* white-box.\n\n"
              f"{report.table(record, of)}" for of in ("all", "correct")]  # fmt: skip
    return "\n\n".join([*parts, spent])


def write(record: TransferRecord, folder: Path) -> None:
    """Put the tables into the folder's README.md and the other forms of the matrix beside it."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{file} has no place for the tables: the lines {BEGIN} and {END}")
    write_text(file, f"{before}{BEGIN}\n\n{tables(record)}\n\n{END}{after}")
    write_text(folder / "matrix.csv", report.csv_text(record))
    write_text(folder / "matrix.tex", report.latex(record))
    report.heatmap(record, folder / "heatmap.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=420, help="gradient evaluations of single surrogates an image")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help=", ".join(ATTACKS))
    parser.add_argument("--out", type=Path, default=Path("robustkit-runs/paper-cwa"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="print the tables and leave README.md as it is")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    record = measure(asked.n, asked.budget, asked.attacks.split(","), asked.out)
    print(tables(record))
    if not asked.dry:
        write(record, HERE)


if __name__ == "__main__":
    main()
