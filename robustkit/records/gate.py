"""The gate: whether a model got worse than its baseline, by a rule that chance does not trip.

It asks one of two questions. Of the same weights: did *these samples* keep their verdicts? There is no chance in that,
and any flip fails. Of other weights: is the *drop behind them*, of all samples like these, larger than what is allowed?
They fail when a paired test says that it is.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records.compare import QUESTION, Change, Comparison, compare, said
from robustkit.records.findings import INVALID
from robustkit.records.run import RunRecord
from robustkit.records.schema import GATE, ROBUST
from robustkit.stats import drop_p, fewest_worse, least_drop

ALPHA = 0.05
MAX_DROP = "0.5pp"
FEWEST = 5  # samples that must get worse where no drop is allowed, at any n; with an allowance they are more


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says, why, the comparison it rests on, and the command that shows one of the flips again.

    `same_weights` says which question was asked: of these samples, or, of other weights (or of a randomised model), of
    the drop behind them, of which `max_drop` is allowed, a fraction.
    """

    passed: bool
    reason: str
    comparison: Comparison
    same_weights: bool
    reproduce: str
    max_drop: Fraction

    @property
    def p(self) -> float:
        """How likely at least this drop is if the true one is no more than what is allowed."""
        return _p(self.comparison.robust, self.max_drop)

    @property
    def at_least(self) -> float:
        """The one-sided 95 % lower bound of the true drop, a fraction; 0 if none is shown."""
        change = self.comparison.robust
        return least_drop(len(change.worse), len(change.better), change.n)

    def to_json(self) -> dict[str, Any]:
        """As JSON data; `max_drop`, `p` and `at_least` belong to the second question and are null in the first."""
        asked = (
            None if self.same_weights else {"max_drop": float(self.max_drop), "p": self.p, "at_least": self.at_least}
        )
        return {
            "schema": GATE,
            "passed": self.passed,
            "reason": self.reason,
            "question": "these samples" if self.same_weights else "the drop behind them",
            **(asked or dict.fromkeys(("max_drop", "p", "at_least"))),
            "same_weights": self.same_weights,
            "reproduce": self.reproduce or None,
            "comparison": self.comparison.to_json(),
        }


def _p(change: Change, max_drop: Fraction) -> float:
    return drop_p(len(change.worse), len(change.better), change.n, float(max_drop))


def dropped(change: Change, max_drop: Fraction) -> bool:
    """Whether the share behind these samples fell by more than `max_drop`: the paired test's one-sided p < 0.05."""
    return _p(change, max_drop) < ALPHA


def judge(before: RunRecord, after: RunRecord, max_drop: Fraction) -> Verdict:
    """Judge a record against the baseline, on the samples that both have: all of the baseline, or its first ones.

    Raises:
        UsageError: if the two were not asked the same question, or the run leaves out samples of the baseline that are
            not its last ones.
        NotEstablishedError: if a shared sample is UNKNOWN, one of the two is no robust accuracy, its audit is invalid,
            or there are too few samples for any drop to fail.
    """
    for key in QUESTION:
        if (new := said(after.job.get(key))) != (old := said(before.job.get(key))):
            raise UsageError(
                f"{key} is {new} in the run but {old} in the baseline; run the baseline's job, or write the baseline "
                "anew with --update"
            )
    _refuse_invalid("baseline", before)
    _refuse_invalid("run", after)
    comparison = compare(before, after)
    part = _part(before, comparison)
    change, flips = comparison.robust, comparison.flips
    same = bool(before.job["model_sha256"]) and all(
        (before.job.get(key) or "") == (after.job.get(key) or "") for key in ("model_sha256", "defense")
    )
    same = same and not after.draws  # the noise of a randomised model is that of a tile: other samples, other votes
    if not same or (part and not flips):
        _refuse_too_few(change, max_drop)
    if same:
        passed, reason = not flips, _same_weights(comparison)
    else:
        passed, reason = not dropped(change, max_drop), _other_weights(change, max_drop)
    shown = change.worse or tuple(flip.index for flip in flips)
    again = command(after.job, shown[0]) if shown else ""
    return Verdict(passed, reason + part, comparison, same, again, max_drop)


def _refuse_invalid(side: str, record: RunRecord) -> None:
    if record.verdict == INVALID:
        raise NotEstablishedError(f"the audit of the {side} says that its robust accuracy is none: {record.warning}")


def _part(before: RunRecord, comparison: Comparison) -> str:
    """What to say of a run that holds a part of the baseline: only its first samples, so that nobody picks them."""
    n = comparison.robust.n
    if n == before.n:
        return ""
    if set(before.samples["index"][:n].tolist()) != set(comparison.indices):
        raise UsageError(
            f"the run has {n} of the baseline's {before.n} samples, and not its first {n}; run the baseline's samples, "
            "or the first of them with --time-budget"
        )
    return f" (on the first {n} of the baseline's {before.n} samples)"


def _refuse_too_few(change: Change, max_drop: Fraction) -> None:
    needed = fewest_worse(0, change.n, float(max_drop), ALPHA)
    if needed is None or needed > change.before.k:
        raise NotEstablishedError(
            f"{change.n} shared samples, {change.before.k} of them robust in the baseline, are too few to tell a drop "
            f"from chance: with {_points(max_drop)} allowed {_must_fall(needed)}; take more samples"
        )


def _must_fall(needed: int | None) -> str:
    return "no drop among so few can fail" if needed is None else f"at least {needed} must be robust no more to fail"


def reach(record: RunRecord, max_drop: Fraction) -> str:
    """What a gate with this baseline can see, in words."""
    needed, robust = fewest_worse(0, record.n, float(max_drop), ALPHA), record.counts[ROBUST]
    if needed is None or needed > robust:
        return (
            f"too few samples for a gate on other weights: {robust} of {record.n} are robust, and with "
            f"{_points(max_drop)} allowed {_must_fall(needed)}"
        )
    return (
        f"with {_points(max_drop)} allowed other weights fail from {needed} of {record.n} samples fewer on "
        f"({_points(needed / record.n)}), later if some got better"
    )


def _points(share: float | Fraction) -> str:
    return f"{100 * float(share):.3g} points"


def _same_weights(comparison: Comparison) -> str:
    n, flips = comparison.robust.n, comparison.flips
    if not flips:
        return f"the weights are the same, and so is the verdict on all {n} samples"
    differs = "; ".join(comparison.differs)
    why = f"but these differ from the baseline: {differs}" if differs else "and nothing else differs"
    return f"the weights are the same, yet {len(flips)} of {n} samples flipped; {why}"


def _other_weights(change: Change, max_drop: Fraction) -> str:
    if change.difference >= 0:
        return "the robust accuracy did not fall"
    fell = f"the robust accuracy fell by {-100 * change.difference:.2f} points"
    p = _p(change, max_drop)
    if p < ALPHA:
        return f"{fell}, more than the {_points(max_drop)} allowed (p = {p:.3g})"
    return f"{fell}; that it truly fell by more than the {_points(max_drop)} allowed is not shown (p = {p:.3g})"


def request(job: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `robustkit eval` that ask a job's question again, on its machine settings; all its samples."""
    return {
        "model": job["model"],
        "dataset": job["data"],
        "attack": job["attack"],
        "norm": job["norm"],
        "eps": repr(job["eps"]),
        "target": job["target"] or None,
        "seed": job["seed"],
        "outputs": job["outputs"],
        "device": job["device"],
        "threads": job["threads"],
        "tile": job["tile"],
        "indices": tuple(job["indices"]),
        **({"draws": job["draws"]} if job.get("draws") else {}),
        **({"defense": (job["defense"],)} if job.get("defense") else {}),
        **({"quantize": job["quantize"]} if job.get("quantize") else {}),
        **({"certify": job["certify"]} if job.get("certify") else {}),
    }


def command(job: Mapping[str, Any], index: int) -> str:
    """The command line that evaluates one sample of a job again."""
    options = {**request(job), "indices": index}
    options["defense"] = job.get("defense") or None
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["robustkit", "eval", *words])


def prefix(baseline: RunRecord, budget: float, max_drop: Fraction = Fraction(0)) -> tuple[int, float]:
    """How many of the first samples fit into so many seconds of attack, and the seconds they should take.

    Decided from the passes that the baseline counted and the seconds it measured, so it is known beforehand.

    Raises:
        UsageError: if the baseline has no costs, or the budget allows too few samples for any drop to fail.
    """
    place = {index: position for position, index in enumerate(baseline.samples["index"].tolist())}
    expected = np.zeros(baseline.n)
    rows = baseline.attacks
    at = np.array([place[index] for index in rows["index"].tolist()], dtype=np.int64)
    passes = rows["forwards"] + rows["backwards"]
    for name in baseline.job["attacks"]:
        here = rows["attack"] == name
        if total := int(passes[here].sum()):
            expected[at[here]] += passes[here] * (float(baseline.seconds.get(name, 0.0)) / total)
    if not expected.any():
        raise UsageError("--time-budget needs the seconds of a baseline, and this one has none; write it anew")
    spent = expected.cumsum()
    fit = int(np.searchsorted(spent, budget, side="right"))
    least = _least(baseline, max_drop)
    if fit < least:
        raise UsageError(
            f"--time-budget {budget:g}s allows {fit} samples, too few to tell a drop from chance; {least} take "
            f"{spent[least - 1]:.2g}s, all {baseline.n} take {spent[-1]:.2g}s"
        )
    return fit, float(spent[fit - 1])


def _least(baseline: RunRecord, max_drop: Fraction) -> int:
    """How many of the first samples a gate needs to be able to fail; all, if even they are too few."""
    robust = np.cumsum(baseline.samples["status"] == ROBUST).tolist()
    for n, standing in enumerate(robust, start=1):
        needed = fewest_worse(0, n, float(max_drop), ALPHA) if standing >= FEWEST else None
        if needed is not None and needed <= standing:
            return n
    return baseline.n


def floors(record: RunRecord, robust: float | None, certified: float | None) -> list[str]:
    """Which of the least shares, fractions, a record's samples do not hold, in words; None asks nothing.

    Of these samples, so there is no chance in it: the share itself counts, not its interval.

    Raises:
        NotEstablishedError: if a share that is asked for is not established.
    """
    found = []
    for name, least, share in (
        ("robust", robust, record.robust_accuracy), ("certified", certified, record.certified_accuracy),
    ):  # fmt: skip
        if least is None:
            continue
        if share is None:
            why = record.why_no_robust_accuracy if name == "robust" else "it has no certificates; add --certify"
            raise NotEstablishedError(f"the {name} accuracy is not established: {why}")
        if float(share) < least:
            found.append(f"the {name} accuracy is {share}, below the floor of {100 * least:g} %")
    return found


def parse_share(text: str) -> float:
    """A share, `45%` or `0.45`.

    Raises:
        UsageError: for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"{text!r} is no share; write 45% or 0.45")
    return share


def parse_drop(text: str) -> Fraction:
    """A drop in points of accuracy, `0.5pp` or `0.5%`, as a fraction.

    Raises:
        UsageError: for anything else; also for a bare number, which could mean either.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:pp|%)", text.strip())
    value = Fraction(found[1]) / 100 if found else None
    if value is None or value >= 1:
        raise UsageError(f"--max-drop {text!r} is no drop in points of accuracy; write 0.5pp or 0.5%")
    return value


def parse_seconds(text: str) -> float:
    """A duration such as `60s` or `2m`, in seconds.

    Raises:
        UsageError: for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m)", text.strip())
    if not found:
        raise UsageError(f"--time-budget {text!r} is no duration; write 60s or 2m")
    return float(found[1]) * (60 if found[2] == "m" else 1)
