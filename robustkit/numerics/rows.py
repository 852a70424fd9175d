"""Maths on one row per sample, written so that a row's result never depends on the other rows.

Attacks and the judge share it. A reduction over one single row may be split over threads and then rounds
differently from the same row among others; `total` and its users avoid that, which is what makes a record
independent of how samples were packed into batches.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustkit.numerics import devices

Rows = Float[Tensor, "batch *rest"]
Scalars = Float[Tensor, " batch"]


def spread(values: Tensor, like: Tensor) -> Tensor:
    """View one value a sample, shape (batch), so that it broadcasts against `like`, shape (batch, …)."""
    return values.view(-1, *([1] * (like.dim() - 1)))


def flat(x: Tensor) -> Tensor:
    """View images (batch, …) as contiguous rows (batch, D)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def total(x: Rows) -> Scalars:
    """Sum of each sample's entries."""
    rows = flat(x)
    if rows.shape[0] == 1:
        return rows.expand(2, -1).contiguous().sum(1)[:1]
    return rows.contiguous().sum(1)


def added(values: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, one after another: a reduction over a stack may round an entry by its place."""
    return sum(values[1:], values[0])


def average(values: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape, added one after another."""
    return added(values) / len(values)


def dot(a: Rows, b: Rows) -> Scalars:
    """Inner product of each sample's entries."""
    return total(a * b)


def peak(x: Rows) -> Scalars:
    """Largest entry of each sample."""
    return flat(x).amax(1)


def largest(x: Float[Tensor, "batch entries"], k: Int[Tensor, " batch"]) -> Scalars:
    """The k-th largest entry of each row, k from 1 and each row's own."""
    # How far to sort is the largest k, which elsewhere would have to be waited for.
    ordered = x.topk(int(k.amax()), dim=1) if devices.is_host(x.device) else x.sort(dim=1, descending=True)
    return ordered.values.gather(1, k[:, None] - 1)[:, 0]


def positions(mask: Bool[Tensor, " batch"]) -> Int[Tensor, " true"]:
    """Where a mask is true. On a device other than the CPU this waits for all that was begun: ask at checkpoints."""
    return mask.nonzero()[:, 0]


def share(mask: Bool[Tensor, " batch"]) -> float:
    """The share of a mask that is true; NaN of an empty one."""
    return float(mask.cpu().double().mean())


def pixels_changed(delta: Rows) -> Scalars:
    """Number of pixels in which a perturbation (batch, channels, height, width) is not zero."""
    changed = delta.ne(0).any(1) if delta.dim() == 4 else delta.ne(0)
    return total(changed.to(delta.dtype))


def pick(rows: Bool[Tensor, " batch"], chosen: Tensor, other: Tensor) -> Tensor:
    """`chosen` where `rows` is true, else `other`, a sample at a time."""
    return torch.where(spread(rows, chosen), chosen, other)


def masked_max(logits: Tensor, label: Tensor) -> Tensor:
    """Largest logit of each row (…, batch, classes) other than the label's, by −inf masking."""
    hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, label.unsqueeze(-1), True)
    return logits.masked_fill(hidden, -math.inf).amax(-1)


def margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """How far each row is from broken: below zero when the goal is reached.

    Untargeted: z_y − max of the others. Targeted: max of the others − z_target.
    """
    if target is None:
        return logits.gather(-1, y.unsqueeze(-1)).squeeze(-1) - masked_max(logits, y)
    return masked_max(logits, target) - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def reached(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Whether each row's decision is what the attack wants: not y, or exactly the target."""
    decision = logits.argmax(-1)
    return decision != y if target is None else decision == target
