"""A network's inner layers by their names, and what they give in a pass."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from robustkit import spec
from robustkit.api import Images
from robustkit.errors import UsageError

_LISTED = 80  # layer names in an error


class _EnoughError(Exception):
    """Ends a pass whose rest is not wanted."""


def outputs_of(
    backbone: nn.Module, layers: Sequence[str], x: Images, *, whole: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """What some layers give in one pass, in its order, and the backbone's logits.

    Unless `whole` the pass ends at the last of the layers, and there are no logits.

    Raises:
        UsageError: if the pass does not come by a layer, or more than once, or it gives no tensor.
    """
    found: dict[str, Tensor] = {}

    def watch(name: str, output: object) -> None:
        if name in found:
            raise UsageError(f"a pass comes by the layer {name} more than once; name another")
        if not isinstance(output, Tensor) or output.dim() < 2:
            raise UsageError(f"the layer {name} gives no tensor (batch, …) but {type(output).__name__}")
        found[name] = output.clone()  # what comes next may write into it
        if not whole and len(found) == len(layers):
            raise _EnoughError

    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: watch(name, output))
        for name, module in zip(layers, layers_named(backbone, layers).values(), strict=True)
    ]
    logits = x.new_zeros(0)
    try:
        logits = backbone(x)
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in found]:
        raise UsageError(f"a pass does not come by the layer {missing[0]}; name another")
    return found, logits


def flattened(output: Tensor, pool: int) -> Tensor:
    """A layer's output as (batch, features); of images first averaged to `pool`×`pool`, unless they are smaller."""
    if pool and output.dim() == 4 and min(output.shape[2:]) > pool:
        output = F.adaptive_avg_pool2d(output, pool)
    return output.flatten(1)


def layers_named(backbone: nn.Module, wanted: Sequence[str]) -> Mapping[str, nn.Module]:
    """The layers of these names, or of these ends of names where only one has it.

    Raises:
        UsageError: for a name that no layer has, or several, or that is given twice; it lists what there is.
    """
    known = {name: module for name, module in backbone.named_modules() if name}
    found: dict[str, nn.Module] = {}
    for text in wanted:
        fitting = [text] if text in known else [name for name in known if name.endswith(f".{text}")]
        if len(fitting) > 1:
            raise UsageError(f"several layers are called {text!r}: {', '.join(fitting[:6])}; write more of it")
        if not fitting:
            raise UsageError(f"{spec.suggest(text, _outline(known), 'layer')}")
        if text in found or known[fitting[0]] in found.values():
            raise UsageError(f"the layer {text} is named twice")
        found[text] = known[fitting[0]]
    return found


def _outline(names: Mapping[str, nn.Module]) -> list[str]:
    """The names of a network's layers down to the depth at which they still are a list to read."""
    depths = sorted({name.count(".") for name in names}, reverse=True)
    outlines = ([name for name in names if name.count(".") <= depth] for depth in depths)
    return next((outline for outline in outlines if len(outline) <= _LISTED), list(names)[:_LISTED])
