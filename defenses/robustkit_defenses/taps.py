"""Features inside a network: what its activations receive, in order of execution, and last what it answers.

Of a ResNet these are the outputs of its normalisations and residual additions, before the ReLU; of ResNet-20, with its
logits, the 20 layers of Yang et al. 2020 (arXiv:2009.14720). Activations are seen where torch computes them, so that it
does not matter whether a network calls a module or a function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.training.recipes import in_eval_mode
from robustkit_defenses.layers import layers_named, outputs_of

ACTIVATIONS: frozenset[Callable[..., Tensor]] = frozenset(
    {
        F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.leaky_relu,
        F.leaky_relu_, F.prelu, F.elu, F.elu_, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
        F.sigmoid, torch.sigmoid, Tensor.sigmoid, F.tanh, torch.tanh, Tensor.tanh,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tap:
    """A place in a network: what its `activation`-th activation receives (from 1), or what a named module answers.

    Neither is the network's own answer, its logits.
    """

    activation: int = 0
    module: str = ""

    def __str__(self) -> str:
        return f"activation {self.activation}" if self.activation else self.module or "output"


def taps_of(network: nn.Module, x: Images) -> tuple[Tap, ...]:
    """Every activation that a pass over `x` comes by, in its order, and the network's answer.

    The pass is without gradients and in eval mode; the network is left as it was.

    Raises:
        UsageError: if it comes by none.
    """
    seen: list[Tensor] = []
    with torch.no_grad(), in_eval_mode(network), _Activations(seen.append):
        network(x)
    if not seen:
        raise UsageError(
            f"{type(network).__name__} has no activation such as a ReLU, so its layers are not found; "
            "name modules whose outputs are to be the features: layers=(conv1)+(output)"
        )
    return (*(Tap(activation=i) for i in range(1, len(seen) + 1)), Tap())


def named_taps(network: nn.Module, names: Sequence[str]) -> tuple[Tap, ...]:
    """The outputs of modules, called as in `named_modules()`, or `output`, the network's answer.

    Raises:
        UsageError: for a name that no module of the network has, or one that is given twice.
    """
    layers_named(network, [name for name in names if name != "output"])
    return tuple(Tap() if name == "output" else Tap(module=name) for name in names)


def features(network: nn.Module, x: Images, tap: Tap) -> Tensor:
    """The features of `x` at a tap, (batch, …). The pass ends there, and gradients flow.

    Raises:
        UsageError: if the pass does not come by.
    """
    if tap.module:
        return outputs_of(network, [tap.module], x, whole=False)[0][tap.module]
    if not tap.activation:
        answer: Tensor = network(x)
        return answer
    try:
        with _Activations(_Countdown(tap.activation)):
            network(x)
    except _Reached as found:
        return found.features
    raise UsageError(f"a pass over {type(network).__name__} does not come by its {tap}")


class _Reached(Exception):
    """The pass has got to the tap; what is behind it need not be computed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class _Countdown:
    """Lets so many tensors pass, and ends the pass at the last."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, received: Tensor) -> None:
        self.left -= 1
        if not self.left:
            raise _Reached(received)


class _Activations(TorchFunctionMode):
    """Shows what activations receive, before they are computed."""

    def __init__(self, show: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.show = show

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ACTIVATIONS:
            self.show(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))
