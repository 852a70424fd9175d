"""A stage of the `fast` suite: FAB-T down the ranking of a cohort, block by block, for as long as it breaks anything.

Targeted FAB (Croce & Hein 2020, arXiv:1907.02044) from the original image finds wrong points outside the ball even
where gradients inside it tell nothing. After a few steps the row whose wrong point is nearest is *pressed*: projected
back onto the ball, where it starts a short PGD. Where the first walk broke something, a second one goes down the
distances that FAB met, towards every class. On honest networks the first block ends it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Norm
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import cohort, descent, hyperplane, losses, parts

PRESSED = 20  # steps of PGD from a pressed point, the first of half an eps
_AGAIN = (9, 40, 2)  # targets, steps, and rows pressed a sample, of the second walk


class _State(NamedTuple):
    """A row each, the rows of a sample beside each other."""

    x: Images
    distance: Tensor  # of the nearest point that fooled the model, wherever it lies
    best_loss: Tensor  # minus the least margin inside the ball
    found: Images  # and where
    hit: Tensor  # whether `found` fooled the model, and the judge has not seen it
    aim: Tensor
    place: Tensor  # the row of the case


@dataclass(frozen=True, slots=True)
class FabWalk:
    """FAB-T on blocks of a ranking, the nearest first; the first block in which nothing breaks ends the walk.

    Attributes:
        targets: the nearest classes, by `cohort.nearest_classes`, that are gone for.
        steps: of FAB. A step whose point is wrong outside the ball only goes back towards the original image.
        pressed: rows of a sample, those with the nearest wrong points, that are pressed.
        start: where FAB begins; `point` is where the stages before left a sample.
        alpha_max: how much of a step may come from the original image; FAB's 0.1 is made for 100 steps.
        block: samples of a block.
        patience: blocks in a row that break nothing, and end the walk; 0 walks to the end.
        again: whether a walk that broke something is followed by one towards all classes.
        cohort: consecutive samples of the evaluated list that are ranked together.
    """

    targets: int = 2
    steps: int = 30
    pressed: int = 1
    start: Literal["clean", "adi", "point"] = "clean"
    alpha_max: float = 0.3
    eta: float = 1.05
    beta: float = 0.9
    block: int = 16
    patience: int = 1
    again: bool = True
    cohort: int = cohort.COHORT

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"
    if_it_breaks: ClassVar[str] = "FAB, walking on from what gradient steps left"

    def __post_init__(self) -> None:
        if min(self.targets, self.steps, self.pressed, self.block, self.cohort) < 1 or self.patience < 0:
            raise UsageError("fab-walk: its numbers must be positive, and patience at least 0")

    def __call__(self, case: Case) -> Images:
        """The point of least margin of each sample: where a pressed run ended, or where the stages before left it."""
        case, known = cohort.informed(case)
        result = known.point.clone()
        far = torch.full_like(known.margin, torch.inf)
        standing = torch.ones_like(far, dtype=torch.bool)
        broke = self._walk(case, cohort.nearest(known), far, standing, result, self.targets, self.steps, self.pressed)
        if broke and self.again:
            order = far.argsort(stable=True)
            self._walk(case, order[standing[order]], far, standing, result, *_AGAIN)
        return result

    def cost(self, classes: int) -> tuple[int, int]:
        """A gradient a step and target of both walks, and their pressed runs; twice the ranking of classes."""
        ranking = min(cohort.CANDIDATES, classes - 1)
        first = min(self.targets, classes - 1) * (self.steps + 1) + self.pressed * PRESSED
        targets, steps, pressed = _AGAIN
        second = min(targets, classes - 1) * (steps + 1) + pressed * PRESSED if self.again else 0
        return first + second + 10, first + second + 2 * ranking

    def _walk(
        self, case: Case, order: Tensor, far: Tensor, standing: Tensor, result: Images, targets: int, steps: int,
        press: int,
    ) -> bool:  # fmt: skip
        """Go down a ranking; whether anything broke. Writes distances, who stands, and the points of who does."""
        ever, dry = False, 0
        for block in cohort.blocks(order, self.block):
            place, points = self._block(case, block, far, targets, steps, press)
            # Of none that is left the device need not be asked.
            left = place[rows.positions(~case.select(place).submit(points))] if len(place) else place
            result[place] = points
            standing[block] = False
            standing[left] = True
            broke = len(left) < len(block)
            ever, dry = ever or broke, 0 if broke else dry + 1
            if dry == self.patience:
                break
        return ever

    def _block(
        self, case: Case, block: Tensor, far: Tensor, targets: int, steps: int, press: int
    ) -> tuple[Tensor, parts.Left]:
        """The rows of what is not confirmed broken on the way, and its points."""
        few, threat = case.select(block), case.threat
        aims = cohort.nearest_classes(few, targets)
        width = aims.shape[1]
        wide, place = cohort.siblings(few, width), block.repeat_interleave(width)
        nothing = torch.zeros_like(place, dtype=torch.bool)
        nowhere = torch.full_like(wide.x[:, 0, 0, 0], torch.inf)
        start = cohort.interleaved([self._start(few)] * width)
        state = _State(start, nowhere, -nowhere, wide.x, nothing, aims.flatten(), place)
        for i in range(steps + 1):
            state = self._step(wide, state)
            if parts.checkpoint(i + 1) or i == steps:
                far.scatter_reduce_(0, state.place, state.distance.to(far), "amin")
                few, state, _ = cohort.leave(few, state, width)
                wide = cohort.siblings(few, width)
                if not len(state.place):
                    return state.place, state.x
        nearest = state.distance.view(-1, width).argsort(dim=1, stable=True)[:, :press]
        row = (torch.arange(len(nearest), device=nearest.device)[:, None] * width + nearest).flatten()
        start = threat.project(wide.x[row], state.x[row])
        return descent.cosine(
            few, start, state.aim[row], state.place[row], width=nearest.shape[1], steps=PRESSED, first=0.5,
            loss=lambda rows_, _: losses.make("margin", rows_.y, rows_.target),
        )  # fmt: skip

    def _start(self, case: Case) -> Images:
        if self.start == "adi":
            return cohort.aimed(case, 0)
        return case.x if self.start == "clean" or case.handed is None else case.handed.point

    def _step(self, wide: Case, state: _State) -> _State:
        """Look at the points: what is wrong goes back towards the original, the rest on to the boundary."""
        threat, x, clean = wide.threat, state.x, wide.x
        loss = losses.make("margin-targeted", wide.y, wide.target, state.aim)
        outputs, f, grad = wide.oracle.gradient(x, loss)
        wrong, distance = wide.reached(outputs.logits), norms.length(x - clean, threat.norm)
        inside, margin = distance <= threat.eps, -rows.margin(outputs.logits, wide.y, wide.target)
        better = inside & ((wrong & ~state.hit) | ((wrong | ~state.hit) & (margin > state.best_loss)))

        onward = hyperplane.beyond(threat, x, clean, f, grad, alpha_max=self.alpha_max, eta=self.eta)
        return state._replace(
            x=rows.pick(wrong, clean + self.beta * (x - clean), onward),
            distance=torch.where(wrong, torch.minimum(distance, state.distance), state.distance),
            best_loss=torch.where(better, margin, state.best_loss),
            found=rows.pick(better, x, state.found),
            hit=state.hit | (wrong & inside),
        )
