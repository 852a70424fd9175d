"""Plugins: entry points of the group `robustkit.plugins`, each a table of lazy names. Looking imports no plugin code.

An entry point names a `Plugin`: plain strings, so that a table costs nothing to read. In-tree and foreign packages
come in through the same door.
"""

import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple

from robustkit.errors import RobustkitError, UsageError
from robustkit.spec import parse, split, suggest, unwrap

GROUP = "robustkit.plugins"
Kind = Literal["attacks", "defenses", "recipes", "sources", "datasets", "attack_sources", "dataset_sources"]
_SINGULAR = {"sources": "model source"}


class Entry(NamedTuple):
    """Where a plugged-in thing is ("package.module:Name"), one line on what it is, and what to install for it."""

    path: str
    summary: str
    install: str = ""


@dataclass(frozen=True, slots=True)
class Plugin:
    """What a package adds: tables from a name to an `Entry`. Suites stand among the attacks.

    `recipes` are training-time defenses. `sources` give models; a name of another source is written source/name:
    `timm/resnet18`, `torchattacks/PGD`.
    """

    attacks: Mapping[str, Entry] = field(default_factory=dict)
    defenses: Mapping[str, Entry] = field(default_factory=dict)
    recipes: Mapping[str, Entry] = field(default_factory=dict)
    sources: Mapping[str, Entry] = field(default_factory=dict)
    datasets: Mapping[str, Entry] = field(default_factory=dict)
    attack_sources: Mapping[str, Entry] = field(default_factory=dict)
    dataset_sources: Mapping[str, Entry] = field(default_factory=dict)


class Found(NamedTuple):
    """An entry and the distribution's entry point it came from."""

    entry: Entry
    plugin: str


def singular(kind: Kind) -> str:
    """What one thing of a kind is called."""
    return _SINGULAR.get(kind, kind[:-1].replace("_", " "))


@cache
def table(kind: Kind) -> Mapping[str, Found]:
    """All names of a kind.

    Raises:
        UsageError: if two plugins give one name, or a plugin does not load; the message names them.
    """
    found: dict[str, Found] = {}
    points = {(p.name, p.value): p for p in entry_points(group=GROUP)}  # an editable install may be listed twice
    for point in sorted(points.values(), key=lambda p: p.name):
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:
            raise UsageError(f"plugin {point.name!r} ({point.value}) does not load: {error}") from error
        if not isinstance(plugin, Plugin):
            raise UsageError(f"plugin {point.name!r} ({point.value}) must be a robustkit.plugins.Plugin")
        names = getattr(plugin, kind)
        if not isinstance(names, Mapping) or not all(isinstance(entry, Entry) for entry in names.values()):
            raise UsageError(f"plugin {point.name!r} ({point.value}): its {kind} must map names to plugins.Entry")
        for name, entry in names.items():
            if name in found:
                raise UsageError(
                    f"two plugins give the {singular(kind)} {name!r}: {found[name].plugin} and {point.name}; "
                    "uninstall one"
                )
            found[name] = Found(entry, point.name)
    return found


def load(kind: Kind, name: str) -> Any:
    """The class or function behind a name.

    Raises:
        UsageError: for an unknown name (with the close ones), or a plugin that lacks a dependency or is broken.
    """
    names = table(kind)
    if name not in names:
        raise UsageError(suggest(name, names, singular(kind)))
    entry, plugin = names[name]
    module, _, attribute = entry.path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        needed = entry.install or (error.name or "").partition(".")[0]
        raise UsageError(
            f"the {singular(kind)} {name!r} needs {error.name!r}, which is not installed: pip install '{needed}'"
        ) from error
    except RobustkitError:
        raise
    except (Exception, SystemExit) as error:  # what a module of others does when it is imported
        raise UsageError(
            f"the {singular(kind)} {name!r} of plugin {plugin!r} does not load ({entry.path}): "
            f"{type(error).__name__}: {error}"
        ) from error


def specs(kind: Kind, text: str) -> list[str]:
    """The specs of a '+' list; what follows a setting that is itself a list continues it: `transfer:input=di+ti`."""
    found: list[str] = []
    for item in split(text, "+"):
        if found and _ends_in_a_list(kind, found[-1]):
            found[-1] += f"+{item}"
        else:
            found.append(item)
    return [unwrap(item.strip()) for item in found]


def _ends_in_a_list(kind: Kind, text: str) -> bool:
    """Whether the last option written is one that holds several values."""
    parsed = None if text.strip().startswith("(") else parse(text)
    if parsed is None or parsed.source or not parsed.options or parsed.name not in table(kind):
        return False
    factory = load(kind, parsed.name)
    hints = typing.get_type_hints(factory if isinstance(factory, type) else type(factory()))
    return typing.get_origin(hints.get(list(parsed.options)[-1])) is tuple


def name_of(kind: Kind, factory: type) -> str:
    """The table name of a class, or its own name in lower case if no plugin lists it."""
    path = f"{factory.__module__}:{factory.__qualname__}"
    return next((name for name, found in table(kind).items() if found.entry.path == path), factory.__name__.lower())
