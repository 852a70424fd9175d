"""What the engine tells while it works; the command line turns it into a live table."""

from collections.abc import Callable
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
    """Something the user should know before the attacks begin; what bears on the number is in its flags too."""

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


@dataclass(frozen=True, slots=True)
class Auditing:
    """An audit begins: on how many samples, and what its attacks take at most, as in `Predicted`."""

    n: int
    forwards: int
    backwards: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Checked:
    """A check of the audit is made."""

    name: str
    outcome: str
    text: str


class Guard:
    """Keeps what a caller's callback raises while an attack is at work apart from what the attack raises itself."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def watching(self, function: Callable[[], None]) -> Callable[[], None]:
        """The function, with what it raises remembered."""

        def watched() -> None:
            try:
                function()
            except Exception as error:
                self.failure = error
                raise

        return watched

    def raise_callers(self) -> None:
        """Raise again what the caller's callback raised."""
        if self.failure is not None:
            raise self.failure


Event = Started | Noted | Predicted | CleanDone | Progress | Auditing | Checked | Finished
