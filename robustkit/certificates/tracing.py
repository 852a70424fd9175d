"""From a module to its graph, by torch.fx; what cannot be bounded is named and refused.

The trace is of aten operations (`torch.fx.experimental.proxy_tensor.make_fx`), so it does not matter how the network's
code is written; what depends on values cannot be traced, and the graph is compared with the network before it is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from robustkit.certificates import operations
from robustkit.certificates.graph import Graph, Node, NotCertifiableError, Operation
from robustkit.certificates.operations import Activation, Affine, MaxPool
from robustkit.errors import first_line
from robustkit.numerics import generators

_TRACED = 3  # samples of the trace
_PROBES = 8
_WHERE = "nn_module_stack"  # what torch.fx copies to each node that is made


def trace(module: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> Graph:
    """The graph of a network in eval mode that takes images like `x`, (batch, …) in [0,1], to logits.

    Raises:
        NotCertifiableError: if something in it cannot be bounded, or the graph computes something else.
    """
    if any(part.training for part in module.modules()):
        raise NotCertifiableError("not certifiable: the network is in training mode; call network.eval()")
    few = x[:1].expand(_TRACED, *x.shape[1:]).contiguous()
    try:
        with torch.no_grad(), _placed(module):
            traced = make_fx(lambda images: module(images), tracing_mode="real")(few)
    except Exception as error:  # whatever a network does that cannot be traced, its message says best
        raise NotCertifiableError(f"not certifiable: the network cannot be traced: {first_line(error, 200)}") from error
    with torch.no_grad():
        graph = _Reader(traced, x.device, dtype).graph(few)
        _check(graph, module, x)
    return graph


@contextmanager
def _placed(module: nn.Module) -> Iterator[None]:
    """Let each node of a trace know in which part of the network it was made, for the messages."""
    stack: list[str] = []

    def begins(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            stack.append(name)
            traceback.current_meta[_WHERE] = {name: (name, "")}

        return hook

    def ends(*_: object) -> None:
        stack.pop()
        name = stack[-1] if stack else ""
        traceback.current_meta[_WHERE] = {name: (name, "")}

    handles = []
    for name, part in module.named_modules():
        handles += [part.register_forward_pre_hook(begins(name)), part.register_forward_hook(ends)]
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _check(graph: Graph, module: nn.Module, x: Tensor) -> None:
    """Compare the graph with the network on the images given and on random ones."""
    with generators.seeded(0, x.device):
        noise = torch.rand(_PROBES, *x.shape[1:], dtype=x.dtype, device=x.device)
    for images in (noise, x[:_PROBES]):
        wanted, found = module(images).to(graph.dtype), graph.values(images)
        if wanted.shape != found.shape or (wanted - found).abs().max() > 1e-3 * (1 + wanted.abs().max()):
            raise NotCertifiableError(
                "not certifiable: what was traced of the network computes something else than it does"
            )


class _Reader:
    """Reads a trace node by node; a value is the place of a node of the graph, or a constant."""

    def __init__(self, traced: torch.fx.GraphModule, device: torch.device, dtype: torch.dtype) -> None:
        self.traced, self.device, self.dtype = traced, device, dtype
        self.nodes: list[Node] = []
        self.places: dict[torch.fx.Node, int] = {}
        self.constants: dict[torch.fx.Node, Any] = {}

    def graph(self, x: Tensor) -> Graph:
        """All of it.

        Raises:
            NotCertifiableError: for an operation that is not known.
        """
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.places[node] = self._add(None, (), tuple(x.shape[1:]))
            elif node.op == "get_attr":
                value: Any = self.traced
                for part in node.target.split("."):
                    value = getattr(value, part)
                self.constants[node] = value.detach()
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                last = node.args[0]
                if not isinstance(last, torch.fx.Node) or last not in self.places or len(self._shape(last)) != 1:
                    raise NotCertifiableError(
                        "not certifiable: the network's output is no (batch, classes) of its images"
                    )
                return self._until(self.places[last])
        raise NotCertifiableError("not certifiable: the trace of the network has no output")

    def _until(self, last: int) -> Graph:
        """The nodes that the logits depend on."""
        needed, todo = set(), [last]
        while todo:
            place = todo.pop()
            if place not in needed:
                needed.add(place)
                todo += self.nodes[place].inputs
        order = {old: new for new, old in enumerate(sorted(needed | {0}))}
        kept = [self.nodes[old] for old in order]
        return Graph(
            tuple(Node(n.operation, tuple(order[i] for i in n.inputs), n.shape) for n in kept), self.device, self.dtype
        )

    def _add(self, operation: Operation | None, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        self.nodes.append(Node(operation, inputs, shape))
        return len(self.nodes) - 1

    def _shape(self, node: torch.fx.Node) -> tuple[int, ...]:
        return self.nodes[self.places[node]].shape

    def _call(self, node: torch.fx.Node) -> None:
        known = [each for each in node.all_input_nodes if each in self.places]
        if not known:
            self.constants[node] = self._constant(node)
            return
        name = str(node.target).split(".")[1] if "." in str(node.target) else getattr(node.target, "__name__", "")
        if name == "getitem":
            self.places[node] = self.places[known[0]]  # of a pair only the first is known, see `_first_only`
            if node.args[1] != 0 and node.users:
                raise self._unknown(node, "an operation's second output")
            return
        value = node.meta.get("val")
        out = value[0] if isinstance(value, tuple | list) else value
        if out is None or not out.shape or out.shape[0] != _TRACED:
            raise self._unknown(node, name)
        read = _READERS.get(name)
        operation = None if read is None else read(_Call(self, node, known, tuple(out.shape[1:])))
        if operation is None:
            raise self._unknown(node, name)
        self.places[node] = self._add(operation, tuple(self.places[each] for each in known), tuple(out.shape[1:]))

    def _constant(self, node: torch.fx.Node) -> Any:
        def value(given: torch.fx.Node) -> Any:
            return self.constants[given]

        args = torch.fx.map_arg(node.args, value)
        return node.target(*args, **torch.fx.map_arg(node.kwargs, value))  # type: ignore[operator]

    def _unknown(self, node: torch.fx.Node, name: str) -> NotCertifiableError:
        place = next(iter(node.meta.get(_WHERE) or ()), "")
        told = _NAMES.get(name, name)
        return NotCertifiableError(f"not certifiable: {told} at {place or node.name}")


@dataclass(frozen=True, slots=True)
class _Call:
    """A call in a trace: its arguments as they were given, of which `known` are nodes of the graph."""

    reader: _Reader
    node: torch.fx.Node
    known: Sequence[torch.fx.Node]
    out: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.node.args)

    def given(self, place: int, default: Any = None) -> Any:
        """An argument: a node of the trace for what depends on the images, else its value."""
        args = self.node.args
        value = args[place] if place < len(args) else default
        if isinstance(value, torch.fx.Node) and value not in self.reader.places:
            return self.reader.constants[value]
        return value

    def weight(self, place: int) -> Tensor | None:
        """A constant tensor, None where it is left out."""
        value = self.given(place)
        return None if value is None else value.to(self.reader.dtype)

    @property
    def alone(self) -> bool:
        """Whether the images reach the operation by its first argument only."""
        return len(self.known) == 1 and self.node.args[0] is self.known[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample of the first input."""
        return self.reader._shape(self.known[0])

    def broadcast(self, value: Any) -> Tensor | None:
        """A constant as (1, …) beside the output's samples; None if it differs from sample to sample."""
        tensor = torch.as_tensor(value, dtype=self.reader.dtype, device=self.reader.device)
        tensor = tensor.reshape(*[1] * (len(self.out) + 1 - tensor.dim()), *tensor.shape)
        return tensor[:1] if len(tensor) == 1 or bool((tensor == tensor[:1]).all()) else None


def _sum(sign: float) -> Callable[[_Call], Operation | None]:
    def read(call: _Call) -> Operation | None:
        if len(call.node.kwargs):  # alpha=
            return None
        if len(call.known) == 2:
            same = call.reader._shape(call.known[0]) == call.reader._shape(call.known[1])
            return operations.added([1.0, sign]) if same else None
        if call.node.args[0] is call.node.args[1]:
            return operations.scaled(
                torch.full((1,), 1 + sign, dtype=call.reader.dtype, device=call.reader.device), None
            )
        first = call.node.args[0] is call.known[0]
        constant = call.broadcast(call.given(1 if first else 0))
        if constant is None or call.shape != call.out:
            return None
        one = torch.ones(1, dtype=call.reader.dtype, device=call.reader.device)
        return operations.scaled(one, sign * constant) if first else operations.scaled(sign * one, constant)

    return read


def _product(call: _Call) -> Operation | None:
    if len(call.known) != 1 or call.node.args[0] is call.node.args[1] or call.shape != call.out:
        return None
    scale = call.broadcast(call.given(1 if call.node.args[0] is call.known[0] else 0))
    return None if scale is None else operations.scaled(scale, None)


def _quotient(call: _Call) -> Operation | None:
    if not call.alone or call.shape != call.out or call.node.kwargs:  # rounding_mode=
        return None
    scale = call.broadcast(call.given(1))
    return None if scale is None else operations.scaled(1 / scale, None)


def _convolution(call: _Call) -> Operation | None:
    weight = call.weight(1) if call.alone else None
    if weight is None or call.given(6) or any(call.given(7)):  # transposed
        return None
    stride, padding, dilation, groups = call.given(3), call.given(4), call.given(5), call.given(8)
    return operations.convolution(weight, call.weight(2), stride, padding, dilation, groups, call.shape, call.out)


def _addmm(call: _Call) -> Operation | None:
    if len(call.known) != 1 or call.node.args[1] is not call.known[0] or call.node.kwargs:
        return None
    weight = call.weight(2)
    return None if weight is None else operations.matrix(weight.T.contiguous(), call.weight(0))


def _mm(call: _Call) -> Operation | None:
    weight = call.weight(1) if call.alone else None
    return operations.matrix(weight.T.contiguous(), None) if weight is not None and weight.dim() == 2 else None


def _batch_norm(call: _Call) -> Operation | None:
    at = 7 if "no_training" not in str(call.node.target) else 6
    mean, variance = call.weight(3), call.weight(4)
    training = at == 7 and call.given(5)
    if not call.alone or mean is None or variance is None or training:
        return None
    weight, bias = call.weight(1), call.weight(2)
    scale = (variance + call.given(at)).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = (1, -1, *[1] * (len(call.out) - 1))
    return operations.scaled(scale.view(shape), shift.view(shape))


def _as_it_is(call: _Call) -> Operation | None:
    same = torch.Size(call.shape).numel() == torch.Size(call.out).numel()
    return operations.reshaped(call.shape, call.out) if call.alone and same else None


def _averaging(call: _Call) -> Operation | None:
    """An operation without negative coefficients that leaves the samples apart."""
    if not call.alone:
        return None
    target, rest, kwargs = call.node.target, call.node.args[1:], dict(call.node.kwargs)
    return operations.averaging(lambda x: target(x, *rest, **kwargs))  # type: ignore[operator]


def _over(place: int) -> Callable[[_Call], Operation | None]:
    """One that names the axes it works on in an argument, which must not be the samples'."""

    def read(call: _Call) -> Operation | None:
        axes = call.given(place, None)
        listed = [axes] if isinstance(axes, int) else axes
        dims = len(call.shape) + 1
        if not listed or any(axis % dims == 0 for axis in listed):
            return None
        return _averaging(call)

    return read


def _permuted(call: _Call) -> Operation | None:
    order = call.given(1)
    return _averaging(call) if isinstance(order, list | tuple) and order[0] == 0 else None


def _transposed(call: _Call) -> Operation | None:
    dims = len(call.shape) + 1
    return _averaging(call) if 0 not in (call.given(1) % dims, call.given(2) % dims) else None


def _padded(call: _Call) -> Operation | None:
    amounts = call.given(1)
    if call.given(2, 0) != 0 or min(amounts) < 0 or len(amounts) > 2 * len(call.shape):
        return None
    return _averaging(call)


def _joined(call: _Call) -> Operation | None:
    parts, axis = call.node.args[0], call.given(1, 0)
    if axis % (len(call.out) + 1) == 0 or len(set(call.known)) < sum(each in call.reader.places for each in parts):  # type: ignore[union-attr]
        return None
    constants: list[Tensor | None] = []
    for part in parts:  # type: ignore[union-attr]
        constants.append(None if part in call.reader.places else call.broadcast(call.reader.constants[part]))  # type: ignore[index]
    order = [call.known.index(part) if part in call.reader.places else -1 for part in parts]  # type: ignore[union-attr]

    def linear(*xs: Tensor) -> Tensor:
        n = len(xs[0])
        whole = [
            xs[at] if c is None else torch.zeros_like(c).expand(n, *c.shape[1:])
            for at, c in zip(order, constants, strict=True)
        ]
        return torch.cat(whole, axis)

    shapes = [call.reader._shape(each) for each in call.known]
    zeros = [torch.zeros(1, *shape, dtype=call.reader.dtype, device=call.reader.device) for shape in shapes]
    fixed = torch.cat([zeros[at] if c is None else c for at, c in zip(order, constants, strict=True)], axis)
    return Affine(linear, linear, fixed if any(c is not None for c in constants) else None)


def _activation(operation: Activation) -> Callable[[_Call], Operation | None]:
    return lambda call: operation if call.alone else None


def _leaky(call: _Call) -> Operation | None:
    slope = call.given(1, 0.01)
    return operations.leaky(float(slope)) if call.alone and 0 <= slope <= 1 else None


def _clamped(call: _Call) -> Operation | None:
    least, most = call.given(1, None), call.given(2, None)
    if not call.alone or not all(isinstance(end, int | float | None) for end in (least, most)):
        return None
    return operations.cut(-torch.inf if least is None else float(least), torch.inf if most is None else float(most))


def _hardtanh(call: _Call) -> Operation | None:
    return operations.cut(float(call.given(1, -1)), float(call.given(2, 1))) if call.alone else None


def _max_pool(call: _Call) -> Operation | None:
    kernel, stride = call.given(1), call.given(2, None)
    padding, dilation, ceil = call.given(3, [0, 0]), call.given(4, [1, 1]), call.given(5, False)
    if not call.alone or len(call.out) != 3 or ceil or set(dilation) != {1}:
        return None
    return MaxPool(_two(kernel), _two(stride or kernel), _two(padding))


def _two(values: Sequence[int]) -> tuple[int, int]:
    return (values[0], values[-1])


_READERS: Mapping[str, Callable[[_Call], Operation | None]] = {
    "add": _sum(1.0), "sub": _sum(-1.0), "mul": _product, "div": _quotient, "convolution": _convolution,
    "add_": _sum(1.0), "sub_": _sum(-1.0), "mul_": _product, "div_": _quotient,
    "addmm": _addmm, "mm": _mm, "native_batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "clone", "detach", "alias", "contiguous", "expand",
         "_to_copy", "lift_fresh_copy"), _as_it_is,
    ),
    "avg_pool2d": _averaging, "_adaptive_avg_pool2d": _averaging, "upsample_nearest2d": _averaging,
    "upsample_bilinear2d": _averaging, "_upsample_bilinear2d_aa": _averaging,
    "mean": _over(1), "sum": _over(1), "slice": _over(1), "select": _over(1), "permute": _permuted,
    "transpose": _transposed, "constant_pad_nd": _padded, "cat": _joined, "max_pool2d_with_indices": _max_pool,
    "relu": _activation(operations.leaky(0.0)), "relu_": _activation(operations.leaky(0.0)),
    "leaky_relu": _leaky, "leaky_relu_": _leaky, "hardtanh": _hardtanh, "hardtanh_": _hardtanh, "clamp": _clamped,
    "clamp_": _clamped, "sigmoid": _activation(operations.SIGMOID), "tanh": _activation(operations.TANH),
}  # fmt: skip
_NAMES = {
    "_softmax": "Softmax", "gelu": "GELU", "silu": "SiLU", "native_layer_norm": "LayerNorm",
    "bmm": "a product of two features",    "native_group_norm": "GroupNorm",
    "elu": "ELU", "_log_softmax": "LogSoftmax", "hardswish": "Hardswish",
}  # fmt: skip
