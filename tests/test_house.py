"""How the house is built: no circle of imports, few modules at the door, short functions, plugins by the public way.

The floors are import contracts in pyproject.toml.
"""

import ast
import graphlib
from pathlib import Path

import grimp
import pytest
import robustkit_attacks
import robustkit_defenses

import robustkit

ROOT = Path(robustkit.__file__).parent
PLUGINS = (robustkit_attacks, robustkit_defenses)
PUBLIC = {
    "api", "errors", "events", "models.capabilities", "models.ensembles", "models.wrapping", "numerics.generators",
    "numerics.devices", "numerics.norms", "numerics.projection", "numerics.rows", "plugins", "spec", "stats", "testing",
    "training.adversarial", "training.recipes",
}  # fmt: skip
MOST_MODULES, LONGEST = 12, 80
# What a model may offer: models/capabilities.py asks for it, nobody else by name.
CAPABILITIES = {
    "blind", "cost", "draws", "forward_with_members", "members", "purify", "randomised", "rejects", "reseed", "reset",
    "surrogates", "weights",
}  # fmt: skip


def imports(package):
    """What each module imports from its package, also inside functions, but not for type checkers alone."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    return {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}


@pytest.fixture(scope="module")
def house():
    return imports("robustkit")


def test_no_module_reaches_itself_by_imports(house):
    graphlib.TopologicalSorter(house).prepare()  # raises CycleError, which names the circle


def test_few_modules_stand_at_the_door():
    assert len(list(ROOT.glob("*.py"))) <= MOST_MODULES


def test_a_function_fits_on_a_screen():
    long = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= LONGEST
    }
    assert long == set()


def test_what_a_model_offers_is_asked_in_one_place():
    asked = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        if path != ROOT / "models/capabilities.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
        if isinstance(node.args[1], ast.Constant) and node.args[1].value in CAPABILITIES
    }
    assert asked == set()


def test_what_is_measured_stays_as_it_was():
    """Every dataclass is frozen, but for three that count, or hold, what is under way."""
    open_ = {
        f"{path.name}:{node.name}"
        for package in (robustkit, *PLUGINS)
        for path in Path(package.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for made in node.decorator_list
        if ast.unparse(made).startswith("dataclass") and "frozen=True" not in ast.unparse(made)
    }
    assert open_ == {"bounds.py:Bounds", "loop.py:Checkpoint", "progress.py:_Attack"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda module: module.__name__)
def test_plugins_import_what_is_public(plugin):
    imported = {
        f"{node.module}.{name.name}" if isinstance(node, ast.ImportFrom) else name.name
        for path in Path(plugin.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    ours = {name.removeprefix("robustkit.") for name in imported if name.startswith("robustkit.")}
    assert ours
    assert {name for name in ours if not any(f"{name}.".startswith(f"{public}.") for public in PUBLIC)} == set()
