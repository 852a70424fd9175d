"""Counter-based random numbers keyed by (seed, attack, sample): Philox4x32-10 in torch integer arithmetic.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. No generator state
exists, so the numbers of a sample depend neither on its batch nor on what was drawn before.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.numerics import devices

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four 32-bit words (as int64 tensors) for each counter of four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    product = _product if devices.has_long_products(c0.device) else _product_by_halves
    for _ in range(10):
        (high0, low0), (high1, low1) = (product(c, m) for c, m in zip((c0, c2), _MULTIPLIERS, strict=True))
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of two 32-bit words."""
    # It fits 64 bits as a bit pattern, so the signed wrap-around is harmless.
    whole = word * factor
    return (whole >> 32) & _MASK, whole & _MASK


def _product_by_halves(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The same from products of 16-bit halves."""
    (high, low), (above, below) = (word >> 16, word & 0xFFFF), divmod(factor, 1 << 16)
    least = low * below
    middle = high * below + (least >> 16)
    other = low * above + (middle & 0xFFFF)
    return high * above + (middle >> 16) + (other >> 16), ((other & 0xFFFF) << 16) | (least & 0xFFFF)


def key_of(*parts: object) -> tuple[int, int]:
    """The Philox key of some values, by their text."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


@dataclass(frozen=True, slots=True)
class SampleDraws:
    """The draws of some samples: `key` stands for (seed, attack), `indices` are the samples' dataset indices."""

    key: tuple[int, int]
    indices: Tensor
    stream: int = 0

    def select(self, rows: Tensor) -> "SampleDraws":
        """The draws of some of the samples (a mask or indices)."""
        return SampleDraws(self.key, self.indices[rows], self.stream)

    def at(self, stream: int) -> "SampleDraws":
        """An independent stream for the same samples; streams of a stream are independent too."""
        return SampleDraws(self.key, self.indices, key_of(self.stream, stream)[0])

    def uniform(self, shape: Sequence[int], *, step: int = 0) -> Tensor:
        """float32 in (0,1), shape (batch, *shape): 23 random bits, centred, so neither end is hit."""
        words = self._words(math.prod(shape), step)
        return self._shaped((words >> 9).to(torch.float32).add_(0.5).mul_(2.0**-23), shape)

    def normal(self, shape: Sequence[int], *, step: int = 0) -> Tensor:
        """Standard normal float32, shape (batch, *shape), by Box–Muller in the device's widest type."""
        n = math.prod(shape)
        words = self._words(2 * n, step).to(devices.widest(self.indices.device))
        u = (words + 0.5) * 2.0**-32
        values = (-2 * u[:, :n].log()).sqrt() * (2 * math.pi * u[:, n:]).cos()
        return self._shaped(values.to(torch.float32), shape)

    def _words(self, n: int, step: int) -> Tensor:
        blocks = torch.arange((n + 3) // 4, dtype=torch.int64, device=self.indices.device)
        size = (self.indices.shape[0], blocks.shape[0])
        counter = [
            blocks[None, :].expand(size),
            torch.full((1, 1), step & _MASK, dtype=torch.int64, device=blocks.device).expand(size),
            (self.indices[:, None] & _MASK).expand(size),
            torch.full((1, 1), self.stream & _MASK, dtype=torch.int64, device=blocks.device).expand(size),
        ]
        return torch.stack(philox(counter, self.key), 2).flatten(1)[:, :n]

    def _shaped(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        return values.reshape(self.indices.shape[0], *shape).contiguous()
