"""A sweep over eps: one record an eps, and the accuracy–eps table that they make. Reading one needs no torch."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.errors import UsageError
from robustkit.records import baseline, consistency
from robustkit.records.compare import Comparison, compare
from robustkit.records.files import Stored, text_file, write_record
from robustkit.records.folder import SWEEP_FILE, load_run
from robustkit.records.run import RunRecord
from robustkit.records.schema import SWEEP, WRONG
from robustkit.records.seal import AGAIN
from robustkit.records.shown import Shown
from robustkit.records.text import audited, labelled_as, share, warning
from robustkit.spec import digest, number

FILE = SWEEP_FILE


def parse_eps(text: str) -> list[str]:
    """The radii of `2/255,4/255,8/255`, as they are written.

    Raises:
        UsageError: unless they grow.
    """
    texts = [part.strip() for part in text.split(",")]
    values = [number(part) for part in texts]
    if any(b <= a for a, b in itertools.pairwise(values)):
        raise UsageError(f"--eps {text}: the radii of a sweep must grow, as in 2/255,4/255,8/255")
    return texts


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Sweep(Shown):
    """The records of one sweep, by growing eps; each counts what a smaller eps broke as broken."""

    eps: tuple[str, ...]
    records: tuple[RunRecord, ...]
    notes: tuple[str, ...] = ()  # what came up when it was read from its folder

    @property
    def established(self) -> bool:
        """Whether every eps has a robust accuracy."""
        return all(record.robust_accuracy is not None for record in self.records)

    def to_json(self) -> dict[str, Any]:
        """The table, and each eps's `run.json`."""
        rows = [
            {
                "eps": text,
                "value": record.job["eps"],
                "robust_accuracy": record.robust_accuracy.to_json() if record.robust_accuracy else None,
                "clean_accuracy": record.clean_accuracy.to_json(),
                "carried": record.carried,
                "unknown": record.unknown,
                "verdict": record.verdict,
            }
            for text, record in zip(self.eps, self.records, strict=True)
        ]
        return {"schema": SWEEP, "table": rows, "runs": [record.to_json() for record in self.records]}

    def summary(self) -> str:
        """The accuracy–eps table as text."""
        first = self.records[0]
        lines = [
            self.heading(),
            f"{'eps':>10}  robust accuracy",
            f"{'0':>10}  {share(first.clean_accuracy)}",
        ]
        for text, record in zip(self.eps, self.records, strict=True):
            attacked = record.n - record.counts[WRONG] - record.carried
            lines.append(f"{text:>10}  {share(record.robust_accuracy)}  ({attacked} attacked)")
            if record.certified_accuracy is not None:
                lines.append(f"{'':>10}  {record.certified_accuracy} certified")
            lines += [f"{'':>10}  {line}" for line in warning(record)]
            if record.why_no_robust_accuracy:
                lines.append(f"{'':>10}  because {record.why_no_robust_accuracy}")
        lines.append(f"95 % Wilson intervals; {', '.join(sorted({audited(r) for r in self.records}))}")
        notes = dict.fromkeys([*self.notes, *(note for record in self.records for note in record.notes)])
        return "\n".join([*lines, *(f"note: {note}" for note in notes)])

    def heading(self) -> str:
        """What was attacked, with what."""
        return heading(self.records[0])

    def in_brief(self) -> list[tuple[str, str]]:
        """Four lines: clean, the smallest and the largest eps, and how many there are."""
        ends = [(self.eps[place], self.records[place]) for place in (0, -1)]
        verdicts = ", ".join(dict.fromkeys(record.verdict for record in self.records))
        return [
            ("clean accuracy", share(self.records[0].clean_accuracy)),
            *((f"robust at {eps}", share(record.robust_accuracy)) for eps, record in ends),
            ("eps", f"{len(self.eps)}: {', '.join(self.eps)}; {verdicts}"),
        ]

    @property
    def identity(self) -> str:
        """The sha256 of the runs' jobs and facts."""
        return digest([record.identity for record in self.records])

    def save(self, folder: Path, pages: Mapping[str, str]) -> None:
        """Write the table and its reports beside the runs' folders; `pages` has the text of each report by its name."""
        files = {name: text_file(text) for name, text in pages.items()}
        write_record(folder / FILE, {**self.to_json(), "eps": list(self.eps)}, files)


class Paired(NamedTuple):
    """Two records at one eps, as it is written before, and what changed from one to the other."""

    eps: str
    before: RunRecord
    after: RunRecord
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """The comparison, with its eps."""
        return {"eps": self.eps, **self.comparison.to_json()}


def compare_sweeps(before: Sweep | RunRecord, after: Sweep | RunRecord) -> list[Paired]:
    """What changed at each eps that both have; a run has one.

    Raises:
        UsageError: if they share no eps, or no sample.
        NotEstablishedError: if a shared sample is UNKNOWN in one.
    """
    earlier, later = _by_eps(before), _by_eps(after)
    found = []
    for radius, (eps, record) in earlier.items():
        if radius in later:
            other = later[radius][1]
            pair = compare(record, other)
            # Each carries the run before it in its own sweep: that these differ says nothing.
            differs = tuple(what for what in pair.differs if not what.startswith("carried "))
            found.append(Paired(eps, record, other, replace(pair, differs=differs)))
    if not found:
        before_them, after_them = (", ".join(eps for eps, _ in each.values()) for each in (earlier, later))
        raise UsageError(f"the two share no eps: {before_them} before, {after_them} after")
    return found


def _by_eps(stored: Sweep | RunRecord) -> dict[float, tuple[str, RunRecord]]:
    sweep = stored if isinstance(stored, Sweep) else Sweep((stored.eps,), (stored,))
    rows = zip(sweep.eps, sweep.records, strict=True)
    return {float(record.job["eps"]): (eps, record) for eps, record in rows}


def read(path: Path) -> Sweep | RunRecord:
    """The sweep or run in a folder, or the record in a baseline file.

    Raises:
        UsageError: if there is none of these.
    """
    return load_sweep(path) if (path / FILE).is_file() else baseline.read(path)


def labelled(stored: Sweep | RunRecord, label: str) -> Sweep | RunRecord:
    """The same, called so; as it is, if the label is empty."""
    if not label:
        return stored
    if isinstance(stored, Sweep):
        return replace(stored, records=tuple(replace(r, about=replace(r.about, label=label)) for r in stored.records))
    return replace(stored, about=replace(stored.about, label=label))


def heading(first: RunRecord) -> str:
    """What was attacked, with what; from one of the sweep's records."""
    job = first.job
    label = labelled_as(first.about.label)
    return f"{label}{job['model']} on {job['data']} (n = {first.n}), {job['norm']}, {job['attack']}, seed {job['seed']}"


def run_folder(folder: Path, place: int) -> Path:
    """The folder of the sweep's run at one eps."""
    return folder / f"eps-{place + 1:02d}"


def check_place(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UsageError: if it is not empty and holds no sweep.
    """
    if folder.is_dir() and any(folder.iterdir()) and not run_folder(folder, 0).is_dir():
        raise UsageError(f"{folder} is not empty and holds no sweep; choose another --out")


def load_sweep(folder: Path) -> Sweep:
    """The sweep stored in a folder.

    Raises:
        UsageError: if there is none, one of its runs cannot be read, or is another than the sweep was made of.
    """
    found = Stored.read(folder / FILE, ("eps", "runs"), SWEEP)
    with consistency.readable(folder / FILE):
        texts: Sequence[str] = found.data["eps"]
        records = [load_run(run_folder(folder, place)) for place in range(len(texts))]
        for text, record, known in zip(texts, records, found.data["runs"], strict=True):
            if record.job["id"] != known["job"]["id"] or record.job["eps"] != number(text):
                raise UsageError(f"{record.folder} holds another run than the sweep had at eps {text}; {AGAIN}")
    return Sweep(tuple(texts), tuple(records), found.notes)
