"""The shortest way from a point of the box onto a hyperplane without leaving the box, in Linf, L2 and L1.

Minimise ‖d‖ subject to ⟨w, d⟩ = gap and low ≤ p + d ≤ high. Every entry can only move in the direction that helps, by
at most its room to the box, and moving entry i by m gains |w_i|·m. In Linf all entries move by min(t, room), in L2
by min(t·|w_i|, room), for the least t that gains |gap|. The gain is concave and piecewise linear in t, so Newton's
method climbs to t from below and stops there. In L1 the steepest entries move first, as far as they can.
"""

import torch
from torch import Tensor

from robustkit.api import Images, Norm, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import devices, norms, rows

# A Newton step on a concave gain at least quarters (what is missing × the slope), so float32 needs fewer than this.
ROUNDS = 100
# Sums in another order agree to this share; and so many steps end in the right piece, begun that near below it.
SURE, POLISH = 1e-3, 12


def shortest(p: Tensor, w: Tensor, gap: Tensor, norm: Norm, *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The shortest d, a row a point, with ⟨w, d⟩ = gap and p + d in the box; entries with w = 0 stay.

    Where the box misses the hyperplane, every entry goes as far as it can. Where w is zero, or w or gap is not finite,
    nothing moves.

    Raises:
        UsageError: for a norm other than linf, l2 and l1.
    """
    if norm not in ("linf", "l2", "l1"):
        raise UsageError(f"no projection onto hyperplanes for {norm}; there are: linf, l2, l1")
    points, slopes = rows.flat(p), rows.flat(w)
    steepest = rows.peak(slopes.abs())
    sound = (steepest > 0) & torch.isfinite(steepest) & torch.isfinite(gap)
    need = torch.where(sound, gap / steepest, 0.0)
    # The slopes towards the hyperplane, at most 1; by division, since 1 / steepest may overflow.
    toward = rows.pick(sound, slopes / rows.spread(steepest, slopes), torch.zeros_like(slopes))
    toward.mul_(rows.spread(need.sign(), toward))
    # Numbers for masks: choosing between entries at random by `where` is ten times slower on a CPU.
    upward = torch.gt(toward, 0, out=torch.empty_like(toward))
    room = upward.mul_(high - low).add_(low).sub_(points).abs_()
    steep, need = toward.abs(), need.abs()
    move = _greedy(need, steep, room) if norm == "l1" else _level(need, steep, room, norm)
    return move.mul_(toward.sign_()).view_as(p)


def beyond(
    threat: ThreatModel, x: Images, clean: Images, f: Tensor, grad: Images, *, alpha_max: float, eta: float
) -> Images:
    """FAB's step: a little beyond the hyperplane f = 0 (`grad` its normal), from `x` and from the original image.

    The two ends are mixed in proportion to how far each is from the hyperplane, the original's share at most
    `alpha_max`; each way is `eta` times as long as it needs to be. Croce & Hein 2020, arXiv:1907.02044, section 2.
    """
    gaps = torch.cat([-f, rows.dot(grad, x - clean) - f])
    points = torch.cat([x, clean])
    moves = shortest(points, torch.cat([grad, grad]), gaps, threat.norm, low=threat.low, high=threat.high)
    sizes = norms.length(moves, threat.norm).clamp_min(1e-8)
    here, origin = (points + eta * moves).chunk(2)
    size_here, size_origin = sizes.chunk(2)
    α = rows.spread((size_here / (size_here + size_origin)).clamp(max=alpha_max), here)
    return threat.clip((1 - α) * here + α * origin)


def _level(need: Tensor, steep: Tensor, room: Tensor, norm: Norm) -> Tensor:
    """Moves min(t·speed, room) for the least t that gains `need`, or room where nothing does.

    `t` never decreases and depends on its own row only, so a row that has arrived stays as it is while others climb.
    Where to ask whether all have is to wait for a device, `t` begins in its piece, and climbs a fixed number of times.
    """
    if norm == "linf":
        gain, ends = steep, room  # the t at which an entry has no room left
    else:
        gain, ends = steep * steep, room / steep
    worth = steep * room
    asks = devices.is_host(need.device)
    t = torch.zeros_like(need) if asks else _below(need, ends, worth, gain)
    mask = torch.empty_like(steep)
    for _ in range(ROUNDS if asks else POLISH):
        missing = need - rows.total(torch.le(ends, rows.spread(t, ends), out=mask) * worth)
        slope = rows.total(torch.gt(ends, rows.spread(t, ends), out=mask) * gain)
        higher = (missing / slope).clamp(max=torch.finfo(t.dtype).max)
        climbed = torch.where((slope > 0) & (higher > t), higher, t)
        if asks and torch.equal(climbed, t):
            break
        t = climbed
    reach = rows.spread(t, room)
    return torch.minimum(reach if norm == "linf" else reach * steep, room)


def _below(need: Tensor, ends: Tensor, worth: Tensor, gain: Tensor) -> Tensor:
    """The end of the last linear piece of the gain that is surely too low: by sorting, so that nothing is asked."""
    order = ends.sort(dim=1)
    # All that has no room left at an end is worth its whole, the rest gains in proportion.
    full = worth.gather(1, order.indices).cumsum(1)
    rising = gain.gather(1, order.indices).flip(1).cumsum(1).flip(1)
    gained = full + (rising - gain.gather(1, order.indices)) * order.values
    low = (gained < rows.spread(need, gained) * (1 - SURE)) & gained.isfinite()
    last = low.sum(1, keepdim=True) - 1
    found = order.values.gather(1, last.clamp_min(0))[:, 0]
    return torch.where(last[:, 0] >= 0, found, torch.zeros_like(found))


def _greedy(need: Tensor, steep: Tensor, room: Tensor) -> Tensor:
    """Moves of full room for the steepest entries, the last one by what is still missing."""
    order = steep.argsort(dim=1, descending=True, stable=True)
    steep, room = steep.gather(1, order), room.gather(1, order)
    worth = devices.wide(steep * room)
    # One row alone may be summed in another order than among others; two rows never are.
    before = worth.expand(max(2, len(worth)), -1).cumsum(1)[: len(worth)] - worth
    missing = (rows.spread(need.to(before.dtype), before) - before).clamp_min(0)
    last = (missing / steep.clamp_min(torch.finfo(steep.dtype).tiny)).to(room.dtype)
    return torch.zeros_like(room).scatter_(1, order, torch.minimum(last, room))
