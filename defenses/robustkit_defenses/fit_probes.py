"""Fitting layer probes on a backbone that stays as it is.

Fort & Lakshminarayanan 2024, arXiv:2408.05446: each probe by itself, one epoch of Adam at 3.3e-5, batches of 64,
cross-entropy. Their notebook leaves the backbone in training mode meanwhile, where its running statistics drift; here
it stays in eval mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Dataset, Labels
from robustkit.errors import UsageError
from robustkit.numerics import generators
from robustkit_defenses.layers import flattened, layers_named, outputs_of
from robustkit_defenses.probes import Probe, Probed


@dataclass(frozen=True, slots=True)
class Fit:
    """How probes are fitted. `pool`: a layer's output is averaged to so many cells a side first; 0 takes it as it is.

    The defaults are the paper's; a few thousand images or pooled outputs want more epochs and a higher rate.
    """

    pool: int = 0
    epochs: int = 1
    rate: float = 3.3e-5
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pool < 0 or self.epochs < 1 or self.rate <= 0 or self.batch < 2:
            raise UsageError("fit_probes: pool is at least 0, epochs at least 1, rate positive, batch at least 2")


class ProbeDone(NamedTuple):
    """One probe is fitted: on which layer, its accuracy on the images that it was fitted on, and how many are done."""

    layer: str
    accuracy: float
    done: int
    total: int


def fit_probes(
    backbone: nn.Module,
    data: Dataset,
    layers: Sequence[str],
    fit: Fit | None = None,
    *,
    on_event: Callable[[ProbeDone], None] | None = None,
) -> Probed:
    """A probe on each of some layers, fitted on labelled images; the same for the same seed and number of threads.

    The layers' outputs are computed once and held in memory: (pooled) values × images × 4 bytes. A randomised backbone
    is seen once with each image.

    Args:
        backbone: takes [0,1] images; in eval mode, and not changed.
        data: what to fit on.
        layers: names of its layers, or ends of names where only one layer has it; in any order.
        fit: how; by default as in the paper.
        on_event: told of each probe that is done.

    Raises:
        UsageError: for a layer that is not there, a backbone in training mode, or fewer than 2 images.
    """
    how = fit or Fit()
    layers_named(backbone, layers or [""])
    if any(part.training for part in backbone.modules()):
        raise UsageError("fit_probes: the backbone is in training mode, where its answers are others; call eval()")
    if len(data) < 2:
        raise UsageError(f"fit_probes: {len(data)} images are too few")
    values, y, classes = _seen(backbone, data, layers, how)
    probes: dict[str, Probe] = {}
    for layer in values:
        probes[layer], accuracy = _fitted(values[layer], y, classes, how)
        if on_event is not None:
            on_event(ProbeDone(layer, accuracy, len(probes), len(layers)))
    return Probed(backbone, list(probes), list(probes.values())).eval()


def _seen(backbone: nn.Module, data: Dataset, layers: Sequence[str], how: Fit) -> tuple[dict[str, Tensor], Labels, int]:
    """The layers' values for all images, in the order in which a pass comes by them; the labels; the classes."""
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    parts: dict[str, list[Tensor]] = {}
    labels, classes = [], 0
    for start in range(0, len(data), how.batch):
        x, y = data.batch(range(start, min(len(data), start + how.batch)))
        with torch.no_grad(), generators.seeded((how.seed + start) % 2**32, device):
            outputs, logits = outputs_of(backbone, layers, x.to(device))
        for layer, output in outputs.items():
            parts.setdefault(layer, []).append(flattened(output, how.pool))
        labels.append(y.to(device))
        classes = logits.shape[1]
    return {layer: torch.cat(found) for layer, found in parts.items()}, torch.cat(labels), classes


def _fitted(values: Tensor, y: Labels, classes: int, how: Fit) -> tuple[Probe, float]:
    """A probe for these values (n, features), and its accuracy on them."""
    with generators.seeded(how.seed % 2**32, values.device):
        probe = Probe(values.shape[1], classes, how.pool).to(values.device).train()
    generator = torch.Generator().manual_seed(how.seed)
    optimiser = torch.optim.Adam(probe.parameters(), lr=how.rate)
    for _ in range(how.epochs):
        for some in torch.split(torch.randperm(len(y), generator=generator), how.batch):
            if len(some) < 2:  # no BatchNorm of one image
                continue
            loss = F.cross_entropy(probe(values[some]), y[some])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    probe.eval().requires_grad_(False)
    with torch.no_grad():
        return probe, float((probe(values).argmax(1) == y).double().mean())
