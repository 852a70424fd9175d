"""Slopes chosen for each row's bound (alpha-CROWN): any slope from 0 to 1 is sound, so the search may stop anywhere.

Source: Xu et al. 2021, arXiv:2011.13824; intermediate bounds stay as they are.
"""

import torch
from torch import Tensor

from robustkit.certificates.bounds import Bound, Bounds, backward, graph_rows

STEPS, RATE, DECAY = 20, 0.5, 0.98


def optimised(bounds: Bounds, y: Tensor, known: Bound, enough: Tensor) -> Bound:
    """Margins (batch, classes − 1) with slopes climbed for each row of `known` that is not above `enough`."""
    classes = bounds.graph.classes
    todo = (known.low <= enough).nonzero(as_tuple=True)
    if not len(todo[0]):
        return known
    owner, rows = todo[0], graph_rows(classes, y, bounds.graph.dtype)[todo]
    best_low, best_size = known.low[todo].clone(), known.size[todo].clone()
    pulled = bounds.graph.through(len(bounds.graph.nodes) - 1, rows)
    slopes = {}
    for place, lines in bounds.lines.items():
        if lines.free is not None and lines.free.any():
            slopes[place] = lines.low[owner].clone().requires_grad_(True)
    if slopes:
        optimiser = torch.optim.Adam(slopes.values(), lr=RATE)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, DECAY)
        for step in range(STEPS + 1):
            with torch.enable_grad():
                found = backward(bounds, pulled, owner, slopes=slopes)
                better = found.low.detach() > best_low
                best_low = torch.where(better, found.low.detach(), best_low)
                best_size = torch.where(better, found.size.detach(), best_size)
                if step == STEPS:
                    break
                optimiser.zero_grad()
                torch.autograd.backward(-found.low.sum())
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for slope in slopes.values():
                    slope.clamp_(0, 1)
        bounds.work.index_add_(0, owner, torch.full_like(best_low, 3.0 * (STEPS + 1)).double())
    low, size = known.low.clone(), known.size.clone()
    low[todo], size[todo] = best_low, best_size
    return Bound(low, size)
