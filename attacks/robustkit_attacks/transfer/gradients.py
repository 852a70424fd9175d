"""How a gradient is taken near a point: at it, ahead of it, or over its neighbourhood.

A rule turns a field (the gradient as a function of the image) into the direction to accumulate at x. `calls` is how
often it asks the field. Defaults are the papers'; lengths are in units of eps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from robustkit.api import Draws, Images
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks.transfer.surrogates import Field


class Here(NamedTuple):
    """What a rule may know of the loop that asks it; lengths are those of one entry of the image."""

    momentum: Images
    decay: float
    step: float
    reach: float


class Rule(Protocol):
    """A gradient rule: frozen settings that can be called."""

    @property
    def calls(self) -> int:
        """Gradients it asks of the field."""

    def __call__(self, field: Field, x: Images, variance: Images, here: Here, draws: Draws) -> tuple[Images, Images]:
        """The direction at x, and the variance to hand in at the next step (only VMI has one)."""


@dataclass(frozen=True, slots=True)
class MI:
    """The gradient at the point itself. Dong et al. 2018, arXiv:1710.06081."""

    calls: ClassVar[int] = 1

    def __call__(self, field: Field, x: Images, variance: Images, here: Here, draws: Draws) -> tuple[Images, Images]:
        """One gradient."""
        return field(x, draws), variance


@dataclass(frozen=True, slots=True)
class NI:
    """The gradient where the momentum would lead. Lin et al. 2020, arXiv:1908.06281, section 3.1."""

    calls: ClassVar[int] = 1

    def __call__(self, field: Field, x: Images, variance: Images, here: Here, draws: Draws) -> tuple[Images, Images]:
        """One gradient, at x + step·decay·momentum."""
        return field(x + (here.step * here.decay) * here.momentum, draws), variance


@dataclass(frozen=True, slots=True)
class VMI:
    """The gradient plus the last step's difference from its neighbourhood. Wang & He 2021, arXiv:2103.15571.

    `samples` neighbours, uniform in ±`radius`·eps.
    """

    samples: int = 20
    radius: float = 1.5

    def __post_init__(self) -> None:
        _check(self, self.samples, self.radius)

    @property
    def calls(self) -> int:
        """One at the point, one a neighbour."""
        return 1 + self.samples

    def __call__(self, field: Field, x: Images, variance: Images, here: Here, draws: Draws) -> tuple[Images, Images]:
        """The tuned gradient, and its variance for the next step."""
        grad = field(x, draws)
        around = neighbourhood(field, x, self.samples, self.radius * here.reach, draws)
        return grad + variance, around - grad


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The mean gradient of the neighbourhood alone: what VMI-CWA takes of each member."""

    samples: int = 8
    radius: float = 1.5

    def __post_init__(self) -> None:
        _check(self, self.samples, self.radius)

    @property
    def calls(self) -> int:
        """One a neighbour."""
        return self.samples

    def __call__(self, field: Field, x: Images, variance: Images, here: Here, draws: Draws) -> tuple[Images, Images]:
        """The mean over the neighbours."""
        return neighbourhood(field, x, self.samples, self.radius * here.reach, draws), variance


@dataclass(frozen=True, slots=True)
class PGN:
    """A penalty on the gradient's norm, for flat maxima: `balance` of it. Ge et al. 2023, arXiv:2306.05225."""

    samples: int = 20
    radius: float = 3.0
    balance: float = 0.5

    def __post_init__(self) -> None:
        _check(self, self.samples, self.radius)
        if not 0 <= self.balance <= 1:
            raise UsageError(f"pgn: balance is a share, from 0 to 1, not {self.balance}")

    @property
    def calls(self) -> int:
        """Two a neighbour."""
        return 2 * self.samples

    def __call__(self, field: Field, x: Images, variance: Images, here: Here, draws: Draws) -> tuple[Images, Images]:
        """The mean over neighbours of the gradient there and the one a step down from there."""
        found = []
        for i in range(self.samples):
            own = draws.at(i)
            near = x + (self.radius * here.reach) * _cube(x, own)
            first = field(near, own.at(0))
            below = field(near - here.step * levelled(first), own.at(1))
            found.append((1 - self.balance) * first + self.balance * below)
        return rows.average(found), variance


def neighbourhood(field: Field, x: Images, samples: int, radius: float, draws: Draws) -> Images:
    """The mean gradient at `samples` points uniform in the cube of half-width `radius` around x."""
    return rows.average([field(x + radius * _cube(x, draws.at(i)), draws.at(i).at(0)) for i in range(samples)])


def levelled(grad: Images) -> Images:
    """Each sample's gradient divided by the mean size of its entries; a zero gradient stays zero."""
    return norms.unit(grad, "l1") * grad[0].numel()


def _cube(x: Images, draws: Draws) -> Images:
    """Uniform in [−1, 1]."""
    return 2 * draws.uniform(x.shape[1:]).to(x.dtype) - 1


def _check(rule: object, samples: int, radius: float) -> None:
    if samples < 1 or radius <= 0:
        raise UsageError(f"{type(rule).__name__.lower()}: samples and radius must be positive")


RULES: Mapping[str, type] = {"mi": MI, "ni": NI, "vmi": VMI, "neighbours": Neighbours, "pgn": PGN}
