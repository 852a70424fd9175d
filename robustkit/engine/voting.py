"""The judge of a randomised model: one pass decides nothing, so candidates are tried on draws, and voted on at the end.

While an attack runs, few draws tell it when to leave a sample alone, and which candidate to keep: the one that is most
often wrong. The verdict comes after it, from fresh draws that chose nothing: the majority of `draws` of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Goal, Images, Labels, Mask, ThreatModel
from robustkit.engine.judge import Judge
from robustkit.models import capabilities
from robustkit.models.oracle import Network
from robustkit.numerics import devices, rows
from robustkit.numerics.bare import bare
from robustkit.records.votes import lost, reevaluations
from robustkit.tasks import CLASSIFICATION, Task

FIRST = 4  # draws that a candidate must fail, all of them, before more are spent on it
MORE = 10  # and then so many more
SURE = 0.8  # of these draws together must be wrong, for an attack to be told that it is done


class Answers(NamedTuple):
    """What some draws said of some images: (draws, batch) wrong, and for each image whether all was finite."""

    wrong: Tensor
    sound: Mask
    margin: Tensor


def ask(
    networks: Callable[[int], Network],
    draws: int,
    images: Images,
    y: Labels,
    target: Labels | None,
    task: Task = CLASSIFICATION,
) -> tuple[Answers, Tensor]:
    """The answers of `draws` calls, the network of each from `networks`, and the logits (draws, batch, classes)."""
    logits = torch.stack([networks(draw).logits(images) for draw in range(draws)])
    wrong = torch.stack([task.reached(each, y, target) for each in logits])
    wide = devices.widest(images.device)
    margin = torch.stack([task.margin(each, y, target).to(wide) for each in logits]).mean(0)
    return Answers(wrong, torch.isfinite(logits.flatten(2)).all(2).all(0), margin), logits


class Clean(NamedTuple):
    """What the model says of clean images: logits (a mean, where there are draws), and the draws as patterns."""

    correct: Mask
    prediction: Labels
    margin: Tensor
    logits: Tensor
    sound: Mask
    draws: list[str]
    refused: Mask
    expected: Tensor  # of a mixture, the probability of a right answer; NaN of any other


def clean(network: Network, x: Images, y: Labels, task: Task) -> Clean:
    """By one pass."""
    logits = network.logits(x)
    sound = torch.isfinite(rows.flat(logits)).all(1)
    margin = task.margin(logits, y, None).to(devices.widest(x.device))
    refused = network.refused(x)
    correct = ~task.reached(logits, y, None) & ~refused
    none = torch.full_like(margin, torch.nan)
    return Clean(correct, task.decision(logits), margin, logits, sound, [], refused, none)


def clean_by_vote(networks: Callable[[int], Network], draws: int, x: Images, y: Labels, task: Task) -> Clean:
    """Of a randomised model: right if most of `draws` are; the prediction is what they say most often."""
    answers, logits = ask(networks, reevaluations(draws), x, y, None, task)
    correct = ~lost(answers.wrong[:draws].sum(0), draws)
    prediction = task.decision(logits[:draws]).mode(0).values
    exact = expected(networks(0), x, y, None, task)
    refused = torch.zeros_like(correct)
    return Clean(
        correct, prediction, answers.margin, logits.mean(0), answers.sound, as_text(answers.wrong), refused, exact
    )


def expected(network: Network, x: Images, y: Labels, target: Labels | None, task: Task) -> Tensor:
    """The probability of an answer that is not what an attack wants, of a mixture exactly; NaN of any other model.

    The members' weights times whether each of them is right: no draw is taken. ARC, Dbouk & Shanbhag, ICML 2022.
    """
    weights = capabilities.weights(network.module)
    if not weights:
        return torch.full((len(x),), torch.nan, dtype=devices.widest(x.device), device=x.device)
    right = torch.stack([~task.reached(each, y, target) for each in network.members(x)]).to(devices.widest(x.device))
    return (right * torch.tensor(weights, dtype=right.dtype, device=x.device)[:, None]).sum(0)


class VotingJudge(Judge):
    """Judges the candidates for one batch of samples by draws of a randomised model.

    Args:
        reference: the model, whose noise goes on from call to call.
        threat, x, y, target, goal: as for `Judge`.
        draws: how many fresh draws vote on the candidate that was kept.
    """

    def __init__(
        self, reference: Network, threat: ThreatModel, x: Images, y: Labels, target: Labels | None, goal: Goal,
        draws: int, task: Task = CLASSIFICATION,
    ) -> None:  # fmt: skip
        super().__init__(reference, threat, x, y, target, goal, task)
        self.draws = draws
        self.share = torch.full_like(self.margin, -1)  # how often the candidate kept was wrong; −1: there is none
        self.ever = torch.zeros_like(self.broken)  # wrong in any pass, of the attack or of the judge, inside the ball
        self.expected = torch.full_like(self.margin, torch.nan)
        self.mixture = bool(capabilities.weights(reference.module))
        self.wrong = torch.zeros(reevaluations(draws), len(y), dtype=torch.bool, device=x.device)

    def saw(self, samples: Tensor, x: Images, logits: Tensor) -> None:
        """An attack's own pass, which counts for the worst case: wrong there and inside the ball."""
        x, logits = bare(x), bare(logits)
        if x.shape != self.x[samples].shape:
            return
        target = None if self.target is None else self.target[samples]
        hit = self.task.reached(logits, self.y[samples], target)
        if devices.is_host(hit.device):  # elsewhere to know which are hit costs more than to measure all
            at = rows.positions(hit)
            samples, x, hit = samples[at], x[at], hit[at]
        self.ever[samples] |= hit & self.threat.contains(self.x[samples], x)

    def _decide(self, samples: Tensor, adv: Images, distance: Tensor, near: Mask, allowed: Mask) -> Mask:
        """Few draws first; more for a candidate that fails all of them. True where nearly all are wrong."""
        again = (samples[:, None] == samples).tril(-1).any(1)
        if bool(again.any()):  # several candidates of a sample: one after another, so that the best is kept
            valid = torch.zeros_like(again)
            for part in map(rows.positions, (~again, again)):
                valid[part] = self._decide(samples[part], adv[part], distance[part], near[part], allowed[part])
            return valid
        images = torch.where(rows.spread(allowed, adv), adv, self.x[samples])
        if self.mixture:
            return self._decide_exactly(samples, images, distance, near, allowed)
        first = self._ask(samples, images, FIRST)
        wrong, tried, sound = first.wrong.sum(0), torch.full_like(samples, FIRST), first.sound
        margin = first.margin
        promising = rows.positions(allowed & sound & first.wrong.all(0))
        if len(promising):
            more = self._ask(samples[promising], images[promising], MORE)
            wrong[promising] += more.wrong.sum(0)
            tried[promising] += MORE
            sound[promising] &= more.sound
            margin[promising] = more.margin
        self._note(samples, allowed & ~sound, "the model's outputs are not finite")
        self.ever[samples] |= near & sound & (wrong > 0)
        fooled = allowed & sound & (tried > FIRST) & (wrong >= SURE * tried)
        share = (wrong + 1.0) / (tried + 2.0)  # Laplace's estimate, so that 4 of 4 does not outrank 13 of 14
        self._keep_by_share(samples, adv, distance, margin, share.to(self.share), allowed & sound, fooled)
        valid = fooled & near
        self.broken[samples] |= valid
        return valid

    def _decide_exactly(self, samples: Tensor, images: Images, distance: Tensor, near: Mask, allowed: Mask) -> Mask:
        """Of a mixture: the candidate that most of its weight gets wrong is kept; true where all of it does."""
        target = None if self.target is None else self.target[samples]
        y, one = self.y[samples], self._ask(samples, images, 1)
        right = expected(self.reference, images, y, target, self.task)
        share = 1 - right
        self.violate(samples[allowed & ~one.sound], "the model's outputs are not finite")
        self.ever[samples] |= near & one.sound & (share > 2e-6)  # as far as weights sum to 1
        fooled = allowed & one.sound & (right == 0)
        self._keep_by_share(samples, images, distance, one.margin, share, allowed & one.sound, fooled)
        valid = fooled & near
        self.broken[samples] |= valid
        return valid

    def _ask(self, samples: Tensor, images: Images, draws: int) -> Answers:
        target = None if self.target is None else self.target[samples]
        return ask(lambda draw: self.reference, draws, images, self.y[samples], target, self.task)[0]

    def _keep_by_share(
        self, samples: Tensor, adv: Images, distance: Tensor, margin: Tensor, share: Tensor, allowed: Mask, fooled: Mask
    ) -> None:  # fmt: skip
        """Keep the candidate that is more often wrong, then of lower margin; of two sure ones a minimal's nearer.

        A candidate within eps is never given up for one beyond it, which could not be voted on.
        """
        known = self.share[samples]
        better = (share > known) | ((share == known) & (margin < self.margin[samples]))
        if self.goal == "minimal":
            had = self.fooled[samples]
            better = torch.where(had, fooled & (distance < self.distance[samples]), fooled | better)
            limit = self.threat.limit
            near, kept_near = distance <= limit, (known >= 0) & (self.distance[samples] <= limit)
            better = torch.where(near == kept_near, better, near)
        chosen = allowed & better
        for mine, theirs in ((self.share, share), (self.margin, margin), (self.distance, distance)):
            mine[samples] = torch.where(chosen, theirs, mine[samples])
        self.adv[samples] = rows.pick(chosen, adv, self.adv[samples])
        self.fooled[samples] |= fooled

    def settle(self, fresh: Callable[[int], Network]) -> None:
        """The verdict on the candidates that were kept, by draws that had no part in choosing them.

        Args:
            fresh: the network of each draw, with noise that nothing else has.
        """
        answers, logits = ask(fresh, len(self.wrong), self.adv, self.y, self.target, self.task)
        kept = self.share >= 0
        self.violate(rows.positions(kept & ~answers.sound), "the model's outputs are not finite")
        near = kept & answers.sound & self._measured_again()
        self.wrong = answers.wrong & kept & answers.sound
        self.margin = torch.where(kept, answers.margin, self.margin)
        said = self.task.decision(logits[: self.draws]).mode(0).values  # what the draws that vote say most often
        self.decision = torch.where(kept & answers.sound, said, self.decision)
        voted = lost(self.wrong[: self.draws].sum(0), self.draws)
        if self.mixture:
            exact = expected(self.reference, self.adv, self.y, self.target, self.task)
            self.expected = torch.where(near, exact, self.expected)
            voted = self.expected <= 0.5  # NaN compares false
        self.fooled = voted & kept
        self.broken = voted & near
        self.ever |= near & self.wrong.any(0)

    def revoke(self, reason: str) -> None:
        """Take back every verdict; see `Judge.revoke`."""
        super().revoke(reason)
        self.ever.zero_()
        self.wrong.zero_()
        self.expected.fill_(torch.nan)

    def patterns(self) -> list[str]:
        """Of each sample, one character a fresh draw: 1 wrong, 0 right; empty where no candidate was judged."""
        kept = (self.share >= 0).tolist()
        return [text if has else "" for text, has in zip(as_text(self.wrong), kept, strict=True)]


def as_text(wrong: Tensor) -> list[str]:
    """The patterns of (draws, batch): see `robustkit.records.votes`."""
    return ["".join(map(str, row)) for row in wrong.T.to(torch.int8).tolist()]
