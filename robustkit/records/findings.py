"""What an audit finds, as a record keeps it: checks with their numbers, and the verdict from them. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from robustkit.errors import UsageError
from robustkit.records.schema import AUDIT

Outcome = Literal["fine", "suspect", "invalid", "undecided", "skipped"]
OUTCOMES: tuple[Outcome, ...] = ("fine", "suspect", "invalid", "undecided", "skipped")
Verdict = Literal["valid", "suspect", "invalid", "undecided"]
VALID: Verdict = "valid"
SUSPECT: Verdict = "suspect"
INVALID: Verdict = "invalid"
UNDECIDED: Verdict = "undecided"
DOUBTED = (SUSPECT, INVALID)  # a sign against the number; undecided is none, only too little evidence
NOT_AUDITED = "not audited"
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
    """All checks of one audit, in the order in which they are read."""

    checks: tuple[Check, ...]

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
