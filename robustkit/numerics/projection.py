"""Projections onto a norm ball around the original image and the box, a row at a time.

Each returns what is already inside bit for bit, and ends inside by half the judge's slack, whatever float32 rounding
does: adding a small change to a pixel of size 1 errs by up to 3e-8, and over 150 528 pixels that adds up.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from robustkit import spec
from robustkit.numerics import rows
from robustkit.numerics.rows import Rows

Batch = Float[Tensor, "batch channels height width"]
Flat = Float[Tensor, "batch entries"]
_WIDTHS = (64, 128, 256, 512, 1024, 4096, 16384)  # of packed rows in the projection onto L1


def inner_limit(eps: float) -> float:
    """The distance that counts as inside already: half of the judge's slack."""
    return eps * (1 + 5e-7) + 5e-8


def onto_linf(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """The nearest image with every entry within eps and in the box."""
    reach = eps * (1 + 2**-23)  # at least eps when float32 rounds it, so that what is inside never moves
    return adv.clamp(x - reach, x + reach).clamp(low, high)


def onto_l2(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """The nearest image of the ball, then of the box (which only moves it towards x)."""
    delta = adv.double().sub_(x)
    size = rows.total(delta * delta).sqrt()
    inside = size <= inner_limit(eps)
    rounding = math.sqrt(x[0].numel()) * torch.finfo(x.dtype).eps / 2 * max(abs(low), abs(high))
    target = max(min(eps, inner_limit(eps) - rounding), 0.0)
    scale = torch.where(inside, torch.ones_like(size), target / size)
    scaled = delta.mul_(rows.spread(scale, delta)).add_(x).to(x.dtype)
    return rows.pick(inside, adv, scaled).clamp(low, high)


def onto_l1(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """The nearest image of ball ∩ box: every change shrinks by one λ, and stops at the box.

    Only changed entries matter, so rows with few are packed. A row's own number of changes decides its packed width:
    its result does not depend on the other rows.
    """
    before, after = rows.flat(x), rows.flat(adv)
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
    inside = rows.total(clipped.double().sub_(x).abs()) <= inner_limit(eps)
    delta = adv.double().sub_(x)
    room = torch.where(delta > 0, high - x.double(), x.double() - low)
    shrink = shrinkage(delta.abs(), room, eps)
    kept = delta.abs().sub_(shrink[:, None]).clamp_(room.new_zeros(1, 1), room).mul_(delta.sign_())
    return rows.pick(inside, clipped, towards(x, kept))


def onto_l0(x: Batch, adv: Batch, eps: float, low: float, high: float) -> Batch:
    """Only the eps pixels with the largest change (L2 over channels; of equals the first), in the box."""
    clipped = adv.clamp(low, high)
    change = clipped.double().sub_(x).square_()
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
    and where Newton's leaves the bracket, the bracket is halved, so that it always ends.
    """
    below, above = torch.zeros_like(size[:, 0]), size.amax(1)
    shrink = below
    done, none = torch.zeros_like(shrink, dtype=torch.bool), size.new_zeros(1, 1)
    for step in range(1, 300):
        kept = (size - shrink[:, None]).clamp_(none, room)
        excess = rows.total(kept) - eps
        sloping = ((kept > 0) & (kept < room)).sum(1)
        done |= (excess.abs() <= 1e-11 * eps) | ((excess <= 0) & (shrink == 0)) | excess.isnan()
        below, above = torch.where(excess > 0, shrink, below), torch.where(excess > 0, above, shrink)
        newton, middle = shrink + excess / sloping, (below + above) / 2
        usable = (newton > below) & (newton < above) & (step % 4 > 0)
        following = torch.where(usable, newton, middle)
        narrow = (following <= below) | (following >= above)  # no number lies between
        shrink = torch.where(done, shrink, torch.where(narrow, above, following))
        done |= narrow
        if bool(done.all()):
            break
    return shrink


def towards(x: Rows, delta: Rows) -> Rows:
    """The sum x + delta (float64) in the dtype of x, each entry rounded towards x, so that no change grows."""
    moved = (x.double() + delta).to(x.dtype)
    over = (moved.double() - x.double()).abs() > delta.abs()
    return torch.where(over, torch.nextafter(moved, x), moved)
