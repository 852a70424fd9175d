"""CW, the attacks of Carlini & Wagner 2017, arXiv:1608.04644.

L2 (section VI-A): the nearest adversarial, by Adam in the space of w with image = ½(tanh w + 1), with a search for the
weight c of the misclassification term. Unlike in the paper, c counts as large enough only if the descent ends among
adversarials: Adam's first steps often cross a near boundary by mere length, whatever c is. And the paper attacks every
wrong class and keeps the nearest result; here one descent heads, at each step, for the class whose boundary would be
the nearest if the logits were linear, which on a linear model is the nearest indeed. Linf is not the paper's: as
in evaluation suites it is projected gradient descent within eps on the paper's margin, without a hinge, so that the
gradient lasts until the label flips.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.api import Access, Case, Goal, Images, Labels, Loss, Norm, Outputs
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import losses, parts

_SHRINK = 0.999999  # keeps w finite, and its gradient above zero, where a pixel is exactly 0 or 1
_STALLED = 0.9999  # a loss above this share of the one a tenth of the steps ago has stalled
_CANDIDATES = 9  # wrong classes among which the nearest is sought, as many as AutoAttack's targeted attacks take
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam, arXiv:1412.6980


class _Search(NamedTuple):
    """The binary search of each sample, and its nearest adversarial so far."""

    c: Tensor
    lower: Tensor
    upper: Tensor
    best: Images
    distance: Tensor  # squared
    slope: Tensor  # how fast the lead of y over each class falls at the clean image, at best; 0 if it is no candidate
    refused: Tensor  # the squared distance at which the judge last refused the sample
    done: Tensor


class _Descent(NamedTuple):
    """The descent of each row for one value of c. `place` is the row's position in the search."""

    place: Tensor
    w: Tensor
    mean: Tensor
    square: Tensor
    before: Tensor  # the loss at the last checkpoint
    c: Tensor
    slope: Tensor
    best: Images
    distance: Tensor
    fooled: Tensor  # since the last checkpoint


class _Ascent(NamedTuple):
    """The projected ascent of each row (Linf)."""

    place: Tensor
    adv: Images
    best: Images
    margin: Tensor
    refused: Tensor


@dataclass(frozen=True, slots=True)
class CW:
    """Carlini–Wagner: the nearest adversarial in L2, or the margin form in Linf.

    Attributes:
        steps: Adam steps for each value of c (L2); signed steps of 2.5·eps/steps (Linf).
        searches: values of c that are tried (L2 only, as are the settings below).
        lr: Adam's step size.
        c: the first weight of the misclassification term.
        confidence: by how much the wrong class must lead for the attack to count itself successful.
        minimise: look for the nearest; if false, a sample is done once the judge confirms a break within eps.
    """

    steps: int = 1000
    searches: int = 9
    lr: float = 0.01
    c: float = 1e-3
    confidence: float = 0.0
    minimise: bool = True

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    goal: ClassVar[Goal] = "minimal"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1:
            raise UsageError(f"cw needs steps ≥ 1 and searches ≥ 1, not {self.steps} and {self.searches}")
        if not (self.lr > 0 and self.c > 0 and self.confidence >= 0):
            raise UsageError("cw needs lr > 0, c > 0 and confidence ≥ 0")

    def __call__(self, case: Case) -> Images:
        """L2: the nearest adversarial found, at any distance, or the original. Linf: the lowest margin within eps."""
        return self._nearest(case) if case.threat.norm == "l2" else self._within(case)

    def cost(self, classes: int) -> tuple[int, int]:
        """L2: a pass each way for each step, and the slopes at the clean image. Linf: one forward more, one search."""
        return self.steps * self.searches + 2, self.steps * self.searches + min(_CANDIDATES, classes - 1)

    def _nearest(self, case: Case) -> Images:
        never = torch.full_like(case.x[:, 0, 0, 0], torch.inf)
        search = _Search(
            torch.full_like(never, self.c), torch.zeros_like(never), never, case.x.clone(), never.clone(),
            _slopes(case), never.clone(), torch.zeros_like(never, dtype=torch.bool),
        )  # fmt: skip
        everyone = torch.arange(len(never), device=never.device)
        for _ in range(self.searches):
            place = everyone if self.minimise else rows.positions(~search.done)
            if len(place) == 0:
                break
            fooled = self._descend(case.select(place), place, search)
            search = _narrowed(search, fooled)
        return search.best

    def _descend(self, case: Case, place: Tensor, search: _Search) -> Tensor:
        """Adam for the current c from the original image; writes what it finds into `search`."""
        threat = case.threat
        half = (threat.high - threat.low) / 2
        unit = ((case.x - threat.low) / half - 1) * _SHRINK
        w = 0.5 * ((1 + unit) / (1 - unit)).log()  # atanh; torch.atanh rounds by a row's place in the batch
        fooled = torch.zeros_like(search.done)
        state = _Descent(
            place, w, torch.zeros_like(w), torch.zeros_like(w), torch.full_like(w[:, 0, 0, 0], torch.inf),
            search.c[place], search.slope[place], search.best[place], search.distance[place], fooled[place],
        )  # fmt: skip
        loss = self._loss(case, state)
        every = math.ceil(self.steps / 10)
        for step in range(1, self.steps + 1):
            tanh = state.w.tanh()
            adv = threat.clip((tanh + 1) * half + threat.low)
            delta = adv - case.x
            outputs, value, grad = case.oracle.gradient(adv, loss)
            distance = rows.dot(delta, delta)
            success = case.reached(outputs.logits)
            success &= rows.margin(outputs.logits, case.y, case.target) <= -self.confidence
            nearer = success & (distance < state.distance)
            state = _stepped(state, (grad + 2 * delta) * ((1 - tanh * tanh) * half), self.lr, step)._replace(
                best=rows.pick(nearer, adv, state.best),
                distance=torch.where(nearer, distance, state.distance),
                fooled=state.fooled | success,
            )
            if step % every == 0 or step == self.steps:
                total = distance + value
                goes_on = total < _STALLED * state.before
                search.best[state.place], search.distance[state.place] = state.best, state.distance
                fooled[state.place] = state.fooled
                state = state._replace(before=total, fooled=torch.zeros_like(state.fooled))
                stays = self._standing(case, state, search, goes_on)
                if step == self.steps or not len(stays):
                    break
                case, state = case.select(stays), parts.select(state, stays)
                loss = self._loss(case, state)
        return fooled

    def _standing(self, case: Case, state: _Descent, search: _Search, goes_on: Tensor) -> Tensor:
        """The rows that go on, after the judge was asked about what is within eps; asks the device at most twice."""
        if self.minimise:
            return rows.positions(goes_on)
        within = state.distance.sqrt() <= case.threat.limit
        ready = within & (state.distance < search.refused[state.place])
        both = torch.stack([ready, goes_on]).cpu()
        at, stays = (rows.positions(mask).to(goes_on.device, non_blocking=True) for mask in both)
        if not len(at):
            return stays
        asked = state.place[at]
        search.done[asked] = case.select(at).submit(state.best[at])
        search.refused[asked] = state.distance[at]
        return stays[rows.positions(~search.done[state.place[stays]])] if len(stays) else stays

    def _loss(self, case: Case, state: _Descent) -> Loss:
        """The misclassification term: c times the margin that is missing to the target, or to the nearest class."""

        def term(outputs: Outputs) -> Tensor:
            z = outputs.logits
            margin = rows.margin(z, case.y, case.target)
            if case.target is not None:
                return state.c * F.relu(margin + self.confidence)
            lead = z.gather(1, case.y[:, None]) - z
            steps = torch.where(state.slope > 0, (lead.detach() + self.confidence) / state.slope, torch.inf)
            nearest = steps.argmin(1, keepdim=True)
            missing = F.relu(lead.gather(1, nearest)[:, 0] + self.confidence)
            return state.c * torch.where(margin > -self.confidence, missing, torch.zeros_like(missing))

        return term

    def _within(self, case: Case) -> Images:
        threat, found = case.threat, case.x.clone()
        never = torch.full_like(case.x[:, 0, 0, 0], torch.inf)
        state = _Ascent(torch.arange(len(case.x), device=case.x.device), case.x, case.x, never, never)
        size, every = 2.5 * threat.eps / self.steps, math.ceil(self.steps / 10)
        for step in range(1, self.steps + 1):
            _, loss, grad = case.oracle.gradient(state.adv, losses.make("margin", case.y, case.target))
            state = _kept(state, -loss)
            state = state._replace(adv=threat.project(case.x, state.adv + size * grad.sign()))
            if step & (step - 1) == 0 or step % every == 0:
                case, state = _confirmed_leave(case, state, found)
                if len(state.place) == 0:
                    return found
        state = _kept(state, rows.margin(case.oracle.outputs(state.adv).logits, case.y, case.target))
        found[state.place] = state.best
        return found


def _slopes(case: Case) -> Tensor:
    """The gradient length of each lead z_y − z_i at the clean image, shape (batch, classes); 0 for y and the far.

    One for every class but y where no gradient is left, so that the nearest is then the one with the least lead.
    """
    slope = torch.zeros(len(case.x), case.oracle.classes, dtype=case.x.dtype, device=case.x.device)
    if case.target is not None:
        return slope
    wrong = parts.wrong_classes(case, _CANDIDATES)
    if wrong.shape[1] > 1:
        found = case.oracle.gradient(case.x, _leads(case.y, wrong))
        lengths = torch.stack([norms.length(grad, "l2") for grad in found.grad], 1)
        slope.scatter_(1, wrong, lengths)
    lost = (slope == 0).all(1)
    return torch.where(lost[:, None], torch.ones_like(slope).scatter_(1, case.y[:, None], 0), slope)


def _leads(y: Labels, others: Tensor) -> Loss:
    """z_y − z_other: a loss for each column of `others`."""
    return lambda outputs: (outputs.logits.gather(1, y[:, None]) - outputs.logits.gather(1, others)).T


def _narrowed(search: _Search, fooled: Tensor) -> _Search:
    """The next c: between the bounds, or ten times as much while nothing has succeeded."""
    upper = torch.where(fooled, search.c, search.upper)
    lower = torch.where(fooled, search.lower, search.c)
    c = torch.where(upper.isinf(), search.c * 10, (lower + upper) / 2)
    return search._replace(c=c, lower=lower, upper=upper)


def _stepped(state: _Descent, grad: Tensor, lr: float, step: int) -> _Descent:
    """One step of Adam, with each product and sum rounded by itself."""
    mean = state.mean * _BETA1 + grad * (1 - _BETA1)
    square = state.square * _BETA2 + grad * grad * (1 - _BETA2)
    scale = (square / (1 - _BETA2**step)).sqrt() + _TINY
    return state._replace(w=state.w - mean * (lr / (1 - _BETA1**step)) / scale, mean=mean, square=square)


def _kept(state: _Ascent, margin: Tensor) -> _Ascent:
    """The iterate of lowest margin."""
    better = margin < state.margin
    return state._replace(
        best=rows.pick(better, state.adv, state.best), margin=torch.where(better, margin, state.margin)
    )


def _confirmed_leave(case: Case, state: _Ascent, found: Images) -> tuple[Case, _Ascent]:
    """Submit the rows that look broken; what the judge confirms is written into `found` and leaves."""
    ready = (state.margin <= 0) & (state.margin < state.refused)
    leaves = parts.confirmed(case, state.best, ready)
    found[state.place] = rows.pick(leaves, state.best, found[state.place])
    state = state._replace(refused=torch.where(ready, state.margin, state.refused))
    stays = rows.positions(~leaves)
    return case.select(stays), parts.select(state, stays)
