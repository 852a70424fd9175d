"""What a study tells while it works; the command line turns it into one display."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustkit.study.results import Outcome


@dataclass(frozen=True, slots=True)
class Started:
    """The study is checked: its title, how many cells it has, and what of the report in its folder will be gone."""

    title: str
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A cell begins, the first is number 1."""

    number: int
    title: str


@dataclass(frozen=True, slots=True)
class Within:
    """What the evaluation or the transfer run of the current cell tells."""

    event: Any


@dataclass(frozen=True, slots=True)
class CellDone:
    """A cell ended: its outcome, one line on its result, and whether anything had to be computed for it."""

    number: int
    outcome: Outcome
    result: str
    computed: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """All cells ended and the report is written; its files by name."""

    files: Mapping[str, str]


Event = Started | CellStarted | Within | CellDone | Finished
