"""What a training tells while it works; the command line turns it into progress."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """The training is ready: what is trained, for how many epochs, and the epochs that were done before."""

    title: str
    epochs: int
    done: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A batch is done: the epoch (from 1) and the share of it, and the mean loss of the epoch so far."""

    epoch: int
    share: float
    loss: float


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch is done (counted from 1).

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


Event = Started | Progress | EpochDone
