"""A tensor without its class: a subclass may answer comparisons, shapes and arithmetic as it likes."""

from typing import Any

import torch
from torch import Tensor


def bare(found: Any) -> Any:
    """A tensor's values in a plain tensor of its own, without a graph; what is no tensor is given back."""
    if not issubclass(type(found), Tensor):  # its type, for a class may lie about __class__ too
        return found
    with torch._C.DisableTorchFunctionSubclass():
        shape, dtype = tuple(Tensor.size(found)), Tensor.dtype.__get__(found)  # type: ignore[attr-defined]
        copy = torch.empty(shape, dtype=dtype, device=Tensor.device.__get__(found))
        with torch.no_grad():
            return copy.copy_(found)
