"""Boundary bisection: do the outputs jump where the decision changes?

From each image along the line to one that is decided otherwise, down to neighbouring floats. There an honest network's
outputs are all but equal; those of hard decisions, votes, rounding, caches and inner loops jump. It needs no gradient,
so it sees what hides behind a smooth decoy.

Cost: a tile at a time holds several points of every line, so about 22 / log2(1 + points) tiles of 16 lines.
Tells from 8 lines. Rule: a jump of more than `jump` median margins on any line is suspect.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Images
from robustkit.audit import rules
from robustkit.audit.probes.asking import Look, answers, scale_of
from robustkit.audit.rules import Limits
from robustkit.numerics import devices, rows
from robustkit.records.findings import Check

NAME = "boundary-jump"
IMAGES, ENOUGH = 16, 8
_WIDTH = 2.0**-22  # of the line, where the search ends


class Jumps(NamedTuple):
    """The largest jump of the margin at a crossing, in median margins; lines; lines whose ends no longer differ."""

    largest: float
    lines: int
    lost: int


def measure(look: Look) -> Jumps:
    """What happens where the decision changes."""
    look = look.first(IMAGES)
    (logits,) = answers(look.network, [look.x])
    decision = logits.argmax(1)
    partner = _partners(decision)
    lines = (partner >= 0).nonzero()[:, 0]
    if not len(lines):
        return Jumps(0.0, 0, 0)
    start, end, decision = look.x[lines], look.x[partner[lines]], decision[lines]

    def at(t: Tensor) -> Images:
        where = rows.spread(t, start)
        return (devices.wide(start) + where * (devices.wide(end) - devices.wide(start))).to(start.dtype)

    points = 1 if look.network.noise is not None else max(1, look.network.tile // len(lines))
    low, high = (
        torch.full((len(lines),), t, dtype=devices.widest(start.device), device=start.device) for t in (0.0, 1.0)
    )
    width = 1.0
    while width > _WIDTH:
        tried = [low + (high - low) * (k + 1) / (points + 1) for k in range(points)]
        same = torch.stack([found.argmax(1) == decision for found in answers(look.network, [at(t) for t in tried])])
        ahead = same.long().cumprod(0).sum(0)  # points before the first that is decided otherwise
        step = (high - low) / (points + 1)
        low = low + ahead * step
        high = torch.where(ahead < points, low + step, high)
        width /= points + 1
    before, after = (rows.margin(found, decision) for found in answers(look.network, [at(low), at(high)]))
    jump = ((before - after).abs() / scale_of(logits)).nan_to_num(torch.inf)
    return Jumps(float(jump.amax()), len(lines), int(((before < 0) | (after > 0)).sum()))


def _partners(decision: Tensor) -> Tensor:
    """For each image the next, around, that is decided otherwise; −1 if none is."""
    n = len(decision)
    turned = torch.stack([decision.roll(-k) != decision for k in range(n)])
    first = turned.long().argmax(0)
    return torch.where(turned.any(0), (torch.arange(n, device=decision.device) + first) % n, -1)


def judge(seen: Jumps, limits: Limits) -> Check:
    """The check."""
    if not seen.lines:
        return rules.skipped(NAME, "all images that were looked at are decided alike: there is no line to follow")
    text = (
        f"where the decision changes, on {seen.lines} lines between images, the outputs jump by up to "
        f"{seen.largest:.2g} of the median margin"
    )
    bad = seen.largest > limits.jump
    if seen.lines < ENOUGH and not bad:
        return rules.too_few(NAME, text, seen.lines, ENOUGH, "lines")
    lost = f"; {seen.lost} ends are decided otherwise when asked again" if seen.lost else ""
    why = f"decisions, votes, rounding or something remembered stand behind the outputs{lost}"
    return rules.judged(NAME, bad, text, why, min(seen.largest, 1e6), limits.jump)
