"""What charts and tables of a record show, computed from its facts; what it cannot tell is left out with a reason."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from robustkit import spec
from robustkit.records.run import RunRecord
from robustkit.records.schema import BROKE, BROKEN, ROBUST, SURVIVED, UNKNOWN, WRONG
from robustkit.stats import Proportion

POINTS = 120  # of a curve over what is known of every sample: more than a chart can show


class Part(NamedTuple):
    """A part of a run's samples: what became of them, and how many they are."""

    name: str
    samples: int


def bracket(record: RunRecord) -> list[Part]:
    """What is proved, left open and broken, in this order; nothing of a run without certificates."""
    if record.certified_accuracy is None:
        return []
    counts = record.certified_accuracy.k, record.open, record.counts[BROKEN]
    return [Part(name, count) for name, count in zip(("proved", "open", "broken"), counts, strict=True)]


class LeftOut(NamedTuple):
    """Why something is not shown."""

    reason: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Shares over x, each with its interval; `steps`: it holds from one x to the next. `note` says what it is."""

    name: str
    x: tuple[float, ...]
    y: tuple[Proportion, ...]
    steps: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The samples of one class: how many, the share right unattacked, and under attack (None: not established)."""

    label: int
    clean: Proportion
    robust: Proportion | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often samples of a class (row) are decided as which (column) under attack; `left` samples are in no cell."""

    classes: tuple[int, ...]
    counts: np.ndarray
    left: int

    def pairs(self, most: int) -> list[tuple[int, int, int]]:
        """The mistakes that are made most often, as (class, decided, count)."""
        found = [
            (self.classes[i], self.classes[j], int(self.counts[i, j]))
            for i, j in np.argwhere(self.counts).tolist()
            if i != j
        ]
        return sorted(found, key=lambda row: (-row[2], row[:2]))[:most]


class Cost(NamedTuple):
    """What one attack took: passes an attacked sample on average, and seconds altogether."""

    name: str
    attacked: int
    forwards: float
    backwards: float
    seconds: float


def classes(record: RunRecord) -> list[ClassRow]:
    """Each class that has samples, in order."""
    label, status = record.samples["label"], record.samples["status"]
    rows = []
    for value in np.unique(label).tolist():
        here = Counter(status[label == value].tolist())
        n = sum(here.values())
        sure = not (here[UNKNOWN] or record.unvoted or record.insufficient)
        rows.append(ClassRow(value, Proportion(n - here[WRONG], n), Proportion(here[ROBUST], n) if sure else None))
    return rows


def decisions(record: RunRecord) -> dict[int, int] | LeftOut:
    """The class that the model decides on the adversarial of each sample that an attack of this run broke."""
    if "prediction" not in record.attacks:
        return LeftOut("the record was made before the class decided under attack was stored; run it again to have it")
    rows = zip(*(record.attacks[name].tolist() for name in ("index", "outcome", "prediction")), strict=True)
    return {index: said for index, outcome, said in rows if outcome == BROKE and said >= 0}


def confusion(record: RunRecord) -> Confusion | LeftOut:
    """What the samples are decided as under attack; a sample that no attack broke, as unattacked."""
    found = decisions(record)
    if isinstance(found, LeftOut):
        return found
    if record.job["target"]:
        return LeftOut("in a targeted run what is broken is decided as the target, the rest as anything else")
    if "prediction" not in record.samples:
        return LeftOut("the record does not hold what the model decides unattacked")
    columns = (record.samples[name].tolist() for name in ("index", "label", "status", "prediction"))
    said: Counter[tuple[int, int]] = Counter()
    for index, label, status, clean in zip(*columns, strict=True):
        decided = {WRONG: clean, ROBUST: label, BROKEN: found.get(index)}.get(status)
        if decided is not None:
            said[label, decided] += 1
    names = tuple(sorted({name for pair in said for name in pair}))
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for (label, decided), count in said.items():
        counts[place[label], place[decided]] = count
    return Confusion(names, counts, record.n - sum(said.values()))


def minimal_attacks(record: RunRecord) -> list[str]:
    """The attacks that seek the nearest adversarial; in old records, those that are seen to have gone beyond eps."""
    names = list(record.job["attacks"])
    if record.goals:
        return [name for name in names if record.goals.get(name) == "minimal"]
    beyond = record.attacks["outcome"] == SURVIVED
    beyond &= np.nan_to_num(record.attacks["distance"], nan=0.0) > spec.limit(record.job["eps"])
    return [name for name in names if (beyond & (record.attacks["attack"] == name)).any()]


def distance_curve(record: RunRecord) -> Curve | LeftOut:
    """The accuracy over eps that the distances of minimal attacks give: the share whose nearest known one is beyond.

    It is an upper bound at each eps. Below the run's own eps it is known only if a minimal attack met every sample.
    """
    if "distance" not in record.attacks or not (minimal := minimal_attacks(record)):
        return LeftOut(
            "no attack of this run seeks the nearest adversarial, so it knows the accuracy at its own eps only"
        )
    if record.robust_accuracy is None:
        return LeftOut(f"the robust accuracy is not established: {record.why_no_robust_accuracy}")
    if record.draws:
        return LeftOut("the model is randomised: a distance belongs to a vote, not to an image")
    nearest = dict.fromkeys(record.samples["index"][record.samples["status"] != WRONG].tolist(), np.inf)
    met = set(record.attacks["index"][np.isin(record.attacks["attack"], minimal)].tolist())
    columns = (record.attacks[name].tolist() for name in ("index", "attack", "outcome", "distance"))
    for index, attack, outcome, distance in zip(*columns, strict=True):
        if distance < nearest[index] and (outcome == BROKE or attack in minimal):
            nearest[index] = distance
    for index, distance in _carried(record):
        nearest[index] = min(nearest[index], distance)
    distances = np.sort(np.array(list(nearest.values())))
    finite = distances[np.isfinite(distances)]
    eps = float(record.job["eps"])
    low = 0.0 if met.issuperset(nearest) else eps
    high = max(eps, float(finite[-1]) if len(finite) else eps)
    if low and high <= spec.limit(eps):
        return LeftOut("no distance beyond its own eps is known, and below it not the nearest ones")
    inner = finite[finite > low]
    x = np.unique([low, eps, high, *_some(inner)])
    standing = [int((distances > spec.limit(float(value))).sum()) for value in x]
    note = "From the smallest distances found: an upper bound at each eps"
    if low:
        note += f"; below eps {record.eps} it is not known: what broke first was not the nearest"
    shares = tuple(Proportion(k, record.n) for k in standing)
    return Curve("from distances", tuple(x.tolist()), shares, True, f"{note}.")


def _some(values: np.ndarray) -> list[float]:
    """At most POINTS of sorted values, the ends among them."""
    places = np.linspace(0, max(0, len(values) - 1), min(POINTS, len(values))).astype(int)
    return [float(values[place]) for place in places]


def spaced(values: Iterable[float], low: float, high: float, apart: float) -> list[float]:
    """Those values that lie at least the share `apart` of the range from each other, the last of them kept."""
    inside = sorted(value for value in values if low <= value <= high)
    kept: list[float] = []
    for value in [*inside[-1:], *inside[:-1]]:
        if all(abs(value - other) >= apart * (high - low) for other in kept):
            kept.append(value)
    return sorted(kept)


def _carried(record: RunRecord) -> list[tuple[int, float]]:
    """The samples that a smaller eps of the same sweep broke, at which distance."""
    if not record.carried:
        return []
    here = record.samples["broken_at"] < record.job["eps"]
    return list(zip(record.samples["index"][here].tolist(), record.samples["distance"][here].tolist(), strict=True))


def sweep_curve(records: Sequence[RunRecord], name: str = "") -> Curve | LeftOut:
    """The accuracy at each eps of a sweep, beginning with the clean accuracy."""
    known = [record for record in records if record.robust_accuracy is not None]
    if not known:
        return LeftOut(f"no robust accuracy is established: {records[0].why_no_robust_accuracy}")
    shares = [record.robust_accuracy for record in known if record.robust_accuracy is not None]
    if len(known) == 1:
        return LeftOut(f"only eps {known[0].eps} has a robust accuracy, and a line takes two")
    left = len(records) - len(known)
    note = f"{left} of {len(records)} eps have no established robust accuracy and are left out." if left else ""
    x = (0.0, *(float(record.job["eps"]) for record in known))
    return Curve(name or str(known[0].job["model"]), x, (known[0].clean_accuracy, *shares), note=note)


def query_curve(record: RunRecord, attack: str) -> Curve | LeftOut:
    """The share of the samples that an attack met which it has broken within so many forward passes.

    A sample's stored passes are those until it was left alone, so they are at least what breaking it took.
    """
    here = record.attacks["attack"] == attack
    met = int(here.sum())
    broke = here & (record.attacks["outcome"] == BROKE)
    if not broke.any():
        return LeftOut(f"{attack} broke no sample" if met else f"{attack} met no sample")
    forwards = np.sort(record.attacks["forwards"][broke])
    most = float(record.attacks["forwards"][here].max())
    x = np.unique([0.0, *_some(forwards), most])
    shares = tuple(Proportion(int((forwards <= value).sum()), met) for value in x)
    return Curve(attack, tuple(x.tolist()), shares, True)


def costs(record: RunRecord) -> list[Cost]:
    """What each attack took, in the order in which they ran."""
    rows = ((row, max(1, row.attacked)) for row in record.by_attack)
    return [Cost(row.name, row.attacked, row.forwards / met, row.backwards / met, row.seconds) for row, met in rows]


def series(check: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """The points of an audit's check that are numbers, if it has a series with any."""
    found = check.get("series")
    if not found:
        return None
    points = [(float(x), float(y)) for x, y in zip(found["x"], found["y"], strict=False) if _finite(x) and _finite(y)]
    return ([x for x, _ in points], [y for _, y in points]) if points else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
