"""The gate: whether a model got worse than its baseline, by a rule that chance does not trip.

Other weights fail when the paired drop of the robust accuracy is significant and larger than what is allowed. The same
weights must give the same verdict on every sample.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from robustkit.errors import UsageError
from robustkit.records.compare import QUESTION, Change, Comparison, compare
from robustkit.records.run import RunRecord
from robustkit.records.schema import GATE

ALPHA = 0.05
MAX_DROP = "0.5pp"
LEAST = 5  # samples below which no drop can be significant: 2 ** -4 > ALPHA > 2 ** -5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says, why, the comparison it rests on, and the command that shows one of the flips again."""

    passed: bool
    reason: str
    comparison: Comparison
    same_weights: bool
    reproduce: str

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "schema": GATE,
            "passed": self.passed,
            "reason": self.reason,
            "same_weights": self.same_weights,
            "reproduce": self.reproduce or None,
            "comparison": self.comparison.to_json(),
        }


def dropped(change: Change, max_drop: Fraction) -> bool:
    """Whether the share fell: significantly (exact one-sided p < 0.05), and by more than `max_drop`."""
    return change.p < ALPHA and Fraction(len(change.worse) - len(change.better), change.n) > max_drop


def judge(before: RunRecord, after: RunRecord, max_drop: Fraction) -> Verdict:
    """Judge a record against the baseline, on the samples that both have.

    Raises:
        UsageError: if the two were not asked the same question, or share no sample.
        NotEstablishedError: if a shared sample is UNKNOWN.
    """
    for key in QUESTION:
        if (new := after.job.get(key) or "none") != (old := before.job.get(key) or "none"):
            raise UsageError(
                f"{key} is {new} in the run but {old} in the baseline; run the baseline's job, or write the baseline "
                "anew with --update"
            )
    comparison = compare(before, after)
    change, flips = comparison.robust, comparison.flips
    same = bool(before.job["model_sha256"]) and all(
        (before.job.get(key) or "") == (after.job.get(key) or "") for key in ("model_sha256", "defense")
    )
    if same and not after.draws:  # the noise of a randomised model is that of a tile: other samples, other votes
        passed, reason = not flips, _same_weights(comparison)
    else:
        passed, reason = not dropped(change, max_drop), _other_weights(change, max_drop)
    shown = change.worse or tuple(flip.index for flip in flips)
    return Verdict(passed, reason, comparison, same, command(after.job, shown[0]) if shown else "")


def _same_weights(comparison: Comparison) -> str:
    n, flips = comparison.robust.n, comparison.flips
    if not flips:
        return f"the weights are the same, and so is the verdict on all {n} samples"
    differs = "; ".join(comparison.differs)
    why = f"but these differ from the baseline: {differs}" if differs else "and nothing else differs"
    return f"the weights are the same, yet {len(flips)} of {n} samples flipped; {why}"


def _other_weights(change: Change, max_drop: Fraction) -> str:
    points = 100 * abs(change.difference)
    if change.difference >= 0:
        return "the robust accuracy did not fall"
    fell = f"the robust accuracy fell by {points:.2f} points"
    if change.p >= ALPHA:
        return f"{fell}, which may be chance (p = {change.p:.2g})"
    if not dropped(change, max_drop):
        return f"{fell}, no more than the {100 * float(max_drop):g} that are allowed"
    return f"{fell} (p = {change.p:.2g}); {100 * float(max_drop):g} are allowed"


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
    }


def command(job: Mapping[str, Any], index: int) -> str:
    """The command line that evaluates one sample of a job again."""
    options = {**request(job), "indices": index}
    options["defense"] = job.get("defense") or None
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["robustkit", "eval", *words])


def prefix(baseline: RunRecord, budget: float) -> tuple[int, float]:
    """How many of the first samples fit into so many seconds of attack, and the seconds they should take.

    Decided from the passes that the baseline counted and the seconds it measured, so it is known beforehand.

    Raises:
        UsageError: if the baseline has no costs, or the budget allows too few samples for any drop to be significant.
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
    if fit < min(LEAST, baseline.n):
        raise UsageError(
            f"--time-budget {budget:g}s allows {fit} samples, too few to tell a drop from chance; {LEAST} take "
            f"{spent[min(LEAST, baseline.n) - 1]:.2g}s, all {baseline.n} take {spent[-1]:.2g}s"
        )
    return fit, float(spent[fit - 1])


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
