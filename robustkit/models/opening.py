"""Opening a model: loaded, put behind its defenses, on its device, lent and examined; everything is put back after."""

import torch
from torch import nn

from robustkit.errors import UsageError
from robustkit.models.examination import CallableModule


def model_name(module: nn.Module) -> str:
    """What a module is called that came without a spec: its class, or the function behind it."""
    inner = module.function if isinstance(module, CallableModule) else type(module)
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__name__)}".lstrip(".")


def choose_device(wanted: str, module: nn.Module, *, named: bool) -> torch.device:
    """The device of a run; `named` says that the model came by a spec, so that it may be moved.

    Raises:
        UsageError: for a device that is not there, or not the one that the caller's module is on.
    """
    if wanted == "auto":
        if named:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return _home(module) or torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"unknown device {wanted!r}; there are: auto, cpu, cuda, cuda:0 …") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if (device.index or 0) >= there.get(device.type, 0):
        raise UsageError(f"device {wanted!r} is not there; torch sees cpu and {torch.cuda.device_count()} CUDA devices")
    home = _home(module)
    if not named and home is not None and home.type != device.type:
        raise UsageError(f"the model is on {home}, but device={wanted!r} was asked for; move it: model.to({wanted!r})")
    return device


def _home(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), None)
