"""A stage of the `fast` suite: short runs of gradient steps on the nearest samples of a cohort, several rows a sample.

`cosine`: steps along the steepest direction, from 2·eps to 0 along a cosine, for which A3 (Liu, Cheng,
Gao, Liu, Zhang, Song 2022, arXiv:2203.05154) is the source. `auto`: the steps of Auto-PGD. In L1 both are the steps of
APGD for L1, in balls of 3, 2 and 1 times eps in turn. Starts: the original image, random points, or what adaptive
direction initialisation reached (the same paper). Targets are ranked by MALT, see `cohort.nearest_classes`. The loss
`probability-margin` is max_k p_k − p_y with p = softmax(z / T) and T the sample's clean margin, at least 1: without T
its gradient vanishes where a network is sure.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Loss, Norm
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import apgd, apgd_l1, cohort, losses, parts

RADII = 3  # of the L1 form
_FIRST = 2.0  # the first step of `cosine`, in eps

LossOf = Callable[[Case, Tensor | None], Loss]  # for the rows of a case, and the class that each goes for


class _State(NamedTuple):
    """A row each, the rows of a sample beside each other."""

    adv: Images
    best_loss: Tensor  # minus the least margin seen
    found: Images  # and where, of what fooled the model if anything did
    hit: Tensor  # whether `found` fooled it, and the judge has not seen it
    aim: Tensor
    place: Tensor  # the row of the case


@dataclass(frozen=True, slots=True)
class Descent:
    """Short runs on the nearest `share` of what stands in a cohort, at least 16 samples.

    Attributes:
        steps: of each run.
        loss: what it climbs; `margin-targeted` once for each of the `targets` nearest classes.
        start: where it starts, `starts` such points a sample; `point` is where the stages before left it.
        climb: how it steps.
        cohort: consecutive samples of the evaluated list that are ranked together.
    """

    steps: int = 10
    loss: Literal["margin", "margin-targeted", "probability-margin"] = "probability-margin"
    start: Literal["clean", "random", "adi", "point"] = "clean"
    climb: Literal["cosine", "auto"] = "cosine"
    starts: int = 1
    targets: int = 1
    share: float = 1.0
    cohort: int = cohort.COHORT

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if min(self.steps, self.starts, self.targets, self.cohort) < 1:
            raise UsageError("descent: steps, starts, targets and cohort must be positive")
        if not 0 < self.share <= 1:
            raise UsageError(f"descent: share is above 0 and at most 1, not {self.share}")
        if self.start in ("clean", "point") and self.starts > 1:
            raise UsageError(f"descent: several starts from the {self.start} are one; choose start=random")

    def __call__(self, case: Case) -> Images:
        """The point of least margin of each sample: its own best one, or where the stages before left it."""
        case, known = cohort.informed(case)
        result, chosen = known.point.clone(), cohort.nearest(known, self.share)
        if not len(chosen):
            return result
        few = case.select(chosen)
        aims = cohort.nearest_classes(few, self.targets) if self.loss == "margin-targeted" else few.y[:, None]
        width = self.starts * aims.shape[1]
        start = cohort.interleaved([at for at in self._starts(few) for _ in range(aims.shape[1])])
        aim, place = aims.repeat(1, self.starts).flatten(), chosen.repeat_interleave(width)
        if case.threat.norm == "l1":
            place, points = self._sparse(few, start, aim, place, width)
        elif self.climb == "auto":
            place, points = self._auto(few, start, aim, place, width)
        else:
            place, points = cosine(few, start, aim, place, width=width, steps=self.steps, loss=self._loss)
        result[place] = points
        return result

    def cost(self, classes: int) -> tuple[int, int]:
        """A forward and a backward a step of each run; two forwards and some backwards to rank the classes."""
        targeted = self.loss == "margin-targeted"
        runs = self.starts * (min(self.targets, classes - 1) if targeted else 1)
        passes = runs * (self.steps + RADII) + (cohort.AIM * self.starts if self.start == "adi" else 0)
        return passes + 1 + runs + 2 * targeted, passes + targeted * min(cohort.CANDIDATES, classes - 1)

    def _starts(self, case: Case) -> list[Images]:
        if self.start in ("clean", "point"):
            return [case.x if self.start == "clean" or case.handed is None else case.handed.point]
        if self.start == "adi":
            return [cohort.aimed(case, number) for number in range(self.starts)]
        return [case.threat.sample(case.x, case.draws.at(number)) for number in range(self.starts)]

    def _loss(self, case: Case, aim: Tensor | None) -> Loss:
        if self.loss != "probability-margin":
            return losses.make(self.loss, case.y, case.target, aim)
        unit = cohort.informed(case)[1].clean.clamp_min(1).to(case.x.dtype)[:, None]
        return lambda outputs: -rows.margin((outputs.logits / unit).softmax(1), case.y, case.target)

    def _auto(self, few: Case, start: Images, aim: Tensor, place: Tensor, width: int) -> tuple[Tensor, parts.Left]:
        """Runs of Auto-PGD: the best point of each sample that is not confirmed broken on the way, and its row."""
        wide = cohort.siblings(few, width)
        state = apgd.begun(wide, self._loss(wide, aim), start, place)
        ends = apgd.intervals(self.steps)
        for i in range(1, self.steps + 1):
            state = apgd.stepped(wide, self._loss(wide, aim), state, first=i == 1)
            if i in ends:
                state = apgd.adapted(state, ends[i])
            if parts.checkpoint(i) and i < self.steps:
                few, state, kept = cohort.leave(few, state, width)
                wide, aim = cohort.siblings(few, width), aim[kept]
                if not len(state.place):
                    break
        row = cohort.best(state.best_loss, state.hit, width)
        return state.place[row], rows.pick(state.hit, state.found, state.best)[row]

    def _sparse(self, few: Case, start: Images, aim: Tensor, place: Tensor, width: int) -> tuple[Tensor, parts.Left]:
        """The same in L1, where a sample's rows leave one by one."""
        own = torch.arange(len(place), device=place.device)
        wide = cohort.siblings(few, width)
        case, left, points = apgd_l1.climb(
            wide, aim, own, draws=0, steps=self.steps, radii=RADII, loss=self._loss, start=start
        )
        if not len(left):
            return place[left], points
        margin = rows.margin(case.oracle.outputs(points).logits, case.y, case.target)
        order = margin.argsort(stable=True)
        order = order[place[left][order].argsort(stable=True)]
        sample = place[left][order]
        first = rows.positions(torch.cat([torch.ones_like(sample[:1], dtype=torch.bool), sample[1:] != sample[:-1]]))
        return sample[first], points[order[first]]


def cosine(
    few: Case, start: Images, aim: Tensor, place: Tensor, *, width: int, steps: int, loss: LossOf, first: float = _FIRST
) -> tuple[Tensor, parts.Left]:
    """Runs of `width` rows a sample from `start`, the first step `first`·eps, in Linf or L2.

    The point of least margin of each sample that is not confirmed broken on the way, and its place.
    """
    wide = cohort.siblings(few, width)
    threat = few.threat
    lowest = torch.full_like(start[:, 0, 0, 0], -torch.inf)
    state = _State(start, lowest, start, torch.zeros_like(place, dtype=torch.bool), aim, place)
    for i in range(steps):
        outputs, _, grad = wide.oracle.gradient(state.adv, loss(wide, state.aim))
        state = _seen(wide, state, outputs.logits)
        size = first * threat.eps * 0.5 * (1 + math.cos(math.pi * i / steps))
        state = state._replace(adv=threat.project(wide.x, state.adv + size * norms.steepest(grad, threat.norm)))
        if parts.checkpoint(i + 1):
            few, state, _ = cohort.leave(few, state, width)
            wide = cohort.siblings(few, width)
            if not len(state.place):
                return state.place, state.adv
    state = _seen(wide, state, wide.oracle.outputs(state.adv).logits)
    row = cohort.best(state.best_loss, state.hit, width)
    return state.place[row], state.found[row]


def _seen(wide: Case, state: _State, logits: Tensor) -> _State:
    """The state after a look at its images: of those that fool the model, or else of all, the one of least margin."""
    loss, hit = -rows.margin(logits, wide.y, wide.target), wide.reached(logits)
    better = (hit & ~state.hit) | ((hit | ~state.hit) & (loss > state.best_loss))
    return state._replace(
        best_loss=torch.where(better, loss, state.best_loss),
        found=rows.pick(better, state.adv, state.found),
        hit=state.hit | hit,
    )
