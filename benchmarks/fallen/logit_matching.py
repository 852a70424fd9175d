"""Matching the logits of a clean image of another class. Tramèr et al. 2020, arXiv:2002.08347, on Odds."""

from dataclasses import dataclass

import torch

from benchmarks.fallen.by_hand import ByHand, climbed, declared, offer
from robustkit.api import Case, Images


@dataclass(frozen=True, slots=True)
class LogitMatching(ByHand):
    """Signed steps that bring the mean logits under noise to those of the nearest images of other classes."""

    guides: int = 4
    steps: int = 100
    of: str = "noisy-mean"

    def __call__(self, case: Case) -> Images:
        stand_in = declared(case).surrogates()[self.of]
        result, broken = case.x.clone(), torch.zeros(len(case.x), dtype=torch.bool)
        with torch.no_grad():
            z = stand_in(case.x)
        far = (z[:, None] - z).square().sum(2).masked_fill(case.y[:, None] == case.y, torch.inf)
        order = far.argsort(1)
        for rank in range(min(self.guides, len(z))):
            goal, adv = z[order[:, rank]], case.x.clone()
            for step in range(self.steps):
                at = adv.clone().requires_grad_(True)
                with torch.enable_grad():
                    loss = -(stand_in(at) - goal).square().sum(1)
                adv = climbed(case, adv, loss, at, 2.5 * case.threat.eps / self.steps)
                if step % 10 == 9:
                    offer(case, adv, result, broken)
        return result
