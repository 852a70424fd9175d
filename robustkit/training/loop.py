"""The one training loop: any recipe, any network; deterministic for a seed, a device and a number of threads.

What a batch depends on is keyed by (seed, epoch, its number), and what goes over from batch to batch is in
`Checkpoint`: so a training that was killed and continued ends in the same bytes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from robustkit.api import Images, Labels
from robustkit.errors import UsageError
from robustkit.events import BatchDone, EpochDone, TrainingEvent
from robustkit.numerics import devices, generators
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.training.adversarial import pgd, summed_cross_entropy, uniform_start
from robustkit.training.data import Held, batches
from robustkit.training.recipes import Recipe, Schedule, Task, Training, in_eval_mode

QUICK_STEPS = 10
_CHUNK = 500
Save = Callable[["Checkpoint"], None]


@dataclass(frozen=True, slots=True)
class Watch:
    """What is measured after each epoch: accuracy on `clean` test images, and under quick PGD on the first `robust`."""

    test: Held
    eps: float
    clean: int = 1000
    robust: int = 200


@dataclass
class Checkpoint:
    """All that a training carries from one batch to the next, besides its settings."""

    network: dict[str, Any]
    optimisers: list[dict[str, Any]]
    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """A training: what is learnt from which images, how fast, and who is told.

    `save` is called with a checkpoint after each epoch, and inside an epoch every `save_every` seconds.
    """

    recipe: Recipe
    task: Task
    data: Held
    schedule: Schedule
    watch: Watch
    seed: int = 0
    bf16: bool = False
    save: Save | None = None
    save_every: float = 60.0
    on_event: Callable[[TrainingEvent], None] = lambda event: None

    def train(self, start: Checkpoint | None = None) -> tuple[nn.Module, list[dict[str, float]]]:
        """The trained classifier in eval mode and its curves, a row an epoch; goes on from `start` if there is one.

        The global generators are left as they were.

        Raises:
            UsageError: if a loss is not finite.
        """
        device = self.data.x.device
        with repeatable(device), generators.kept(device):
            torch.manual_seed(self.seed)
            network = self.recipe.build(self.task).to(device)
            optimisers = [optimiser(part, self.schedule) for part in self.recipe.parts(network)]
            training, now = Training(network, optimisers), start or Checkpoint({}, [])
            if start:
                network.load_state_dict(start.network)
                for each, state in zip(optimisers, start.optimisers, strict=True):
                    each.load_state_dict(state)
            for epoch in range(now.epoch, self.schedule.epochs):
                began = time.monotonic()
                self._batches(training, now)
                self._measure(training, now, began)
                now.epoch, now.batch, now.sums = epoch + 1, 0, {}
                self._keep(training, now)
            return self.recipe.result(network).eval(), now.curves

    def _batches(self, training: Training, now: Checkpoint) -> None:
        """The batches of the epoch that `now` is in, from where it is."""
        data, schedule, device = self.data, self.schedule, self.data.x.device
        count = -(-len(data) // schedule.batch)
        wide = devices.widest(device)
        sums = {name: torch.tensor(value, dtype=wide, device=device) for name, value in now.sums.items()}
        kept = told = time.monotonic()
        for batch in batches(data, schedule, self.seed, now.epoch, now.batch):
            for each in training.optimisers:
                for group in each.param_groups:
                    group["lr"] = rate(schedule, (now.epoch + batch.number / count) / schedule.epochs)
            training.network.train()
            # For networks with dropout: the contract lets no recipe draw from the global generator.
            torch.manual_seed(key_of("training batch", self.seed, now.epoch, batch.number)[0])
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
                losses = self.recipe.step(training, batch)
            for name, value in losses.items():
                added = value.detach().to(wide) * len(batch.y)
                sums[name] = sums[name] + added if name in sums else added
            now.batch, at = batch.number + 1, time.monotonic()
            if at - told > 1:  # reading a number waits for the device
                told = at
                seen = min(now.batch * schedule.batch, len(data))
                self.on_event(BatchDone(now.epoch + 1, now.batch / count, float(sums["loss"]) / seen))
            if at - kept > self.save_every and now.batch < count:
                now.sums, kept = {name: float(value) for name, value in sums.items()}, at
                self._keep(training, now)
        now.sums = {name: float(value) for name, value in sums.items()}

    def _measure(self, training: Training, now: Checkpoint, began: float) -> None:
        """The epoch's row of the curves."""
        result = self.recipe.result(training.network)
        with in_eval_mode(result):
            clean, robust = watched(result, self.watch, self.seed)
        losses = {name: value / len(self.data) for name, value in now.sums.items()}
        if not all(map(math.isfinite, losses.values())):
            raise UsageError(
                f"the loss is {losses.get('loss')} in epoch {now.epoch + 1}: training has diverged; take a lower rate"
            )
        at = rate(self.schedule, now.epoch / self.schedule.epochs)
        now.curves.append({"epoch": now.epoch + 1, "rate": at, **losses, "clean": clean, "robust": robust})
        self.on_event(EpochDone(now.epoch + 1, at, losses, clean, robust, time.monotonic() - began))

    def _keep(self, training: Training, now: Checkpoint) -> None:
        if self.save:
            now.network = training.network.state_dict()
            now.optimisers = [each.state_dict() for each in training.optimisers]
            self.save(now)


def optimiser(part: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """The optimiser of a part's parameters that take gradients."""
    parameters = [p for p in part.parameters() if p.requires_grad]
    if schedule.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=schedule.rate, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(parameters, lr=schedule.rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay)


def rate(schedule: Schedule, done: float) -> float:
    """The learning rate after this share of the training."""
    if schedule.shape == "cosine":
        return schedule.rate * (1 + math.cos(math.pi * done)) / 2
    if schedule.shape == "steps":
        return schedule.rate * 0.1 ** sum(done >= share for share in schedule.milestones)
    if schedule.shape == "triangle":
        return schedule.rate * min(max(done, 1e-3) / 0.4, (1 - done) / 0.6)
    return schedule.rate


def watched(network: nn.Module, watch: Watch, seed: int) -> tuple[float, float]:
    """Clean accuracy, and accuracy under quick PGD (10 steps of eps/4 from a random start): for progress only."""
    test, n, m = watch.test, min(watch.clean, len(watch.test)), min(watch.robust, len(watch.test))
    rows = torch.arange(n, device=test.x.device)
    clean = accuracy(network, test.images(rows), test.y[rows])
    rows = rows[:m]
    draws, x, y = SampleDraws(key_of("training quick", seed), rows), test.images(rows), test.y[rows]
    adv = pgd(
        network, x, eps=watch.eps, steps=QUICK_STEPS, step_size=watch.eps / 4, loss=summed_cross_entropy(y),
        start=uniform_start(x, watch.eps, draws),
    )  # fmt: skip
    return clean, accuracy(network, adv, y)


@torch.no_grad()
def accuracy(network: nn.Module, x: Images, y: Labels) -> float:
    """The share of images that the network classifies as `y`."""
    answers = [network(x[start : start + _CHUNK]).argmax(1) for start in range(0, len(x), _CHUNK)]
    return int((torch.cat(answers) == y).sum()) / len(y)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, CUDA's convolutions are chosen the same in every run; the settings are restored after."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    before: Mapping[str, bool] = {name: getattr(cudnn, name) for name in ("deterministic", "benchmark")}
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(cudnn, name, value)
