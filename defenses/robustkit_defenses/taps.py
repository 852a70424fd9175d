"""Features inside a network: what its activations receive, in order of execution, and last what it answers.

Of a ResNet whose activations are modules these are the outputs of its normalisations and residual additions, before the
ReLU: of ResNet-20 with its logits the 20 layers of Yang et al. 2020 (arXiv:2009.14720).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.spec import suggest

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh, nn.Hardswish,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tap:
    """A place in a network: what an activation receives, or what any other module answers, in its `call`-th call.

    `module` is the module's name in `named_modules()`; empty is the network, whose answer are its logits.
    """

    module: str = ""
    call: int = 1

    def __str__(self) -> str:
        return (self.module or "output") + (f"@{self.call}" if self.call > 1 else "")


class _Reached(Exception):
    """The pass has got to the tap; what is behind it need not be computed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def taps_of(network: nn.Module, x: Images) -> tuple[Tap, ...]:
    """Every activation of the network in the order in which a pass over `x` calls them, and the network's answer.

    The pass is without gradients and in eval mode; the network is left as it was.

    Raises:
        UsageError: if none of its modules is an activation.
    """
    found: list[Tap] = []
    calls: dict[str, int] = {}

    def seen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            found.append(Tap(name, calls[name]))

        return note

    activations = [(name, module) for name, module in network.named_modules() if isinstance(module, ACTIVATIONS)]
    handles = [module.register_forward_pre_hook(seen(name)) for name, module in activations]
    try:
        with torch.no_grad(), mode(network, train=False):
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UsageError(
            f"{type(network).__name__} has no activation among its modules, so its layers cannot be found; "
            "name modules to take features of: layers=(conv1)+(layer1)"
        )
    return (*found, Tap())


def named_taps(network: nn.Module, names: Sequence[str]) -> tuple[Tap, ...]:
    """The taps that are called `layer1.0.relu`, `layer1.0.relu@2` (its second call) or `output`.

    Raises:
        UsageError: for a name that no module of the network has, or a call that is no number from 1.
    """
    modules = {name for name, _ in network.named_modules() if name} | {"output"}
    taps = []
    for text in names:
        name, at, call = text.partition("@")
        if name not in modules:
            raise UsageError("layers: " + suggest(name, modules, f"module of {type(network).__name__}"))
        if at and not (call.isdigit() and int(call)):
            raise UsageError(f"layers: {text!r}: the call of a module is counted from 1; write {name}@2")
        taps.append(Tap("" if name == "output" else name, int(call) if at else 1))
    return tuple(taps)


def features(network: nn.Module, x: Images, tap: Tap) -> Tensor:
    """The features of `x` at a tap, (batch, …); the pass ends there and gradients flow.

    Raises:
        UsageError: if the pass does not come by.
    """
    if not tap.module:
        answer: Tensor = network(x)
        return answer
    module = network.get_submodule(tap.module)
    left = tap.call

    def reached(value: Tensor) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise _Reached(value)

    if isinstance(module, ACTIVATIONS):
        handle = module.register_forward_pre_hook(lambda _, inputs: reached(inputs[0]))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: reached(output))
    try:
        network(x)
    except _Reached as found:
        return found.features
    finally:
        handle.remove()
    raise UsageError(f"the network does not come by its layer {tap}")


@contextmanager
def mode(network: nn.Module, *, train: bool) -> Iterator[None]:
    """The network in train or eval mode for a while; each of its modules is put back as it was."""
    before = [(module, module.training) for module in network.modules()]
    network.train(train)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
