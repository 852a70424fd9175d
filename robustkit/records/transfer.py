"""The record of a transfer run: facts of each adversarial and of what each victim says of it. Figures are computed.

Reading, computing and showing a record needs no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robustkit.records import transfer_text
from robustkit.records.about import About
from robustkit.records.schema import TRANSFER, VIOLATED, Columns
from robustkit.records.shown import Shown, facts_digest
from robustkit.stats import Proportion

if TYPE_CHECKING:
    import pandas as pd

Of = Literal["all", "correct"]  # of which images a success rate is the share
SUCCESS, RESISTED = "success", "resisted"  # or VIOLATED
CLEAN = "clean:"  # begins the name of a model's column of clean predictions

SAMPLE_COLUMNS = ("index", "label", "sha256")  # and `clean:<model>` for each model
ATTACK_COLUMNS = ("index", "surrogates", "attack", "target", "violated", "distance", "forwards", "backwards")
TRANSFER_COLUMNS = (
    "index", "surrogates", "attack", "victim", "outcome", "clean_wrong", "prediction", "distance",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """What the adversarials of one attack on one surrogate set do to one victim.

    `of_all` is the share of all images that are a success on the victim: untargeted 1 − accuracy, so that clean errors
    count. `of_correct` is the share among the images that the victim classifies correctly unattacked. Either is None
    where it is not established; `why` says why. `white_box`: the victim is one of the surrogates, maybe renamed.
    """

    surrogates: str
    attack: str
    victim: str
    white_box: bool
    of_all: Proportion | None
    of_correct: Proportion | None
    why: str

    def rate(self, of: Of) -> Proportion | None:
        """The success rate under one denominator."""
        return self.of_all if of == "all" else self.of_correct

    def to_json(self) -> dict[str, Any]:
        """As in `transfer.json`."""
        return {
            "surrogates": self.surrogates,
            "attack": self.attack,
            "victim": self.victim,
            "white_box": self.white_box,
            "success_rate_of_all": self.of_all.to_json() if self.of_all else None,
            "success_rate_of_correct": self.of_correct.to_json() if self.of_correct else None,
            "why_none": self.why or None,
        }


@dataclass(frozen=True, slots=True)
class Cost:
    """What one attack on one surrogate set took: passes through surrogates, a sample on average and at most."""

    surrogates: str
    attack: str
    violated: int
    forwards: float
    backwards: float
    most_backwards: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As in `transfer.json`."""
        return {
            "surrogates": self.surrogates,
            "attack": self.attack,
            "violated": self.violated,
            "forwards_per_image": self.forwards,
            "backwards_per_image": self.backwards,
            "most_backwards": self.most_backwards,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False, repr=False)
class TransferRecord(Shown):
    """One transfer run. The columns of a table have equal length; see SAMPLE_COLUMNS, ATTACK_COLUMNS, TRANSFER_COLUMNS.

    `job` holds the surrogate sets (name → models), the attacks (label → spec), the victims, and `models`;
    `seconds` maps a surrogate set to each attack's wall time. Where there is none, `distance` is NaN and `prediction`
    and `target` are −1. `notes` is what came up when the record was read from its folder; it is stored nowhere.
    """

    job: Mapping[str, Any]
    environment: Mapping[str, Any]
    samples: Columns
    attacks: Columns
    transfer: Columns
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    flags: Sequence[Mapping[str, Any]] = ()
    errors: Sequence[Mapping[str, Any]] = ()
    folder: str | None = None
    notes: tuple[str, ...] = ()
    about: About = field(default_factory=About)

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.samples["index"])

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The rows of the matrix: (surrogate set, attack's label)."""
        return [(name, attack) for name in self.job["surrogates"] for attack in self.job["attacks"]]

    @property
    def columns(self) -> list[str]:
        """The columns of the matrix: the victims, then the surrogates that are no victims of their own."""
        return list(self.job["models"])

    @cached_property
    def clean_accuracy(self) -> dict[str, Proportion]:
        """The share of samples that each model classifies correctly, unattacked."""
        label = self.samples["label"]
        return {name: Proportion(int((self.samples[CLEAN + name] == label).sum()), self.n) for name in self.columns}

    @cached_property
    def cells(self) -> dict[tuple[str, str, str], Cell]:
        """The matrix by (surrogate set, attack, victim)."""
        return {(cell.surrogates, cell.attack, cell.victim): cell for cell in self._cells()}

    def _cells(self) -> Iterator[Cell]:
        keys = ("surrogates", "attack", "victim")
        for (surrogates, attack, victim), here in _groups([self.transfer[key] for key in keys]):
            outcome, wrong = self.transfer["outcome"][here], self.transfer["clean_wrong"][here].astype(bool)
            success, violated = outcome == SUCCESS, int((outcome == VIOLATED).sum())
            right = int((~wrong).sum())
            why = "" if right else f"{victim} classifies none of the images correctly"
            if violated:
                why = f"{violated} of {len(here)} adversarials are violated{self._reasons(surrogates, attack, victim)}"
            yield Cell(
                surrogates=surrogates,
                attack=attack,
                victim=victim,
                white_box=self.white_box(surrogates, victim),
                of_all=None if violated else Proportion(int(success.sum()), len(here)),
                of_correct=None if why else Proportion(int((success & ~wrong).sum()), right),
                why=why,
            )

    def _reasons(self, surrogates: str, attack: str, victim: str) -> str:
        found = sorted(
            {
                e["message"]
                for e in self.errors
                if (e["surrogates"], e["attack"]) == (surrogates, attack) and e["victim"] in ("", victim)
            }
        )
        return f" ({'; '.join(found)})" if found else ""

    @cached_property
    def costs(self) -> dict[tuple[str, str], Cost]:
        """What each attack took, by (surrogate set, attack)."""
        found = {}
        for (surrogates, attack), here in _groups([self.attacks["surrogates"], self.attacks["attack"]]):
            forwards, backwards = self.attacks["forwards"][here], self.attacks["backwards"][here]
            found[surrogates, attack] = Cost(
                surrogates=surrogates,
                attack=attack,
                violated=int(self.attacks["violated"][here].sum()),
                forwards=float(forwards.mean()),
                backwards=float(backwards.mean()),
                most_backwards=int(backwards.max()),
                seconds=float(self.seconds.get(surrogates, {}).get(attack, 0.0)),
            )
        return found

    @property
    def established(self) -> bool:
        """Whether every success rate of all images is established."""
        return all(cell.of_all is not None for cell in self.cells.values())

    def white_box(self, surrogates: str, model: str) -> bool:
        """Whether a model is one of a set's surrogates, be it under another name."""
        members = self.job["surrogates"][surrogates]
        return model in members or self._identity(model) in [self._identity(member) for member in members]

    def _identity(self, model: str) -> object:
        """What two names of one model share: weights and fixed answers; one without fixed answers is itself only."""
        known = self.job["models"][model]
        return (known["weights_sha256"], known["probe_sha256"]) if known["probe_sha256"] else model

    def randomised(self, model: str) -> bool:
        """Whether a model gives different outputs for the same image; its rates rest on the job's `draws`."""
        return bool(self.job["models"][model]["randomised"])

    def to_json(self) -> dict[str, Any]:
        """The content of `transfer.json`; fractions in [0,1]."""
        return {
            "schema": TRANSFER,
            "about": self.about.to_json(),
            "job": dict(self.job),
            "environment": dict(self.environment),
            "seconds": {name: dict(each) for name, each in self.seconds.items()},
            "summary": {
                "n": self.n,
                "clean_accuracy": {name: share.to_json() for name, share in self.clean_accuracy.items()},
                "matrix": [cell.to_json() for cell in self.cells.values()],
                "costs": [cost.to_json() for cost in self.costs.values()],
            },
            "flags": list(self.flags),
            "errors": list(self.errors),
        }

    def to_frame(self) -> "pd.DataFrame":
        """One row a (surrogate set, attack, victim, sample)."""
        import pandas as pd

        return pd.DataFrame(dict(self.transfer))

    def attacks_frame(self) -> "pd.DataFrame":
        """One row a (surrogate set, attack, sample)."""
        import pandas as pd

        return pd.DataFrame(dict(self.attacks))

    def summary(self) -> str:
        """The matrix under both denominators as plain text."""
        return transfer_text.summary(self)

    def heading(self) -> str:
        """What was attacked, with what."""
        return transfer_text.heading(self)

    def in_brief(self) -> list[tuple[str, str]]:
        """Four lines: the models, the range of the success rates, the strongest attack, and what is known beside."""
        return transfer_text.brief(self)

    @cached_property
    def identity(self) -> str:
        """The sha256 of the job and the facts."""
        return facts_digest(self.job, self.samples, self.attacks, self.transfer)

    @property
    def eps(self) -> str:
        """The radius as it was given."""
        return self.about.written(self.job["eps"])


def _groups(keys: Sequence[np.ndarray]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """The rows that share a key, in the order in which the keys first come."""
    found: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(zip(*(column.tolist() for column in keys), strict=True)):
        found.setdefault(key, []).append(row)
    for key, rows in found.items():
        yield key, np.array(rows)
