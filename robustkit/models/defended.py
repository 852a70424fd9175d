"""A model behind inference-time defenses, as a command line or a caller names them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from robustkit import plugins, spec
from robustkit.api import Defense
from robustkit.errors import UsageError
from robustkit.models.state import put_in_eval_mode

NONE = "none"  # names no defense, where one has to be named


class Named(NamedTuple):
    """A defense and its name, which is part of a run's identity: the spec that makes it again, where it has one."""

    name: str
    defense: Defense


def resolve(defense: Any) -> list[Named]:
    """The defenses of a spec, a Defense, or a list of these, in the order in which they are put around the model.

    Raises:
        UsageError: for an unknown name or option, or something that is no defense.
    """
    return list(_named(defense)) if defense else []


def protect(module: nn.Module, defenses: Sequence[Named]) -> nn.Module:
    """The module behind the defenses, the last of them outermost; it stays as it is without any.

    Raises:
        UsageError: if a defense cannot protect this model.
    """
    for name, defense in defenses:
        made: Any = defense.protect(module)
        if not isinstance(made, nn.Module):
            raise UsageError(f"the defense {name}: protect(model) returned {_instead(made, defense)}")
        module = put_in_eval_mode(made)
    return module


def _instead(made: object, defense: Defense) -> str:
    """What came in place of a module, and what to do."""
    due = "it must return an nn.Module whose forward asks the model"
    if made is None:
        return f"nothing; {due} (is a return missing?)"
    if made is defense:
        return f"the defense itself; {due}"
    if callable(made):
        return f"a {type(made).__name__}, which is no module; put it into the forward of an nn.Module"
    return f"an object of type {type(made).__name__}; {due}"


def text(defenses: Sequence[Named]) -> str:
    """All their names as one; empty for none."""
    names = [name for name, _ in defenses]
    return names[0] if len(names) == 1 else "+".join(f"({name})" for name in names)


def _named(defense: Any) -> Iterator[Named]:
    if isinstance(defense, str):
        for item in plugins.specs("defenses", defense):
            if item.lower() != NONE:
                yield _made(item)
    elif isinstance(defense, Sequence):
        for item in defense:
            yield from _named(item)
    elif isinstance(defense, Defense) and dataclasses.is_dataclass(defense) and not isinstance(defense, type):
        spec.check_types(defense, type(defense).__name__)
        name = plugins.name_of("defenses", type(defense))
        if name not in plugins.table("defenses"):
            name = f"{type(defense).__module__}.{type(defense).__qualname__}"
        yield Named(str(spec.Spec("", name, spec.settings(defense))), defense)
    elif dataclasses.is_dataclass(defense) and not isinstance(defense, type):
        raise UsageError(f"{type(defense).__name__} is no defense: it has no protect(model) that returns a module")
    else:
        raise UsageError(
            f"a defense is a spec, a dataclass of settings with protect(model), or a list of these, "
            f"not {type(defense).__name__}"
        )


def _made(text: str) -> Named:
    parsed = spec.parse(text)
    if parsed.source == "python":
        from robustkit.models.sources.python import held_or_made

        made = held_or_made(parsed.name, parsed.options, "defense", (Defense,), "model")
        if not isinstance(made, Defense):
            raise UsageError(f"{parsed.name} gives a {type(made).__name__}, no defense: it has no protect(model)")
        return Named(str(parsed), made)
    if parsed.source:
        raise UsageError(f"no defense source {parsed.source!r}; write a name such as jpeg, or python/module.callable")
    (found,) = _named(spec.build(plugins.load("defenses", parsed.name), parsed.options, parsed.name))
    return found
