"""A model behind inference-time defenses, as a command line or a caller names them."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from robustkit import plugins, spec
from robustkit.api import Defense
from robustkit.errors import UsageError


def resolve(defense: Any) -> list[Defense]:
    """The defenses of a spec, a Defense, or a list of these, in the order in which they are put around the model.

    Raises:
        UsageError: for an unknown name or option, or something that is no defense.
    """
    return list(_settings(defense)) if defense else []


def protect(module: nn.Module, defenses: Sequence[Defense]) -> nn.Module:
    """The module behind the defenses, the last of them outermost; it stays as it is without any.

    Raises:
        UsageError: if a defense cannot protect this model.
    """
    for defense in defenses:
        module = defense.protect(module).eval()
    return module


def text(defenses: Sequence[Defense]) -> str:
    """The spec that makes these defenses again; empty for none."""
    names = [_name(defense) for defense in defenses]
    return names[0] if len(names) == 1 else "+".join(f"({name})" for name in names)


def _settings(defense: Any) -> Iterator[Defense]:
    if isinstance(defense, str):
        for item in spec.listed(defense):
            yield _made(item)
    elif isinstance(defense, Sequence):
        for item in defense:
            yield from _settings(item)
    elif isinstance(defense, Defense) and not isinstance(defense, type):
        yield defense
    else:
        raise UsageError(f"a defense is a spec, a Defense or a list, not {type(defense).__name__}")


def _made(text: str) -> Defense:
    parsed = spec.parse(text)
    if parsed.source == "python":
        from robustkit.sources.python import call

        made = call(parsed.name, parsed.options, "defense")
        if not isinstance(made, Defense):
            raise UsageError(f"{parsed.name} returned {type(made).__name__}; a defense has protect(model)")
        return made
    if parsed.source:
        raise UsageError(f"no defense source {parsed.source!r}; write a name such as jpeg, or python/module.callable")
    found: Defense = spec.build(plugins.load("defenses", parsed.name), parsed.options, parsed.name)
    return found


def _name(defense: Defense) -> str:
    options = spec.settings(defense) if hasattr(defense, "__dataclass_fields__") else {}
    return str(spec.Spec("", plugins.name_of("defenses", type(defense)), options))
