"""A pretended CUDA, MPS or XPU device: tensors that say they are on it and compute on the CPU, to find device faults.

As on a real one, an operation that mixes devices raises, `.numpy()` raises, MPS has no float64; and whatever makes the
host wait for the device is counted by the line that asked for it. Kernels are the CPU's: numbers, speed, memory and a
device's own errors are not shown, so a clean run is necessary for a real device and not sufficient. What runs inside a
backward pass (hooks, `torch.autograd.Function.backward`) is not looked at. Libraries that ask for the exact class of a
tensor (eagerpy, and so foolbox) refuse the subclass.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Kind = Literal["cuda", "mps", "xpu"]

# What copies to the host, or makes it wait to learn how large a result is.
_WAITS = frozenset({
    "item", "tolist", "__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "is_nonzero",
    "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "_unique2", "bincount",
    "histc", "full", "inv", "linalg_inv", "solve", "linalg_solve", "cholesky", "linalg_cholesky", "lstsq",
    "linalg_lstsq",
})  # fmt: skip
_ANSWERS = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__complex__", "__index__"})
# These take tensors of several devices, or none of their values.
_ANY_DEVICE = frozenset({
    "copy_", "__get__", "__set__", "__getitem__", "__setitem__", "index_put_", "backward", "grad", "register_hook",
    "set_", "set_data", "_has_compatible_shallow_copy_type", "__hash__", "__len__", "is_same_size", "data_ptr",
})  # fmt: skip
_MAKES = frozenset({"tensor", "as_tensor", "asarray", "scalar_tensor"})
_WIDE = (torch.float64, torch.complex128)
_TORCH, _HERE = str(Path(torch.__file__).parent), __file__


class Log:
    """What was seen in a `pretended` context, by "file:line what".

    Attributes:
        syncs: how often the host waited for the device.
        uploads: how often something was copied from the host to the device.
    """

    def __init__(self) -> None:
        self.syncs: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()

    @property
    def waited(self) -> int:
        """How often the host waited so far."""
        return self.syncs.total()


_now: list[tuple[Kind, Log]] = []  # the device that is pretended at the moment, and its log


class OnDevice(Tensor):
    """A tensor that says it is on the pretended device; its memory is the CPU's."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Every call of torch on such a tensor."""
        return _called(func, args, dict(kwargs or {}))


class _Mode(TorchFunctionMode):
    """Every call of torch, for the ones that only name the device."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _called(func, args, dict(kwargs or {}))


@contextmanager
def pretended(kind: Kind) -> Iterator[Log]:
    """Within, torch says that it has one device of this kind, and no other.

    Raises:
        ValueError: for another kind, or where one is pretended already.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"a pretended device is one of {', '.join(get_args(Kind))}, not {kind!r}")
    if _now:
        raise ValueError(f"a {_now[-1][0]} device is pretended already")
    log = Log()
    with ExitStack() as stack:
        for space, name, value in _patches(kind):
            if hasattr(space, name):
                known = getattr(space, name)
                stack.callback(setattr, space, name, known)
                setattr(space, name, functools.wraps(known)(value))  # torch's compiler looks for what is wrapped
        _now.append((kind, log))
        stack.callback(_now.pop)
        stack.enter_context(_Mode())
        yield log


def _patches(kind: Kind) -> Iterator[tuple[Any, str, Any]]:
    """What torch's modules of devices answer."""
    for each in get_args(Kind):
        yield getattr(torch, each), "is_available", lambda: False
        yield getattr(torch, each), "device_count", lambda: 0
    yield torch.backends.mps, "is_available", lambda: kind == "mps"
    properties = SimpleNamespace(
        name=f"pretended {kind}", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132, has_fp64=True
    )
    stream = SimpleNamespace(is_capturing=lambda: False, synchronize=lambda: None)
    answers = {
        "is_initialized": True, "current_device": 0, "get_device_name": properties.name,
        "get_device_properties": properties, "get_device_capability": (9, 0), "mem_get_info": (64 << 30, 80 << 30),
        "recommended_max_memory": 64 << 30, "driver_allocated_memory": 0, "current_allocated_memory": 0,
        "memory_allocated": 0, "memory_reserved": 0, "max_memory_allocated": 0, "is_bf16_supported": True,
        "synchronize": None, "empty_cache": None, "init": None, "_lazy_init": None, "current_stream": stream,
        "is_current_stream_capturing": False, "current_accelerator": torch.device(kind), "current_device_index": 0,
        "reset_peak_memory_stats": None, "manual_seed": None, "manual_seed_all": None, "set_rng_state": None,
    }  # fmt: skip
    for module in (getattr(torch, kind), torch.accelerator):
        yield module, "is_available", lambda: True
        yield module, "device_count", lambda: 1
        for name, answer in answers.items():
            yield module, name, lambda *_, answer=answer, **__: answer
    yield (
        getattr(torch, kind),
        "get_rng_state",
        lambda *_, **__: torch.get_rng_state(),
    )  # there is one generator, the CPU's


def _called(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One call of torch: its devices checked, what it makes the host wait for counted, and computed on the CPU."""
    name = getattr(func, "__name__", str(func))
    if func is torch.manual_seed:
        return func(*args, **kwargs)
    special = _SPECIAL.get(name)
    if special is not None:
        return special(func, args, kwargs)
    seen = [*_tensors([args, kwargs])]
    on = any(isinstance(each, OnDevice) for each in seen)
    there = _is_there(kwargs["device"]) if kwargs.get("device") is not None else on
    if "device" in kwargs:
        kwargs["device"] = None if kwargs["device"] is None or there else kwargs["device"]
    if on:
        _check(name, args, seen)
        _count(name, args, kwargs)
    elif there and name in _MAKES:
        _log().uploads[f"{_where()} {name}"] += 1
    leaf = there and bool(kwargs.pop("requires_grad", False))
    _refuse_long_factors(name, args, on)
    with torch._C.DisableTorchFunctionSubclass():
        made = func(*args, **kwargs)
    if name in _ANSWERS or not there:
        return made if name in _ANSWERS else _map(_off, made)
    found = _map(_on, made)
    return found.requires_grad_() if leaf else found


def _check(name: str, args: Sequence[Any], seen: Sequence[Tensor]) -> None:
    """Refuse what mixes devices."""
    here = [each for each in seen if not isinstance(each, OnDevice) and each.dim() > 0]
    if name in ("__getitem__", "__setitem__", "index_put_"):
        index = [*_tensors(args[1])]
        if not isinstance(args[0], OnDevice) and any(isinstance(each, OnDevice) and each.dim() for each in index):
            raise RuntimeError(f"indices should be on the device of the indexed tensor (cpu), not {_device()}")
        values = [*_tensors(args[2:])] if index else []
        if any(isinstance(each, OnDevice) is not isinstance(args[0], OnDevice) and each.dim() for each in values):
            raise RuntimeError(f"Expected all tensors to be on the same device, but got cpu and {_device()} in {name}")
    elif here and name not in _ANY_DEVICE:
        shapes = ", ".join(str(tuple(each.shape)) for each in here)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {_device()} and cpu! "
            f"({name} at {_where()}, on the CPU: {shapes})"
        )


def _count(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Note what makes the host wait, or is copied to the device."""
    what = ""
    if name in _WAITS or name in _MAKES:
        what = name
    elif name == "where" and len(args) == 1:
        what = "where, of one argument"
    elif name == "repeat_interleave" and any(isinstance(each, Tensor) for each in args[1:]):
        what = "" if kwargs.get("output_size") else "repeat_interleave, by a tensor"
    elif name == "one_hot" and len(args) + len(kwargs) < 2:
        what = "one_hot, without the number of classes"
    elif name == "copy_" and not isinstance(args[0], OnDevice):
        what = "copy_, to the CPU"
    elif name in ("__getitem__", "__setitem__", "index_put_"):
        what = _count_index(name, args[1])
    if what:
        _log().syncs[f"{_where()} {what}"] += 1
    elif name == "copy_" and not isinstance(args[1], OnDevice):
        _log().uploads[f"{_where()} copy_"] += 1


def _count_index(name: str, index: Any) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    found = [*_tensors(parts)]
    if any(each.dtype in (torch.bool, torch.uint8) for each in found):
        return f"{name}, by a mask"
    if any(each.dim() == 0 for each in found):
        return f"{name}, by a number on the device"
    if any(not isinstance(each, OnDevice) for each in found) or any(isinstance(each, list) for each in parts):
        return f"{name}, by an index on the CPU"
    return ""


def _refuse_long_factors(name: str, args: Sequence[Any], on: bool) -> None:
    """On MPS nothing may count on 64-bit products of whole numbers."""
    if on and _device().type == "mps" and name in ("mul", "__mul__", "__rmul__", "mul_", "__imul__", "multiply"):
        whole = any(isinstance(each, Tensor) and each.dtype == torch.int64 for each in args)
        if whole and any(isinstance(each, int) and abs(each) >= 2**31 for each in args):
            raise RuntimeError("value cannot be converted to type int32_t without overflow")


# What has rules of its own.


def _to(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`Tensor.to`, in all its forms."""
    x, given = args[0], [each for each in args[1:] if each is not None]
    wanted = kwargs.pop("device", None)
    if given and isinstance(given[0], Tensor):
        wanted, kwargs["dtype"] = given[0].device, given[0].dtype
        given.pop(0)
    elif given and isinstance(given[0], str | torch.device | int) and not isinstance(given[0], bool):
        wanted = given.pop(0)
    if given and isinstance(given[0], torch.dtype):
        kwargs["dtype"] = given.pop(0)
    kwargs |= dict(zip(("non_blocking", "copy"), given, strict=False))
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    return _moved(x, isinstance(x, OnDevice) if wanted is None else _is_there(wanted), **kwargs)


def _moved(x: Tensor, there: bool, **options: Any) -> Tensor:
    on = isinstance(x, OnDevice)
    if there and not on:
        _log().uploads[f"{_where()} to"] += 1
    if on and not there:
        _log().syncs[f"{_where()} to the CPU"] += 1
    with torch._C.DisableTorchFunctionSubclass():
        made = x.to(**options)
        made = made.clone() if made is x and there is not on else made
    return made if there is on and made is x else _on(made) if there else _off(made)


def _got(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An attribute."""
    on = isinstance(args[0], OnDevice)
    what = getattr(getattr(func, "__self__", None), "__name__", "")
    if on and what == "device":
        return _device()
    if on and what in ("is_cpu", *(f"is_{kind}" for kind in get_args(Kind))):
        return what == f"is_{_device().type}"
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*args, **kwargs)
    return _map(_on, found) if on else found


def _iterated(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        found = list(func(*args, **kwargs))
    return iter([_on(each) for each in found] if isinstance(args[0], OnDevice) else found)


def _hooked(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A hook gets the gradient on the tensor's device."""
    x, hook = args
    with torch._C.DisableTorchFunctionSubclass():
        if not isinstance(x, OnDevice):
            return func(x, hook)
        return func(x, lambda grad: _back(hook, grad))


def _back(hook: Callable[[Tensor], Any], grad: Tensor) -> Any:
    with torch._C._EnableTorchFunction():
        found = hook(_on(grad))
    return _off(found) if isinstance(found, Tensor) else found


def _copied(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x, memo = args[0], args[1] if len(args) > 1 else {}
    if not isinstance(x, OnDevice):
        return func(*args, **kwargs)
    if id(x) not in memo:
        with torch._C.DisableTorchFunctionSubclass():
            made = _on(x.detach().clone())
        memo[id(x)] = nn.Parameter(made, x.requires_grad) if isinstance(x, nn.Parameter) else (
            made.requires_grad_(x.requires_grad)
        )  # fmt: skip
    return memo[id(x)]


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """What is printed of a tensor: its numbers must come to the host."""
    if isinstance(args[0], OnDevice):
        _log().syncs[f"{_where()} {func.__name__}"] += 1
    return str(func(_off(args[0]), *args[1:], **kwargs))


def _pickled(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return _off(args[0].detach()).__reduce_ex__(*args[1:])  # type: ignore[no-untyped-call]


def _numpy(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnDevice):
        _refuse_numpy()
    return func(*args, **kwargs)


def _refuse_numpy() -> NoReturn:
    raise TypeError(
        f"can't convert {_device()} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
        "first."
    )


def _same_kind(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a parameter's data can be exchanged in place: not for those of another device."""
    return isinstance(args[0], OnDevice) is isinstance(args[1], OnDevice)


_SPECIAL: dict[str, Callable[[Any, Sequence[Any], dict[str, Any]], Any]] = {
    "to": _to,
    "cpu": lambda func, args, kwargs: _moved(args[0], False),
    **{kind: lambda func, args, kwargs: _moved(args[0], True) for kind in get_args(Kind)},
    "__get__": _got,
    "__iter__": _iterated,
    "register_hook": _hooked,
    "__deepcopy__": _copied,
    "__format__": _written,
    "__repr__": _written,
    "__reduce_ex__": _pickled,
    "numpy": _numpy,
    "__array__": _numpy,
    "_has_compatible_shallow_copy_type": _same_kind,
}


def _on(x: Tensor) -> Tensor:
    """The same values on the pretended device."""
    if isinstance(x, OnDevice):
        return x
    if _now and _now[-1][0] == "mps" and x.dtype in _WIDE:
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use "
            "float32 instead."
        )
    return x.as_subclass(OnDevice)


def _off(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Tensor) if isinstance(x, OnDevice) else x


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _tensors(each)
    elif isinstance(found, dict):
        yield from _tensors([*found.values()])


def _map(function: Callable[[Tensor], Tensor], found: Any) -> Any:
    if isinstance(found, Tensor):
        return function(found)
    if isinstance(found, list):
        return [_map(function, each) for each in found]
    if isinstance(found, tuple):
        parts = [_map(function, each) for each in found]
        return type(found)(*parts) if hasattr(found, "_fields") else type(found)(parts)
    return found


def _is_there(device: Any) -> bool:
    """Whether a device that was asked for is the pretended one."""
    if isinstance(device, int):
        device = torch.device(_device().type, device)
    device = torch.device(device)
    if device.type != _device().type:
        return False
    if device.index not in (None, 0):
        raise RuntimeError(f"invalid device ordinal: {device}; there is {_device()}")
    return True


def _device() -> torch.device:
    return torch.device(_now[-1][0] if _now else "cuda", 0)


def _log() -> Log:
    return _now[-1][1] if _now else Log()


def _where() -> str:
    """The line outside torch that asked."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_HERE, _TORCH)):
        frame = frame.f_back
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"
