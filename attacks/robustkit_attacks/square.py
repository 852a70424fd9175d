"""Square, a random search that sees scores only. Andriushchenko, Croce, Flammarion, Hein 2020, arXiv:1912.00049.

Linf sets a window to ±eps. L2 (same paper) puts a bump into one window, paid for by the budget of a second window and
what is left over. L1 (the idea: Croce & Hein 2021, arXiv:2103.01208) is the same exchange with lengths in L1, but fills
a window pixel by pixel up to the end of the box, since an L1 budget does most on few pixels. Every sample has windows
and signs of its own, windows reach the last row and column, and images need not be square.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Draws, Goal, Images, Norm, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import devices, norms, rows
from robustkit_attacks import parts

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the window's area halves
_BLOCK = 64  # queries whose random numbers are drawn at once
_CHECK = 16  # queries between checkpoints, after the first few


class _State(NamedTuple):
    """What the search knows of each row; images are flat."""

    place: Tensor  # the row's position in the attack's batch
    x: Tensor
    adv: Tensor
    margin: Tensor
    refused: Tensor  # the margin at which the judge last refused the row
    spent: Tensor  # Σδ² (L2) or Σ|δ| (L1) of adv; not used in Linf


class _Choices(NamedTuple):
    """The random choices of a block of queries for each row: (batch, block), and signs (batch, block, channels).

    Corners are flat indices into one channel; the second window and the orientation serve L2 and L1 only.
    """

    first: Tensor
    second: Tensor
    upright: Tensor
    signs: Tensor


class _Write(NamedTuple):
    """New values for some entries of each row, and the old ones to put back if they are rejected."""

    at: Tensor
    old: Tensor
    new: Tensor


class _Proposal(NamedTuple):
    """The writes of one query in their order, and the budget spent if they are accepted."""

    writes: tuple[_Write, ...]
    spent: Tensor


class _Window(NamedTuple):
    """The windows of one side length: offsets of their entries in a flat image, from the middle outwards.

    With the bump for L2, in the same order, upright and turned: (side²), of length 1.
    """

    side: int
    offsets: Tensor  # (channels·side²)
    bump: Tensor
    turned: Tensor


@dataclass(frozen=True, slots=True)
class Square:
    """Random windows, each kept where it lowers the margin.

    Attributes:
        queries: how many windows to try, after the first guess.
        p: share of the image that the first windows cover; it is halved on a schedule made for 10000 queries.
        rescale: stretch that schedule over `queries` instead.
        restarts: how many searches, each with random choices of its own.
    """

    queries: int = 5000
    p: float = 0.8
    rescale: bool = False
    restarts: int = 1

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "score"

    def __post_init__(self) -> None:
        if self.queries < 1 or self.restarts < 1:
            raise UsageError(f"square needs queries ≥ 1 and restarts ≥ 1, not {self.queries} and {self.restarts}")
        if not 0 < self.p <= 1:
            raise UsageError(f"square's p is a share of the image, above 0 and at most 1, not {self.p}")

    def __call__(self, case: Case) -> Images:
        """The confirmed adversarial where there is one, else the image of the lowest margin."""
        found = case.x.clone()
        lowest = torch.full_like(case.x[:, 0, 0, 0], torch.inf)
        place = torch.arange(len(case.x), device=case.x.device)
        for restart in range(self.restarts):
            if len(place) == 0:
                break
            case, state = self._search(case, place, restart, found)
            place = state.place
            better = state.margin < lowest[place]
            adv = _kept(case, state.adv.view(case.x.shape))
            found[place] = rows.pick(better, adv, found[place])
            lowest[place] = torch.where(better, state.margin, lowest[place])
        return found

    def from_point(self, case: Case, start: Images, stream: int) -> tuple[Tensor, Images]:
        """One search from an image of each sample inside the ball: the rows that stay unconfirmed, and the images.

        `stream` tells the random choices of several searches apart.
        """
        found = start.clone()
        place = torch.arange(len(start), device=start.device)
        _, state = self._search(case, place, stream, found, start)
        found[state.place] = state.adv.view(-1, *start.shape[1:])
        return state.place, found

    def cost(self, classes: int) -> tuple[int, int]:
        """The first guess and the queries of every restart."""
        return (self.queries + 1) * self.restarts, 0

    def side(self, query: int, norm: Norm, height: int, width: int) -> int:
        """Side of the window at a query, counted from 1; a bump needs 3×3 to show its shape."""
        scheduled = query * 10000 // self.queries if self.rescale else query
        share = self.p / 2 ** sum(scheduled > after for after in _HALVED_AFTER)
        side = max(round(math.sqrt(share * height * width)), 1 if norm == "linf" else 3)
        return min(side, height, width)

    def _search(
        self, case: Case, place: Tensor, restart: int, found: Images, start: Images | None = None
    ) -> tuple[Case, _State]:
        """One search, from a fresh start by default; what the judge confirms is written into `found` and leaves."""
        norm, (height, width) = case.threat.norm, case.x.shape[2:]
        state = _started(case, place, restart) if start is None else _resumed(case, place, start)
        case, state, _ = _confirmed_leave(case, state, None, found)
        window = None
        for query in range(1, self.queries + 1):
            if len(state.place) == 0:
                break
            block, at = divmod(query - 1, _BLOCK)
            if at == 0:
                sides = [self.side(block * _BLOCK + i + 1, norm, height, width) for i in range(_BLOCK)]
                choices = _choices(case.draws.at(restart), block, sides, case.x)
            if window is None or window.side != sides[at]:
                window = _window(sides[at], norm, case.x)
            proposal = (_square if norm == "linf" else _exchange)(case.threat, state, window, choices, at)
            state = _tried(case, state, proposal)
            if query & (query - 1) == 0 or query % _CHECK == 0:
                case, state, kept = _confirmed_leave(case, state, choices, found)
                choices = kept or choices
        return case, state


def _started(case: Case, place: Tensor, restart: int) -> _State:
    """The first guess: vertical stripes of ±eps (Linf), or bumps of either sign side by side (L2, L1)."""
    threat, x = case.threat, rows.flat(case.x)
    _, channels, height, width = case.x.shape
    draws = case.draws.at(restart)
    if threat.norm == "linf":
        stripes = _signs(draws.uniform((channels, 1, width))) * threat.eps
        adv = rows.flat(threat.clip(case.x + stripes))
        spent = torch.zeros_like(x[:, 0], dtype=devices.widest(x.device))
    else:
        side = max(min(height, width) // 5, 1)
        down, across = (torch.arange(size, device=x.device) for size in (height, width))
        tiles = devices.wide(_signs(draws.uniform((channels, -(-height // side), -(-width // side)))))
        pattern = _bump_of(side, threat.norm, x.device)[down[:, None] % side, across % side]
        delta = rows.flat(tiles[:, :, down // side][..., across // side] * pattern)
        delta = delta * rows.spread(threat.eps / norms.length(delta, threat.norm), delta)
        adv = _moved(threat, x, delta)
        spent = _energy(devices.wide(adv) - devices.wide(x), threat.norm)
    margin = _margin(case, adv).nan_to_num(nan=torch.inf)
    return _State(place, x, adv, margin, torch.full_like(margin, torch.inf), spent)


def _resumed(case: Case, place: Tensor, start: Images) -> _State:
    """A search that goes on from an image inside the ball."""
    adv = rows.flat(start).clone()
    spent = torch.zeros_like(adv[:, 0], dtype=devices.widest(adv.device))
    if case.threat.norm != "linf":
        spent = _energy(devices.wide(adv) - devices.wide(rows.flat(case.x)), case.threat.norm)
    margin = _margin(case, adv).nan_to_num(nan=torch.inf)
    return _State(place, rows.flat(case.x), adv, margin, torch.full_like(margin, torch.inf), spent)


def _choices(draws: Draws, block: int, sides: list[int], x: Images) -> _Choices:
    """The choices of a block of queries."""
    _, channels, height, width = x.shape
    u = draws.uniform((_BLOCK, channels + 5), step=1 + block)
    side = torch.tensor(sides).to(x.device, non_blocking=True)

    def corner(row: Tensor, column: Tensor) -> Tensor:
        down, across = height + 1 - side, width + 1 - side
        # A number next to 1 may round up to the count itself.
        return (row * down).long().minimum(down - 1) * width + (column * across).long().minimum(across - 1)

    return _Choices(corner(u[..., 0], u[..., 1]), corner(u[..., 2], u[..., 3]), u[..., 4] < 0.5, _signs(u[..., 5:]))


def _window(side: int, norm: Norm, x: Images) -> _Window:
    """The windows of one side length in images like `x`."""
    _, channels, height, width = x.shape
    line = torch.arange(side, device=x.device)
    away = (line - side // 2).abs()
    outwards = torch.maximum(away[:, None], away).flatten().argsort(stable=True)
    offsets = (line[:, None] * width + line).flatten()[outwards]
    planes = torch.arange(channels, device=x.device) * (height * width)
    bump = _bump_of(side, norm, x.device)
    return _Window(side, (planes[:, None] + offsets).flatten(), bump.flatten()[outwards], bump.T.flatten()[outwards])


def _square(threat: ThreatModel, state: _State, window: _Window, choices: _Choices, at: int) -> _Proposal:
    """Every channel of the window goes to +eps or to −eps."""
    index = choices.first[:, at, None] + window.offsets
    step = choices.signs[:, at] * threat.eps
    x = state.x.gather(1, index).view(*step.shape, -1)
    new = (x + step[:, :, None]).clamp_(threat.low, threat.high)
    return _Proposal((_Write(index, state.adv.gather(1, index), new.view_as(index)),), state.spent)


def _exchange(threat: ThreatModel, state: _State, window: _Window, choices: _Choices, at: int) -> _Proposal:
    """The second window goes back to the original, and the first grows by what that frees and by what is unspent.

    Channels share what is unspent, and each has a sign of its own.
    """
    norm, (n, channels) = threat.norm, choices.signs[:, at].shape
    first, second = (corner[:, at, None] + window.offsets for corner in (choices.first, choices.second))
    x1, old1 = state.x.gather(1, first), state.adv.gather(1, first)
    state.adv.scatter_(1, first, x1)  # so that what the windows share is counted once
    x2, old2 = state.x.gather(1, second), state.adv.gather(1, second)

    wide1, wide2 = devices.wide(x1), devices.wide(x2)
    delta = (devices.wide(old1) - wide1).view(n * channels, -1)
    held = _energy(delta, norm)
    freed = held + _energy((devices.wide(old2) - wide2).view(n * channels, -1), norm)
    whole = threat.eps**2 if norm == "l2" else threat.eps
    unspent = (whole - state.spent).clamp_min(0) / channels
    length = _length(freed + unspent.repeat_interleave(channels), norm)

    signs = choices.signs[:, at].reshape(-1, 1)
    if norm == "l2":
        bump = torch.where(choices.upright[:, at, None], window.bump, window.turned).repeat_interleave(channels, 0)
        delta = _pointed(delta, held, bump * signs) * length[:, None]
    else:
        delta = _poured(threat, wide1.view_as(delta), signs, length)
    new = _moved(threat, x1, delta.view_as(x1))

    gained = _energy(devices.wide(new) - wide1, norm) - rows.total(freed.view(n, channels))
    return _Proposal((_Write(second, old2, x2), _Write(first, old1, new)), state.spent + gained)


def _pointed(delta: Tensor, held: Tensor, bump: Tensor) -> Tensor:
    """Of length 1: between the direction of `delta`, whose Σδ² is `held`, and that of the bump."""
    size = held.sqrt()
    mixed = bump + delta / torch.where(size > 0, size, 1)[:, None]
    size = norms.length(mixed, "l2")[:, None]
    cancelled = size < 1e-6
    return torch.where(cancelled, bump, mixed / size.masked_fill(cancelled, 1))


def _poured(threat: ThreatModel, x: Tensor, signs: Tensor, length: Tensor) -> Tensor:
    """As far as the length goes, one entry after the other moves to the end of the box."""
    room = torch.where(signs > 0, threat.high - x, x - threat.low)
    left = length[:, None] - (room.cumsum(1) - room)
    return signs * left.clamp_min(0).minimum(room)


def _tried(case: Case, state: _State, proposal: _Proposal) -> _State:
    """One query: what lowers a row's margin stays, the rest is put back. Changes `state.adv` in place."""
    for write in proposal.writes:
        state.adv.scatter_(1, write.at, write.new)
    margin = _margin(case, state.adv)
    better = margin < state.margin
    for write in proposal.writes:
        state.adv.scatter_(1, write.at, torch.where(better[:, None], write.new, write.old))
    return state._replace(
        margin=torch.where(better, margin, state.margin), spent=torch.where(better, proposal.spent, state.spent)
    )


def _confirmed_leave(
    case: Case, state: _State, choices: _Choices | None, found: Images
) -> tuple[Case, _State, _Choices | None]:
    """Submit the rows that look broken; what the judge confirms is written into `found` and leaves."""
    ready = (state.margin <= 0) & (state.margin < state.refused)
    at = rows.positions(ready)
    if not len(at):
        return case, state, choices
    some = case.select(at)
    adv = _kept(some, state.adv[at].view(some.x.shape))
    confirmed, place = some.submit(adv), state.place[at]
    found[place] = rows.pick(confirmed, adv, found[place])
    leaves = torch.zeros_like(ready).index_put((at,), confirmed)
    state = state._replace(refused=torch.where(ready, state.margin, state.refused))
    stays = rows.positions(~leaves)
    return case.select(stays), parts.select(state, stays), choices and parts.select(choices, stays)


def _kept(case: Case, adv: Images) -> Images:
    """The images; in float32 what was spent is only nearly known after many exchanges, and they are pressed back."""
    return adv if devices.has_float64(adv.device) else case.threat.project(case.x, adv)


def _margin(case: Case, adv: Tensor) -> Tensor:
    return rows.margin(case.oracle.outputs(adv.view_as(case.x)).logits, case.y, case.target)


def _moved(threat: ThreatModel, x: Tensor, delta: Tensor) -> Tensor:
    """The sum inside the box, rounded towards x so that no entry moves further than delta says."""
    return torch.nextafter((devices.wide(x) + delta).to(x.dtype).clamp_(threat.low, threat.high), x)


def _signs(u: Tensor) -> Tensor:
    """−1 or 1 for each uniform number."""
    return (u < 0.5).to(u.dtype) * 2 - 1


def _energy(delta: Tensor, norm: Norm) -> Tensor:
    """What a perturbation takes of the budget: Σδ² (L2) or Σ|δ| (L1) of each row. It adds up over windows."""
    return rows.total(delta * delta if norm == "l2" else delta.abs())


def _length(energy: Tensor, norm: Norm) -> Tensor:
    return energy.sqrt() if norm == "l2" else energy


def _bump_of(side: int, norm: Norm, device: torch.device) -> Tensor:
    """Of length 1, computed in float64 on the CPU and brought to the device in its widest type."""
    return _bump(side, norm).to(device, devices.widest(device), non_blocking=True)


def _bump(side: int, norm: Norm) -> Tensor:
    """Of length 1, in float64: two hills, the upper positive and the lower negative (L2), or one pixel (L1)."""
    if norm == "l1":
        bump = torch.zeros(side, side, dtype=torch.float64)
        bump[side // 2, side // 2] = 1
        return bump
    upper = side // 2
    both = torch.cat([_hill(upper, side), -_hill(side - upper, side)])
    return both / norms.length(both[None], norm)


def _hill(height: int, width: int) -> Tensor:
    """A pile of ever smaller, ever taller layers: entry (r, s) holds Σ_k 1/(n+1−k)² over the layers k that reach it."""
    n = max(height, width) // 2
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    layers = (1 / (n + 1 - torch.arange(n + 1, dtype=torch.float64)) ** 2).cumsum(0)
    return layers[n - torch.maximum(down[:, None], across)]
