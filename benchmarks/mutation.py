"""Whether the quick tests notice a small bug: one mutant at a time, in a copy of the tree.

    python -m benchmarks.mutation run mutants.jsonl --each 20
    python -m benchmarks.mutation report mutants.jsonl

A mutant is one small change of one place in the syntax tree: another comparison, another operator, a number one higher
or lower, a condition turned round, a statement or an argument left out. Of each target's mutants a seeded sample is
tried, in an order that does not depend on how many are. It is found if a test fails or takes far too long. The
tests come in stages, the quickest that are about the target first (`TARGETS`): `--stages 2` asks of what the first let
live the second.

`run` appends a line of JSON a mutant and leaves out those that the file holds, so it can be stopped and continued;
`--target` names some of the targets. `--again` tries once more what lived. Before a target's first mutant its tests
must pass on the target as it is, written anew from its syntax tree as each mutant is: tests that look at the text and
not at what it does would find every mutant.
"""

import argparse
import ast
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
# Imported once and inherited by every process that tries a mutant; nothing of ours, of which each has its own.
HEAVY = ("torch", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.datasets")
PYTEST = ("-q", "-x", "-m", "not slow and not gpu", "-p", "no:xdist", "-p", "no:cacheprovider", "--hypothesis-seed=0")
PATIENCE, LEAST = 4, 40  # a mutant that takes so many times what the tests took, and so many seconds more, never ends
# Of each target its files, and tests that are about it or reach it, in stages, the quickest first.
ATTACKS = "attacks/robustkit_attacks/"
TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "judge": (("robustkit/engine/judge.py",), ("judge by_hand", "house engine under_attack", "randomised")),
    "projection": (("robustkit/numerics/projection.py",), ("by_hand threat norms", "closed_form", "apgd fab")),
    "voting": (("robustkit/engine/voting.py",), ("voting", "judge randomised", "house by_hand under_attack")),
    "streams": (
        ("robustkit/numerics/streams.py", "robustkit/engine/shard.py"),
        ("streams shard_facts by_hand", "shards house", "engine randomised under_attack"),
    ),
    "stats": (("robustkit/stats.py",), ("stats gate_rule figures", "house compare certify gate")),
    "gate": (("robustkit/records/gate.py",), ("gate_rule gate", "house randomised audit_record")),
    "compare": (("robustkit/records/compare.py",), ("compare", "house gate", "audit_record randomised")),
    "record": (("robustkit/records/run.py",), ("record figures by_hand", "house report evidence", "randomised stored")),
    "store": (
        tuple(f"robustkit/records/{name}.py" for name in ("files", "seal", "folder", "consistency")),
        ("store", "house stored", "old_records compare transfer_record endings cli_certify"),
    ),
    "audit rules": (("robustkit/audit/rules.py",), ("audit_rules", "house figures", "audit_record audit")),
    "apgd": ((ATTACKS + "apgd.py",), ("apgd_steps", "house apgd", "closed_form metamorphic autoattack truth")),
    "fab": ((ATTACKS + "fab.py",), ("fab_steps", "house fab", "closed_form autoattack truth")),
    "square": ((ATTACKS + "square.py",), ("square_steps", "house square", "closed_form autoattack truth")),
    "losses": ((ATTACKS + "losses.py",), ("losses by_hand", "house pgd metamorphic evidence", "apgd")),
}

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
NAMES = {
    "clamp_min": "clamp_max", "clamp_min_": "clamp_max_", "amax": "amin", "argmax": "argmin", "minimum": "maximum",
    "max": "min", "all": "any", "floor": "ceil", "cumsum": "cumprod", "ones_like": "zeros_like",
}  # fmt: skip
NAMES |= {there: here for here, there in NAMES.items()}


@dataclass(frozen=True)
class Mutant:
    """One change: `id` says where and what, `before` and `after` how the place reads."""

    id: str
    target: str
    path: str
    line: int
    what: str
    before: str
    after: str
    source: str


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What can be made of one node, each with a word for it."""
    match node:
        case ast.Compare():
            for place, op in enumerate(node.ops):
                for other in COMPARISONS[type(op)]:
                    yield (
                        "comparison",
                        ast.Compare(node.left, [*node.ops[:place], other(), *node.ops[place + 1 :]], node.comparators),
                    )
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        case ast.AugAssign() if type(node.op) in ARITHMETIC:
            yield "arithmetic", ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
            yield "statement", ast.Pass()
        case ast.Constant(value=bool() as value):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield "constant", ast.Constant(value + 1)
            yield "constant", ast.Constant(value - 1)
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub()):
            yield "sign", node.operand
        case ast.BoolOp():
            yield "and/or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
            for place in range(len(node.values)):
                rest = [*node.values[:place], *node.values[place + 1 :]]
                yield "condition", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.IfExp():
            yield "branch", ast.IfExp(node.test, node.orelse, node.body)
        case ast.If() | ast.While():
            yield "branch", type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.Raise() | ast.Assign():
            yield "statement", ast.Pass()
        case ast.Continue():
            yield "statement", ast.Break()
        case ast.Break():
            yield "statement", ast.Continue()
        case ast.Call():
            for keyword in node.keywords:
                rest = [other for other in node.keywords if other is not keyword]
                yield "argument", ast.Call(node.func, node.args, rest)
            match node:
                case ast.Call(func=ast.Attribute(attr="where" | "pick"), args=[test, this, that]):
                    yield "branch", ast.Call(node.func, [test, that, this], node.keywords)
        case ast.Attribute() if node.attr in NAMES:
            yield "name", ast.Attribute(node.value, NAMES[node.attr], node.ctx)
        case ast.Name() if node.id in NAMES:
            yield "name", ast.Name(NAMES[node.id], node.ctx)


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Every child that runs, with its parent's field: no annotation, and nothing for type checkers alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_params"):
            continue
        if isinstance(node, ast.Subscript) and field == "slice" and ast.unparse(node.value) in ("Literal", "Float"):
            continue
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST):
                yield node, field, place if isinstance(value, list) else None
                yield from places(child)


def candidates(target: str) -> Iterator[tuple[str, int, int]]:
    """All that can be changed in a target's files: path, number of the place, number of the change."""
    for path in TARGETS[target][0]:
        for place, (parent, field, at) in enumerate(places(_parsed(path))):
            for change, _ in enumerate(changes(_node(parent, field, at))):
                yield path, place, change


def mutant(target: str, path: str, place: int, change: int) -> Mutant | None:
    """One of them, or None if it is no Python."""
    tree = _parsed(path)
    parent, field, at = list(places(tree))[place]
    node = _node(parent, field, at)
    what, other = list(changes(node))[change]
    before, after = _short(node), _short(other)
    if what == "argument":
        assert isinstance(node, ast.Call)
        before, after = f"{ast.unparse(node.func)}(…, {ast.unparse(node.keywords[change])})", "without it"
    if at is None:
        setattr(parent, field, other)
    else:
        getattr(parent, field)[at] = other
    source = ast.unparse(ast.fix_missing_locations(tree))
    try:
        compile(source, path, "exec")
    except SyntaxError:
        return None
    return Mutant(f"{path}:{place}:{change}", target, path, getattr(node, "lineno", 0), what, before, after, source)


def _parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def _node(parent: ast.AST, field: str, at: int | None) -> ast.AST:
    held = getattr(parent, field)
    return held if at is None else held[at]


def _short(node: ast.AST) -> str:
    lines = ast.unparse(ast.fix_missing_locations(node)).splitlines()
    return (lines[0] if lines else "")[:110]


def sample(target: str, each: int) -> Iterator[Mutant]:
    """The first `each` of a target's mutants in a shuffled order: a larger sample begins with a smaller one."""
    shuffled = list(candidates(target))
    random.Random(f"{SEED} {target}").shuffle(shuffled)
    return itertools.islice(filter(None, (mutant(target, *one) for one in shuffled)), each)


class Recorder:
    """Notes the first test that fails."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: object) -> None:
        if getattr(report, "failed", False):
            self.failed = self.failed or str(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


class Tree:
    """A copy of what git tracks, in which mutants are tried one after another."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="mutation-"))
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in listed.splitlines():
            if (ROOT / name).is_file():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.path / name)

    def write(self, path: str, source: str) -> None:
        """A module's text; what was compiled of an older one is forgotten."""
        file = self.path / path
        file.write_text(source, encoding="utf-8")
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
            compiled.unlink()

    def restore(self, path: str) -> None:
        """A module as it stands in the repository."""
        self.write(path, (ROOT / path).read_text(encoding="utf-8"))

    def ask(self, tests: str, limit: float, *, compiles: bool = False) -> tuple[str, str, float]:
        """What these tests make of the tree: found, timeout or lived; the test that failed; the seconds."""
        names = [f"tests/test_{file}.py{at}{name}" for file, at, name in (one.partition("::") for one in tests.split())]
        answer = self.path / "answer.txt"
        answer.unlink(missing_ok=True)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                self._pytest(names, answer, compiles=compiles)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(3)
        try:
            while (waited := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() - began > limit:
                    return "timeout", "", time.monotonic() - began
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what the tests have left behind, too
        seconds, code = time.monotonic() - began, os.waitstatus_to_exitcode(waited[1])
        if code == 5:
            raise SystemExit(f"no test in {', '.join(names)}")
        if code == 0:
            return "lived", "", seconds
        return "found", answer.read_text() if answer.exists() else f"exit {code}", seconds

    def _pytest(self, names: list[str], answer: Path, *, compiles: bool) -> None:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(self.path)
        log = os.open(self.path / "log.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        packages = [str(self.path), str(self.path / "attacks"), str(self.path / "defenses")]
        sys.path[:0] = packages
        os.environ["PYTHONPATH"] = os.pathsep.join(packages)
        if not compiles:
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]
        import pytest

        recorder = Recorder()
        code = int(pytest.main([*PYTEST, *names], plugins=[recorder]))
        answer.write_text(recorder.failed or f"exit {code}")
        sys.stdout.flush()
        os._exit(code)


def known(file: Path) -> dict[str, dict]:
    """What the file holds: of each mutant the last that was found out."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {row["id"]: row for row in map(json.loads, lines)}


def run(file: Path, targets: list[str], each: int, *, again: bool, stages: int) -> None:
    """Try the sampled mutants that the file does not hold yet."""
    for name in HEAVY:
        __import__(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the copy is removed and the tests end
    tree = Tree()
    try:
        for target in targets:
            held, whole = known(file), list(sample(target, each))
            chosen = [one for one in whole if one.id not in held or (again and held[one.id]["outcome"] == "lived")]
            _try(tree, target, chosen, file, TARGETS[target][1][:stages])
    finally:
        shutil.rmtree(tree.path)


def _try(tree: Tree, target: str, chosen: list[Mutant], file: Path, asked: tuple[str, ...]) -> None:
    limits: dict[str, float] = {}
    for one in chosen:
        seconds = 0.0
        for tests in asked:
            if tests not in limits:
                limits[tests] = PATIENCE * _unchanged(tree, target, tests, file) + LEAST
            tree.write(one.path, one.source)
            outcome, test, more = tree.ask(tests, limits[tests])
            tree.restore(one.path)
            seconds += more
            if outcome != "lived":
                break
        row = {**asdict(one), "outcome": outcome, "by": test, "asked": " ".join(asked), "seconds": round(seconds, 1)}
        del row["source"]
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{outcome} {one.path}:{one.line} {one.before} -> {one.after} | {test} {seconds:.1f} s", flush=True)


def _unchanged(tree: Tree, target: str, tests: str, file: Path) -> float:
    """The seconds that the tests take on the target as it is; they must pass."""
    for path in TARGETS[target][0]:
        tree.write(path, ast.unparse(_parsed(path)))
    outcome, test, seconds = tree.ask(tests, 1200, compiles=True)
    print(f"{target}: {tests}: {outcome} {test} {seconds:.1f} s", flush=True)
    if outcome != "lived":
        shutil.copy(tree.path / "log.txt", f"{file}.log")
        raise SystemExit(f"{target}: {test} fails on what is no mutant: {file}.log")
    for path in TARGETS[target][0]:
        tree.restore(path)
    return seconds


def report(file: Path) -> None:
    """Of each target how many were tried, found and lived; then those that lived."""
    rows = known(file).values()
    print("| target | possible | tried | found | lived |\n|---|---|---|---|---|")
    for target in TARGETS:
        mine = Counter("lived" if row["outcome"] == "lived" else "found" for row in rows if row["target"] == target)
        print(
            f"| {target} | {sum(1 for _ in candidates(target))} | {mine.total()} | {mine['found']} | {mine['lived']} |"
        )
    whole = Counter("lived" if row["outcome"] == "lived" else "found" for row in rows)
    print(f"| all | | {whole.total()} | {whole['found']} | {whole['lived']} |\n")
    for row in sorted(rows, key=lambda row: (row["path"], row["line"])):
        if row["outcome"] == "lived":
            print(f"- `{row['id']}`: `{row['before']}` → `{row['after']}`")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--stages", type=int, default=1)
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.file, asked.target or list(TARGETS), asked.each, again=asked.again, stages=asked.stages)
    elif asked.what == "report":
        report(asked.file)


if __name__ == "__main__":
    main()
