"""What a module is besides its weights: attributes, hooks, buffers that are not kept, and what a callable refers to.

What the module changes itself when it is called (a counter, a cache, a generator's state) is left to it.
"""

import functools
import sys
import types
from collections.abc import Collection, Iterator, MutableSequence, MutableSet
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.models.state import put_values, same_values

_MOST = 100_000  # objects that are looked at: a module that holds a whole data set is not searched to its end
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_ABSENT = object()
_Place = tuple[int, Any]  # of a container, and a key in it: None where its order or its whole content is meant


class Picture:
    """A picture of all that a module refers to, to compare with and to go back to.

    Args:
        module: whose weights are not part of it; see `robustkit.models.state.snapshot`.
        before: a picture from before some calls: what has changed since then is the module's own business.
    """

    def __init__(self, module: nn.Module, before: "Picture | None" = None) -> None:
        self._module = module
        self._own: frozenset[_Place] = frozenset() if before is None else before._own | {*before.changes()}
        self._containers: list[tuple[Any, Any]] = []  # and a copy of each
        self._values: list[tuple[Any, Any]] = []  # tensors and arrays that are no weights, and a copy of each
        self._look()

    def changes(self) -> Iterator[_Place]:
        """The places that are no longer as pictured."""
        for container, known in self._containers:
            for place in _differences(container, known):
                if place not in self._own:
                    yield place
        for value, known in self._values:
            if (id(value), None) not in self._own and not same_values(value, known):
                yield id(value), None

    def restore(self) -> bool:
        """Put everything back as pictured; whether anything was not."""
        changed = {*self.changes()}
        if changed:
            for container, known in self._containers:
                if any(place in changed for place in _differences(container, known)):
                    self._refill(container, known)
            for value, known in self._values:
                if (id(value), None) in changed:
                    put_values(value, known)
        return bool(changed)

    def again(self, module: nn.Module) -> "Picture":
        """A picture of another module around this one."""
        found = Picture(module)
        found._own = self._own
        return found

    def _refill(self, container: Any, known: Any) -> None:
        if isinstance(container, dict):
            kept = {key: value for key, value in container.items() if (id(container), key) in self._own}
            wanted = {key: kept.get(key, value) for key, value in known.items()} | kept
            container.clear()
            container.update(wanted)
        elif isinstance(container, MutableSet):
            container.clear()
            container |= known
        else:
            container.clear()
            container.extend(known)

    def _look(self) -> None:
        weights = {id(value) for value in self._module.state_dict(keep_vars=True).values()}
        todo: list[Any] = [self._module]
        seen: set[int] = set()
        while todo and len(seen) < _MOST:
            item = todo.pop()
            if id(item) in seen or isinstance(item, _PLAIN):
                continue
            seen.add(id(item))
            if isinstance(item, np.ndarray | Tensor) and _comparable(item):
                if id(item) not in weights:
                    self._values.append((item, item.copy() if isinstance(item, np.ndarray) else item.detach().clone()))
            elif isinstance(item, dict | MutableSequence | MutableSet) and type(item).__module__ in _BUILTIN:
                self._containers.append((item, copy(item)))
                todo.extend(item.values() if isinstance(item, dict) else item)
            else:
                todo.extend(_within(item))


_BUILTIN = ("builtins", "collections")


def _comparable(value: Tensor | np.ndarray) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    return value.layout == torch.strided and not value.is_quantized and value.device.type != "meta"


def _within(item: Any) -> Collection[Any]:
    """What an object refers to, as far as it is a user's or a module's: not into libraries, classes or modules."""
    if isinstance(item, tuple | frozenset):
        return item
    if isinstance(item, functools.partial):
        return [item.func, item.args, item.keywords]
    if isinstance(item, types.MethodType):
        return [item.__self__]
    library = _library(type(item).__module__)
    if isinstance(item, types.FunctionType):
        if _library(item.__module__):
            return []
        cells = [cell.cell_contents for cell in item.__closure__ or () if _filled(cell)]
        return [*cells, item.__dict__, item.__defaults__, item.__kwdefaults__]
    if isinstance(item, nn.Module) or (hasattr(item, "__dict__") and not library and not isinstance(item, type)):
        return [vars(item)]
    return []


def _library(name: Any) -> bool:
    root = str(name).partition(".")[0]
    return root in ("torch", "numpy") or (root in sys.stdlib_module_names and root != "__main__")


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not bound yet
        return False


def _differences(container: Any, known: Any) -> Iterator[_Place]:
    if not isinstance(container, dict):
        same = len(container) == len(known) and (
            container == known if isinstance(container, MutableSet) else all(map(_unchanged, container, known))
        )
        if not same:
            yield id(container), None
        return
    for key in {**known, **container}:
        if not _unchanged(container.get(key, _ABSENT), known.get(key, _ABSENT)):
            yield id(container), key
    # The order counts too: a Sequential runs its modules in that of their dict.
    if list(container) != list(known) and container.keys() == known.keys():
        yield id(container), None


def _unchanged(now: Any, before: Any) -> bool:
    return now is before or (isinstance(now, _PLAIN) and type(now) is type(before) and now == before)
