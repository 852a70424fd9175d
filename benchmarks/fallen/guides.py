"""Guide samples against a vote of neighbours. Sitawarin, Wagner 2019, arXiv:1903.08333 (and 2020, arXiv:2003.06559)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.fallen.by_hand import ByHand, climbed, declared, offer
from robustkit.api import Case, Images


@dataclass(frozen=True, slots=True)
class Guides(ByHand):
    """Features are drawn to `guides` neighbours of a wrong class, from as many of the true one; anew every 20 steps."""

    guides: int = 15
    targets: int = 3
    steps: int = 100
    sharpness: float = 4.0

    def __call__(self, case: Case) -> Images:
        votes = declared(case).answer
        features, labels = votes.get_buffer("features"), votes.get_buffer("y")
        result, broken = case.x.clone(), torch.zeros(len(case.x), dtype=torch.bool)

        def distances(x: Images) -> torch.Tensor:
            return (2 - 2 * F.normalize(votes.trunk(x).flatten(1)) @ features.T).clamp_min(1e-12).sqrt()

        def nearest(far: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return far.masked_fill(labels != label[:, None], torch.inf).topk(self.guides, largest=False).indices

        with torch.no_grad():
            far = distances(case.x)
        means = torch.stack(
            [far[:, labels == label].topk(self.guides, largest=False).values.mean(1) for label in range(votes.classes)],
            1,
        )
        order = means.scatter(1, case.y[:, None], torch.inf).argsort(1)
        for rank in range(self.targets):
            adv = case.x.clone()
            for step in range(self.steps):
                if step % 20 == 0:
                    with torch.no_grad():
                        far = distances(adv)
                    near, away = nearest(far, order[:, rank]), nearest(far, case.y)
                at = adv.clone().requires_grad_(True)
                with torch.enable_grad():
                    here = distances(at)
                    bound = here.detach().topk(votes.neighbours, largest=False).values[:, -1:]
                    closer, further = (self.sharpness * (bound - here.gather(1, some)) for some in (near, away))
                    loss = (closer.sigmoid() - further.sigmoid()).sum(1)
                adv = climbed(case, adv, loss, at, 2.5 * case.threat.eps / self.steps)
                if step % 10 == 9:
                    offer(case, adv, result, broken)
        return result
