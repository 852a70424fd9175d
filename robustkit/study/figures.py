"""Curves of robust accuracy over eps, a figure for each norm and attack, if matplotlib is installed. No torch."""

import importlib.util
from pathlib import Path
from typing import Any

from robustkit.spec import number
from robustkit.stats import Proportion
from robustkit.store import write_atomic
from robustkit.study.tables import Column, Tables

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_STYLES = ("-", "--", ":", "-.")
# What would tell two drawings of the same numbers apart is left out.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def draw(tables: Tables, folder: Path) -> list[str]:
    """Draw a curve for each norm with several radii and each attack; returns the names of the .png files.

    Beside each .png stands a .pdf. Without matplotlib, or without several radii, nothing is drawn.
    """
    for old in folder.glob("curve-*.p??"):
        old.unlink()
    if importlib.util.find_spec("matplotlib") is None or not tables.cells:
        return []
    drawn = []
    for norm in dict.fromkeys(column.norm for column in tables.columns):
        for attack in tables.attacks:
            columns = [c for c in tables.columns if (c.norm, c.attack) == (norm, attack)]
            if len(columns) > 1 and any(tables.entries[key].robust for key in tables.entries if key[1] in columns):
                drawn.append(_curve(tables, columns, folder))
    return drawn


def _curve(tables: Tables, columns: list[Column], folder: Path) -> str:
    from matplotlib import style
    from matplotlib.figure import Figure

    norm, _, attack = columns[0]
    with style.context("default"):  # not the reader's own style, so that a study looks the same everywhere
        figure = Figure(figsize=(5.2, 3.6), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        size = 0
        for place, subject in enumerate(tables.subjects):
            points = _points(tables, columns, subject)
            if not points:
                continue
            size = points[0][1].n
            x = [eps for eps, _ in points]
            colour, line = _COLOURS[place % len(_COLOURS)], _STYLES[place // len(_COLOURS) % len(_STYLES)]
            y, low, high = ([100 * value(p) for _, p in points] for value in (float, _low, _high))
            axes.plot(x, y, marker="o", markersize=3, label=str(subject), color=colour, linestyle=line)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        ticks = [0.0, *(number(column.eps) for column in columns)]
        axes.set_xticks(ticks, ["0", *(column.eps for column in columns)], parse_math=False)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.set_xlabel(f"{norm} eps", parse_math=False)
        axes.set_ylabel("robust accuracy, %")
        axes.set_title(f"{attack}, n = {size}", size=10, parse_math=False)
        axes.grid(alpha=0.3)
        legend = axes.legend(fontsize=7, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        name = "curve-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{norm}-{attack}")
        name = _free(folder, name[:80])
        for ending, metadata in _METADATA.items():
            write_atomic(folder / f"{name}{ending}", lambda part, e=ending, m=metadata: figure.savefig(  # type: ignore[misc]
                part, format=e[1:], metadata=m))  # fmt: skip
    return f"{name}.png"


def _low(value: Proportion) -> float:
    return value.low


def _high(value: Proportion) -> float:
    return value.high


def _free(folder: Path, name: str) -> str:
    """The name, or the first numbered form of it that no other figure has."""
    found, place = name, 2
    while (folder / f"{found}.png").exists():
        found, place = f"{name}-{place}", place + 1
    return found


def _points(tables: Tables, columns: list[Column], subject: Any) -> list[tuple[float, Proportion]]:
    """The clean accuracy at 0, then the robust accuracy at each eps where it is established."""
    entries = [(column, tables.entries.get((subject, column))) for column in columns]
    points = [(number(column.eps), entry.robust) for column, entry in entries if entry and entry.robust]
    clean = next((entry.clean for _, entry in entries if entry and entry.clean), None)
    return [(0.0, clean), *points] if points and clean else points
