"""Contextual fusion attacked through each branch and end to end, on scenes and on CIFAR-10; blur and corruptions.

    python -m benchmarks.fusion -n 200 --steps 50
    python -m benchmarks.fusion --data scenes                (one of the two; the folder keeps what it has)

Writes the tables of reports/paper/fusion/README.md between its marks. CIFAR-10 is read from the kit. Its background
network is trained here, in a minute, and kept in --out; nothing of the kit goes into the repository.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from robustkit_defenses.contextual_fusion import HeadPlan, fit_head, new_fusion
from robustkit_defenses.contextual_fusion.fitting import features_of, with_head
from robustkit_defenses.contextual_fusion.make import BACKGROUND, FOREGROUND, TRAIN
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

import robustkit
from benchmarks import kit
from benchmarks.readme import write_between
from robustkit.api import Dataset
from robustkit.datasets import Pair
from robustkit.datasets.corrupted import Corrupted
from robustkit.models.sources.normalized import Normalise
from robustkit.records.files import write_text
from robustkit.stats import Proportion
from tools.zoo.first import Plan, train

HERE = Path(__file__).parent.parent / "reports/paper/fusion"
BEGIN, END = "<!-- tables: written by benchmarks/fusion.py -->", "<!-- end of tables -->"
EPS = (2, 4, 8)
SIGMAS = (0.5, 1.0, 1.5, 2.0, 3.0)
KINDS, SEVERITIES = ("gaussian-noise", "gaussian-blur", "jpeg-compression", "contrast"), (1, 3, 5)
ALPHA = 0.01  # of the penalised head; the paper's is unknown
VARIANTS = ("foreground", "background", "joint", "joint, penalised")
TILE = 32


class Subject(NamedTuple):
    """The networks by variant, and the data on which they are tried."""

    models: dict[str, nn.Module]
    data: Dataset
    extra: dict[str, Dataset]  # further data for the clean accuracy alone


def scenes(_: Path) -> Subject:
    """The bundled networks; the heads are fitted on training images 6000 to 7999, which they did not see."""
    backbones = [robustkit.load_model(name)[0] for name in (FOREGROUND, BACKGROUND)]
    models = variants(backbones, robustkit.load_dataset(TRAIN), range(6000, 8000))
    unrelated = {"background unrelated to the class": robustkit.load_dataset("scenes:context=0.1")}
    return Subject(models, robustkit.load_dataset("scenes"), unrelated)


def cifar10(out: Path) -> Subject:
    """A kit network and a network for surroundings; the head is fitted on test images 5000 to 7999."""
    data = robustkit.load_dataset(f"cifar10:path={kit.ROOT / 'cifar10_test.npz'}")
    backbones = [kit.model("cifar10_cnn_a_std"), surroundings(out)]
    return Subject(variants(backbones, data, range(5000, 8000)), data, {})


class Surroundings(nn.Module):
    """Hides the middle 16×16 pixels, where the object of a CIFAR image mostly is."""

    def forward(self, x: Tensor) -> Tensor:
        """The images with a grey middle."""
        edge = torch.ones(1, 1, *x.shape[2:], device=x.device, dtype=x.dtype)
        edge[..., 8:24, 8:24] = 0
        return x * edge + 0.5 * (1 - edge)


def surroundings(out: Path) -> nn.Module:
    """A small network that tells a CIFAR-10 class from what is around the object: a stand-in for scene features."""

    def build() -> nn.Module:
        layers: list[nn.Module] = [Surroundings(), Normalise((0.5,), (0.25,))]
        for before, after, size in ((3, 24, 4), (24, 48, 3), (48, 64, 3)):
            layers += [nn.Conv2d(before, after, size, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    file = out / "cifar10-surroundings.safetensors"
    if not file.is_file():
        parts = [kit.images(f"cifar10_train_batch{number}") for number in (1, 2)]
        pixels, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        network = train(build, Pair(pixels, labels, "cifar10", 10), Plan(epochs=6, batch=128, rate=4e-3), print)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), file)
    network = build().eval()
    network.load_state_dict(load_file(file))
    return network


def variants(backbones: Sequence[nn.Module], data: Dataset, fitted: Sequence[int]) -> dict[str, nn.Module]:
    """Each branch alone, and both together behind a plain head and behind one with a penalty on the foreground."""
    shape = tuple(data.batch([0])[0].shape[1:])
    fused = new_fusion(*backbones, data.classes, shape)
    features = features_of(fused, data, fitted)
    plain, penalised = (
        with_head(fused, fit_head(*features, data.classes, shape, HeadPlan(alpha=(alpha, 0.0))))
        for alpha in (0.0, ALPHA)
    )
    models = (plain.alone("foreground"), plain.alone("background"), plain, penalised)
    return dict(zip(VARIANTS, models, strict=True))


def matrix(subject: Subject, name: str, n: int, steps: int, out: Path) -> list[dict]:
    """Accuracy of each variant on the adversarials of each, for both attacks and each eps."""
    rows = []
    for eps in EPS:
        record = robustkit.transfer(
            subject.models, subject.models, {"FGSM": "fgsm", "APGD": f"apgd:steps={steps}"}, subject.data,
            sets={variant: [variant] for variant in VARIANTS}, eps=f"{eps}/255", n=n, out=out / f"{name}-{eps}",
        )  # fmt: skip
        for cell in record.cells.values():
            if cell.of_all is None:
                raise SystemExit(f"{cell}: {cell.why}")
            right = Proportion(cell.of_all.n - cell.of_all.k, cell.of_all.n)
            rows.append({"attack": cell.attack, "eps": eps, "made_on": cell.surrogates, "judged_on": cell.victim,
                         "right": right.k, "n": right.n})  # fmt: skip
        print(name, eps, "done", flush=True)
    return rows


def end_to_end(subject: Subject, name: str, n: int, out: Path) -> list[dict]:
    """AutoAttack on the joint network itself, at the largest eps."""
    eps, variant = EPS[-1], "joint"
    record = robustkit.evaluate(subject.models[variant], subject.data, "autoattack", eps=f"{eps}/255", n=n,
                                out=out / f"{name}-autoattack-{variant}-{eps}")  # fmt: skip
    share = record.robust_accuracy
    return [{"variant": variant, "eps": eps, "right": share.k, "n": share.n}]


@torch.no_grad()
def right(subject: Subject, data: Dataset, n: int, change: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, int]:
    """How many of the first n images, changed, each variant gets right; the features are taken once for all."""
    plain, penalised = (subject.models[variant] for variant in VARIANTS[2:])
    found = dict.fromkeys(VARIANTS, 0)
    for start in range(0, n, TILE):
        x, y = data.batch(range(start, min(start + TILE, n)))
        features = [extractor(change(x)) for extractor in (plain.foreground, plain.background)]
        heads = [plain.head.foreground(features[0]), plain.head.background(features[1])]
        heads += [plain.head(*features), penalised.head(*features)]
        for variant, logits in zip(VARIANTS, heads, strict=True):
            found[variant] += int((logits.argmax(1) == y).sum())
    return found


def unattacked(subject: Subject, n: int) -> list[dict]:
    """Clean accuracy, blur by its sigma, and corruptions by kind and severity."""

    def blurred(sigma: float) -> Callable[[Tensor], Tensor]:
        side = min(2 * int(np.ceil(3 * sigma)) + 1, 31)
        return lambda x: gaussian_blur(x, [side, side], [sigma, sigma])

    corrupted = Corrupted(subject.data)
    found = {"clean": right(subject, subject.data, n)}
    found |= {f"clean, {name}": right(subject, data, n) for name, data in subject.extra.items()}
    found |= {f"blur σ={sigma:g}": right(subject, subject.data, n, blurred(sigma)) for sigma in SIGMAS}
    found |= {f"{kind} {level}": right(subject, corrupted.at(kind, level), n) for kind in KINDS for level in SEVERITIES}
    return [
        {"what": what, "variant": variant, "right": k, "n": n}
        for what, each in found.items()
        for variant, k in each.items()
    ]


def shown(row: dict) -> str:
    """A share in percent with its Wilson interval."""
    p = Proportion(row["right"], row["n"])
    return f"{100 * float(p):.1f} [{100 * p.low:.1f}, {100 * p.high:.1f}]"


def tables(facts: dict) -> str:
    """What README.md shows of one dataset."""
    head = "|".join(f" {variant} " for variant in VARIANTS)
    parts = [f"Accuracy in percent with 95 % Wilson intervals; {facts['scale']}."]
    lines = [f"| unattacked |{head}|", "|---|" + "---:|" * len(VARIANTS)]
    by = {(row["what"], row["variant"]): shown(row) for row in facts["unattacked"]}
    for what in dict.fromkeys(row["what"] for row in facts["unattacked"]):
        lines.append(f"| {what} | " + " | ".join(by[what, variant] for variant in VARIANTS) + " |")
    parts.append("\n".join(lines))
    lines = [f"| attack | eps | made on ↓, judged on → |{head}|", "|---|---|---|" + "---:|" * len(VARIANTS)]
    cells = {(r["attack"], r["eps"], r["made_on"], r["judged_on"]): shown(r) for r in facts["matrix"]}
    for attack, eps, made_on in dict.fromkeys(key[:3] for key in sorted(cells, key=lambda k: (k[0] != "FGSM", k[1]))):
        judged = " | ".join(cells[attack, eps, made_on, variant] for variant in VARIANTS)
        lines.append(f"| {attack} | {eps}/255 | {made_on} | {judged} |")
    parts.append("\n".join(lines))
    lines = [
        f"- AutoAttack end to end, {row['eps']}/255, {row['variant']}: {shown(row)}" for row in facts["autoattack"]
    ]
    return "\n\n".join([*parts, "\n".join(lines)])


def write(folder: Path) -> None:
    """Put the tables of the facts there are into the folder's README.md."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    text = "\n\n".join(f"### {facts['name']}\n\n{tables(facts)}" for facts in found)
    file = folder / "README.md"
    write_between(file, BEGIN, END, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=200, help="images that are attacked")
    parser.add_argument("--unattacked", type=int, default=500, help="images for clean, blur, corruptions")
    parser.add_argument("--steps", type=int, default=50, help="of APGD in the matrix")
    parser.add_argument("--data", choices=("scenes", "cifar10"), nargs="*", default=["scenes", "cifar10"])
    parser.add_argument("--out", type=Path, default=Path("robustkit-runs/paper-fusion"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.data:
        subject = {"scenes": scenes, "cifar10": cifar10}[name](asked.out)
        scale = (
            f"first {asked.unattacked} test images unattacked, first {asked.n} attacked; Linf; FGSM one step, APGD "
            f"cross-entropy {asked.steps} steps; head α = 0, penalised α = {ALPHA:g}; one CPU thread, "
            f"torch {torch.__version__}"
        )
        facts = {"name": name, "scale": scale, "unattacked": [], "matrix": [], "autoattack": []}
        parts: dict[str, Callable[[], list[dict]]] = {
            "unattacked": lambda subject=subject: unattacked(subject, asked.unattacked),
            "matrix": lambda subject=subject, name=name: matrix(subject, name, asked.n, asked.steps, asked.out),
            "autoattack": lambda subject=subject, name=name: end_to_end(subject, name, asked.n, asked.out),
        }
        for part, measure in parts.items():  # each is written when it is there: all of it takes a while
            facts[part] = measure()
            print(name, part, "done", flush=True)
            write_text(HERE / f"{name}.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            write(HERE)


if __name__ == "__main__":
    main()
