"""The contract of recipes, training-time defenses: what one batch does to a network. The loop owns the rest.

A recipe is a frozen dataclass of settings with four methods (`Recipe`). The loop (`robustkit.training`) owns epochs,
the order of the images, rates, evaluation, checkpoints and events, and can be killed at any moment: so **everything
that a recipe carries from one batch to the next must stand in the module that `build` makes** (its state dict is
checkpointed, with the optimisers), and every random number must come from the batch's draws.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from robustkit.api import Draws, Images, Labels, ModelCard
from robustkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: `rate` is the peak rate, which falls as `shape` says.

    `cosine` falls to zero; `steps` multiplies by 0.1 after each share of the training in `milestones`; `triangle` rises
    over the first 2/5 and falls to zero; `constant` stays. `augment`: `crop-flip` shifts each image by up to an eighth
    of its side (zeros come in) and mirrors half of them; `crop` only shifts.

    Raises:
        UsageError: for numbers that make no sense.
    """

    epochs: int = 30
    batch: int = 128
    optimiser: Literal["adamw", "sgd"] = "adamw"
    rate: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    shape: Literal["cosine", "steps", "triangle", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    augment: Literal["none", "crop", "crop-flip"] = "none"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.rate < float("inf"):
            raise UsageError(f"rate must be a positive number such as 0.002, not {self.rate!r}")
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < float("inf"):
            raise UsageError(
                f"momentum={self.momentum!r} must be from 0 to 1, weight_decay={self.weight_decay!r} 0 or more"
            )
        if any(not 0 < share < 1 for share in self.milestones):
            raise UsageError(f"milestones {self.milestones} are shares of the training, such as 0.5+0.75")


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learnt. `load` loads a model spec (a teacher …): the network in eval mode, its card.

    `filled`: what `build` makes is about to get saved weights, so that it needs no others (`start`).
    """

    classes: int
    image: tuple[int, int, int]
    architecture: Callable[[], nn.Module]
    load: Callable[[str], tuple[nn.Module, ModelCard]]
    filled: bool = False

    def start(self, spec: str = "") -> nn.Module:
        """The architecture: with the weights of a trained model of it, or new.

        Raises:
            UsageError: if the model has other weights than the architecture.
        """
        network = self.architecture()
        if spec and not self.filled:
            try:
                network.load_state_dict(self.load(spec)[0].state_dict())
            except RuntimeError as error:
                raise UsageError(
                    f"{spec} is no model of the architecture that is trained here; give one that --arch made"
                ) from error
        return network


@dataclass(frozen=True, slots=True)
class Batch:
    """Some training images, augmented, on the device of the training.

    Attributes:
        x: the images, float32 in [0,1].
        y: their labels.
        rows: their indices in the dataset.
        epoch: from 0.
        number: of the batch in its epoch, from 0.
        draws: random numbers of (seed, epoch, image).
        epoch_draws: random numbers of (seed, epoch), one row: the same for all batches of an epoch.
        other: `other(k)` is another batch of the same size, from the k-th further order of the same images (k from 1),
            independent of the first and of one another.
    """

    x: Images
    y: Labels
    rows: Int[Tensor, " batch"]
    epoch: int
    number: int
    draws: Draws
    epoch_draws: Draws
    other: Callable[[int], "Batch"]


@dataclass(frozen=True, slots=True)
class Training:
    """A training under way: the module that `build` made, in train mode, and an optimiser for each of its `parts`."""

    network: Any
    optimisers: Sequence[torch.optim.Optimizer] = field(default=())

    def update(self, loss: Tensor, part: int = 0) -> None:
        """One step of a part's optimiser down the gradient of a loss (one number)."""
        optimiser = self.optimisers[part]
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(loss.device.type, enabled=False):  # autocast is for forward passes
            loss.float().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        torch.clear_autocast_cache()  # which holds the old weights cast: a further forward pass is of the new ones


@runtime_checkable
class Recipe(Protocol):
    """A training-time defense: a frozen dataclass of settings. What it needs is made in `build`, not kept in itself.

    `plain` says that what `result` gives is the architecture itself, so that the trained model loads without the
    recipe. Otherwise it is loaded as `result(build(task))`, filled with the saved weights.

    `attacked_eps`: the linf radius that training defends against, 0 for none; the quick robust accuracy uses it.
    """

    plain: ClassVar[bool]

    @property
    def attacked_eps(self) -> float:
        """The linf radius that it trains against; 0 if it names none."""

    def build(self, task: Task) -> nn.Module:
        """All that is trained or carried from batch to batch, at its start; the global generator is seeded.

        Raises:
            UsageError: if the recipe cannot learn this task (a teacher of other classes, a layer that is not there).
        """

    def parts(self, network: Any) -> Sequence[nn.Module]:
        """What is trained: each part has an optimiser of its own. One network alone: `[network]`."""

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """Train on one batch, with `training.update`; returns numbers to report (means), `loss` among them.

        The whole network is in train mode at each call; what must not be (a teacher) the recipe puts in eval mode.
        """

    def result(self, network: Any) -> nn.Module:
        """The classifier that is evaluated and saved; called after each epoch. It may share what is still trained."""


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Any:
    """Inside, the network is in eval mode (BatchNorm uses and keeps its running statistics); after, as it was."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class OneNetwork:
    """What recipes share that train the architecture itself, as one part. No state."""

    __slots__ = ()
    plain: ClassVar[bool] = True

    def build(self, task: Task) -> nn.Module:
        """The architecture."""
        return task.architecture()

    def parts(self, network: nn.Module) -> Sequence[nn.Module]:
        """The network."""
        return [network]

    def result(self, network: nn.Module) -> nn.Module:
        """The network."""
        return network
