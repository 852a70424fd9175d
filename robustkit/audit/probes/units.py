"""Zero derivatives, by unit: is a whole layer of activations where its slope is exactly zero?

Dead units are honest, a layer of them or a clipped output is not: what reaches the image then is next to nothing.

Cost: one forward of 32 images. Tells from 32 images. Rule: an activation of whose units a share `still` or more has the
derivative zero, on significantly more than a share `stuck` of the images, is suspect.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustkit.audit import rules
from robustkit.audit.probes.asking import Look, held
from robustkit.audit.rules import Limits
from robustkit.numerics import devices
from robustkit.records.findings import Check

NAME = "zero-units"
IMAGES, ENOUGH = 32, 32
_ACTIVATIONS = frozenset({
    "celu", "clamp", "clip", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu",
    "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh",
})  # fmt: skip


class Units(NamedTuple):
    """The activation that stands still on most images, its place among all, and on how many of n it does."""

    n: int
    name: str
    place: int
    still: int


class _Slopes(TorchFunctionMode):
    """The share of units, of each activation and image, whose derivative is exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        fed = args[0] if args and isinstance(args[0], Tensor) else None
        if name not in _ACTIVATIONS or fed is None or not fed.is_floating_point() or fed.dim() < 2:
            return func(*args, **(kwargs or {}))
        at = fed.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            value = func(at * 1, *args[1:], **(kwargs or {}))
            if isinstance(value, Tensor) and value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), at)
                self.seen.append((name, devices.wide(slope.eq(0).flatten(1)).mean(1)))
        return func(*args, **(kwargs or {}))


def measure(look: Look, limits: Limits) -> Units:
    """The activation that stands still on most images."""
    look = look.first(min(IMAGES, look.network.tile))
    n = len(look.x)
    slopes = _Slopes()
    try:
        with torch.no_grad(), slopes:
            held(look.network).logits(look.x)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # compiled code and TorchScript may refuse to be watched
        return Units(n, "", 0, 0)
    counts = [(int((share[:n] >= limits.still).sum()), name) for name, share in slopes.seen if len(share) >= n]
    most, name = max(counts, default=(0, ""))
    return Units(n, name, 1 + counts.index((most, name)) if counts else 0, most)


def judge(seen: Units, limits: Limits) -> Check:
    """The check."""
    if not seen.name:
        return rules.skipped(NAME, "no activation of torch's can be watched in it")
    text = (
        f"of {seen.name} (activation {seen.place}) at least {rules.percent(limits.still)} of the units have a zero "
        f"derivative on {seen.still} of {seen.n} images, of no other on more"
    )
    bad = rules.exceeds(seen.still, seen.n, limits.stuck)
    if seen.n < ENOUGH and not bad:
        return rules.skipped(NAME, f"{text}: {seen.n} are too few to tell, {ENOUGH} would do")
    return rules.judged(NAME, bad, text, "next to nothing passes it", seen.still / seen.n, limits.stuck)
