"""The check of adversarials that no victim has seen yet: the judge's rule on images, asked of each once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit import rows
from robustkit.api import Images, Mask, ThreatModel


class Checked(NamedTuple):
    """Adversarials as they will be judged. Where `violated`, `adv` is the original and `distance` NaN."""

    adv: Images
    violated: Mask
    distance: Tensor
    reasons: list[str]


def check(threat: ThreatModel, x: Images, adv: Any) -> Checked:
    """Check what an attack returned for the originals `x`: finite, in the box, in the ball around the original.

    The distance is computed in float64. What is no batch of such images at all is a violation of every sample.
    """
    if not isinstance(adv, Tensor) or adv.shape != x.shape:
        given = tuple(adv.shape) if isinstance(adv, Tensor) else type(adv).__name__
        return refused(x, f"returned {given} where images of shape {tuple(x.shape)} were due")
    if not adv.is_floating_point():
        return refused(x, f"returned {adv.dtype} where floating-point images were due")
    adv = adv.detach().to(x.device, x.dtype)
    finite, in_box = torch.isfinite(rows.flat(adv)).all(1), threat.in_box(adv)
    allowed = threat.contains(x, adv)
    distance = torch.where(allowed, threat.distance(x, adv), torch.nan)
    reasons = [
        ""
        if ok
        else "an image that is not finite"
        if not real
        else f"an image outside the {'ball' if inside else 'box'}"
        for ok, real, inside in zip(allowed.tolist(), finite.tolist(), in_box.tolist(), strict=True)
    ]
    return Checked(rows.pick(allowed, adv, x), ~allowed, distance, reasons)


def refused(x: Images, reason: str) -> Checked:
    """Every sample violated, for one reason."""
    n = x.shape[0]
    nowhere = torch.full((n,), torch.nan, dtype=torch.float64, device=x.device)
    return Checked(x, torch.ones(n, dtype=torch.bool, device=x.device), nowhere, [reason] * n)
