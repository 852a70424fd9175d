"""DVERGE beside the plain ensemble that it starts from: transfer among members, black-box, white-box.

    python -m benchmarks.dverge --scale small --threads 1       (what reports/paper/dverge shows; one CPU core)
    python -m benchmarks.dverge --scale small --threads 1 --parts seeds             (its table over seeds alone)
    reports/paper/dverge/run.sh                                 (3 ResNet-20 on 40,000 images; a GPU)

Trains what it needs on the kit's CIFAR-10 images, then measures. Everything stands in --out and is resumable: what was
begun continues, and a network that is done there is not trained again. Writes the tables of
reports/paper/dverge/README.md between its marks.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import robustkit
from benchmarks import kit
from benchmarks.readme import write_between
from robustkit.events import EpochDone
from robustkit.models.sources import load_model
from robustkit.models.sources.zoo.architectures import CifarResNet
from robustkit.records.run import RunRecord
from robustkit.records.transfer import CLEAN, SUCCESS, TransferRecord
from robustkit.stats import Proportion
from robustkit.training.recipes import Schedule
from robustkit.training.run import Request, train

HERE = Path(__file__).parent.parent / "reports/paper/dverge"
BEGIN, END = "<!-- tables: written by benchmarks/dverge.py -->", "<!-- end of tables -->"
PARTS = ("matrix", "black-box", "white-box", "seeds")
MEMBERS, MATRIX_EPS = 3, 0.03
SEEDS, SEEDS_EPS = (0, 1, 2), (0.01, 0.03, 0.07)


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured; attacks and eps of the black-box and the white-box part by name.

    The networks are ResNets of depth 6·blocks+2; `dverge` are options of the recipe, for each ensemble.
    """

    blocks: int
    images: int
    plain: Schedule
    fine_tuned_images: int
    fine_tuned: Schedule
    dverge: Mapping[str, str]
    matrix_n: int
    black_box_n: int
    black_box_eps: tuple[float, ...]
    black_box: Mapping[str, str]
    kit: tuple[str, ...]
    white_box_n: int
    white_box: tuple[tuple[str, str, float], ...]


_PAPER = Schedule(200, 128, "sgd", 0.1, shape="steps", augment="crop-flip")
_EPS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07)
SCALES = {
    "small": Scale(
        blocks=1,
        images=10_000,
        plain=Schedule(8, 64, "sgd", 0.05),
        fine_tuned_images=4_000,
        fine_tuned=Schedule(4, 64, "sgd", 0.05),
        dverge={"DVERGE": ""},
        matrix_n=500,
        black_box_n=500,
        black_box_eps=_EPS,
        black_box={"M-PGD": "mi:steps=10", "M-DI²": "di:steps=10"},
        kit=("resnet20_std",),
        white_box_n=100,
        white_box=(("MORA", "mora:steps=25", 0.01), ("MORA", "mora", 0.03), ("AutoAttack", "autoattack", 0.03)),
    ),
    "paper": Scale(
        blocks=3,
        images=40_000,
        plain=_PAPER,
        fine_tuned_images=40_000,
        fine_tuned=_PAPER,
        dverge={"DVERGE": "", "DVERGE+AT": "at_eps=8/255"},
        matrix_n=1000,
        black_box_n=1000,
        black_box_eps=_EPS,
        black_box={
            "M-PGD": "mi:steps=100", "M-PGD margin": "mi:steps=100,loss=margin",
            "M-DI²": "di:steps=100", "M-DI² margin": "di:steps=100,loss=margin",
        },
        kit=("resnet20_std", "resnet56_std"),
        white_box_n=1000,
        white_box=tuple(
            (name, spec.format(step=eps / 5), eps)
            for eps in _EPS
            for name, spec in (
                ("PGD-50×5", "pgd:steps=50,restarts=5,step={step:.6g}"), ("MORA", "mora"), ("AutoAttack", "autoattack"),
            )
        ),
    ),
}  # fmt: skip


def resnet(blocks: int = 3, classes: int = 10) -> nn.Module:
    """A CIFAR ResNet with 1×1 convolutions as shortcuts, laid out channels-last: twice as fast on a CPU."""
    return CifarResNet(blocks, classes, 3, "B").to(memory_format=torch.channels_last)


class Matrix(NamedTuple):
    """Of the images that all members of an ensemble classify correctly, how many fool each member, and it.

    `shares[i][j]`: made on member i, wrong on member j; the last column is the ensemble.
    """

    n: int
    shares: list[list[Proportion]]

    @property
    def between(self) -> float:
        """The mean over pairs of different members."""
        count = range(len(self.shares))
        return float(np.mean([float(self.shares[i][j]) for i in count for j in count if i != j]))


@dataclass(frozen=True)
class Bench:
    """A scale, where its files are, and on what it runs."""

    scale: Scale
    out: Path
    device: str
    threads: int
    seed: int = 0  # members learn from 3·seed and the two after it; held-out networks from 10 to 12 whatever it is

    def ensembles(self) -> dict[str, str]:
        """The specs of the ensembles by name, trained if they are not there: the plain one first."""
        plain = [self._plain(MEMBERS * self.seed + i) for i in range(MEMBERS)]
        found = {"plain": f"ensemble/{'+'.join(f'({spec})' for spec in plain)}:mean=probs"}
        for name, options in self.scale.dverge.items():
            init = f"members={MEMBERS},init={'+'.join(f'({spec})' for spec in plain)}"
            recipe = f"dverge:{init}{',' if options else ''}{options}"
            images, schedule = self.scale.fine_tuned_images, self.scale.fine_tuned
            found[name] = self._train(name.lower().replace("+", "-") + self._tag, recipe, schedule, images, self.seed)
        return found

    @property
    def _tag(self) -> str:
        """What tells the folders of a seed from the first one's."""
        return f"-seed-{self.seed}" if self.seed else ""

    def held_out(self) -> list[str]:
        """The specs of plain networks that no ensemble holds."""
        return [self._plain(seed) for seed in range(10, 10 + MEMBERS)]

    def _plain(self, seed: int) -> str:
        return self._train(f"plain-{seed}", "standard", self.scale.plain, self.scale.images, seed)

    def _train(self, name: str, recipe: str, schedule: Schedule, images: int, seed: int) -> str:
        folder = self.out / name
        spec = f"{folder}" if folder.is_absolute() else f"./{folder}"

        def tell(event: object) -> None:
            if isinstance(event, EpochDone):
                print(f"{name} {event}", flush=True)

        arch = f"python/benchmarks.dverge.resnet:blocks={self.scale.blocks}"
        request = Request(
            recipe, arch, f"cifar10:path={self._slice(images)},split=train", TEST, schedule, seed, device=self.device,
            threads=self.threads, check=500, check_robust=1, trust=True,  # their architecture is the callable above
        )  # fmt: skip
        train(request, folder, on_event=tell)
        return spec

    def _slice(self, images: int) -> Path:
        """The kit's first training images, in a file of --out."""
        file = self.out / f"cifar10_train_{images}.npz"
        if not file.is_file():
            parts = [kit.images(f"cifar10_train_batch{i}") for i in range(1, 1 + -(-images // 10_000))]
            x, y = (np.concatenate(each)[:images] for each in zip(*parts, strict=True))
            np.savez(file, x=x, y=y)
        return file

    def matrix(self, name: str, spec: str) -> Matrix:
        """PGD-50 (steps of eps/5, a random start) on each member of an ensemble, shown to all of them and to it."""
        module = load_model(spec, trust=True)[0]
        members = {f"member {i}": member for i, member in enumerate(module.members(), 1)}
        record = self._transfer(
            f"matrix-{name}{self._tag}", members, {each: (each,) for each in members}, {**members, "ensemble": module},
            {"PGD-50": f"pgd:steps=50,step={MATRIX_EPS / 5:.6g}"}, MATRIX_EPS, self.scale.matrix_n,
        )  # fmt: skip
        right = np.logical_and.reduce([record.samples[CLEAN + each] == record.samples["label"] for each in members])
        kept = record.samples["index"][right].tolist()
        shares = [[_share(record, made_on, "PGD-50", victim, kept) for victim in record.columns] for made_on in members]
        return Matrix(len(kept), shares)

    def black_box(self, ensembles: Mapping[str, str], eps: float) -> TransferRecord:
        """The adversarials of held-out networks of our own and of the kit, shown to the ensembles."""
        own = {f"held-out {i}": spec for i, spec in enumerate(self.held_out(), 1)}
        kits = {name: f"python/benchmarks.kit.model:name=cifar10_{name}" for name in self.scale.kit}
        sets = {"held-out": tuple(own), **{name: (name,) for name in kits}}
        return self._transfer(
            f"black-box-{eps:g}{self._tag}", {**own, **kits}, sets, ensembles, self.scale.black_box, eps,
            self.scale.black_box_n,
        )  # fmt: skip

    def _transfer(
        self, folder: str, surrogates: Mapping[str, str | nn.Module], sets: Mapping[str, tuple[str, ...]],
        victims: Mapping[str, str | nn.Module], attacks: Mapping[str, str], eps: float, n: int,
    ) -> TransferRecord:  # fmt: skip
        return robustkit.transfer(
            surrogates,
            victims,
            attacks,
            TEST,
            sets=sets,
            eps=eps,
            n=n,
            out=self.out / folder,
            device=self.device,
            trust=True,
        )

    def white_box(self, name: str, spec: str, label: str, attack: str, eps: float) -> RunRecord:
        """One attack on one ensemble."""
        return robustkit.evaluate(
            spec, TEST, attack, eps=eps, n=self.scale.white_box_n, device=self.device, trust=True,
            out=self.out / f"{label}-{eps:g}-{name}{self._tag}".lower(),
        )  # fmt: skip


TEST = f"cifar10:path={kit.ROOT / 'cifar10_test.npz'}"


def _share(record: TransferRecord, made_on: str, attack: str, victim: str, kept: list[int]) -> Proportion:
    """The share of some samples whose adversarial a victim gets wrong."""
    wrong = _wrong(record, made_on, attack, victim)
    return Proportion(sum(wrong[index] for index in kept), len(kept))


def _wrong(record: TransferRecord, made_on: str, attack: str, victim: str) -> dict[int, bool]:
    if record.cells[made_on, attack, victim].of_all is None:
        raise SystemExit(f"{made_on} · {attack} on {victim}: {record.cells[made_on, attack, victim].why}")
    t = record.transfer
    here = (t["surrogates"] == made_on) & (t["attack"] == attack) & (t["victim"] == victim)
    return dict(zip(t["index"][here].tolist(), (t["outcome"][here] == SUCCESS).tolist(), strict=True))


def under_all(record: TransferRecord, victim: str, sets: tuple[str, ...] = ()) -> Proportion:
    """The share of all images on which a victim is right unattacked and under each attack from each surrogate set."""
    right = record.samples[CLEAN + victim] == record.samples["label"]
    standing = dict(zip(record.samples["index"].tolist(), right.tolist(), strict=True))
    for made_on, attack in record.rows:
        if not sets or made_on in sets:
            for index, wrong in _wrong(record, made_on, attack, victim).items():
                standing[index] = standing[index] and not wrong
    return Proportion(sum(standing.values()), record.n)


def tables(bench: Bench, parts: Sequence[str] = PARTS) -> str:
    """What README.md shows of these parts, as it is measured."""
    shown = {"matrix": _matrices, "black-box": _black_box, "white-box": _white_box, "seeds": _seeds}
    ensembles = bench.ensembles()
    return "\n\n".join(text for part in parts for text in shown[part](bench, ensembles))


def _matrices(bench: Bench, ensembles: Mapping[str, str]) -> Iterator[str]:
    yield (
        f"**Transfer among members**, PGD-50 at Linf {MATRIX_EPS} (random start, steps of eps/5), first "
        f"{bench.scale.matrix_n} test images: of those that all members of the ensemble classify correctly, the share "
        "in percent that is wrong on the column's network when made on the row's member. 95 % Wilson intervals."
    )
    for name, spec in ensembles.items():
        found = bench.matrix(name, spec)
        columns = [*(f"member {i}" for i in range(1, MEMBERS + 1)), "ensemble"]
        lines = [f"| {name} (n = {found.n}) | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        lines += [
            f"| made on member {i} | {' | '.join(_percent(share) for share in row)} |"
            for i, row in enumerate(found.shares, 1)
        ]
        yield "\n".join(lines) + f"\n\nMean between different members: {100 * found.between:.1f} %."


def _black_box(bench: Bench, ensembles: Mapping[str, str]) -> Iterator[str]:
    attacks = ", ".join(f"{label} (`{spec}`)" for label, spec in bench.scale.black_box.items())
    yield (
        f"**Black-box**, first {bench.scale.black_box_n} test images: the share in percent of all images that an "
        f"ensemble classifies correctly unattacked and under every one of {attacks}, made on {MEMBERS} held-out "
        "networks of ours together (mean logits), or on a network of the kit alone, or under all of these."
    )
    groups = {"held-out": ("held-out",), **{name: (name,) for name in bench.scale.kit}, "all": ()}
    lines = [f"| eps | made on | {' | '.join(ensembles)} |", "|---|---|" + "---:|" * len(ensembles)]
    for eps in bench.scale.black_box_eps:
        record = bench.black_box(ensembles, eps)
        if eps == bench.scale.black_box_eps[0]:
            clean = [_percent(record.clean_accuracy[name]) for name in ensembles]
            lines.append(f"| 0 | (clean) | {' | '.join(clean)} |")
        for group, sets in groups.items():
            lines.append(f"| {eps} | {group} | {' | '.join(_percent(under_all(record, e, sets)) for e in ensembles)} |")
    yield "\n".join(lines)


def _white_box(bench: Bench, ensembles: Mapping[str, str]) -> Iterator[str]:
    yield (
        f"**White-box**, first {bench.scale.white_box_n} test images: robust accuracy of the ensemble in percent, "
        "judged on every sample."
    )
    lines = [f"| eps | attack | {' | '.join(ensembles)} |", "|---|---|" + "---:|" * len(ensembles)]
    for label, attack, eps in bench.scale.white_box:
        records = [bench.white_box(name, spec, label, attack, eps) for name, spec in ensembles.items()]
        cells = [_percent(each.robust_accuracy) if each.robust_accuracy else "–" for each in records]
        lines.append(f"| {eps} | {label} (`{attack}`) | {' | '.join(cells)} |")
    yield "\n".join(lines)


def _seeds(bench: Bench, _: Mapping[str, str]) -> Iterator[str]:
    held = f"the {MEMBERS} held-out networks, the same for each seed"
    yield (
        f"**Over seeds**: the means of the matrix between different members, and black-box as above from {held}. A "
        "seed gives all members and what is fine-tuned another start and order of images. Last: mean and sample "
        f"standard deviation over {len(SEEDS)} seeds."
    )
    benches = [replace(bench, seed=seed) for seed in SEEDS]
    found: dict[tuple[str, str], list[float]] = {}
    for each in benches:
        ensembles = each.ensembles()
        for name, spec in ensembles.items():
            found.setdefault(("between members", name), []).append(100 * each.matrix(name, spec).between)
        for eps in SEEDS_EPS:
            record = each.black_box(ensembles, eps)
            for name in ensembles:
                if eps == SEEDS_EPS[0]:
                    found.setdefault(("clean", name), []).append(100 * float(record.clean_accuracy[name]))
                share = under_all(record, name, ("held-out",))
                found.setdefault((f"black-box, eps {eps}", name), []).append(100 * float(share))
    lines = [
        f"| percent | ensemble | {' | '.join(f'seed {seed}' for seed in SEEDS)} | mean ± sd |",
        "|---|---|" + "---:|" * (len(SEEDS) + 1),
    ]
    for (what, name), values in found.items():
        cells = " | ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {what} | {name} | {cells} | {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} |")
    yield "\n".join(lines)


def _percent(value: Proportion) -> str:
    return f"{100 * float(value):.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def write(text: str, file: Path) -> None:
    """Put the tables into a README, between its marks."""
    write_between(file, BEGIN, END, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--out", type=Path, help="default robustkit-runs/paper-dverge-SCALE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure and show")
    parser.add_argument("--dry", action="store_true", help="print the tables and leave README.md as it is")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path("robustkit-runs") / f"paper-dverge-{asked.scale}"
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(SCALES[asked.scale], out, asked.device, asked.threads)
    began, text = time.process_time(), tables(bench, asked.parts.split(","))
    print(text)
    print(f"CPU seconds of this call: {time.process_time() - began:.0f}")
    if not asked.dry:
        write(text, HERE / "README.md")


if __name__ == "__main__":
    main()
