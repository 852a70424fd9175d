"""Signs, among a run's facts, that its attacks had nothing to go by: then what stands may only be hidden. No torch.

They are shares of the samples that stand unproved, and speak only where chance cannot make them: an exact test, so that
a few samples among many, or one among few, accuse nobody. The limits are the audit's, and methods are from where its
are: Carlini et al. 2019, arXiv:1902.06705, section 5; Croce & Hein 2020, arXiv:2003.01690, for queries as cross-check.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robustkit.records.run import RunRecord
from robustkit.records.schema import BROKE, SURVIVED, VIOLATED
from robustkit.stats import at_least

IDLE = "idle"  # the kind of flag that says that an attack did nothing
MASKED = "masked"  # the kind of flag that says that what stands may only be hidden
BLIND = 0.02  # share of what stands, for which no attack had a gradient
OTHERS = 0.1  # share of what gradient attacks left that something else breaks
LEFT = 20  # samples that they left, from which on that share says something
MISLED = 0.1  # share of images at which a step along the gradient does not do what it promises
CLIMBED = 20  # backward passes from which on what is left says something
SATURATED = 30.0  # median margin, in logits, from which on the cross-entropy starves
_STILL = 1e-6  # relative change of a loss that did not move
_ALPHA = 0.05


class Sign(NamedTuple):
    """What was seen of `k` of `n` samples, in words."""

    k: int
    n: int
    text: str


def exceeds(k: int, n: int, share: float) -> bool:
    """Whether k of n is significantly more than a share."""
    return n > 0 and at_least(k, n, share) < _ALPHA


def signs(record: RunRecord) -> list[Sign]:
    """The signs that a run's own facts give; none of a record of older versions, which lack these facts."""
    if "flat" not in record.attacks:
        return []
    found = [_flat(record), _others(record)]
    return [sign for sign in found if sign is not None]


def not_attacked(record: RunRecord) -> int:
    """How many samples stand only because no attack could run on them: none judged a single candidate."""
    if "flat" not in record.attacks or "prediction" not in record.attacks:
        return 0
    tried = record.attacks["index"][record.attacks["prediction"] >= 0]
    return int((~np.isin(_standing(record), tried)).sum())


def idle(record: RunRecord) -> list[str]:
    """Of each attack of a run that did nothing, what it left undone."""
    rows, found = record.attacks, []
    for name in record.job["attacks"]:
        here = (rows["attack"] == name) & (rows["outcome"] != VIOLATED)
        here &= rows["prediction"] >= 0 if "prediction" in rows else True
        found.append(idly(name, rows["distance"][here], rows["forwards"][here] + rows["backwards"][here]))
    return [text for text in found if text]


def idly(name: str, distance: np.ndarray, passes: np.ndarray) -> str:
    """What an attack left undone on all samples that it met, by their distances and passes; mostly nothing."""
    if not len(distance):
        return ""
    clean = f"returned the clean images of all {len(distance)} samples it met" if (distance == 0).all() else ""
    asked = "made no pass through the model" if not passes.any() else ""
    done = " and ".join(part for part in (clean, asked) if part)
    return f"{name} {done}: that it broke nothing says nothing of the model" if done else ""


def message(record: RunRecord, seen: Sequence[Sign], *, flows: bool) -> str:
    """The signs in one sentence, with the attack that would tell more; `flows` says that gradients reach the image."""
    why = "; ".join(sign.text for sign in seen)
    return f"{why}: what stands may only be hidden from these attacks; {advice(record, flows=flows)}"


def advice(record: RunRecord, *, flows: bool) -> str:
    """Which attack would tell more than those that ran."""
    ran = [record.job["attack"], *record.job["attacks"]]
    able = ("apgd:loss=dlr", "adaptive") if flows else ("square", "adaptive")
    wanted = [name for name in able if not any(one.startswith(name) for one in ran)]
    return f"try {' or '.join(wanted)}" if wanted else "let robustkit audit look closer"


def margin(record: RunRecord) -> float:
    """The median margin of the clean images that stand, in logits."""
    standing = record.unproved
    return float(np.median(record.samples["margin"][standing])) if standing.any() else 0.0


def _standing(record: RunRecord) -> np.ndarray:
    found: np.ndarray = record.samples["index"][record.unproved]
    return found


def _flat(record: RunRecord) -> Sign | None:
    """Samples that stand though no gradient attack that met them had anything to climb."""
    rows = record.attacks
    asked = np.isin(rows["index"], _standing(record)) & ~np.isnan(rows["flat"])
    flat, still = rows["flat"] >= 0.5, _still(record)
    met, seeing = (np.unique(rows["index"][asked & which]) for which in (flat | still, ~flat & ~still))
    blind = np.setdiff1d(met, seeing)
    k, n = len(blind), len(np.union1d(met, seeing))
    if not exceeds(k, n, BLIND):
        return None
    here = asked & np.isin(rows["index"], blind)
    words = []
    if (flat & here).any():
        size = margin(record)
        why = f", for the logits are saturated (median clean margin {size:.3g})" if size > SATURATED else ""
        words.append(f"gradients were zero{why}")
    if (still & ~flat & here).any():
        words.append("the loss did not move")
    return Sign(k, n, f"on {k} of {n} samples that stand {' and '.join(words)}")


def _still(record: RunRecord) -> np.ndarray:
    """Rows whose loss ended where it began, after more than one gradient."""
    rows = record.attacks
    first, last = rows["first_loss"], rows["last_loss"]
    with np.errstate(invalid="ignore"):
        same = np.abs(last - first) <= _STILL * np.maximum(np.abs(first), np.abs(last))
    return np.asarray(same & (rows["backwards"] > 1))


def _others(record: RunRecord) -> Sign | None:
    """Samples that gradient attacks left and something else broke: queries, noise, a stand-in, a boundary attack."""
    rows = record.attacks
    left = np.zeros(0, dtype=np.int64)
    met, broke = 0, 0
    for name in record.job["attacks"]:
        here = rows["attack"] == name
        climbed = here & ~np.isnan(rows["flat"])
        follows_boundary = record.goals.get(name) == "minimal"
        other = here & (np.isnan(rows["flat"]) | follows_boundary) & np.isin(rows["index"], left)
        met, broke = max(met, int(other.sum())), broke + int((rows["outcome"][other] == BROKE).sum())
        strong = climbed & ~other & (rows["backwards"] >= CLIMBED) & (rows["outcome"] == SURVIVED)
        left = np.union1d(left, rows["index"][strong])
    if met < LEFT or not exceeds(broke, met, OTHERS):
        return None
    what = "queries, noise, stand-ins or a walk along the boundary"
    return Sign(broke, met, f"{what} broke {broke} of {met} samples that gradient attacks left")
