"""Intervals and paired tests, without torch or scipy."""

import bisect
import math
import statistics
from collections.abc import Iterable, Sequence
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


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of what lies in [0,1], never of zero width, also where all values are alike.

    The normal interval after two values of 0 and two of 1 were added. Of yes and no it is Agresti and Coull's (1998),
    who recommend four; of shares it is as much narrower as they vary less.
    """
    padded = [*values, 0.0, 0.0, 1.0, 1.0]
    centre = statistics.fmean(padded)
    spread = NormalDist().inv_cdf(0.5 + confidence / 2) * statistics.pstdev(padded, centre) / math.sqrt(len(padded))
    return max(0.0, centre - spread), min(1.0, centre + spread)


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


def drop_p(worse: int, better: int, n: int, allowed: float = 0.0) -> float:
    """One-sided p of a paired drop: how likely at least this much is if the true drop is no more than `allowed`.

    Tango's score statistic, corrected by one sample, with which it is exceeded by chance at most as often as it says
    at any n, allowance and share of flips. Without an allowance it is McNemar's test with Edwards' correction. Source:
    Tango 1998.

    Args:
        worse: samples that were right before and are wrong now.
        better: samples that were wrong before and are right now.
        n: all samples, those that did not flip too.
        allowed: the drop of the share of right samples that is tolerated, in [0, 1).
    """
    b = allowed * (2 * n - worse + better) - (worse + better)
    root = math.sqrt(b * b + 8 * n * better * allowed * (1 - allowed))
    variance = n * (2 * max(0.0, (root - b) / (4 * n)) + allowed - allowed * allowed)
    if variance <= 0:  # no flip, and none is allowed
        return 1.0
    return _tail((worse - better - n * allowed - 1) / math.sqrt(variance))


def least_drop(worse: int, better: int, n: int, confidence: float = 0.95) -> float:
    """The one-sided lower bound of the true drop: the largest allowance that `drop_p` refutes; 0 if it refutes none."""
    low, high = 0.0, 1.0
    if drop_p(worse, better, n) >= 1 - confidence:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if drop_p(worse, better, n, middle) < 1 - confidence else (low, middle)
    return low


def fewest_worse(better: int, n: int, allowed: float = 0.0, alpha: float = 0.05) -> int | None:
    """How many must get worse, beside so many `better`, for `drop_p` to be below `alpha`; None if n is too small."""
    most = n - better
    found = bisect.bisect_left(range(most + 1), True, key=lambda worse: drop_p(worse, better, n, allowed) < alpha)
    return found if found <= most else None


def _tail(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


def difference_interval(worse: int, better: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the paired difference (better − worse)/n: Wilson's of the two shares of flips, put together.

    It covers also where n is small and all flips go one way. Source: MOVER (Zou, Donner 2008), with the correlation of
    two shares of one multinomial.
    """
    up, down = better / n, worse / n
    (up_low, up_high), (down_low, down_high) = (
        [_wilson(p, n, confidence, sign) for sign in (-1, +1)] for p in (up, down)
    )
    inner = (1 - up) * (1 - down)
    apart = 2 * math.sqrt(up * down / inner) if inner else 0.0  # minus twice the correlation, which is never above zero
    below, above = up - up_low, up_high - up
    worst, best = down - down_low, down_high - down
    low = math.sqrt(below**2 + best**2 + apart * below * best)
    high = math.sqrt(above**2 + worst**2 + apart * above * worst)
    return max(-1.0, up - down - low), min(1.0, up - down + high)
