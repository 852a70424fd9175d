"""A part that stands for the whole: which images a smaller number of them are, where the data lie class by class."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.api import Dataset, Labels
from robustkit.numerics.streams import SampleDraws, key_of

SEED = 0  # of the draw: its own, so that runs with different seeds look at the same images


def known_labels(dataset: Dataset) -> Labels | None:
    """The labels of all images, where a dataset offers them (`labels`) so that no image has to be read."""
    found: Any = getattr(dataset, "labels", None)
    try:
        labels = torch.as_tensor(np.asarray(found))
    except (TypeError, ValueError, RuntimeError):  # a method, text, labels of several lengths: not ours to read
        return None
    fits = labels.shape == (len(dataset),) and not (labels.is_floating_point() or labels.is_complex())
    return labels.long() if fits and len(labels) else None


def by_class(labels: Labels) -> bool:
    """Whether images lie class by class: their class changes less than half as often as it would in random order."""
    n = len(labels)
    counts = np.unique(labels.numpy(), return_counts=True)[1].astype(float)
    expected = n - float((counts * counts).sum()) / n
    return int((labels[1:] != labels[:-1]).sum()) < expected / 2


def balanced(labels: Labels, n: int) -> list[int]:
    """The places of n images, as many of each class as of any other that has so many; a larger n begins with them.

    A draw says which image of a class is its first, its second and so on; all first ones come before all second ones,
    in an order that is drawn too, so that also fewer images than classes are a fair sample of the classes.
    """
    draws = SampleDraws(key_of("subset", SEED), torch.arange(len(labels))).uniform((2,)).double()
    order = draws[:, 0].argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, and within one by the draw
    starts = _starts(labels[order])
    turn = torch.empty(len(labels), dtype=torch.int64)
    turn[order] = torch.arange(len(labels)) - starts
    return [int(i) for i in (turn + draws[:, 1]).argsort(stable=True)[:n]]


def _starts(labels: Tensor) -> Tensor:
    """Of sorted labels, where the class of each begins."""
    new = torch.ones(len(labels), dtype=torch.bool)
    new[1:] = labels[1:] != labels[:-1]
    return torch.where(new, torch.arange(len(labels)), 0).cummax(0).values
