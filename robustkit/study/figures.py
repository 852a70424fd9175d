"""Curves of robust accuracy over eps, a figure for each norm and attack, if matplotlib is installed. No torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from robustkit.report.facts import Curve
from robustkit.report.plots import style
from robustkit.spec import number
from robustkit.study.tables import Column, Subject, Tables

ENDINGS = (".png", ".pdf")


def draw(tables: Tables, folder: Path) -> list[str]:
    """Draw a curve for each norm with several radii and each attack; returns the names of the .png files.

    Beside each .png stands a .pdf. Without matplotlib, or without several radii, nothing is drawn.
    """
    for old in folder.glob("curve-*.p??"):
        old.unlink()
    if not style.ready() or not tables.cells:
        return []
    return [_drawn(found, columns, folder) for found, columns in curves(tables)]


def curves(tables: Tables) -> Iterator[tuple[list[Curve], list[Column]]]:
    """The lines of each chart, with the columns that they go over: of each norm with several radii and each attack."""
    for norm in dict.fromkeys(column.norm for column in tables.columns):
        for attack in tables.attacks:
            columns = [column for column in tables.columns if (column.norm, column.attack) == (norm, attack)]
            found = [curve for subject in tables.subjects if (curve := _curve(tables, columns, subject))]
            if len(columns) > 1 and found:
                yield found, columns


def ticks(columns: Sequence[Column]) -> dict[float, str]:
    """The radii as they are written."""
    return {0.0: "0", **{number(column.eps): column.eps for column in columns}}


def _curve(tables: Tables, columns: list[Column], subject: Subject) -> Curve | None:
    """From the clean accuracy at 0 on, the robust accuracy at each eps where it is established; None for one alone."""
    entries = [(column, tables.entries.get((subject, column))) for column in columns]
    points = [(number(column.eps), entry.robust) for column, entry in entries if entry and entry.robust]
    clean = next((entry.clean for _, entry in entries if entry and entry.clean), None)
    if len(points) < 2 or clean is None:  # a line takes two radii
        return None
    doubted = any(entry.doubted for _, entry in entries if entry)
    name = f"{subject} (doubted)" if doubted else str(subject)
    return Curve(name, (0.0, *(eps for eps, _ in points)), (clean, *(share for _, share in points)))


def _drawn(found: list[Curve], columns: list[Column], folder: Path) -> str:
    norm, _, attack = columns[0]
    with style.paper():
        figure, axes = style.new("two")
        style.curves(axes, found)
        axes.set_xlim(left=0)
        style.written(axes, ticks(columns))
        axes.set_xlabel(f"eps ({norm})")
        axes.set_title(f"{attack}, n = {found[0].y[0].n}", parse_math=False)
        style.percent(axes, "y", "robust accuracy")
        style.legend(axes, len(found))
        name = _free(folder, f"{norm}-{attack}")
        for ending in ENDINGS:
            style.save(figure, folder / f"{name}{ending}")
    return f"{name}.png"


def _free(folder: Path, words: str) -> str:
    """A file's name made of the words that no other figure has."""
    safe = "curve-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in words)[:80]
    name, place = safe, 2
    while (folder / f"{name}.png").exists():
        name, place = f"{safe}-{place}", place + 1
    return name
