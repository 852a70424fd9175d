"""A stage of the `fast` suite: Square down the ranking of a cohort, block by block, for as long as it breaks anything.

Square (arXiv:1912.00049) asks for scores only, so it breaks what a misleading gradient hides. Each search starts at the
point of least margin that the stages before left. Where the first walk broke something, a second one goes down the
ranking with four times the queries and half the block.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Norm
from robustkit.errors import UsageError
from robustkit_attacks import cohort
from robustkit_attacks.square import Square

_AGAIN = 4  # times the queries, in the second walk


@dataclass(frozen=True, slots=True)
class SquareWalk:
    """Square on blocks of a ranking, the nearest first; the first block in which nothing breaks ends the walk.

    Attributes:
        queries: of each search; the schedule of window sizes is stretched over them.
        block: samples of a block.
        cohort: consecutive samples of the evaluated list that are ranked together.
    """

    queries: int = 1000
    block: int = 16
    cohort: int = cohort.COHORT

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "score"
    if_it_breaks: ClassVar[str] = "Square, walking on from what gradient steps left"

    def __post_init__(self) -> None:
        if min(self.queries, self.block, self.cohort) < 1:
            raise UsageError("square-walk: queries, block and cohort must be positive")

    def __call__(self, case: Case) -> Images:
        """The point of least margin of each sample: where its search ended, or where the stages before left it."""
        case, known = cohort.informed(case)
        result = known.point.clone()
        standing = torch.ones_like(known.margin, dtype=torch.bool)
        order = cohort.nearest(known)
        if self._walk(case, order, standing, result, self.queries, self.block):
            self._walk(case, order[standing[order]], standing, result, _AGAIN * self.queries, max(1, self.block // 2))
        return result

    def cost(self, classes: int) -> tuple[int, int]:
        """The start and the queries of both walks."""
        return (1 + _AGAIN) * self.queries + 3, 0

    def _walk(self, case: Case, order: Tensor, standing: Tensor, result: Images, queries: int, block: int) -> bool:
        """Go down a ranking; whether anything broke. Writes who stands, and the points."""
        ever, search = False, Square(queries=queries, rescale=True)
        for number in cohort.blocks(order, block):
            few = case.select(number)
            place, points = search.from_point(few, result[number], stream=queries)
            result[number] = points
            standing[number] = False
            standing[number[place]] = True
            if len(place) == len(number):
                break
            ever = True
        return ever
