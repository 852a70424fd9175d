"""The Bayer mosaic: which colour each place of a sensor sees, packed as four half-size planes, and filled in again.

Rows and columns count from 0. Red is at (even, even), blue at (odd, odd), green at the other two. A packed image holds
the planes in the order of the released code of arXiv:2112.09219: blue, green of the red rows, red, green of the blue
rows. Packed as networks see it, (batch, 4, height, width) for a mosaic of (batch, 1, 2·height, 2·width).

Demosaicing is linear: five 5×5 filters over the mosaic, and a table of which one gives which colour where. `bilinear`
averages the nearest sites of a colour; `malvar` corrects it by the curvature of the colour that was measured (Malvar,
He, Cutler 2004, "High-quality linear interpolation for demosaicing of Bayer-patterned color images"). Borders are
mirrored about the outermost row or column, which keeps the pattern.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.api import Images
from robustkit.errors import UsageError

Demosaic = Literal["bilinear", "malvar"]

_PLACES = ((1, 1), (0, 1), (0, 0), (1, 0))  # row and column in the 2×2 quad of each packed plane: B, G, R, G
_SEES = (2, 1, 0, 1)  # the colour of each plane, of R, G, B

_SELF, _CROSS, _ROW, _COLUMN, _DIAGONAL = range(5)
# For each place of the quad, row by row, the filter that gives red, green and blue there.
_FILTER_AT = (
    (_SELF, _CROSS, _DIAGONAL), (_ROW, _SELF, _COLUMN),
    (_COLUMN, _SELF, _ROW), (_DIAGONAL, _CROSS, _SELF),
)  # fmt: skip

_KEEP = ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0))
_BILINEAR = (
    ((0, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 1, 0, 1, 0), (0, 0, 1, 0, 0), (0, 0, 0, 0, 0)),  # over 4
    ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 2, 0, 2, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
    ((0, 0, 0, 0, 0), (0, 1, 0, 1, 0), (0, 0, 0, 0, 0), (0, 1, 0, 1, 0), (0, 0, 0, 0, 0)),
)
_MALVAR = (
    ((0, 0, -2, 0, 0), (0, 0, 4, 0, 0), (-2, 4, 8, 4, -2), (0, 0, 4, 0, 0), (0, 0, -2, 0, 0)),  # over 16
    ((0, 0, 1, 0, 0), (0, -2, 0, -2, 0), (-2, 8, 10, 8, -2), (0, -2, 0, -2, 0), (0, 0, 1, 0, 0)),
    ((0, 0, -3, 0, 0), (0, 4, 0, 4, 0), (-3, 0, 12, 0, -3), (0, 4, 0, 4, 0), (0, 0, -3, 0, 0)),
)


def _filters(cross: object, row: object, diagonal: object, over: int) -> Tensor:
    """The five filters, (5, 1, 5, 5); the one of columns is that of rows, transposed."""
    found = [torch.tensor(of, dtype=torch.float64) / over for of in (cross, row, row, diagonal)]
    found[2] = found[2].T
    return torch.stack([torch.tensor(_KEEP, dtype=torch.float64), *found]).unsqueeze(1)


_FILTERS: Mapping[str, Tensor] = {"bilinear": _filters(*_BILINEAR, 4), "malvar": _filters(*_MALVAR, 16)}


def mosaic(rgb: Images) -> Tensor:
    """What a sensor behind a Bayer filter sees of an image, packed: (batch, 3, 2h, 2w) to (batch, 4, h, w).

    Raises:
        UsageError: for other than 3 channels, or an odd height or width.
    """
    if rgb.shape[1] != 3:
        raise UsageError(f"a Bayer mosaic is made of images of 3 channels, not {rgb.shape[1]}")
    _check_even(rgb)
    return torch.stack([rgb[:, c, i::2, j::2] for c, (i, j) in zip(_SEES, _PLACES, strict=True)], 1)


def pack(raw: Tensor) -> Tensor:
    """A mosaic (batch, 1, 2h, 2w) as its four planes (batch, 4, h, w).

    Raises:
        UsageError: for other than 1 channel, or an odd height or width.
    """
    if raw.shape[1] != 1:
        raise UsageError(f"a Bayer mosaic has 1 channel, not {raw.shape[1]}")
    _check_even(raw)
    return torch.stack([raw[:, 0, i::2, j::2] for i, j in _PLACES], 1)


def unpack(packed: Tensor) -> Tensor:
    """The mosaic (batch, 1, 2h, 2w) of four planes (batch, 4, h, w)."""
    order = [_PLACES.index(place) for place in ((0, 0), (0, 1), (1, 0), (1, 1))]
    return F.pixel_shuffle(packed[:, order], 2)


def demosaic(packed: Tensor, by: Demosaic) -> Images:
    """The image (batch, 3, 2h, 2w) of a packed mosaic (batch, 4, h, w)."""
    raw = _mirrored(_mirrored(unpack(packed), 2), 3)
    every = F.pixel_unshuffle(F.conv2d(raw, _FILTERS[by].to(raw)), 2)  # (batch, 5 filters · 4 places, h, w)
    wanted = [4 * _FILTER_AT[place][colour] + place for colour in range(3) for place in range(4)]
    return F.pixel_shuffle(every[:, wanted], 2)


def _mirrored(x: Tensor, dim: int) -> Tensor:
    """Two rows or columns more at each end; torch's own padding is not deterministic backwards on CUDA."""
    n = x.shape[dim]
    return torch.cat([x.narrow(dim, i, 1) for i in (2, 1)] + [x] + [x.narrow(dim, n - i, 1) for i in (2, 3)], dim)


def _check_even(x: Tensor) -> None:
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise UsageError(f"a Bayer mosaic has an even height and width, not {x.shape[2]}×{x.shape[3]}")
