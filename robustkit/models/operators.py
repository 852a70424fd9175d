"""What a forward pass is made of, as far as torch sees it: operators, backward passes that somebody wrote, derivatives.

A dispatch mode sees every operator, a function mode the calls that Python makes (`detach`, `one_hot`), a walk over the
graph the backward passes that somebody wrote; operators named `…_backward` during a forward pass are a derivative that
the model takes inside. Blind to what is computed outside torch, and to paths that Python chooses.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robustkit.api import Images
from robustkit.models.oracle import Network

QUANTISING = frozenset({
    "argmax", "argmin", "bucketize", "ceil", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
    "floor", "one_hot", "quantize_per_tensor", "round", "searchsorted", "sign", "trunc",
})  # fmt: skip
_TOLD = QUANTISING | {
    "bernoulli", "clamp", "clamp_max", "clamp_min", "detach", "dropout", "kthvalue", "median", "native_dropout",
    "normal", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "remainder", "sort", "topk", "uniform",
    "unique",
}  # fmt: skip


class Operators(NamedTuple):
    """What was seen: operators worth telling, backward passes that somebody wrote, whether derivatives are taken.

    `why_not` says why nothing could be seen.
    """

    told: frozenset[str] = frozenset()
    written: tuple[type, ...] = ()
    derivatives: bool = False
    why_not: str = ""

    @property
    def hides(self) -> bool:
        """Whether anything in it may keep a gradient from the image."""
        return bool(self.told or self.written or self.derivatives)

    @property
    def quantises(self) -> bool:
        """Whether something in it rounds: then its differences over tiny steps say nothing."""
        return bool(self.told & QUANTISING)


class _Dispatched(TorchDispatchMode):
    """Every operator by its name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.add(func.overloadpacket.__name__.strip("_"))
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    """Every call of torch's by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.add(getattr(func, "__name__", "").strip("_"))
        return func(*args, **(kwargs or {}))


def scan(network: Network, x: Images) -> Operators:
    """What a pass of the first two images is made of."""
    x = x[:2].to(network.device, network.dtype).clone().requires_grad_(True)
    try:
        with torch.enable_grad(), _Called() as called, _Dispatched() as dispatched:
            logits = network.call(x).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # TorchScript, compiled code and batches of one size may refuse
        return Operators(why_not=type(error).__name__)
    names = dispatched.seen | called.seen
    written = {node.__class__ for node in _graph(logits) if isinstance(node, BackwardCFunction)}
    return Operators(
        frozenset(names & _TOLD) - {"detach"} | ({"detach"} & called.seen),
        tuple(sorted((_forward_of(kind) for kind in written), key=lambda kind: kind.__name__)),
        any(name.endswith(("_backward", "_backward_data")) for name in dispatched.seen),
    )


def _forward_of(backward: type) -> type:
    """The Function whose backward pass this is."""
    found: type = getattr(backward, "_forward_cls", backward)
    return found


def _graph(logits: Tensor) -> Iterator[Any]:
    """Every node of the graph behind the logits."""
    todo, seen = [logits.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [following for following, _ in node.next_functions]
