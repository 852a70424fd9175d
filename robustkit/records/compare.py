"""Two records over the same samples, paired sample by sample: what flipped, by how much, and whether it is chance."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records.findings import NOT_AUDITED
from robustkit.records.run import RunRecord
from robustkit.records.schema import COMPARISON, ROBUST, UNKNOWN, WRONG, Columns
from robustkit.stats import Proportion, difference_interval, mcnemar_p

QUESTION = ("attack", "attacks", "norm", "eps", "target", "seed", "outputs", "quantize", "carried", "draws")
MACHINE = ("device", "threads", "tile", "precision")


@dataclass(frozen=True, slots=True)
class Change:
    """A share of the same n samples before and after; `worse` and `better` are the indices that left and entered it."""

    n: int
    before: Proportion
    after: Proportion
    worse: tuple[int, ...]
    better: tuple[int, ...]

    @classmethod
    def of(cls, index: np.ndarray, before: np.ndarray, after: np.ndarray) -> "Change":
        """From whether each sample of `index` was in the share before and after."""
        n = len(index)
        worse, better = index[before & ~after], index[after & ~before]
        shares = Proportion(int(before.sum()), n), Proportion(int(after.sum()), n)
        return cls(n, *shares, tuple(worse.tolist()), tuple(better.tolist()))

    @property
    def difference(self) -> float:
        """The share after minus the share before."""
        return (len(self.better) - len(self.worse)) / self.n

    @property
    def low(self) -> float:
        """The lower end of the difference's 95 % interval."""
        return difference_interval(len(self.worse), len(self.better), self.n)[0]

    @property
    def high(self) -> float:
        """The upper end of the difference's 95 % interval."""
        return difference_interval(len(self.worse), len(self.better), self.n)[1]

    @property
    def p(self) -> float:
        """McNemar's exact one-sided p: the chance of so many `worse` among the flips if nothing got worse at all."""
        return mcnemar_p(len(self.worse), len(self.better))

    def to_json(self) -> dict[str, Any]:
        """As JSON data; fractions in [0,1]."""
        return {
            "n": self.n,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "worse": list(self.worse),
            "better": list(self.better),
        }


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that ended in another status; `broken_by` is the attack that broke it, on the side where one did."""

    index: int
    label: int
    before: str
    after: str
    broken_by: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two records on the samples they share, `indices`. `differs` says what else, besides results, is not the same."""

    robust: Change
    clean: Change
    attacks: Mapping[str, Change]
    flips: tuple[Flip, ...]
    only_before: int
    only_after: int
    differs: tuple[str, ...]
    verdicts: tuple[str, str] = (NOT_AUDITED, NOT_AUDITED)
    indices: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data; `attacks` holds the share that stands after each attack, `verdicts` what audits said."""
        return {
            "schema": COMPARISON,
            "n": self.robust.n,
            "robust_accuracy": self.robust.to_json(),
            "clean_accuracy": self.clean.to_json(),
            "attacks": {name: change.to_json() for name, change in self.attacks.items()},
            "flips": [asdict(flip) for flip in self.flips],
            "only_before": self.only_before,
            "only_after": self.only_after,
            "differs": list(self.differs),
            "verdicts": list(self.verdicts),
        }


def compare(before: RunRecord, after: RunRecord) -> Comparison:
    """Pair two records by the samples' indices and image hashes.

    Raises:
        UsageError: if they share no sample, or a shared index is another image or has another label.
        NotEstablishedError: if a shared sample is UNKNOWN in one, a randomised model was not voted on, or what attacked
            is no measure by itself.
    """
    index, i, j = np.intersect1d(before.samples["index"], after.samples["index"], return_indices=True)
    if not len(index):
        raise UsageError("the two have no sample in common; evaluate both on the same --indices")
    a = {name: before.samples[name][i] for name in ("label", "status", "broken_by", "sha256")}
    b = {name: after.samples[name][j] for name in a}
    for name, what in (("sha256", "image"), ("label", "label")):
        other = index[a[name] != b[name]]
        if len(other):
            raise UsageError(
                f"{len(other)} of {len(index)} shared samples differ in their {what}, first {other[0]}: the data are "
                f"not the same ({before.job['data']} before, {after.job['data']} after)"
            )
    _refuse_undecided("before", before, a["status"])
    _refuse_undecided("after", after, b["status"])
    attacks: dict[str, Change] = {}
    names = list(before.job["attacks"])
    if names == list(after.job["attacks"]):
        attacks = {
            name: Change.of(index, _standing(a, names[: k + 1]), _standing(b, names[: k + 1]))
            for k, name in enumerate(names)
        }
    changed = np.flatnonzero(a["status"] != b["status"])
    by = np.where(b["broken_by"] != "", b["broken_by"], a["broken_by"])
    columns = (index, a["label"], a["status"], b["status"], by)
    rows = zip(*(column[changed].tolist() for column in columns), strict=True)
    return Comparison(
        robust=Change.of(index, a["status"] == ROBUST, b["status"] == ROBUST),
        clean=Change.of(index, a["status"] != WRONG, b["status"] != WRONG),
        attacks=attacks,
        flips=tuple(Flip(*row) for row in rows),
        only_before=before.n - len(index),
        only_after=after.n - len(index),
        differs=tuple(_differs(before, after)),
        verdicts=(before.verdict, after.verdict),
        indices=tuple(index.tolist()),
    )


def _standing(samples: Columns, attacks: list[str]) -> np.ndarray:
    """Which samples stand after these attacks."""
    stands: np.ndarray = (samples["status"] != WRONG) & ~np.isin(samples["broken_by"], attacks)
    return stands


def _refuse_undecided(side: str, record: RunRecord, status: np.ndarray) -> None:
    unknown = int((status == UNKNOWN).sum())
    if unknown or record.unvoted:
        what = f"{unknown} of {len(status)} shared samples are UNKNOWN" if unknown else "the model is randomised"
        raise NotEstablishedError(f"not comparable: {what} in the run {side} ({record.why_no_robust_accuracy})")
    if record.insufficient:
        raise NotEstablishedError(f"not comparable: the run {side} has no robust accuracy ({record.insufficient})")


def said(value: Any) -> str:
    """What a job says under a key, in words; nothing, too."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "none")


def _differs(before: RunRecord, after: RunRecord) -> Iterator[str]:
    a, b = before.job, after.job
    for key in ("model", "defense", "data", *QUESTION, *MACHINE):
        if (old := said(a.get(key))) != (new := said(b.get(key))):
            yield f"{key} {old} -> {new}"
    if a.get("streams") != b.get("streams"):  # old records lack it
        yield "how random numbers are keyed"
    for key, what in (("model_sha256", "the weights"), ("probe_sha256", "the logits on the probe images"),
                      ("noisy_sha256", "the logits under fixed noise"),
                      ("gradient_signs", "the gradients on the probe images")):  # fmt: skip
        if key in a and key in b and a[key] != b[key]:  # older records lack some
            yield what
    if list(a["attacks"]) == list(b["attacks"]):
        changed = [name for name in a["attacks"] if a["attack_sources"].get(name) != b["attack_sources"].get(name)]
        yield from (f"the source code of {name}" for name in changed)
    for name in sorted({*a["versions"], *b["versions"]}):
        if a["versions"].get(name) != b["versions"].get(name):
            yield f"{name} {a['versions'].get(name)} -> {b['versions'].get(name)}"
    here, there = before.environment.get("device"), after.environment.get("device")
    if here != there and here and there:
        yield f"processor {here} -> {there}"
