"""The norms, one row of a table each: length, projection, random start, steepest step, dual norm.

What a norm is called, and what its eps means, stands in `robustkit.spec.NORMS`, which needs no torch. A new norm is a
row there, a row here with its projection, and its name in `robustkit.api.Norm`; then attacks may claim it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from robustkit import spec
from robustkit.numerics import devices, projection, rows
from robustkit.numerics.draws import Draws
from robustkit.numerics.projection import Batch
from robustkit.numerics.rows import Rows, Scalars


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is computed in a norm, a row a sample.

    Attributes:
        length: of each sample's entries, in their dtype.
        project: `(x, adv, eps, low, high)`: an image of ball and box near `adv`; what is inside stays, bit for bit.
        sample: `(x, eps, low, high, draws)`: a random image of ball and box.
        steepest: the step of length 1 along which a linear function with this gradient grows most; a zero gradient
            stays zero. None where there is none.
        dual: the norm in which the gradient's length is that growth; empty where there is none.
    """

    length: Callable[[Rows], Scalars]
    project: Callable[[Batch, Batch, float, float, float], Batch]
    sample: Callable[[Batch, float, float, float, Draws], Batch]
    steepest: Callable[[Rows], Rows] | None = None
    dual: str = ""


def length(x: Rows, norm: str) -> Scalars:
    """Length of each sample's entries in a norm, in the dtype of `x`; l0 counts pixels of (batch, channels, …)."""
    return NORMS[norm].length(x)


def unit(x: Rows, norm: str = "l2") -> Rows:
    """Each sample divided by its length; a zero sample stays zero."""
    size = length(x, norm)
    safe = torch.where(size > 0, size, torch.ones_like(size))
    return x / rows.spread(safe, x)


def steepest(grad: Rows, norm: str) -> Rows:
    """The step of length 1 in a norm along which a linear function with this gradient grows most.

    Raises:
        ValueError: for a norm without one (l0: a single pixel can change by any amount).
    """
    step = NORMS[norm].steepest
    if step is None:
        raise ValueError(f"{norm} has no steepest step")
    return step(grad)


@cache
def widest(shape: Sequence[int], norm: str) -> float:
    """The length of a change of every entry by 1, for images of this shape: a ball so wide holds the unit box."""
    return float(length(torch.ones(1, *shape, dtype=torch.float64), norm))


def _largest_entry(grad: Rows) -> Rows:
    flat = rows.flat(grad)
    at = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, at, flat.gather(1, at).sign()).view_as(grad)


def _in_linf(x: Batch, eps: float, low: float, high: float, draws: Draws) -> Batch:
    return (x + eps * (2 * draws.uniform(x.shape[1:]) - 1)).clamp(low, high)


def _in_l2(x: Batch, eps: float, low: float, high: float, draws: Draws) -> Batch:
    direction = unit(devices.wide(draws.normal(x.shape[1:])))
    return projection.onto_l2(x, _at_random_radius(x, direction, eps, draws), eps, low, high)


def _in_l1(x: Batch, eps: float, low: float, high: float, draws: Draws) -> Batch:
    signed = 2 * devices.wide(draws.uniform(x.shape[1:])) - 1
    direction = unit(signed.sign() * -(1 - signed.abs()).log(), "l1")
    return projection.onto_l1(x, _at_random_radius(x, direction, eps, draws), eps, low, high)


def _in_l0(x: Batch, eps: float, low: float, high: float, draws: Draws) -> Batch:
    """Random pixels with uniform values."""
    order = rows.flat(draws.uniform(x.shape[2:])).sort(dim=1, stable=True).indices[:, : int(spec.limit(eps))]
    values = low + (high - low) * draws.uniform(x.shape[1:], step=1).to(x.dtype)
    return torch.where(projection.kept_pixels(x, order), values.clamp(low, high), x)


def _at_random_radius(x: Batch, direction: Tensor, eps: float, draws: Draws) -> Batch:
    """A point of the ball along a direction of length 1, so that the ball is filled evenly."""
    # u^(1/D) as exp(log u / D): torch's pow rounds an entry differently by its place in a batch.
    radius = eps * (devices.wide(draws.uniform((1,), step=1)[:, 0]).log() / math.prod(x.shape[1:])).exp()
    return (x + rows.spread(radius, x) * direction).to(x.dtype)


NORMS: Mapping[str, Geometry] = {
    "linf": Geometry(lambda x: rows.peak(x.abs()), projection.onto_linf, _in_linf, torch.sign, dual="l1"),
    "l2": Geometry(lambda x: rows.total(x * x).sqrt(), projection.onto_l2, _in_l2, unit, dual="l2"),
    "l1": Geometry(lambda x: rows.total(x.abs()), projection.onto_l1, _in_l1, _largest_entry, dual="linf"),
    "l0": Geometry(rows.pixels_changed, projection.onto_l0, _in_l0),
}
