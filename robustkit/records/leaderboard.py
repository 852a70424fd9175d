"""Leaderboards: a folder with `board.toml`, `entries/*.json` and a README that is rendered from them. No torch.

The board fixes the images, the threat model and the attack; an entry is the record of one run in the form of a
baseline, a sample a line. Every figure is computed from those samples. A board never changes under its name: another
rule is another board (`digits-linf-v2`).
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from robustkit import spec
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records import baseline, seal
from robustkit.records.files import write_text
from robustkit.records.findings import UNDECIDED, VALID, lacking
from robustkit.records.run import RunRecord
from robustkit.spec import suggest
from robustkit.stats import Proportion

BOARD, ENTRIES, README = "board.toml", "entries", "README.md"
Hashes = Callable[[Iterable[str]], Mapping[str, str]]  # the present code behind the names of `job.attack_sources`


@dataclass(frozen=True, slots=True)
class Board:
    """What every entry of a board was measured by. `data_sha256` is of the images, as run.json has it.

    `attacks` are those that the board's suite runs on every model, without `eot`; `sources` are the sha256 of the code,
    attacks' and judge's, that the board accepts. Either may be empty: then nothing of it is asked.
    """

    name: str
    title: str
    data: str
    data_sha256: str
    n: int
    norm: str
    eps: float
    attack: str
    seed: int = 0
    attacks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    about: str = ""

    def faults(self, record: RunRecord) -> list[str]:
        """Why a record is none of this board's; empty if it is."""
        job, wanted = record.job, {"data_sha256": self.data_sha256, "norm": self.norm, "attack": self.attack,
                                   "target": "", "carried": "", "precision": "float32"}  # fmt: skip
        found = [
            f"{key} is {str(job.get(key, ''))[:40]!r}, the board's {value[:40]!r}"
            for key, value in wanted.items()
            if job.get(key, "") != value
        ]
        images = spec.digest([record.samples["sha256"].tolist(), record.samples["label"].tolist()])
        if images != self.data_sha256:
            found.append(f"the hashes and labels of its samples make data_sha256 {images[:16]}…, not the board's")
        if not re.fullmatch("([0-9a-f]{64})?", job["model_sha256"]):  # empty for a model without weights
            found.append("its model_sha256 is no sha256")
        if record.n != self.n:
            found.append(f"it has {record.n} samples, the board {self.n}")
        if abs(job["eps"] - self.eps) > 1e-9:
            found.append(f"eps is {job['eps']:g}, the board's {self.eps:g}")
        if job["seed"] != self.seed:
            found.append(f"seed is {job['seed']}, the board's {self.seed}")
        if record.verdict == UNDECIDED:
            found.append(f"its audit is {record.warning}")
        return [*found, *self._other_code(job), *_half_told(record)]

    def _other_code(self, job: Mapping[str, Any]) -> Iterator[str]:
        """Attacks of the suite that did not run, and code that is not the board's."""
        ran = {_without_eot(name) for name in job["attacks"]}
        if missing := [name for name in self.attacks if name not in ran]:
            yield f"its attacks lack {', '.join(missing)} of the board's suite"
        sources = {name: code for name, code in job["attack_sources"].items() if not name.startswith("defense ")}
        for name in (*job["attacks"], "robustkit"):
            if name not in sources:
                yield f"its attack_sources lack {name}"
        for name, code in sources.items():
            if not re.fullmatch("[0-9a-f]{64}", code):
                yield f"its attack_sources give no sha256 for {name}"
            elif self.sources and code not in self.sources:
                yield f"the code of {name} is {code[:16]}…, which is none of the sources in {BOARD}; accept it there"
                return


def _half_told(record: RunRecord) -> Iterator[str]:
    """What a record must say of itself and does not."""
    job = record.job
    if (record.draws or job.get("noisy_sha256") or not job["probe_sha256"]) and not record.randomised:
        yield "its model is randomised, and no flag says so"
    if record.audit is not None and record.verdict == VALID and (missing := lacking(record.audit)):
        yield f"its audit lacks {', '.join(missing)}; audit it again"


def _without_eot(name: str) -> str:
    parsed = spec.parse(name)
    return str(replace(parsed, options={key: text for key, text in parsed.options.items() if key != "eot"}))


_OPTIONAL = [field.name for field in fields(Board) if field.default is not MISSING]


class Entry(NamedTuple):
    """A model on a board."""

    name: str
    record: RunRecord
    robust: Proportion

    @property
    def ranked(self) -> bool:
        """Whether an audit found its robust accuracy valid."""
        return self.record.verdict == VALID

    @property
    def accuracies(self) -> tuple[float, float]:
        """Robust and clean: what decides the rank."""
        return float(self.robust), float(self.record.clean_accuracy)

    @property
    def title(self) -> str:
        """Its name, and the defense that stands before the model."""
        defense = self.record.job.get("defense", "")
        return f"{self.name} behind {defense}" if defense else self.name


def load_board(folder: Path) -> Board:
    """The board in a folder.

    Raises:
        UsageError: if there is none, or it is not complete.
    """
    file = folder / BOARD
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{folder} is no leaderboard: {BOARD} cannot be read ({error})") from error
    hints = {field.name: field.type for field in fields(Board)}
    for key, value in content.items():
        if key not in hints:
            raise UsageError(f"{file}: " + suggest(key, hints, "setting"))
        if not _fits(value, hints[key]):
            raise UsageError(f"{file}: {key} is {value!r}, which is of the wrong type")
    if missing := [key for key in hints if key not in content and key not in _OPTIONAL]:
        raise UsageError(f"{file} lacks {', '.join(missing)}")
    settings: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in content.items()}
    return Board(**settings)


def _fits(value: Any, hint: Any) -> bool:
    if hint in (str, int, float):
        return isinstance(value, (int, float) if hint is float else hint) and not isinstance(value, bool)
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def load_entries(folder: Path, board: Board) -> list[Entry]:
    """The entries of a board: those with a valid robust accuracy first, each part by robust, then clean accuracy.

    Raises:
        UsageError: for an entry that cannot be read, is not as it was written or is none of this board's, and for two
            of one model.
    """
    found = [_entry(file, board) for file in sorted((folder / ENTRIES).glob("*.json"))]
    names: dict[tuple[str, str], str] = {}
    for entry in found:
        known = names.setdefault(_identity(entry.record.job), entry.name)
        if known != entry.name:
            raise UsageError(f"{folder / ENTRIES}: {known} and {entry.name} are one model; remove one of them")
    return sorted(found, key=lambda e: (not e.ranked, *(-share for share in e.accuracies), e.name))


def _entry(file: Path, board: Board) -> Entry:
    record, name = baseline.load_entry(file)
    if name and name != file.stem:
        raise UsageError(f"{file} is the entry {name}; give it its name again")
    if faults := board.faults(record):
        raise UsageError(f"{file} is no entry of {board.name}: {'; '.join(faults)}")
    if record.robust_accuracy is None:
        raise UsageError(f"{file}: {record.why_no_robust_accuracy}; run it again")
    return Entry(file.stem, record, record.robust_accuracy)


def add(folder: Path, run: Path, name: str = "") -> Path:
    """Make a run an entry, by default under the name of its model and defense; returns the entry's file.

    Raises:
        UsageError: if the run is none of this board's, or the name is taken by another model.
        NotEstablishedError: if its robust accuracy is not established.
    """
    board, record = load_board(folder), baseline.read(run)
    for note in record.notes:
        if seal.UNSEALED in note:
            raise UsageError(f"{run} was not added: {note}; evaluate it again")
    if faults := board.faults(record):
        raise UsageError(f"{run} is no entry of {board.name}: {'; '.join(faults)}")
    if record.robust_accuracy is None:
        raise NotEstablishedError(f"{run} was not added: {record.why_no_robust_accuracy}")
    whole = "-".join(filter(None, (record.job["model"], record.job.get("defense", ""))))
    name = name or "".join(c if c.isalnum() or c in "._-" else "-" for c in whole).strip("-.")
    if not name or Path(name).name != name:
        raise UsageError(f"{name!r} is no name for an entry; give --name with letters, digits, - and .")
    file = folder / ENTRIES / f"{name}.json"
    known = {entry.name: _identity(entry.record.job) for entry in load_entries(folder, board)}
    this = _identity(record.job)
    if known.get(name, this) != this:
        raise UsageError(f"{file} is the entry of another model; give another --name")
    if others := [other for other, identity in known.items() if identity == this and other != name]:
        raise UsageError(f"{run} is of a model that is on the board already, as {others[0]}; give that --name")
    file.parent.mkdir(exist_ok=True)
    baseline.save(record, file, entry=name)
    return file


def render(board: Board, entries: Sequence[Entry], present: Hashes) -> str:
    """The README of a board; it names the entries whose attacks' code is not the present one."""
    proofs = any(entry.record.certified_accuracy is not None for entry in entries)
    lines = [
        f"# {_cell(board.title)}",
        "",
        *([board.about.strip(), ""] if board.about else []),
        f"`{board.name}`: {board.n} images of `{board.data}` (sha256 `{board.data_sha256[:16]}…`), {board.norm} eps "
        f"{board.eps:.6g}, attack `{board.attack}`.",
        "In %, with 95 % Wilson intervals: models whose intervals overlap may stand in another order on other images.",
        "Only what an audit found valid is ranked.",
        "",
        *(["Certified: proved robust by bounds, whatever the attack; certified ≤ true robust accuracy ≤ robust.", ""]
          if proofs else []),
        f"| rank | model |{' certified accuracy |' if proofs else ''} robust accuracy | clean accuracy | audit | "
        "model sha256 |",
        f"|---:|---|{'---:|' if proofs else ''}---:|---:|---|---|",
    ]  # fmt: skip
    ranked = [entry.accuracies for entry in entries if entry.ranked]
    for entry in entries:
        record, place = entry.record, 1 + sum(accuracies > entry.accuracies for accuracies in ranked)
        lines.append(
            f"| {place if entry.ranked else '–'} | {_cell(entry.title)} | "
            f"{(_proved(record) + ' | ') if proofs else ''}{_share(entry.robust)} | "
            f"{_share(record.clean_accuracy)} | {_cell(record.verdict)} | `{record.job['model_sha256'][:16]}` |"
        )
    doubts = [f"- {_cell(entry.title)}: {_cell(entry.record.warning)}" for entry in entries if entry.record.warning]
    unsealed = [_cell(entry.name) for entry in entries if entry.record.notes]
    how = (
        f"robustkit eval --model … --dataset {board.data} -n {board.n} --norm {board.norm} --eps {board.eps!r} "
        f"--attack {board.attack} --audit --out RUN"
    )
    lines += [
        *(["", "Doubted by their audit:", "", *doubts] if doubts else []),
        *_of_other_code(entries, present),
        *(["", f"Without a digest, so that an edit would not be seen: {', '.join(unsealed)}."] if unsealed else []),
        "",
        "To add a model:",
        "",
        f"    {how}",
        "    robustkit leaderboard add . RUN",
        "    robustkit leaderboard render .",
        "",
        "Rendered from `entries/`; do not edit.",
    ]
    return "\n".join(lines) + "\n"


def _of_other_code(entries: Sequence[Entry], present: Hashes) -> list[str]:
    """One line on the entries whose attacks, or their library, or the defense, have other code now."""
    found = []
    for entry in entries:
        # Not the harness's part: it changes often, and its facts are held to golden ones.
        made = {name: value for name, value in entry.record.job["attack_sources"].items() if name != "robustkit"}
        if made != present(made):
            found.append(_cell(entry.title))
    which = "all entries" if len(found) == len(entries) else ", ".join(found)
    return ["", f"Made with attack code whose hash is not that of the present code: {which}."] if found else []


def write(folder: Path, present: Hashes) -> Path:
    """Render a board's README into its folder.

    Raises:
        UsageError: see `load_board` and `load_entries`.
    """
    board = load_board(folder)
    write_text(folder / README, render(board, load_entries(folder, board), present))
    return folder / README


def _identity(job: Mapping[str, Any]) -> tuple[str, str]:
    """What an entry is of: the weights (without any, the answers) and the defense before them."""
    known = job["model_sha256"] or job["probe_sha256"] or job.get("noisy_sha256") or job["model"]
    return known, job.get("defense", "")


def _share(value: Proportion) -> str:
    return f"{100 * float(value):.2f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _proved(record: RunRecord) -> str:
    return "–" if record.certified_accuracy is None else _share(record.certified_accuracy)


def _cell(text: str) -> str:
    """Text of others as a cell of a Markdown table: no markup, no line break."""
    plain = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in plain)
