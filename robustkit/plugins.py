"""Plugins: entry points of the group `robustkit.plugins`, each a table of lazy names. Looking imports no plugin code.

Beside them stands code of the user's, however it is named: `mynet.py:net`, `mynet:net` and `mynet.net` are
`python/mynet.net`. Looking for it runs none of it: a module that is not named whole is read for what it defines.

An entry point names a `Plugin`: plain strings, so that a table costs nothing to read. In-tree and foreign packages
come in through the same door.
"""

import ast
import importlib
import importlib.util
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from robustkit.errors import RobustkitError, UsageError
from robustkit.spec import parse, split, suggest, unwrap

GROUP = "robustkit.plugins"
Kind = Literal["attacks", "defenses", "recipes", "sources", "datasets", "attack_sources", "dataset_sources"]
_SINGULAR = {"sources": "model source"}
_METHODS: Mapping[Kind, Sequence[str]] = {
    "sources": ("names", "load"),
    "attack_sources": ("names", "make", "card"),
    "dataset_sources": ("names", "make"),
}
_SOURCES: Mapping[Kind, Kind] = {"attacks": "attack_sources", "datasets": "dataset_sources"}

# Code of the user's, as people write it.
_NAME = r"[A-Za-z_]\w*"
_OF_A_FILE = re.compile(rf"(?:python/)?((?:[^:()]|:(?=[/\\]))*\.py)(?::({_NAME}))?(:.*)?")
_OF_A_MODULE = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})(:.*)?")
_DOTTED = re.compile(rf"(python/)?({_NAME}(?:\.{_NAME})*)(:.*)?")
_CALLED = re.compile(rf"(?:python/)?(?:[\w./\\]+[.:])?{_NAME}\(.*\)")


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
    """An entry and the distribution's entry point it came from; `rival` is another that gives the same name."""

    entry: Entry
    plugin: str
    rival: str = ""


def singular(kind: Kind) -> str:
    """What one thing of a kind is called."""
    return _SINGULAR.get(kind, kind[:-1].replace("_", " "))


@cache
def table(kind: Kind) -> Mapping[str, Found]:
    """All names of a kind. A plugin that is broken gives none, see `broken`; what does not need it goes on."""
    found: dict[str, Found] = {}
    for name, plugin in _read()[0].items():
        for key, entry in getattr(plugin, kind).items():
            known = found.get(key)
            found[key] = Found(entry, name) if known is None else known._replace(rival=name)
    return found


def broken() -> Sequence[str]:
    """Why plugins, or tables in them, cannot be used, a line each; empty if all can."""
    return _read()[1]


@cache
def _read() -> tuple[Mapping[str, Plugin], Sequence[str]]:
    """The plugins by the names of their entry points, each with the tables that can be used; and what cannot."""
    found: dict[str, Plugin] = {}
    wrong: list[str] = []
    points = {(p.name, p.value): p for p in entry_points(group=GROUP)}  # an editable install may be listed twice
    for point in sorted(points.values(), key=lambda p: p.name):
        what = f"plugin {point.name!r} ({point.value})"
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            wrong.append(f"{what} does not load: {said}; mend it or uninstall it")
            continue
        if not isinstance(plugin, Plugin):
            wrong.append(f"{what} must be a robustkit.plugins.Plugin, and is of type {type(plugin).__name__}")
            continue
        faults = {kind: fault for kind in get_args(Kind) if (fault := _fault(getattr(plugin, kind)))}
        wrong += [f"{what}: its {kind} {fault}" for kind, fault in faults.items()]
        found[point.name] = replace(plugin, **{kind: {} for kind in faults})
    return found, wrong


def _fault(names: Any) -> str:
    """What is wrong with a table of a plugin; empty if nothing is."""
    if not isinstance(names, Mapping):
        return f"must map names to plugins.Entry, and are of type {type(names).__name__}"
    for name, entry in names.items():
        if not isinstance(name, str):
            return f"must map names to plugins.Entry, and {name!r} is no name"
        if not isinstance(entry, Entry):
            kind = type(entry).__name__
            return f"must map names to plugins.Entry, and {name!r} to a {kind}; write Entry('pkg.module:Name', '…')"
        if not isinstance(entry.path, str) or not all(entry.path.partition(":")):
            return f"say where {name!r} is by {entry.path!r}; write package.module:Name"
    return ""


def clear() -> None:
    """Forget what was read, for the plugins may be others now."""
    table.cache_clear()
    _read.cache_clear()


def load(kind: Kind, name: str) -> Any:
    """The class or function behind a name.

    Raises:
        UsageError: for an unknown name (with the close ones), one that two plugins give, or a plugin that lacks a
            dependency or is broken.
    """
    names = table(kind)
    if name not in names:
        joined = f"; several are joined by +: {name.replace(',', '+')}" if "," in name else ""
        also = "".join(f"; {text}" for text in broken())
        raise UsageError(suggest(name, names, singular(kind)) + joined + also)
    entry, plugin, rival = names[name]
    if rival:
        raise UsageError(f"two plugins give the {singular(kind)} {name!r}: {plugin} and {rival}; uninstall one")
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


def source(kind: Literal["sources", "attack_sources", "dataset_sources"], name: str) -> Any:
    """A source of models, attacks or datasets, made and with all that one has.

    Raises:
        UsageError: see `load`; for a class that cannot be made without arguments, or lacks a method.
    """
    factory = load(kind, name)
    try:
        made = factory()
    except TypeError as error:
        raise UsageError(f"the {singular(kind)} {name!r} cannot be made without arguments: {error}") from error
    lacking = [method for method in _METHODS[kind] if not callable(getattr(made, method, None))]
    if lacking:
        raise UsageError(
            f"the {singular(kind)} {name!r} of plugin {table(kind)[name].plugin!r} has no {', no '.join(lacking)}; see "
            "robustkit.api"
        )
    return made


def spelled(kind: Kind, text: str) -> str:
    """A spec of this kind, code of the user's written as `python/module.name`: `mine.py:make`, `mine:make`.

    Raises:
        UsageError: for code of which the callable is not named, with those that there are; or that cannot be imported.
    """
    return _spelled(text, {*table(kind), *table(_SOURCES.get(kind, kind)), "python"})


def specs(kind: Kind, text: str) -> list[str]:
    """The specs of a '+' list; what follows a setting that is itself a list continues it: `transfer:input=di+ti`."""
    found: list[str] = []
    for item in split(text, "+"):
        if found and _ends_in_a_list(kind, found[-1]):
            found[-1] += f"+{item}"
        else:
            found.append(item)
    return [spelled(kind, item) for item in found]


def _ends_in_a_list(kind: Kind, text: str) -> bool:
    """Whether the last option written is one that holds several values."""
    try:
        parsed = None if text.strip().startswith("(") else parse(text)
    except UsageError:  # said of the item itself
        parsed = None
    if parsed is None or parsed.source or not parsed.options or parsed.name not in table(kind):
        return False
    factory = load(kind, parsed.name)
    hints = typing.get_type_hints(factory if isinstance(factory, type) else type(factory()))
    return typing.get_origin(hints.get(list(parsed.options)[-1])) is tuple


def name_of(kind: Kind, factory: type) -> str:
    """The table name of a class, or its own name in lower case if no plugin lists it."""
    path = f"{factory.__module__}:{factory.__qualname__}"
    return next((name for name, found in table(kind).items() if found.entry.path == path), factory.__name__.lower())


def _spelled(text: str, known: Collection[str]) -> str:
    """A spec with code of the user's written as `python/module.name`; any other as it is.

    `known` are the names that are none of the user's: what is written like one of them stays.

    Raises:
        UsageError: for code of which the callable is not named, with those that there are; or that cannot be imported.
    """
    text = unwrap(text.strip())
    head = split(text, ":")[0] if "(" not in text.partition("/")[0] else text
    others = {name for name in known if name != "python"}
    if head.removeprefix("python/") in others or head.partition("/")[0] in others:
        return text
    if _CALLED.fullmatch(text):
        name, _, arguments = text.partition("(")
        options = "".join(arguments.removesuffix(")").split())
        right = name + (f":{options}" if "=" in options else "")
        raise UsageError(f"{text!r} is a call; name what is called: {_spelled(right, known)}")
    if match := _OF_A_FILE.fullmatch(text):
        return _of_file(*match.groups(default=""))
    if (match := _OF_A_MODULE.fullmatch(text)) and (_file_of(match[1]) or _installed(match[1])):
        return f"python/{match[1]}.{match[2]}{match[3] or ''}"
    if match := _DOTTED.fullmatch(text):
        return _of_dotted(text, bool(match[1]), match[2], match[3] or "", known)
    return text


def _of_file(path: str, name: str, options: str) -> str:
    """The spec of a callable in a file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"there is no file {path}; paths are looked up from the folder in which the command runs")
    try:
        parts = file.resolve().relative_to(Path.cwd().resolve()).with_suffix("").parts
    except ValueError:
        raise UsageError(
            f"{path} is outside the current folder, from which code is imported; run the command in {file.parent}, "
            f"or put that on PYTHONPATH and write python/{file.stem}.{name or 'NAME'}"
        ) from None
    if wrong := [part for part in parts if not part.isidentifier()]:
        raise UsageError(f"{path} cannot be imported: {wrong[0]!r} is no module's name; rename it, a-z, 0-9 and _")
    module = ".".join(parts)
    if not name:
        raise UsageError(f"{path} is code: name the callable in it, {_choices(module, file)}")
    return f"python/{module}.{name}{options}"


def _of_dotted(text: str, prefix: bool, dotted: str, options: str, known: Collection[str]) -> str:
    """The spec of module.name where that is a module here; what is written as code already stays."""
    module = dotted.rpartition(".")[0]
    if prefix and options and "=" not in options:  # python/module:name, as entry points are written
        return text
    if file := _file_of(dotted):
        raise UsageError(f"{text!r} is a module: name the callable in it, {_choices(dotted, file)}")
    if prefix or not module:
        return text
    if _file_of(module):
        return f"python/{dotted}{options}"
    top, _, rest = dotted.partition(".")
    if top in known:
        raise UsageError(f"{text!r} names nothing; what is {top}'s is written {top}/{rest.rpartition('.')[2]}")
    if _installed(module):
        raise UsageError(f"{text!r} names nothing; if it is a callable of that package, write python/{text}")
    return text


def _file_of(dotted: str) -> Path | None:
    """The file of a module that lies in the current folder."""
    place = Path(*dotted.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _installed(dotted: str) -> bool:
    """Whether the package of a module is installed; it is not imported."""
    try:
        return importlib.util.find_spec(dotted.partition(".")[0]) is not None
    except (ValueError, ImportError):
        return False


def _choices(module: str, file: Path) -> str:
    """How to name what a module defines: functions and classes, then other names."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file} is no Python that can be read: {error}") from error
    callables = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assigned = [target.id for node in body if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Name)]  # fmt: skip
    public = [name for name in [*callables, *assigned] if not name.startswith("_")]
    if not public:
        return f"such as python/{module}.make; it defines nothing yet"
    return " or ".join(f"python/{module}.{name}" for name in public[:4])
