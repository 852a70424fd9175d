"""The judge: believes no attack, asks the reference model, and remembers the best valid adversarial of each sample."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Goal, Images, Labels, Mask, ThreatModel
from robustkit.models.oracle import Network
from robustkit.numerics import devices, rows
from robustkit.numerics.bare import bare
from robustkit.records import schema
from robustkit.tasks import CLASSIFICATION, Task

ROUNDING = (
    1e-5  # of the largest logit: by so much two calls of one model may differ where kernels are not deterministic
)
OUTSIDE = "an image outside the ball"
_BY = re.compile(rf"({OUTSIDE}, by )([\d.e+-]+)( .*)")
SURVIVED, BROKEN, VIOLATED = schema.SURVIVED_CODE, schema.BROKE_CODE, schema.VIOLATED_CODE


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What an attack achieved on a batch, one row a sample.

    `distance`, `margin` and `decision` belong to the best valid adversarial if there is one (broken, or beyond eps of
    an attack that seeks the nearest), else to the last valid candidate; NaN where there is none, and a decision of −1.
    An attack that seeks the nearest and finds none has no distance.
    """

    outcome: Tensor
    distance: Tensor
    margin: Tensor
    decision: Tensor
    adv: Images


class Measured(NamedTuple):
    """Candidates beside their originals: `near` is in the box and the ball, `faults` the rows that break each rule.

    `distance` is float64, on the CPU where the images' device has none; the masks are where the images are.
    """

    distance: Tensor
    near: Mask
    allowed: Mask
    faults: Mapping[str, Mask]


def malformed(adv: Any, wanted: Sequence[int]) -> str:
    """Why this is no batch of images of the shape `wanted` at all; empty if it is one."""
    if not isinstance(adv, Tensor) or tuple(adv.shape) != tuple(wanted):
        given = tuple(adv.shape) if isinstance(adv, Tensor) else type(adv).__name__
        return f"returned {given} where images of shape {tuple(wanted)} were due"
    if not adv.is_floating_point():
        return f"returned {adv.dtype} where floating-point images were due"
    return ""


def measure(threat: ThreatModel, x: Images, adv: Images, goal: Goal = "bounded") -> Measured:
    """The one rule on images: finite, in the box and, unless the nearest adversarial is sought, in the ball."""
    distance, in_box = threat.distance(x, adv), threat.in_box(adv)
    near = in_box & (distance <= threat.limit).to(adv.device)
    allowed = near if goal == "bounded" else in_box
    finite = torch.isfinite(rows.flat(adv)).all(1)
    faults = {
        "an image that is not finite": ~finite,
        "an image outside the box": finite & ~in_box,
        OUTSIDE: in_box & ~allowed,
    }
    return Measured(distance, near, allowed, faults)


def how_far(beyond: float, threat: ThreatModel, dtype: torch.dtype) -> str:
    """Why an image counts as outside the ball: by how much it is, and in which type of numbers it came."""
    kind = str(dtype).removeprefix("torch.")
    return f"{OUTSIDE}, by {beyond:.3g} (eps is {threat.eps:.6g}, the images came in {kind})"


def gathered(rows: Iterable[tuple[Hashable, str, int]]) -> dict[tuple[Any, str], list[int]]:
    """The indices of (key, reason, index) by key and reason; reasons that differ by how far only are the farthest's."""
    found: dict[tuple[Hashable, str, str], tuple[float, list[int]]] = {}
    for key, reason, index in rows:
        match = _BY.fullmatch(reason)
        stem, beyond, rest = (match[1], float(match[2]), match[3]) if match else (reason, 0.0, "")
        most, indices = found.setdefault((key, stem, rest), (beyond, []))
        indices.append(index)
        found[key, stem, rest] = max(most, beyond), indices
    return {
        (key, f"{stem}{'up to ' * (len(indices) > 1)}{most:.3g}{rest}" if rest else stem): indices
        for (key, stem, rest), (most, indices) in found.items()
    }


class Judge:
    """Judges the candidates for one batch of samples, of which it keeps its own copies.

    To judge a submission asks nothing of the device that the images are on, but for the distances where it has no
    float64: those are measured on the CPU.

    Args:
        reference: the model as given, in float32, unfused.
        threat: what the adversary may change.
        x: the original images; y: their labels; target: wanted decisions, or None.
        goal: "bounded", or "minimal" for an attack that may end beyond eps.
        task: when a candidate has reached its aim, and by how much.
    """

    def __init__(
        self, reference: Network, threat: ThreatModel, x: Images, y: Labels, target: Labels | None, goal: Goal,
        task: Task = CLASSIFICATION,
    ) -> None:  # fmt: skip
        self.reference, self.threat, self.goal, self.task = reference, threat, goal, task
        self.x, self.y = x.clone(), y.clone()
        self.target = None if target is None else target.clone()
        n = x.shape[0]
        self.broken = torch.zeros(n, dtype=torch.bool, device=x.device)
        self.violated = torch.zeros_like(self.broken)
        self.fooled = torch.zeros_like(self.broken)  # misclassified inside the box, at any distance
        self.distance = torch.full((n,), torch.nan, dtype=devices.widest(x.device), device=x.device)
        self.margin = self.distance.clone()
        self.decision = torch.full((n,), -1, device=x.device)  # the class that the model decides on the candidate kept
        self.adv = self.x.clone()
        self.beyond = torch.zeros_like(self.distance)  # the most that an image offered was outside the ball
        self.dtype = x.dtype  # in which images came, if in another one
        self._faults: dict[str, Tensor] = {}

    def submit(self, samples: Tensor, adv: Any) -> Mask:
        """Judge one candidate for each of `samples` (positions in the batch); true where it is a valid break."""
        samples, adv = bare(samples), bare(adv)  # a subclass may lie about everything that is asked of it here
        wanted = (samples.shape[0], *self.x.shape[1:])
        if reason := malformed(adv, wanted):
            self.violate(samples, reason)
            return torch.zeros_like(samples, dtype=torch.bool)
        self.dtype = adv.dtype if adv.dtype != self.x.dtype else self.dtype
        adv = adv.to(self.x.device, self.x.dtype)
        if samples.shape[0] == 0:
            return torch.zeros_like(samples, dtype=torch.bool)
        distance, near, allowed, faults = measure(self.threat, self.x[samples], adv, self.goal)
        over = torch.where(faults[OUTSIDE], distance.to(self.beyond) - self.threat.eps, 0.0)
        self.beyond = self.beyond.scatter_reduce(0, samples, over, "amax")
        for reason, broken in faults.items():
            self._note(samples, broken, reason)
        return self._decide(samples, adv, distance.to(self.distance), near, allowed)

    def _decide(self, samples: Tensor, adv: Images, distance: Tensor, near: Mask, allowed: Mask) -> Mask:
        """Ask the model about the candidates that are allowed, and keep the best; true where it is a valid break."""
        target = None if self.target is None else self.target[samples]
        images = torch.where(rows.spread(allowed, adv), adv, self.x[samples])
        logits = self.reference.logits(images)
        sound = torch.isfinite(rows.flat(logits)).all(1)
        self._note(samples, allowed & ~sound, "the model's outputs are not finite")
        fooled = allowed & sound & self.task.reached(logits, self.y[samples], target)
        fooled &= ~self.reference.refused(images)  # what is refused is no mistake, whatever it would have been
        margin = self.task.margin(logits, self.y[samples], target).to(self.margin)
        self._keep(samples, adv, distance, margin, self.task.decision(logits), allowed & sound, fooled)
        valid = fooled & near
        self.broken |= self._any(samples, valid)
        return valid

    def _any(self, samples: Tensor, mask: Tensor) -> Tensor:
        """Of all samples of the batch, for which one of these rows is true."""
        return torch.zeros_like(self.broken, dtype=torch.int32).index_add_(0, samples, mask.to(torch.int32)) > 0

    def _keep(
        self, samples: Tensor, adv: Images, distance: Tensor, margin: Tensor, decision: Labels, allowed: Mask,
        fooled: Mask,
    ) -> None:  # fmt: skip
        """Keep a candidate that is better: bounded, of lower margin; minimal, nearer; and any before the first.

        A sample may come several times: what is kept is what would be, one after the other.
        """
        value, known = (distance, self.distance) if self.goal == "minimal" else (margin, self.margin)
        lower = fooled & (value < torch.where(self.fooled, known, torch.inf)[samples])
        best = torch.full_like(known, torch.inf).scatter_reduce(
            0, samples, torch.where(lower, value, torch.inf), "amin"
        )
        order = torch.arange(len(samples), device=samples.device)
        first = torch.full_like(self.decision, len(order)).scatter_reduce(
            0, samples, torch.where(lower & (value == best[samples]), order, len(order)), "amin"
        )
        last = torch.full_like(self.decision, -1).scatter_reduce(0, samples, torch.where(allowed, order, -1), "amax")
        chosen = torch.where(first < len(order), first, torch.where(self.fooled, -1, last))[samples]
        taken, source = chosen >= 0, chosen.clamp_min(0)
        for mine, theirs in ((self.distance, distance), (self.margin, margin), (self.decision, decision)):
            mine[samples] = torch.where(taken, theirs[source], mine[samples])
        self.adv[samples] = rows.pick(taken, adv[source], self.adv[samples])
        self.fooled |= self._any(samples, fooled)

    def violate(self, samples: Tensor, reason: str) -> None:
        """Note that an attack broke the rules on these samples."""
        self._note(samples, torch.ones_like(samples, dtype=torch.bool), reason)

    def _note(self, samples: Tensor, faulty: Mask, reason: str) -> None:
        found = self._any(samples, faulty)
        self.violated |= found
        self._faults[reason] = found | self._faults.get(reason, found)

    @property
    def reasons(self) -> dict[str, Tensor]:
        """Which rules were broken, and on which samples."""
        found = {reason: rows.positions(faulty) for reason, faulty in self._faults.items()}
        return {reason: samples for reason, samples in found.items() if len(samples)}

    def why(self) -> list[str]:
        """Of each sample, which rules were broken on it, a line each; empty of a sample that is broken all the same."""
        found: list[list[str]] = [[] for _ in self.y]
        for reason, samples in self.reasons.items():
            for row in samples[~self.broken[samples]].tolist():
                far = how_far(float(self.beyond[row]), self.threat, self.dtype) if reason == OUTSIDE else reason
                found[row].append(far)
        return ["\n".join(reasons) for reasons in found]

    def confirm_again(self) -> None:
        """Judge every break once more, by rule and model: one that does not repeat was not made by the image.

        A margin that is zero but for rounding may have either sign, where kernels do not add in one order: such a break
        does not count, and nobody broke a rule.
        """
        near = self._measured_again()
        at = rows.positions(self.broken)
        if len(at):
            logits = self.reference.logits(self.adv[at])
            target = None if self.target is None else self.target[at]
            fooled = torch.isfinite(logits).all(1) & self.task.reached(logits, self.y[at], target)
            fooled &= ~self.reference.refused(self.adv[at])
            rounding = logits.abs().amax(1) * ROUNDING + ROUNDING / 10
            clear = self.task.margin(logits, self.y[at], target).abs() > rounding
            gone = ~(near[at] & fooled)
            lost = at[gone]
            self.broken[lost] = False
            self.fooled[lost] = False
            self.distance[lost.to(self.distance.device)] = torch.nan
            self.margin[lost] = torch.nan
            self.decision[lost] = -1
            once = at[gone & near[at] & (clear | ~torch.isfinite(logits).all(1))]
            self.violate(once, "the model was fooled only while the attack ran; did it change the model's state?")

    def _measured_again(self) -> Mask:
        """Which candidates kept are within reach, and their distances, measured when no attack is at work."""
        found = measure(self.threat, self.x, self.adv, self.goal)
        known = self.distance.to(found.distance.device)
        # Of another number of rows a device may add an image's pixels in another order.
        tiny = 1e-9 if known.dtype == torch.float64 else 1e-6
        same = (found.distance - known).abs() <= tiny * (1 + found.distance)
        kept = ~known.isnan()
        other = rows.positions(kept & ~(found.allowed.to(same.device) & same))
        self.violate(other.to(self.x.device), "an image kept to the rules only while the attack ran")
        self.distance = torch.where(kept, found.distance, known)
        return found.near

    def revoke(self, reason: str) -> None:
        """Take back every verdict: what was confirmed was not confirmed by the model as given."""
        self.broken.zero_()
        self.fooled.zero_()
        self.distance.fill_(torch.nan)
        self.margin.fill_(torch.nan)
        self.decision.fill_(-1)
        self.violate(torch.arange(len(self.y), device=self.y.device), reason)

    def lent(self) -> tuple[Images, Labels, Labels | None]:
        """Copies of the images, labels and targets for an attack to work with."""
        return self.x.clone(), self.y.clone(), None if self.target is None else self.target.clone()

    def unchanged(self, x: Images, y: Labels, target: Labels | None) -> bool:
        """Whether what was lent came back as it was."""
        same_target = target is None or self.target is None or torch.equal(target, self.target)
        return torch.equal(x, self.x) and torch.equal(y, self.y) and same_target

    def near(self) -> Mask:
        """Which samples have a candidate kept that is inside the ball."""
        return ~self.distance.isnan() & (self.distance <= self.threat.limit)

    def verdicts(self) -> Verdicts:
        """The outcome of each sample so far: a valid break outweighs a violation, a violation outweighs survival."""
        outcome = torch.full_like(self.decision, SURVIVED)
        outcome[self.violated] = VIOLATED
        outcome[self.broken] = BROKEN
        # A violation leaves no candidate of its own: distance and margin stay those of the last valid one.
        distance = self.distance
        if self.goal == "minimal":  # the distance of an image that fools nobody is not one to the nearest adversarial
            distance = torch.where(self.fooled.to(distance.device), distance, torch.nan)
        return Verdicts(outcome, distance, self.margin, self.decision, self.adv)
