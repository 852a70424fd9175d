"""How often the gate fails, by simulation: over true drops of robust accuracy and shares of samples that flip.

    python -m benchmarks.gate_power

Writes reports/gate-power/: power.csv, README.md, and power.svg if matplotlib is there.
"""

import argparse
import csv
from fractions import Fraction
from pathlib import Path

import numpy as np

from robustkit.records import gate
from robustkit.records.compare import Change

DISCORDANCE = (0.05, 0.10, 0.15)
DROPS = [points / 2 for points in range(13)]
FOLDER = Path("reports/gate-power")


def rate(rng, n, discordance, drop, max_drop, pairs):
    """The share of simulated pairs of runs on which the gate fails."""
    index = np.arange(n)
    shares = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    failed = 0
    for _ in range(pairs):
        kind = rng.choice(3, size=n, p=shares)  # got worse, got better, or did not flip
        before = np.where(kind == 2, index % 2 == 0, kind == 0)
        failed += gate.dropped(Change.of(index, before, np.where(kind == 2, before, kind == 1)), max_drop)
    return failed / pairs


def plot(rows, file):
    """The curves, if they can be drawn."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "gate-power"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for share in DISCORDANCE:
        curve = [(row["true_drop_points"], 100 * row["failed"]) for row in rows if row["discordance"] == share]
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=f"{100 * share:.0f} % of samples flip")
    axes.set(xlabel="true drop, points of robust accuracy", ylabel="gate fails, %", ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    return True


def main():
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--max-drop", default=gate.MAX_DROP)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    max_drop, rng = gate.parse_drop(given.max_drop), np.random.default_rng(given.seed)
    rows = [
        {"discordance": share, "true_drop_points": drop,
         "failed": rate(rng, given.n, share, drop / 100, max_drop, given.pairs)}
        for share in DISCORDANCE for drop in DROPS if Fraction(str(drop)) <= Fraction(str(share)) * 100
    ]  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "power.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    drawn = plot(rows, FOLDER / "power.svg")
    failed = {(row["discordance"], row["true_drop_points"]): row["failed"] for row in rows}
    cells = {key: f"{100 * value:.1f}" for key, value in failed.items()}
    table = [
        f"| {drop:g} | " + " | ".join(cells.get((share, drop), "–") for share in DISCORDANCE) + " |" for drop in DROPS
    ]
    parts = [
        "# How often the gate fails",
        f"Simulated: {given.pairs} pairs of runs a cell, n = {given.n} samples, --max-drop {given.max_drop}, "
        f"p < {gate.ALPHA}, seed {given.seed}. A cell is the share of pairs, in %, on which `robustkit gate` fails; a "
        "column is the share of samples whose verdict flips either way. A drop larger than that share cannot be (–). "
        "The row of 0 is the false alarms.",
        "| true drop, points | " + " | ".join(f"{100 * share:.0f} % flip" for share in DISCORDANCE) + " |\n"
        "|" + "---|" * (1 + len(DISCORDANCE)) + "\n" + "\n".join(table),
        *(["![the same as curves](power.svg)"] if drawn else []),
        "    python -m benchmarks.gate_power",
    ]
    (FOLDER / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("\n\n".join(parts[1:3]))


if __name__ == "__main__":
    main()
