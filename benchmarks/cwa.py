"""CWA and its peers at equal gradient evaluations, from surrogates with and without a robust one among them.

    python -m benchmarks.cwa -n 1000 --budget 420
    python -m benchmarks.cwa -n 1000 --budget 420 --attacks MI,MI-CSE,MI-CWA        (fewer; the folder keeps all)

`budget` counts gradient evaluations of single surrogates for each image, the same for every attack up to the last step
that it does not pay for. The images come in chunks, each a resumable run of its own in --out; after each the tables are
written anew: those of reports/paper/cwa/README.md between its marks, and beside it matrix.csv, matrix.tex, heatmap.png.

The surrogates have BatchNorm folded and compute in bfloat16, which takes 0.4 of the time; the victims are as the kit
has them, in float32.
"""

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import robustkit
from benchmarks import kit
from benchmarks.readme import write_between
from robustkit.records.files import write_text
from robustkit.records.transfer import TransferRecord
from robustkit.records.transfer_text import denominator
from robustkit.report import transfer as report
from robustkit.report.transfer_live import Line

HERE = Path(__file__).parent.parent / "reports/paper/cwa"
BEGIN, END = "<!-- tables: written by benchmarks/cwa.py -->", "<!-- end of tables -->"
NORMAL, ROBUST = ("resnet20_std", "resnet32_std", "resnet44_std"), "resnet2b_adv2"
VICTIMS = ("resnet56_std", "cnn_a_std", "marabou_small", "sri_resnet_a_adv4", "vit_ibp_3_3_8", "kw_base_2px")
# TI's published kernel of 15 pixels is for images of 299; at 32 it blurs the gradient away. Of 20 neighbours or copies
# a small budget would not pay for two steps: here there are 4.
ATTACKS = {
    "MI": "mi", "DI": "di", "TI": "ti:input=(ti:kernel=3)", "VMI": "vmi:gradient=(vmi:samples=4)",
    "SSA": "ssa:input=(ssa:copies=4)", "logit": "logit-ensemble", "SVRE": "svre", "AdaEA": "adaea", "SMER": "smer",
    "MI-SAM": "mi-sam", "MI-CSE": "mi-cse", "MI-CWA": "mi-cwa", "VMI-CWA": "vmi-cwa:neighbours=4",
}  # fmt: skip


class Fast(nn.Module):
    """A kit network with BatchNorm folded into the convolutions before it, in bfloat16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for part in [*network.modules()]:
            for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
                if isinstance(getattr(part, norm, None), nn.BatchNorm2d):
                    setattr(part, conv, fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
                    setattr(part, norm, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.network(x).float()


def fast(name: str) -> nn.Module:
    """A surrogate: `python/benchmarks.cwa.fast:name=cifar10_resnet20_std`."""
    return Fast(kit.model(name=name)).eval().requires_grad_(False)


def measure(indices: range, budget: int, attacks: list[str], out: Path, *, quiet: bool = False) -> TransferRecord:
    """The record of the comparison on some images; continues what `out` holds."""
    victims = {name: f"python/benchmarks.kit.model:name=cifar10_{name}" for name in VICTIMS}
    surrogates = {name: f"python/benchmarks.cwa.fast:name=cifar10_{name}" for name in (*NORMAL, ROBUST)}
    line = Line()
    with contextlib.nullcontext() if quiet else line:
        return robustkit.transfer(
            surrogates=surrogates,
            sets={"normal": NORMAL, "normal + robust": (*NORMAL, ROBUST)},
            victims=victims,
            attacks={label: with_budget(ATTACKS[label], budget) for label in attacks},
            data=f"cifar10:path={kit.ROOT / 'cifar10_test.npz'}",
            norm="linf",
            eps="8/255",
            indices=indices,
            out=out,
            on_event=None if quiet else line,
        )


def joined(records: Sequence[TransferRecord]) -> TransferRecord:
    """One record of several that differ in their images only."""

    def columns(table: str) -> dict[str, np.ndarray]:
        parts = [getattr(record, table) for record in records]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    seconds = {
        name: {attack: sum(record.seconds[name][attack] for record in records) for attack in each}
        for name, each in records[0].seconds.items()
    }
    return replace(
        records[0], samples=columns("samples"), attacks=columns("attacks"), transfer=columns("transfer"),
        seconds=seconds, errors=[error for record in records for error in record.errors],
    )  # fmt: skip


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
    parts += [f"{denominator(record, of)} In percent, with 95 % Wilson intervals; \\* white-box.\n\n"
              f"{report.table(record, of)}" for of in ("all", "correct")]  # fmt: skip
    return "\n\n".join([*parts, spent])


def write(record: TransferRecord, folder: Path) -> None:
    """Put the tables into the folder's README.md and the other forms of the matrix beside it."""
    file = folder / "README.md"
    write_between(file, BEGIN, END, tables(record))
    write_text(folder / "matrix.csv", report.csv_text(record))
    write_text(folder / "matrix.tex", report.latex(record))
    report.heatmap(record, folder / "heatmap.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=420, help="gradient evaluations of single surrogates an image")
    parser.add_argument("--chunk", type=int, default=128, help="images after which the tables are written")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help=", ".join(ATTACKS))
    parser.add_argument("--out", type=Path, default=Path("robustkit-runs/paper-cwa"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="print the tables and leave README.md as it is")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    records = []
    for start in range(0, asked.n, asked.chunk):
        chunk = range(start, min(start + asked.chunk, asked.n))
        records.append(measure(chunk, asked.budget, asked.attacks.split(","), asked.out / f"{start}"))
        if not asked.dry:
            write(joined(records), HERE)
    print(tables(joined(records)))


if __name__ == "__main__":
    main()
