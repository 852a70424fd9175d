"""What a transfer run tells while it works; the command line turns it into a live line."""

from dataclasses import dataclass

from robustkit.events import Finished as Finished


@dataclass(frozen=True, slots=True)
class Started:
    """The run is planned: what it is called, how many samples, and whether some of it is there already."""

    title: str
    n: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Making:
    """Adversarials are being made: the share of the whole run's work that is done, and the row's passes so far."""

    surrogates: str
    attack: str
    fraction: float
    passes: int


@dataclass(frozen=True, slots=True)
class Judging:
    """A model is shown the adversarials of a row, or the clean images (both names empty)."""

    surrogates: str
    attack: str
    victim: str


Event = Started | Making | Judging | Finished
