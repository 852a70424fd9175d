"""Projections onto a norm ball around the original image and the box, a row at a time.

Each returns what is already inside bit for bit, and ends inside by half the judge's slack, whatever float32 rounding
does: adding a small change to a pixel of size 1 errs by up to 3e-8, and over 150 528 pixels that adds up. They compute
in float64, or on a device without it in float32 with a ball smaller by what a sum may err. They ask nothing of a
device: where that means to wait, a search for a number begins beside it and takes a fixed number of steps.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from robustkit import spec
from robustkit.numerics import devices, rows
from robustkit.numerics.rows import Rows

Batch = Float[Tensor, "batch channels height width"]
Flat = Float[Tensor, "batch entries"]
_FLOAT32_ERRS = 4e-6  # by more than this share no sum of a row's entries in float32
_POLISH = 8  # steps from the right piece of a piecewise linear function, where one would do
_WIDTHS = (64, 128, 256, 512, 1024, 4096, 16384)  # of packed rows in the projection onto L1


def inner_limit(eps: float) -> float:
    """The distance that counts as inside already: half of the judge's slack."""
    return eps * (1 + 5e-7) + 5e-8


def _sure(size: float, dtype: torch.dtype) -> float:
    """A size of the ball such that what is measured within it in this type lies within `size`."""
    return size if dtype == torch.float64 else size * (1 - _FLOAT32_ERRS)


def onto_linf(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """The nearest image with every entry within eps and in the box."""
    reach = eps * (1 + 2**-23)  # at least eps when float32 rounds it, so that what is inside never moves
    return adv.clamp(x - reach, x + reach).clamp(low, high)


def onto_l2(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """The nearest image of the ball, then of the box (which only moves it towards x)."""
    delta = devices.wide(adv).sub_(x)
    size = rows.total(delta * delta).sqrt()
    inside = size <= _sure(inner_limit(eps), delta.dtype)
    rounding = math.sqrt(x[0].numel()) * torch.finfo(x.dtype).eps / 2 * max(abs(low), abs(high))
    target = _sure(max(min(eps, inner_limit(eps) - rounding), 0.0), delta.dtype)
    scale = torch.where(inside, torch.ones_like(size), target / size)
    scaled = delta.mul_(rows.spread(scale, delta)).add_(x).to(x.dtype)
    return rows.pick(inside, adv, scaled).clamp(low, high)


def onto_l1(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """The nearest image of ball ∩ box: every change shrinks by one λ, and stops at the box.

    Only changed entries matter, so rows with few are packed. A row's own number of changes decides its packed width:
    its result does not depend on the other rows.
    """
    before, after = rows.flat(x), rows.flat(adv)
    if not devices.is_host(x.device):  # how many entries changed is not known there
        return nearest_in_l1(before, after, eps, low, high).view_as(adv)
    changed = after != before
    count = torch.count_nonzero(changed, 1)
    result, least = after.clamp(low, high), 0
    for width in (*(width for width in _WIDTHS if 2 * width <= after.shape[1]), after.shape[1]):
        some = ((count > least) & (count <= width)).nonzero()[:, 0]
        least = width
        if not len(some):
            continue
        if width == after.shape[1]:
            result[some] = nearest_in_l1(before[some], after[some], eps, low, high)
            continue
        row, column = changed[some].nonzero(as_tuple=True)
        first = count[some].cumsum(0) - count[some]
        place = torch.arange(len(row), device=row.device) - first[row]
        packed = before.new_full((2, len(some), width), low)
        packed[:, row, place] = torch.stack([before[some[row], column], after[some[row], column]])
        result[some[row], column] = nearest_in_l1(packed[0], packed[1], eps, low, high)[row, place]
    return result.view_as(adv)


def nearest_in_l1(x: Flat, adv: Flat, eps: float, low: float, high: float) -> Flat:
    """The nearest rows of ball ∩ box."""
    clipped = adv.clamp(low, high)
    delta, wide = devices.wide(adv).sub_(x), devices.wide(x)
    inside = rows.total(devices.wide(clipped).sub_(x).abs()) <= _sure(inner_limit(eps), delta.dtype)
    room = torch.where(delta > 0, high - wide, wide - low)
    shrink = shrinkage(delta.abs(), room, _sure(eps, delta.dtype))
    kept = delta.abs().sub_(shrink[:, None]).clamp_(room.new_zeros(1, 1), room).mul_(delta.sign_())
    return rows.pick(inside, clipped, towards(x, kept))


def onto_l0(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """Only the eps pixels with the largest change (L2 over channels; of equals the first), in the box."""
    clipped = adv.clamp(low, high)
    change = devices.wide(clipped).sub_(x).square_()
    size = rows.flat(sum(change.unbind(1), torch.zeros_like(change[:, 0])))
    order = size.sort(dim=1, descending=True, stable=True).indices[:, : int(spec.limit(eps))]
    return torch.where(kept_pixels(x, order), clipped, x)


def kept_pixels(x: Batch, pixels: Tensor) -> Tensor:
    """A mask, shape (batch, 1, height, width), of the pixels at these positions of each row."""
    mask = torch.zeros_like(rows.flat(x[:, 0]), dtype=torch.bool).scatter_(1, pixels, True)
    return mask.view_as(x[:, 0]).unsqueeze(1)


def shrinkage(size: Flat, room: Flat, eps: float) -> Float[Tensor, " batch"]:
    """The smallest λ ≥ 0 of each row with Σ min(max(size − λ, 0), room) ≤ eps.

    The sum is piecewise linear and falls with λ, so a Newton step from the right piece is exact. Every fourth step,
    and where Newton's leaves the bracket, the bracket is halved, so that it always ends. Where nothing is to be asked
    on the way, the piece is found first, by sorting.
    """
    asks = devices.is_host(size.device)
    below, above = torch.zeros_like(size[:, 0]), size.amax(1)
    shrink = below if asks else _within_piece(size, room, eps)
    tiny = (1e-11 if size.dtype == torch.float64 else 1e-6) * eps
    done, none = torch.zeros_like(shrink, dtype=torch.bool), size.new_zeros(1, 1)
    for step in range(1, 300 if asks else _POLISH):
        kept = (size - shrink[:, None]).clamp_(none, room)
        excess = rows.total(kept) - eps
        sloping = ((kept > 0) & (kept < room)).sum(1)
        done |= (excess.abs() <= tiny) | ((excess <= 0) & (shrink == 0)) | excess.isnan()
        below, above = torch.where(excess > 0, shrink, below), torch.where(excess > 0, above, shrink)
        newton, middle = shrink + excess / sloping, (below + above) / 2
        usable = (newton > below) & (newton < above) & (step % 4 > 0)
        following = torch.where(usable, newton, middle)
        narrow = (following <= below) | (following >= above)  # no number lies between
        shrink = torch.where(done, shrink, torch.where(narrow, above, following))
        done |= narrow
        if asks and bool(done.all()):
            break
    return shrink


def _within_piece(size: Flat, room: Flat, eps: float) -> Float[Tensor, " batch"]:
    """A λ of the linear piece in which that sum crosses eps; 0 if it never exceeds it."""
    ends = torch.cat([size, (size - room).clamp_min(0)], 1).sort(dim=1, descending=True)
    slopes = torch.where(ends.indices < size.shape[1], 1.0, -1.0).to(size.dtype).cumsum(1)
    widths = ends.values[:, :-1] - ends.values[:, 1:]
    reached = (slopes[:, :-1] * widths).cumsum(1)  # the sum at every end but the first, where it is 0
    last = (reached < eps).sum(1, keepdim=True)  # the piece lies between this end and the next
    crossed = (last < reached.shape[1])[:, 0]
    near = last.clamp_max(reached.shape[1] - 1)
    middle = (ends.values.gather(1, near) + ends.values.gather(1, near + 1))[:, 0] / 2
    return torch.where(crossed, middle, torch.zeros_like(middle))


def towards(x: Rows, delta: Rows) -> Rows:
    """The sum x + delta (in the widest type) in that of x, each entry rounded towards x, so that no change grows."""
    if delta.dtype == torch.float64:
        moved = (x.double() + delta).to(x.dtype)
        over = (moved.double() - x.double()).abs() > delta.abs()
    else:  # what rounding took from the sum is itself a number of this type (Knuth's two-sum)
        moved = x + delta
        part = moved - x
        over = ((x - (moved - part)) + (delta - part)) * delta.sign() < 0
    return torch.where(over, torch.nextafter(moved, x), moved)
