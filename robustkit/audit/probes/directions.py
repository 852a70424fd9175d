"""Gradient check along random directions, at two scales: is the backward pass that of the forward?

Of the gap between the decision and its runner-up, both held, autograd's slope along eight random directions of signs is
compared with two-sided differences of the forward pass. A step against the gradient may lower the margin though the
gradient is 3 % right; the cosine over random directions says how much of it is. Images are moved off the box's faces
and off ties (max-pooling on constant areas), so that a model that clamps is no false alarm.

Cost: (1 + 2·8·2) forwards and a backward of each of 16 images. Tells from 8 images.
Rule: a mean cosine below `cosine_near` at 1/255 is suspect, and one below `cosine_nearer` at 1/16 of that, unless the
model computes in low precision or quantises; so are images where autograd's slopes are all zero (dead), or all
differences (flat), if they are significantly more than a share `dead`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Images
from robustkit.audit import rules
from robustkit.audit.probes.asking import Look, answers, gap, gradient, top_two
from robustkit.audit.rules import Limits
from robustkit.numerics import devices, rows
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records.findings import Check, Series

NAME = "gradient-check"
IMAGES, DIRECTIONS, ENOUGH = 16, 8, 8
SIZES = (1 / 16 / 255, 1 / 255)  # in each pixel
_JITTER = 2 / 255


class Directions(NamedTuple):
    """What was seen of `n` images.

    Attributes:
        cosines: at each of SIZES, the mean cosine of autograd's slopes with the differences; 0 where either is zero.
        kinks: at each of SIZES, the median share of the differences that is even in the step: curvature, and kinks
            (the kink meter; it is no verdict, but calls for gradients smoothed over a wide range).
        dead: images on which every slope of autograd's is zero.
        flat: images on which every difference at the larger step is zero, though autograd's slopes are not.
        fine: whether the outputs are fine enough for the smaller step.
    """

    n: int
    cosines: tuple[float, ...]
    kinks: tuple[float, ...]
    dead: int
    flat: int
    fine: bool = True


def measure(look: Look, *, fine: bool = True) -> Directions:
    """What autograd and differences say at the first IMAGES images."""
    look = look.first(IMAGES)
    network, draws = look.network, SampleDraws(key_of(look.seed, "robustkit gradient check"), look.indices)
    shape, edge = look.x.shape[1:], _JITTER + max(SIZES)
    x = look.x.clamp(edge, 1 - edge) + _JITTER * (2 * draws.uniform(shape) - 1).to(look.x)
    towards = [(draws.uniform(shape, step=1 + k) - 0.5).sign().to(x) for k in range(DIRECTIONS)]
    (here,) = answers(network, [x])
    of, over = top_two(here)
    grad = gradient(network, x, of, over)
    value = gap(here, of, over)
    slopes = torch.stack([rows.dot(devices.wide(grad), devices.wide(u)) for u in towards], 1)
    dead = slopes.eq(0).all(1)
    cosines, kinks = [], []
    flat = torch.zeros_like(dead)
    for size in SIZES:
        odd, even = _differences(look, x, towards, size, (of, over), value)
        flat = odd.eq(0).all(1)
        cosines.append(float(_cosine(slopes, odd).mean()))
        kinks.append(float((even.norm(dim=1) / odd.norm(dim=1).clamp_min(1e-300)).clamp_max(99).median()))
    return Directions(len(x), tuple(cosines), tuple(kinks), int(dead.sum()), int((flat & ~dead).sum()), fine)


def _differences(
    look: Look, x: Images, towards: list[Images], size: float, pair: tuple[Tensor, Tensor], value: Tensor
) -> tuple[Tensor, Tensor]:
    """The odd and the even part of the two-sided differences along each direction, (batch, directions)."""
    moved = [x + sign * size * u for u in towards for sign in (1, -1)]
    found = torch.stack([gap(logits, *pair) for logits in answers(look.network, moved)], 1)
    up, down = found[:, 0::2], found[:, 1::2]
    return (up - down) / (2 * size), (up + down - 2 * value[:, None]) / (2 * size)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of rows; 0 where one is zero or not finite."""
    size = a.norm(dim=1) * b.norm(dim=1)
    found = (a * b).sum(1) / size.clamp_min(1e-300)
    return torch.where((size > 0) & found.isfinite(), found, torch.zeros_like(found))


def judge(seen: Directions, limits: Limits) -> Check:
    """The check."""
    near, nearer = seen.cosines[1], seen.cosines[0]
    text = (
        f"on {seen.n} images the slopes along {DIRECTIONS} random directions are those of the forward pass with cosine "
        f"{near:.2f} over 1/255, {nearer:.2f} over 1/16 of it"
    )
    series = Series(list(SIZES), list(seen.cosines), "step in each pixel", "cosine of slopes and differences")
    if seen.n < ENOUGH:
        return rules.too_few(NAME, text, seen.n, ENOUGH, "images")
    why = ""
    if rules.exceeds(seen.dead, seen.n, limits.dead):
        why = f"the gradient is zero along all of them on {seen.dead}"
    elif rules.exceeds(seen.flat, seen.n, limits.dead):
        why = f"the outputs stand still on {seen.flat}, though the gradient does not: rounded, or remembered"
    elif near < limits.cosine_near:
        shattered = nearer >= limits.cosine_nearer
        why = "the gradient is shattered" if shattered else "the backward pass is not that of the forward"
    elif seen.fine and nearer < limits.cosine_nearer:
        why = "the forward pass jumps where its gradient sees nothing: quantised, or activations that jump"
    return rules.judged(NAME, bool(why), text, why, near, limits.cosine_near, series=series)
