"""What a model's outputs may be: one row of finite logits, or of declared probabilities, for each image.

What is nearly that (the logits in a tuple, with axes of length one, one score for two classes) is refused with what to
do: which part is meant, or whether a score is a probability, is the user's to say.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.api import Labels
from robustkit.errors import UsageError
from robustkit.numerics import devices

Outputs = str  # "logits" or "probs"
_MOST_PARTS = 3


def check_outputs(raw: Any, y: Labels, classes: int | None, outputs: Outputs) -> int:
    """The number of classes, after the checks that come before any attack.

    Args:
        raw: what the model returned for the first images.
        y: their labels.
        classes: what the dataset says, or None.
        outputs: "logits" or "probs".

    Raises:
        UsageError: if it is no N×K finite logits (or probabilities, if declared) that fit the labels.
    """
    raw = check_form(raw, y.shape[0]).float()
    k: int = raw.shape[1]
    if not torch.isfinite(raw).all():
        raise UsageError(f"the model's outputs on the clean images are not finite: {_not_finite(raw)}")
    if classes is not None and classes != k:
        advice = "choose ones that fit"
        if k == classes + 1:
            advice += "; if its first class is a background (TensorFlow's 1,001 for ImageNet), return model(x)[:, 1:]"
        raise UsageError(f"the model has {k} outputs but the dataset has {classes} classes; {advice}")
    check_labels(y, k)
    hard = bool(((raw == 0) | (raw == 1)).all())
    distribution = bool((raw >= 0).all() and (raw <= 1).all()) and sum_to_one(raw)
    if distribution and not hard and outputs == "logits":
        raise UsageError(
            "the model's outputs are probabilities (each row sums to 1), which hides gradients; return logits, or "
            "say so with outputs='probs' (--outputs probs)"
        )
    if outputs == "probs" and not distribution:
        raise UsageError("outputs='probs' was said, but the model's rows are not in [0,1] or do not sum to 1")
    return k


def check_form(raw: Any, n: int) -> Tensor:
    """What a model returned for n images, if it is a tensor (n, at least 2 classes), whatever its values.

    Raises:
        UsageError: if it is not, with what to do.
    """
    if isinstance(raw, Tensor) and raw.shape == (n, 1):
        raise UsageError(f"the model has one output; a classifier needs at least 2: {_two_of(raw)}")
    if not isinstance(raw, Tensor) or raw.dim() != 2 or raw.shape[0] != n or not raw.numel():
        given = f"shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else type(raw).__name__
        raise UsageError(f"the model must return logits of shape ({n}, classes); it returned {given}{_advice(raw, n)}")
    return raw


def _two_of(scores: Tensor) -> str:
    """How to make two outputs of one; of a probability p, −p and p would always decide for the second class."""
    if bool(((scores >= 0) & (scores <= 1)).all()):
        return (
            "it lies in [0,1], so if it is a probability p (a sigmoid), return torch.cat([1 - p, p], 1) and say "
            "outputs='probs' (--outputs probs); if it is a logit z, torch.cat([-z, z], 1)"
        )
    return "return torch.cat([-z, z], 1) of the logit z"


def _advice(raw: Any, n: int) -> str:
    if isinstance(raw, np.ndarray):
        return "; return a tensor"
    if not isinstance(raw, Tensor):
        found = [f"model(x){part}" for part, value in _parts(raw) if isinstance(value, Tensor) and value.dim() == 2]
        return f"; give it in a module whose forward returns {' or '.join(found[:_MOST_PARTS])} alone" if found else ""
    if raw.shape == (n,) and raw.is_floating_point():
        return f", one output of each image; take it as a column ([:, None]) and {_two_of(raw)}"
    if raw.shape == (n,):
        return ", decisions; return the logits that they are made of"
    if raw.dim() > 2 and raw.shape[0] == n and raw.shape[1] == raw[0].numel():
        return "; return it without its axes of length 1: .flatten(1)"
    return ""


def _parts(raw: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a tuple, a mapping, a dataclass …, each with how to get it."""
    if isinstance(raw, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in raw.items())
    elif isinstance(raw, tuple | list):
        yield from ((f"[{place}]", value) for place, value in enumerate(raw))
    else:
        yield from ((f".{name}", value) for name, value in getattr(raw, "__dict__", {}).items())


def sum_to_one(outputs: Tensor) -> bool:
    """Whether each row sums to 1 but for rounding: a softmax in bfloat16 may miss it by 0.004.

    The type is told by the values, which may have been cast since.
    """
    room = 1e-3
    for coarse in (torch.float16, torch.bfloat16):
        if torch.equal(outputs.to(coarse).to(outputs.dtype), outputs):
            room = max(room, torch.finfo(coarse).eps)
    return bool(((devices.wide(outputs).sum(1) - 1).abs() <= room).all())


def _not_finite(raw: Tensor) -> str:
    masked = raw == -torch.inf
    if bool((masked | raw.isfinite()).all()) and not bool(masked.all(1).any()):
        which = int(masked.any(0).nonzero()[0, 0])
        return f"class {which} has logits of −inf; to mask classes out, use a large finite number such as −1e9"
    return "NaN or inf; check its weights"


def check_labels(y: Labels, k: int) -> None:
    """Refuse labels that the model has no output for.

    Raises:
        UsageError: if there are any.
    """
    if int(y.max()) >= k:
        raise UsageError(f"labels go up to {int(y.max())} but the model has {k} outputs (classes 0 to {k - 1})")
