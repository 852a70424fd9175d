"""What the named layers of a network answer, for recipes that train on features. Gradients flow."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.spec import suggest


def features(network: nn.Module, x: Images, layers: Sequence[str]) -> tuple[Logits, Mapping[str, Tensor]]:
    """The logits, and the output of each named layer (`blocks.0.sum`, as `named_modules` calls it).

    Raises:
        UsageError: for a layer that is not there.
    """
    modules = dict(network.named_modules())
    found: dict[str, Tensor] = {}
    handles = []
    try:
        for layer in layers:
            if layer not in modules:
                raise UsageError(suggest(layer, [name for name in modules if name], "layer"))
            handles.append(modules[layer].register_forward_hook(_keeper(found, layer)))
        logits = network(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, found


def _keeper(found: dict[str, Tensor], layer: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[layer] = output

    return keep
