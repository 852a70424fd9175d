"""Each sample climbs from the cheapest bound to the dearest until it is proved: ibp, crown, alpha-crown.

A margin counts as proved above SHARE · (1 + S), S the sum of the absolute contributions its bound was made of: an
empirical margin, not one derived from the operations' error bounds. It stands for the rounding of the bound, which is
computed in float32 (on the kit's networks it differs from float64's by less than a hundredth of the margin), and for
that of the network as it runs in float32, whose logits are not those of exact arithmetic.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certificates import bounds, slopes
from robustkit.certificates.graph import Graph
from robustkit.certificates.regions import Region
from robustkit.errors import UsageError

METHODS = ("ibp", "crown", "alpha-crown")
SHARE = 1e-5


class Proofs(NamedTuple):
    """For each sample whether label y is proved, by which rung, and what was found.

    Attributes:
        proved: the smallest margin is above its threshold.
        rung: place in METHODS of the rung that proved it, or the last one that was tried.
        margin: the lower bound of the smallest margin, of that rung.
        threshold: what it had to be above.
        passes: what that cost, in passes of the network of one image.
    """

    proved: Tensor
    rung: Tensor
    margin: Tensor
    threshold: Tensor
    passes: Tensor


def prove(graph: Graph, region: Region, y: Tensor, method: str) -> Proofs:
    """Climb to the rung `method` at most.

    Raises:
        UsageError: for a method that is not there.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r}; there are: {', '.join(METHODS)}")
    with torch.no_grad():
        return _climbed(graph, region, y, METHODS.index(method))


def _climbed(graph: Graph, region: Region, y: Tensor, top: int) -> Proofs:
    known = bounds.intervals(graph, region)
    proofs = _judged(bounds.margins(known, y, stop_at_boxes=True), 0, known.work + graph.classes)
    open_ = _open(proofs)
    if top == 0 or not len(open_):
        return proofs
    known = known.at(open_)  # CROWN over the intervals costs a few rows only, and is enough for many
    proofs = _merged(proofs, _judged(bounds.margins(known, y[open_]), 1, known.work + graph.classes), open_)
    open_ = _open(proofs)
    if not len(open_):
        return proofs
    known = bounds.crown(graph, region.at(open_))
    found = bounds.margins(known, y[open_])
    last = _judged(found, 1, known.work + graph.classes)
    proofs, still = _merged(proofs, last, open_), _open(last)
    if top == 1 or not len(still):
        return proofs
    open_, known, found = open_[still], known.at(still), bounds.Bound(found.low[still], found.size[still])
    found = slopes.optimised(known, y[open_], found, SHARE * (1 + found.size))
    return _merged(proofs, _judged(found, 2, known.work), open_)


def _open(proofs: Proofs) -> Tensor:
    return (~proofs.proved).nonzero()[:, 0]


def _judged(found: bounds.Bound, rung: int, passes: Tensor) -> Proofs:
    """Of each sample the row that is furthest below its own threshold decides."""
    threshold = SHARE * (1 + found.size)
    worst = (found.low - threshold).argmin(1, keepdim=True)
    margin, needed = found.low.gather(1, worst)[:, 0], threshold.gather(1, worst)[:, 0]
    return Proofs(margin > needed, torch.full_like(worst[:, 0], rung), margin, needed, passes)


def _merged(old: Proofs, new: Proofs, rows: Tensor) -> Proofs:
    """The old with what was found of some samples since; passes add up."""
    merged = [each.clone() for each in old]
    for whole, part, name in zip(merged, new, Proofs._fields, strict=True):
        whole[rows] = whole[rows] + part if name == "passes" else part
    return Proofs(*merged)
