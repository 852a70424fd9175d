"""What can be listed and shown of attacks and defenses: the tables, and a card for each. Listing needs no torch."""

import dataclasses
import inspect
import sys
from typing import Any

from robustkit import plugins, spec
from robustkit.errors import UsageError


def attacks(only: str = "") -> list[tuple[str, str]]:
    """The spec of each attack of the source `only`, with a line on it.

    Without `only`: the native attacks, and a line for each source.

    Raises:
        UsageError: for an unknown source.
    """
    if only:
        source = plugins.source("attack_sources", only)
        return [(f"{only}/{name}", "") for name in source.names()]
    native = [(name, found.entry.summary) for name, found in plugins.table("attacks").items()]
    return native + [
        (f"{name}/…", f"{found.entry.summary} (pip install '{found.entry.install}'; list attacks --source {name})")
        for name, found in plugins.table("attack_sources").items()
    ]


def attack(text: str) -> str:
    """What a user should know of an attack: of a library's its known defects first, of a native one its settings.

    Raises:
        UsageError: for an unknown name.
    """
    from robustkit.api import Attack

    parsed = spec.parse(text)
    if parsed.source == "python":
        raise UsageError(f"{text} is yours; there are cards of what `robustkit list attacks` names")
    if parsed.source:
        card: str = plugins.source("attack_sources", parsed.source).card(parsed.name)
        return card
    factory = plugins.load("attacks", parsed.name)
    made = factory()
    lines = [f"{parsed.name}: {plugins.table('attacks')[parsed.name].entry.summary}", "", inspect.getdoc(factory) or ""]
    if isinstance(made, Attack):
        facts = {"norms": ", ".join(sorted(made.norms)), "goal": made.goal, "access": made.access}
        lines += ["", *(f"{label:<6}  {fact}" for label, fact in facts.items())]
    return "\n".join([*lines, "", *_settings(made)])


def defense(text: str) -> str:
    """What a user should know of a defense: what it is and where from, what was claimed of it, its settings.

    Raises:
        UsageError: for an unknown name.
    """
    return _about("defenses", spec.parse(text).name)


def recipe(text: str) -> str:
    """What a user should know of a recipe: what it is and where from, its settings.

    Raises:
        UsageError: for an unknown name.
    """
    return _about("recipes", spec.parse(text).name)


def _about(kind: plugins.Kind, name: str) -> str:
    factory = plugins.load(kind, name)
    about = inspect.getdoc(sys.modules[factory.__module__]) or ""
    return "\n".join([f"{name}: {about}", "", inspect.getdoc(factory) or "", "", *_settings(factory())])


def _settings(made: Any) -> list[str]:
    """The settings of an attack or a defense with their defaults, a line each."""
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.init}
    width = max((len(name) for name in values), default=0)
    lines = [f"  {name:<{width}}  {spec.text_of(value)}" for name, value in values.items()]
    return ["Settings:" if values else "No settings.", *lines]
