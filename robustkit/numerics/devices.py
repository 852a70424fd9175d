"""The devices that torch computes on: which are there, what they cannot do, and what each is asked in its own way."""

import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ACCELERATORS = ("cuda", "mps", "xpu")  # in the order in which `auto` takes them
# How libraries below torch say it, in errors that are a RuntimeError to Python.
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA's and MPS's own, the latter as "MPS backend out of memory"
    "can't allocate memory", "not enough memory",  # of the CPU
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES", "OUT_OF_DEVICE_MEMORY", "OUT_OF_HOST_MEMORY", "OUT_OF_RESOURCES",
)  # fmt: skip


def there() -> dict[str, int]:
    """How many devices of each kind torch sees, the CPU first."""
    found = {"cpu": 1}
    for kind in ACCELERATORS:
        module = _module(kind)
        if module.is_available():
            found[kind] = int(module.device_count())
    return found


def best() -> torch.device:
    """The device to take where none is asked for: an accelerator if there is one."""
    return torch.device([*there(), "cpu"][1])


def name(device: torch.device) -> str:
    """What the device is called."""
    if device.type in ("cuda", "xpu"):
        return str(_module(device.type).get_device_name(device))
    return platform.processor() or platform.machine()


def is_host(device: torch.device) -> bool:
    """Whether what a tensor there holds is known at once. Elsewhere asking means to wait for all that was begun."""
    return device.type == "cpu"


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64."""
    if device.type == "xpu":
        return bool(_module("xpu").get_device_properties(device).has_fp64)
    return device.type != "mps"


def has_long_products(device: torch.device) -> bool:
    """Whether whole numbers of 64 bits are multiplied to their last bit."""
    return device.type != "mps"


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, or float32 where there is none."""
    return torch.float64 if has_float64(device) else torch.float32


def wide(x: Tensor) -> Tensor:
    """A copy in the widest type of the tensor's device, to compute in."""
    return x.to(widest(x.device), copy=True)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if not is_host(device):
        _module(device.type).synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes that may be had now."""
    if device.type in ("cuda", "xpu"):
        return int(_module(device.type).mem_get_info(device)[0])
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def let_go(device: torch.device) -> None:
    """Give memory back that torch keeps for later."""
    if not is_host(device):
        _module(device.type).empty_cache()


def generator(device: torch.device) -> Callable[[], None]:
    """A picture of the device's own random generator: the function puts it back. Of the CPU's nothing is pictured."""
    if is_host(device):
        return lambda: None
    module: Any = _module(device.type)
    where = () if device.type == "mps" else (device,)  # where there is one device, and nobody names it
    state, put = module.get_rng_state(*where), module.set_rng_state
    return lambda: put(state, *where)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's own, or one of a library below it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


def _module(kind: str) -> Any:
    return getattr(torch, kind)
