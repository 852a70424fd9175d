"""APGD in L1, where a good step is sparse and the box matters. Croce & Hein 2021, arXiv:2103.01208, sections 3 and 4.

A step moves the entries of largest gradient; how many follows from how many the best point so far has changed. There
is no momentum. With several radii the search starts in a larger ball, where it is easier, and ends in that of eps.

Other than in the paper, entries that the box holds neither use up the step nor count as changed: where the largest
gradients point out of the box, the search would stall.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Case, Images, Loss, ThreatModel
from robustkit.numerics import rows
from robustkit_attacks import parts

_DENSITY = 0.2  # the share of entries that the first steps move
_SHRUNK = 0.95  # the sparsity still changes while the entries changed fall below this share of the last checkpoint's
_SLOWER = 1.5  # else the step is divided by this, down to a tenth of the radius
_SLOWEST = 0.1


class _State(NamedTuple):
    adv: Tensor  # the iterate, where `grad` was taken
    grad: Tensor
    best: Tensor  # the iterate of highest loss, its gradient and its loss
    best_grad: Tensor
    best_loss: Tensor
    step: Tensor
    keep: Tensor  # entries that a step moves
    changed: Tensor  # entries that `best` had changed at the last checkpoint
    found: Tensor  # the latest iterate that fooled the model
    hit: Tensor  # whether `found` holds one that the judge has not seen
    place: Tensor  # the row of the whole case


def stages(steps: int, radii: int) -> Sequence[tuple[int, int]]:
    """(factor of eps, steps) of each stage: the larger radii share 90 %·(radii − 1)/radii of the steps."""
    larger = 9 * steps // (10 * radii)
    return [*((factor, larger) for factor in range(radii, 1, -1) if larger), (1, steps - (radii - 1) * larger)]


def sparse(threat: ThreatModel, adv: Images, grad: Images, keep: Tensor) -> Images:
    """A step of L1 length 1 along the signs of each row's `keep` largest gradients that the box lets move.

    Entries equal to the last are moved too. What is at the end of its box and has as large a gradient is pushed against
    the end by the same amount, which keeps it there when the projection shrinks all changes, and is not counted.
    """
    values, at = rows.flat(grad), rows.flat(adv)
    size = values.abs()
    free = _free(threat, at, values)
    room = torch.where(free, size, torch.zeros_like(size))
    least = rows.largest(room, keep)[:, None]
    number = torch.count_nonzero(room.ge(least) & room.gt(0), 1).clamp_min(1)
    return torch.where(size >= least, values.sign() / number[:, None], torch.zeros_like(values)).view_as(grad)


def climb(
    case: Case, aim: Tensor | None, place: Tensor, *, draws: int, steps: int, radii: int,
    loss: Callable[[Case, Tensor | None], Loss], start: Images | None = None,
) -> tuple[Case, Tensor, parts.Left]:  # fmt: skip
    """One run: the case, places and candidates of what is not confirmed broken before its end.

    From `start`, or from noise of stream `draws`.
    """
    adv = case.x + case.draws.at(draws).normal(case.x.shape[1:]) if start is None else start
    keep = None if radii > 1 else torch.full_like(place, math.ceil(_DENSITY * adv[0].numel()))
    for factor, length in stages(steps, radii):
        wide = replace(case, threat=replace(case.threat, eps=factor * case.threat.eps))
        state = _start(wide, loss(wide, aim), adv, place, keep)
        interval = max(length // 25, 1)
        for i in range(1, length + 1):
            state = _step(wide, loss(wide, aim), state)
            if i % interval == 0:
                state = _adapted(wide, state)
            if factor == 1 and parts.checkpoint(i):  # what is found in a larger ball does not count
                case, state, stays = parts.leave(case, state)
                wide, aim = case, None if aim is None else aim[stays]
                if not len(state.place):
                    break
        adv, place = state.best, state.place
    return case, place, rows.pick(state.hit, state.found, state.best)


def _changed(case: Case, adv: Images) -> Tensor:
    return torch.count_nonzero(rows.flat(adv != case.x), 1)


def _free(threat: ThreatModel, adv: Tensor, grad: Tensor) -> Tensor:
    """Which entries the box lets follow the gradient."""
    return torch.where(grad > 0, adv < threat.high, adv > threat.low)


def _kept(case: Case, adv: Images, grad: Images) -> Tensor:
    """Two thirds of the changed entries that are free, and at least one; rounded up, two would never become one."""
    moving = (adv != case.x) & _free(case.threat, adv, grad)
    return (2 * torch.count_nonzero(rows.flat(moving), 1) // 3).clamp_min(1)


def _start(case: Case, loss: Loss, adv: Images, place: Tensor, keep: Tensor | None) -> _State:
    start = case.threat.project(case.x, adv)
    outputs, value, grad = case.oracle.gradient(start, loss)
    changed = _changed(case, start)
    return _State(
        adv=start, grad=grad, best=start, best_grad=grad, best_loss=value,
        step=torch.full_like(value, case.threat.eps),
        keep=_kept(case, start, grad) if keep is None else keep,
        changed=changed if keep is None else torch.full_like(changed, start[0].numel()),
        found=start, hit=case.reached(outputs.logits), place=place,
    )  # fmt: skip


def _step(case: Case, loss: Loss, state: _State) -> _State:
    move = rows.spread(state.step, state.adv) * sparse(case.threat, state.adv, state.grad, state.keep)
    adv = case.threat.project(case.x, state.adv + move)
    outputs, value, grad = case.oracle.gradient(adv, loss)
    hit = case.reached(outputs.logits)
    better = value >= state.best_loss  # of equals the later, which is sparser as a rule
    return state._replace(
        adv=adv,
        grad=grad,
        best=rows.pick(better, adv, state.best),
        best_grad=rows.pick(better, grad, state.best_grad),
        best_loss=torch.where(better, value, state.best_loss),
        found=rows.pick(hit, adv, state.found),
        hit=state.hit | hit,
    )


def _adapted(case: Case, state: _State) -> _State:
    """Match the sparsity to the best point; go back there with a full step while it falls, else take smaller steps."""
    eps, changed = case.threat.eps, _changed(case, state.best)
    falling = changed < _SHRUNK * state.changed
    smaller = (state.step / _SLOWER).clamp_min(_SLOWEST * eps)
    return state._replace(
        adv=rows.pick(falling, state.best, state.adv),
        grad=rows.pick(falling, state.best_grad, state.grad),
        step=torch.where(falling, torch.full_like(smaller, eps), smaller),
        keep=_kept(case, state.best, state.best_grad),
        changed=changed,
    )
