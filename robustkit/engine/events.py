"""What the engine tells while it works; the command line turns it into a live table."""

from dataclasses import dataclass

from robustkit.stats import Proportion


@dataclass(frozen=True, slots=True)
class Started:
    """The run is planned: what it is called, how many samples, which attacks."""

    title: str
    n: int
    attacks: tuple[str, ...]
    resumed: bool


@dataclass(frozen=True, slots=True)
class Noted:
    """Something the user should know before the attacks begin; it stands in the record's flags too."""

    message: str


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the attacks take at most, if no sample breaks: passes of single samples, and seconds."""

    forwards: int
    backwards: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CleanDone:
    """All clean passes are done (of the shards so far)."""

    clean: Proportion


@dataclass(frozen=True, slots=True)
class Progress:
    """An attack is at work: the fraction of it that is done, and what it did, over the shards so far."""

    attack: str
    fraction: float
    broken: int
    robust_accuracy: Proportion
    queries: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The record is complete."""

    folder: str | None


Event = Started | Noted | Predicted | CleanDone | Progress | Finished
