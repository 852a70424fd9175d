"""APGD, PGD with momentum that finds its step size. Croce & Hein 2020, arXiv:2003.01690, section 3 and algorithm 1.

In L1 it is another algorithm, that of `apgd_l1`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Loss, Norm
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import apgd_l1, losses, parts

_MOMENTUM = 0.75
_RHO = 0.75  # the share of steps between checkpoints that must raise the loss


class State(NamedTuple):
    """What algorithm 1 knows of each row."""

    adv: Tensor  # the iterate, where `grad` was taken
    previous: Tensor  # the one before
    grad: Tensor
    loss: Tensor
    best: Tensor  # the iterate of highest loss, its gradient and its loss
    best_grad: Tensor
    best_loss: Tensor
    best_before: Tensor  # the highest loss at the last checkpoint
    step: Tensor
    halved: Tensor  # whether the step was halved at the last checkpoint
    rises: Tensor  # steps that raised the loss since the last checkpoint
    found: Tensor  # the latest iterate that fooled the model
    hit: Tensor  # whether `found` holds one that the judge has not seen
    place: Tensor  # the row of the whole case


@dataclass(frozen=True, slots=True)
class APGD:
    """Auto-PGD on a loss. `dlr-targeted` runs once for each of the `targets` nearest wrong classes (APGD-T).

    `radii` is for L1: 3 spends 30 % of the steps in a ball of 3·eps, 30 % in one of 2·eps, the rest in that of eps.
    """

    loss: losses.Name = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    radii: int = 1

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.targets, self.radii) < 1:
            raise UsageError("apgd: steps, restarts, targets and radii must be positive")

    def __call__(self, case: Case) -> Images:
        """The last candidate of each sample; what the judge confirms on the way leaves."""
        if self.radii > 1 and case.threat.norm != "l1":
            raise UsageError(f"apgd: several radii are for l1, not {case.threat.norm}")
        result = case.x.clone()
        place = torch.arange(len(result), device=result.device)
        several = self.loss in losses.TOWARDS_A_CLASS and case.target is None
        aims = parts.wrong_classes(case, self.targets) if several else None
        for restart in range(self.restarts):
            for rank in range(1 if aims is None else aims.shape[1]):
                if not len(place):
                    return result
                aim = None if aims is None else aims[place, rank]
                case, place, ended = self._climb(case, aim, place, restart * case.oracle.classes + rank)
                result[place] = ended
                stays = rows.positions(~case.submit(ended))
                case, place = case.select(stays), place[stays]
        return result

    def _climb(self, case: Case, aim: Tensor | None, place: Tensor, stream: int) -> tuple[Case, Tensor, parts.Left]:
        """One run of algorithm 1: the case, places and candidates of what is not confirmed broken before its end."""
        if case.threat.norm == "l1":
            return apgd_l1.climb(
                case, aim, place, draws=stream, steps=self.steps, radii=self.radii,
                loss=lambda case, aim: losses.make(self.loss, case.y, case.target, aim),
            )  # fmt: skip
        state = self._start(case, losses.make(self.loss, case.y, case.target, aim), place, stream)
        ends = intervals(self.steps)
        for i in range(1, self.steps + 1):
            state = stepped(case, losses.make(self.loss, case.y, case.target, aim), state, first=i == 1)
            if i in ends:
                state = adapted(state, ends[i])
            if parts.checkpoint(i):
                case, state, stays = parts.leave(case, state)
                aim = None if aim is None else aim[stays]
                if not len(state.place):
                    break
        return case, state.place, rows.pick(state.hit, state.found, state.best)

    def _start(self, case: Case, loss: Loss, place: Tensor, stream: int) -> State:
        draws, threat = case.draws.at(stream), case.threat
        if threat.norm == "linf":
            noise = 2 * draws.uniform(case.x.shape[1:]) - 1
            start = threat.clip(case.x + threat.eps * norms.unit(noise, "linf"))
        else:
            start = threat.project(case.x, case.x + threat.eps * norms.unit(draws.normal(case.x.shape[1:])))
        return begun(case, loss, start, place)

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward and backward a step and one at each start; a forward to rank the classes."""
        several = self.loss in losses.TOWARDS_A_CLASS
        runs = self.restarts * (min(self.targets, classes - 1) if several else 1)
        passes = runs * (self.steps + len(apgd_l1.stages(self.steps, self.radii)))
        return passes + several, passes


def intervals(steps: int) -> Mapping[int, int]:
    """The steps after which the step size may halve, with the number of steps since the one before."""
    length, end, found = max(int(0.22 * steps), 1), 0, {}
    while (end := end + length) <= steps:
        found[end] = length
        length = max(length - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found


def begun(case: Case, loss: Loss, start: Images, place: Tensor) -> State:
    """Algorithm 1 before its first step; `place` are the rows of the whole case."""
    outputs, value, grad = case.oracle.gradient(start, loss)
    hit = case.reached(outputs.logits)
    return State(
        adv=start, previous=start, grad=grad, loss=value, best=start, best_grad=grad, best_loss=value,
        best_before=value, step=torch.full_like(value, 2 * case.threat.eps), halved=torch.ones_like(hit),
        rises=torch.zeros_like(place), found=start, hit=hit, place=place,
    )  # fmt: skip


def stepped(case: Case, loss: Loss, state: State, *, first: bool) -> State:
    """One step; the first has no momentum yet."""
    threat, x, adv = case.threat, case.x, state.adv
    move = norms.steepest(state.grad, threat.norm)
    ahead = threat.project(x, adv + rows.spread(state.step, adv) * move)
    a = 1.0 if first else _MOMENTUM
    adv = threat.project(x, adv + a * (ahead - adv) + (1 - a) * (adv - state.previous))
    outputs, value, grad = case.oracle.gradient(adv, loss)
    hit = case.reached(outputs.logits)
    better = value > state.best_loss
    return state._replace(
        adv=adv,
        previous=state.adv,
        grad=grad,
        loss=value,
        best=rows.pick(better, adv, state.best),
        best_grad=rows.pick(better, grad, state.best_grad),
        best_loss=torch.where(better, value, state.best_loss),
        rises=state.rises + (value > state.loss),
        found=rows.pick(hit, adv, state.found),
        hit=state.hit | hit,
    )


def adapted(state: State, interval: int) -> State:
    """Halve the step, and go back to the best point, where the loss rose too seldom or did not improve."""
    stuck = (state.rises <= _RHO * interval) | (~state.halved & (state.best_before >= state.best_loss))
    return state._replace(
        adv=rows.pick(stuck, state.best, state.adv),
        grad=rows.pick(stuck, state.best_grad, state.grad),
        step=torch.where(stuck, state.step / 2, state.step),
        best_before=state.best_loss,
        halved=stuck,
        rises=torch.zeros_like(state.rises),
    )
