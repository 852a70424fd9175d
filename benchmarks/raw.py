"""raw-isp on CIFAR-10: attacks on the bare network, and attacks on the whole, beside what it costs.

    python -m benchmarks.raw -n 200
    python -m benchmarks.raw -n 200 --begun        (show what --out holds, and measure nothing more)

Oblivious: adversarials made on the undefended network, shown to the defended ones. White-box: the same attacks through
F, G, S and the network, one after the other, each on what the ones before it left. Runs continue in --out. Writes the
tables of reports/paper/raw/README.md between its marks, and beside it accuracy.csv.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from robustkit_defenses.raw.train import psnr

import robustkit
from benchmarks import kit
from benchmarks.readme import write_between
from robustkit import stats
from robustkit.models import defended
from robustkit.records.files import write_text
from robustkit.records.folder import load_run
from robustkit.records.transfer_folder import load_transfer

HERE = Path(__file__).parent.parent / "reports/paper/raw"
BEGIN, END = "<!-- tables: written by benchmarks/raw.py -->", "<!-- end of tables -->"
NOT_RUN = "not run"
EPS = ("2/255", "4/255", "8/255")
ATTACKS = {"FGSM": "fgsm", "PGD-10": "pgd:steps=10", "APGD-CE-20": "apgd:steps=20"}
LAST = {"APGD-T-20, 3 targets": "apgd:loss=dlr-targeted,steps=20,targets=3"}
SUITE = "AutoAttack"
DEFENSES = {
    "raw-isp": "raw-isp", "plain5": "raw-isp:learned=plain5", "released": "raw-isp:preset=released",
    "S alone": "raw-isp:omega=0", "JPEG 75": "jpeg:quality=75",
}  # fmt: skip
THROUGH = {"resnet20_std": ("raw-isp", "released"), "cnn_a_adv": ("raw-isp",)}  # what is attacked as a whole


class Row(NamedTuple):
    """One number: how many of n images a network, behind a defense, still classifies correctly under an attack."""

    network: str
    defense: str
    knows: str  # of the attacker: "clean", "oblivious", "white-box"
    attack: str
    eps: str
    share: stats.Proportion


def model(network: str) -> str:
    return f"python/benchmarks.kit.model:name=cifar10_{network}"


def data() -> str:
    return f"cifar10:path={kit.ROOT / 'cifar10_test.npz'}"


def oblivious(network: str, n: int, out: Path, begun: bool) -> Iterator[Row]:
    """Adversarials of the bare network, judged on it and on the defended ones."""
    victims = {"none": model(network)} | {
        label: f"defended/({model(network)}):by=({text})" for label, text in DEFENSES.items()
    }
    for eps in EPS:
        folder = out / f"oblivious-{network}-{eps.partition('/')[0]}"
        if begun and not (folder / "transfer.json").is_file():
            continue
        record = load_transfer(folder) if begun else robustkit.transfer(
            {"none": model(network)}, victims, ATTACKS, data(), norm="linf", eps=eps, n=n, out=folder,
        )  # fmt: skip
        if record.n != n:
            raise SystemExit(f"{folder} holds n = {record.n}, not {n}")
        if eps == EPS[0]:
            for label, share in record.clean_accuracy.items():
                yield Row(network, label, "clean", "", "0", share)
        for (_, attack, victim), cell in record.cells.items():
            broken = cell.of_all
            if broken is None:
                raise SystemExit(f"{network}, {attack}, {victim}: {cell.why}")
            knows = "white-box" if victim == "none" else "oblivious"
            yield Row(network, victim, knows, attack, eps, stats.Proportion(broken.n - broken.k, broken.n))


def through(network: str, label: str, n: int, out: Path, begun: bool) -> Iterator[Row]:
    """Attacks that differentiate the whole, each on what the ones before it left standing."""
    for eps in EPS:
        folder = out / f"through-{network}-{label}-{eps.partition('/')[0]}"
        if begun and not (folder / "run.json").is_file():
            continue
        record = load_run(folder) if begun else robustkit.evaluate(
            model(network), data(), [*ATTACKS.values(), *LAST.values(), "autoattack"], defense=DEFENSES[label], eps=eps,
            n=n, out=folder, doctor=False,
        )  # fmt: skip
        if record.n != n:
            raise SystemExit(f"{folder} holds n = {record.n}, not {n}")
        single = (*ATTACKS, *LAST)
        shown = [*zip(single, record.by_attack, strict=False), (SUITE, record.by_attack[-1])]  # the suite as one row
        for attack, after in shown:
            if after.robust is None:
                raise SystemExit(f"{network} behind {label}, {attack}: {record.why_no_robust_accuracy}")
            yield Row(network, label, "white-box", attack, eps, after.robust)


def measure(n: int, out: Path, begun: bool) -> list[Row]:
    """All rows, or those of the runs that are finished."""
    rows: list[Row] = []
    for network, defenses in THROUGH.items():
        rows += oblivious(network, n, out, begun)
        for label in defenses:
            rows += through(network, label, n, out, begun)
            print(f"{network} behind {label}: done, {time.process_time():.0f} s of CPU", flush=True)
    return rows


@torch.no_grad()
def fidelity(n: int) -> dict[str, tuple[float, float]]:
    """The mean PSNR in dB of what each defense makes of the images, and its standard deviation over images."""
    x, _ = kit.cifar10(range(n))
    found = {}
    for label, text in DEFENSES.items():
        ((_, defense),) = defended.resolve(text)
        of = psnr(defense.protect(torch.nn.Identity())(x), x)
        found[label] = (float(of.mean()), float(of.std()))
    return found


def percent(share: stats.Proportion) -> str:
    """A share with its interval, in percent."""
    return f"{100 * float(share):.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def tables(rows: list[Row], n: int) -> str:
    """What README.md shows."""
    told = {(r.network, r.defense, r.knows, r.attack, r.eps): percent(r.share) for r in rows}
    quality = fidelity(n)
    parts = [
        f"First {n} CIFAR-10 test images, Linf, seed 0, CPU with {torch.get_num_threads()} thread, torch "
        f"{torch.__version__}, robustkit {robustkit.__version__}. Percent classified correctly, with 95 % Wilson "
        "intervals.",
        "### Clean accuracy, and how near the images stay\n\n| defense | PSNR, dB (sd over images) | "
        + " | ".join(THROUGH) + " |\n|---|---:|" + "---:|" * len(THROUGH),
    ]  # fmt: skip
    for label in ("none", *DEFENSES):
        near = f"{quality[label][0]:.1f} ({quality[label][1]:.1f})" if label in quality else "–"
        clean = [told.get((network, label, "clean", "", "0"), NOT_RUN) for network in THROUGH]
        parts[-1] += f"\n| {label} | {near} | " + " | ".join(clean) + " |"
    for network, defenses in THROUGH.items():
        if all(row.network != network for row in rows):
            parts.append(f"### {network}: not run")
            continue
        head = ["attack on the bare network", "eps", "bare", *DEFENSES]
        text = f"### {network}, oblivious: adversarials of the bare network\n\n| {' | '.join(head)} |\n|---|---|"
        text += "---:|" * (len(DEFENSES) + 1)
        for attack in ATTACKS:
            for eps in EPS:
                cells = [told.get((network, "none", "white-box", attack, eps), NOT_RUN)]
                cells += [told.get((network, label, "oblivious", attack, eps), NOT_RUN) for label in DEFENSES]
                text += f"\n| {attack} | {eps} | " + " | ".join(cells) + " |"
        parts.append(text)
        text = f"### {network}, white-box: through F, G, S and the network\n\n"
        text += "Each attack on what the ones above it left.\n\n| defense | attack | "
        text += " | ".join(EPS) + " |\n|---|---|" + "---:|" * len(EPS)
        for label in defenses:
            for attack in (*ATTACKS, *LAST, SUITE):
                cells = [told.get((network, label, "white-box", attack, eps), NOT_RUN) for eps in EPS]
                text += f"\n| {label} | {attack} | " + " | ".join(cells) + " |"
        parts.append(text)
    return "\n\n".join(parts)


def csv_text(rows: list[Row]) -> str:
    """Every number."""
    lines = ["network,defense,attacker,attack,eps,correct,n,share,low,high"]
    for r in rows:
        s = r.share
        lines.append(
            f'{r.network},{r.defense},{r.knows},"{r.attack}",{r.eps},{s.k},{s.n},{float(s):.4f},{s.low:.4f},{s.high:.4f}'
        )
    return "\n".join(lines) + "\n"


def write(text: str, rows: list[Row], folder: Path) -> None:
    """Put the tables into the folder's README.md and the numbers beside it."""
    file = folder / "README.md"
    write_between(file, BEGIN, END, text)
    write_text(folder / "accuracy.csv", csv_text(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("robustkit-runs/paper-raw"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print the tables and leave README.md as it is")
    parser.add_argument("--begun", action="store_true", help="show what --out holds, and measure nothing more")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = measure(asked.n, asked.out, asked.begun)
    text = tables(rows, asked.n)
    print(text)
    if not asked.dry:
        write(text, rows, HERE)


if __name__ == "__main__":
    main()
