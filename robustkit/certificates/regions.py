"""Where an image may be: a ball around it cut to the box [0,1], and how small a linear function is there.

The ball is the judge's, of radius `spec.limit(eps)`, around the image before any normalisation: what a network does to
its images first is part of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit import spec
from robustkit.errors import UsageError
from robustkit.numerics import norms

NORMS = ("linf", "l2", "l1")
Pick = Callable[[Tensor], Tensor]  # from (batch, …) to (rows, …), or (1, …) that broadcasts
_STEPS = 24  # of the search for L2's multiplier, any value of which is sound


class Least(NamedTuple):
    """A lower bound of each row's linear function, and the sum of the absolute contributions it was made of."""

    bound: Tensor
    size: Tensor


@dataclass(frozen=True, slots=True)
class Region:
    """The balls of some images: their centres (batch, …), and the box that holds each ball."""

    x: Tensor
    lower: Tensor
    upper: Tensor
    norm: str
    radius: float

    def at(self, rows: Tensor) -> "Region":
        """The balls of some of the images."""
        return Region(self.x[rows], self.lower[rows], self.upper[rows], self.norm, self.radius)

    def least(self, a: Tensor, pick: Pick) -> Least:
        """The least value of each row's linear function `a` (rows, …) on the ball of its image."""
        a, low, high = a.flatten(1), pick(self.lower).flatten(1), pick(self.upper).flatten(1)
        bound = _dot(a, (low + high) / 2) - _dot(a.abs(), (high - low) / 2)
        size = _dot(a.detach().abs(), torch.maximum(low.abs(), high.abs()))
        if self.norm != "linf":
            x = pick(self.x).flatten(1)
            fall = (_l2 if self.norm == "l2" else _l1)(a, low - x, high - x, self.radius)
            bound = torch.maximum(bound, _dot(a, x) + fall)  # both hold, so the better one does
        return Least(bound, size)


def picker(owner: Tensor) -> Pick:
    """What gives each row its sample's values, by sorted owners; of a single one as one row that broadcasts."""
    if not owner.is_cuda and len(owner) and int(owner[0]) == int(owner[-1]):
        one = owner[:1]
        return lambda values: values[one]
    return lambda values: values[owner]


def _dot(a: Tensor, values: Tensor) -> Tensor:
    return a @ values[0] if len(values) == 1 else (a * values).sum(1)


def region(x: Tensor, norm: str, eps: float, dtype: torch.dtype = torch.float32) -> Region:
    """The balls of radius eps around images in [0,1].

    Raises:
        UsageError: see `check`.
    """
    check(norm, eps)
    x, radius = x.detach().double(), spec.limit(eps)
    low, high = (x - radius).clamp_min(0).to(dtype), (x + radius).clamp_max(1).to(dtype)
    return Region(x.to(dtype), low, high, norm, radius)


def check(norm: str, eps: float) -> None:
    """Refuse a threat model in which nothing is bounded here.

    Raises:
        UsageError: for a norm without a bound, or a radius that is no ball's.
    """
    if norm not in NORMS:
        raise UsageError(f"certificates are for the norms {', '.join(NORMS)}, not {norm}")
    if not 0 <= eps < torch.inf:
        raise UsageError(f"certificates need a finite eps, not {eps:g}")


def fixed(lower: Tensor, upper: Tensor) -> Region:
    """Boxes as they are, whatever holds them: what an instance of a verification competition asks about."""
    return Region((lower + upper) / 2, lower, upper, "linf", torch.inf)


def reach(a: Tensor, norm: str, radius: float) -> Tensor:
    """By how much each row's linear function changes at most within a ball that no box cuts."""
    return radius * norms.length(a, norms.NORMS[norm].dual)


def _l1(a: Tensor, low: Tensor, high: Tensor, radius: float) -> Tensor:
    """The least a·d for ‖d‖₁ ≤ radius within a box around 0, exactly: the steepest pixels are spent first."""
    room = torch.where(a > 0, -low, high)
    steep, order = a.abs().sort(1, descending=True)
    room = room.gather(1, order)
    spent = room.cumsum(1) - room
    return -(steep * torch.minimum(room, (radius - spent).clamp_min(0))).sum(1)


def _l2(a: Tensor, low: Tensor, high: Tensor, radius: float) -> Tensor:
    """A lower bound of a·d for ‖d‖₂ ≤ radius within a box around 0: the Lagrangian at the best multiplier found.

    For any m > 0 the least of a·d + m(‖d‖² − radius²) over the box alone is a lower bound, with d = −a/2m cut to it.
    """
    with torch.no_grad():
        top = a.norm(dim=1) / (2 * radius) if radius else torch.ones_like(a[:, 0])
        few, many = torch.full_like(top, 1e-6) * top, top.clamp_min(1e-30)
        for _ in range(_STEPS):  # ‖d‖ falls with m; at `many` it is within the ball
            m = (few * many).sqrt().clamp_min(1e-30)
            inside = (-a / (2 * m[:, None])).clamp(low, high).square().sum(1) <= radius**2
            few, many = torch.where(inside, few, m), torch.where(inside, m, many)
        d = (-a / (2 * many[:, None])).clamp(low, high)
    return (a * d).sum(1) + many * (d.square().sum(1) - radius**2)
