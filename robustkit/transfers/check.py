"""The check of adversarials that no victim has seen yet: the judge's rule on images, asked of each once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Images, Mask, ThreatModel
from robustkit.engine.judge import OUTSIDE, how_far, malformed, measure
from robustkit.numerics import devices, rows
from robustkit.numerics.bare import bare


class Checked(NamedTuple):
    """Adversarials as they will be judged. Where `violated`, `adv` is the original and `distance` NaN.

    `distance` is float64, on the CPU where the images' device has none.
    """

    adv: Images
    violated: Mask
    distance: Tensor
    reasons: list[str]


def check(threat: ThreatModel, x: Images, adv: Any) -> Checked:
    """Check what an attack returned for the originals `x`: finite, in the box, in the ball around the original.

    The distance is computed in float64. What is no batch of such images at all is a violation of every sample.
    """
    adv = bare(adv)
    if reason := malformed(adv, x.shape):
        return refused(x, reason)
    given, adv = adv.dtype, adv.to(x.device, x.dtype)
    distance, _, allowed, faults = measure(threat, x, adv)
    reasons = [""] * len(x)
    for reason, broken in faults.items():
        for row in broken.nonzero()[:, 0].tolist():
            far = float(distance[row]) - threat.eps
            reasons[row] = how_far(far, threat, given) if reason == OUTSIDE else reason
    kept = torch.where(allowed.to(distance.device), distance, torch.nan)
    return Checked(rows.pick(allowed, adv, x), ~allowed, kept, reasons)


def refused(x: Images, reason: str) -> Checked:
    """Every sample violated, for one reason."""
    n = x.shape[0]
    where = x.device if devices.has_float64(x.device) else "cpu"
    nowhere = torch.full((n,), torch.nan, dtype=torch.float64, device=where)
    return Checked(x, torch.ones(n, dtype=torch.bool, device=x.device), nowhere, [reason] * n)
