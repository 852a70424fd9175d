"""The judge: believes no attack, asks the reference model, and remembers the best valid adversarial of each sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Goal, Images, Labels, Mask, ThreatModel
from robustkit.models.oracle import Network
from robustkit.numerics import rows
from robustkit.numerics.bare import bare
from robustkit.records import schema
from robustkit.tasks import CLASSIFICATION, Task

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
    """Candidates beside their originals: `near` is in the box and the ball, `faults` the rows that break each rule."""

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
    near = in_box & (distance <= threat.limit)
    allowed = near if goal == "bounded" else in_box
    finite = torch.isfinite(rows.flat(adv)).all(1)
    faults = {
        "an image that is not finite": ~finite,
        "an image outside the box": finite & ~in_box,
        "an image outside the ball": in_box & ~allowed,
    }
    return Measured(distance, near, allowed, faults)


class Judge:
    """Judges the candidates for one batch of samples, of which it keeps its own copies.

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
        self.distance = torch.full((n,), torch.nan, dtype=torch.float64, device=x.device)
        self.margin = torch.full((n,), torch.nan, dtype=torch.float64, device=x.device)
        self.decision = torch.full((n,), -1, device=x.device)  # the class that the model decides on the candidate kept
        self.adv = self.x.clone()
        self.reasons: dict[str, Tensor] = {}

    def submit(self, samples: Tensor, adv: Any) -> Mask:
        """Judge one candidate for each of `samples` (positions in the batch); true where it is a valid break."""
        samples, adv = bare(samples), bare(adv)  # a subclass may lie about everything that is asked of it here
        wanted = (samples.shape[0], *self.x.shape[1:])
        if reason := malformed(adv, wanted):
            self.violate(samples, reason)
            return torch.zeros_like(samples, dtype=torch.bool)
        adv = adv.to(self.x.device, self.x.dtype)
        if samples.shape[0] == 0:
            return torch.zeros_like(samples, dtype=torch.bool)
        again = (samples[:, None] == samples).tril(-1).any(1)
        if again.any():  # several candidates of a sample: one after another, so that the best is kept
            valid = torch.zeros_like(again)
            for part in (~again, again):
                valid[part] = self.submit(samples[part], adv[part])
            return valid
        distance, near, allowed, faults = measure(self.threat, self.x[samples], adv, self.goal)
        for reason, broken in faults.items():
            self.violate(samples[broken], reason)
        return self._decide(samples, adv, distance, near, allowed)

    def _decide(self, samples: Tensor, adv: Images, distance: Tensor, near: Mask, allowed: Mask) -> Mask:
        """Ask the model about the candidates that are allowed, and keep the best; true where it is a valid break."""
        target = None if self.target is None else self.target[samples]
        images = torch.where(rows.spread(allowed, adv), adv, self.x[samples])
        logits = self.reference.logits(images)
        sound = torch.isfinite(rows.flat(logits)).all(1)
        self.violate(samples[allowed & ~sound], "the model's outputs are not finite")
        fooled = allowed & sound & self.task.reached(logits, self.y[samples], target)
        fooled &= ~self.reference.refused(images)  # what is refused is no mistake, whatever it would have been
        margin = self.task.margin(logits, self.y[samples], target).double()
        self._keep(samples, adv, distance, margin, self.task.decision(logits), allowed & sound, fooled)
        valid = fooled & near
        self.broken[samples] |= valid
        return valid

    def _keep(
        self, samples: Tensor, adv: Images, distance: Tensor, margin: Tensor, decision: Labels, allowed: Mask,
        fooled: Mask,
    ) -> None:  # fmt: skip
        """Keep a candidate that is better: bounded, of lower margin; minimal, nearer; and any before the first."""
        had, known = self.fooled[samples], self.distance[samples]
        nearer = distance < known if self.goal == "minimal" else margin < self.margin[samples]
        better = allowed & torch.where(had, fooled & nearer, torch.ones_like(fooled))
        at = samples[better]
        self.distance[at], self.margin[at], self.decision[at] = distance[better], margin[better], decision[better]
        self.adv[at] = adv[better]
        self.fooled[samples] |= fooled

    def violate(self, samples: Tensor, reason: str) -> None:
        """Note that an attack broke the rules on these samples."""
        if samples.shape[0] == 0:
            return
        self.violated[samples] = True
        before = self.reasons.get(reason)
        self.reasons[reason] = samples if before is None else torch.cat([before, samples])

    def why(self) -> list[str]:
        """Of each sample, which rules were broken on it, a line each; empty of a sample that is broken all the same."""
        found: list[list[str]] = [[] for _ in self.y]
        for reason, samples in self.reasons.items():
            for row in set(samples[~self.broken[samples]].tolist()):
                found[row].append(reason)
        return ["\n".join(reasons) for reasons in found]

    def confirm_again(self) -> None:
        """Judge every break once more, by rule and model: one that does not repeat was not made by the image."""
        near = self._measured_again()
        at = self.broken.nonzero()[:, 0]
        if len(at):
            logits = self.reference.logits(self.adv[at])
            target = None if self.target is None else self.target[at]
            fooled = torch.isfinite(logits).all(1) & self.task.reached(logits, self.y[at], target)
            fooled &= ~self.reference.refused(self.adv[at])
            lost = at[~(near[at] & fooled)]
            self.broken[lost] = False
            self.fooled[lost] = False
            self.distance[lost] = self.margin[lost] = torch.nan
            self.decision[lost] = -1
            once = lost[near[lost]]
            self.violate(once, "the model was fooled only while the attack ran; did it change the model's state?")

    def _measured_again(self) -> Mask:
        """Which candidates kept are within reach, and their distances, measured when no attack is at work."""
        found, kept = measure(self.threat, self.x, self.adv, self.goal), ~self.distance.isnan()
        other = kept & ~(found.allowed & (found.distance == self.distance))
        self.violate(other.nonzero()[:, 0], "an image kept to the rules only while the attack ran")
        self.distance = torch.where(kept, found.distance, self.distance)
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

    def verdicts(self) -> Verdicts:
        """The outcome of each sample so far: a valid break outweighs a violation, a violation outweighs survival."""
        outcome = torch.full_like(self.decision, SURVIVED)
        outcome[self.violated] = VIOLATED
        outcome[self.broken] = BROKEN
        # A violation leaves no candidate of its own: distance and margin stay those of the last valid one.
        distance = self.distance
        if self.goal == "minimal":  # the distance of an image that fools nobody is not one to the nearest adversarial
            distance = torch.where(self.fooled, distance, torch.full_like(distance, torch.nan))
        return Verdicts(outcome, distance, self.margin, self.decision, self.adv)
