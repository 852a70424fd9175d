"""How often the gate fails and its interval covers: exact sums over what can happen, no simulation.

    python -m benchmarks.gate_power

Writes reports/gate-power/: power.csv, README.md, and power.svg if matplotlib is there. Of n paired samples, b get worse
and c get better, by a multinomial law whose two shares differ by the true drop and add up to the flips. Each pair
(b, c) is judged by `robustkit.stats`, which is what the gate asks, and weighed by its probability.
"""

import csv
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import binom

from robustkit.records import gate
from robustkit.stats import difference_interval, fewest_worse

SIZES = (100, 1_000, 10_000)
ALLOWED = (0.5, 2.0)  # points
DROPS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # points
FLIPS = (2.0, 5.0, 10.0, "one way")  # % of samples that flip; or only as many as the drop, all of them worse
FOLDER = Path("reports/gate-power")
COLUMNS = ("allowed_points", "n", "flips_percent", "drop_points", "failed", "covered")
TAIL = 1e-9  # what is left out at either end of a binomial law: less than any digit shown


def shares(drop, flips):
    """The shares of samples that get worse and better, or None where no such law exists; both given in points."""
    worse, better = (drop, 0.0) if flips == "one way" else ((flips + drop) / 2, (flips - drop) / 2)
    return (worse / 100, better / 100) if better >= 0 else None


def support(n, share):
    """The counts that a binomial law gives, but for its far tails."""
    low, high = binom.ppf(TAIL, n, share), binom.isf(TAIL, n, share)
    return np.arange(int(max(0, low)), int(min(n, high)) + 1)


@cache
def smallest_failing(better, n, allowed):
    """How many must get worse, beside so many that get better, for the gate to fail; n + 1 if it never does."""
    found = fewest_worse(better, n, allowed / 100, gate.ALPHA)
    return n + 1 if found is None else found


def failing(n, worse, better, allowed):
    """The probability that the gate fails."""
    counts = support(n, better)
    least = np.array([smallest_failing(int(c), n, allowed) for c in counts])
    return float(binom.pmf(counts, n, better) @ binom.sf(least - 1, n - counts, worse / (1 - better)))


def covering(n, worse, better):
    """The probability that the 95 % interval of the drop holds the true one."""
    total = 0.0
    for c in support(n, better).tolist():
        given = worse / (1 - better)
        counts = support(n - c, given)
        held = covered(c, tuple(counts.tolist()), n, better - worse)
        total += float(binom.pmf(c, n, better) * (binom.pmf(counts, n - c, given) @ held))
    return total


def covered(c, worse, n, difference):
    """Of each number of samples that get worse, whether the interval holds the true difference."""
    ends = np.array([difference_interval(b, c, n) for b in worse])
    return (ends[:, 0] <= difference + 1e-12) & (difference - 1e-12 <= ends[:, 1])


def rows():
    """Every cell."""
    for n in SIZES:
        for flips in FLIPS:
            for drop in DROPS:
                if (law := shares(drop, flips)) is None:
                    continue
                cover = covering(n, *law)
                for allowed in ALLOWED:
                    yield dict(zip(COLUMNS, (allowed, n, flips, drop, failing(n, *law, allowed), cover), strict=True))


def plot(found, file):
    """The curves, if they can be drawn."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "gate-power"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        len(ALLOWED), len(SIZES), figsize=(9, 5), layout="constrained", sharex=True, sharey=True
    )
    for axes, (allowed, n) in zip(panels.flat, ((a, n) for a in ALLOWED for n in SIZES), strict=True):
        for flips in FLIPS:
            here = [
                row for row in found if (row["allowed_points"], row["n"], row["flips_percent"]) == (allowed, n, flips)
            ]
            points = [(row["drop_points"], 100 * row["failed"]) for row in here]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=2.5, label=named(flips))
        axes.axvline(allowed, color="0.7", linewidth=0.8)
        axes.axhline(100 * gate.ALPHA, color="0.7", linewidth=0.8)
        axes.set_title(f"n = {n:,}, {allowed:g} points allowed", fontsize=9)
        axes.grid(alpha=0.3)
    figure.supxlabel("true drop, points of robust accuracy")
    figure.supylabel("gate fails, %")
    panels[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(file, metadata={"Date": None})
    return True


def named(flips):
    """A share of flips as a column's head."""
    return "all one way" if flips == "one way" else f"{flips:g} % flip"


def table(found, n, column):
    """A Markdown table of one n: a row a drop, a column a share of flips."""
    cells = {(row["drop_points"], row["flips_percent"]): 100 * row[column] for row in found}
    lines = [
        f"| {drop:g} | " + " | ".join(f"{cells[drop, f]:.1f}" if (drop, f) in cells else "–" for f in FLIPS) + " |"
        for drop in DROPS
    ]
    head = f"| true drop, points (n = {n:,}) | " + " | ".join(map(named, FLIPS)) + " |"
    return "\n".join([head, "|" + "---|" * (1 + len(FLIPS)), *lines])


def page(found, *, drawn):
    """README.md."""
    false = max(row["failed"] for row in found if row["drop_points"] <= row["allowed_points"])
    cover = {n: min(row["covered"] for row in found if row["n"] == n) for n in SIZES}
    covers = ", ".join(f"{100 * share:.1f} % at n = {n:,}" for n, share in cover.items())
    parts = [
        "# How often the gate fails",
        "Of other weights `robustkit gate` asks whether the drop of robust accuracy *behind* the samples is larger "
        f"than `--max-drop` allows, by a one-sided paired test at p < {gate.ALPHA}. A cell is the probability, in %, "
        "that it fails; a column is the share of samples whose verdict flips either way, or as few as the drop needs, "
        "all of them worse. A drop larger than the flips cannot be (–). All figures are exact sums, not simulations.",
        f"In these cells, at a true drop of no more than is allowed, it fails in at most {100 * false:.1f} % of cases. "
        f"The 95 % interval of the drop holds the true one in at least {covers}.",
    ]
    for allowed in ALLOWED:
        parts.append(f"## {allowed:g} points allowed")
        here = [row for row in found if row["allowed_points"] == allowed]
        parts += [table([row for row in here if row["n"] == n], n, "failed") for n in SIZES]
    parts += ["## How often the interval holds the true drop"]
    once = [row for row in found if row["allowed_points"] == ALLOWED[0]]
    parts += [table([row for row in once if row["n"] == n], n, "covered") for n in SIZES]
    parts += [
        *(["![the gate's failures as curves](power.svg)"] if drawn else []),
        "    python -m benchmarks.gate_power",
    ]
    return "\n\n".join(parts) + "\n"


def main():
    """Compute and write."""
    found = list(rows())
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "power.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **{key: f"{row[key]:.6f}" for key in ("failed", "covered")}} for row in found)
    drawn = plot(found, FOLDER / "power.svg")
    text = page(found, drawn=drawn)
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
