"""The options that a plugged-in thing takes, with the values of those that are words: read from its source.

Nothing is imported but the package's table, since it runs at each press of Tab, and attacks import torch.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

Values = Mapping[str, tuple[str, ...]]
_DEEP = 8  # names that lead to names


class _Module(NamedTuple):
    """A module's source: what it defines, and where the names that it imports come from, as module and name."""

    name: str
    defined: Mapping[str, ast.stmt]
    imported: Mapping[str, tuple[str, str]]


def options_of(path: str) -> Values:
    """The options of "package.module:Name": of a dataclass, or of the one that a function makes, or that it takes.

    A function takes them itself if nothing that it returns is a dataclass, as functions that make data sets.
    """
    module, _, name = path.partition(":")
    return _options(module, name, _DEEP)


def _options(module: str, name: str, deep: int) -> Values:
    here, found = _find(module, name, deep)
    if here is None or not deep:
        return {}
    if isinstance(found, ast.ClassDef):
        return _of_class(here, found, deep)
    if isinstance(found, ast.FunctionDef):
        for node in ast.walk(found):  # a preset: what it returns says what can be changed
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                there, made = _find(*_place(here, node.value.func), deep - 1)
                if there is not None and isinstance(made, ast.ClassDef) and _is_dataclass(made):
                    return _of_class(there, made, deep - 1)
                if isinstance(made, ast.FunctionDef) and not found.args.args:
                    return _options(*_place(here, node.value.func), deep - 1)
        own = [*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs]
        return {each.arg: _values(here, each.annotation, deep) for each in own}
    return {}


def _is_dataclass(found: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in found.decorator_list)


def _of_class(here: _Module, found: ast.ClassDef, deep: int) -> Values:
    """The fields of a dataclass, those of its bases first."""
    values: dict[str, tuple[str, ...]] = {}
    for base in found.bases:
        values |= _options(*_place(here, base), deep - 1)
    for node in found.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if "ClassVar" not in ast.unparse(node.annotation) and "init=False" not in ast.unparse(node):
            values[node.target.id] = _values(here, node.annotation, deep)
    return values


def _values(here: _Module, hint: ast.expr | None, deep: int) -> tuple[str, ...]:
    """The words that a type allows; none of a number or a text."""
    if hint is None or not deep:
        return ()
    if isinstance(hint, ast.Constant):
        return ("none",) if hint.value is None else ()
    if isinstance(hint, ast.BinOp):
        return (*_values(here, hint.left, deep), *_values(here, hint.right, deep))
    if isinstance(hint, ast.Subscript):
        if ast.unparse(hint.value).rpartition(".")[2] != "Literal":
            return ()
        items = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
        return tuple(str(item.value) for item in items if isinstance(item, ast.Constant))
    if isinstance(hint, ast.Name) and hint.id == "bool":
        return ("true", "false")
    if isinstance(hint, ast.Name | ast.Attribute):
        there, found = _find(*_place(here, hint), deep - 1)
        value = getattr(found, "value", None) if isinstance(found, ast.Assign | ast.AnnAssign) else None
        return _values(there, value, deep - 1) if there is not None and isinstance(value, ast.expr) else ()
    return ()


def _place(here: _Module, node: ast.expr) -> tuple[str, str]:
    """Where the name in an expression is defined, as module and name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        package, name = here.imported.get(node.value.id, ("", ""))
        return (f"{package}.{name}" if name else package, node.attr)
    if isinstance(node, ast.Name):
        return here.imported.get(node.id, (here.name, node.id))
    return "", ""


def _find(module: str, name: str, deep: int) -> tuple[_Module | None, ast.stmt | None]:
    """What a module defines under a name, or what it imports under it defines."""
    for _ in range(deep):
        here = _read(module)
        if here is None or name in here.defined:
            return here, here.defined[name] if here else None
        if name not in here.imported:
            break
        module, name = here.imported[name]
    return None, None


@cache
def _read(module: str) -> _Module | None:
    file = _file(module)
    if file is None:
        return None
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    defined, imported = dict[str, ast.stmt](), dict[str, tuple[str, str]]()
    for node in tree.body:
        for name in _names(node):
            defined[name] = node
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            imported |= {each.asname or each.name: (origin, each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            imported |= {each.asname or each.name: (each.name, "") for each in node.names}
    return _Module(module, defined, imported)


def _names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    targets: Sequence[ast.expr] = node.targets if isinstance(node, ast.Assign) else ()
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _file(module: str) -> Path | None:
    """The source of a module, without importing its packages."""
    top, *inner = module.split(".")
    spec = PathFinder.find_spec(top) if top else None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        place = Path(root, *inner)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return Path(spec.origin) if spec and spec.origin and not inner and spec.origin.endswith(".py") else None
