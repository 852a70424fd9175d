"""Run a study: each cell an evaluation in a folder of its own, named by its job. What is there is not computed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from robustkit import events
from robustkit.errors import RobustkitError
from robustkit.evaluation import evaluate
from robustkit.locks import at_work
from robustkit.models.turns import one_at_a_time
from robustkit.records.run import RunRecord
from robustkit.records.text import share
from robustkit.records.transfer import TransferRecord
from robustkit.spec import Job
from robustkit.study import files
from robustkit.study.check import check
from robustkit.study.events import CellDone, CellStarted, Event, Finished, Started, Within
from robustkit.study.plan import Cell, Study, TransferCell
from robustkit.study.results import Facts, Outcome, Results, begin, reason
from robustkit.transfers import transfer

RUNS = "runs"
_OF_TRANSFER = ("n", "indices", "target", "trust", "device", "batch_size", "shard_size", "tile")


@one_at_a_time()
def run(study: Study, folder: Path, *, fresh: bool = False, on_event: Callable[[Event], None] | None = None) -> Results:
    """Compute what the folder does not hold yet, and write the report there.

    A cell that cannot be run or decided is listed with its reason, and the others go on.

    Args:
        study: see `grammar.read`.
        folder: where the runs and the report go; of this study or an earlier form of it, or empty.
        fresh: forget what the folder holds of these runs, and whose report it is.
        on_event: told of progress, see `robustkit.study.events`.

    Raises:
        UsageError: if a name or option of the study is not known, or the folder holds something else or is at work.
    """
    check(study)
    with at_work(folder):
        note = begin(study, folder, fresh=fresh)
        threads = torch.get_num_threads()
        torch.set_num_threads(study.threads or threads)
        try:
            results = _computed(study, folder, note, fresh=fresh, tell=on_event or (lambda event: None))
        finally:
            torch.set_num_threads(threads)
        written = files.write(results, folder)
        results.save(folder)  # last, so that its presence means the rest is there
    if on_event is not None:
        on_event(Finished(written))
    return results


def _computed(study: Study, folder: Path, note: str, *, fresh: bool, tell: Callable[[Event], None]) -> Results:
    cells: list[Cell | TransferCell] = [*study.cells(), *study.transfers()]
    tell(Started(study.title, len(cells), note))
    outcomes: list[Outcome] = []
    facts: dict[Cell, Facts] = {}
    transfers: dict[TransferCell, TransferRecord] = {}
    smaller: dict[tuple[object, ...], RunRecord] = {}
    for number, cell in enumerate(cells, start=1):
        tell(CellStarted(number, str(cell)))
        watch = _Watch(folder, tell)
        record: RunRecord | TransferRecord | None = None
        try:
            if isinstance(cell, Cell):
                carry = smaller.get(cell.chain) if study.carry else None
                record = _evaluate(study, cell, watch, fresh=fresh, carry=carry)
                facts[cell] = Facts.of(record)
                smaller = {cell.chain: record}  # the next cell of a chain comes next
            else:
                record = transfers[cell] = _transfer(study, cell, watch, fresh=fresh)
            failed = reason(record)
        except RobustkitError as error:
            failed = str(error)
        except Exception as error:  # the model's code or an attack's: a night's study is not lost to one of its cells
            failed = f"{type(error).__name__}: {error}"
        place = "" if record is None else Path(record.folder or "").relative_to(folder).as_posix()
        outcomes.append(Outcome(cell, place, " ".join(failed.split())))
        tell(CellDone(number, outcomes[-1], _line(record), watch.computed))
    return Results(study, outcomes, facts, transfers)


class _Watch:
    """Passes the events of one cell on; knows its folder, and whether anything was computed in it."""

    def __init__(self, folder: Path, tell: Callable[[Event], None]) -> None:
        self.folder, self.tell, self.computed = folder, tell, False

    def __call__(self, event: Any) -> None:
        self.computed |= not isinstance(event, events.Started | events.Noted | events.Finished)
        self.tell(Within(event))

    def place(self, job: Job) -> Path:
        """The folder of an evaluation: by what it is, so that equal ones share it and other ones never do."""
        behind = f"-{job.defense}" if job.defense else ""
        return self.folder / RUNS / _name(f"{job.model}{behind}-{job.attack}-{job.norm}-{job.eps:.6g}", job.id)

    def transfer_place(self, job: Mapping[str, Any]) -> Path:
        """The folder of a transfer run, which further attacks and victims share."""
        return self.folder / RUNS / _name(f"transfer-{job['norm']}-{job['eps']:.6g}", job["base"])


def _name(words: str, identity: str) -> str:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._=") else "-" for c in words)
    return f"{safe[:100].strip('-.')}-{identity[:12]}"


def _evaluate(study: Study, cell: Cell, watch: _Watch, *, fresh: bool, carry: RunRecord | None) -> RunRecord:
    return evaluate(
        study.models[cell.model],
        study.data,
        study.attacks[cell.attack],
        defense=study.defenses[cell.defense],
        norm=cell.norm,  # type: ignore[arg-type]
        eps=cell.eps,
        seed=cell.seed,
        out=watch.place,
        fresh=fresh,
        on_event=watch,
        carry=carry,
        **study.options,
    )


def _transfer(study: Study, cell: TransferCell, watch: _Watch, *, fresh: bool) -> TransferRecord:
    asked = study.transfer
    assert asked is not None  # a study without transfer has no such cell
    return transfer(
        asked.surrogates,
        asked.victims,
        asked.attacks,
        study.data,
        sets=asked.sets,
        norm=cell.norm,  # type: ignore[arg-type]
        eps=cell.eps,
        seed=cell.seed,
        out=watch.transfer_place,
        fresh=fresh,
        on_event=watch,
        **{key: value for key, value in study.options.items() if key in _OF_TRANSFER},
    )


def _line(record: RunRecord | TransferRecord | None) -> str:
    if isinstance(record, RunRecord):
        doubt = f" ({record.verdict.upper()})" if record.warning else ""
        return f"robust accuracy {share(record.robust_accuracy)}{doubt}"
    return f"{len(record.cells)} success rates" if record else ""
