"""What code decides a number, as sha256 of source files: part of a run's identity. Read with `ast`, never imported.

A module's code is its file and the files of what it imports, transitively, within its own top-level package; imports
inside functions count, those under TYPE_CHECKING do not. A package's `__init__` counts only where a name is taken from
it: it is a plugin's table as a rule, and a new line there changes no other attack. What is named as text only (a plugin
table's paths) is not followed.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robustkit import plugins, spec

if TYPE_CHECKING:
    from robustkit.engine.plan import Named
    from robustkit.models import defended

HARNESS, DEFENSE = "robustkit", "defense "  # among the names of `source_hashes`
ENGINE = ("robustkit.engine.*", "robustkit.models.wrapping", "robustkit.records.votes")
# Imported by what decides, and deciding nothing that the hashes of weights, answers and images would not show.
_APART = ("cache", "cli", "datasets", "errors", "events", "models.sources", "plugins", "records", "report")


class _Source(NamedTuple):
    """A module's file: its hash, and what it imports of its own top-level package."""

    sha256: str
    imports: frozenset[str]


def source_hashes(attacks: Iterable["Named"], defenses: Iterable["defended.Named"] = ()) -> dict[str, str]:
    """sha256 of the code behind each attack, each defense and the harness, by name; empty where there is no file."""
    from robustkit.api import Expected, ForeignAttack  # needs torch, which the check of a leaderboard does without

    found = {HARNESS: harness_sha256()}
    for named in attacks:
        inner = named.attack.attack if isinstance(named.attack, Expected) else named.attack
        found[named.name] = code_sha256(type(inner).__module__)
        if isinstance(inner, ForeignAttack):
            found[inner.library] = library_sha256(inner.library)
    for name, defense in defenses:
        found[DEFENSE + name] = code_sha256(type(defense).__module__)
    return found


def present_hashes(names: Iterable[str]) -> dict[str, str]:
    """What `source_hashes` would give now for its names, by the plugins' tables; empty for what stands in none."""
    found = {}
    for name in names:
        parsed = spec.parse(name.removeprefix(DEFENSE))
        kind: plugins.Kind = (
            "defenses" if name.startswith(DEFENSE) else "attack_sources" if parsed.source else "attacks"
        )
        entry = plugins.table(kind).get(parsed.source or parsed.name)
        if name == HARNESS:
            found[name] = harness_sha256()
        elif entry:
            found[name] = code_sha256(entry.entry.path.partition(":")[0])
        else:
            found[name] = "" if kind == "defenses" else library_sha256(name)
    return found


def harness_sha256(*roots: str) -> str:
    """sha256 of the harness's part in a number: of the roots (by default the engine) and what they import."""
    return code_sha256(*(roots or ENGINE), apart=tuple(f"{HARNESS}.{room}" for room in _APART))


def code_sha256(*roots: str, apart: tuple[str, ...] = ()) -> str:
    """sha256 of some modules (`package.*` for all directly in a package) and of what they import, by name and content.

    Imports of what is `apart`, or below it, are not followed; a root may lie there. Empty if a root has no file.
    """
    todo = [name for root in roots for name in _modules(root)]
    found: dict[str, str] = {}
    while todo:
        name = todo.pop()
        source = _source(name)
        if source is None:
            return ""
        found[name] = source.sha256
        todo += [
            other
            for other in source.imports - found.keys()
            if not any(f"{other}.".startswith(f"{room}.") for room in apart)
        ]
    return _digest(found)


@cache
def library_sha256(package: str) -> str:
    """sha256 of all Python files of a package, or of a module's one, by name and content; empty if there is none."""
    file = _file(package)
    if file is None:
        return ""
    files = file.parent.rglob("*.py") if file.name == "__init__.py" else [file]
    return _digest({path.relative_to(file.parent).as_posix(): _sha256(path.read_bytes()) for path in files})


def _modules(root: str) -> list[str]:
    if not root.endswith(".*"):
        return [root]
    package = root.removesuffix(".*")
    file = _file(package)
    return [f"{package}.{path.stem}" for path in file.parent.glob("*.py") if path != file] if file else [package]


@cache
def _source(module: str) -> _Source | None:
    """A module's source, as it is when first asked for; None without a file."""
    file = _file(module)
    if file is None:
        return None
    content = file.read_bytes()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    top = module.partition(".")[0]
    imported = _imported(ast.parse(content).body, package) if file.suffix == ".py" else ()
    return _Source(_sha256(content), frozenset(name for name in imported if name.partition(".")[0] == top))


def _imported(body: Iterable[ast.AST], package: str) -> Iterator[str]:
    """The modules that statements import; the module of a name, where the name is none itself."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            local = base.partition(".")[0] == package.partition(".")[0]  # no other's modules are looked for
            for alias in node.names:
                yield f"{base}.{alias.name}" if local and _file(f"{base}.{alias.name}") else base
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in (
            getattr(node.test, "id", ""),
            getattr(node.test, "attr", ""),
        ):
            yield from _imported(node.orelse, package)
        else:
            for inner in ("body", "orelse", "handlers", "finalbody", "cases"):
                if isinstance(statements := getattr(node, inner, None), list):
                    yield from _imported(statements, package)


@cache
def _folders(package: str) -> tuple[Path, ...]:
    """Where the modules of a top-level package lie."""
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a script, or made by hand
        found = None
    return tuple(map(Path, found.submodule_search_locations or ())) if found else ()


def _file(module: str) -> Path | None:
    """The file of a module, found without importing it."""
    if loaded := getattr(sys.modules.get(module), "__file__", None):
        return Path(loaded) if Path(loaded).is_file() else None
    top, *rest = module.split(".")
    if not rest and not _folders(top):
        found = importlib.util.find_spec(top) if top not in sys.modules else None
        return Path(found.origin) if found and found.has_location and found.origin else None
    for folder in _folders(top):
        path = folder.joinpath(*rest)
        for file in (path / "__init__.py", path.parent / f"{path.name}.py"):
            if file.is_file():
                return file
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(hashes: dict[str, str]) -> str:
    return _sha256("\n".join(f"{name}:{found}" for name, found in sorted(hashes.items())).encode())
