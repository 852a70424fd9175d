"""Intervals and the exact paired test, without torch or scipy."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share k of n ≥ 1 with its 95 % Wilson interval; `float(p)` is the share.

    Source: Wilson 1927; Brown, Cai, DasGupta 2001 recommend it for binomial shares near 0 and 1.
    """

    k: int
    n: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n or self.n == 0:
            raise ValueError(f"no share of {self.k} in {self.n}")

    def __float__(self) -> float:
        return self.k / self.n

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return 0.0 if self.k == 0 else self._wilson(-1)

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return 1.0 if self.k == self.n else self._wilson(+1)

    def _wilson(self, sign: int) -> float:
        return _wilson(self.k / self.n, self.n, self.confidence, sign)

    def to_json(self) -> dict[str, Any]:
        """`value`, `low`, `high` as fractions, and `n`."""
        return {"value": float(self), "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        return f"{100 * float(self):.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def _wilson(p: float, n: int, confidence: float, sign: int) -> float:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(1.0, max(0.0, (centre + sign * spread) / (1 + z * z / n)))


def at_least(k: int, n: int, chance: float) -> float:
    """Probability of at least k successes in n tries, each with this chance, which is neither 0 nor 1."""
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(chance)
        + (n - i) * math.log1p(-chance)
        for i in range(k, n + 1)
    )
    return min(1.0, sum(map(math.exp, logs)))


@dataclass(frozen=True, slots=True)
class MeanShare:
    """The mean of a share of the same n samples over several draws, and its standard deviation from draw to draw.

    The 95 % interval is Wilson's for n samples: what varies between samples is at most what it is for a yes or no, so
    it is not too narrow. It does not shrink with the draws.
    """

    value: float
    std: float
    draws: int
    n: int
    confidence: float = 0.95

    @classmethod
    def of(cls, shares: Sequence[float], n: int) -> "MeanShare":
        """From the share of each draw."""
        return cls(statistics.fmean(shares), statistics.stdev(shares) if len(shares) > 1 else 0.0, len(shares), n)

    def __float__(self) -> float:
        return self.value

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return _wilson(self.value, self.n, self.confidence, -1)

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return _wilson(self.value, self.n, self.confidence, +1)

    def to_json(self) -> dict[str, Any]:
        """`value`, `std`, `low`, `high` as fractions; `draws` and `n`."""
        return {
            "value": self.value, "std": self.std, "low": self.low, "high": self.high, "draws": self.draws, "n": self.n,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} ± {100 * self.std:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def mcnemar_p(worse: int, better: int) -> float:
    """Exact one-sided p of McNemar's paired test: the chance of at least `worse` of the flips by a fair coin.

    Args:
        worse: samples that were right before and are wrong now.
        better: samples that were wrong before and are right now.
    """
    flips = worse + better
    ways, term = 0, math.comb(flips, worse)
    for k in range(worse, flips + 1):
        ways += term
        term = term * (flips - k) // (k + 1)
    return float(Fraction(ways, 2**flips))


def difference_interval(worse: int, better: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the paired difference (better − worse)/n, by Agresti & Min 2005 (half a pair added to each cell)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    b, c, m = better + 0.5, worse + 0.5, n + 2
    centre = (b - c) / m
    spread = z * math.sqrt((b + c) - (b - c) ** 2 / m) / m
    return max(-1.0, centre - spread), min(1.0, centre + spread)
