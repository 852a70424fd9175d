"""The record of a run: facts, one row a sample and one row a (sample, attack). Every number is computed from them.

Reading, computing and showing a record needs no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkit import spec
from robustkit.records import text
from robustkit.records import votes as randomised
from robustkit.records.about import About
from robustkit.records.findings import NOT_AUDITED, UNDECIDED, VALID
from robustkit.records.schema import BROKE, BROKEN, ROBUST, RUN, STATUSES, UNKNOWN, VIOLATED, WRONG, Columns
from robustkit.records.shown import Shown, facts_digest
from robustkit.stats import MeanShare, Proportion

if TYPE_CHECKING:
    import pandas as pd

CAUTION = "suite"  # the kind of flag that says that a suite's number is not what its reader may take it for
ESCALATE = "escalate"  # … that what stands has to be attacked with more than what ran
NOT_CERTIFIABLE = "not certifiable"  # the kind of flag that says why nothing is proved where that was asked
INSUFFICIENT = "insufficient"  # the kind of flag that says that what attacked is no measure by itself


@dataclass(frozen=True, slots=True)
class AttackSummary:
    """What one attack did: how many it was run on and broke, and the robust accuracy after it."""

    name: str
    attacked: int
    broken: int
    violated: int
    robust: Proportion | None
    forwards: int
    backwards: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As in `run.json`."""
        return {
            "name": self.name,
            "attacked": self.attacked,
            "broken": self.broken,
            "violated": self.violated,
            "robust_accuracy": self.robust.to_json() if self.robust else None,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False, repr=False)
class RunRecord(Shown):
    """One evaluation. `samples` and `attacks` are columns of equal length: `records.schema` has SAMPLES and ATTACKS.

    `seconds` maps an attack's name to its wall time, `goals` to its goal (empty in old records). `predicted` has the
    passes and seconds that the attacks were said to take at most, before they began. `audit` is what `robustkit.audit`
    found, if it was asked. `adversarial` has the images of broken samples: `index`, `adv` and, but for old records,
    `clean`. `notes` is what came up when the record was read from its folder; it is stored nowhere. `certificates` is
    how samples were proved, if they were: the method, after how many of the attacks, what it took, and how many proved
    samples were attacked all the same. Two records are equal if their jobs and facts are, whatever they are called and
    whenever they were made.
    """

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    samples: Columns
    attacks: Columns
    seconds: Mapping[str, float] = field(default_factory=dict)
    flags: Sequence[Mapping[str, Any]] = ()
    errors: Sequence[Mapping[str, Any]] = ()
    predicted: Mapping[str, Any] | None = None
    goals: Mapping[str, str] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    adversarial: Mapping[str, Any] | None = field(default=None, repr=False)
    folder: str | None = None
    notes: tuple[str, ...] = ()
    about: About = field(default_factory=About)
    certificates: Mapping[str, Any] | None = None

    @property
    def n(self) -> int:
        """How many samples were evaluated."""
        return len(self.samples["index"])

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many samples ended in each status."""
        status = self.samples["status"]
        return {name: int((status == name).sum()) for name in STATUSES}

    @property
    def unknown(self) -> int:
        """How many samples could not be decided."""
        return self.counts[UNKNOWN]

    @property
    def carried(self) -> int:
        """How many samples count as broken because they were at a smaller eps of the same sweep."""
        return int((self.samples["broken_at"] < self.job["eps"]).sum()) if self.job.get("carried") else 0

    @property
    def randomised(self) -> bool:
        """Whether the model gave different outputs for the same image."""
        return any(flag["kind"] == "randomised" for flag in self.flags)

    @property
    def draws(self) -> int:
        """How many fresh draws voted on each sample of a randomised model; 0 of any other, and in old records."""
        return int(self.job.get("draws") or 0)

    @property
    def rule(self) -> str:
        """The rule behind `clean_accuracy` and `robust_accuracy`, in words."""
        return randomised.rule(self.draws)

    @property
    def worst_case_accuracy(self) -> Proportion | None:
        """Of a randomised model: the share of samples that no pass over a valid candidate ever misclassified."""
        return randomised.worst_case(self.samples, self.attacks) if self._has_draws else None

    @property
    def mean_accuracy(self) -> MeanShare | None:
        """Of a randomised model: the accuracy over fresh draws on each sample's strongest candidate.

        None for a run of a sweep that did not attack what a smaller eps broke.
        """
        has = self._has_draws and not self.carried
        limit = spec.limit(self.job["eps"])
        return randomised.mean_accuracy(self.samples, self.attacks, self.draws, limit) if has else None

    @property
    def expected_accuracy(self) -> MeanShare | None:
        """Of a mixture with known weights, exactly: the mean over samples of the least chance of a right answer."""
        least = self._of_a_mixture
        return None if least is None else MeanShare(float(least.mean()), 0.0, 0, self.n)

    @property
    def any_draw_accuracy(self) -> Proportion | None:
        """Of a mixture with known weights: the share of samples that every member gets right, whatever was tried."""
        least = self._of_a_mixture
        return None if least is None else Proportion(int((least > 1 - 1e-9).sum()), self.n)

    @property
    def _of_a_mixture(self) -> Any:
        has = self._has_draws and not self.carried
        return randomised.of_a_mixture(self.samples, self.attacks, spec.limit(self.job["eps"])) if has else None

    @property
    def rejection(self) -> dict[str, Proportion] | None:
        """Of a model that may refuse: the shares of clean images that it refuses, and both accuracies as if it did not.

        `clean_accuracy` and `robust_accuracy` count as right what is accepted and right, and as broken only what is
        accepted and wrong: a perturbed image that is refused is no mistake, a clean one is.
        """
        if "refused" not in self.samples or self.unknown:
            return None
        right = self.samples["prediction"] == self.samples["label"]
        fooled = np.isin(self.samples["index"], self.attacks["index"][self.attacks["margin"] < 0])
        stands = right & ~fooled & (self.samples["status"] != BROKEN)
        counted = {"clean_refused": self.samples["refused"], "plain_clean": right, "plain_robust": stands}
        return {name: Proportion(int(which.sum()), self.n) for name, which in counted.items()}

    @property
    def _has_draws(self) -> bool:
        return "draws" in self.samples and not self.unknown and not self.insufficient

    @cached_property
    def clean_accuracy(self) -> Proportion:
        """The share of samples that the model classifies correctly, unattacked."""
        return Proportion(self.n - self.counts[WRONG], self.n)

    @cached_property
    def robust_accuracy(self) -> Proportion | None:
        """The share of samples that no attack broke, or None while that is not established.

        It is not, as long as a sample is UNKNOWN, if a randomised model was not voted on, or if what attacked it is no
        measure by itself. See `rule`.
        """
        if self.unknown or self.unvoted or self.insufficient:
            return None
        return Proportion(self.counts[ROBUST], self.n)

    @cached_property
    def certified_accuracy(self) -> Proportion | None:
        """The share of samples that are classified correctly and proved robust; None where nothing was to be proved.

        It is a lower bound of what `robust_accuracy` is an upper bound of: the robust accuracy against any attack.
        """
        column = self.samples.get("certified")
        return None if column is None else Proportion(int(column.sum()), self.n)

    @property
    def certified(self) -> np.ndarray:
        """Which samples are proved robust; none where nothing was to be proved."""
        found: np.ndarray = self.samples.get("certified", np.zeros(self.n, dtype=np.bool_))
        return found

    @property
    def unproved(self) -> np.ndarray:
        """Which samples are robust by attacks alone."""
        found: np.ndarray = (self.samples["status"] == ROBUST) & ~self.certified
        return found

    @property
    def open(self) -> int:
        """How many samples are neither proved nor broken nor wrong."""
        return self.counts[ROBUST] + self.counts[UNKNOWN] - int(self.certified.sum())

    @property
    def unvoted(self) -> bool:
        """Whether the model is randomised and its samples were judged by one pass, as in records of older versions."""
        return self.randomised and not self.draws

    @property
    def insufficient(self) -> str:
        """Why the attacks of this run are no measure by themselves; empty if they are."""
        return next((str(flag["message"]) for flag in self.flags if flag["kind"] == INSUFFICIENT), "")

    @property
    def why_no_robust_accuracy(self) -> str:
        """Why `robust_accuracy` is None; empty if it is not."""
        if self.unvoted:
            return (
                "the model is randomised: one pass over the adversarials is no verdict "
                f"({self.counts[ROBUST]} of {self.n} samples survived this one)"
            )
        if self.unknown:
            reasons = sorted({f"{e['attack']}: {e['message']}" for e in self.errors})
            return f"{self.unknown} of {self.n} samples are UNKNOWN" + (f" ({'; '.join(reasons)})" if reasons else "")
        return self.insufficient

    @property
    def verdict(self) -> str:
        """What the audit says of the robust accuracy: valid, suspect, invalid or undecided; or else "not audited"."""
        return str(self.audit["verdict"]) if self.audit else NOT_AUDITED

    @property
    def warning(self) -> str:
        """What has to stand beside the robust accuracy wherever it is shown; empty if the audit found it valid."""
        if self.audit is None or self.verdict == VALID:
            return ""
        means = "too little evidence" if self.verdict == UNDECIDED else "do not rely on it"
        return f"{self.verdict.upper()}, {means}: {'; '.join(map(str, self.audit['reasons']))}"

    @property
    def quantized_robust_accuracy(self) -> Proportion | None:
        """The robust accuracy when each adversarial is first rounded to the quantised grid, if that was asked for."""
        column = self.samples.get("quantized_status")
        if column is None or self.robust_accuracy is None:
            return None
        return Proportion(int((column == ROBUST).sum()), self.n)

    @cached_property
    def by_attack(self) -> list[AttackSummary]:
        """Each attack in the order it ran."""
        standing = self.n - self.counts[WRONG] - self.carried
        rows = []
        undecided: set[int] = set()
        for name in self.job["attacks"]:
            here = self.attacks["attack"] == name
            outcome = self.attacks["outcome"][here]
            index = self.attacks["index"][here]
            broken = int((outcome == BROKE).sum())
            undecided |= {int(i) for i in index[outcome == VIOLATED]}
            undecided -= {int(i) for i in index[outcome == BROKE]}
            standing -= broken
            sure = not undecided and not self.unvoted and not self.insufficient
            rows.append(
                AttackSummary(
                    name=name,
                    attacked=int(here.sum()),
                    broken=broken,
                    violated=int((outcome == VIOLATED).sum()),
                    robust=Proportion(standing, self.n) if sure else None,
                    forwards=int(self.attacks["forwards"][here].sum()),
                    backwards=int(self.attacks["backwards"][here].sum()),
                    seconds=round(float(self.seconds.get(name, 0.0)), 3),
                )
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """The content of `run.json`; fractions in [0,1]."""
        robust, quantized = self.robust_accuracy, self.quantized_robust_accuracy
        summary = {
            "clean_accuracy": self.clean_accuracy.to_json(),
            "robust_accuracy": robust.to_json() if robust else None,
            "why_no_robust_accuracy": self.why_no_robust_accuracy or None,
            "rule": self.rule,
            "unknown": self.unknown,
            "counts": self.counts,
            "verdict": self.verdict,
            "attacks": [row.to_json() for row in self.by_attack],
        }
        if self.draws:
            worst, mean = self.worst_case_accuracy, self.mean_accuracy
            summary["randomised"] = {
                "draws": self.draws,
                "worst_case": worst.to_json() if worst else None,
                "mean": mean.to_json() if mean else None,
                "majority": robust.to_json() if robust else None,
            }
            exact, whole = self.expected_accuracy, self.any_draw_accuracy
            if exact and whole:
                summary["mixture"] = {"expected": exact.to_json(), "any_draw": whole.to_json()}
        if self.rejection:
            summary["rejection"] = {name: share.to_json() for name, share in self.rejection.items()}
        if self.certified_accuracy is not None:
            summary["certified_accuracy"] = self.certified_accuracy.to_json()
        if "quantized_status" in self.samples:
            summary["quantized_robust_accuracy"] = quantized.to_json() if quantized else None
        return {
            "schema": RUN,
            "about": self.about.to_json(),
            "job": dict(self.job),
            "environment": dict(self.environment),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "predicted": dict(self.predicted) if self.predicted else None,
            **({"goals": dict(self.goals)} if self.goals else {}),
            **({"audit": dict(self.audit)} if self.audit else {}),
            **({"certificates": dict(self.certificates)} if self.certificates else {}),
            "summary": summary,
            "flags": list(self.flags),
            "errors": list(self.errors),
        }

    def to_frame(self) -> "pd.DataFrame":
        """One row a sample."""
        import pandas as pd

        return pd.DataFrame(dict(self.samples))

    def attacks_frame(self) -> "pd.DataFrame":
        """One row a (sample, attack)."""
        import pandas as pd

        return pd.DataFrame(dict(self.attacks))

    def summary(self) -> str:
        """The result in a few lines of plain text."""
        return text.summary(self)

    def heading(self) -> str:
        """What was attacked, with what."""
        return text.heading(self)

    def in_brief(self) -> list[tuple[str, str]]:
        """Four lines: both accuracies, what the attacks broke, and what is known beside."""
        return text.brief(self)

    @cached_property
    def identity(self) -> str:
        """The sha256 of the job and the facts."""
        return facts_digest(self.job, self.samples, self.attacks)

    @property
    def eps(self) -> str:
        """The radius as it was given."""
        return self.about.written(self.job["eps"])

    @property
    def called(self) -> str:
        """What the run is called: its label, or the model behind its defense."""
        behind = f" behind {self.job['defense']}" if self.job.get("defense") else ""
        return self.about.label or f"{self.job['model']}{behind}"
