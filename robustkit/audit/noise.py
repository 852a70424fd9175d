"""Random noise inside the ball, the weakest attack there is: what it breaks, every better attack must."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from robustkit.api import Access, Case, Goal, Images, Norm


@dataclass(frozen=True, slots=True)
class RandomNoise:
    """`draws` random images of the ball, every second one in Linf with each entry at +eps or −eps."""

    draws: int = 100

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1", "l0"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "decision"

    def __call__(self, case: Case) -> Images:
        """For each sample a draw that fooled the model, or else the first."""
        result = self._draw(case, 0)
        open_rows = torch.arange(len(case.x), device=case.x.device)
        for number in range(self.draws):
            some = case.select(open_rows)
            adv = self._draw(some, number)
            hit = some.reached(some.oracle.outputs(adv).logits)
            result[open_rows[hit]] = adv[hit]
            open_rows = open_rows[~hit]
            if not len(open_rows):
                break
        return result

    def _draw(self, case: Case, number: int) -> Images:
        draws, threat = case.draws.at(number), case.threat
        if threat.norm == "linf" and number % 2:
            signs = (draws.uniform(case.x.shape[1:]) - 0.5).sign()
            return threat.project(case.x, case.x + threat.eps * signs)
        return threat.sample(case.x, draws)

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward a draw."""
        return self.draws, 0
