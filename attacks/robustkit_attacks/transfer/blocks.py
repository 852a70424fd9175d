"""Transforms that move parts of an image: each output pixel says where it comes from, for each sample its own.

Places are index maps of shape (batch, height, width). They are computed from draws and carry no gradient; the pixels
they fetch do.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Draws, Images, ThreatModel
from robustkit.numerics import devices, rows


class _Cuts(NamedTuple):
    """One axis of each sample cut into parts, seen from each place of it: (batch, …, size)."""

    part: Tensor
    start: Tensor
    length: Tensor


def shifted(x: Images, uniform: Tensor) -> Images:
    """Each image rolled around by a random offset and flipped by chance; `uniform` is (batch, 4)."""
    maps = []
    for dim, move, turn in ((2, 0, 1), (3, 2, 3)):
        size = x.shape[dim]
        place = torch.arange(size, device=x.device)[None]
        place = (place + (uniform[:, move, None] * size).long()) % size
        maps.append(torch.where(uniform[:, turn, None] < 0.5, size - 1 - place, place))
    return _fetched(x, maps[0][:, :, None], maps[1][:, None, :])


def structure_kept(x: Images, blocks: int, noise: float, threat: ThreatModel, draws: Draws) -> Images:
    """SIA: each block is rolled down or across, flipped, turned by 180°, scaled by U(0,1), or noised within ±noise."""
    height, width = x.shape[2:]
    numbers = draws.uniform((2 * blocks**2 + height - 1 + width - 1,))
    each = numbers[:, : 2 * blocks**2].reshape(-1, blocks, blocks, 2)
    rank = numbers[:, 2 * blocks**2 :]
    down, across = _at_random(rank[:, : height - 1], blocks), _at_random(rank[:, height - 1 :], blocks)
    # Of each pixel's block: what is done to it, and the number that goes with it.
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    kind, amount = each[batch, down.part[:, :, None], across.part[:, None, :]].unbind(3)
    kind = (7 * kind).long()
    places = []
    for cuts, axis, rolled, flipped in ((down, 1, 0, 2), (across, 2, 1, 3)):
        start, length = cuts.start.unsqueeze(3 - axis), cuts.length.unsqueeze(3 - axis)
        local = torch.arange(x.shape[axis + 1], device=x.device).unsqueeze(2 - axis) - start
        roll = (local - (amount * length).long()) % length
        local = torch.where(kind == rolled, roll, local)
        local = torch.where((kind == flipped) | (kind == 4), length - 1 - local, local)
        places.append(start + local)
    moved = _fetched(x, *places)
    kind, amount = kind[:, None], amount[:, None].to(x.dtype)
    noisy = threat.clip(moved + noise * (2 * draws.uniform(x.shape[1:], step=1).to(x.dtype) - 1))
    return torch.where(kind == 5, amount * moved, torch.where(kind == 6, noisy, moved))


def shuffled(x: Images, blocks: int, angle: float, draws: Draws) -> Images:
    """BSR: strips along a random axis shuffled and turned, then within each the strips along the other axis."""
    numbers = draws.uniform((1 + blocks + blocks**2, 3))
    one = _strips_of_strips(x, blocks, angle, numbers[:, 1:])
    other = _strips_of_strips(x.transpose(2, 3), blocks, angle, numbers[:, 1:]).transpose(2, 3)
    return rows.pick(numbers[:, 0, 0] < 0.5, one, other)


def _strips_of_strips(x: Images, blocks: int, angle: float, uniform: Tensor) -> Images:
    """Rows first, then the columns of each strip of rows. `uniform` (batch, blocks + blocks², 3): size, order, turn."""
    n, _, height, width = x.shape
    of_rows, of_columns = uniform[:, :blocks], uniform[:, blocks:].reshape(-1, blocks, blocks, 3)
    place_y = torch.arange(height, device=x.device)[None, :, None]
    place_x = torch.arange(width, device=x.device)[None, None, :]
    # Strips of rows: where each row of the result comes from.
    sizes = _shares(height, of_rows[..., 0])
    order = of_rows[..., 1].argsort(dim=1, stable=True)
    strip = _cut(sizes.gather(1, order), height)
    source = (sizes.cumsum(1) - sizes).gather(1, order).gather(1, strip.part)
    turn = _angles(of_rows[..., 2], angle).gather(1, strip.part)
    x = _turned(
        x, turn[:, :, None], (place_y - strip.start[:, :, None], place_x.expand(n, height, width)),
        (source[:, :, None], torch.zeros_like(place_x)), (strip.length[:, :, None], torch.full_like(place_x, width)),
    )  # fmt: skip
    # Within each strip of rows, strips of columns: the same, with cuts of each strip's own.
    wide = _shares(width, of_columns[..., 0])
    order = of_columns[..., 1].argsort(dim=2, stable=True)
    column = _cut(wide.gather(2, order), width)
    source = (wide.cumsum(2) - wide).gather(2, order).gather(2, column.part)
    turns = _angles(of_columns[..., 2], angle).gather(2, column.part)
    row = strip.part[:, :, None].expand(n, height, width)
    start, length, source, turn = (a.gather(1, row) for a in (column.start, column.length, source, turns))
    return _turned(
        x, turn, ((place_y - strip.start[:, :, None]).expand(n, height, width), place_x - start),
        (strip.start[:, :, None], source), (strip.length[:, :, None], length),
    )  # fmt: skip


def _turned(
    x: Images, turn: Tensor, local: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor], size: tuple[Tensor, Tensor]
) -> Images:
    """Parts fetched from `source` and turned about their centre, bilinear, zero beyond the part they come from."""
    middle = [(length - 1) / 2 for length in size]
    y, across = local[0] - middle[0], local[1] - middle[1]
    cos, sin = turn.cos(), turn.sin()
    places = (cos * y - sin * across + middle[0], sin * y + cos * across + middle[1])
    corner = [place.floor() for place in places]
    share = [place - low for place, low in zip(places, corner, strict=True)]
    found = torch.zeros_like(x)
    for dy in (0, 1):
        for dx in (0, 1):
            at = (corner[0].long() + dy, corner[1].long() + dx)
            inside = (at[0] >= 0) & (at[0] < size[0]) & (at[1] >= 0) & (at[1] < size[1])
            weight = (share[0] if dy else 1 - share[0]) * (share[1] if dx else 1 - share[1])
            rows_of = (source[0] + at[0]).clamp(0, x.shape[2] - 1)
            columns_of = (source[1] + at[1]).clamp(0, x.shape[3] - 1)
            found = found + _fetched(x, rows_of, columns_of) * (weight * inside).to(x.dtype)[:, None]
    return found


def _angles(uniform: Tensor, angle: float) -> Tensor:
    """Radians uniform in ±angle degrees, in float64 where there is: rounding then hides how a cosine was computed."""
    return (2 * devices.wide(uniform) - 1) * (angle * math.pi / 180)


def _fetched(x: Images, down: Tensor, across: Tensor) -> Images:
    """The pixels at the given rows and columns, which broadcast to (batch, height, width)."""
    n, channels, height, width = x.shape
    index = (down * width + across).expand(n, height, width).reshape(n, 1, -1).expand(n, channels, -1)
    return x.flatten(2).gather(2, index).view(n, channels, height, width)


def _shares(size: int, uniform: Tensor) -> Tensor:
    """Random whole lengths (batch, …, parts) that sum to `size`."""
    sums = devices.wide(uniform).cumsum(-1)
    ends = (sums / sums[..., -1:] * size).round().long()
    return ends.diff(dim=-1, prepend=torch.zeros_like(ends[..., :1]))


def _cut(lengths: Tensor, size: int) -> _Cuts:
    """Parts of these lengths in their order, seen from each of `size` places."""
    ends = lengths.cumsum(-1)
    place = torch.arange(size, device=lengths.device)
    part = (place[:, None] >= ends[..., None, :]).sum(-1)
    return _Cuts(part, (ends - lengths).gather(-1, part), lengths.gather(-1, part))


def _at_random(rank: Tensor, parts: int) -> _Cuts:
    """One axis cut at the places of lowest rank (batch, size − 1); into fewer parts where there is less room."""
    size = rank.shape[1] + 1
    parts = min(parts, size)
    cuts = rank.argsort(dim=1, stable=True)[:, : parts - 1].sort(dim=1).values + 1
    ends = torch.cat([cuts, cuts.new_full((len(cuts), 1), size)], 1)
    return _cut(ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1])), size)
