"""What an audit finds, as a record keeps it: checks with their numbers, and the verdict from them. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from robustkit.errors import UsageError
from robustkit.records.about import About
from robustkit.records.files import read_json, save_record
from robustkit.records.schema import AUDIT, AUDITED
from robustkit.records.shown import Shown
from robustkit.spec import digest

Outcome = Literal["fine", "suspect", "invalid", "undecided", "skipped"]
OUTCOMES: tuple[Outcome, ...] = ("fine", "suspect", "invalid", "undecided", "skipped")
Verdict = Literal["valid", "suspect", "invalid", "undecided"]
VALID: Verdict = "valid"
SUSPECT: Verdict = "suspect"
INVALID: Verdict = "invalid"
UNDECIDED: Verdict = "undecided"
DOUBTED = (SUSPECT, INVALID)  # a sign against the number; undecided is none, only too little evidence
NOT_AUDITED = "not audited"
RESULT = "audit.json"  # in the folder of an audit by itself
MEANS: Mapping[str, str] = {  # what a verdict says of a robust accuracy
    VALID: "no sign of masked gradients was found: a robust accuracy under a strong attack can be believed",
    SUSPECT: "do not rely on a robust accuracy of this model",
    INVALID: "a robust accuracy of this model is not one: the attacks that measure it do not see the model",
    UNDECIDED: "too little evidence to tell, and no sign against it",
}
# What every audit that finds a robust accuracy valid has looked at, whatever the norm and the model.
WHOLE = (
    "state", "randomness", "threat-model", "hard-outputs", "saturated-outputs", "gradient-flow", "zero-gradient",
    "misleading-gradient", "gradient-steadiness", "sample", "attacks", "sample-size", "claim", "step-convergence",
    "restarts", "eps-sweep", "eps-monotone", "noise",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers to plot: y over x, of one length."""

    x: Sequence[float]
    y: Sequence[float]
    x_label: str
    y_label: str


@dataclass(frozen=True, slots=True)
class Check:
    """One question that was asked, and what was seen: `value` is compared with `limit`, `text` says it in words.

    Shares are fractions in [0,1] of the audit's samples.
    """

    name: str
    outcome: Outcome
    text: str
    value: float | None = None
    limit: float | None = None
    series: Series | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Audit:
    """All checks of one audit, in the order in which they are read.

    `subject` is what was audited, as JSON data: model, data, threat model. A run's record, which knows, has it empty.
    """

    checks: tuple[Check, ...]
    subject: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def verdict(self) -> Verdict:
        """The worst outcome of any check: one sign of a masked gradient is enough for a doubt.

        Without such a sign it is undecided where there were too few samples to tell, or no evidence at all.
        """
        outcomes = {check.outcome for check in self.checks}
        if "invalid" in outcomes:
            return INVALID
        if "suspect" in outcomes:
            return SUSPECT
        return UNDECIDED if "undecided" in outcomes or "fine" not in outcomes else VALID

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not valid, in plain words; what is invalid first, what is undecided last."""
        order = (INVALID, SUSPECT, UNDECIDED)
        found = [(order.index(check.outcome), check.text) for check in self.checks if check.outcome in order]
        if not found and self.verdict != VALID:
            return ("no check could be made",)
        return tuple(text for _, text in sorted(found, key=lambda pair: pair[0]))

    @property
    def bottom_line(self) -> str:
        """The verdict, what it means and rests on, on one line."""
        counts = [(outcome, sum(check.outcome == outcome for check in self.checks)) for outcome in OUTCOMES]
        seen = ", ".join(f"{count} {outcome}" for outcome, count in counts if count) or "none"
        return f"{self.verdict.upper()}: {MEANS[self.verdict]} ({len(self.checks)} checks: {seen})"

    def to_json(self) -> dict[str, Any]:
        """As in `run.json`."""
        return {
            "schema": AUDIT,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "checks": [check.to_json() for check in self.checks],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Audit":
        """The audit that a record holds.

        Raises:
            UsageError: if it is of a schema that this version does not know, or is incomplete.
        """
        if data.get("schema") != AUDIT:
            raise UsageError(f"the audit has schema {data.get('schema')!r}; this version reads {AUDIT!r}")
        try:
            return cls(tuple(_check(row) for row in data["checks"]))
        except (KeyError, TypeError) as error:
            raise UsageError(f"the audit in the record is incomplete ({error}); audit the model again") from None


@dataclass(frozen=True, eq=False, repr=False)
class Audited(Shown):
    """An audit by itself: `job` is what was asked of what, `audit` what was found."""

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    audit: Audit
    about: About = field(default_factory=About)

    @property
    def model(self) -> str:
        """The model, and what stands before it."""
        behind = f" behind {self.job['defense']}" if self.job.get("defense") else ""
        return f"{self.job['model']}{behind}"

    def heading(self) -> str:
        """What was audited."""
        job, label = self.job, self.about.label
        return (
            f"{f'{label}: ' if label else ''}audit of {self.model} on {job['data']} (n = {len(job['indices'])}), "
            f"{job['norm']} eps {self.about.written(job['eps'])}, seed {job['seed']}"
        )

    def in_brief(self) -> list[tuple[str, str]]:
        """Four lines: the verdict, why, what was fine, when."""
        fine = [check.name for check in self.audit.checks if check.outcome == "fine"]
        return [
            ("verdict", f"{self.audit.verdict}: {MEANS[self.audit.verdict]}"),
            ("because", "; ".join(self.audit.reasons) or "no check found a sign"),
            ("fine", f"{len(fine)} of {len(self.audit.checks)} checks"),
            ("made", self.about.date or "here"),
        ]

    @property
    def identity(self) -> str:
        """The sha256 of what was asked and of what the checks found."""
        return digest([dict(self.job), [check.to_json() for check in self.audit.checks]])

    def to_json(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return {
            "schema": AUDITED,
            "about": self.about.to_json(),
            "job": dict(self.job),
            "environment": dict(self.environment),
            "audit": self.audit.to_json(),
        }

    def summary(self) -> str:
        """All checks, then the bottom line."""
        return "\n".join([self.heading(), text(self.audit)])

    def save(self, folder: Path, pages: Mapping[str, str]) -> None:
        """Write `audit.json`, and its reports by their names, into a folder."""
        save_record(folder / RESULT, self.to_json(), pages)


_MARKS = {"fine": "ok", "skipped": "--", "suspect": "SUSPECT", "invalid": "INVALID", "undecided": "UNDECIDED"}


def text(audit: Audit) -> str:
    """An audit in lines: every check, why it is not valid, and the bottom line."""
    lines = [f"{_MARKS[check.outcome]:<10}{check.name:<20} {check.text}" for check in audit.checks]
    because = [f"because {reason}" for reason in audit.reasons]
    return "\n".join([*lines, f"verdict: {audit.verdict}", *because, audit.bottom_line])


def load(path: Path) -> Audited:
    """The audit in a folder, or in the file that `robustkit audit --json` has written.

    Raises:
        UsageError: if it is none, or not as it was written.
    """
    file = path / RESULT if path.is_dir() else path
    data = read_json(file, ("job", "environment", "audit"), AUDITED)
    try:
        found = Audited(
            data["job"], data["environment"], Audit.from_json(data["audit"]), About.from_json(data.get("about"))
        )
        found.heading()
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file} holds no whole audit ({error}); audit the model again") from error
    return found


def lacking(audit: Mapping[str, Any]) -> list[str]:
    """The checks that a whole audit has and this one has not; one that was skipped is there and says why."""
    names = {check["name"] for check in audit["checks"]}
    return [name for name in WHOLE if name not in names]


def stored(data: Any) -> dict[str, Any] | None:
    """The audit in a record's file, or None if the record is not audited.

    The verdict and the reasons are those that follow from the checks, whatever else the file says.

    Raises:
        UsageError: see `Audit.from_json`.
    """
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise UsageError("the audit in the record is no object; audit the model again")
    return Audit.from_json(data).to_json()


def _check(row: Mapping[str, Any]) -> Check:
    series = row["series"]
    found = Check(**{**row, "series": Series(**series) if series else None})
    if found.outcome not in OUTCOMES:
        raise KeyError(f"outcome {found.outcome!r}")
    return found
