"""A model with a backward pass through what blocks it: rounding, decisions, detached parts, written ones.

The forward pass is kept to the bit. Going back, what rounds or is detached counts as the identity, a sign as tanh 10v,
a comparison as a sigmoid of the difference, a decision as a softmax, and a Function that somebody wrote as the identity
(one that changes the shape cannot be gone around). Source: BPDA, Athalye, Carlini, Wagner 2018, arXiv:1802.00420,
section 4.1. Blind to what is computed outside torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustkit.api import Images, Logits
from robustkit.models import capabilities

_SAME = frozenset({"ceil", "clamp", "clip", "detach", "floor", "fake_quantize_per_tensor_affine", "round", "trunc"})
_COMPARED: Mapping[str, float] = {"gt": 1.0, "ge": 1.0, "lt": -1.0, "le": -1.0}
_CAST = frozenset({"double", "float", "half", "to", "type", "type_as"})
_SHARP = 10.0


class _Through(torch.autograd.Function):
    """The second argument, whose gradient goes to the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, hard: Tensor) -> Tensor:
        """The values of `hard`."""
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of `smooth`."""
        return grads[0], None


class Rewritten(nn.Module):
    """A model with a backward pass through what blocks it; `written` are the Functions to go around."""

    def __init__(self, model: nn.Module, written: Sequence[type] = ()) -> None:
        super().__init__()
        self.model, self.written = model, tuple(written)

    def forward(self, x: Images) -> Logits:
        """The model's own logits."""
        if not torch.is_grad_enabled():
            return capabilities.answer(self.model, x)
        with _around(self.written), _Smoothly():
            return capabilities.answer(self.model, x)


class _Smoothly(TorchFunctionMode):
    """Calls of torch with gradients recorded, whatever the model says, and with smooth parts behind the hard ones.

    `_soft` has, by the identity of a tensor of integers or truth values, the floats that stand behind it; the tensors
    are kept so that no other takes their identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self._soft: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        with torch.enable_grad():
            out = func(*args, **(kwargs or {}))
            if first is None or not isinstance(out, Tensor) or name.endswith("grad"):
                return out
            return self._smoothed(name, first, args, out)

    def _smoothed(self, name: str, first: Tensor, args: tuple[Any, ...], out: Tensor) -> Any:
        if first.requires_grad and first.is_floating_point():
            if name in _SAME and out.shape == first.shape:
                return _Through.apply(first, out.detach())
            if name == "sign":
                return _Through.apply((_SHARP * first).tanh(), out.detach())
            if name == "argmax" and first.dim() == 2 and out.dim() == 1:
                self._keep(out, first.softmax(1))
            if name in _COMPARED and len(args) > 1:
                self._keep(out, (_COMPARED[name] * _SHARP * (first - args[1])).sigmoid())
            return out
        soft = self._behind(first)
        if soft is None:
            return out
        if name == "one_hot" and out.shape == soft.shape:
            self._keep(out, soft)
        elif out.is_floating_point() and name in _CAST and out.shape == soft.shape:
            return _Through.apply(soft.to(out.dtype), out.detach())
        return out

    def _keep(self, hard: Tensor, soft: Tensor) -> None:
        self._soft[id(hard)] = hard, soft

    def _behind(self, hard: Tensor) -> Tensor | None:
        found = self._soft.get(id(hard))
        return None if found is None else found[1]


class _PassOn(torch.autograd.Function):
    """A backward pass as if the forward were the identity in the first argument that asks for a gradient."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, as it comes."""
        wanted = list(ctx.needs_input_grad)
        return tuple(grads[0] if place == wanted.index(True) else None for place in range(len(wanted)))


@contextmanager
def _around(written: Sequence[Any]) -> Iterator[None]:
    """Calls of these Functions get another backward pass: also those by an `apply` that somebody kept."""
    own = [kind._backward_cls for kind in written]
    for kind in written:
        kind._backward_cls = _PassOn._backward_cls
    try:
        yield
    finally:
        for kind, backward in zip(written, own, strict=True):
            kind._backward_cls = backward
