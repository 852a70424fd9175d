"""The mutants that `benchmarks.mutation` tries: each one change, the same ones every time, and tests that are there."""

import ast
from pathlib import Path

import pytest

from benchmarks import mutation

TESTS = Path(__file__).parent


def made(text):
    """What each change of the one statement in `text` reads like."""
    tree = ast.parse(text)
    found = []
    for parent, field, at in list(mutation.places(tree)):
        node = mutation._node(parent, field, at)
        for what, other in mutation.changes(node):
            found.append((what, ast.unparse(node), ast.unparse(ast.fix_missing_locations(other))))
    return found


def test_the_changes_of_a_statement():
    assert ("comparison", "a < b", "a <= b") in made("x = a < b")
    assert ("comparison", "a < b", "a > b") in made("x = a < b")
    assert ("arithmetic", "a + b", "a - b") in made("x = a + b")
    assert {("constant", "1", "2"), ("constant", "1", "0")} <= set(made("x = 1"))
    assert ("constant", "True", "False") in made("x = True")
    assert ("sign", "not a", "a") in made("x = not a")
    assert {("and/or", "a and b", "a or b"), ("condition", "a and b", "b")} <= set(made("x = a and b"))
    assert ("branch", "a if c else b", "b if c else a") in made("x = a if c else b")
    assert ("branch", "rows.pick(c, a, b)", "rows.pick(c, b, a)") in made("x = rows.pick(c, a, b)")
    assert ("statement", "f(a)", "pass") in made("f(a)")
    assert ("argument", "f(a, b=1)", "f(a)") in made("x = f(a, b=1)")
    assert ("name", "x.all", "x.any") in made("y = x.all()")
    assert made("def f(a: 'int | 1') -> Literal[1]: ...") == []  # annotations do not run


def test_a_sample_begins_a_larger_one():
    few, more = list(mutation.sample("losses", 3)), list(mutation.sample("losses", 6))
    assert few == more[:3]
    assert len({one.id for one in more}) == 6


@pytest.mark.parametrize("target", mutation.TARGETS)
def test_a_mutant_is_one_of_its_target_and_its_tests_are_there(target):
    (one,) = mutation.sample(target, 1)
    assert ast.dump(ast.parse(one.source)) != ast.dump(mutation._parsed(one.path))
    paths, stages = mutation.TARGETS[target]
    assert one.path in paths
    for name in " ".join(stages).split():
        assert (TESTS / f"test_{name.partition('::')[0]}.py").is_file()
