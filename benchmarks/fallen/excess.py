"""All autoencoders at once, each detector's excess as a penalty. Carlini, Wagner 2017, arXiv:1711.08478, on MagNet."""

from dataclasses import dataclass

import torch

from benchmarks.fallen.by_hand import ByHand, climbed, declared, lead, offer
from robustkit.api import Case, Images


@dataclass(frozen=True, slots=True)
class Excess(ByHand):
    """Signed steps up the least lead over the autoencoders less what any score exceeds its threshold by."""

    steps: int = 200
    restarts: int = 2
    penalties: tuple[float, ...] = (100.0, 1000.0)

    def __call__(self, case: Case) -> Images:
        guarded = declared(case).answer
        thresholds = guarded.get_buffer("thresholds")
        result, broken = case.x.clone(), torch.zeros(len(case.x), dtype=torch.bool)
        for restart in range(self.restarts):
            for number, penalty in enumerate(self.penalties):
                adv = case.threat.sample(case.x, case.draws.at(restart * 8 + number)) if restart else case.x.clone()
                for step in range(self.steps):
                    at = adv.clone().requires_grad_(True)
                    with torch.enable_grad():
                        logits, scores = guarded.judged(at)
                        gains = torch.stack([lead(z, case.y) for z in logits]).clamp_max(1)
                        over = (scores - 0.9 * thresholds[:, None]).relu().sum((0, 2))
                        loss = gains.sum(0) - penalty * over
                    size = 2.5 * case.threat.eps / self.steps * (2 if step < self.steps / 2 else 1)
                    adv = climbed(case, adv, loss, at, size)
                    if step % 10 == 9:
                        offer(case, adv, result, broken)
        return result
