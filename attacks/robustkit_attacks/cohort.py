"""What the stages of the `fast` suite share: who is nearest, which class is nearest, and several rows a sample.

A stage gets all samples of a declared cohort that still stand, with the least margin that the stages before it showed
of each, and where. Its effort goes to the nearest of them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from robustkit.api import Case, Handed, Images, ModelFacts, Outputs, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import parts

COHORT = 512  # consecutive samples of the evaluated list that are ranked together
LEAST = 16  # samples that a share is at least
AIM = 7  # steps of adaptive direction initialisation
CANDIDATES = 20  # classes that are ranked by their boundary's distance, those of highest logits


def check_rankable(suite: str, threat: ThreatModel, facts: ModelFacts) -> None:
    """Refuse a threat model or a model whose samples a suite cannot rank.

    Raises:
        UsageError: in l0, and of a model whose answers are random or let no gradient through.
    """
    if threat.norm == "l0":
        raise UsageError(f"{suite} has no l0 form; there are: linf, l2, l1")
    if facts.randomised or not facts.differentiable:
        why = "answers at random" if facts.randomised else "lets no gradient through"
        raise UsageError(f"{suite} ranks samples by margins and gradients, and this model {why}; use adaptive")


def informed(case: Case) -> tuple[Case, Handed]:
    """The case with what the stages before left; where nothing was handed on, the original images, for a forward."""
    if case.handed is not None:
        return case, case.handed
    margin = rows.margin(case.oracle.outputs(case.x).logits, case.y, case.target)
    known = Handed(margin, margin, case.x)
    return replace(case, handed=known), known


def nearest(known: Handed, share: float = 1.0) -> Int[Tensor, " some"]:
    """The rows of the least margins, nearest first: a share of all, at least 16. Ties keep the samples' order."""
    count = min(len(known.margin), max(LEAST, math.ceil(share * len(known.margin))))
    return known.margin.argsort(stable=True)[:count]


def blocks(order: Tensor, size: int) -> Sequence[Tensor]:
    """A ranking in blocks of so many; none of an empty one."""
    return torch.split(order, size) if len(order) else ()


def nearest_classes(case: Case, most: int) -> Int[Tensor, "batch classes"]:
    """The wrong classes whose boundary is nearest at the original image, nearest first, at most so many.

    By (z_y − z_k) / ‖∇(z_y − z_k)‖ in the dual norm: two forward passes, and a backward pass for each class. Of many
    classes the 20 of highest logits are ranked. In a targeted evaluation it is the target alone.

    Source: Melamed, Yehudai, Shamir 2024 (MALT), arXiv:2407.02240, section 3.
    """
    if case.target is not None:
        return case.target[:, None]
    logits = case.oracle.outputs(case.x).logits
    count = min(CANDIDATES, logits.shape[1] - 1)
    some = logits.scatter(1, case.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]

    def gaps(outputs: Outputs) -> Tensor:
        z = outputs.logits
        return (z.gather(1, case.y[:, None]) - z.gather(1, some)).T

    found = case.oracle.gradient(case.x, gaps)
    dual = norms.NORMS[case.threat.norm].dual
    slopes = torch.stack([norms.length(grad, dual) for grad in found.grad], 1)
    order = (found.loss.T / (slopes + 1e-12)).argsort(dim=1, stable=True)
    return some.gather(1, order[:, :most])


def siblings(case: Case, width: int) -> Case:
    """The case with each sample in `width` rows, one beside the other."""
    return case if width == 1 else case.select(torch.arange(len(case.x), device=case.x.device).repeat_interleave(width))


def interleaved(starts: Sequence[Images]) -> parts.Left:
    """Several images a sample as rows of `siblings`."""
    return torch.stack(list(starts), 1).flatten(0, 1)


def best(loss: Tensor, hit: Tensor, width: int) -> Int[Tensor, " samples"]:
    """Of each sample's rows the one of highest loss, of those that fooled the model where one did."""
    worth = torch.where(hit, torch.inf, loss.nan_to_num(nan=-torch.inf)).view(-1, width)
    return torch.arange(len(worth), device=loss.device) * width + worth.argmax(1)


def leave(few: Case, state: Any, width: int) -> tuple[Case, Any, Tensor]:
    """Submit what a sample's rows found (`state.found` where `state.hit`); a confirmed sample's rows leave together.

    The case and state that stay, and which rows that is. Asks the device twice, as `parts.leave`.
    """
    row = best(state.best_loss, state.hit, width)
    stays = rows.positions(~parts.confirmed(few, state.found[row], state.hit[row]))
    kept = (stays[:, None] * width + torch.arange(width, device=stays.device)).flatten()
    state = state._replace(hit=torch.zeros_like(state.hit))
    return few.select(stays), parts.select(state, kept), kept


def aimed(case: Case, number: int) -> Images:
    """Adaptive direction initialisation: from a random point along the gradient of a random mix of logits.

    The weights are uniform in [−1, 1], that of the true class in [−0.5, 0.1]. `number` tells several apart.

    Source: Liu, Cheng, Gao, Liu, Zhang, Song 2022 (A3), arXiv:2203.05154.
    """
    draws = case.draws.at(number)
    adv = case.threat.sample(case.x, draws)
    u = draws.uniform((case.oracle.classes,), step=2)
    weights = (2 * u - 1).scatter(1, case.y[:, None], 0.6 * u.gather(1, case.y[:, None]) - 0.5)
    for _ in range(AIM):
        grad = case.oracle.gradient(adv, lambda outputs: (outputs.logits * weights).sum(1)).grad
        adv = case.threat.project(case.x, adv + case.threat.eps * norms.steepest(grad, case.threat.norm))
    return adv
