"""ARC on a mixture. Dbouk, Shanbhag, "Adversarial vulnerability of randomized ensembles", ICML 2022, algorithm 2."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.fallen.by_hand import ByHand, declared, offer
from robustkit.api import Case, Images


@dataclass(frozen=True, slots=True)
class ARC(ByHand):
    """Members by falling weight, each pushed over its nearest linear boundary where expected accuracy does not rise."""

    steps: int = 40

    def __call__(self, case: Case) -> Images:
        model, eps = declared(case), case.threat.eps
        order = sorted(range(len(model.weights())), key=lambda i: -model.weights()[i])
        members, weights = model.members(), torch.tensor(model.weights())
        adv, result, broken = case.x.clone(), case.x.clone(), torch.zeros(len(case.x), dtype=torch.bool)
        for step in range(self.steps):
            local = torch.zeros_like(adv)
            for i in order:
                far, towards = nearest(members[i], adv, case.y)
                size = far.view(-1, 1, 1, 1)
                for push in (1.05 * size, 1.05 * size + eps, 4 * eps * torch.ones_like(size)):
                    tried = local + push * towards
                    tried = eps * tried / tried.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
                    here = case.threat.project(case.x, adv + local)
                    there = case.threat.project(case.x, adv + tried)
                    better = expected(members, weights, there, case.y) <= expected(members, weights, here, case.y)
                    local = torch.where(better.view(-1, 1, 1, 1), tried, local)
            adv = case.threat.project(case.x, adv + local)
            if step % 5 == 4:
                offer(case, adv, result, broken)
        return result


def expected(members: list, weights: Tensor, x: Images, y: Tensor) -> Tensor:
    """The exact expected accuracy of each sample."""
    with torch.no_grad():
        right = torch.stack([member(x).argmax(1) == y for member in members]).double()
    return (weights.double()[:, None] * right).sum(0)


def nearest(member: torch.nn.Module, x: Images, y: Tensor) -> tuple[Tensor, Tensor]:
    """The linearised linf distance to the nearest other class, and the direction of largest slope there, of ±1."""
    at = x.clone().requires_grad_(True)
    with torch.enable_grad():
        z = member(at)
        best, direction = torch.full((len(x),), torch.inf), torch.zeros_like(x)
        for label in range(z.shape[1]):
            gap = z.gather(1, y[:, None])[:, 0] - z[:, label]
            (slope,) = torch.autograd.grad(gap.sum(), at, retain_graph=True)
            far = gap.detach() / slope.abs().flatten(1).sum(1).clamp_min(1e-12)
            far = torch.where(y == label, torch.inf, far)
            nearer = far < best
            best = torch.where(nearer, far, best)
            direction = torch.where(nearer.view(-1, 1, 1, 1), -slope.sign(), direction)
    return best.clamp_min(0), direction
