"""What an attack shares with the judge besides the model: torch's settings, and the functions that a verdict rests on.

A `World` is pictured before an attack runs, and put back after it. What an attack leaves changed is a fact about it.
"""

import builtins
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.numerics import devices

_CUDNN = ("enabled", "allow_tf32", "benchmark", "deterministic")


def _set_cudnn(found: Sequence[bool]) -> None:
    for name, value in zip(_CUDNN, found, strict=True):
        setattr(torch.backends.cudnn, name, value)


# What it is called, how it is read, and how it is set. The generators are put back too, but drawing is no offence.
_SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "the precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "cuDNN's settings": (lambda: [getattr(torch.backends.cudnn, name) for name in _CUDNN], _set_cudnn),
    "how NumPy treats errors": (np.geterr, lambda found: np.seterr(**found)),
}
_STACKS = (  # of modes through which every call of torch goes; entered and not left, one would answer for the judge
    (torch._C._len_torch_function_stack, torch._C._pop_torch_function_stack),
    (torch._C._len_torch_dispatch_stack, torch._C._pop_torch_dispatch_stack),
)
# Compilers and optimisers replace these themselves when first used.
_REPLACED = {(torch, "manual_seed"), (nn.Module, "__init__"), (nn.Module, "__setstate__")}


class World:
    """A picture of it, for a model on a device."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._settings = [(name, read(), read, put) for name, (read, put) in _SETTINGS.items()]
        self._stacks = [(length(), length, pop) for length, pop in _STACKS]
        self._generators: list[tuple[Callable[[Any], Any], Any]] = [
            (torch.set_rng_state, torch.get_rng_state()),
            (np.random.set_state, np.random.get_state()),
            (random.setstate, random.getstate()),
        ]
        self._put_own_generator = devices.generator(device)
        self._spaces = [*_spaces(module)]
        self._tables = [
            (f"{space.__name__}.{name}", value, value.copy())
            for space, known, _ in self._spaces
            for name, value in known.items()
            if isinstance(value, dict) and name.isupper()
        ]
        self._named_again = _named_again

    def put_back(self) -> tuple[list[str], list[str]]:
        """Put everything back: the settings that were left changed, and the functions and tables that were.

        Bound before an attack runs, it asks for nothing that the attack could have put in its place.
        """
        left: list[str] = []
        replaced: list[str] = []
        for number, length, pop in self._stacks:
            while length() > number:
                left = ["a mode of torch's that it entered"]
                pop()
        for space, known, every in self._spaces:
            replaced += self._named_again(space, known, every)
        for name, table, known in self._tables:
            if [*table.items()] != [*known.items()]:
                table.clear()
                table.update(known)
                replaced.append(name)
        for name, wanted, read, put in self._settings:
            if read() != wanted:
                put(wanted)
                left.append(name)
        for put, wanted in self._generators:
            put(wanted)
        self._put_own_generator()
        return left, replaced


def _named_again(space: Any, known: Mapping[str, Any], every: bool) -> Iterator[str]:
    """Give the names of a module or class what they stood for; those that did not. Without `every`, callables only."""
    now = space.__dict__
    above = [builtins] if isinstance(space, types.ModuleType) else space.__mro__[1:]
    for name in [*now.keys() | known.keys()]:
        value = known.get(name, known)
        if now.get(name, known) is value or (space, name) in _REPLACED:
            continue
        if not every and not callable(now[name] if value is known else value):
            continue
        if value is not known:
            setattr(space, name, value)
        elif any(name in each.__dict__ for each in above):
            delattr(space, name)  # it stood before what the name meant
        else:
            continue  # a lazy import, a cache
        yield f"{space.__name__}.{name}"


def _spaces(module: nn.Module) -> Iterator[tuple[Any, dict[str, Any], bool]]:
    """The modules and classes whose names a verdict looks up, a copy of these names, and whether every one counts.

    Of a model's classes functions do: it may count in an attribute of its class.
    """
    ours = [found for name, found in [*sys.modules.items()] if name.startswith("robustkit")]
    values = [value for found in ours for value in vars(found).values()]
    own = {one: None for one in values if isinstance(one, type) and one.__module__.startswith("robustkit")}
    for space in dict.fromkeys([builtins, torch, Tensor, F, *ours, *own]):
        yield space, dict(vars(space)), True
    for space in {one: None for part in module.modules() for one in type(part).__mro__[:-1] if one not in own}:
        yield space, dict(vars(space)), False
