"""A study's evaluations compared: which of the defended models is best under an attack, which are as good. No torch.

Rows are models behind defenses, columns attacks under a threat model. Runs that differ in the seed alone count as one:
a sample is robust if none of them broke it, as with restarts. All rows are on the same images, so that they are
compared sample by sample; one that the audit doubts does not compete.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

from robustkit.records.compare import Change
from robustkit.records.findings import DOUBTED
from robustkit.records.schema import ROBUST
from robustkit.stats import Proportion
from robustkit.study.plan import NO_DEFENSE, Cell
from robustkit.study.results import Facts, Results, combined, share

LEVEL = 0.05
ALL = "all attacks"
Row = TypeVar("Row", bound=Hashable)


class Subject(NamedTuple):
    """A row: a model behind a defense, by their labels."""

    model: str
    defense: str

    def __str__(self) -> str:
        return self.model if self.defense == NO_DEFENSE else f"{self.model} + {self.defense}"


class Column(NamedTuple):
    """A column: an attack, or all of them, under one threat model."""

    norm: str
    eps: str
    attack: str


class Mark(NamedTuple):
    """How a row stands against the best of its column.

    `p` is the exact two-sided p of McNemar's paired test against the best, Holm-corrected for the rows that are
    compared with it; 1 of the best.
    """

    best: bool
    p: float

    @property
    def as_good(self) -> bool:
        """Whether the row is not significantly worse than the best, though not the best itself."""
        return not self.best and self.p >= LEVEL


class Entry(NamedTuple):
    """One number of a table, or why it is not there."""

    robust: Proportion | None
    clean: Proportion | None
    by_seed: tuple[float, ...]
    why: str
    mark: Mark | None
    runs: tuple[Facts, ...]

    @property
    def doubted(self) -> bool:
        """Whether the audit of a run behind it says that the number cannot be relied on; too few samples do not."""
        return any(run.verdict in DOUBTED for run in self.runs)


def latex_cell(value: Proportion | None, mark: Mark | None, *, doubted: bool = False) -> str:
    """A share with its interval and its mark."""
    if value is None:
        return "--"
    number = f"{100 * float(value):.1f}"
    number = rf"\textbf{{{number}}}" if mark and mark.best else number
    dagger = r"$^{\ddagger}$" if doubted else r"$^{\dagger}$" if mark and mark.as_good else ""
    return rf"{number}{dagger} {{\scriptsize[{100 * value.low:.1f}, {100 * value.high:.1f}]}}"


def marks(column: Mapping[Row, np.ndarray]) -> dict[Row, Mark]:
    """Mark the rows of a column; `column` maps each to which samples it gets right. One row alone has no mark."""
    if len(column) < 2:
        return {}
    most = max(int(good.sum()) for good in column.values())
    best = {row for row, good in column.items() if int(good.sum()) == most}
    against = column[next(row for row in column if row in best)]
    index = np.arange(len(against))
    raw = {row: min(1.0, 2 * Change.of(index, against, good).p) for row, good in column.items() if row not in best}
    return {**{row: Mark(True, 1.0) for row in best}, **{row: Mark(False, p) for row, p in holm(raw).items()}}


def holm(raw: Mapping[Row, float]) -> dict[Row, float]:
    """p-values corrected for their number by Holm's step-down rule (Holm 1979)."""
    corrected: dict[Row, float] = {}
    floor = 0.0
    for rank, (row, p) in enumerate(sorted(raw.items(), key=lambda item: item[1])):
        floor = max(floor, min(1.0, (len(raw) - rank) * p))
        corrected[row] = floor
    return corrected


@dataclass(frozen=True)
class Tables:
    """The entries of a study by row and column."""

    results: Results

    @cached_property
    def cells(self) -> list[Cell]:
        """The evaluations, in the study's order."""
        return self.results.study.cells()

    @cached_property
    def subjects(self) -> list[Subject]:
        """The rows."""
        return list(dict.fromkeys(Subject(cell.model, cell.defense) for cell in self.cells))

    @cached_property
    def attacks(self) -> list[str]:
        """The attacks, and all of them together if there are several."""
        named = list(dict.fromkeys(cell.attack for cell in self.cells))
        return [*named, ALL] if len(named) > 1 else named

    @cached_property
    def columns(self) -> list[Column]:
        """The columns, by threat model and attack."""
        threats = list(dict.fromkeys((cell.norm, cell.eps) for cell in self.cells))
        return [Column(norm, eps, attack) for norm, eps in threats for attack in self.attacks]

    @cached_property
    def entries(self) -> dict[tuple[Subject, Column], Entry]:
        """All that has a cell in the study."""
        found: dict[tuple[Subject, Column], Entry] = {}
        for column in self.columns:
            rows, good = {}, {}
            for subject in self.subjects:
                if cells := self._cells_of(subject, column):
                    rows[subject], which = self._entry(cells)
                    if which is not None and not rows[subject].doubted:
                        good[subject] = which
            data = {run.job["data_sha256"] for entry in rows.values() for run in entry.runs}
            marked = marks(good) if len(data) == 1 else {}  # images that were changed meanwhile do not compare
            for subject, entry in rows.items():
                found[subject, column] = entry._replace(mark=marked.get(subject))
        return found

    def _cells_of(self, subject: Subject, column: Column) -> list[Cell]:
        return [
            cell
            for cell in self.cells
            if (cell.model, cell.defense, cell.norm, cell.eps) == (*subject, column.norm, column.eps)
            and column.attack in (cell.attack, ALL)
        ]

    def _entry(self, cells: Sequence[Cell]) -> tuple[Entry, np.ndarray | None]:
        runs = [self.results.facts[cell] for cell in cells if cell in self.results.facts]
        why = "; ".join(self._failed[cell] for cell in cells if cell not in self.results.facts)
        robust, right = None, None
        if runs:
            robust, right, undecided = combined(runs)
            why = why or undecided
        if why:
            robust = None
        one = {cell.attack for cell in cells}
        by_seed = tuple(float(share(r.status == ROBUST)) for r in runs) if len(one) == 1 and robust is not None else ()
        clean = share(right) if right is not None else None
        return Entry(share(robust) if robust is not None else None, clean, by_seed, why, None, tuple(runs)), robust

    @cached_property
    def _failed(self) -> dict[object, str]:
        return {outcome.cell: outcome.failed for outcome in self.results.outcomes}
