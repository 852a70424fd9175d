"""A module's state: kept, compared, hashed and put back, whatever it holds.

That is mostly tensors, but a quantised layer keeps packed parameters and a dtype in its state dict, and any module may
put an object there (`get_extra_state`).
"""

import copy
import hashlib
import pickle
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustkit.errors import UsageError
from robustkit.numerics import devices

State = Mapping[str, Any]


def put_in_eval_mode(module: nn.Module) -> nn.Module:
    """The module itself, in eval mode: also one whose `eval()` returns nothing, or is refused.

    A program of torch.export refuses it, for it is fixed in the mode that it was exported in.
    """
    try:
        module.eval()
    except NotImplementedError:
        for part in module.modules():
            part.training = False
    return module


def modes(module: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Each part and whether it is in training mode; a frozen TorchScript module has no mode, which is eval."""
    return [(part, getattr(part, "training", False)) for part in module.modules()]


def check_usable(module: nn.Module) -> None:
    """Refuse weights that cannot be computed with.

    Raises:
        UsageError: for tensors on the device `meta`, made under `torch.inference_mode()`, or without a shape yet.
    """
    if lazy := [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if is_lazy(tensor)]:
        raise UsageError(
            f"the model's {lazy[0]} has no shape before its first call (nn.Lazy…), so it can hold no trained "
            "weights: call it on a batch once, then load them; or make it of layers that are not lazy"
        )
    for name, tensor in _tensors(module):
        if tensor.is_meta:
            raise UsageError(
                f"the model's weights have no values ({name} is on the device 'meta'): make it with weights, or call "
                "model.to_empty(device='cpu') and load a state dict"
            )
        if tensor.is_inference():
            raise UsageError(
                f"the model was made under torch.inference_mode() ({name} is an inference tensor), and no gradient can "
                "flow through it: make or load it outside, or give copy.deepcopy(model), taken outside"
            )


def quantised(module: nn.Module, how: str = "") -> bool:
    """Whether a part of the module computes in integers, through which torch passes no gradient.

    `how="dynamic"` asks for parts that scale what they are fed by the range of the whole batch.
    """
    return any(type(part).__module__.startswith(f"torch.ao.nn.quantized.{how}") for part in module.modules())


def snapshot(module: nn.Module) -> dict[str, Any]:
    """A copy of the state."""
    return {name: _copied(value) for name, value in module.state_dict().items()}


def changed(before: State, after: State) -> frozenset[str]:
    """The names of what is not the same any more, or is gone; what is new does not count."""
    found = {name for name in before if name not in after}
    asked: dict[str, Tensor] = {}
    for name in before.keys() - found:
        one, other = before[name], after[name]
        if _elsewhere(one, other):
            asked[name] = ((one != other) & ((one == one) | (other == other))).any().view(1)
        elif not _same(one, other):
            found.add(name)
    for device in {each.device for each in asked.values()}:  # what a device holds is compared there, and asked for once
        here = [name for name, each in asked.items() if each.device == device]
        differ = torch.cat([asked[name] for name in here]).tolist()
        found |= {name for name, differs in zip(here, differ, strict=True) if differs}
    return frozenset(found)


def _elsewhere(one: Any, other: Any) -> bool:
    """Whether two values are plain tensors of one kind on one device that is not the CPU."""
    return (
        isinstance(one, Tensor) and isinstance(other, Tensor) and not devices.is_host(one.device)
        and (one.device, one.shape, one.dtype) == (other.device, other.shape, other.dtype)
        and one.layout == torch.strided and not one.is_quantized
    )  # fmt: skip


def restore(module: nn.Module, state: State) -> None:
    """Undo what was done to the mode and the state; what is as it was is not written to, new entries stay."""
    put_in_eval_mode(module)
    held = module.state_dict(keep_vars=True)
    lost = [name for name in changed(state, held) if name in held]
    for name in lost:
        if isinstance(held[name], Tensor) and isinstance(state[name], Tensor):
            put_values(held[name], state[name])
    now = module.state_dict()
    if lost and any(name in changed(state, now) for name in lost):
        # Packed parameters and extra state are no tensors of the module's own: they are loaded, and all of a layer's.
        # The versions of the layers' formats, which torch keeps beside a state dict, are those of the module itself.
        for name in list(now):
            if name in state and _fits(state[name], now[name]):
                now[name] = state[name]
        module.load_state_dict(now, strict=False)


def sha256(module: nn.Module, leave_out: Collection[str] = ()) -> str:
    """sha256 over the state dict: names, types, shapes and bytes; empty if it has none.

    Args:
        module: whose state it is.
        leave_out: names that do not count, for their values are no part of what the module is.
    """
    state = {name: value for name, value in module.state_dict().items() if name not in leave_out}
    found = hashlib.sha256()
    for name in sorted(state):
        for part in _bytes(name, state[name]):
            found.update(part)
    return found.hexdigest() if state else ""


def same_values(one: Any, other: Any) -> bool:
    """Whether two tensors or arrays hold the same, NaN at the same places included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if isinstance(one, Tensor):
        if torch.equal(one, other):
            return True
        return one.is_floating_point() and torch.equal(one.isnan(), other.isnan()) and torch.equal(
            one.nan_to_num(), other.nan_to_num()
        )  # fmt: skip
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))


def put_values(into: Any, known: Any) -> None:
    """Write a copy's values back into the tensor or array it was made of, whose memory may have been exchanged."""
    if isinstance(into, Tensor):
        with torch.no_grad():
            if into.shape == known.shape and into.dtype == known.dtype:
                into.copy_(known)
            else:
                into.data = known.clone()
    else:
        into.resize(known.shape, refcheck=False)
        into[...] = known


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.device == b.device and same_values(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and _pickled(a) == _pickled(b)


def _fits(a: Any, b: Any) -> bool:
    return not isinstance(a, Tensor) or (isinstance(b, Tensor) and a.shape == b.shape)


def _bytes(name: str, value: Any) -> Iterator[bytes]:
    if isinstance(value, tuple | list):
        for place, item in enumerate(value):
            yield from _bytes(f"{name}.{place}", item)
    elif not isinstance(value, Tensor):
        yield f"{name}|{type(value).__name__}|".encode() + _pickled(value)
    elif value.is_quantized:
        yield f"{name}|{value.dtype}|{value.qscheme()}|".encode()
        scales = [value.q_scale(), value.q_zero_point()] if value.qscheme() == torch.per_tensor_affine else [
            value.q_per_channel_scales().tolist(), value.q_per_channel_zero_points().tolist()
        ]  # fmt: skip
        yield repr(scales).encode()
        yield from _bytes(name, value.int_repr())
    else:
        value = value.detach().cpu().contiguous()
        yield f"{name}|{value.dtype}|{tuple(value.shape)}|".encode()
        yield value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _pickled(value: Any) -> bytes:
    """The bytes of a value that is no tensor; of one that cannot be pickled its type alone."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
        return type(value).__qualname__.encode()
