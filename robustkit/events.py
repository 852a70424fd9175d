"""What measurements and trainings tell while they work, as plain data; the command line turns it into a display."""

from collections.abc import Callable, Mapping
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
    """What the attacks take at most, if no sample breaks: passes of single samples, and seconds.

    `least` is what they take if every sample breaks at the first attack's first step; 0 where that is not said.
    """

    forwards: int
    backwards: int
    seconds: float
    least: float = 0.0


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
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Checked:
    """A check of the audit is made."""

    name: str
    outcome: str
    text: str


class Guard:
    """Keeps what a caller's callback raises while an attack is at work apart from what the attack raises itself."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None

    def watching(self, function: Callable[[], None]) -> Callable[[], None]:
        """The function, with what it raises remembered."""

        def watched() -> None:
            try:
                function()
            except BaseException as error:  # an exit too is the caller's
                self.failure = error
                raise

        return watched

    def raise_callers(self) -> None:
        """Raise again what the caller's callback raised."""
        if self.failure is not None:
            raise self.failure


@dataclass(frozen=True, slots=True)
class Making:
    """A transfer run makes adversarials: the share of the run's work that is done, and the row's passes so far."""

    surrogates: str
    attack: str
    fraction: float
    passes: int


@dataclass(frozen=True, slots=True)
class Judging:
    """A model is shown the adversarials of a row of a transfer run, or the clean images (both names empty)."""

    surrogates: str
    attack: str
    victim: str


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """A training is ready: what is trained, for how many epochs, and the epochs that were done before."""

    title: str
    epochs: int
    done: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A batch of a training is done: the epoch (from 1), the share of it, and the mean loss of the epoch so far."""

    epoch: int
    share: float
    loss: float


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch of a training is done (counted from 1).

    Attributes:
        losses: what the recipe reports, as means over the epoch's images, `loss` among them.
        clean: accuracy on test images that were not trained on; of how many, the training's settings say.
        robust: accuracy on the first of them under a few steps of PGD: progress, not a robust accuracy to report.
        seconds: that the epoch took, its evaluation included (of a continued one the part since then).
    """

    epoch: int
    rate: float
    losses: Mapping[str, float]
    clean: float
    robust: float
    seconds: float


Event = Started | Noted | Predicted | CleanDone | Progress | Auditing | Checked | Finished
TransferEvent = Started | Making | Judging | Finished
TrainingEvent = TrainingStarted | BatchDone | EpochDone
