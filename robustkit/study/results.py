"""What a study left in its folder: for each cell the folder of its run, or why there is none. No torch."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.errors import UsageError
from robustkit.locks import besides, sweep
from robustkit.records import consistency, seal
from robustkit.records.files import dumps, read_json, write_text
from robustkit.records.folder import load_run
from robustkit.records.run import RunRecord
from robustkit.records.schema import BROKEN, STUDY, UNKNOWN, WRONG
from robustkit.records.transfer import TransferRecord
from robustkit.records.transfer_folder import load_transfer
from robustkit.spec import canonical
from robustkit.stats import Proportion
from robustkit.study import grammar
from robustkit.study.plan import Cell, Study, TransferCell

SCHEMA = STUDY
FILE = "study.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended: the folder of its run below the study's, and why its number is not there, if it is not."""

    cell: Cell | TransferCell
    run: str
    failed: str

    def to_json(self) -> dict[str, Any]:
        """As in `study.json`."""
        return {"cell": self.cell.to_json(), "run": self.run, "failed": self.failed or None}


@dataclass(frozen=True)
class Facts:
    """What a report needs of one evaluation: each sample's status, and what the run says of itself.

    `undecided` says why the evaluation establishes no robust accuracy though no sample is UNKNOWN; empty if it does.
    """

    index: np.ndarray
    sha256: np.ndarray
    status: np.ndarray
    undecided: str
    unknown_because: str
    verdict: str
    warning: str
    rule: str
    job: Mapping[str, Any]
    notes: tuple[str, ...]
    forwards: int
    backwards: int
    seconds: float
    finished: str = ""  # when the run was, as `About` has it

    @classmethod
    def of(cls, record: RunRecord) -> "Facts":
        """Of a record."""
        return cls(
            index=record.samples["index"],
            sha256=record.samples["sha256"],
            status=record.samples["status"],
            undecided="" if record.unknown and not record.unvoted else record.why_no_robust_accuracy,
            unknown_because=record.why_no_robust_accuracy if record.unknown else "",
            verdict=record.verdict,
            warning=record.warning,
            rule=record.rule,
            job={key: value for key, value in record.job.items() if key != "indices"},
            notes=tuple(str(flag["message"]) for flag in record.flags),
            forwards=int(record.attacks["forwards"].sum()),
            backwards=int(record.attacks["backwards"].sum()),
            seconds=float(sum(record.seconds.values())),
            finished=record.about.finished,
        )


@dataclass(frozen=True)
class Results:
    """A finished study: how each cell ended, the facts of the evaluations, the records of the transfer runs."""

    study: Study
    outcomes: Sequence[Outcome]
    facts: Mapping[Cell, Facts]
    transfers: Mapping[TransferCell, TransferRecord]

    @property
    def established(self) -> bool:
        """Whether every cell has its number."""
        return not any(outcome.failed for outcome in self.outcomes)

    def save(self, folder: Path) -> None:
        """Write `study.json`: what was asked, and where the runs are."""
        data = {
            "schema": SCHEMA,
            "name": self.study.name,
            "study": dict(self.study.source),
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
        }
        write_text(folder / FILE, dumps(seal.sealed(data)))


def reason(record: RunRecord | TransferRecord) -> str:
    """Why a record's number, or one of them, is not established; empty if all are."""
    if isinstance(record, RunRecord):
        return record.why_no_robust_accuracy
    return "; ".join(dict.fromkeys(cell.why for cell in record.cells.values() if cell.of_all is None))


def load(folder: Path) -> Results:
    """The results that a study left in its folder.

    Raises:
        UsageError: if there are none, they cannot be read, or a run was since replaced.
    """
    data = read_json(folder / FILE, ("name", "study", "outcomes"), SCHEMA)
    with consistency.readable(folder / FILE):
        study = grammar.parse(data["study"], data["name"])
        if data["outcomes"] is None:
            raise UsageError(f"the study in {folder} is not finished; run its command again to continue it")
        both: list[Cell | TransferCell] = [*study.cells(), *study.transfers()]
        cells = {canonical(cell.to_json()): cell for cell in both}
        outcomes, facts, transfers = [], {}, {}
        for each in data["outcomes"]:
            cell = cells[canonical(each["cell"])]
            outcomes.append(Outcome(cell, each["run"], each["failed"] or ""))
            if each["run"] and isinstance(cell, Cell):
                facts[cell] = Facts.of(_run(folder / each["run"]))
            elif each["run"] and isinstance(cell, TransferCell):
                transfers[cell] = load_transfer(folder / each["run"])
    return Results(study, outcomes, facts, transfers)


def _run(folder: Path) -> RunRecord:
    record = load_run(folder)
    if not record.job["id"].startswith(folder.name.rpartition("-")[2]):  # a cell's folder is named by its job
        raise UsageError(f"{folder} holds another run than the study put there; run the study again")
    return record


def begin(study: Study, folder: Path, *, fresh: bool = False) -> str:
    """Mark a folder as this study's, with no results yet; who does it must be `at_work` there.

    Says what of an earlier form's report will be gone.

    Raises:
        UsageError: if it holds something else, or (unless `fresh`) another study: one that shares nothing.
    """
    if folder.is_dir() and besides(folder) and not (folder / FILE).is_file():
        raise UsageError(f"{folder} is not empty and holds no study; choose another --out")
    note = "" if fresh or not (folder / FILE).is_file() else _earlier(study, folder)
    sweep(folder)
    data = {"schema": SCHEMA, "name": study.name, "study": dict(study.source), "outcomes": None}
    write_text(folder / FILE, dumps(seal.sealed(data)))
    return note


def _earlier(study: Study, folder: Path) -> str:
    """How much of the report in a folder this study has no more; empty if it has all of it.

    Raises:
        UsageError: if it has none of it, be it at another eps, seed or n.
    """
    data = read_json(folder / FILE, ("name", "study"), SCHEMA)
    with consistency.readable(folder / FILE):
        known = grammar.parse(data["study"], data["name"])
    before, now = _parts(known), _parts(study)
    if before and {part[:5] for part in before}.isdisjoint(part[:5] for part in now):
        raise UsageError(
            f"{folder} holds another study, {known.title!r}, which shares nothing with this one; choose another --out, "
            "or --fresh to replace its report"
        )
    gone = len(before - now)
    return f"{gone} of {len(before)} numbers in the report in {folder} are not in this study and will be gone" * bool(
        gone
    )


def _parts(study: Study) -> set[tuple[Any, ...]]:
    """What each number of a study is of, whatever its labels: first data, models, attack and norm, then the rest."""
    rest = tuple(str(study.options.get(key)) for key in ("n", "indices", "target"))
    found: set[tuple[Any, ...]] = {
        (study.data, study.models[c.model], study.defenses[c.defense], study.attacks[c.attack], c.norm,
         c.eps, c.seed, *rest)
        for c in study.cells()
    }  # fmt: skip
    if study.transfer is not None:
        sides = [each.values() for each in (study.transfer.surrogates, study.transfer.victims, study.transfer.attacks)]
        found |= {
            (study.data, source, victim, attack, c.norm, c.eps, c.seed, *rest)
            for c in study.transfers()
            for source, victim, attack in itertools.product(*sides)
        }
    return found


def combined(runs: Sequence[Facts]) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Several evaluations of the same samples as one, as if they were one run of all their attacks.

    Returns:
        Which samples no run broke and which are right unattacked, or None where that is not established; and why not.
    """
    first = runs[0]
    for run in runs[1:]:
        if not (np.array_equal(run.index, first.index) and np.array_equal(run.sha256, first.sha256)):
            return None, None, "the runs are not on the same images"
    status = np.stack([run.status for run in runs])
    wrong, broken = (status == WRONG).any(0), (status == BROKEN).any(0)
    unknown = int(((status == UNKNOWN).any(0) & ~wrong & ~broken).sum())
    why = f"{unknown} of {len(wrong)} samples are UNKNOWN" if unknown else ""
    if unknown and (because := [run.unknown_because for run in runs if run.unknown_because]):
        why = because[0] if len(runs) == 1 else f"{why} ({because[0]})"
    if all(run.undecided for run in runs):
        why = why or runs[0].undecided
    return (None if why else ~wrong & ~broken), ~wrong, why


def share(which: np.ndarray) -> Proportion:
    """The share of samples that `which` holds."""
    return Proportion(int(which.sum()), len(which))
