"""Search among a decoder's own images. Athalye, Carlini, Wagner 2018, arXiv:1802.00420, on Defense-GAN."""

from dataclasses import dataclass

import torch

from benchmarks.fallen.by_hand import ByHand, declared, lead, offer
from robustkit.api import Case, Images


@dataclass(frozen=True, slots=True)
class LatentSearch(ByHand):
    """Adam on z for a G(z) that is misclassified and near the image; what is handed in is G(z) cut to the ball."""

    steps: int = 400
    restarts: int = 4
    rate: float = 0.05

    def __call__(self, case: Case) -> Images:
        model = declared(case)
        projection, network = model.answer[0], model.answer[1]
        encoder = model.surrogates()["encoder"][0].network[0]
        result, broken = case.x.clone(), torch.zeros(len(case.x), dtype=torch.bool)
        for restart in range(self.restarts):
            z = encoder(case.x.flatten(1)).detach()
            z = z + 0.3 * restart * z.std() * case.draws.at(restart).normal(z.shape[1:])
            z.requires_grad_(True)
            descent = torch.optim.Adam([z], lr=self.rate * float(z.detach().std()))
            for step in range(self.steps):
                with torch.enable_grad():
                    made = projection.decoder(z).sigmoid().view_as(case.x)
                    beyond = ((made - case.x).abs() - case.threat.eps).relu()
                    loss = -lead(network(made), case.y).clamp_max(3) + 30 * beyond.flatten(1).sum(1)
                descent.zero_grad()
                (z.grad,) = torch.autograd.grad(loss.sum(), z)
                descent.step()
                if step % 20 == 19:
                    offer(case, case.threat.project(case.x, made.detach()), result, broken)
        return result
